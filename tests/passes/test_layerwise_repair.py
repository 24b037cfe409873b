"""The walk on a small network, against least squares on activations computed by hand."""

from functools import partial

import numpy as np
import onnx_ir as ir
import pytest

from obert_compiler.data.batches import Batches
from obert_compiler.errors import NumericsError
from obert_compiler.graph import Graph, Source
from obert_compiler.graph.linear import find_linear_sites
from obert_compiler.passes import row_repair
from obert_compiler.passes.layerwise_repair import LayerwiseRepair, RowChoice
from obert_compiler.passes.row_repair import RowSystem
from obert_compiler.passes.sparsity_allocation import choose_all_but, groups_left_by_turn
from obert_compiler.pipeline.contract import SilentProgress

DAMPING = 1e-3
OUTPUTS = {"first": 8, "second": 8, "last": 4}


def network(bias=True, seed=0):
    """h = relu(first(x)), g = relu(h + second(h)), last(g); zero biases, those of 8 one value."""
    rng = np.random.default_rng(seed)
    x = ir.val("x", ir.DataType.FLOAT, ["batch", "tokens", 8])
    nodes, constants, value = [], [], x

    def constant(name, array):
        made = ir.Value(name=name, const_value=ir.tensor(array.astype(np.float32), name=name))
        made.shape, made.dtype = ir.Shape(array.shape), ir.DataType.FLOAT
        constants.append(made)
        return made

    zeros = {n: constant(f"zero{n}", np.zeros(n)) for n in (8, 4)} if bias else {}
    for name, outputs in OUTPUTS.items():
        weight = constant(f"{name}.weight", rng.normal(size=(8, outputs)))
        nodes.append(ir.node("MatMul", [value, weight]))
        if bias:
            nodes.append(ir.node("Add", [nodes[-1].outputs[0], zeros[outputs]]))
        if name == "second":
            nodes.append(ir.node("Add", [nodes[-1].outputs[0], value]))
        if name != "last":
            nodes.append(ir.node("Relu", [nodes[-1].outputs[0]]))
        value = nodes[-1].outputs[0]
    for number, node in enumerate(nodes):
        node.outputs[0].name = f"value{number}"
        node.outputs[0].dtype = ir.DataType.FLOAT
        node.outputs[0].shape = ir.Shape(["batch", "tokens", 8])
    value.shape = ir.Shape(["batch", "tokens", 4])
    graph = ir.Graph(
        [x], [value], nodes=nodes, initializers=constants, opset_imports={"": 21}, name="network"
    )
    return Graph(ir.Model(graph, ir_version=10), Source("onnx"))


def rows(seed=0, spoil=None):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(40, 3, 8)) @ rng.normal(size=(8, 8)) + 1
    if spoil is not None:
        x[spoil] = np.inf
    return x.astype(np.float32)


def masks(seed=1):
    rng = np.random.default_rng(seed)
    return {name: rng.random((outputs, 8)) >= 0.5 for name, outputs in OUTPUTS.items()}


def repaired(dense, kept, x, held_bytes=1 << 20, plain=False, choices=None):
    graph = dense.copy()
    for site in find_linear_sites(graph):
        site.set_weight(np.where(kept[site.name], site.weight(), np.float32(0)))
    data = Batches.from_arrays({"x": x}, batch_size=16)
    walk = LayerwiseRepair(dense, data, DAMPING, held_bytes, plain=plain, choices=choices or {})
    walk.repair(graph, kept, SilentProgress())
    return graph, walk


