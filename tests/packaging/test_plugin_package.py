"""A package of its own adds a pass and a back end: installed for real, used from the command line.

docs/writing_a_pass.md shows the same files, so that its example is tested here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

ROOT = Path(__file__).parents[2]
PLUGIN = ROOT / "tests" / "plugin_package"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment with the plugin package installed in a folder of its own."""
    target = tmp_path_factory.mktemp("plugins")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-build-isolation", "--target", str(target), str(PLUGIN)]
    done = subprocess.run([*pip, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return os.environ | {"PYTHONPATH": str(target)}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A file with one Linear site."""
    text = (
        '<ir_version: 10, opset_import: ["": 21]>\n'
        "linear (float[n, 2] x) => (float[n, 2] y) <float[2, 2] w = {0.123, 0.5, 0.25, 1.0}>"
        " { y = MatMul(x, w) }"
    )
    ir.save(ir.from_onnx_text(text), tmp_path / "linear.onnx")
    return tmp_path / "linear.onnx"


def _obertc(environment: dict[str, str], *arguments: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "obert_compiler", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_lists_show_the_plugin(installed: dict[str, str]) -> None:
    passes = {entry["name"]: entry for entry in json.loads(_obertc(installed, "passes", "--json"))}
    options = {option["name"]: option for option in passes["round-weights"]["options"]}
    assert options["decimals"]["default"] == "2"
    assert options["decimals"]["doc"] == "how many decimals to keep."
    backends = json.loads(_obertc(installed, "backends", "--json"))
    assert "weights-npz" in {entry["name"] for entry in backends}


def test_compile_with_the_plugins_pass_and_back_end(
    installed: dict[str, str], model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    spec = ("--passes", "round-weights:decimals=1", "--backend", "weights-npz:half=true")
    _obertc(installed, "compile", model, "-o", out, *spec, "--no-latency")
    (weight,) = np.load(out / "weights.npz").values()
    assert weight.dtype == np.float16
    np.testing.assert_allclose(weight.T, [[0.1, 0.5], [0.2, 1.0]], atol=1e-3)
    report = json.loads((out / "report.json").read_text())
    assert report["passes"][0]["spec"] == "round-weights:decimals=1"
    assert report["passes"][0]["report"] == {"sites_rounded": 1}


def test_the_plugins_own_tests_pass(installed: dict[str, str]) -> None:
    pytest_ = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    here = ["--rootdir", str(PLUGIN), str(PLUGIN / "tests")]
    done = subprocess.run(
        [*pytest_, *here], capture_output=True, text=True, env=installed, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", ["obert_rounding/round_weights.py", "tests/test_round_weights.py"])
def test_the_document_shows_the_tested_files(file: str) -> None:
    document = (ROOT / "docs" / "writing_a_pass.md").read_text(encoding="utf-8")
    assert f"```python\n{(PLUGIN / file).read_text(encoding='utf-8').rstrip()}\n```" in document


def test_the_document_is_short() -> None:
    document = (ROOT / "docs" / "writing_a_pass.md").read_text(encoding="utf-8")
    assert len(document.splitlines()) <= 200
