"""The runner: plans, stages, records, checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from obert_compiler.errors import ArtefactError, UsageError
from obert_compiler.graph import Stage, find_linear_sites
from obert_compiler.pipeline import registry
from obert_compiler.pipeline.checkpoint import Checkpoints
from obert_compiler.pipeline.contract import SilentProgress
from obert_compiler.pipeline.manager import PassManager


def weights(graph: object) -> dict[str, np.ndarray]:
    return {site.name: site.weight() for site in find_linear_sites(graph)}  # type: ignore[arg-type]


def test_the_callers_graph_is_left_alone(toy: ModuleType) -> None:
    graph = toy.perceptron()
    before = weights(graph)
    after = weights(PassManager([toy.Scale(factor=2.0)]).run(graph))
    for name, weight in before.items():
        np.testing.assert_array_equal(weights(graph)[name], weight)
        np.testing.assert_array_equal(after[name], weight * 2)


def test_prerequisites_are_inserted_aloud_and_once(toy: ModuleType) -> None:
    progress = SilentProgress()
    manager = PassManager([toy.Freeze()])
    graph = manager.run(toy.perceptron(), progress=progress)
    assert [r["name"] for r in manager.records] == ["scale", "freeze"]
    assert manager.records[0]["inserted"]
    assert progress.lines == ["'scale:factor=3.0' runs first, because 'freeze' needs it"]
    assert graph.stage is Stage.PRUNED
    manager = PassManager([toy.Scale(), toy.Freeze()])
    manager.run(toy.perceptron())
    assert [r["inserted"] for r in manager.records] == [False, False]


def test_records_hold_time_memory_and_skips(toy: ModuleType) -> None:
    manager = PassManager([toy.Scale(sites=("first",))])
    manager.run(toy.perceptron())
    (record,) = manager.records
    assert record["spec"] == "scale:sites=first"
    assert record["seconds"] >= 0
    assert record["peak_memory_bytes"] > 1_000_000
    assert record["skips"] == [{"subject": "second", "reason": "not asked for"}]


def test_wrong_order_is_refused_before_any_pass_runs(toy: ModuleType) -> None:
    manager = PassManager([toy.Scale(), toy.Freeze(), toy.Freeze()])
    with pytest.raises(UsageError, match="found one that is pruned by 'freeze'; 'freeze' stands"):
        manager.run(toy.perceptron())
    assert manager.records == []


def test_resume_gives_the_same_graph(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "passes_from_text", lambda text: _toy_passes(toy, text))
    monkeypatch.setattr(
        "obert_compiler.pipeline.manager.passes_from_text", lambda text: _toy_passes(toy, text)
    )
    passes = [toy.Scale(factor=2.0), toy.Freeze()]
    whole = PassManager(passes).run(toy.perceptron())

    checkpoints = Checkpoints(tmp_path, {"model": "toy"})
    original = toy.Freeze.run

    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(toy.Freeze, "run", killed)
    with pytest.raises(KeyboardInterrupt):
        PassManager(passes).run(toy.perceptron(), checkpoints=checkpoints)
    monkeypatch.setattr(toy.Freeze, "run", original)

    resumed = Checkpoints(tmp_path, {"model": "toy"})
    graph = resumed.load()
    assert graph is not None
    manager = PassManager(passes)
    finished = manager.run(graph, checkpoints=resumed)
    assert [r["name"] for r in manager.records] == ["scale", "freeze"]
    assert finished.stage is Stage.PRUNED
    for name, weight in weights(whole).items():
        np.testing.assert_array_equal(weights(finished)[name], weight)


def _toy_passes(toy: ModuleType, text: str) -> list[object]:
    name, _, options = text.partition(":")
    pairs = dict(option.split("=") for option in options.split(":") if option)
    return [{"scale": toy.Scale, "freeze": toy.Freeze}[name].from_options(pairs)]


def test_a_checkpoint_of_another_request_or_version_is_refused(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Checkpoints(tmp_path, {"seed": 0}).save(toy.perceptron())
    with pytest.raises(ArtefactError, match=r"expected the same seed as now \(1\), found 0"):
        Checkpoints(tmp_path, {"seed": 1}).load()
    monkeypatch.setattr("obert_compiler.__version__", "9.9.9")
    with pytest.raises(ArtefactError, match=r"expected one of version 9\.9\.9, found one of"):
        Checkpoints(tmp_path, {"seed": 0}).load()


def test_a_damaged_checkpoint_is_refused(toy: ModuleType, tmp_path: Path) -> None:
    Checkpoints(tmp_path, {}).save(toy.perceptron())
    (tmp_path / "graph-0" / "model.onnx").unlink()
    with pytest.raises(ArtefactError, match="found a damaged one"):
        Checkpoints(tmp_path, {}).load()


def test_a_graph_from_a_checkpoint_does_not_need_its_file(toy: ModuleType, tmp_path: Path) -> None:
    graph = toy.perceptron()
    Checkpoints(tmp_path, {}).save(graph)
    loaded = Checkpoints(tmp_path, {}, writes=False).load()
    assert loaded is not None
    shutil.rmtree(tmp_path / "graph-0")
    for name, weight in weights(graph).items():
        np.testing.assert_array_equal(weights(loaded)[name], weight)


def test_a_process_that_follows_writes_nothing(toy: ModuleType, tmp_path: Path) -> None:
    follower = Checkpoints(tmp_path / "work", {}, writes=False)
    follower.save(toy.perceptron(), {"name": "scale"})
    follower.note("metric", 1.0, toy.perceptron().source)
    assert follower.records == [{"name": "scale"}]
    assert follower.notes == {"metric": 1.0}
    assert not (tmp_path / "work").exists()
