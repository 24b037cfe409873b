"""Pooling and normalisation in the graph, against the definition."""

import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest

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
    got = run(graph, {"x": hidden, "attention_mask": mask})
    pooled = pool(mode, hidden, mask)
    expected = unit(pooled) if normalised else pooled
    np.testing.assert_allclose(got["sentence_embedding"], expected, atol=1e-6)
    np.testing.assert_array_equal(got["last_hidden_state"], hidden)
    assert [str(dim) for dim in graph.model.graph.outputs[1].shape] == ["batch", "6"]


def test_several_modes_are_refused(tmp_path):
    config = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}
    with pytest.raises(ModelError, match=r"one pooling mode .* found cls, mean"):
        read_modules(folder_of(tmp_path, config))


def test_other_modules_are_named(tmp_path):
    folder = folder_of(tmp_path, {"pooling_mode_mean_tokens": True}, ("Transformer", "Dense"))
    with pytest.raises(ModelError, match=r"modules\.json': .* found 'Dense'"):
        read_modules(folder)


def test_no_pooling_is_refused(tmp_path):
    folder = folder_of(tmp_path, {}, ("Transformer",))
    with pytest.raises(ModelError, match="expected a Pooling module"):
        read_modules(folder)
