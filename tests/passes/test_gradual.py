"""The pass on tiny encoders: schedule, masks, teacher, budget and resume."""

import dataclasses
import functools
import signal

import numpy as np
import pytest

from obert_compiler import PassManager
from obert_compiler.data.batches import Batches
from obert_compiler.errors import ArtefactError, GraphError, TerminatedError, UsageError
from obert_compiler.graph import Stage
from obert_compiler.graph.layers import prunable_sites
from obert_compiler.passes import gradual as module
from obert_compiler.passes.gradual import Gradual
from obert_compiler.passes.training import LearningRate
from obert_compiler.pipeline.contract import Context, PassResult, SilentProgress
from obert_compiler.pipeline.registry import passes_from_text
from obert_compiler.tasks import task_for

ROWS = [
    {"text": f"the quick brown fox jumps over {i} lazy dogs {'again ' * (i % 7)}", "label": i % 2}
    for i in range(24)
]
SHORT = {"samples": 12, "repair_samples": 16, "batch_size": 6, "learning_rate": 1e-3}


def start_of(tiny_graph, tiny_folder, work=None, seed=0):
    """A fresh graph and a context for it."""
    graph = tiny_graph("bert", "sequence").copy()
    task = task_for(graph.source)
    data = Batches.open(ROWS, task, tiny_folder("bert", "sequence"), batch_size=5)
    if work is not None:
        (work / "unfinished").mkdir(parents=True, exist_ok=True)
    progress = SilentProgress()
    context = Context(
        task=task, data=data, seed=seed, work=work, teacher=graph.copy(), progress=progress
    )
    return graph, context


@pytest.fixture
def start(tiny_graph, tiny_folder):
    return functools.partial(start_of, tiny_graph, tiny_folder)


def weights(graph):
    return {site.name: site.weight().copy() for site in prunable_sites(graph)[0]}


def bits(graph):
    return {
        name: value.const_value.numpy().copy()
        for name, value in graph.model.graph.initializers.items()
        if value.const_value is not None
    }


def same(a, b):
    return all(np.array_equal(a[name], b[name]) for name in a)


def test_the_target_is_reached_over_a_cubic_curve_and_zeros_stay(start):
    graph, context = start()
    before = weights(graph)
    gradual = Gradual(sparsity=0.75, prunings=3, first=0.5, steps=6, start=0.2, end=0.6, **SHORT)
    result = gradual.run(graph, context)
    assert result.changed
    assert result.graph.stage is Stage.PRUNED
    found = [step["sparsity"] for step in result.report["prunings"]]
    assert found == pytest.approx([0.5, 0.75 - 0.25 / 8, 0.75], abs=1e-3)
    assert [t["steps"] for t in result.report["trainings"]] == [1, 1, 2, 2]
    assert result.report["training_steps"] == 6
    after = weights(result.graph)
    zeros = sum(int((W == 0).sum()) for W in after.values())
    assert zeros / sum(W.size for W in after.values()) == pytest.approx(0.75, abs=1e-3)
    assert not any(np.array_equal(after[name], before[name]) for name in before)
    gradual.ensures(result)
    steps = [point["step"] for point in result.report["curve"]]
    assert steps == sorted(steps)
    assert steps[-1] <= 6


def test_what_was_pruned_first_stays_pruned(start, monkeypatch):
    seen = []

    def watched(graph, *args, **options):
        seen.append(weights(graph))
        return module_train(graph, *args, **options)

    module_train = module.train
    monkeypatch.setattr(module, "train", watched)
    graph, context = start()
    result = Gradual(sparsity=0.8, prunings=3, first=0.3, steps=3, **SHORT).run(graph, context)
    final = weights(result.graph)
    assert len(seen) == 3
    for earlier, later in zip(seen, [*seen[1:], final], strict=True):
        for name, W in earlier.items():
            assert not later[name][W == 0].any()


def test_the_loss_towards_the_teacher_falls(start):
    graph, context = start()
    gradual = Gradual(sparsity=0.5, prunings=1, epochs=15, repair="none", **SHORT)
    curve = [p["loss"] for p in gradual.run(graph, context).report["curve"] if "loss" in p]
    assert np.mean(curve[-4:]) < 0.5 * np.mean(curve[:4])