@pytest.mark.parametrize("held_bytes", [0, 1 << 20])
@pytest.mark.parametrize("bias", [True, False])
def test_each_layer_aims_at_dense_outputs_from_the_repaired_layers_before_it(bias, held_bytes):
    dense, kept, x = network(bias), masks(), rows()
    before = {site.name: site.weight().astype(np.float64) for site in find_linear_sites(dense)}
    graph, _ = repaired(dense, kept, x, held_bytes)
    x_p = x_d = x.reshape(-1, 8).astype(np.float64)
    for site in find_linear_sites(graph):
        W, residual = before[site.name], site.name == "second"
        aim = x_d @ W.T + (x_d - x_p if residual else 0)
        p, z = (x_p - x_p.mean(axis=0), aim - aim.mean(axis=0)) if bias else (x_p, aim)
        expected = RowSystem(p.T @ p, p.T @ z, W, damping=DAMPING).repaired(kept[site.name])
        np.testing.assert_allclose(site.weight(), expected, rtol=1e-3, atol=1e-4)
        shift = aim.mean(axis=0) - x_p.mean(axis=0) @ expected.T if bias else 0
        if bias:
            np.testing.assert_allclose(site.bias(), shift, rtol=1e-3, atol=1e-3)
        x_p = np.maximum(x_p @ expected.T + shift + (x_p if residual else 0), 0)
        x_d = np.maximum(x_d @ W.T + (x_d if residual else 0), 0)


@pytest.mark.parametrize("turns", [1, 2])
@pytest.mark.parametrize("iterated", [False, True])
def test_groups_are_chosen_turn_by_turn_from_what_the_repaired_layers_give(
    turns, iterated, monkeypatch
):
    if iterated:  # matrices this small are solved for exactly
        monkeypatch.setattr(row_repair, "_PRODUCTS", 0)
        monkeypatch.setattr(row_repair, "_TOLERANCE", 1e-5)
    dense, x = network(), rows()
    before = {site.name: site.weight().astype(np.float64) for site in find_linear_sites(dense)}
    kept = {name: np.ones((outputs, 8), bool) for name, outputs in OUTPUTS.items()}
    kept["second"][0, :3] = False  # a group and half of the next
    importance = {name: np.arange(1.0, outputs + 1) for name, outputs in OUTPUTS.items()}
    counts = {
        name: groups_left_by_turn(int(mask[:, 1::2].sum()), 9, turns) for name, mask in kept.items()
    }
    choices = {
        name: RowChoice(
            kept[name],
            2,
            importance[name],
            [partial(choose_all_but, left=left) for left in counts[name]],
        )
        for name in OUTPUTS
    }
    graph, walk = repaired(dense, kept, x, choices=choices)
    x_p = x_d = x.reshape(-1, 8).astype(np.float64)
    for site in find_linear_sites(graph):
        W, residual = before[site.name], site.name == "second"
        aim = x_d @ W.T + (x_d - x_p if residual else 0)
        p, z = x_p - x_p.mean(axis=0), aim - aim.mean(axis=0)
        left = kept[site.name]
        system = RowSystem(p.T @ p, p.T @ z, W, damping=DAMPING)
        for count in counts[site.name]:
            rho = system.saliency(system.repaired(left), left, 2) * importance[site.name][:, None]
            left = left & np.repeat(rho >= np.sort(rho, axis=None)[-count], 2, axis=1)
        np.testing.assert_array_equal(site.weight() != 0, left)
        assert walk.choice_operations[site.name] > 0
        expected = system.repaired(site.weight() != 0)
        np.testing.assert_allclose(site.weight(), expected, rtol=1e-3, atol=1e-4)
        shift = aim.mean(axis=0) - x_p.mean(axis=0) @ expected.T
        x_p = np.maximum(x_p @ expected.T + shift + (x_p if residual else 0), 0)
        x_d = np.maximum(x_d @ W.T + (x_d if residual else 0), 0)


def test_the_dense_graph_stays_as_it_was_and_a_bias_shared_before_is_the_site_s_own():
    dense = network()
    before = {site.name: site.weight() for site in find_linear_sites(dense)}
    graph, walk = repaired(dense, masks(), rows())
    for site in find_linear_sites(dense):
        np.testing.assert_array_equal(site.weight(), before[site.name])
        assert not site.bias().any()
    first, second, _ = find_linear_sites(graph)
    assert first.bias().any()
    assert not np.array_equal(first.bias(), second.bias())
    assert set(walk.positions.values()) == {120}
    assert not walk.constant
    assert set(walk.operations) == set(OUTPUTS)


