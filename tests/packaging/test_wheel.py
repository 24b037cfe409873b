"""The wheel, installed into an empty environment without torch and used from another folder.

Needs a package index; `make wheel-test` runs it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import onnx_ir as ir
import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def _run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built through the sdist, so that the sdist is complete too."""
    out = tmp_path_factory.mktemp("dist")
    _run(sys.executable, "-m", "build", "--outdir", out, ROOT, cwd=out)
    (file,) = out.glob("*.whl")
    return file


HAS_COMPILER = any(
    name and shutil.which(name) for name in (os.environ.get("CXX"), "c++", "g++", "clang++")
)
LIBRARY = "obert_compiler/runtime/libobert_engine.so"
SOURCES = "backends/engine/"
"""C++ that the library is made of: in the sdist, not in the wheel."""


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and the lean core alone."""
    folder = tmp_path_factory.mktemp("lean")
    venv.create(folder, with_pip=True)
    pip = [folder / "bin" / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    _run(*pip, "-c", ROOT / "constraints.txt", wheel, cwd=folder)
    return folder


def test_wheel_holds_every_source_file(wheel: Path) -> None:
    listed = _run(
        "git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT
    ).splitlines()
    expected = {name for name in listed if name.startswith("obert_compiler/")}
    expected |= {
        f"obert_compiler/{name}"
        for name in listed
        if name.startswith(("passes/", "backends/")) and not name.startswith(SOURCES)
    }
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert found == expected | ({LIBRARY} if HAS_COMPILER else set())


def test_sdist_holds_the_engine_in_source(wheel: Path) -> None:
    listed = _run("git", "ls-files", SOURCES, cwd=ROOT).splitlines()
    (sdist,) = wheel.parent.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        found = {name.partition("/")[2] for name in archive.getnames()}
    assert set(listed) <= found


@pytest.mark.skipif(not HAS_COMPILER, reason="no C++ compiler on this machine")
def test_wheel_is_one_for_every_python_and_lean(wheel: Path) -> None:
    assert wheel.name.startswith("obert_compiler-")
    assert "-py3-none-linux_" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        assert archive.getinfo(LIBRARY).file_size < 2_000_000


@pytest.mark.skipif(not HAS_COMPILER, reason="no C++ compiler on this machine")
def test_engine_in_the_empty_environment(environment: Path, tmp_path: Path) -> None:
    obertc = environment / "bin" / "obertc"
    path = Path(_run(obertc, "engine", "--path", cwd=tmp_path).strip())
    assert path.is_relative_to(environment)
    found = json.loads(_run(obertc, "engine", "--json", cwd=tmp_path))
    assert found["path"] == str(path)
    assert found["version"] == wheel_version(environment, tmp_path)
    assert found["isa"]


def wheel_version(environment: Path, tmp_path: Path) -> str:
    """What ``obertc --version`` prints there."""
    return _run(environment / "bin" / "obertc", "--version", cwd=tmp_path).strip()


def test_without_a_compiler_it_installs_without_the_engine(
    environment: Path, tmp_path: Path
) -> None:
    """A pure wheel, a line that says so, and a reason where the engine is asked for."""
    no_compiler = os.environ | {"CXX": "/bin/false", "OBERT_REQUIRE_ENGINE": "0"}
    built = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT)],
        capture_output=True,
        text=True,
        env=no_compiler | {"SKBUILD_BUILD_DIR": str(tmp_path / "build")},
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    assert "is installed WITHOUT its engine" in built.stdout + built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    done = subprocess.run(
        [str(environment / "bin" / "python"), "-m", "obert_compiler", "engine"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 1
    assert "this installation has no libobert_engine.so" in done.stderr


def test_core_needs_no_torch(environment: Path, tmp_path: Path) -> None:
    code = "import obert_compiler, obert_compiler.runtime; print(obert_compiler.__file__)"
    origin = _run(environment / "bin" / "python", "-c", code, cwd=tmp_path).strip()
    assert Path(origin).is_relative_to(environment)
    listed = _run(environment / "bin" / "python", "-m", "pip", "list", cwd=tmp_path)
    for name in ("torch", "transformers", "datasets"):
        assert f"\n{name} " not in listed


def test_compile_and_run_in_the_empty_environment(environment: Path, tmp_path: Path) -> None:
    weights = ", ".join(f"{(i % 7 - 3) / 4}" for i in range(64))
    text = (
        '<ir_version: 10, opset_import: ["": 21]>\n'
        f"linear (float[n, 8] x) => (float[n, 8] y) <float[8, 8] w = {{{weights}}}> "
        "{ y = MatMul(x, w) }"
    )
    ir.save(ir.from_onnx_text(text), tmp_path / "linear.onnx")
    obertc = environment / "bin" / "obertc"
    spec = "prune:method=magnitude:sparsity=0.5:block=4:include=*,pack"
    out = tmp_path / "out"
    result = _run(
        obertc, "compile", "linear.onnx", "-o", out, "--passes", spec, "--json", cwd=tmp_path
    )
    (site,) = json.loads(result)["report"]["sites"]
    assert site["sparsity"] >= 0.5
    code = (
        "import sys, numpy, obert_compiler as obc; "
        "s = obc.runtime.session(sys.argv[1]); "
        "y, = s.run(None, {'x': numpy.ones((3, 8), 'float32')}); "
        "print(y.shape, 'torch' in sys.modules)"
    )
    python = environment / "bin" / "python"
    assert _run(python, "-c", code, out / "model.onnx", cwd=tmp_path).strip() == "(3, 8) False"


def test_every_pass_and_option_is_listed(environment: Path, tmp_path: Path) -> None:
    listed = _run(environment / "bin" / "obertc", "passes", "--json", cwd=tmp_path)
    assert {"fisher", "prune", "quant", "pack"} <= {entry["name"] for entry in json.loads(listed)}


def test_a_hugging_face_model_names_the_missing_extra(environment: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "bert"}')
    done = subprocess.run(
        [str(environment / "bin" / "obertc"), "inspect", "model"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "obert-compiler[compile]" in done.stderr
    assert done.stderr.count("\n") == 1
