"""`to_module` and `from_module` on whole graphs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper

from obert_compiler.backends.torch import from_module, to_module
from obert_compiler.errors import GraphError
from obert_compiler.graph import Graph, Source, find_linear_sites

TinyGraph = Callable[[str, str], Graph]
Feed = dict[str, npt.NDArray[np.int64]]

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


def _feed(graph: Graph, batch: int, sequence: int) -> Feed:
    rng = np.random.default_rng(97 * batch + sequence)
    mask = np.ones((batch, sequence), np.int64)
    mask[1:, max(1, sequence // 2) :] = 0
    made = {
        "input_ids": rng.integers(5, 90, (batch, sequence)),
        "attention_mask": mask,
        "token_type_ids": rng.integers(0, 2, (batch, sequence)),
    }
    return {str(v.name): made[str(v.name)] for v in graph.model.graph.inputs}


def _tensors(feed: Mapping[str, npt.NDArray[np.generic]]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in feed.items()}


def _session(graph: Graph) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(ir.to_proto(graph.model).SerializeToString())


@pytest.mark.parametrize(("arch", "head"), MODELS)
def test_a_module_computes_what_onnxruntime_does(
    arch: str, head: str, tiny_graph: TinyGraph
) -> None:
    graph = tiny_graph(arch, head)
    module = to_module(graph)
    session = _session(graph)
    names = [output.name for output in session.get_outputs()]
    for batch, sequence in ((2, 16), (1, 7), (3, 33), (1, 1)):
        feed = _feed(graph, batch, sequence)
        with torch.no_grad():
            found = module(**_tensors(feed))
        assert list(found) == names
        for name, want in zip(names, session.run(None, feed), strict=True):
            scale = max(1.0, float(np.abs(want).max()))
            np.testing.assert_allclose(found[name].numpy(), want, atol=1e-5 * scale, rtol=0)


@pytest.mark.parametrize(("arch", "head"), MODELS)
def test_every_site_is_a_linear_module_and_every_weight_trains(
    arch: str, head: str, tiny_graph: TinyGraph
) -> None:
    graph = tiny_graph(arch, head)
    module = to_module(graph)
    sites = find_linear_sites(graph)
    assert list(module.linear_sites) == [site.name for site in sites]
    for site in sites:
        weight = module.linear_sites[site.name].weight
        np.testing.assert_array_equal(weight.detach().numpy(), site.weight())
    outputs = module(**_tensors(_feed(graph, 2, 8)))
    sum(value.square().sum() for value in outputs.values()).backward()
    silent = [name for name, p in module.named_parameters() if p.grad is None]
    assert silent == []


@pytest.mark.parametrize("arch", ["bert", "albert", "deberta-v3"])
def test_gradients_are_those_of_the_source_model(
    arch: str, tiny_graph: TinyGraph, tiny_folder: Callable[[str, str], object]
) -> None:
    import transformers

    head = dict(MODELS)[arch]
    auto = {
        "sequence": transformers.AutoModelForSequenceClassification,
        "mlm": transformers.AutoModelForMaskedLM,
    }[head]
    source = auto.from_pretrained(tiny_folder(arch, head)).eval()
    graph = tiny_graph(arch, head)
    module = to_module(graph)
    feed = _tensors(_feed(graph, 3, 12))
    # Padding embeds to the padding row, which the source keeps without gradient.
    feed["attention_mask"][:] = 1
    weights = torch.randn(
        module(**feed)["logits"].shape, generator=torch.Generator().manual_seed(0)
    )
    (module(**feed)["logits"] * weights).sum().backward()
    (source(**feed).logits * weights).sum().backward()
    found = {n: p.grad for n, p in module.named_parameters(remove_duplicate=False)}
    names: dict[torch.nn.Parameter, list[str]] = {}
    for name, parameter in source.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    expected = {parameter.grad: n for parameter, n in names.items() if parameter.grad is not None}
    # Some gradients are zero but for rounding (a key's bias: softmax ignores it), so one scale.
    largest = max(float(want.abs().max()) for want in expected)
    for want, tied_names in expected.items():
        name = next(name for name in tied_names if name in found)
        torch.testing.assert_close(found[name], want, atol=1e-5 * largest, rtol=1e-4, msg=name)


def test_a_training_step_goes_back_into_the_graph(tiny_graph: TinyGraph) -> None:
    graph = tiny_graph("deberta-v3", "sequence")
    module = to_module(graph)
    feed = _feed(graph, 2, 9)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    before = _session(graph).run(None, feed)[0]
    module(**_tensors(feed))["logits"].square().sum().backward()
    optimizer.step()
    from_module(module, graph)
    after = _session(graph).run(None, feed)[0]
    assert np.abs(after - before).max() > 1e-2
    trained = module(**_tensors(feed))["logits"].detach().numpy()
    np.testing.assert_allclose(after, trained, atol=1e-5)


def test_a_deep_copy_is_independent(tiny_graph: TinyGraph) -> None:
    module = to_module(tiny_graph("bert", "sequence"))
    twin = copy.deepcopy(module)
    name = next(iter(module.linear_sites))
    with torch.no_grad():
        twin.linear_sites[name].weight.zero_()
    assert module.linear_sites[name].weight.abs().sum() > 0


def test_writing_back_names_what_the_graph_lacks(tiny_graph: TinyGraph) -> None:
    module = to_module(tiny_graph("bert", "sequence"))
    with pytest.raises(GraphError, match=r"expected initializer 'bert\.[^']*' in the graph"):
        from_module(module, tiny_graph("distilbert", "sequence"))


def _graph(
    nodes: list[onnx.NodeProto], initializers: Mapping[str, npt.NDArray[np.generic]], rank: int = 2
) -> Graph:
    shape = [f"d{i}" for i in range(rank)]
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)
    y = helper.make_empty_tensor_value_info("y")
    constants = [numpy_helper.from_array(a, n) for n, a in initializers.items()]
    made = helper.make_graph(nodes, "g", [x], [y], constants)
    imports = [helper.make_opsetid("", 21)]
    model = helper.make_model(made, opset_imports=imports, ir_version=10)
    return Graph(ir.from_proto(model), Source("onnx"))


def _normal(*shape: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def test_an_unsupported_op_is_named_with_its_node() -> None:
    graph = _graph([helper.make_node("DFT", ["x"], ["y"], name="spectrum")], {})
    with pytest.raises(GraphError, match=r"node 'spectrum': op 'DFT' has no row .* @operator"):
        to_module(graph)


def test_a_custom_domain_is_unsupported() -> None:
    node = helper.make_node("Relu", ["x"], ["y"], name="odd", domain="com.example")
    with pytest.raises(GraphError, match=r"op 'com\.example\.Relu'"):
        to_module(_graph([node], {}))


def test_shape_arithmetic_stays_on_the_host() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "first"], ["rows"]),
        helper.make_node("Mul", ["rows", "two"], ["twice"]),
        helper.make_node("Unsqueeze", ["twice", "axis"], ["twice_1d"]),
        helper.make_node("Concat", ["twice_1d", "minus_one"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["y"]),
    ]
    constants = {
        "first": np.array(0, np.int64),
        "two": np.array(2, np.int64),
        "axis": np.array([0], np.int64),
        "minus_one": np.array([-1], np.int64),
    }
    module = to_module(_graph(nodes, constants))
    assert module(torch.zeros(3, 4))["y"].shape == (6, 2)
    assert "host" not in module.code


def test_a_decomposed_layer_norm_computes_and_trains() -> None:
    nodes = [
        helper.make_node("ReduceMean", ["x", "last"], ["mean"]),
        helper.make_node("Sub", ["x", "mean"], ["centred"]),
        helper.make_node("Pow", ["centred", "two"], ["squared"]),
        helper.make_node("ReduceMean", ["squared", "last"], ["variance"]),
        helper.make_node("Add", ["variance", "epsilon"], ["shifted"]),
        helper.make_node("Sqrt", ["shifted"], ["deviation"]),
        helper.make_node("Div", ["centred", "deviation"], ["normal"]),
        helper.make_node("Mul", ["normal", "gamma"], ["scaled"]),
        helper.make_node("Add", ["scaled", "beta"], ["y"]),
    ]
    constants = {
        "last": np.array([-1], np.int64),
        "two": np.array(2, np.float32),
        "epsilon": np.array(1e-5, np.float32),
        "gamma": _normal(8),
        "beta": _normal(8) + 1,
    }
    module = to_module(_graph(nodes, constants))
    assert sorted(name for name, _ in module.named_parameters()) == ["beta", "gamma"]
    x = torch.from_numpy(_normal(3, 8))
    gamma, beta = torch.from_numpy(constants["gamma"]), torch.from_numpy(constants["beta"])
    want = torch.nn.functional.layer_norm(x, (8,), gamma, beta)
    torch.testing.assert_close(module(x)["y"], want)


def test_a_shared_weight_is_one_module_and_sums_its_gradients() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Tanh", ["h"], ["t"]),
        helper.make_node("MatMul", ["t", "w"], ["y"]),
    ]
    module = to_module(_graph(nodes, {"w": _normal(4, 4)}))
    assert len(module.linear_sites) == 1
    (linear,) = module.linear_sites.values()
    x = torch.from_numpy(_normal(3, 4))
    module(x)["y"].sum().backward()
    w = torch.from_numpy(_normal(4, 4)).requires_grad_()
    (torch.tanh(x @ w) @ w).sum().backward()
    torch.testing.assert_close(linear.weight.grad, w.grad.t())


def test_a_tied_table_is_one_parameter() -> None:
    nodes = [
        helper.make_node("ReduceSum", ["x", "last"], ["sums"], keepdims=0),
        helper.make_node("Cast", ["sums"], ["ids"], to=onnx.TensorProto.INT64),
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("Transpose", ["table"], ["turned"]),
        helper.make_node("MatMul", ["rows", "turned"], ["y"]),
    ]
    graph = _graph(nodes, {"table": _normal(6, 4), "last": np.array([-1], np.int64)})
    module = to_module(graph)
    assert len(list(module.parameters())) == 1
    y = module(torch.tensor([[1.0, 2.0], [0.0, 5.0]]))["y"]
    table = _normal(6, 4)
    np.testing.assert_allclose(y.detach().numpy(), table[[3, 5]] @ table.T, rtol=1e-5)


def test_a_weight_used_both_ways_stays_one_parameter() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Transpose", ["w"], ["turned"]),
        helper.make_node("MatMul", ["h", "turned"], ["y"]),
    ]
    module = to_module(_graph(nodes, {"w": _normal(4, 3)}))
    assert len(list(module.parameters())) == 1
    x, w = _normal(2, 4), _normal(4, 3)
    np.testing.assert_allclose(
        module(torch.from_numpy(x))["y"].detach().numpy(), x @ w @ w.T, rtol=1e-4, atol=1e-5
    )


QUANTISED = [
    helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
    helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
    helper.make_node("DequantizeLinear", ["wq", "ws", "wz"], ["w"], axis=1),
    helper.make_node("MatMul", ["xd", "w"], ["y"], name="product"),
]
QUANTISED_CONSTANTS = {
    "s": np.float32(0.02),
    "z": np.uint8(100),
    "wq": np.arange(-6, 6).reshape(4, 3).astype(np.int8),
    "ws": np.array([0.1, 0.2, 0.3], np.float32),
    "wz": np.zeros(3, np.int8),
}


def test_quantised_activations_pass_gradients_straight_through() -> None:
    graph = _graph(QUANTISED, QUANTISED_CONSTANTS)
    module = to_module(graph)
    x = torch.tensor([[0.5, -1.0, 9.0, -9.0]], requires_grad=True)
    y = module(x)["y"]
    want = _session(graph).run(None, {"x": x.detach().numpy()})[0]
    np.testing.assert_allclose(y.detach().numpy(), want, rtol=1e-5)
    y.sum().backward()
    (linear,) = module.linear_sites.values()
    # 9 and -9 lie outside (levels 0 to 255), so that no gradient reaches them.
    inside = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    torch.testing.assert_close(x.grad, linear.weight.detach().sum(0, keepdim=True) * inside)
    assert linear.weight.grad is not None


def test_a_quantised_weight_cannot_be_written_back_once_changed() -> None:
    graph = _graph(QUANTISED, QUANTISED_CONSTANTS)
    module = to_module(graph)
    from_module(module, graph)
    (linear,) = module.linear_sites.values()
    with torch.no_grad():
        linear.weight += 1
    with pytest.raises(GraphError, match="is quantised or packed and cannot take"):
        from_module(module, graph)


def test_inputs_are_taken_by_any_name_or_by_position() -> None:
    nodes = [helper.make_node("Sub", ["input.1", "onnx::x"], ["y"])]
    inputs = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n"])
        for name in ("input.1", "onnx::x")
    ]
    made = helper.make_graph(nodes, "g", inputs, [helper.make_empty_tensor_value_info("y")])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    module = to_module(Graph(ir.from_proto(model), Source("onnx")))
    a, b = torch.tensor([3.0]), torch.tensor([1.0])
    assert module(**{"onnx::x": b, "input.1": a})["y"] == 2
    assert module(a, b)["y"] == 2


def test_what_no_output_reads_is_left_out() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("MatMul", ["x", "dead"], ["nowhere"]),
    ]
    graph = _graph(nodes, {"w": _normal(4, 3), "dead": _normal(4, 2)})
    module = to_module(graph)
    assert list(module.linear_sites) == ["w"]
    from_module(module, graph)
