"""Running ``obertc`` in this process and in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from obert_compiler.cli import main


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str

    def error(self) -> str:
        """The error line, after checking that it is one line and stdout is empty."""
        assert self.code in {1, 2}, (self.code, self.out, self.err)
        assert self.out == ""
        (line,) = [text for text in self.err.splitlines() if "error:" in text]
        assert line.startswith("obertc: error: ")
        assert self.err.splitlines()[-1] == line
        assert "internal error" not in line
        assert "Traceback" not in self.err
        return line


Obertc = Callable[..., Ran]


@pytest.fixture
def obertc(capsys: pytest.CaptureFixture[str]) -> Obertc:
    """``obertc("passes", "--json")`` in this process."""

    def run(*arguments: str | Path) -> Ran:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Ran(code, out, err)

    return run


@pytest.fixture
def obertc_process() -> Obertc:
    """The same in a process of its own."""

    def run(*arguments: str | Path, **environment: str) -> Ran:
        done = subprocess.run(
            [sys.executable, "-m", "obert_compiler", *map(str, arguments)],
            capture_output=True,
            text=True,
            env=os.environ | environment,
            check=False,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def mlp(tmp_path: Path) -> Path:
    """A file with two Linear sites and no task: x [batch, 8] -> 16 -> Relu -> 4."""
    rng = np.random.default_rng(0)
    text = """
    <ir_version: 10, opset_import: ["": 21]>
    mlp (float[batch, 8] x) => (float[batch, 4] y)
    {
        h = MatMul(x, first)
        r = Relu(h)
        y = MatMul(r, second)
    }
    """
    model = ir.from_onnx_text(text)
    for name, shape in (("first", (8, 16)), ("second", (16, 4))):
        array = rng.standard_normal(shape).astype(np.float32)
        value = next(v for node in model.graph for v in node.inputs if v and v.name == name)
        value.const_value = ir.tensor(array, name=name)
        value.shape, value.type = ir.Shape(shape), ir.TensorType(ir.DataType.FLOAT)
        model.graph.initializers.add(value)
    file = tmp_path / "mlp.onnx"
    ir.save(model, file)
    return file


@pytest.fixture(scope="session")
def emitted(
    tiny_folder: Callable[[str, str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A tiny classifier of two labels, emitted unchanged: every test of data reads it quickly."""
    from obert_compiler import Recipe, compile_model

    folder: Path = tmp_path_factory.mktemp("emitted") / "bert"
    recipe = Recipe(model=str(tiny_folder("bert", "sequence")))
    compile_model(recipe, folder, latency=False)
    return folder
