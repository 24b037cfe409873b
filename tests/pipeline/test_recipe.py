"""Recipes read back what they write, and refuse what they do not know."""

from __future__ import annotations

from pathlib import Path

import pytest

from obert_compiler.errors import UsageError
from obert_compiler.pipeline.recipe import Recipe, read_recipe, write_recipe


def test_a_recipe_reads_back_as_written(tmp_path: Path) -> None:
    recipe = Recipe(("prune:sparsity=0.8:block=4", "quant"), model="m", samples=64, seed=3)
    write_recipe(recipe, tmp_path / "recipe.yaml")
    assert read_recipe(tmp_path / "recipe.yaml") == recipe


def test_passes_may_be_mappings(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "passes:\n"
        "- prune: {sparsity: 0.5, repair: none}\n"
        "- drop-layers: {layers: [0, 2]}\n"
        "- pack:\n"
    )
    assert read_recipe(path).passes == (
        "prune:sparsity=0.5:repair=none",
        "drop-layers:layers=0+2",
        "pack",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "expected a mapping"),
        ("passes: {a: 1}", "'passes' is expected to be a list"),
        ("passes: [[1]]", "a pass is expected as text"),
        ("speed: 1", "key 'speed' is unknown"),
        ("seed: one", "'seed' is expected to be a whole number"),
        ("task: 1", "'task' is expected to be a text"),
        ("a: [", "expected a YAML file"),
    ],
)
def test_errors_name_the_file_and_the_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message) as error:
        read_recipe(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
