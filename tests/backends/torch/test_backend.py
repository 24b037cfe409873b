"""What the torch back end writes, loaded again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import helper, numpy_helper

from obert_compiler.backends.torch import TorchBackend, to_module
from obert_compiler.data.batches import Batches
from obert_compiler.errors import ArtefactError, GraphError
from obert_compiler.graph import Graph, Source, find_linear_sites
from obert_compiler.passes.drop_layers import DropLayers
from obert_compiler.passes.pack import Pack
from obert_compiler.passes.quant import Quant
from obert_compiler.pipeline.contract import Context
from obert_compiler.pipeline.registry import BACKENDS, load

TinyGraph = Callable[[str, str], Graph]
TinyFolder = Callable[[str, str], Path]

AUTO = {
    "sequence": "AutoModelForSequenceClassification",
    "token": "AutoModelForTokenClassification",
    "qa": "AutoModelForQuestionAnswering",
    "embedding": "AutoModel",
    "mlm": "AutoModelForMaskedLM",
}
MODELS = [
    ("bert", "sequence"),
    ("roberta", "token"),
    ("xlm-roberta", "qa"),
    ("distilbert", "sequence"),
    ("electra", "sequence"),
    ("mpnet", "embedding"),
    ("albert", "mlm"),
    ("deberta-v2", "sequence"),
    ("deberta-v3", "sequence"),
    ("modernbert", "mlm"),
]


def _load(folder: Path, head: str) -> Any:
    import transformers

    model, info = getattr(transformers, AUTO[head]).from_pretrained(
        folder, output_loading_info=True, attn_implementation="eager"
    )
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    return model.eval()


def _inputs(graph: Graph) -> dict[str, torch.Tensor]:
    made = {
        "input_ids": torch.tensor([[6, 7, 8, 9, 10], [11, 12, 13, 14, 15]]),
        "attention_mask": torch.ones(2, 5, dtype=torch.int64),
        "token_type_ids": torch.tensor([[0, 0, 0, 1, 1], [0, 1, 1, 1, 1]]),
    }
    return {str(v.name): made[str(v.name)] for v in graph.model.graph.inputs}


def _prune(graph: Graph) -> None:
    for site in find_linear_sites(graph):
        weight = site.weight()
        kept = np.abs(weight) > np.quantile(np.abs(weight), 0.5)
        site.set_weight(weight * kept)


def _check_same(graph: Graph, folder: Path, head: str, tolerance: float = 1e-5) -> None:
    inputs = _inputs(graph)
    with torch.no_grad():
        expected = to_module(graph, fake_quantisation=False)(**inputs)
        found = _load(folder, head)(**inputs)
    compared = [name for name in expected if getattr(found, name, None) is not None]
    assert compared
    for name in compared:
        want = expected[name]
        scale = max(1.0, float(want.abs().max()))
        torch.testing.assert_close(getattr(found, name), want, atol=tolerance * scale, rtol=0)


@pytest.mark.parametrize(("arch", "head"), MODELS)
def test_pruned_weights_and_dropped_layers_load_from_pretrained(
    arch: str, head: str, tiny_graph: TinyGraph, tmp_path: Path
) -> None:
    graph = tiny_graph(arch, head)
    _prune(graph)
    result = DropLayers(layers=(0, 2)).run(graph, Context())
    report = TorchBackend().write(result.graph, tmp_path)
    assert report["format"] == "safetensors"
    assert report["bytes"] == (tmp_path / "model.safetensors").stat().st_size
    _check_same(result.graph, tmp_path, head)


@pytest.mark.parametrize(
    ("arch", "head", "embeddings"),
    [
        ("bert", "sequence", "4bit"),
        ("mpnet", "embedding", "8bit"),
        ("albert", "mlm", "8bit"),  # the table is a Linear weight too
        ("deberta-v3", "sequence", "4bit"),  # a weight is also multiplied by a constant
    ],
)
def test_quantised_and_packed_weights_are_written_as_what_they_stand_for(
    arch: str,
    head: str,
    embeddings: Literal["4bit", "8bit"],
    tiny_graph: TinyGraph,
    tiny_folder: TinyFolder,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    graph = tiny_graph(arch, head)
    _prune(graph)
    data = Batches.from_arrays({name: x.numpy() for name, x in _inputs(graph).items()})
    quant = Quant(embeddings=embeddings, bias_correction=arch != "deberta-v3")
    graph = quant.run(graph, Context(data=data)).graph
    graph = Pack().run(graph, Context()).graph
    capfd.readouterr()
    TorchBackend().write(graph, tmp_path)
    assert capfd.readouterr() == ("", "")
    _check_same(graph, tmp_path, head)
    written, source = _load(tmp_path, head), _load(tiny_folder(arch, head), head)
    table = written.get_input_embeddings().weight
    assert not torch.equal(table, source.get_input_embeddings().weight)


def test_a_parameter_with_two_values_is_refused(tiny_graph: TinyGraph, tmp_path: Path) -> None:
    graph = tiny_graph("deberta-v3", "sequence")
    data = Batches.from_arrays({name: x.numpy() for name, x in _inputs(graph).items()})
    # The correction is for the products of activations; relative positions share the bias.
    graph = Quant().run(graph, Context(data=data)).graph
    with pytest.raises(GraphError, match=r"_proj\.bias': expected one value, found two"):
        TorchBackend().write(graph, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_written_folder_tokenises(tiny_graph: TinyGraph, tmp_path: Path) -> None:
    import transformers

    graph = tiny_graph("mpnet", "embedding")
    TorchBackend().write(graph, tmp_path)
    assert (tmp_path / "modules.json").is_file()
    assert (tmp_path / "1_Pooling" / "config.json").is_file()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer("a good film")["input_ids"]


def test_a_parameter_without_use_stays_the_sources(
    tiny_graph: TinyGraph, tiny_folder: TinyFolder, tmp_path: Path
) -> None:
    graph = tiny_graph("bert", "features")
    report = TorchBackend().write(graph, tmp_path)
    assert report["parameters_of_the_source"] == ["pooler.dense.weight", "pooler.dense.bias"]
    written, source = (
        _load(tmp_path, "embedding"),
        _load(tiny_folder("bert", "features"), "embedding"),
    )
    torch.testing.assert_close(written.pooler.dense.weight, source.pooler.dense.weight)


def test_a_source_that_is_gone_is_named(tiny_graph: TinyGraph, tmp_path: Path) -> None:
    graph = tiny_graph("bert", "sequence")
    graph.source = dataclasses.replace(graph.source, location=str(tmp_path / "nowhere"))
    with pytest.raises(ArtefactError, match="nowhere': cannot be loaded again"):
        TorchBackend().write(graph, tmp_path)


def test_a_source_of_another_shape_is_refused(
    tiny_graph: TinyGraph, tiny_folder: TinyFolder, tmp_path: Path
) -> None:
    graph = tiny_graph("bert", "sequence")
    other = str(tiny_folder("electra", "sequence"))
    graph.source = dataclasses.replace(graph.source, location=other)
    with pytest.raises(ArtefactError, match=r"parameter 'bert\.[^']*': expected it in the source"):
        TorchBackend().write(graph, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_would_not_compute_the_same_is_refused(
    tiny_graph: TinyGraph, tmp_path: Path
) -> None:
    graph = tiny_graph("bert", "sequence")
    for node in graph.model.graph:
        if node.op_type == "Tanh":
            node.op_type = "Sigmoid"
    with pytest.raises(ArtefactError, match="output 'logits': expected the checkpoint to compute"):
        TorchBackend().write(graph, tmp_path)
    assert not list(tmp_path.iterdir())


# -- archives -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("arch", "head"), [("bert", "sequence"), ("deberta-v3", "sequence")])
def test_an_archive_is_dynamic(arch: str, head: str, tiny_graph: TinyGraph, tmp_path: Path) -> None:
    graph = tiny_graph(arch, head)
    graph.source = Source("onnx")
    report = TorchBackend().write(graph, tmp_path)
    assert report == {
        "format": "torch.export",
        "bytes": (tmp_path / "model.pt2").stat().st_size,
        "files": ["model.pt2"],
    }
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    module = to_module(graph)
    for batch, sequence in ((1, 1), (2, 16), (3, 33)):
        ones = torch.ones(batch, sequence, dtype=torch.int64)
        inputs = {
            str(v.name): ones * (7 if v.name == "input_ids" else 1)
            for v in graph.model.graph.inputs
        }
        with torch.no_grad():
            torch.testing.assert_close(loaded(**inputs), module(**inputs))


def _convolutional_net() -> Graph:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["image", "k", "kb"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "s", "b", "m", "v"], ["n"]),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["p"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("Gemm", ["f", "w", "wb"], ["logits"], transB=1),
    ]
    shapes = {"k": (4, 3, 3, 3), "kb": (4,), "s": (4,), "b": (4,), "m": (4,), "v": (4,)}
    shapes |= {"w": (5, 4), "wb": (5,)}
    constants = [
        numpy_helper.from_array(np.abs(rng.standard_normal(shape)).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    image = helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["batch", 3, 8, 8])
    logits = helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 5])
    graph = helper.make_graph(nodes, "net", [image], [logits], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return Graph(ir.from_proto(model), Source("onnx"))


def test_a_convolutional_net_trains_and_is_archived(tmp_path: Path) -> None:
    graph = _convolutional_net()
    module = to_module(graph)
    # Running mean and variance are no weights.
    assert sorted(name for name, _ in module.named_parameters()) == [
        "b", "k", "kb", "s", "w.bias", "w.weight",
    ]  # fmt: skip
    image = torch.rand(3, 3, 8, 8)
    TorchBackend().write(graph, tmp_path)
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    torch.testing.assert_close(loaded(image=image), module(image=image))


def test_the_back_end_is_registered() -> None:
    assert load(BACKENDS, "torch") is TorchBackend
    assert str(TorchBackend()) == "torch"
    assert isinstance(TorchBackend().build(_convolutional_net()), torch.nn.Module)
