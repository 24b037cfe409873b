"""``prune`` with row repair and in steps, on tiny encoders and real Fisher."""

import numpy as np
import pytest

from obert_compiler import PassManager
from obert_compiler.data.batches import Batches
from obert_compiler.errors import UsageError
from obert_compiler.graph.layers import prunable_sites
from obert_compiler.graph.linear import find_linear_sites
from obert_compiler.passes.fisher import Fisher
from obert_compiler.passes.output_distance import OutputDistance
from obert_compiler.passes.prune import Prune
from obert_compiler.passes.site_selection import sites_behind
from obert_compiler.pipeline.contract import Context, SilentProgress
from obert_compiler.pipeline.registry import passes_from_text
from obert_compiler.tasks import task_for

STEPS = ("0.5", "0.7", "0.8", "0.9")
ROWS = [
    {"text": f"the quick brown fox jumps over {i} lazy dogs {'again ' * (i % 7)}", "label": i % 2}
    for i in range(24)
]


@pytest.fixture
def compressed(tiny_graph, tiny_folder):
    def run(text, arch="bert", seed=0, work=None):
        graph = tiny_graph(arch, "sequence")
        task = task_for(graph.source)
        data = Batches.open(ROWS, task, tiny_folder(arch, "sequence"), batch_size=5)
        manager, progress = PassManager(text), SilentProgress()
        pruned = manager.run(graph, data=data, task=task, seed=seed, work=work, progress=progress)
        return graph, pruned, manager.records[-1], progress.lines

    return run


@pytest.mark.parametrize("arch", ["bert", "deberta-v3", "modernbert"])
def test_the_mask_is_that_of_the_fisher_and_the_rest_moves(compressed, arch):
    _, by_rows, record, _ = compressed("prune:sparsity=0.5:choice=single", arch)
    _, masked, _, _ = compressed("prune:sparsity=0.5:repair=none", arch)
    moved = 0
    for found, only_masked in zip(
        prunable_sites(by_rows)[0], prunable_sites(masked)[0], strict=True
    ):
        np.testing.assert_array_equal(found.weight() == 0, only_masked.weight() == 0)
        moved += not np.array_equal(found.weight(), only_masked.weight())
    assert moved
    assert record["report"]["repair"] == "rows"
    assert all(site["repair_operations"] > 0 for site in record["report"]["sites"].values())


@pytest.mark.parametrize(
    "options", ["sparsity=0.6:steps=1", "sparsity=0.6:block=1:steps=1", "nm=2of4"]
)
def test_rows_choose_as_many_groups_of_each_matrix_but_others(compressed, options):
    _, by_rows, record, _ = compressed(f"prune:{options}")
    _, ranked, _, _ = compressed(f"prune:{options}:choice=single")
    assert record["report"]["choice"] == "rows"
    differ = 0
    pairs = zip(prunable_sites(by_rows)[0], prunable_sites(ranked)[0], strict=True)
    for found, expected in pairs:
        zeros, expected_zeros = found.weight() == 0, expected.weight() == 0
        assert zeros.sum() == expected_zeros.sum()
        differ += int((zeros != expected_zeros).sum())
        assert record["report"]["sites"][found.name]["choice_operations"] > 0
    assert differ


@pytest.mark.parametrize("block", [4, 1])
def test_rows_leave_alone_what_was_pruned_before(compressed, block):
    _, first, _, _ = compressed(f"prune:sparsity=0.4:block={block}")
    _, second, record, _ = compressed(f"prune:sparsity=0.4:block={block},prune:sparsity=0.7")
    assert record["report"]["groups_removed"] == record["report"]["groups"] * 7 // 10
    for a, b in zip(prunable_sites(first)[0], prunable_sites(second)[0], strict=True):
        assert not b.weight()[a.weight() == 0].any()


def test_a_step_chooses_from_what_was_there_before_the_first(compressed):
    _, at_once, _, _ = compressed("prune:sparsity=0.5:steps=1")
    _, graph, record, _ = compressed("prune:sparsity=0.8:steps=0.5")
    assert record["report"]["steps"] == 2
    given_back = sum(
        int((first.weight()[second.weight() != 0] == 0).sum())
        for first, second in zip(prunable_sites(at_once)[0], prunable_sites(graph)[0], strict=True)
    )
    assert given_back


