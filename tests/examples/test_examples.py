"""Every example runs, on tiny models with random weights."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from obert_compiler import compile_model
from obert_compiler.passes.drop_layers import DropLayers
from obert_compiler.passes.finetune import Finetune
from obert_compiler.passes.gradual import Gradual
from obert_compiler.passes.qat import QuantizationAwareTraining
from obert_compiler.pipeline.contract import Pass
from obert_compiler.pipeline.recipe import read_recipe
from obert_compiler.pipeline.registry import passes_from_text

EXAMPLES = Path(__file__).parents[2] / "examples"
TinyFolder = Callable[[str, str], Path]


def _main(name: str) -> Callable[..., None]:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    main: Callable[..., None] = module.main
    return main


@pytest.mark.parametrize(
    ("name", "head", "data", "printed"),
    [
        ("text_classification", "sequence", "reviews.jsonl", "label "),
        ("token_classification", "token", "entities.jsonl", "[CLS] "),
        ("question_answering", "qa", "questions.jsonl", "answer:"),
        ("feature_extraction", "embedding", "pairs.jsonl", "[[1."),
        ("fill_mask", "mlm", "reviews.jsonl", "word: "),
    ],
)
def test_task(
    name: str,
    head: str,
    data: str,
    printed: str,
    tiny_folder: TinyFolder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    _main(name)(str(tiny_folder("bert", head)), str(EXAMPLES / "data" / data), str(out))
    shown = capsys.readouterr().out
    assert "bytes on disk" in shown
    assert "examples)" in shown
    assert printed in shown
    assert {"model.onnx", "config.json", "recipe.yaml", "report.json", "report.html"} <= {
        file.name for file in out.iterdir()
    }


def test_huggingface_front_end(
    tiny_folder: TinyFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _main("front_end_huggingface")(str(tiny_folder("bert", "sequence")), str(tmp_path / "out"))
    shown = capsys.readouterr().out
    assert "prune:" in shown
    assert (tmp_path / "out" / "model.onnx").exists()


def test_torch_module_front_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _main("front_end_torch_module")(str(tmp_path / "out"))
    correlation = float(capsys.readouterr().out.split(":")[1])
    assert 0.5 < correlation < 1.0


def test_onnx_file_front_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((64, 64)).astype(np.float32)
    text = ", ".join(f"{value:.4f}" for value in weight.ravel())
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["": 21]>\n'
        f"one (float[n, 64] x) => (float[n, 64] y) <float[64, 64] w = {{{text}}}>"
        " { y = MatMul(x, w) }"
    )
    ir.save(model, tmp_path / "one.onnx")
    np.savez(tmp_path / "arrays.npz", x=rng.standard_normal((32, 64)).astype(np.float32))
    out = tmp_path / "out"
    _main("front_end_onnx_file")(str(tmp_path / "one.onnx"), str(tmp_path / "arrays.npz"), str(out))
    assert "x smaller" in capsys.readouterr().out
    assert (out / "model.onnx").exists()


def test_from_fine_tuned_to_10x(
    tiny_folder: TinyFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = str(tiny_folder("bert", "sequence")), str(EXAMPLES / "data" / "reviews.jsonl")
    training = "steps=3:batch_size=4"
    _main("from_fine_tuned_to_10x")(model, data, data, str(tmp_path / "out"), training, training)
    shown = capsys.readouterr().out
    assert shown.count("accuracy") == 2
    for name, passes in (("as-it-is", ["quant"]), ("recovered", ["finetune", "qat"])):
        report = json.loads((tmp_path / "out" / name / "report.json").read_text(encoding="utf-8"))
        assert (tmp_path / "out" / name / "model.onnx").exists()
        names = [p["name"] for p in report["passes"] if not p["inserted"]]
        assert names == ["prune", *passes, "pack"]


@pytest.mark.parametrize(
    ("file", "head", "data"),
    [
        ("recover", "sequence", "reviews.jsonl"),
        ("recover_gradually", "embedding", "pairs.jsonl"),
        ("half_the_layers", "token", "entities.jsonl"),
        ("obert_10_epochs", "qa", "questions.jsonl"),
        ("obert_30_epochs", "sequence", "reviews.jsonl"),
        ("upstream", "mlm", "reviews.jsonl"),
        ("transfer", "sequence", "reviews.jsonl"),
    ],
)
def test_recipe_that_trains_runs_in_a_short_form(
    file: str, head: str, data: str, tiny_folder: TinyFolder, tmp_path: Path
) -> None:
    recipe = read_recipe(EXAMPLES / "recipes" / f"{file}.yaml")
    passes = [p for text in recipe.passes for p in passes_from_text(text)]
    short = [_shortened(p) for p in passes]
    recipe = dataclasses.replace(
        recipe,
        model=str(tiny_folder("bert", head)),
        data=str(EXAMPLES / "data" / data),
        passes=tuple(map(str, short)),
    )
    result = compile_model(recipe, tmp_path / "out", latency=False)
    ran = [p["name"] for p in result.report["passes"] if not p["inserted"]]
    assert ran == [p.name for p in passes]


def _shortened(p: Pass) -> Pass:
    """The same pass with a few steps and examples, and layers that a model of three has."""
    if isinstance(p, Gradual):
        steps = sum(part.share > 0 for part in p.parts)
        few = {"steps": steps, "epochs": None, "budget": None}
        # The published damping is for the gradients of a trained model.
        damping = None if p.absolute_damping is None else 1e-3
        few |= {"batch_size": 4, "samples": 8, "repair_samples": 8, "absolute_damping": damping}
        return dataclasses.replace(p, **few)
    if isinstance(p, Finetune | QuantizationAwareTraining):
        return dataclasses.replace(p, steps=2, epochs=None, budget=None, batch_size=4)
    if isinstance(p, DropLayers):
        return dataclasses.replace(p, keep=2)
    return p


@pytest.mark.parametrize(
    "file", sorted((EXAMPLES / "recipes").glob("*.yaml")), ids=lambda f: f.stem
)
def test_recipe_is_valid(file: Path) -> None:
    recipe = read_recipe(file)
    passes = [p for text in recipe.passes for p in passes_from_text(text)]
    assert passes_from_text(",".join(map(str, passes))) == passes
