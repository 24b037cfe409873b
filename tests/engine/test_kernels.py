"""The C++ tests of the kernels and of matching and lowering, built and run through CTest.

The build is kept in build/engine-tests: the next run compiles only what changed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _tool(name: str) -> str | None:
    return shutil.which(name, path=f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}")


def _run(*command: str | Path) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    return done.stdout


def test_ctest(has_compiler: bool) -> None:
    if not has_compiler:
        pytest.skip("no C++ compiler on this machine")
    cmake, ctest, ninja = _tool("cmake"), _tool("ctest"), _tool("ninja")
    assert cmake is not None
    assert ctest is not None
    build = ROOT / "build" / "engine-tests"
    generator = [] if ninja is None else ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    source = ["-S", ROOT / "backends" / "engine", "-B", build]
    _run(cmake, *source, *generator, "-DOBERT_ENGINE_TESTS=ON")
    _run(cmake, "--build", build, "--parallel", "2")
    demands = ("--output-on-failure", "--no-tests=error")
    shown = _run(ctest, "--test-dir", build, "--parallel", "2", *demands)
    assert "100% tests passed" in shown
