"""Bad input: one line on stderr, exit code 2 (misuse) or 1 (failure), nothing half-written."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

Obertc = Any
MAGNITUDE = "prune:method=magnitude:include=*"


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """An output that holds an earlier result; the test fails if that changed or litter stays."""
    folder = tmp_path / "place" / "out"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_text("an earlier result")
    yield folder
    assert (folder / "model.onnx").read_text() == "an earlier result"
    assert [file.name for file in folder.iterdir()] == ["model.onnx"]
    litter = [f.name for f in folder.parent.iterdir() if "partial" in f.name or "probe" in f.name]
    assert litter == []


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--passes", "fly"], 2, "pass 'fly' is unknown: expected one of"),
        (["--passes", "quant,,pack"], 2, "found an empty item"),
        (["--passes", "prune:sparcity=0.5"], 2, "option 'sparcity' of 'prune'"),
        (["--passes", "prune:sparsity"], 2, "expected name=value"),
        (["--passes", "prune:sparsity=much"], 2, "expected a number"),
        (["--passes", "prune:method=best"], 2, "expected fisher or magnitude, found 'best'"),
        (["--passes", f"{MAGNITUDE}:sparsity=1.5"], 2, "1.5"),
        (["--passes", f"{MAGNITUDE}:sparsity=-0.1"], 2, "-0.1"),
        (["--passes", f"{MAGNITUDE}:sparsity=nan"], 2, "nan"),
        (["--passes", f"{MAGNITUDE}:block=0"], 2, "block"),
        (["--passes", f"{MAGNITUDE}:nm=4of2"], 2, "4 of 2"),
        (["--passes", f"{MAGNITUDE}:include=nowhere"], 2, "option 'include' of 'prune' is given"),
        (["--passes", "prune:method=magnitude:include=nowhere"], 2, "'nowhere'"),
        (["--backend", "paper"], 2, "back end 'paper' is unknown: expected one of"),
        (["--backend", "onnx:colour=red"], 2, "option 'colour' of 'onnx'"),
        (["--task", "guessing"], 2, "'guessing'"),
        (["--recipe", "nowhere.yaml"], 2, "nowhere.yaml"),
        (["--passes", "quant"], 2, "--data"),
        (["--passes", f"quant,{MAGNITUDE}", "--data", "arrays.npz"], 2, "prune"),
        (["--passes", "quant,quant", "--data", "arrays.npz"], 2, "quant"),
        (["--passes", f"{MAGNITUDE},pack,{MAGNITUDE}"], 2, "prune"),
    ],
)
def test_wrong_options(
    obertc: Obertc, mlp: Path, out: Path, arguments: list[str], code: int, text: str
) -> None:
    ran = obertc("compile", mlp, "-o", out, "--overwrite", "--no-latency", *arguments)
    assert text in ran.error()
    assert ran.code == code


def test_block_that_does_not_divide(obertc: Obertc, mlp: Path, out: Path) -> None:
    spec = "prune:method=magnitude:sparsity=0.5:block=16:include=*"
    ran = obertc("compile", mlp, "-o", out, "--overwrite", "--passes", spec)
    assert "block=16 to divide the 8 inputs of site 'first'" in ran.error()
    assert ran.code in {1, 2}


@pytest.mark.parametrize(
    ("model", "code", "text"),
    [
        ("nowhere.onnx", 2, "nowhere.onnx"),
        ("./nowhere", 2, "nowhere"),
        ("an-organisation/no-such-model-here", 2, "no-such-model-here"),
        (".", 2, ""),
    ],
)
def test_unknown_model(
    obertc: Obertc,
    out: Path,
    model: str,
    code: int,
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    ran = obertc("compile", model, "-o", out, "--overwrite", "--passes", "none")
    assert text in ran.error()
    assert ran.code == code


def _truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:200])


def _not_onnx(file: Path) -> None:
    file.write_text("once upon a time")


def _empty(file: Path) -> None:
    file.write_bytes(b"")


def _without_external_data(file: Path) -> None:
    model = onnx.load(file)
    onnx.save(model, file, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (file.parent / "weights.bin").unlink()


def _short_external_data(file: Path) -> None:
    model = onnx.load(file)
    onnx.save(model, file, save_as_external_data=True, location="weights.bin", size_threshold=0)
    weights = file.parent / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:100])


def _new_opset(file: Path) -> None:
    model = onnx.load(file)
    model.opset_import[0].version = 99
    onnx.save(model, file)


def _control_flow(file: Path) -> None:
    model = onnx.load(file)
    branch = helper.make_graph(
        [helper.make_node("Identity", ["r"], ["b"])],
        "branch",
        [],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, ["batch", 16])],
    )
    model.graph.input.append(helper.make_tensor_value_info("yes", TensorProto.BOOL, []))
    model.graph.node.insert(
        2,
        helper.make_node(
            "If", ["yes"], ["chosen"], name="fork", then_branch=branch, else_branch=branch
        ),
    )
    model.graph.node[3].input[0] = "chosen"
    onnx.save(model, file)


def _foreign_op(file: Path) -> None:
    model = onnx.load(file)
    model.graph.node[1].op_type = "SparkleRelu"
    model.graph.node[1].domain = "com.example"
    model.graph.node[1].name = "sparkle"
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    onnx.save(model, file)


def _weight(file: Path, value: float) -> None:
    model = ir.load(file)
    tensor = model.graph.initializers["first"].const_value
    assert tensor is not None
    array = tensor.numpy().copy()
    array[3, 5] = value
    model.graph.initializers["first"].const_value = ir.tensor(array, name="first")
    ir.save(model, file)


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (_truncated, "mlp.onnx"),
        (_not_onnx, "mlp.onnx"),
        (_empty, "mlp.onnx"),
        (_without_external_data, "weights.bin"),
        (_short_external_data, "weights.bin"),
        (_new_opset, "99"),
        (_control_flow, "If"),
        (_foreign_op, "SparkleRelu"),
        (lambda file: _weight(file, np.nan), "first"),
        (lambda file: _weight(file, np.inf), "first"),
    ],
    ids=[
        "truncated",
        "not ONNX",
        "empty",
        "no external data",
        "short external data",
        "opset too new",
        "control flow",
        "foreign op",
        "NaN weight",
        "infinite weight",
    ],
)
def test_bad_onnx_file(
    obertc: Obertc, mlp: Path, out: Path, damage: Callable[[Path], None], text: str
) -> None:
    damage(mlp)
    spec = f"{MAGNITUDE},pack"
    ran = obertc("compile", mlp, "-o", out, "--overwrite", "--no-latency", "--passes", spec)
    assert text in ran.error()
    assert ran.code == 1


def test_model_without_linear_site(obertc: Obertc, out: Path, tmp_path: Path) -> None:
    text = '<ir_version: 10, opset_import: ["": 21]> g (float[n] x) => (float[n] y) {y = Relu(x)}'
    ir.save(ir.from_onnx_text(text), tmp_path / "relu.onnx")
    for spec in (MAGNITUDE, "drop-layers:keep=1"):
        ran = obertc("compile", tmp_path / "relu.onnx", "-o", out, "--overwrite", "--passes", spec)
        assert ran.code in {1, 2}, spec
        ran.error()


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


ROWS = b'{"text": "a fine film", "label": 1}\n{"text": "a dull film", "label": 0}\n'


@pytest.mark.parametrize(
    ("name", "content", "code", "text"),
    [
        ("missing.jsonl", None, 2, "missing.jsonl"),
        ("data.docx", b"x", 2, "data.docx"),
        ("empty.jsonl", b"", 1, "empty.jsonl"),
        ("cut.jsonl.gz", gzip.compress(ROWS * 50, mtime=0)[:-20], 1, "cut.jsonl.gz"),
        ("fake.jsonl.gz", ROWS, 1, "fake.jsonl.gz"),
        ("columns.jsonl", b'{"words": "a", "label": 1}\n', 1, "words"),
        ("range.jsonl", ROWS + b'{"text": "b", "label": 7}\n', 1, "row 3"),
        ("name.jsonl", ROWS + b'{"text": "b", "label": "MAYBE"}\n', 1, "MAYBE"),
        ("latin.jsonl", ROWS + '{"text": "café", "label": 1}\n'.encode("latin-1"), 1, "UTF-8"),
        ("broken.jsonl", ROWS + b'{"text": \n', 1, "broken.jsonl"),
        ("list.jsonl", b"[1, 2]\n", 1, "list.jsonl"),
        ("broken.parquet", b"PAR1 and so on", 1, "broken.parquet"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("option", ["--data", "--eval-data"])
def test_bad_data_file(
    obertc: Obertc,
    emitted: Path,
    out: Path,
    tmp_path: Path,
    option: str,
    name: str,
    content: bytes | None,
    code: int,
    text: str,
) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    ran = obertc(
        "compile",
        emitted,
        "-o",
        out,
        "--overwrite",
        "--no-latency",
        "--passes",
        "none",
        option,
        file,
    )
    assert text in ran.error()
    assert ran.code == code


def test_eval_without_labels(obertc: Obertc, emitted: Path, tmp_path: Path) -> None:
    file = _write(tmp_path / "bare.jsonl", b'{"text": "a fine film"}\n')
    ran = obertc("eval", emitted, "--data", file)
    assert "label" in ran.error()
    assert ran.code == 1


def test_gradients_that_are_not_finite(
    obertc: Obertc, emitted: Path, out: Path, tmp_path: Path
) -> None:
    """Finite weights whose products overflow: the loss is NaN, and so is every gradient."""
    import shutil

    folder = shutil.copytree(emitted, tmp_path / "huge")
    model = ir.load(folder / "model.onnx")
    (value,) = (
        v for v in model.graph.initializers.values() if v.name and "classifier.weight" in v.name
    )
    assert value.const_value is not None
    value.const_value = ir.tensor(np.full_like(value.const_value.numpy(), 3e38), name=value.name)
    ir.save(model, folder / "model.onnx")
    data = _write(tmp_path / "data.jsonl", ROWS)
    ran = obertc(
        "compile", folder, "-o", out, "--overwrite", "--no-latency", "--passes", "prune", "--data",
        data,
    )  # fmt: skip
    assert ran.code == 1
    assert "NaN" in ran.error() or "finite" in ran.error()


def test_output_exists(obertc: Obertc, mlp: Path, out: Path) -> None:
    ran = obertc("compile", mlp, "-o", out, "--passes", "none")
    assert "--overwrite" in ran.error()
    assert ran.code == 2


def test_output_is_a_file(obertc: Obertc, mlp: Path, tmp_path: Path) -> None:
    file = _write(tmp_path / "file", b"kept")
    ran = obertc("compile", mlp, "-o", file, "--passes", "none", "--overwrite")
    assert ran.code == 2
    assert "file" in ran.error()
    assert file.read_bytes() == b"kept"


@pytest.mark.parametrize("place", ["nowhere/out", "/proc/out"])
def test_output_that_cannot_be_made(
    obertc: Obertc, mlp: Path, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = obertc("compile", mlp, "-o", place, "--passes", "none")
    assert ran.code == 2
    assert place in ran.error()


def test_no_more_room_for_the_output(mlp: Path, out: Path) -> None:
    """The system refuses to write past 1500 bytes, as it does on a full disk."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500)); "
        "from obert_compiler.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    arguments = ["compile", str(mlp), "-o", str(out), "--overwrite", "--passes", "none"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--no-latency"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("obertc: error: ")
    assert "internal error" not in done.stderr


