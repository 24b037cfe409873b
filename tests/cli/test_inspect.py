"""``obertc inspect``: what is there, and what each pass would do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from obert_compiler.graph import Stage

Obertc = Any


@pytest.fixture(scope="module")
def bert(tiny_graph: Callable[[str, str], Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny classifier as an ONNX file."""
    import onnx_ir as ir

    file = tmp_path_factory.mktemp("bert") / "model.onnx"
    ir.save(tiny_graph("bert", "sequence").model, file)
    return file


def test_json_of_a_classifier(obertc: Obertc, bert: Path) -> None:
    ran = obertc("inspect", bert, "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert found["stage"] == "dense"
    assert found["layers"] == 3
    inside = [site for site in found["sites"] if site["layer"] is not None]
    assert len(inside) == 18
    assert {tuple(site["shape"]) for site in inside} == {(32, 32), (64, 32), (32, 64)}
    assert all(site["scheme"] == "dense fp32" and site["bits"] == 32 for site in found["sites"])
    passes = {entry["pass"]: entry for entry in found["passes"]}
    assert passes["quant"]["runs"]
    assert "keep=N" in passes["drop-layers"]["would"]
    assert passes["prune"]["would"].startswith("run after fisher")
    skipped = {skip["subject"] for skip in passes["prune"]["skips"]}
    assert skipped == {site["name"] for site in found["sites"] if site["layer"] is None}


def test_table_says_what_does_not_match(obertc: Obertc, mlp: Path) -> None:
    ran = obertc("inspect", mlp)
    assert ran.code == 0, ran.err
    assert "first       -    16 x 8" in ran.out
    assert "not matched, and why:" in ran.out
    assert "drop-layers: not run:" in ran.out


def test_a_model_that_is_not_there(obertc: Obertc) -> None:
    ran = obertc("inspect", "nowhere.onnx")
    assert ran.code == 2
    assert "nowhere.onnx" in ran.error()


def test_a_packed_model_says_what_passes_take(
    obertc: Obertc, tiny_graph: Callable[[str, str], Any], tmp_path: Path
) -> None:
    import onnx_ir as ir

    graph = tiny_graph("bert", "sequence").copy()
    graph.advance(Stage.PACKED)
    file = tmp_path / "model.onnx"
    ir.save(graph.model, file)
    ran = obertc("inspect", file, "--json")
    assert ran.code == 0, ran.err
    passes = {entry["pass"]: entry for entry in json.loads(ran.out)["passes"]}
    assert not any(entry["runs"] for entry in passes.values())
    assert passes["prune"]["would"] == "not run: takes a dense or pruned model"
