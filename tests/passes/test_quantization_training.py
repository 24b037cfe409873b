"""The module with fake quantisation and the graph that is written from it: the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from obert_compiler.backends.torch.module import OnnxModule, from_module, to_module
from obert_compiler.graph import Graph, Source, Stage, find_linear_sites
from obert_compiler.graph.verify import verify
from obert_compiler.passes.fake_quantization import QuantisedLinear
from obert_compiler.passes.quant import Quant, QuantizationPlan
from obert_compiler.passes.quantization_training import FakeQuantisation, prepare
from obert_compiler.passes.training.watch import trained_state
from obert_compiler.pipeline.contract import Context

Arrays = dict[str, np.ndarray]
TinyGraph = Callable[[str, str], Graph]
UNIT = 2.0**-24
"""Largest relative error of one rounding in float32."""


class RandomText:
    """Batches of eight random texts of up to 20 tokens, padded on the right."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __len__(self) -> int:
        return self._number

    def __iter__(self) -> Iterator[RandomBatch]:
        return (RandomBatch(seed) for seed in range(self._number))

    def describe(self) -> str:
        return "random"


class RandomBatch:
    """One of them."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        mask = (np.arange(20) < rng.integers(5, 21, 8)[:, None]).astype(np.int64)
        self.inputs = {
            "input_ids": rng.integers(5, 100, (8, 20)).astype(np.int64) * mask,
            "attention_mask": mask,
            "token_type_ids": np.zeros_like(mask),
        }

    def __len__(self) -> int:
        return 8

    def feed(self, names: list[str]) -> Arrays:
        return {name: self.inputs[name] for name in names}


@dataclass
class Trained:
    """A module trained with fake quantisation and the quantised graph written from it."""

    module: OnnxModule
    rounding: FakeQuantisation
    plan: QuantizationPlan
    graph: Graph
    zeros: dict[str, np.ndarray]

    def feed(self, seed: int = 99) -> Arrays:
        return RandomBatch(seed).feed([v.name or "" for v in self.graph.model.graph.inputs])


def tensors(arrays: Arrays) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def trained(
    graph: Graph, *, spec: Quant | None = None, learnt: bool = False, observe: int = 0
) -> Trained:
    """Three steps of training with four of five blocks pruned, the first ``observe`` observed."""
    rng = np.random.default_rng(0)
    zeros = {}
    for site in find_linear_sites(graph):
        weight = site.weight()
        zeros[site.name] = np.repeat(
            rng.random((weight.shape[0], weight.shape[1] // 4)) < 0.8, 4, 1
        )
        weight[zeros[site.name]] = 0.0
        site.set_weight(weight)
    quant = Quant(min_outputs=8) if spec is None else spec
    data: Any = RandomText(3)
    plan = quant.plan(graph, Context(data=data))
    prepare(graph, plan)
    module = to_module(graph)
    rounding = FakeQuantisation(module, plan, bits=quant.bits, learnt=learnt)
    names = [v.name or "" for v in graph.model.graph.inputs]
    kept = {name: torch.from_numpy(~zero) for name, zero in zeros.items()}
    optimiser = torch.optim.AdamW(module.parameters(), 1e-3, weight_decay=0.01)
    module.train()
    for step in range(max(3, observe + 1)):
        rounding.observe(step < observe)
        outputs = module(**tensors(RandomBatch(step).feed(names)))
        optimiser.zero_grad()
        sum(value.square().mean() for value in outputs.values()).backward()
        for name, linear in module.linear_sites.items():
            if linear.weight.grad is not None:
                linear.weight.grad *= kept[name]
        optimiser.step()
    rounding.observe(False)
    module.eval().requires_grad_(False)
    rounding.read_back(plan)
    from_module(module, graph)
    quant.write(graph, plan)
    graph.advance(Stage.QUANTISED)
    return Trained(module, rounding, plan, graph, zeros)


def run(
    graph: Graph,
    feeds: Arrays,
    level: str,
    *,
    values: list[str] | None = None,
    optimised: Path | None = None,
) -> Arrays:
    """Outputs of ONNX Runtime at an optimisation level, and ``values`` inside the graph."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = getattr(
        onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}"
    )
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    model = ir.to_proto(graph.model)
    known = {value.name for value in model.graph.output}
    for name in dict.fromkeys(values or ()):
        if name not in known:
            model.graph.output.append(onnx.ValueInfoProto(name=name))
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    outputs = session.run(None, feeds)
    return dict(zip([o.name for o in session.get_outputs()], outputs, strict=True))


CASES = [
    ("bert", "sequence"),
    ("bert", "token"),
    ("bert", "qa"),
    ("bert", "embedding"),
    ("bert", "mlm"),
    ("roberta", "sequence"),
    ("distilbert", "mlm"),
    ("electra", "sequence"),
    ("mpnet", "sequence"),
    ("albert", "mlm"),
    ("deberta-v2", "sequence"),
    ("deberta-v3", "sequence"),
    ("modernbert", "mlm"),
]