SPEC = f"{MAGNITUDE}:sparsity=0.5,pack"
KILLED = (
    "import os, signal, sys; from obert_compiler.passes.pack import Pack; "
    "Pack.run = lambda *a: os.kill(os.getpid(), signal.SIGKILL); "
    "from obert_compiler.cli import main; main(sys.argv[1:])"
)


def _kill_half_way(mlp: Path, out: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, "compile", str(mlp), "-o", str(out), "--passes", SPEC],
        capture_output=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not out.exists()


def test_killed_half_way_and_resumed(obertc: Obertc, mlp: Path, tmp_path: Path) -> None:
    out, straight = tmp_path / "out", tmp_path / "straight"
    _kill_half_way(mlp, out)
    ran = obertc("compile", mlp, "-o", out, "--passes", SPEC, "--resume", "--no-latency")
    assert ran.code == 0, ran.err
    assert "done already (checkpoint)" in ran.err
    assert obertc("compile", mlp, "-o", straight, "--passes", SPEC, "--no-latency").code == 0
    model = (out / "model.onnx").read_bytes()
    assert model == (straight / "model.onnx").read_bytes()
    assert {f.name for f in tmp_path.iterdir()} == {"mlp.onnx", "out", "straight"}


def test_a_run_that_fails_before_its_first_pass_leaves_nothing(
    obertc: Obertc, mlp: Path, tmp_path: Path
) -> None:
    for options in (["--passes", "prune:block=7"], ["--passes", "quant", "--data", "none.npz"]):
        assert obertc("compile", mlp, "-o", tmp_path / "new", *options).code == 2
        assert {f.name for f in tmp_path.iterdir()} == {"mlp.onnx"}