def test_the_same_seed_gives_the_same_weights(compressed):
    text = "prune:sparsity=0.6:samples=10:repair_samples=8:steps=0.3"
    runs = [compressed(text, seed=seed)[1] for seed in (1, 1, 2)]
    weights = [[s.weight() for s in prunable_sites(graph)[0]] for graph in runs]
    assert all(np.array_equal(a, b) for a, b in zip(weights[0], weights[1], strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(weights[0], weights[2], strict=True))


def test_steps_nest_and_reach_the_target(compressed, tmp_path):
    _, _, record, lines = compressed(
        "fisher:samples=9,prune:sparsity=0.8:steps=0.4+0.6+0.9", work=tmp_path
    )
    assert record["report"]["steps"] == 3
    assert record["report"]["groups_removed"] == record["report"]["groups"] * 8 // 10
    assert "prune: step 3 of 3" in lines
    # The examples of the 'fisher' that was asked for, not those of an inserted one.
    assert not any("fewer than" in line for line in lines)


def test_everything_can_be_removed_in_steps(compressed):
    _, graph, record, _ = compressed("prune:sparsity=1:samples=6:steps=0.9+0.99")
    assert not any(site.weight().any() for site in prunable_sites(graph)[0])
    reasons = {skip["reason"] for skip in record["skips"] if "only its bias" in skip["reason"]}
    assert len(reasons) == 1


def test_a_weight_with_several_uses_keeps_its_fisher_repair(compressed):
    _, _, record, _ = compressed("prune:sparsity=0.5", "albert")
    reasons = {skip["reason"] for skip in record["skips"] if "several times" in skip["reason"]}
    assert reasons == {
        "its weight is used several times, and repair=rows knows one input; repair=fisher instead"
    }


@pytest.mark.parametrize(("option", "span", "kept"), [("block=1", 1, None), ("nm=2of4", 4, 2)])
def test_single_weights_and_n_of_m_go_through_the_same_solver(compressed, option, span, kept):
    _, graph, record, _ = compressed(f"prune:{option}")
    assert record["report"]["sparsity"] == 0.5
    for site in prunable_sites(graph)[0]:
        if kept is not None:
            assert (np.count_nonzero(site.weight().reshape(-1, span), axis=1) <= kept).all()
        assert record["report"]["sites"][site.name]["repair_operations"] > 0


def test_magnitude_can_be_repaired_by_rows(compressed):
    _, repaired, _, _ = compressed("prune:sparsity=0.5:method=magnitude:repair=rows")
    _, masked, _, _ = compressed("prune:sparsity=0.5:method=magnitude")
    for a, b in zip(prunable_sites(repaired)[0], prunable_sites(masked)[0], strict=True):
        np.testing.assert_array_equal(a.weight() == 0, b.weight() == 0)
        assert not np.array_equal(a.weight(), b.weight())


def test_each_step_is_the_target_of_a_shorter_run(compressed, tiny_graph, tiny_folder):
    text = "prune:sparsity=0.8:samples=9:steps=0.5+0.7"
    graph = tiny_graph("bert", "sequence").copy()
    task = task_for(graph.source)
    data = Batches.open(ROWS, task, tiny_folder("bert", "sequence"), batch_size=5)
    (prune,) = passes_from_text(text)
    context = Context(task=task, data=data)
    Fisher(samples=9).run(graph, context)
    for target, result in zip((0.5, 0.7, 0.8), prune.descend(graph, context), strict=True):
        prune.ensures(result)
        _, alone, record, _ = compressed(text.replace("0.8", str(target)))
        assert record["report"]["steps"] == result.report["steps"]
        for a, b in zip(prunable_sites(alone)[0], prunable_sites(result.graph)[0], strict=True):
            np.testing.assert_array_equal(a.weight(), b.weight())


@pytest.mark.parametrize(
    ("options", "sparsities"),
    [
        ({"sparsity": 0.8}, (0.5, 0.7, 0.8)),
        ({"sparsity": 0.8, "steps": STEPS}, (0.5, 0.7, 0.8)),
        ({"sparsity": 0.4, "steps": STEPS}, (0.4,)),
        ({"sparsity": 0.0, "steps": STEPS}, (0.0,)),
        ({"sparsity": 1.0, "steps": ("0.5",)}, (0.5, 1.0)),
        ({"sparsity": 0.8, "steps": ("1",)}, (0.8,)),
        ({"sparsity": 0.75, "steps": ("2",)}, (0.5, 0.75)),
        ({"sparsity": 0.936, "steps": ("3",)}, (0.6, 0.84, 0.936)),
        ({"sparsity": 0.8, "steps": STEPS, "repair": "fisher"}, (0.8,)),
        ({"sparsity": 0.8, "steps": STEPS, "method": "magnitude"}, (0.8,)),
        (
            {"sparsity": 0.8, "steps": STEPS, "method": "magnitude", "repair": "rows"},
            (0.5, 0.7, 0.8),
        ),
    ],
)
def test_steps_below_the_target_are_taken(options, sparsities):
    prune = Prune(**options)
    whole = max(1 - prune.target, 1e-3)
    found = [prune.target if way == 1 else 1 - whole**way for way in prune.ways]
    np.testing.assert_allclose(found, sparsities, atol=1e-12)


def test_data_are_needed_where_they_are_read():
    assert Prune().needs_data
    assert not Prune(repair="fisher").needs_data
    assert not Prune(method="magnitude", sparsity=0.9).needs_data


def test_row_repair_without_data_is_refused(compressed, tmp_path):
    graph, _, _, _ = compressed("fisher:samples=4", work=tmp_path)
    context = Context(work=tmp_path)
    Fisher().restore(context)
    with pytest.raises(UsageError, match="expected data for repair=rows, found none"):
        Prune().run(graph.copy(), context)


def test_rows_are_repaired_towards_the_graph_that_is_given(tiny_graph, tiny_folder):
    """Aiming at a model whose activations differ moves the kept weights to those of that model."""
    graph = tiny_graph("bert", "sequence")
    task = task_for(graph.source)
    data = Batches.open(ROWS, task, tiny_folder("bert", "sequence"), batch_size=5)
    prune = Prune(sparsity=0.3, method="magnitude", repair="rows", steps=())
    aim = graph.copy()
    for site in prunable_sites(aim)[0]:
        site.set_weight(site.weight() * 1.5)
    kept = []
    for target in (None, aim):
        pruned = graph.copy()
        *_, result = prune.descend(pruned, Context(task=task, data=data), target)
        kept.append([s.weight() for s in prunable_sites(result.graph)[0]])
    larger = [np.linalg.norm(b) > 1.2 * np.linalg.norm(a) for a, b in zip(*kept, strict=True)]
    assert all(larger)
    assert all(np.array_equal(a == 0, b == 0) for a, b in zip(*kept, strict=True))


HEAD = {"sequence": ["bert.pooler.dense", "classifier"], "mlm": ["cls.predictions.transform.dense"]}


@pytest.mark.parametrize("head", list(HEAD))
def test_sites_behind_are_those_whose_weight_is_theirs_alone(tiny_graph, head):
    graph = tiny_graph("bert", head)
    chosen = prunable_sites(graph)[0]
    assert [site.name for site in sites_behind(graph, chosen)] == HEAD[head]
    assert sites_behind(graph, chosen, [HEAD[head][0]]) == sites_behind(graph, chosen)[1:]
    last = [site for site in chosen if site.name.endswith("2.output.dense")]
    assert [site.name for site in sites_behind(graph, last)] == HEAD[head]


def test_the_head_keeps_its_weights_and_comes_nearer_to_the_dense_outputs(compressed):
    dense, alone, record, _ = compressed("prune:sparsity=0.8:steps=1:repair_head=false")
    _, repaired, with_head, _ = compressed("prune:sparsity=0.8:steps=1")
    assert record["report"]["head_repaired"] == {}
    assert set(with_head["report"]["head_repaired"]) == set(HEAD["sequence"])
    assert not set(with_head["report"]["sites"]) & set(HEAD["sequence"])
    told = {skip["subject"]: skip["reason"] for skip in with_head["skips"]}
    assert all("repaired, and keeps all its weights" in told[name] for name in HEAD["sequence"])
    weights = [{s.name: s.weight() for s in find_linear_sites(g)} for g in (dense, alone, repaired)]
    for name, W in weights[1].items():
        if name in HEAD["sequence"]:
            np.testing.assert_array_equal(W, weights[0][name])
            assert not np.array_equal(W, weights[2][name])
            assert (weights[2][name] != 0).all()
        else:
            np.testing.assert_array_equal(W, weights[2][name])
    task = task_for(dense.source)
    data = Batches.open(ROWS, task, dense.source.folder)
    distance = OutputDistance(dense, data)
    assert distance(repaired) < 0.5 * distance(alone)


def test_an_excluded_head_stays_as_it_was(compressed):
    dense, pruned, record, _ = compressed("prune:sparsity=0.5:exclude=*pooler*")
    assert set(record["report"]["head_repaired"]) == {"classifier"}
    (before,), (after,) = (
        [s.weight() for s in find_linear_sites(g) if "pooler" in s.name] for g in (dense, pruned)
    )
    np.testing.assert_array_equal(before, after)