def test_behind_a_matrix_that_is_gone_the_bias_alone_is_repaired():
    dense, kept, x = network(), masks(), rows()
    kept["first"][:] = kept["second"][:] = False
    graph, walk = repaired(dense, kept, x)
    assert walk.constant == ["second", "last"]
    first, second, last = find_linear_sites(graph)
    W = next(s.weight() for s in find_linear_sites(dense) if s.name == "last")
    np.testing.assert_array_equal(last.weight(), np.where(kept["last"], W, 0))
    hidden = np.maximum(first.bias(), 0)
    constant = np.maximum(second.bias() + hidden, 0) @ last.weight().T + last.bias()
    W_1, W_2 = (s.weight() for s in list(find_linear_sites(dense))[:2])
    h = np.maximum(x.reshape(-1, 8) @ W_1.T, 0)
    expected = (np.maximum(h @ W_2.T + h, 0) @ W.T).mean(axis=0)
    np.testing.assert_allclose(constant, expected, rtol=1e-3, atol=1e-3)


def test_activations_that_are_not_finite_are_refused():
    with pytest.raises(NumericsError, match="site 'first': expected finite activations"):
        repaired(network(), masks(), rows(spoil=3))


def test_plain_repair_aims_at_each_dense_output_from_moments_that_are_not_centred():
    dense, kept, x = network(), masks(), rows()
    graph, _ = repaired(dense, kept, x, plain=True)
    before, after = ({s.name: s for s in find_linear_sites(g)} for g in (dense, graph))
    flat = x.reshape(-1, 8).astype(np.float64)
    W = {name: site.weight().astype(np.float64) for name, site in before.items()}
    h = np.maximum(flat @ W["first"].T, 0)
    first = after["first"]
    h_pruned = np.maximum(flat @ first.weight().T + first.bias(), 0)
    for name, x_pruned, z in (
        ("first", flat, flat @ W["first"].T),
        ("second", h_pruned, h @ W["second"].T),
    ):
        expected = np.zeros(kept[name].shape)
        H = x_pruned.T @ x_pruned
        H += DAMPING * np.diagonal(H).mean() * np.eye(8)
        for row, mask in enumerate(kept[name]):
            A, b = H[np.ix_(mask, mask)], (x_pruned.T @ z[:, row])[mask]
            expected[row, mask] = np.linalg.solve(A, b)
        np.testing.assert_allclose(after[name].weight(), expected, rtol=1e-4, atol=1e-4)
        bias = (z - x_pruned @ expected.T).mean(axis=0)
        np.testing.assert_allclose(after[name].bias(), bias, rtol=1e-3, atol=1e-3)


def test_a_graph_that_states_no_types_is_repaired_alike():
    dense, kept, x = network(), masks(), rows()
    expected, _ = repaired(dense, kept, x)
    bare = network()
    for node in bare.model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.type = value.shape = None
    found, _ = repaired(bare, kept, x)
    for a, b in zip(find_linear_sites(found), find_linear_sites(expected), strict=True):
        np.testing.assert_array_equal(a.weight(), b.weight())
        np.testing.assert_array_equal(a.bias(), b.bias())


@pytest.mark.parametrize("plain", [False, True])
def test_a_matrix_that_keeps_all_its_weights_has_its_damping_chosen(plain):
    kept = masks() | {name: np.ones((OUTPUTS[name], 8), bool) for name in ("second", "last")}
    dense, x = network(), rows()
    _, walk = repaired(dense, kept, x, plain=plain)
    assert set(walk.dampings) == (set() if plain else {"second", "last"})
    assert set(walk.dampings.values()) <= {DAMPING * 10**i for i in range(4)}
    assert walk.positions == dict.fromkeys(OUTPUTS, 120)


def test_few_rows_move_a_matrix_that_keeps_its_weights_less():
    """With fewer rows than inputs, what fits them all is far from what serves others."""
    rng = np.random.default_rng(3)
    dense, kept = network(), masks()
    kept["last"] = np.ones((4, 8), bool)
    few = rng.normal(size=(2, 3, 8)).astype(np.float32)
    _, walk = repaired(dense, kept, few)
    _, more = repaired(dense, kept, rng.normal(size=(400, 3, 8)).astype(np.float32))
    assert walk.dampings["last"] > more.dampings["last"]