@pytest.mark.parametrize(("arch", "head"), CASES)
def test_the_written_graph_computes_what_was_trained(
    arch: str, head: str, tiny_graph: TinyGraph
) -> None:
    result = trained(tiny_graph(arch, head), learnt=arch == "bert")
    verify(result.graph, Stage.QUANTISED)
    assert result.plan.sites
    sites = find_linear_sites(result.graph)
    for plan in result.plan.sites:
        name = plan.site.name
        linear = result.module.linear_sites[name]
        assert isinstance(linear, QuantisedLinear)
        rounded = linear.quantiser(linear.weight).numpy()
        # Integers and scales are equal, so their products are; pruned weights are zero in both.
        np.testing.assert_array_equal(sites[name].weight(), rounded)
        assert not rounded[result.zeros[name]].any()
        assert not linear.weight.numpy()[result.zeros[name]].any()
        assert plan.quantized is not None
        assert np.abs(plan.quantized.q).max() <= 64
    written = to_module(result.graph).eval()(**tensors(result.feed()))
    for name, want in result.module(**tensors(result.feed())).items():
        assert torch.equal(written[name], want), "the same arithmetic in the same order"


def test_scales_that_move_are_part_of_the_state_of_a_training(tiny_graph: TinyGraph) -> None:
    """DeBERTa has sites, gathered tables and a matrix that is read whole."""
    graph = tiny_graph("deberta-v2", "sequence")
    data: Any = RandomText(3)
    plan = Quant().plan(graph, Context(data=data))
    module = to_module(graph)
    rounding = FakeQuantisation(module, plan, bits=7)
    assert plan.parameters
    before = {name: value.clone() for name, value in trained_state(module).items()}
    rounding.observe(True)
    module.train()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter *= 1.5
        names = [v.name or "" for v in graph.model.graph.inputs]
        for step in range(20):
            module(**tensors(RandomBatch(step).feed(names)))
    moved = {name for name, value in trained_state(module).items() if (value != before[name]).any()}
    scales = {name for name in moved if name.endswith(".start")}
    assert not any(name.startswith("constants.") for name in moved)
    assert len(scales) > len(plan.sites), "of weights and of activations"
    linears = set(module.linear_sites.values())
    for name in scales:
        module_of_scale = module.get_submodule(name.removesuffix(".start"))
        of_site = any(getattr(linear, "quantiser", None) is module_of_scale for linear in linears)
        assert of_site or module_of_scale in rounding.activations.values()


@pytest.mark.parametrize("level", ["BASIC", "ALL"])
@pytest.mark.parametrize(("arch", "head"), [("bert", "sequence"), ("distilbert", "mlm")])
def test_each_site_in_onnx_runtime_is_the_module_s_within_rounding(
    arch: str, head: str, level: str, tiny_graph: TinyGraph, tmp_path: Path
) -> None:
    """A sum of n products is within (n + 4) roundings of the sum of their sizes."""
    result = trained(tiny_graph(arch, head))
    feeds = result.feed()
    sites = find_linear_sites(result.graph)
    uses = [
        (plan.site.name, _before(x), y.name or "")
        for plan in result.plan.sites
        for x, y in zip(sites[plan.site.name].inputs, sites[plan.site.name].outputs, strict=True)
    ]
    values = [value for _, *pair in uses for value in pair]
    found = run(result.graph, feeds, level, values=values, optimised=tmp_path / "used.onnx")
    assert len(uses) >= 19
    used = [node.op_type for node in onnx.load(tmp_path / "used.onnx").graph.node]
    assert (used.count("MatMulIntegerToFloat") >= 18) is (level == "ALL")
    for site, x, y in uses:
        linear = result.module.linear_sites[site]
        assert isinstance(linear, QuantisedLinear)
        rounded = result.rounding.activations[x](torch.from_numpy(found[x])).double()
        weight = linear.quantiser(linear.weight).double()
        bias = torch.zeros(len(weight)) if linear.bias is None else linear.bias
        want = rounded @ weight.T + bias.double()
        bound = (rounded.abs() @ weight.abs().T + bias.abs()) * UNIT * (weight.shape[1] + 4)
        assert ((torch.from_numpy(found[y]).double() - want).abs() <= bound).all(), site


def _before(dequantised: ir.Value) -> str:
    """The float value behind QuantizeLinear and DequantizeLinear."""
    value = dequantised
    for op_type in ("DequantizeLinear", "QuantizeLinear"):
        node = value.producer()
        assert node is not None
        assert node.op_type == op_type
        assert node.inputs[0] is not None
        value = node.inputs[0]
    return value.name or ""


