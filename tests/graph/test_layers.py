"""Encoder layers: every architecture, other exporters, other stages, and why not."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from obert_compiler.data.batches import Batches
from obert_compiler.graph import Graph, LinearSite, Source, Stage, find_linear_sites
from obert_compiler.graph.attention import find_attention
from obert_compiler.graph.layers import find_encoder_layers, find_repetition, prunable_sites
from obert_compiler.passes.pack import Pack
from obert_compiler.passes.prune import Prune
from obert_compiler.passes.quant import Quant
from obert_compiler.pipeline.manager import PassManager

SITES = {"modernbert": 4, "nomic_bert": 7}
"""Linear layers of one encoder layer; 6 of others."""
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
    "nomic_bert",
)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_layers_of_every_architecture(arch: str, tiny_graph: Callable[[str, str], Graph]) -> None:
    graph = tiny_graph(arch, "sequence")
    layers = find_encoder_layers(graph)
    assert len(layers) == 3
    assert [layer.index for layer in layers] == [0, 1, 2]
    assert {len(layer.sites) for layer in layers} == {SITES.get(arch, 6)}
    for layer, following in zip(layers.layers, layers.layers[1:], strict=False):
        assert following.input is layer.output
    names = [name for layer in layers for name in layer.sites]
    if arch == "albert":
        assert len(set(names)) == 6
        assert {layers.layer_of(name) for name in names} == {0}
    else:
        # The names are the source's module paths: the search must not read them, the test may.
        for layer in layers:
            assert all(f".{layer.index}." in name for name in layer.sites)
            assert {layers.layer_of(name) for name in layer.sites} == {layer.index}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_prunable_sites_are_those_in_layers(
    arch: str, tiny_graph: Callable[[str, str], Graph]
) -> None:
    graph = tiny_graph(arch, "sequence")
    chosen, left = prunable_sites(graph)
    every = find_linear_sites(graph)
    assert {site.name for site in chosen} == {
        name for layer in find_encoder_layers(graph) for name in layer.sites
    }
    assert {site.name for site in chosen} | {item.name for item in left} == {
        site.name for site in every
    }
    assert {item.reason for item in left} == {"outside the encoder layers"}
    assert any("classifier" in item.name for item in left)


def test_difference_of_the_first_layer_is_recorded(
    tiny_graph: Callable[[str, str], Graph],
) -> None:
    modern = find_encoder_layers(tiny_graph("modernbert", "sequence"))
    (difference,) = modern.unmatched
    assert difference.name == "layer 0"
    assert "1 fewer LayerNormalization" in difference.reason
    (difference,) = find_encoder_layers(tiny_graph("deberta-v2", "sequence")).unmatched
    assert "1 more Conv" in difference.reason
    assert find_encoder_layers(tiny_graph("bert", "sequence")).unmatched == ()


def test_names_are_not_read(tiny_graph: Callable[[str, str], Graph]) -> None:
    graph = tiny_graph("bert", "sequence")
    expected = _shape_of_result(graph)
    for number, node in enumerate(graph.model.graph):
        node.name = f"z{number}"
        for output in node.outputs:
            if not output.is_graph_output():
                output.name = f"v{number}_{output.index()}"
    for number, value in enumerate(list(graph.model.graph.initializers.values())):
        value.name = f"c{number}"
    assert _shape_of_result(graph) == expected


def _shape_of_result(graph: Graph) -> list[tuple[list[str], int]]:
    layers = find_encoder_layers(graph)
    return [([n.op_type for n in layer.nodes], len(layer.sites)) for layer in layers]


@pytest.mark.parametrize("arch", ["bert", "albert", "deberta-v3", "modernbert"])
def test_quantised_graphs_have_the_same_layers(
    arch: str, tiny_graph: Callable[[str, str], Graph]
) -> None:
    graph = tiny_graph(arch, "sequence")
    expected = [layer.sites for layer in find_encoder_layers(graph)]
    for site in list(find_linear_sites(graph))[1:]:  # one layer keeps a float site
        _quantise(graph, site)
    found = find_encoder_layers(graph)
    assert [layer.sites for layer in found] == expected
    operations = [[n.op_type for n in layer.nodes] for layer in found]
    assert all("QuantizeLinear" in names for names in operations)


def _quantise(graph: Graph, site: LinearSite) -> None:
    """Put QuantizeLinear and DequantizeLinear before a site, a packing chain behind its weight."""
    inner = graph.model.graph
    prefix = f"{site.name}_test"
    stored = site.weight().T if site.stored_transposed else site.weight()
    codes = np.clip(np.round(stored * 100), -64, 64).astype(np.int8)
    constants: dict[str, np.ndarray] = {
        "flat": codes.reshape(-1),
        "shape": np.array(codes.shape),
        "scale": np.array(0.01, np.float32),
        "zero": np.array(128, np.uint8),
    }
    values = {
        name: ir.Value(
            name=f"{prefix}_{name}",
            const_value=ir.tensor(array),
            shape=ir.Shape(array.shape),
            type=ir.TensorType(ir.tensor(array).dtype),
        )
        for name, array in constants.items()
    }
    for value in values.values():
        inner.register_initializer(value)
    unflat = ir.node("Reshape", [values["flat"], values["shape"]])
    weight = ir.node("DequantizeLinear", [unflat.outputs[0], values["scale"]])
    weight.outputs[0].shape = ir.Shape(codes.shape)
    inner.insert_before(inner[0], [unflat, weight])
    for node in site.nodes:
        x = node.inputs[0]
        quantise = ir.node("QuantizeLinear", [x, values["scale"], values["zero"]])
        dequantise = ir.node(
            "DequantizeLinear", [quantise.outputs[0], values["scale"], values["zero"]]
        )
        inner.insert_before(node, [quantise, dequantise])
        node.replace_input_with(0, dequantise.outputs[0])
        node.replace_input_with(1, weight.outputs[0])


@pytest.mark.parametrize("arch", ["bert", "albert", "deberta-v3", "modernbert"])
def test_own_passes_keep_the_layers(arch: str, tiny_graph: Callable[[str, str], Graph]) -> None:
    graph = tiny_graph(arch, "sequence")
    expected = [layer.sites for layer in find_encoder_layers(graph)]
    ids = np.random.default_rng(0).integers(5, 100, (8, 12))
    arrays = {str(v.name): np.ones_like(ids) for v in graph.model.graph.inputs}
    data = Batches.from_arrays(arrays | {"input_ids": ids}, 4)
    passes = [Prune(method="magnitude", sparsity=0.5, block=4), Quant(), Pack()]
    graph = PassManager(passes).run(graph, data=data)
    assert graph.stage is Stage.PACKED
    assert [layer.sites for layer in find_encoder_layers(graph)] == expected
    assert [a.heads for a in find_attention(graph)] == [4, 4, 4]


def test_other_exporter(tiny_folder: Callable[[str, str], Path], tmp_path: Path) -> None:
    """torch's tracing exporter: normalisations written out, shapes computed inside each layer."""
    import torch
    import transformers

    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        tiny_folder("bert", "sequence"), attn_implementation="eager"
    ).eval()
    ids = torch.ones(2, 7, dtype=torch.int64)
    file = tmp_path / "traced.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter is deprecated, and traces Python branches
        torch.onnx.export(
            model,
            (ids, ids),
            file,
            dynamo=False,
            opset_version=14,
            input_names=["input_ids", "attention_mask"],
            dynamic_axes={n: {0: "batch", 1: "sequence"} for n in ("input_ids", "attention_mask")},
        )
    layers = find_encoder_layers(Graph(ir.load(file), Source("onnx")))
    assert len(layers) == 3
    assert {len(layer.sites) for layer in layers} == {6}