@pytest.mark.parametrize(
    "options",
    [
        {"method": "magnitude"},
        {"repair": "sum", "absolute_damping": 1e-4},
        {"repair": "fisher"},
        {"towards": "dense"},
        {"block": 1, "scope": "uniform", "override": ("intermediate@0.25",)},
        {"nm": "2of4", "prunings": 1},
    ],
    ids=str,
)
def test_every_chooser_and_repair_of_prune_can_be_used(start, options):
    graph, context = start()
    passed = {"sparsity": None if "nm" in options else 0.5, "prunings": 2} | options
    gradual = Gradual(steps=2, **passed, **SHORT)
    result = gradual.run(graph, context)
    gradual.ensures(result)
    assert result.report["sparsity"] == pytest.approx(0.5, abs=0.13)
    if "override" in options:
        own = {n: f["sparsity"] for n, f in result.report["sites"].items() if "intermediate" in n}
        assert all(value == pytest.approx(0.25, abs=0.01) for value in own.values())


def test_each_pruning_reads_other_examples_and_the_seed_decides(start):
    runs = []
    for seed in (0, 0, 1):
        graph, context = start(seed=seed)
        runs.append(
            bits(Gradual(sparsity=0.6, prunings=2, steps=4, **SHORT).run(graph, context).graph)
        )
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


def test_stretches_follow_one_learning_rate_over_the_whole(start, monkeypatch):
    rates = []

    def watched(*args, learning_rate, **options):
        rates.append(learning_rate)
        return module_train(*args, learning_rate=learning_rate, **options)

    module_train = module.train
    monkeypatch.setattr(module, "train", watched)
    graph, context = start()
    gradual = Gradual(
        sparsity=0.5, prunings=2, start=0.25, end=0.5, steps=4, rewind="each", **SHORT
    )
    gradual.run(graph, context)
    whole = LearningRate(1e-3, 0.1, rewinds=(0.25, 0.5))
    assert gradual.whole_rate == whole
    found = [rate.at(done) for rate in rates for done in (0.0, 0.5)]
    expected = [whole.at(done) for done in (0.0, 0.125, 0.25, 0.375, 0.5, 0.75)]
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("rewind", "places"), [("each", (0.25, 0.375, 0.5)), ("last", (0.5,)), ("none", ())]
)
def test_where_the_learning_rate_starts_anew(rewind, places):
    gradual = Gradual(sparsity=0.5, prunings=3, start=0.25, end=0.5, rewind=rewind)
    assert gradual.whole_rate.rewinds == pytest.approx(places)


def test_rewinds_by_hand_are_kept():
    gradual = Gradual(sparsity=0.5, rewinds=(0.3, 0.9))
    assert gradual.whole_rate.rewinds == (0.3, 0.9)


def test_a_budget_covers_prunings_and_trainings(start):
    graph, context = start()
    gradual = Gradual(sparsity=0.5, prunings=2, budget="2s", **SHORT)
    report = gradual.run(graph, context).report
    assert report["sparsity"] == pytest.approx(0.5, abs=1e-3)
    # A training ends with the step in which its time is up; the prunings may take all of it.
    if report["seconds_pruning"] < 1:
        assert len(report["trainings"]) == 2
        assert report["training_steps"] > 2


def test_a_budget_that_is_used_up_by_pruning_says_so(start):
    graph, context = start()
    result = Gradual(sparsity=0.5, prunings=2, budget="0.001s", **SHORT).run(graph, context)
    assert result.report["sparsity"] == pytest.approx(0.5, abs=1e-3)
    assert result.report["trainings"] == []
    line = "the budget of 0.001s is used up; stretch 2 of 2 does not train"
    assert any(line in said for said in context.progress.lines)


class StoppedError(Exception):
    """Stands for a crash."""


RESUMED = Gradual(sparsity=0.7, prunings=2, steps=4, **SHORT)


@pytest.fixture(scope="module")
def undisturbed(tiny_graph, tiny_folder):
    """What `RESUMED` gives when nothing stops it."""
    graph, context = start_of(tiny_graph, tiny_folder)
    return bits(RESUMED.run(graph, context).graph)


@pytest.mark.parametrize("last", [1, 2, 3])
def test_a_run_that_was_killed_goes_on_and_ends_the_same(
    start, undisturbed, tmp_path, monkeypatch, last
):
    """Killed right after checkpoint ``last`` of four: a pruning, a training, and the same again."""
    save = module.Checkpoints.save

    def stop(self, graph, record=None):
        save(self, graph, record)
        if len(self.records) == last:
            raise StoppedError

    monkeypatch.setattr(module.Checkpoints, "save", stop)
    graph, context = start(work=tmp_path)
    with pytest.raises(StoppedError):
        RESUMED.run(graph, context)
    monkeypatch.setattr(module.Checkpoints, "save", save)
    graph, context = start(work=tmp_path)
    resumed = RESUMED.run(graph, context)
    assert same(undisturbed, bits(resumed.graph))
    assert resumed.report["training_steps"] == 4
    assert len(resumed.report["prunings"]) == 2
    assert any("goes on after pruning" in line for line in context.progress.lines)


