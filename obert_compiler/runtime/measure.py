"""What a model file costs before its first prediction: bytes on disk, load time, memory."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from obert_compiler.errors import ModelError
from obert_compiler.runtime.cpu import default_threads
from obert_compiler.runtime.session import first_line, model_file

__all__ = ["LoadCost", "load_cost", "model_bytes", "peak_resident_bytes"]


@dataclass(frozen=True)
class LoadCost:
    """Cost of opening a session in a fresh process.

    Attributes:
        seconds: the shortest of the repeats.
        resident_bytes: growth of the resident set over the process before loading, the smallest.
        peak_bytes: its peak over the resident set before loading, the smallest.
    """

    seconds: float
    resident_bytes: int
    peak_bytes: int


def model_bytes(model: str | Path) -> int:
    """Bytes of the .onnx file of a folder or path and of the external data it names."""
    path = model_file(model)
    external = {
        path.parent / value.const_value.location
        for value in ir.load(path).graph.initializers.values()
        if isinstance(value.const_value, ir.ExternalTensor)
    }
    return path.stat().st_size + sum(file.stat().st_size for file in external)


def load_cost(model: str | Path, threads: int | None = None, repeats: int = 3) -> LoadCost:
    """Open ``model`` in ONNX Runtime ``repeats`` times, each in a new process.

    Raises:
        ModelError: the process failed.
    """
    path = model_file(model)
    found = []
    for _ in range(repeats):
        done = subprocess.run(
            [sys.executable, "-c", _PROBE, str(path), str(threads or default_threads())],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            last = RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1])
            raise ModelError(f"model '{path}': expected it to load, found: {first_line(last)}")
        found.append(json.loads(done.stdout))
    seconds, resident, peak = (min(values) for values in zip(*found, strict=True))
    return LoadCost(seconds, int(resident), int(peak))


def peak_resident_bytes() -> int:
    """Largest resident set of this process so far.

    Linux's own counter is read first: getrusage also counts the parent before the exec.
    """
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


_PROBE = """
import json, sys, time
import onnxruntime, psutil
from obert_compiler.runtime.measure import peak_resident_bytes
from obert_compiler.runtime.session import session
process = psutil.Process()
before, start = process.memory_info().rss, time.perf_counter()
kept = session(sys.argv[1], int(sys.argv[2]))
seconds = time.perf_counter() - start
print(json.dumps([seconds, process.memory_info().rss - before, peak_resident_bytes() - before]))
"""
