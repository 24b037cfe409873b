"""The engine as users meet it: the command line, plain Python, C."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from obert_compiler.cli import main
from obert_compiler.runtime import engine_library, engine_use, session

EXAMPLES = Path(__file__).parents[2] / "examples"
Compiled = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def model(compiled: Compiled) -> Path:
    """A packed BERT classifier."""
    return compiled("bert", "sequence")


def _obertc(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert code == 0, err
    return out


def test_engine_command(capsys: pytest.CaptureFixture[str], tables: tuple[str, ...]) -> None:
    path = _obertc(capsys, "engine", "--path").strip()
    assert path == str(engine_library())
    found = json.loads(_obertc(capsys, "engine", "--json"))
    assert found["path"] == path
    assert found["onnxruntime"] == onnxruntime.__version__
    assert found["isa"] in tables
    assert f"isa          {found['isa']}\n" in _obertc(capsys, "engine")


def test_bench_uses_it_compares_and_names_what_is_left(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = ("--runs", "2", "--seq", "16", "--threads", "2")
    found = json.loads(_obertc(capsys, "bench", model, *size, "--json"))
    assert (found["engine"], found["against_engine"]) == ("obert", "cpu")
    assert found["against"] == found["model"]
    assert found["claims"]["claimed"] > 0
    assert found["products"] is None
    table = _obertc(capsys, "bench", model, *size)
    assert f"x the speed of {model}, cpu (medians)" in table
    assert (
        f"{found['claims']['claimed']} of {found['claims']['nodes']} nodes in the engine" in table
    )
    for left in found["claims"]["left"]:
        assert f"left to ONNX Runtime: {left['op']}" in table
        assert left["reason"] in table


def test_compile_measures_with_it_and_reports_it(
    tiny_folder: Callable[[str, str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tiny_folder("bert", "sequence"), tmp_path / "out"
    shown = _obertc(capsys, "compile", source, "-o", out, "--passes", "quant", "--samples", "16")
    assert " ms (cpu)" in shown
    assert " ms (obert)" in shown
    report = json.loads((out / "report.json").read_text())
    assert report["latency"]["before_engine"] == "cpu"
    assert report["latency"]["after_engine"] == "obert"
    assert report["engine"]["claimed"] > 0
    page = (out / "report.html").read_text()
    assert "ONNX Runtime with the engine" in page
    assert f"{report['engine']['claimed']} of {report['engine']['nodes']} nodes" in page


def test_plain_python(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The example imports nothing of this package."""
    file = EXAMPLES / "engine_python.py"
    assert "import obert_compiler" not in file.read_text(encoding="utf-8").partition('"""\n')[2]
    spec = importlib.util.spec_from_file_location("engine_python", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(str(model), str(engine_library()))
    shown = capsys.readouterr().out
    assert "providers: ObertExecutionProvider, CPUExecutionProvider" in shown
    assert "logits" in shown


def test_a_process_that_never_imports_this_package(model: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "engine_python.py"), str(model)]
    done = subprocess.run(
        [*command, str(engine_library())], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "ObertExecutionProvider" in done.stdout
    assert done.stderr == ""


def test_c(model: Path, tmp_path: Path, has_compiler: bool) -> None:
    """The C example prints what a session of this package computes."""
    if not has_compiler:
        pytest.skip("no C compiler on this machine")
    source, program = EXAMPLES / "engine_c.c", tmp_path / "engine_c"
    flags = ["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    subprocess.run(["cc", *flags, "-o", str(program), str(source), "-ldl"], check=True)
    (runtime,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    done = subprocess.run(
        [str(program), str(runtime), str(engine_library()), str(model)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    name, *numbers = done.stdout.split()
    opened = session(model, 2)
    assert engine_use(opened).engine == "obert"
    ids = np.arange(16).reshape(2, 8)
    known = {"attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    feed = {value.name: known.get(value.name, ids) for value in opened.get_inputs()}
    assert name == opened.get_outputs()[0].name
    found = np.array(numbers, np.float32)
    np.testing.assert_allclose(found, opened.run([name], feed)[0].ravel(), atol=1e-5)


def test_a_runtime_that_opens_no_partial_claims_is_refused() -> None:
    messages: list[bytes] = []
    create = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)(
        lambda _code, message: messages.append(message) or 1
    )
    table = (ctypes.c_void_p * 1)(ctypes.cast(create, ctypes.c_void_p).value)
    get_api = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)(lambda _: ctypes.addressof(table))
    text = ctypes.create_string_buffer(b"1.23.0")
    version = ctypes.CFUNCTYPE(ctypes.c_void_p)(lambda: ctypes.addressof(text))
    base = (ctypes.c_void_p * 2)(
        *(ctypes.cast(function, ctypes.c_void_p).value for function in (get_api, version))
    )
    count = ctypes.c_size_t(1)
    library = ctypes.CDLL(str(engine_library()))
    library.CreateEpFactories.restype = ctypes.c_void_p
    status = library.CreateEpFactories(
        None, base, None, None, ctypes.c_size_t(1), ctypes.byref(count)
    )
    assert status == 1
    assert count.value == 0
    assert messages == [b"obert engine: expected ONNX Runtime 1.23.1 or newer, found an older one"]
