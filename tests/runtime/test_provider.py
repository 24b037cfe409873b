"""Finding and registering the engine, and what happens where it cannot be used."""

from __future__ import annotations

import importlib
import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from obert_compiler.errors import FailureError, UsageError
from obert_compiler.runtime import engine_absence, engine_use, provider, session
from obert_compiler.runtime.engine import engine_reason, open_engine


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has not looked for the engine yet, in an ONNX Runtime without it."""
    monkeypatch.setattr(provider, "_registered", None)
    monkeypatch.setattr(provider, "_device", lambda: None)
    monkeypatch.delenv("OBERT_ENGINE_LIBRARY", raising=False)


@pytest.mark.usefixtures("fresh")
def test_no_library(
    model_file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The default falls back and says why, once; asking for the engine by name is an error."""
    monkeypatch.setattr(provider, "engine_library", lambda: None)
    reason = engine_absence()
    assert reason is not None
    assert "this installation has no libobert_engine.so" in reason
    module = importlib.import_module("obert_compiler.runtime.session")
    monkeypatch.setattr(module, "_said", set())
    with caplog.at_level(logging.WARNING, "obert_compiler"):
        uses = [engine_use(session(model_file)) for _ in range(2)]
    assert [use.engine for use in uses] == ["cpu", "cpu"]
    assert {use.reason for use in uses} == {reason}
    assert [record.getMessage() for record in caplog.records] == [
        f"the engine is not used: {reason}"
    ]
    assert engine_reason(open_engine(None, model_file)) == reason
    with pytest.raises(FailureError, match=r"engine: expected .* found none: this installation"):
        session(model_file, engine="obert")


@pytest.mark.usefixtures("fresh")
def test_a_runtime_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.__version__", "1.22.1")
    assert engine_absence() == (
        "ONNX Runtime 1.22.1 loads no such library, 1.23.1 is the oldest that does"
    )


@pytest.mark.usefixtures("fresh")
def test_a_library_that_does_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "libobert_engine.so"
    broken.write_bytes(b"no library")
    monkeypatch.setenv("OBERT_ENGINE_LIBRARY", str(broken))
    reason = engine_absence()
    assert reason is not None
    assert f"refuses {broken}" in reason
    assert "\n" not in reason


@pytest.mark.usefixtures("fresh")
def test_registered_once_by_many_threads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[str] = []
    device = SimpleNamespace(ep_name=provider.PROVIDER)
    monkeypatch.setattr(provider, "engine_library", lambda: tmp_path)
    monkeypatch.setattr(provider, "_device", lambda: device if calls else None)
    monkeypatch.setattr(
        "onnxruntime.register_execution_provider_library", lambda name, path: calls.append(name)
    )
    threads = [threading.Thread(target=provider.engine_device) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == [provider.PROVIDER]


def test_a_registration_of_somebody_else_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    device = SimpleNamespace(ep_name=provider.PROVIDER)
    monkeypatch.setattr(provider, "_registered", None)
    monkeypatch.setattr(provider, "_device", lambda: device)
    monkeypatch.setattr(provider, "engine_library", lambda: pytest.fail("looked for a library"))
    assert provider.engine_device() is device


def test_claims_of_several_graphs_are_added_up(tmp_path: Path) -> None:
    skip = {"value": "y", "op": "Gemm", "reason": "dense"}
    lines = [
        {"isa": "avx2", "nodes": 3, "claimed": 0, "parts": 0, "skips": []},
        {
            "isa": "avx2",
            "nodes": 10,
            "claimed": 8,
            "parts": 2,
            "skips": [skip, skip | {"value": "z"}],
        },
    ]
    report = tmp_path / "report"
    report.write_text("".join(json.dumps(line) + "\n" for line in lines))
    claims = provider.read_claims(report)
    assert claims is not None
    assert (claims.isa, claims.nodes, claims.claimed, claims.parts) == ("avx2", 13, 8, 2)
    assert claims.describe() == [
        "8 of 13 nodes in the engine, 2 parts, kernels avx2",
        "left to ONNX Runtime: Gemm 'y' and 1 more: dense",
    ]
    assert claims.to_dict()["left"] == [skip, skip | {"value": "z"}]
    report.write_text("")
    assert provider.read_claims(report) is None


def test_misuse(model_file: Path) -> None:
    with pytest.raises(UsageError, match="engine 'tpu': expected obert or cpu"):
        session(model_file, engine="tpu")
    with pytest.raises(UsageError, match="expected no providers beside it"):
        session(model_file, engine="obert", providers=["CPUExecutionProvider"])
    assert engine_use(session(model_file, providers=["CPUExecutionProvider"])).engine == "cpu"


def test_a_process_without_the_library_says_so_on_stderr(model_file: Path, tmp_path: Path) -> None:
    code = f"from obert_compiler.runtime import session; session({str(model_file)!r})"
    environment = os.environ | {"OBERT_ENGINE_LIBRARY": str(tmp_path / "nowhere.so")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    (line,) = done.stderr.splitlines()
    assert line.startswith("the engine is not used: ONNX Runtime ")
    assert "nowhere.so" in line
