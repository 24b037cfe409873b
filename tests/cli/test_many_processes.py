"""``torchrun -m obert_compiler``: one result, one writer, and errors that name the rank."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

PASSES = "prune:sparsity=0.75:include=*:samples=50,quant:min_outputs=1,pack"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

SPOILT = """
import os, signal, sys, time
from obert_compiler.cli import main
from obert_compiler.errors import NumericsError
from obert_compiler.passes.quant import Quant

def spoilt(self, graph, context, run=Quant.run):
    if context.processes.rank == int(os.environ["RANK_TO_SPOIL"]):
        if os.environ["HOW"] == "kill":
            os.kill(os.getpid(), 9)
        raise NumericsError("site 'x': expected a number, found none")
    return run(self, graph, context)

Quant.run = spoilt
sys.exit(main(sys.argv[1:]))
"""

Ended = subprocess.CompletedProcess[str]
Launch = Callable[..., Ended]


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    """``launch("-m", "obert_compiler", ...)`` with two processes."""

    def run(*arguments: str | Path, **environment: str) -> Ended:
        return subprocess.run(
            [*TORCHRUN, *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
            check=False,
        )

    return run


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "data.npz"
    np.savez(file, x=np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32))
    return file


def _arrays(file: Path) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(file).graph.initializer}


def _check_same(found: Path, expected: Path) -> None:
    """The same integers and places; scales and biases come from sums in another order."""
    arrays, others = _arrays(expected), _arrays(found)
    assert others.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_allclose(others[name], array, rtol=1e-5, atol=1e-6, err_msg=name)


def _own_lines(ended: Ended) -> list[str]:
    return [line for line in ended.stderr.splitlines() if line.startswith("obertc: ")]


def test_two_processes_make_the_file_of_one(
    launch: Launch, obertc: Callable[..., object], mlp: Path, data: Path, tmp_path: Path
) -> None:
    options = [mlp, "--passes", PASSES, "--data", data, "--no-latency", "--json"]
    one = obertc("compile", *options, "-o", tmp_path / "one")
    two = launch("-m", "obert_compiler", "compile", *options, "-o", tmp_path / "two")
    assert two.returncode == 0, two.stderr
    assert json.loads(two.stdout)["report"]["bytes"] == json.loads(one.out)["report"]["bytes"]
    assert len(_own_lines(two)) == len(set(_own_lines(two))), two.stderr
    _check_same(tmp_path / "two/model.onnx", tmp_path / "one/model.onnx")
    assert {f.name for f in tmp_path.iterdir()} == {"mlp.onnx", "data.npz", "one", "two"}


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_killed_process_is_named_and_the_run_resumed(
    launch: Launch, obertc: Callable[..., object], mlp: Path, data: Path, tmp_path: Path, rank: int
) -> None:
    """By one process, which takes the checkpoint of two."""
    script = tmp_path / "spoilt.py"
    script.write_text(SPOILT)
    options = ["compile", mlp, "--passes", PASSES, "--data", data, "--no-latency", "-o"]
    ended = launch(script, *options, tmp_path / "out", HOW="kill", RANK_TO_SPOIL=str(rank))
    assert ended.returncode == 1
    errors = [line for line in _own_lines(ended) if "error:" in line]
    assert len(errors) == 1, ended.stderr
    assert errors[0].startswith(f"obertc: error: rank {rank} (process ")
    assert "start again with --resume" in errors[0]
    assert not (tmp_path / "out").exists()
    again = obertc(*options, tmp_path / "out", "--resume")
    assert again.code == 0, again.err
    assert "is done already (checkpoint)" in again.err
    assert obertc(*options, tmp_path / "whole").code == 0
    _check_same(tmp_path / "out/model.onnx", tmp_path / "whole/model.onnx")


def test_an_error_is_told_once_with_its_rank(
    launch: Launch, mlp: Path, data: Path, tmp_path: Path
) -> None:
    script = tmp_path / "spoilt.py"
    script.write_text(SPOILT)
    options = ["compile", mlp, "--passes", PASSES, "--data", data, "--no-latency", "-o", "out"]
    ended = launch(script, *options, HOW="raise", RANK_TO_SPOIL="1")
    message = "rank 1: site 'x': expected a number, found none"
    assert [line for line in _own_lines(ended) if "error:" in line] == [f"obertc: error: {message}"]
    # torchrun shows the same as the cause.
    assert f"traceback : {message}" in ended.stderr


def test_misuse_is_told_once(launch: Launch) -> None:
    ended = launch("-m", "obert_compiler", "compile")
    assert [line.partition("rank")[2][2:] for line in _own_lines(ended)] == [
        ": MODEL is missing: give a folder, a hub id or a .onnx file"
    ]


WAITING = """
import os, signal
from obert_compiler.backends.torch.process_group import ProcessGroup
from obert_compiler.errors import LostProcessError