def test_a_run_that_is_told_to_end_inside_a_training_goes_on_there(start, undisturbed, tmp_path):
    from transformers import TrainerCallback

    class Tell(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 1:
                signal.raise_signal(signal.SIGTERM)

    told = []
    module_train = module.train

    def train_and_tell(*args, **options):
        told.append(options["name"])
        callbacks = [Tell()] if len(told) == 2 else []
        return module_train(*args, callbacks=callbacks, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "train", train_and_tell)
        graph, context = start(work=tmp_path)
        with pytest.raises(TerminatedError, match="gradual-2"):
            RESUMED.run(graph, context)
    graph, context = start(work=tmp_path)
    resumed = RESUMED.run(graph, context)
    assert same(undisturbed, bits(resumed.graph))
    assert any("gradual-2: goes on from step" in line for line in context.progress.lines)


def test_a_checkpoint_of_another_schedule_is_refused(start, tmp_path):
    graph, context = start(work=tmp_path)
    Gradual(sparsity=0.5, prunings=1, steps=1, **SHORT).run(graph, context)
    graph, context = start(work=tmp_path)
    with pytest.raises(ArtefactError, match="expected the same pass as now"):
        Gradual(sparsity=0.6, prunings=1, steps=1, **SHORT).run(graph, context)


def test_finished_trainings_leave_no_checkpoints_behind(start, tmp_path):
    graph, context = start(work=tmp_path)
    Gradual(sparsity=0.5, prunings=2, steps=4, **SHORT).run(graph, context)
    left = sorted(p.name for p in (tmp_path / "unfinished").iterdir())
    assert left == ["gradual"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prunings": 0}, "prunings from 1 to 1000, found 0"),
        ({"start": 0.6, "end": 0.5}, "0 <= start <= end <= 1, found 0.6 and 0.5"),
        ({"end": 1.5}, "0 <= start <= end <= 1, found 0 and 1.5"),
        ({"sparsity": 0.5, "first": 0.6}, "first between 0 and the sparsity 0.5, found 0.6"),
        ({"sparsity": 1.5}, "sparsity between 0 and 1, found 1.5"),
        ({"rewind": "each", "rewinds": (0.5,)}, "rewind or rewinds, found both"),
        ({"rewind": "never"}, "rewind each or last or none, found 'never'"),
        ({"towards": "teacher"}, "towards trained or dense, found 'teacher'"),
        ({"steps": 3, "prunings": 4}, "steps of at least 4, one for each stretch"),
        ({"nm": "2of4"}, "prunings=1 beside nm=2of4"),
        ({"repair": "sum", "method": "magnitude"}, "method=fisher for repair=sum"),
        ({"learning_rate": 0.0}, "gradual: expected learning_rate above 0"),
        ({"budget": "5"}, "gradual: budget: expected a time"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        Gradual(**options)


def test_a_group_that_does_not_divide_is_refused_before_any_work(tiny_graph):
    with pytest.raises(UsageError, match="expected block=5 to divide"):
        Gradual(sparsity=0.5, block=5).requires(tiny_graph("bert", "sequence"))


def test_a_pass_that_lost_its_zeros_is_found_out(start):
    graph, context = start()
    gradual = Gradual(sparsity=0.5, prunings=1, steps=1, **SHORT)
    result = gradual.run(graph, context)
    site = prunable_sites(result.graph)[0][0]
    site.set_weight(np.ones(site.shape, np.float32))
    with pytest.raises(GraphError, match=f"site '{site.name}'"):
        gradual.ensures(PassResult(result.graph, True, result.report))


def test_text_form():
    text = "gradual:steps=10:sparsity=0.9:prunings=7:first=0.7:rewind=each:repair=sum"
    (gradual,) = passes_from_text(text)
    assert gradual == Gradual(
        steps=10, sparsity=0.9, prunings=7, first=0.7, rewind="each", repair="sum"
    )
    assert passes_from_text(str(gradual)) == [gradual]
    assert gradual.uses_teacher
    assert gradual.needs_data
    assert gradual.reads_all_data
    assert not dataclasses.replace(gradual, hardness=0.0).uses_teacher


def test_layers_are_dropped_before_it_and_the_teacher_keeps_them(start):
    graph, context = start()
    manager = PassManager(
        "drop-layers:keep=2,gradual:sparsity=0.5:prunings=2:start=0.5:end=0.75:steps=4:hidden=1.0:"
        "samples=12:repair_samples=16:batch_size=6"
    )
    compressed = manager.run(graph, data=context.data, task=context.task)
    assert len(prunable_sites(compressed)[0]) < len(prunable_sites(graph)[0])
    assert manager.records[-1]["report"]["training_steps"] == 4
