"""Every registered pass, back end and task: key, name, text form."""

from __future__ import annotations

import dataclasses
import tomllib
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest

from obert_compiler.errors import ArtefactError
from obert_compiler.pipeline import registry
from obert_compiler.pipeline.contract import Backend, Pass
from obert_compiler.pipeline.registry import BACKENDS, PASSES, TASKS, load, passes_from_text

ROOT = Path(__file__).parents[2]
OURS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
    "entry-points"
]


@pytest.mark.parametrize("name", sorted(OURS[PASSES]))
def test_pass(name: str) -> None:
    kind = load(PASSES, name)
    assert issubclass(kind, Pass)
    assert kind.name == name
    assert kind.summary
    assert dataclasses.is_dataclass(kind)
    assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", sorted(OURS[BACKENDS]))
def test_backend(name: str) -> None:
    kind = load(BACKENDS, name)
    assert issubclass(kind, Backend)
    assert kind.name == name
    assert kind.summary


@pytest.mark.parametrize("name", sorted(OURS[TASKS]))
def test_task(name: str) -> None:
    assert load(TASKS, name).name == name


@pytest.mark.parametrize(
    "text",
    [
        "prune:sparsity=0.9:block=4",
        "prune:method=magnitude:sparsity=0.5",
        "quant",
        "pack",
        "fisher",
        "drop-layers:keep=3",
        "prune:sparsity=0.8,quant,pack",
    ],
)
def test_text_of_a_pass_parses_back(text: str) -> None:
    passes = passes_from_text(text)
    assert passes_from_text(",".join(map(str, passes))) == passes


def test_every_option_of_every_pass_is_documented() -> None:
    from obert_compiler.cli.options import entries

    for group in (PASSES, BACKENDS):
        for entry in entries(group):
            for option in entry.options:
                assert option.doc, f"{entry.name}: option {option.name} has no text"


def test_installed_entry_points_are_those_of_pyproject() -> None:
    for group in (PASSES, BACKENDS, TASKS):
        installed = {e.name: e.value for e in entry_points(group=group)}
        assert OURS[group].items() <= installed.items()


@pytest.mark.parametrize("value", ["no_such_package.gone:Gone", "obert_compiler.errors:Gone"])
def test_a_pass_that_does_not_import_is_named(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    entry = EntryPoint(name="gone", value=value, group=PASSES)
    monkeypatch.setattr(registry, "_entries", lambda group: {"gone": entry})
    with pytest.raises(ArtefactError, match=r"pass 'gone': expected .* to import"):
        load(PASSES, "gone")