@pytest.mark.parametrize("level", ["BASIC", "ALL"])
def test_outputs_of_onnx_runtime_are_the_module_s(level: str, tiny_graph: TinyGraph) -> None:
    """To 1e-5 of the largest, in every example in which no activation falls to another level.

    A value at the border of two levels may fall to either side for a rounding error before it; it
    then moves by a whole level, and values behind it by what that makes of them.
    """
    result = trained(tiny_graph("bert", "token"), observe=18)
    feeds = result.feed()
    seen: dict[str, torch.Tensor] = {}
    for name, module in result.rounding.activations.items():
        module.register_forward_hook(
            lambda _m, inputs, out, name=name: seen.update({name: out.detach()})
        )
    want = result.module(**tensors(feeds))
    found = run(result.graph, feeds, level, values=list(seen))
    other = np.zeros(8, bool)
    levels = moved = 0
    for name, mine in seen.items():
        theirs = result.rounding.activations[name](torch.from_numpy(found[name]))
        steps = ((theirs - mine).abs() / result.rounding.activations[name].scale).round()
        first = steps[~other]
        assert first.max() <= 1
        levels += first.numel()
        moved += int((first > 0).sum())
        other |= steps.flatten(1).any(1).numpy()
    assert moved <= 1e-4 * levels
    assert other.sum() <= 4
    for name, value in want.items():
        difference = np.abs(found[name] - value.numpy())[~other]
        assert difference.max() <= 1e-5 * value.abs().max()


def test_without_training_the_module_is_the_quantised_graph(tiny_graph: TinyGraph) -> None:
    """Planned and calibrated exactly as by `quant`: integers, scales, ranges, and biases."""
    plain, graph = tiny_graph("bert", "sequence"), tiny_graph("bert", "sequence")
    data: Any = RandomText(3)
    Quant().run(plain, Context(data=data))
    plan = Quant().plan(graph, Context(data=data))
    prepare(graph, plan)
    module = to_module(graph)
    FakeQuantisation(module, plan, bits=7).read_back(plan)
    from_module(module, graph)
    Quant().write(graph, plan)
    ours, theirs = (
        {n: v.const_value.numpy() for n, v in g.model.graph.initializers.items() if v.const_value}
        for g in (graph, plain)
    )
    assert {n.removesuffix("_corrected") for n in ours} == {
        n.removesuffix("_corrected") for n in theirs
    }
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array)


def built(text: str, arrays: Arrays) -> Graph:
    proto = onnx.parser.parse_model(text)
    for name, array in arrays.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    for value in model.graph.initializers.values():
        value.metadata_props["obert.parameter"] = value.name or ""
    return Graph(model, Source("onnx"))


POSITIONS = """
<ir_version: 10, opset_import: ["" : 21]>
positions (int64[batch, tokens] input_ids) => (float[batch, tokens, 64] y)
{
    rows = Gather <axis = 0> (table, input_ids)
    place = Gather <axis = 0> (waves, input_ids)
    x = Add (rows, place)
    product = MatMul (x, weight)
    y = Add (product, bias)
}
"""


def test_a_table_that_does_not_train_is_rounded_for_good() -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "table": rng.standard_normal((200, 64)).astype(np.float32),
        "waves": rng.standard_normal((200, 64)).astype(np.float32),
        "weight": rng.standard_normal((64, 64)).astype(np.float32),
        "bias": rng.standard_normal(64).astype(np.float32),
    }
    graph = built(POSITIONS, arrays)
    del graph.model.graph.initializers["waves"].metadata_props["obert.parameter"]
    result = trained(graph, spec=Quant(limit=0.5))
    assert {table.name for table in result.plan.tables} == {"table", "waves"}
    assert "waves" not in dict(result.module.named_parameters())
    written = to_module(result.graph).eval()(**tensors(result.feed()))["y"]
    assert torch.equal(written, result.module(**tensors(result.feed()))["y"])


SHARED = """
<ir_version: 10, opset_import: ["" : 21]>
shared (int64[batch, tokens] input_ids) => (float[batch, tokens, 64] y)
{
    rows = Gather <axis = 0> (table, input_ids)
    a = MatMul (rows, weight)
    b = Relu (a)
    turned = Transpose <perm = [1, 0]> (weight)
    c = MatMul (b, turned)
    d = Relu (c)
    summed = ReduceSum <keepdims = 0> (weight, zero)
    e = Add (d, summed)
    f = MatMul (e, weight)
    y = Add (f, bias)
}
"""


def test_all_readers_of_a_shared_weight_read_the_rounded_one() -> None:
    """A weight used twice, once more in the other layout, and summed; a table of its own."""
    rng = np.random.default_rng(0)
    arrays = {
        "table": rng.standard_normal((200, 64)).astype(np.float32),
        "weight": rng.standard_normal((64, 64)).astype(np.float32),
        "bias": rng.standard_normal(64).astype(np.float32),
        "zero": np.array([0], np.int64),
    }
    for learnt in (False, True):
        result = trained(built(SHARED, arrays), spec=Quant(limit=0.5), learnt=learnt)
        (table,) = result.plan.tables
        assert table.scheme == "4 bit in groups of 64"
        written = to_module(result.graph).eval()(**tensors(result.feed()))["y"]
        assert torch.equal(written, result.module(**tensors(result.feed()))["y"])
        assert bool(result.rounding.scales) is learnt
