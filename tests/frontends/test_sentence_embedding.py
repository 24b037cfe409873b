"""Pooling and normalisation in the graph, against the definition."""

import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import safetensors.torch
import torch

from obert_compiler.errors import ModelError
from obert_compiler.frontends.sentence_embedding import add_sentence_embedding, read_modules
from obert_compiler.graph import Graph, Source

TEXT = """<ir_version: 10, opset_import: ["" : 21]>
g (float[batch, sequence, 6] x, int64[batch, sequence] attention_mask)
=> (float[batch, sequence, 6] last_hidden_state) { last_hidden_state = Identity(x) }"""


def folder_of(folder, pooling, kinds=("Transformer", "Pooling", "Normalize")):
    """A sentence-transformers folder without weights."""
    modules = [{"type": f"sentence_transformers.models.{k}", "path": f"m_{k}"} for k in kinds]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "m_Pooling").mkdir()
    (folder / "m_Pooling/config.json").write_text(json.dumps(pooling))
    return folder


def unit(x):
    """Rows of unit length."""
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def pool(mode, hidden, mask):
    """The definition, row by row."""
    rows = [h[m.astype(bool)] for h, m in zip(hidden, mask, strict=True)]
    by_mode = {
        "cls": lambda r: r[0],
        "mean": lambda r: r.mean(0),
        "max": lambda r: r.max(0),
        "mean_sqrt_len": lambda r: r.sum(0) / np.sqrt(len(r)),
        "lasttoken": lambda r: r[-1],
    }
    return np.stack([by_mode[mode](row) for row in rows])


@pytest.mark.parametrize(
    ("mode", "config"),
    [
        ("cls", {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}),
        ("mean", {"pooling_mode_mean_tokens": True}),
        ("max", {"pooling_mode_max_tokens": True}),
        ("mean_sqrt_len", {"pooling_mode_mean_sqrt_len_tokens": True}),
        ("mean", {"pooling_mode": "mean"}),
        ("lasttoken", {"pooling_mode_lasttoken": True}),
    ],
)
@pytest.mark.parametrize("normalised", [True, False])
def test_embedding(mode, config, normalised, tmp_path, run):
    kinds = ("Transformer", "Pooling", "Normalize")[: 3 if normalised else 2]
    steps = read_modules(folder_of(tmp_path, config, kinds))
    graph = Graph(ir.from_proto(onnx.parser.parse_model(TEXT)), Source("onnx"))
    add_sentence_embedding(graph, steps)
    hidden = np.random.default_rng(0).standard_normal((3, 5, 6)).astype(np.float32) - 2
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
    if mode == "lasttoken":  # whichever side the padding is on
        mask[1] = mask[1, ::-1]
    got = run(graph, {"x": hidden, "attention_mask": mask})
    pooled = pool(mode, hidden, mask)
    expected = unit(pooled) if normalised else pooled
    np.testing.assert_allclose(got["sentence_embedding"], expected, atol=1e-6)
    np.testing.assert_array_equal(got["last_hidden_state"], hidden)
    assert [str(dim) for dim in graph.model.graph.outputs[1].shape] == ["batch", "6"]


def write_dense(folder, weight, bias, activation, *, safe):
    """A Dense module of sentence-transformers."""
    folder.mkdir()
    config = {"activation_function": f"torch.nn.modules.{activation}"}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {"linear.weight": torch.from_numpy(weight)}
    if bias is not None:
        tensors["linear.bias"] = torch.from_numpy(bias)
    if safe:
        safetensors.torch.save_file(tensors, folder / "model.safetensors")
    else:
        torch.save(tensors, folder / "pytorch_model.bin")


@pytest.mark.parametrize("safe", [True, False])
def test_dense_modules(safe, tmp_path, run):
    kinds = ("Transformer", "Pooling", "Dense", "Normalize", "Dense")
    folder = folder_of(tmp_path, {"pooling_mode_mean_tokens": True}, kinds)
    modules = json.loads((folder / "modules.json").read_text())
    modules[2]["path"], modules[4]["path"] = "2_Dense", "4_Dense"
    (folder / "modules.json").write_text(json.dumps(modules))
    rng = np.random.default_rng(1)
    first, bias = rng.standard_normal((4, 6), np.float32), rng.standard_normal(4, np.float32)
    second = rng.standard_normal((3, 4), np.float32)
    write_dense(folder / "2_Dense", first, bias, "activation.Tanh", safe=safe)
    write_dense(folder / "4_Dense", second, None, "linear.Identity", safe=safe)
    graph = Graph(ir.from_proto(onnx.parser.parse_model(TEXT)), Source("onnx"))
    add_sentence_embedding(graph, read_modules(folder))
    hidden = rng.standard_normal((2, 5, 6)).astype(np.float32)
    got = run(graph, {"x": hidden, "attention_mask": np.ones((2, 5), np.int64)})
    expected = unit(np.tanh(hidden.mean(1) @ first.T + bias)) @ second.T
    np.testing.assert_allclose(got["sentence_embedding"], expected, atol=1e-5)
    assert [str(dim) for dim in graph.model.graph.outputs[1].shape] == ["batch", "3"]


@pytest.mark.parametrize(
    ("weight", "activation", "message"),
    [
        (np.ones((4, 6), np.float32), "activation.GELU", "activation of Identity, .* found .*GELU"),
        (np.ones(4, np.float32), "activation.Tanh", r"linear\.weight \[outputs, inputs\]"),
        (np.ones((4, 5), np.float32), "activation.Tanh", "a matrix for 6 features, found 5"),
        (None, "activation.Tanh", "weights cannot be read"),
    ],
)
def test_dense_modules_that_are_refused(weight, activation, message, tmp_path):
    folder = folder_of(tmp_path, {"pooling_mode_mean_tokens": True}, ("Pooling", "Dense"))
    write_dense(
        folder / "m_Dense",
        np.ones((1, 1)) if weight is None else weight,
        None,
        activation,
        safe=True,
    )
    if weight is None:
        (folder / "m_Dense/model.safetensors").write_bytes(b"none")
    graph = Graph(ir.from_proto(onnx.parser.parse_model(TEXT)), Source("onnx"))
    with pytest.raises(ModelError, match=message):
        add_sentence_embedding(graph, read_modules(folder))


def test_several_modes_are_refused(tmp_path):
    config = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}
    with pytest.raises(ModelError, match=r"one pooling mode .* found cls, mean"):
        read_modules(folder_of(tmp_path, config))


def test_other_modules_are_named(tmp_path):
    folder = folder_of(tmp_path, {"pooling_mode_mean_tokens": True}, ("Transformer", "CNN"))
    with pytest.raises(ModelError, match=r"modules\.json': .* found 'CNN'"):
        read_modules(folder)


def test_no_pooling_is_refused(tmp_path):
    folder = folder_of(tmp_path, {}, ("Transformer",))
    with pytest.raises(ModelError, match="expected a Pooling module"):
        read_modules(folder)
