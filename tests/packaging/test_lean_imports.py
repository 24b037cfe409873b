"""A server that runs a compiled model installs no torch: the core must not ask for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "datasets", "tokenizers", "openvino", "pandas", "sklearn")


@pytest.mark.parametrize(
    "module",
    [
        "obert_compiler",
        "obert_compiler.cli",
        "obert_compiler.compile",
        "obert_compiler.data",
        "obert_compiler.emission",
        "obert_compiler.errors",
        "obert_compiler.frontends",
        "obert_compiler.graph",
        "obert_compiler.pipeline",
        "obert_compiler.report",
        "obert_compiler.runtime",
        "obert_compiler.tasks",
    ],
)
def test_module_imports_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*(m for m in {HEAVY!r} if m in sys.modules))"
    assert _python(code) == ""


@pytest.mark.parametrize("module", ["obert_compiler", "obert_compiler.cli"])
def test_module_does_not_start_onnxruntime(module: str) -> None:
    assert _python(f"import sys, {module}; print('onnxruntime' in sys.modules)") == "False"


def test_help_is_light() -> None:
    code = (
        "import sys, obert_compiler.cli as c\n"
        "try: c.main(['--help'])\n"
        "except SystemExit: pass\n"
        f"print('HEAVY', *(m for m in {HEAVY!r} + ('onnx', 'scipy') if m in sys.modules))"
    )
    assert _python(code).endswith("HEAVY")


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