def test_hidden_states_as_outputs(tiny_graph: Callable[[str, str], Graph]) -> None:
    graph = tiny_graph("bert", "sequence")
    expected = [layer.sites for layer in find_encoder_layers(graph)]
    for layer in find_encoder_layers(graph):
        graph.model.graph.outputs.append(layer.output)
    assert [layer.sites for layer in find_encoder_layers(graph)] == expected


def test_layers_of_different_width(tiny_graph: Callable[[str, str], Graph]) -> None:
    graph = tiny_graph("bert", "sequence")
    expected = [layer.sites for layer in find_encoder_layers(graph)]
    sites = find_linear_sites(graph)
    _cut(sites["bert.encoder.layer.1.intermediate.dense"].weight_value, axis=1)
    _cut(sites["bert.encoder.layer.1.output.dense"].weight_value, axis=0)
    bias = sites["bert.encoder.layer.1.intermediate.dense"].bias_values[0]
    assert bias is not None
    _cut(bias, axis=0)
    found = find_encoder_layers(graph)
    assert [layer.sites for layer in found] == expected
    assert "layer 1" in {item.name for item in found.unmatched}


def _cut(value: ir.Value, axis: int) -> None:
    assert value.const_value is not None
    array = np.ascontiguousarray(np.take(value.const_value.numpy(), range(48), axis))
    value.const_value = ir.tensor(array)
    value.shape = ir.Shape(array.shape)


def test_perceptron_has_no_layers(graph_from_text: Callable[..., Graph]) -> None:
    graph = graph_from_text(
        """g (float[b, 8] x) => (float[b, 3] y) {
            a = MatMul(x, W1) a2 = Relu(a) b = MatMul(a2, W2) b2 = Relu(b)
            c = MatMul(b2, W3) y = Softmax(c)
        }""",
        W1=(8, 8),
        W2=(8, 8),
        W3=(8, 3),
    )
    found = find_encoder_layers(graph)
    assert found.layers == ()
    assert "holds attention" in found.unmatched[0].reason
    chosen, left = prunable_sites(graph)
    assert [site.name for site in chosen] == ["W1", "W2"]
    assert [item.name for item in left] == ["W3"]
    assert "graph without layers" in left[0].reason


def test_graph_that_reads_no_input(graph_from_text: Callable[..., Graph]) -> None:
    graph = graph_from_text(
        "g (float[b, 8] x) => (int64[2] y) { y = Shape(x) }",
    )
    (reason,) = find_encoder_layers(graph).unmatched
    assert "no graph output depends" in reason.reason


TOKENS = st.lists(st.tuples(st.sampled_from("ab"), st.booleans()), max_size=12)


@given(TOKENS)
def test_repetition_against_enumeration(pairs: list[tuple[str, bool]]) -> None:
    """The same as trying every start, period and number of repeats."""
    tokens = [f"{letter}{anchor}" for letter, anchor in pairs]
    anchors = [anchor for _, anchor in pairs]
    found = find_repetition(tokens, anchors)
    covered = [
        (repeats * period, -period)
        for period in range(1, len(tokens) + 1)
        for start in range(len(tokens))
        for repeats in range(2, (len(tokens) - start) // period + 1)
        if _repeats(tokens[start : start + repeats * period], period)
        and any(anchors[start : start + period])
    ]
    if found is None:
        assert covered == []
        return
    start, period, repeats = found
    assert (repeats * period, -period) == max(covered)
    assert _repeats(tokens[start : start + repeats * period], period)
    following = tokens[start + 1 : start + 1 + repeats * period]
    assert len(following) < repeats * period or not _repeats(following, period)


def _repeats(tokens: Sequence[str], period: int) -> bool:
    return all(a == b for a, b in zip(tokens, tokens[period:], strict=False))