group = ProcessGroup.join()
if group.rank == 1:
    signal.pause()
try:
    group.wait()
except LostProcessError as error:
    print(error)
"""


def test_a_process_that_does_not_come_is_given_up(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", WAITING],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | common | {"RANK": str(rank), "OBERTC_PROCESS_TIMEOUT": "10"},
        )
        for rank in range(2)
    ]
    try:
        told, _ = started[0].communicate(timeout=120)
    finally:
        for process in started:
            process.kill()
            process.communicate()
    assert told.startswith("rank 1 did not come within 10 s; look at its machine")


@pytest.mark.parametrize("seconds", ["0", "soon"])
def test_a_timeout_that_is_none(
    obertc: Callable[..., object], monkeypatch: pytest.MonkeyPatch, seconds: str
) -> None:
    common = {"WORLD_SIZE": "2", "RANK": "0", "OBERTC_PROCESS_TIMEOUT": seconds}
    for name, value in common.items():
        monkeypatch.setenv(name, value)
    message = f"OBERTC_PROCESS_TIMEOUT: expected seconds above 0, found '{seconds}'"
    ran = obertc("passes")
    assert ran.code == 2
    assert ran.err == f"obertc: error: {message}\n"


@pytest.mark.slow
def test_one_process_runs_what_is_not_shared(launch: Launch) -> None:
    ended = launch("-m", "obert_compiler", "passes", "--json")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)


KILLED_IN_TRAINING = """
import os, signal, sys
os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"
from obert_compiler.cli import main
from obert_compiler.passes.training.trainer import GraphTrainer

def killed(self, *args, run=GraphTrainer.training_step, **options):
    if (os.environ["RANK"], self.state.global_step) == ("1", 3):
        os.kill(os.getpid(), signal.SIGKILL)
    return run(self, *args, **options)

if "--resume" not in sys.argv:
    GraphTrainer.training_step = killed
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_training_is_that_of_one_process_and_goes_on_after_a_kill(
    launch: Launch,
    obertc: Callable[..., object],
    tiny_folder: Callable[[str, str], Path],
    tmp_path: Path,
) -> None:
    words = ["the", "film", "is", "good", "not", "a", "bad", "movie", "with", "no", "plot", "funny"]
    rng = np.random.default_rng(0)
    rows = [
        {"sentence": " ".join(rng.choice(words, rng.integers(2, 9))), "label": i % 2}
        for i in range(32)
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = ["compile", tiny_folder("bert", "sequence"), "--data", data, "--no-latency"]
    passes = "prune:steps=1,finetune:steps=6:checkpoint=2steps:batch_size="
    one = obertc(*common, "--passes", f"{passes}8", "-o", tmp_path / "one")
    assert one.code == 0, one.err
    script = tmp_path / "killed.py"
    script.write_text(KILLED_IN_TRAINING)
    options = [*common, "--passes", f"{passes}4", "-o", tmp_path / "two"]
    ended = launch(script, *options)
    (error,) = [line for line in _own_lines(ended) if "error:" in line]
    assert error.startswith("obertc: error: rank 1 (process ")
    refused = obertc(*options, "--resume")
    assert "expected the same number of processes as now (1), found 2" in refused.error()
    again = launch(script, *options, "--resume")
    assert again.returncode == 0, again.stderr
    assert any("goes on from step 2 (checkpoint)" in line for line in _own_lines(again))
    expected, found = _arrays(tmp_path / "one/model.onnx"), _arrays(tmp_path / "two/model.onnx")
    for name, array in expected.items():
        scale = max(1e-3, float(np.abs(array).max()))
        np.testing.assert_allclose(found[name], array, atol=1e-3 * scale, err_msg=name)