def test_a_checkpoint_is_not_discarded_in_silence(
    obertc: Obertc, mlp: Path, tmp_path: Path
) -> None:
    _kill_half_way(mlp, tmp_path / "out")
    ran = obertc("compile", mlp, "-o", tmp_path / "out", "--passes", SPEC, "--no-latency")
    assert ran.code == 0
    assert "discarded; --resume would go on from it" in ran.err


def test_checkpoint_of_another_version(obertc: Obertc, mlp: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    _kill_half_way(mlp, out)
    (state,) = tmp_path.glob(".out*/state.json")
    content = json.loads(state.read_text())
    state.write_text(json.dumps(content | {"obert_compiler": "0.0.1"}))
    ran = obertc("compile", mlp, "-o", out, "--passes", SPEC, "--resume")
    assert "0.0.1" in ran.error()
    assert ran.code == 1
    state.write_text(state.read_text()[:50])
    assert "damaged" in obertc("compile", mlp, "-o", out, "--passes", SPEC, "--resume").error()
    assert not out.exists()


def test_checkpoint_of_another_request(obertc: Obertc, mlp: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    _kill_half_way(mlp, out)
    ran = obertc("compile", mlp, "-o", out, "--passes", SPEC, "--seed", "7", "--resume")
    assert "seed" in ran.error()
    assert ran.code == 1


@pytest.mark.parametrize("spec", ["quant", MAGNITUDE, "prune:include=*"])
def test_compiling_what_is_compiled(
    obertc: Obertc, mlp: Path, out: Path, tmp_path: Path, spec: str
) -> None:
    """Quantising twice, and pruning what is packed, through files."""
    np.savez(tmp_path / "arrays.npz", x=np.ones((4, 8), np.float32))
    data = ("--data", tmp_path / "arrays.npz", "--no-latency")
    first = tmp_path / "first"
    passes = f"{MAGNITUDE}:sparsity=0.5,quant:min_outputs=1,pack"
    assert obertc("compile", mlp, "-o", first, "--passes", passes, *data).code == 0
    ran = obertc("compile", first, "-o", out, "--overwrite", "--passes", spec, *data)
    assert ran.code == 2
    assert "packed already" in ran.error()
