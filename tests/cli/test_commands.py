"""compile, eval and bench through the command line, on tiny models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from obert_compiler.pipeline.recipe import read_recipe

Obertc = Any
REVIEWS = Path(__file__).parents[2] / "examples" / "data" / "reviews.jsonl"


@pytest.fixture(scope="module")
def compiled(emitted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny classifier pruned by second-order information, quantised and packed."""
    from obert_compiler.cli import main

    out = tmp_path_factory.mktemp("compiled") / "small"
    arguments = ["compile", str(emitted), "-o", str(out), "--data", str(REVIEWS)]
    spec = "prune:sparsity=0.5:block=4,quant,pack"
    assert main([*arguments, "--eval-data", str(REVIEWS), "--passes", spec]) == 0
    return out


def test_plain_form_needs_nothing_else(
    obertc: Obertc, emitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``obertc compile MODEL --passes prune,quant``: shipped text, sampled labels, said aloud."""
    monkeypatch.chdir(tmp_path)
    ran = obertc("compile", emitted, "--passes", "prune,quant", "--no-latency", "--samples", "32")
    assert ran.code == 0, ran.err
    assert (tmp_path / f"{emitted.name}-compressed" / "model.onnx").is_file()
    told = ran.err.splitlines()
    assert all(line.startswith("obertc: ") for line in told)
    (data,) = [line for line in told if "no data given" in line]
    assert "--data" in data
    (inserted,) = [line for line in told if "runs first" in line]
    assert "fisher" in inserted


def test_nothing_but_our_own_lines_on_stderr(
    obertc_process: Obertc, tiny_folder: Callable[[str, str], Path], tmp_path: Path
) -> None:
    """No warning, bar or note of a library while a Hugging Face model is lowered and evaluated."""
    model, out = tiny_folder("bert", "sequence"), tmp_path / "out"
    spec = ("--passes", "quant", "--data", REVIEWS, "--eval-data", REVIEWS, "--json")
    ran = obertc_process("compile", model, "-o", out, *spec)
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["folder"] == str(out)
    assert [line for line in ran.err.splitlines() if not line.startswith("obertc: ")] == []


def test_report_of_a_whole_compile(compiled: Path) -> None:
    report = json.loads((compiled / "report.json").read_text())
    assert [entry["name"] for entry in report["passes"]] == ["fisher", "prune", "quant", "pack"]
    assert [entry["inserted"] for entry in report["passes"]] == [True, False, False, False]
    assert report["metric"]["name"] == "accuracy"
    assert report["metric"]["examples"] == 12
    assert 0 <= report["metric"]["after"] <= 1
    assert report["latency"]["after_ms"]["min"] > 0
    inside = [site for site in report["sites"] if site["layer"] is not None]
    zeros = sum(site["block_sparsity"] * np.prod(site["shape"]) for site in inside)
    assert zeros / sum(np.prod(site["shape"]) for site in inside) >= 0.5
    assert all(site["bits"] == 8 for site in inside)
    assert report["bytes"]["after"] == sum(report["bytes"]["parts"].values())
    assert report["bytes"]["after"] == (compiled / "model.onnx").stat().st_size
    assert "Time by pass" in (compiled / "report.html").read_text()


def test_recipe_runs_the_compile_again(
    obertc: Obertc, compiled: Path, emitted: Path, tmp_path: Path
) -> None:
    recipe = read_recipe(compiled / "recipe.yaml")
    assert recipe.passes == ("prune:sparsity=0.5:block=4", "quant", "pack") or recipe.passes == (
        "prune:sparsity=0.5",
        "quant",
        "pack",
    )
    again = tmp_path / "again"
    ran = obertc("compile", "--recipe", compiled / "recipe.yaml", "-o", again, "--no-latency")
    assert ran.code == 0, ran.err
    assert (again / "model.onnx").read_bytes() == (compiled / "model.onnx").read_bytes()


def test_compile_json(obertc: Obertc, mlp: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = obertc("compile", mlp, "-o", out, "--passes", "none", "--no-latency", "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert found["folder"] == str(out)
    assert found["report"]["passes"] == []
    assert found["report"] == json.loads((out / "report.json").read_text())


def test_overwrite_replaces_the_whole_folder(obertc: Obertc, mlp: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "stale").write_text("old")
    spec = ("--passes", "none", "--no-latency", "--overwrite")
    assert obertc("compile", mlp, "-o", out, *spec).code == 0
    assert not (out / "stale").exists()
    assert (out / "model.onnx").is_file()


@pytest.mark.parametrize("engine", ["cpu", "torch"])
def test_eval_agrees_with_the_report(obertc: Obertc, compiled: Path, engine: str) -> None:
    ran = obertc("eval", compiled, "--data", REVIEWS, "--engine", engine, "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    report = json.loads((compiled / "report.json").read_text())
    assert found["metric"] == "accuracy"
    assert found["engine"] == engine
    assert found["examples"] == 12
    # One example of the twelve may tip over where the engines round differently.
    tolerance = 1e-9 if engine == "cpu" else 1 / 12 + 1e-9
    assert found["accuracy"] == pytest.approx(report["metric"]["after"], abs=tolerance)


def test_eval_of_a_model_that_is_not_compiled(
    obertc: Obertc, emitted: Path, tiny_folder: Callable[[str, str], Path]
) -> None:
    source = obertc("eval", tiny_folder("bert", "sequence"), "--data", REVIEWS, "--json")
    unchanged = obertc("eval", emitted, "--data", REVIEWS, "--json")
    assert source.code == unchanged.code == 0, source.err
    assert json.loads(source.out)["accuracy"] == json.loads(unchanged.out)["accuracy"]


def test_eval_table(obertc: Obertc, emitted: Path) -> None:
    ran = obertc("eval", emitted, "--data", REVIEWS, "--samples", "4")
    assert ran.code == 0, ran.err
    assert "accuracy" in ran.out
    assert "4 examples" in ran.out


def test_bench_of_two_models(obertc: Obertc, compiled: Path, emitted: Path) -> None:
    size = ("--runs", "3", "--seq", "16", "--batch", "2", "--threads", "1")
    ran = obertc("bench", compiled, "--against", emitted, *size, "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert found["ratio"] == pytest.approx(
        found["against_ms"]["median"] / found["model_ms"]["median"]
    )
    assert (found["batch"], found["sequence"], found["threads"], found["runs"]) == (2, 16, 1, 3)
    assert found["against_engine"] == "cpu"


def test_bench_in_onnx_runtime_alone(obertc: Obertc, compiled: Path, mlp: Path) -> None:
    ran = obertc("bench", compiled, "--engine", "cpu", "--runs", "1", "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert found["products"]["integer"] > 0
    assert found["against"] is None
    assert found["claims"] is None
    ran = obertc("bench", mlp, "--engine", "cpu", "--runs", "3")
    assert ran.code == 0, ran.err
    assert "median" in ran.out
    assert "0 products in integers, 2 in float" in ran.out


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("eval", "{emitted}", "--data", "{reviews}", "--engine", "abacus"), 2, "'abacus'"),
        (("eval", "{mlp}", "--data", "{reviews}"), 2, "--task"),
        (("bench", "{emitted}", "--engine", "abacus"), 2, "'abacus'"),
        (("bench", "{emitted}", "--runs", "0"), 2, "runs"),
        (("bench", "{emitted}", "--threads", "0"), 2, "threads"),
        (("bench", "nowhere.onnx"), 2, "nowhere.onnx"),
        (("bench", "{emitted}", "--seq", "100000"), 1, ""),
    ],
)
def test_misuse(
    obertc: Obertc, emitted: Path, mlp: Path, arguments: tuple[str, ...], code: int, text: str
) -> None:
    filled = [a.format(emitted=emitted, mlp=mlp, reviews=REVIEWS) for a in arguments]
    ran = obertc(*filled)
    assert text in ran.error()
    assert ran.code == code
