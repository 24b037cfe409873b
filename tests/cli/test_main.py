"""What every command shares: exit codes, one-line errors, quiet output."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from obert_compiler.cli import engine as command
from obert_compiler.cli.parser import COMMANDS
from obert_compiler.errors import FailureError, UsageError

Obertc = Any


def _raising(error: BaseException) -> Callable[[argparse.Namespace, object], int]:
    def run(options: argparse.Namespace, console: object) -> int:
        print("a library that prints")
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (UsageError("option 'x': expected y"), 2, "option 'x': expected y"),
        (FailureError("two\n  lines"), 1, "two lines"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 1, "out of memory"),
        (OSError(28, "No space left on device", "out/x"), 1, "'out/x': No space left on device"),
        (ModuleNotFoundError("no", name="torch"), 2, "pip install 'obert-compiler[compile]'"),
        (ModuleNotFoundError("no", name="nonsense"), 1, "internal error, ModuleNotFoundError"),
        (ZeroDivisionError("by\nzero"), 1, "internal error, ZeroDivisionError: by zero; run again"),
    ],
)
def test_every_error_is_one_line(
    obertc: Obertc,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    text: str,
) -> None:
    monkeypatch.setattr(command, "run", _raising(error))
    ran = obertc("engine", "--json")
    assert ran.code == code
    assert ran.out == ""
    printed, line = ran.err.splitlines()
    assert printed == "a library that prints"
    assert line.startswith("obertc: error: ")
    assert text in line


def test_debug_shows_the_traceback(obertc: Obertc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "run", _raising(FailureError("broken")))
    ran = obertc("engine", "--debug")
    assert "Traceback" in ran.err
    assert ran.err.splitlines()[-1] == "obertc: error: broken"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["bench"], "the following arguments are required: OUT"),
        (["eval", "m"], "the following arguments are required: --data"),
        (["passes", "--nonsense"], "unrecognized arguments: --nonsense"),
        (["compile", "m", "--seed", "x"], "argument --seed: invalid int value: 'x'"),
        (["compile", "m", "--pass", "quant"], "unrecognized arguments: --pass"),
    ],
)
def test_misuse_is_one_line_and_code_2(obertc: Obertc, arguments: list[str], text: str) -> None:
    ran = obertc(*arguments)
    assert ran.code == 2
    assert text in ran.error()
    assert "--help'" in ran.err


def test_engine_that_is_not_there(obertc: Obertc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("obert_compiler.runtime.provider.engine_library", lambda: None)
    ran = obertc("engine", "--path")
    assert ran.code == 1
    assert "found none: this installation has no libobert_engine.so" in ran.error()
    assert "install g++" in ran.error()


@pytest.mark.parametrize("name", [module.NAME for module in COMMANDS])
def test_every_command_has_help_and_json(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    from obert_compiler.cli import main

    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr()
    assert "--json" in shown.out
    assert "--debug" in shown.out
    assert shown.err == ""


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    import obert_compiler
    from obert_compiler.cli import main

    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.strip() == obert_compiler.__version__


def test_json_is_all_there_is_on_stdout(obertc_process: Obertc) -> None:
    ran = obertc_process("passes", "--json")
    assert ran.code == 0
    assert ran.err == ""
    names = [entry["name"] for entry in json.loads(ran.out)]
    assert names == sorted(names)
    assert {"fisher", "prune", "quant", "pack", "drop-layers"} <= set(names)


def test_lists_name_every_option(obertc: Obertc) -> None:
    ran = obertc("passes")
    assert ran.code == 0
    for text in ("prune: ", "sparsity=", "block=", "(number)"):
        assert text in ran.out
    assert "onnx: " in obertc("backends").out


def test_a_reader_that_goes_away_is_no_error() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "obert_compiler", "passes"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 141
