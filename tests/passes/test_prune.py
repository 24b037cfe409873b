"""The pass on a small graph with given statistics; sorting and dense solves as oracles."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from obert_compiler.errors import GraphError, NumericsError, SpecError, UsageError
from obert_compiler.graph import Graph, Source, Stage
from obert_compiler.graph.linear import find_linear_sites
from obert_compiler.passes.fisher import Fisher
from obert_compiler.passes.fisher_blocks import BlockLayout
from obert_compiler.passes.fisher_statistics import FisherStatistics
from obert_compiler.passes.obs import greedy_saliency
from obert_compiler.passes.prune import Prune
from obert_compiler.passes.saliency import group_is_pruned
from obert_compiler.pipeline.contract import Context
from obert_compiler.pipeline.registry import passes_from_text

WIDTHS = (8, 16, 12, 3)


def mlp(seed=0):
    """x -> first -> Relu -> second -> Relu -> head; the head feeds the output and is not pruned."""
    rng = np.random.default_rng(seed)
    x = ir.val("x", ir.DataType.FLOAT, ["batch", WIDTHS[0]])
    nodes, weights, value = [], [], x
    for name, rows, columns in zip(("first", "second", "head"), WIDTHS[1:], WIDTHS, strict=False):
        W = rng.normal(size=(columns, rows)).astype(np.float32)
        weight = ir.Value(name=f"{name}.weight", const_value=ir.tensor(W))
        weight.shape, weight.dtype = ir.Shape(W.shape), ir.DataType.FLOAT
        weights.append(weight)
        nodes.append(ir.node("MatMul", [value, weight]))
        if name != "head":
            nodes.append(ir.node("Relu", [nodes[-1].outputs[0]]))
        value = nodes[-1].outputs[0]
    value.name, value.dtype = "y", ir.DataType.FLOAT
    value.shape = ir.Shape(["batch", WIDTHS[-1]])
    graph = ir.Graph(
        [x], [value], nodes=nodes, initializers=weights, opset_imports={"": 21}, name="mlp"
    )
    return Graph(ir.Model(graph, ir_version=10), Source("onnx"))


def weights(graph):
    return {site.name: site.weight().copy() for site in find_linear_sites(graph)}


def context_with_fisher(graph, tmp_path, block=8, seed=0):
    rng = np.random.default_rng(seed)
    statistics = FisherStatistics.create(tmp_path, block)
    for site in find_linear_sites(graph):
        layout = BlockLayout(*site.shape, block)
        valid = layout.valid()
        g = rng.normal(size=(layout.count, 20, block)) @ rng.normal(
            size=(layout.count, block, block)
        )
        g *= valid[:, None, :]
        statistics.write(site.name, layout, (g.transpose(0, 2, 1) @ g / 20).astype(np.float32))
    statistics.finish(20)
    return Context(work=tmp_path, statistics={"fisher": statistics})


def run(graph, prune, context=None):
    prune.requires(graph)
    result = prune.run(graph, context or Context())
    prune.ensures(result)
    return result


def zero_groups(W, group):
    return (W.reshape(W.shape[0], -1, group) == 0).all(axis=2)


def oracle_fisher(W, statistics, name, group, damping=2e-2):
    """Saliency of each group by dense inverses, and the inverse of each block."""
    layout, F = statistics.layouts[name], statistics.blocks(name).astype(np.float64)
    block = layout.block
    per_row = layout.per_row
    mean = np.mean([s for n in statistics.layouts for s in diagonal(statistics, n)])
    rho = np.zeros((W.shape[0], W.shape[1] // group))
    inverses = {}
    for k in range(len(F)):
        row, start = k // per_row, (k % per_row) * block
        width = min(block, W.shape[1] - start)
        inverse = np.linalg.inv(F[k, :width, :width] + damping * mean * np.eye(width))
        inverses[row, start] = inverse
        for q in range(0, width, group):
            w = W[row, start + q : start + q + group].astype(np.float64)
            within = np.linalg.inv(inverse[q : q + group, q : q + group])
            rho[row, (start + q) // group] = 0.5 * w @ within @ w
    return rho, inverses


def diagonal(statistics, name):
    layout = statistics.layouts[name]
    return [
        F[i, i]
        for k, F in enumerate(statistics.blocks(name))
        for i in range(layout.block)
        if (k % layout.per_row) * layout.block + i < layout.columns
    ]


@pytest.mark.parametrize("group", [1, 2, 4])
def test_fisher_removes_the_lowest_saliencies_and_repairs_jointly(tmp_path, group):
    graph = mlp()
    before = weights(graph)
    context = context_with_fisher(graph, tmp_path)
    result = run(graph, Prune(sparsity=0.6, block=group, repair="fisher"), context)
    after = weights(graph)
    np.testing.assert_array_equal(after["head"], before["head"])
    oracles = {
        name: oracle_fisher(before[name], context.statistics["fisher"], name, group)
        for name in ("first", "second")
    }
    ranked = sorted(
        (rho[o, g], name, o, g)
        for name, (rho, _) in oracles.items()
        for o in range(rho.shape[0])
        for g in range(rho.shape[1])
    )
    count = int(len(ranked) * 6 // 10)
    removed = {name: np.zeros(before[name].shape, bool) for name in oracles}
    for _, name, o, g in ranked[:count]:
        removed[name][o, g * group : (g + 1) * group] = True
    assert result.report["groups_removed"] == count
    for name, (_, inverses) in oracles.items():
        np.testing.assert_array_equal(after[name] == 0, removed[name])
        expected = before[name].astype(np.float64)
        for (row, start), inverse in inverses.items():
            part = slice(start, start + len(inverse))
            S = np.flatnonzero(removed[name][row, part])
            if len(S):
                w_S = before[name][row, part][S]
                expected[row, part] -= inverse[:, S] @ np.linalg.inv(inverse[np.ix_(S, S)]) @ w_S
        expected[removed[name]] = 0
        np.testing.assert_allclose(after[name], expected, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("choice", ["greedy", "cumulative"])
def test_greedy_choice_takes_groups_at_their_turn(tmp_path, choice):
    graph = mlp()
    before = weights(graph)
    context = context_with_fisher(graph, tmp_path)
    statistics = context.statistics["fisher"]
    pruner = Prune(sparsity=0.6, block=2, choice=choice)
    ranked = []
    for name in ("first", "second"):
        layout = statistics.layouts[name]
        damping = pruner.damping * statistics.mean_square
        rho = greedy_saliency(
            statistics.blocks(name),
            layout.cut(before[name]),
            layout.cut(before[name] != 0),
            group=2,
            damping=damping,
            cumulative=choice == "cumulative",
        ).astype(np.float32)
        rho = rho.reshape(layout.rows, -1)[:, : layout.columns // 2]
        ranked += [(value, name, o, g) for (o, g), value in np.ndenumerate(rho)]
    chosen = {(name, o, g) for _, name, o, g in sorted(ranked)[: int(len(ranked) * 6 // 10)]}
    result = run(graph, replace(pruner, repair="fisher"), context)
    assert result.report["choice"] == choice
    for name in ("first", "second"):
        pruned = group_is_pruned(weights(graph)[name], 2)
        assert {(name, int(o), int(g)) for o, g in np.argwhere(pruned)} == {
            key for key in chosen if key[0] == name
        }


@pytest.mark.parametrize("choice", ["greedy", "rows"])
def test_magnitudes_have_no_turns(choice):
    with pytest.raises(UsageError, match=f"expected method=fisher for choice={choice}"):
        Prune(method="magnitude", choice=choice)


def test_n_of_m_has_no_order_of_its_own():
    with pytest.raises(UsageError, match="expected choice=rows or single beside nm=2of4"):
        Prune(nm="2of4", choice="greedy")


def test_magnitude_removes_the_smallest_norms_and_moves_nothing():
    graph = mlp()
    before = weights(graph)
    run(graph, Prune(sparsity=0.5, method="magnitude"))
    after = weights(graph)
    norms = sorted(
        (float(np.sum(part.astype(np.float64) ** 2)), name, o, g)
        for name in ("first", "second")
        for o, row in enumerate(before[name])
        for g, part in enumerate(row.reshape(-1, 4))
    )
    expected = {name: W.copy() for name, W in before.items()}
    for _, name, o, g in norms[: len(norms) // 2]:
        expected[name][o, 4 * g : 4 * g + 4] = 0
    for name in before:
        np.testing.assert_array_equal(after[name], expected[name])


@pytest.mark.parametrize("sparsity", [0.0, 0.29, 0.5, 0.8, 0.999, 1.0])
@pytest.mark.parametrize("scope", ["global", "uniform"])
def test_sparsity_is_reached_exactly_and_never_exceeded(sparsity, scope):
    graph = mlp()
    result = run(graph, Prune(sparsity=sparsity, method="magnitude", scope=scope))
    found = {name: zero_groups(W, 4) for name, W in weights(graph).items()}
    sizes = {name: found[name].size for name in ("first", "second")}
    per_mille = round(sparsity * 1000)
    if scope == "uniform":
        assert {n: int(found[n].sum()) for n in sizes} == {
            n: per_mille * size // 1000 for n, size in sizes.items()
        }
    else:
        total = int(found["first"].sum() + found["second"].sum())
        assert total == per_mille * sum(sizes.values()) // 1000
    assert result.changed == (sparsity > 0)
    assert not found["head"].any()
    assert [(s.subject, "feeds a graph output" in s.reason) for s in result.skips] == [
        ("head", True)
    ]


def test_n_of_m_keeps_the_most_salient_of_every_m(tmp_path):
    graph = mlp()
    before = weights(graph)
    context = context_with_fisher(graph, tmp_path)
    result = run(graph, Prune(nm="1of4", repair="fisher"), context)
    after = weights(graph)
    for name in ("first", "second"):
        rho, _ = oracle_fisher(before[name], context.statistics["fisher"], name, 1)
        for row in range(rho.shape[0]):
            for start in range(0, rho.shape[1], 4):
                kept = np.flatnonzero(after[name][row, start : start + 4])
                assert kept.tolist() == [int(rho[row, start : start + 4].argmax())]
    assert result.report["sparsity"] == 0.75


def test_overrides_leave_the_global_ranking():
    graph = mlp()
    run(graph, Prune(sparsity=0.5, method="magnitude", override=("s@0.25", "second@0.75")))
    found = {name: zero_groups(W, 4) for name, W in weights(graph).items()}
    assert found["second"].sum() == 36
    assert found["first"].sum() == 8


def test_include_replaces_the_default_sites_and_exclude_narrows_them():
    graph = mlp()
    result = run(graph, Prune(method="magnitude", include=("head", "first"), exclude=("fir*",)))
    found = {name: zero_groups(W, 4) for name, W in weights(graph).items()}
    assert found["head"].sum() == 4
    assert not found["first"].any()
    assert {s.subject: s.reason for s in result.skips} == {
        "second": "not in include",
        "first": "excluded",
    }


def test_pruning_further_keeps_what_is_pruned(tmp_path):
    graph = mlp()
    context = context_with_fisher(graph, tmp_path)
    run(graph, Prune(sparsity=0.4, repair="fisher"), context)
    halfway = weights(graph)
    run(graph, Prune(sparsity=0.7, repair="fisher"), context)
    after = weights(graph)
    total = 0
    for name in ("first", "second"):
        assert not after[name][halfway[name] == 0].any()
        total += int(zero_groups(after[name], 4).sum())
    assert total == 80 * 7 // 10


def test_a_target_below_what_is_pruned_changes_nothing_and_says_so(tmp_path):
    graph = mlp()
    context = context_with_fisher(graph, tmp_path)
    run(graph, Prune(sparsity=0.8, scope="uniform", repair="fisher"), context)
    before = weights(graph)
    result = run(graph, Prune(sparsity=0.3, scope="uniform", repair="fisher"), context)
    after = weights(graph)
    assert all(np.array_equal(after[name], before[name]) for name in before)
    assert not result.changed
    reasons = {s.subject: s.reason for s in result.skips}
    assert reasons["first"] == "already at sparsity 0.7812, above its target"


def test_repair_predicts_a_smaller_loss_than_removal(tmp_path):
    losses = {}
    for repair in ("fisher", "sum", "none"):
        graph = mlp()
        context = context_with_fisher(graph, tmp_path)
        before = weights(graph)
        result = run(graph, Prune(sparsity=0.5, block=2, repair=repair), context)
        losses[repair] = result.report["predicted_loss_increase"]
        after = weights(graph)["first"]
        moved = after != np.where(after == 0, 0, before["first"])
        assert moved.any() == (repair != "none")
    assert 0 < losses["fisher"] < losses["none"]
    assert losses["fisher"] < losses["sum"]


def test_absolute_damping_is_taken_as_it_is(tmp_path):
    graph = mlp()
    context = context_with_fisher(graph, tmp_path)
    report = run(graph, Prune(sparsity=0.5, absolute_damping=0.25, repair="fisher"), context).report
    assert report["sites"]["first"]["damping"] == 0.25


def test_partial_fisher_blocks_are_pruned_too(tmp_path):
    graph = mlp()
    context = context_with_fisher(graph, tmp_path, block=12)
    run(graph, Prune(sparsity=1.0, repair="fisher"), context)
    assert not weights(graph)["second"].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1.2}, "sparsity between 0 and 1, found 1.2"),
        ({"sparsity": -0.1}, "sparsity between 0 and 1"),
        ({"block": 0}, "block of at least 1"),
        ({"nm": "5of4"}, "N <= M"),
        ({"nm": "2of4", "block": 8}, "nm or block"),
        ({"nm": "2of4", "scope": "uniform"}, "nm alone"),
        ({"nm": "2of4", "sparsity": 0.8}, "which gives 0.5, found 0.8"),
        ({"override": ("a",)}, "PATTERN@SPARSITY"),
        ({"damping": 0.0}, "damping above 0"),
        ({"absolute_damping": -1.0}, "absolute_damping above 0"),
        ({"turns": 0}, "turns of at least 1"),
        ({"choice": "all"}, "choice auto, rows, single, greedy or cumulative, found 'all'"),
        ({"choice": "rows", "repair": "fisher"}, "repair=rows for choice=rows, found fisher"),
        ({"samples": 0}, "samples of at least 1"),
        ({"repair_samples": 0}, "repair_samples of at least 1"),
        ({"repair_positions": 0}, "repair_positions of at least 1"),
        ({"repair_damping": 0.0}, "repair_damping above 0"),
        ({"memory": 0.0}, "memory above 0"),
        ({"steps": ("0.5", "half")}, "steps as a number .* sparsities .* found 'half'"),
        ({"steps": ("0",)}, "steps as a number .* found '0'"),
        ({"steps": ("2", "3")}, "steps as a number .* found '2'"),
        ({"repair": "all"}, "repair auto, rows, fisher, sum or none, found 'all'"),
        ({"method": "magnitude", "repair": "fisher"}, "method=fisher for repair=fisher"),
        ({"method": "random"}, "method fisher or magnitude"),
        ({"scope": "local"}, "scope global or uniform"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        Prune(**options)


def test_a_group_that_does_not_divide_names_the_site():
    for prune in (Prune(block=5, method="magnitude"), Prune(nm="2of5", method="magnitude")):
        with pytest.raises(UsageError, match=r"to divide the 8 inputs of site 'first'.*rest of 3"):
            prune.requires(mlp())


def test_patterns_that_match_nothing_are_refused():
    for prune in (Prune(include=("x9",)), Prune(exclude=("x9",)), Prune(override=("x9@0.5",))):
        with pytest.raises(UsageError, match=r"pattern 'x9' of (in|ex)clude|of override"):
            prune.requires(mlp())


def test_a_graph_without_sites_is_refused():
    graph = mlp()
    with pytest.raises(GraphError, match="found 3 Linear sites, all left out"):
        Prune(exclude=("*",)).requires(graph)


def test_weights_that_are_not_finite_are_named():
    graph = mlp()
    site = next(s for s in find_linear_sites(graph) if s.name == "second")
    W = site.weight().copy()
    W[2, 3] = np.nan
    site.set_weight(W)
    with pytest.raises(NumericsError, match="site 'second': expected finite weights"):
        run(graph, Prune(method="magnitude"))


def test_a_failed_solve_leaves_the_graph_as_it_was(tmp_path):
    graph = mlp()
    context = context_with_fisher(graph, tmp_path)
    statistics = context.statistics["fisher"]
    blocks = statistics.blocks("second")
    blocks[5] = -blocks[5]
    statistics.write("second", statistics.layouts["second"], blocks)
    before = weights(graph)
    with pytest.raises(NumericsError, match=r"site 'second', Fisher block 5: .*raise damping"):
        run(graph, Prune(sparsity=0.5, repair="fisher"), context)
    assert all(np.array_equal(W, before[name]) for name, W in weights(graph).items())


def test_the_fisher_it_needs_fits_its_groups():
    (fisher,) = Prune(block=6, samples=100, exclude=("a",)).prerequisites([])
    assert fisher == Fisher(samples=100, block=30, exclude=("a",))
    assert Prune(block=64).prerequisites([])[0].block == 64
    assert Prune(nm="4of8").prerequisites([])[0].block == 32
    assert Prune(method="magnitude").prerequisites([]) == ()


def test_a_fisher_asked_for_is_taken_unless_the_weights_have_changed_since():
    given = Fisher(samples=10)
    assert Prune().prerequisites([given]) == ()
    assert len(Prune().prerequisites([given, Prune()])) == 1
    with pytest.raises(UsageError, match="found block=10 of 'fisher'; make it 32"):
        Prune().prerequisites([Fisher(block=10)])


def test_a_site_without_gradients_is_named(tmp_path):
    graph = mlp()
    context = context_with_fisher(graph, tmp_path)
    statistics = context.statistics["fisher"]
    zero = np.zeros_like(statistics.blocks("second"))
    statistics.write("second", statistics.layouts["second"], zero)
    with pytest.raises(NumericsError, match=r"site 'second': expected gradients.*exclude=second"):
        run(graph, Prune(), context)


def test_statistics_that_do_not_fit_are_refused(tmp_path):
    graph = mlp()
    with pytest.raises(GraphError, match="expected the statistics of 'fisher', found none"):
        run(graph, Prune())
    context = context_with_fisher(graph, tmp_path, block=6)
    with pytest.raises(UsageError, match="multiple of 4 weights, found 6"):
        run(graph, Prune(), context)
    context.statistics["fisher"].layouts.pop("second")
    with pytest.raises(GraphError, match="site 'second': expected its Fisher"):
        run(graph, Prune(block=2), context)


def test_ensures_counts_zeros_in_the_graph():
    graph = mlp()
    prune = Prune(sparsity=0.5, method="magnitude")
    result = prune.run(graph, Context())
    site = next(s for s in find_linear_sites(graph) if s.name == "first")
    site.set_weight(np.ones(site.shape, np.float32))
    with pytest.raises(GraphError, match=r"site 'first': expected .* groups of zeros.*found 0"):
        prune.ensures(result)


def test_text_form_and_stage():
    text = "prune:sparsity=0.9:block=8:override=a@0.5+b@0.25:repair=none"
    (prune,) = passes_from_text(text)
    assert prune == Prune(0.9, 8, override=("a@0.5", "b@0.25"), repair="none")
    assert passes_from_text(str(prune)) == [prune]
    assert prune.produces is Stage.PRUNED
    with pytest.raises(SpecError, match="a number"):
        passes_from_text("prune:sparsity=half")
