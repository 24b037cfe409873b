"""Dropped layers: which are kept, the same result as the source model without them, and misuse."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime
import pytest

from obert_compiler.errors import GraphError, SpecError, UsageError
from obert_compiler.graph import Graph, Source, find_linear_sites
from obert_compiler.graph.layers import find_encoder_layers
from obert_compiler.graph.verify import verify
from obert_compiler.passes.drop_layers import KEPT_LAYERS_KEY, DropLayers, evenly_spaced
from obert_compiler.pipeline.contract import Context, PassResult

ARCHITECTURES = (
    "bert",
    "roberta",
    "xlm-roberta",
    "distilbert",
    "electra",
    "mpnet",
    "albert",
    "deberta-v2",
    "deberta-v3",
    "modernbert",
)
SIZES = ((2, 16), (1, 7), (3, 33))
Feeds = dict[str, npt.NDArray[np.int64]]
TinyGraph = Callable[[str, str], Graph]


def drop(graph: Graph, spec: DropLayers) -> PassResult:
    """Run the pass as the runner does."""
    spec.requires(graph)
    result = spec.run(graph, Context())
    verify(result.graph, result.graph.stage)
    return result


def feeds(graph: Graph, batch: int, sequence: int) -> Feeds:
    """Random ids; all rows but the first padded."""
    ids = np.random.default_rng(batch * sequence).integers(5, 150, (batch, sequence))
    mask = np.ones_like(ids)
    mask[1:, sequence // 2 :] = 0
    named = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    return {str(v.name): named[str(v.name)] for v in graph.model.graph.inputs}


def run(graph: Graph, inputs: Feeds) -> list[npt.NDArray[np.float32]]:
    """Outputs in onnxruntime."""
    payload = ir.to_proto(graph.model).SerializeToString()
    session = onnxruntime.InferenceSession(payload, providers=["CPUExecutionProvider"])
    return [np.asarray(array) for array in session.run(None, dict(inputs))]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_runs(arch: str, tiny_graph: TinyGraph) -> None:
    graph = tiny_graph(arch, "sequence")
    before = len(find_linear_sites(graph))
    result = drop(graph, DropLayers(keep=2))
    assert result.changed
    assert result.report["kept"] == [0, 2]
    assert result.report["dropped"] == [1]
    assert len(find_encoder_layers(graph)) == 2
    shared = 4 if arch == "modernbert" else 6
    assert len(find_linear_sites(graph)) == before - (0 if arch == "albert" else shared)
    for batch, sequence in SIZES:
        (logits,) = run(graph, feeds(graph, batch, sequence))
        assert logits.shape == (batch, 2)
        assert np.isfinite(logits).all()


@pytest.mark.parametrize("kept", [[0, 2], [1], [1, 2]])
@pytest.mark.parametrize("arch", ["bert", "distilbert", "albert", "mpnet"])
def test_equals_source_without_the_layers(
    arch: str,
    kept: list[int],
    tiny_graph: TinyGraph,
    tiny_folder: Callable[[str, str], Path],
) -> None:
    import torch
    import transformers

    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        tiny_folder(arch, "sequence"), attn_implementation="eager"
    ).eval()
    if arch == "albert":
        model.config.num_hidden_layers = len(kept)
    elif arch == "distilbert":
        stack = model.distilbert.transformer
        stack.layer = torch.nn.ModuleList(stack.layer[i] for i in kept)
        stack.n_layers = len(kept)
    else:
        stack = getattr(model, arch).encoder
        stack.layer = torch.nn.ModuleList(stack.layer[i] for i in kept)
    graph = tiny_graph(arch, "sequence")
    drop(graph, DropLayers(layers=tuple(kept)))
    for batch, sequence in SIZES:
        inputs = feeds(graph, batch, sequence)
        with torch.no_grad():
            expected = model(**{n: torch.from_numpy(a) for n, a in inputs.items()}).logits.numpy()
        (found,) = run(graph, inputs)
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)


def test_last_layer_may_be_an_output(tiny_graph: TinyGraph) -> None:
    graph = tiny_graph("bert", "features")
    (name, *_) = [v.name for v in graph.model.graph.outputs]
    layers = find_encoder_layers(graph)
    assert layers[2].output is graph.model.graph.outputs[0]
    drop(graph, DropLayers(layers=(0,)))
    assert graph.model.graph.outputs[0].name == name
    assert graph.model.graph.outputs[0].producer() is layers[0].output.producer()
    assert run(graph, feeds(graph, 2, 9))[0].shape == (2, 9, 32)


@pytest.mark.parametrize("kept", [(0,), (2,), (0, 2)])
def test_hidden_states_as_outputs(kept: tuple[int, ...], tiny_graph: TinyGraph) -> None:
    """Outputs keep their names; that of a dropped layer gives what entered it."""
    graph = tiny_graph("bert", "features")
    layers = find_encoder_layers(graph)
    outputs = graph.model.graph.outputs
    del outputs[:]
    outputs.extend([layers[0].input, *(layer.output for layer in layers)])
    names = [v.name for v in outputs]
    drop(graph, DropLayers(layers=kept))
    assert [v.name for v in outputs] == names
    states = run(graph, feeds(graph, 2, 9))
    for index in range(3):
        same = np.array_equal(states[index], states[index + 1])
        assert same == (index not in kept)


def test_value_read_from_outside(tiny_graph: TinyGraph) -> None:
    graph = tiny_graph("bert", "features")
    layer = find_encoder_layers(graph)[1]
    softmax = next(node for node in layer.nodes if node.op_type == "Softmax")
    graph.model.graph.outputs.append(softmax.outputs[0])
    with pytest.raises(GraphError, match="layer 1 cannot be dropped, because a value inside"):
        DropLayers(keep=2).run(graph, Context())


def test_kept_layers_and_config_are_recorded(tiny_graph: TinyGraph) -> None:
    graph = tiny_graph("distilbert", "sequence")
    assert graph.source.config["n_layers"] == 3
    drop(graph, DropLayers(layers=(1, 2)))
    assert json.loads(graph.model.metadata_props[KEPT_LAYERS_KEY]) == [1, 2]
    assert graph.source.config["n_layers"] == 2
    drop(graph, DropLayers(layers=(1,)))
    assert json.loads(graph.model.metadata_props[KEPT_LAYERS_KEY]) == [2]
    assert graph.source.config["n_layers"] == 1


def test_lists_of_the_config_follow_the_layers(tiny_graph: TinyGraph) -> None:
    graph = tiny_graph("modernbert", "sequence")
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    config = {"num_hidden_layers": 3, "layer_types": kinds}
    graph.source = dataclasses.replace(graph.source, config=config)
    drop(graph, DropLayers(layers=(0, 1)))
    assert graph.source.config == {"num_hidden_layers": 2, "layer_types": kinds[:2]}
    assert config["num_hidden_layers"] == 3


def test_config_that_disagrees_is_left_and_reported(tiny_graph: TinyGraph) -> None:
    graph = tiny_graph("bert", "sequence")
    graph.source = dataclasses.replace(graph.source, config={"num_hidden_layers": 12})
    result = drop(graph, DropLayers(keep=2))
    assert graph.source.config == {"num_hidden_layers": 12}
    (skip,) = result.skips
    assert "says 12 where 3 layers were found" in skip.reason


def test_all_layers_kept_changes_nothing(tiny_graph: TinyGraph) -> None:
    graph = tiny_graph("bert", "sequence")
    nodes = list(graph.model.graph)
    result = drop(graph, DropLayers(keep=3))
    assert not result.changed
    assert list(graph.model.graph) == nodes
    assert result.report["parameters_removed"] == 0


def test_parameters_removed(tiny_graph: TinyGraph) -> None:
    result = drop(tiny_graph("bert", "sequence"), DropLayers(keep=1))
    matrices = 4 * 32 * 32 + 2 * 32 * 64
    vectors = 4 * 32 + 64 + 32 + 4 * 32  # biases, two normalisations
    assert result.report["parameters_removed"] == 2 * (matrices + vectors)


@pytest.mark.parametrize(
    ("count", "keep", "kept"),
    [
        (12, 6, [0, 2, 4, 7, 9, 11]),  # DistilBERT's initialisation
        (12, 3, [0, 6, 11]),
        (6, 3, [0, 3, 5]),
        (12, 12, list(range(12))),
        (5, 1, [0]),
    ],
)
def test_evenly_spaced(count: int, keep: int, kept: list[int]) -> None:
    assert evenly_spaced(count, keep) == kept


@pytest.mark.parametrize("count", range(2, 25))
def test_evenly_spaced_is_sorted_and_distinct(count: int) -> None:
    for keep in range(2, count + 1):
        kept = evenly_spaced(count, keep)
        assert kept == sorted(set(kept))
        assert (len(kept), kept[0], kept[-1]) == (keep, 0, count - 1)
        gaps = np.diff(kept)
        assert gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": "0"}, "keep of at least 1, found 0"),
        ({"keep": "2", "layers": "0+1"}, "found both"),
        ({"layers": "0+1+0"}, "layer 0 is listed twice"),
        ({"layers": "-1"}, "indices from 0"),
        ({"keep": "half"}, "a whole number"),
    ],
)
def test_bad_options(options: dict[str, str], message: str) -> None:
    with pytest.raises(SpecError, match=message) as error:
        DropLayers.from_options(options)
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (DropLayers(), "expected keep=N or layers=A.B, found neither"),
        (DropLayers(keep=4), "at most 3, the layers found, found 4"),
        (DropLayers(layers=(0, 3)), "layers from 0 to 2, found 3"),
    ],
)
def test_more_than_there_is(spec: DropLayers, message: str, tiny_graph: TinyGraph) -> None:
    with pytest.raises(UsageError, match=message) as error:
        spec.requires(tiny_graph("bert", "sequence"))
    assert "\n" not in str(error.value)


def test_graph_without_layers() -> None:
    x = ir.Value(name="x", shape=ir.Shape(["n", 4]), type=ir.TensorType(ir.DataType.FLOAT))
    relu = ir.node("Relu", [x], outputs=[ir.Value(name="y", type=x.type, shape=x.shape)])
    inner = ir.Graph([x], relu.outputs, nodes=[relu], opset_imports={"": 21})
    graph = Graph(ir.Model(inner, ir_version=10), Source("onnx"))
    with pytest.raises(GraphError, match="expected encoder layers, found none: no part of the"):
        DropLayers(keep=2).requires(graph)


@pytest.mark.parametrize("spec", [DropLayers(keep=6), DropLayers(layers=(0, 2, 4))])
def test_text_reparses(spec: DropLayers) -> None:
    _, *options = str(spec).split(":")
    assert DropLayers.from_options(dict(option.split("=") for option in options)) == spec
