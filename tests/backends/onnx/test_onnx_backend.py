"""What the ONNX back end writes, and that it reads back as what it was."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from obert_compiler.backends.onnx import OnnxBackend, model_file
from obert_compiler.emission import emit
from obert_compiler.errors import ArtefactError, GraphError
from obert_compiler.frontends import lower
from obert_compiler.graph import Graph, Source, Stage, linear
from obert_compiler.graph.linear import find_linear_sites
from obert_compiler.passes.pack import Pack
from obert_compiler.pipeline.contract import Context

TEXT = """<ir_version: 8, opset_import: ["" : 21]>
g (float[batch, 256] x) => (float[batch, 64] y) { h = MatMul(x, w) y = Add(h, b) }"""
RNG = np.random.default_rng(5)


def graph_of_one_layer(density: float = 0.1) -> Graph:
    model = ir.from_proto(onnx.parser.parse_model(TEXT))
    kept = RNG.random((256, 64)) < density
    weights = {
        "w": (RNG.standard_normal((256, 64)) * kept).astype(np.float32),
        "b": RNG.standard_normal(64).astype(np.float32),
    }
    for name, array in weights.items():
        value = next(v for node in model.graph for v in node.inputs if v and v.name == name)
        value.const_value = ir.tensor(array, name=name)
        value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.FLOAT
        model.graph.register_initializer(value)
    for index, node in enumerate(model.graph):
        node.name = f"node{index}"
        node.metadata_props["pkg.torch.onnx.stack_trace"] = "a long text"
        node.outputs[0].metadata_props["pkg.onnxscript"] = "x"
    model.graph[0].metadata_props["obert.site"] = "layer"
    return Graph(model, Source("onnx"))


def packed() -> Graph:
    graph = graph_of_one_layer()
    Pack().run(graph, Context())
    graph.advance(Stage.PACKED)
    return graph


def run(model: Path | onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    array: np.ndarray = onnxruntime.InferenceSession(source).run(None, {"x": x})[0]
    return array


def test_the_model_in_memory_is_the_one_in_the_folder(tmp_path):
    graph = packed()
    report = OnnxBackend().write(graph, tmp_path)
    proto = emit(graph, "onnx")
    assert isinstance(proto, onnx.ModelProto)
    content = (tmp_path / "model.onnx").read_bytes()
    assert content == proto.SerializeToString()
    assert report == {"bytes": len(content), "model_files": ["model.onnx"], "files": []}


def test_only_our_own_metadata_and_no_inferred_shapes_are_written():
    proto = OnnxBackend().build(packed())
    keys = {p.key for node in proto.graph.node for p in node.metadata_props}
    assert keys == {"obert.site"}
    assert {p.key: p.value for p in proto.metadata_props} == {"obert.stage": "packed"}
    assert {value.name for value in proto.graph.value_info} == {"w", "unpack0.rows"}
    assert proto.producer_name == "obert_compiler"
    assert proto.ir_version >= 10
    assert {(o.domain, o.version) for o in proto.opset_import} == {("", 21)}


def test_a_written_model_reads_back_as_the_graph_it_was(tmp_path, monkeypatch):
    graph = packed()
    expected = {site.name: site.weight() for site in find_linear_sites(graph)}
    OnnxBackend().write(graph, tmp_path)
    again = lower(tmp_path / "model.onnx")
    assert again.stage is Stage.PACKED
    with monkeypatch.context() as patch:
        patch.setattr(linear, "read_constant", None)  # finding sites must compute no weight
        assert [site.shape for site in find_linear_sites(again)] == [(64, 256)]
    found = {site.name: site.weight() for site in find_linear_sites(again)}
    assert list(found) == ["layer"]
    np.testing.assert_array_equal(found["layer"], expected["layer"])
    assert OnnxBackend().build(again).ByteSize() <= OnnxBackend().build(graph).ByteSize()


def test_weights_beyond_a_protobuf_go_beside_the_model(tmp_path, monkeypatch):
    graph = packed()
    x = RNG.standard_normal((3, 256)).astype(np.float32)
    expected = run(OnnxBackend().build(graph), x)
    monkeypatch.setattr(model_file, "_INLINE_LIMIT", 100)
    with pytest.raises(GraphError, match="write it to a folder"):
        OnnxBackend().build(graph)
    report = OnnxBackend().write(graph, tmp_path)
    assert report["model_files"] == ["model.onnx", "model.onnx_data"]
    assert sorted(file.name for file in tmp_path.iterdir()) == report["model_files"]
    assert report["bytes"] == sum(file.stat().st_size for file in tmp_path.iterdir())
    np.testing.assert_array_equal(run(tmp_path / "model.onnx", x), expected)
    assert lower(tmp_path / "model.onnx").stage is Stage.PACKED


def test_what_the_checker_refuses_is_not_written(tmp_path):
    graph = graph_of_one_layer()
    graph.model.graph.outputs[0].dtype = ir.DataType.INT64
    with pytest.raises(GraphError, match=r"onnx\.checker"):
        OnnxBackend().write(graph, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_broken_graph_is_refused_before_any_work():
    graph = graph_of_one_layer()
    graph.model.graph[0].name = ""
    with pytest.raises(GraphError, match="expected a unique name"):
        OnnxBackend().requires(graph)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_one_line(tmp_path):
    (tmp_path / "model.onnx").symlink_to("/dev/full")
    with pytest.raises(ArtefactError, match=os.strerror(errno.ENOSPC)):
        OnnxBackend().write(graph_of_one_layer(), tmp_path)


def test_a_folder_that_is_gone_is_one_line(tmp_path):
    with pytest.raises(ArtefactError, match="expected to write the model there"):
        OnnxBackend().write(graph_of_one_layer(), tmp_path / "missing")


def source_folder(folder: Path) -> Path:
    """A sentence-transformers folder with a bit of everything."""
    texts = {
        "config.json": {"model_type": "bert", "num_hidden_layers": 12, "vocab_size": 10},
        "tokenizer.json": {},
        "tokenizer_config.json": {},
        "modules.json": [
            {"path": "", "type": "sentence_transformers.models.Transformer"},
            {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            {"path": "2_Dense", "type": "sentence_transformers.models.Dense"},
            {"path": "../outside", "type": "sentence_transformers.models.Dense"},
        ],
        "1_Pooling/config.json": {"pooling_mode_mean_tokens": True},
        "2_Dense/config.json": {},
        "model.safetensors.index.json": {},
    }
    for name, content in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    for name in ("vocab.txt", "sentencepiece.bpe.model", "LICENSE"):
        (folder / name).write_text("x")
    for name in ("model.safetensors", "pytorch_model.bin", "2_Dense/model.safetensors", "a.onnx"):
        (folder / name).write_bytes(b"weights")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"weights")
    return folder


def test_companions_describe_the_model_and_hold_no_weights(tmp_path):
    graph = graph_of_one_layer()
    config = {"model_type": "bert", "num_hidden_layers": 3, "vocab_size": 10}
    folder = source_folder(tmp_path / "source")
    graph.source = Source("huggingface", folder=folder, config=config)
    out = tmp_path / "out"
    out.mkdir()
    report = OnnxBackend().write(graph, out)
    expected = [
        "1_Pooling/config.json",
        "2_Dense/config.json",
        "2_Dense/model.safetensors",
        "LICENSE",
        "config.json",
        "modules.json",
        "sentencepiece.bpe.model",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    ]
    assert report["files"] == expected
    found = {f.relative_to(out).as_posix() for f in out.rglob("*") if f.is_file()}
    assert found == {*expected, "model.onnx"}
    assert json.loads((out / "config.json").read_text()) == config


def test_an_encoder_runs_at_any_size_with_its_own_names(tiny_graph, tmp_path):
    graph = tiny_graph("bert", "sequence")
    OnnxBackend().write(graph, tmp_path)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    names = [value.name for value in session.get_inputs()]
    assert sorted(names) == ["attention_mask", "input_ids", "token_type_ids"]
    assert [value.name for value in session.get_outputs()] == ["logits"]
    for shape in ((1, 1), (3, 17)):
        ones = np.ones(shape, np.int64)
        assert session.run(None, dict.fromkeys(names, ones))[0].shape == (shape[0], 2)
    assert {file.name for file in tmp_path.iterdir()} >= {"config.json", "tokenizer.json"}
