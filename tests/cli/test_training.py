"""Training through the command line: --teacher, --resume after a kill, what is refused."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from obert_compiler.cli import main

Obertc = Any
TinyFolder = Callable[[str, str], Path]
REVIEWS = Path(__file__).parents[2] / "examples" / "data" / "reviews.jsonl"
KILLS = int(os.environ.get("OBERT_KILLS", "1"))
"""How many random points the kill test tries; 20 and more before a release."""

SPEC = (
    "prune:sparsity=0.5:method=magnitude,"
    "finetune:steps=60:batch_size=8:learning_rate=0.001:checkpoint=3steps"
)


def _arguments(model: Path, out: Path, *more: str) -> list[str]:
    return [
        *("compile", str(model), "-o", str(out), "--passes", SPEC, "--data", str(REVIEWS)),
        *("--samples", "64", "--seq-len", "32", "--no-latency", *more),
    ]


@pytest.fixture(scope="module")
def processes() -> Any:
    """Processes that can be killed, forked from one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["obert_compiler.cli", "obert_compiler.compile", "obert_compiler.passes.training.run"]
    )
    return context


def _start(processes: Any, arguments: list[str]) -> Any:
    process = processes.Process(target=main, args=(arguments,))
    process.start()
    return process


@pytest.fixture(scope="module")
def whole(emitted: Path, processes: Any, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """model.onnx of the run that was not killed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    _start(processes, _arguments(emitted / "model.onnx", out)).join()
    return (out / "model.onnx").read_bytes()


def _kill_at(process: Any, folder: Path, step: int, delay: float) -> None:
    """Kill once a checkpoint of ``step`` or later is there, and ``delay`` seconds more."""
    while process.is_alive():
        steps = [int(p.name.partition("-")[2]) for p in folder.glob("checkpoint-*")]
        if steps and max(steps) >= step:
            time.sleep(delay)
            process.kill()
            break
        time.sleep(0.001)
    process.join()


@pytest.mark.parametrize("kill", range(KILLS))
def test_a_killed_run_goes_on_and_ends_bit_equal(
    emitted: Path, processes: Any, tmp_path: Path, whole: bytes, kill: int
) -> None:
    rng = random.Random(kill)
    out = tmp_path / "out"
    arguments = _arguments(emitted / "model.onnx", out)  # trains without transformers' model
    process = _start(processes, arguments)
    folder = tmp_path / ".out.obertc" / "unfinished" / "finetune"
    _kill_at(process, folder, rng.randint(1, 45), rng.uniform(0, 0.05))
    assert process.exitcode == -signal.SIGKILL
    assert not out.exists()
    resumed = _start(processes, [*arguments, "--resume"])
    resumed.join()
    assert (out / "model.onnx").read_bytes() == whole
    notes = json.loads((out / "report.json").read_text())["notes"]
    assert any("finetune: goes on from step" in note for note in notes)
    assert not (tmp_path / ".out.obertc").exists()


def test_a_teacher_by_name_and_the_curve_in_the_report(
    obertc: Obertc, tiny_folder: TinyFolder, tmp_path: Path
) -> None:
    model, out = tiny_folder("bert", "sequence"), tmp_path / "out"
    ran = obertc(
        *("compile", model, "-o", out, "--passes", "finetune:steps=4:batch_size=8"),
        *("--data", REVIEWS, "--samples", "32", "--teacher", tiny_folder("electra", "sequence")),
        *("--eval-data", REVIEWS, "--no-latency"),
    )
    assert ran.code == 0, ran.err
    report = json.loads((out / "report.json").read_text())
    (entry,) = report["passes"]
    assert entry["report"]["teacher"].startswith(str(tiny_folder("electra", "sequence")))
    assert [p["step"] for p in entry["report"]["curve"] if "loss" in p] == [1, 2, 3, 4]
    assert "obertc: finetune: epoch 2.00, step 4: accuracy" in ran.err
    assert 'class="curve' in (out / "report.html").read_text()


def test_a_teacher_that_does_not_fit(
    obertc: Obertc, tiny_folder: TinyFolder, tmp_path: Path
) -> None:
    ran = obertc(
        *("compile", tiny_folder("bert", "sequence"), "-o", tmp_path / "out"),
        *("--passes", "finetune", "--data", REVIEWS),
        *("--teacher", tiny_folder("roberta", "sequence")),
    )
    assert "expected the vocabulary of the model" in ran.error()
    assert ran.code == 1


def test_a_teacher_that_nothing_learns_from(
    obertc: Obertc, tiny_folder: TinyFolder, tmp_path: Path
) -> None:
    model = tiny_folder("bert", "sequence")
    for passes in ("quant", "finetune:hardness=0"):
        ran = obertc(
            *("compile", model, "-o", tmp_path / "out", "--passes", passes),
            *("--data", REVIEWS, "--teacher", model),
        )
        assert "expected a pass that learns from it, such as finetune, found none" in ran.error()
        assert ran.code == 2


def test_text_without_labels_and_hardness_below_1(
    obertc: Obertc, tiny_folder: TinyFolder, tmp_path: Path
) -> None:
    ran = obertc(
        *("compile", tiny_folder("bert", "sequence"), "-o", tmp_path / "out"),
        *("--passes", "finetune:hardness=0.5"),
    )
    assert "expected labelled data for hardness=0.5, found rows without a label" in ran.error()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("learning_rate=3", "expected learning_rate above 0 to 1, found 3.0"),
        ("epochs=0", "expected epochs above 0 to 10000, found 0.0"),
        ("epochs=nan", "expected epochs above 0 to 10000, found nan"),
        ("budget=never", "expected a time such as 30min, 90s or 2h, found 'never'"),
        ("log_to=tensorbord", "expected loggers of the Trainer such as tensorboard"),
    ],
)
def test_options_are_refused(
    obertc: Obertc, tiny_folder: TinyFolder, tmp_path: Path, options: str, message: str
) -> None:
    ran = obertc(
        *("compile", tiny_folder("bert", "sequence"), "-o", tmp_path / "out"),
        *("--passes", f"finetune:{options}", "--data", REVIEWS),
    )
    assert message in ran.error()
    assert ran.code == 2
