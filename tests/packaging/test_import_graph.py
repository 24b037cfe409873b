"""The import graph between folders is the house of docs/design.md, and has no cycle.

Only imports that run count: those under ``if TYPE_CHECKING`` are annotations.
"""

from __future__ import annotations

import ast
import graphlib
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "graph": {"errors"},
    "pipeline": {"errors", "graph"},
    "data": {"errors", "graph", "pipeline"},
    "tasks": {"errors", "graph", "pipeline", "data"},
    "frontends": {"errors", "graph", "tasks"},
    "backends": {"errors", "graph", "pipeline"},
    "passes": {"errors", "graph", "pipeline", "tasks", "data", "backends"},
    "runtime": {"errors", "graph", "tasks", "data"},
    "report": {"errors", "graph"},
}
"""Which folders a folder may import, besides itself and the version."""

TOP = {"compile", "emission", "cli", "__main__", "__init__"}
"""The top of the house: it may import everything below."""


def _folder(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return parts[0] if parts[0] != "obert_compiler" else parts[1]


def _imports(file: Path) -> set[str]:
    """Folders of this project that ``file`` imports when it runs."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    annotations = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for child in ast.walk(statement)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if node in annotations:
            continue
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "obert_compiler":
            modules = [f"obert_compiler.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            modules = [node.module or ""]
        else:
            continue
        for module in modules:
            parts = module.split(".")
            if parts[0] == "obert_compiler" and len(parts) > 1 and parts[1] != "__version__":
                found.add(parts[1])
    return found


def _sources() -> list[Path]:
    return sorted(
        file
        for top in ("obert_compiler", "passes", "backends")
        for file in ROOT.glob(f"{top}/**/*.py")
    )


@pytest.fixture(scope="module")
def edges() -> dict[str, dict[str, list[str]]]:
    """Folder -> folder it imports -> files that do."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for file in _sources():
        folder = _folder(file)
        for target in _imports(file) - {folder}:
            found[folder][target].append(str(file.relative_to(ROOT)))
    return found


def test_every_folder_is_in_the_house() -> None:
    folders = {_folder(file) for file in _sources()}
    assert folders <= ALLOWED.keys() | TOP


def test_folders_import_only_what_the_house_allows(edges: dict[str, dict[str, list[str]]]) -> None:
    wrong = {
        f"{folder} -> {target}": files
        for folder, targets in edges.items()
        if folder in ALLOWED
        for target, files in targets.items()
        if target not in ALLOWED[folder]
    }
    assert wrong == {}


def test_no_cycle_between_folders(edges: dict[str, dict[str, list[str]]]) -> None:
    order = graphlib.TopologicalSorter({k: set(v) for k, v in edges.items()}).static_order()
    assert "errors" in list(order)


def test_the_checker_sees_an_import(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from obert_compiler.cli import main\n"
        "def f():\n    from obert_compiler import passes\n    import obert_compiler.report.html\n"
    )
    assert _imports(file) == {"passes", "report"}


def test_passes_know_no_command_line_and_graphs_no_training_framework() -> None:
    banned = {"torch", "transformers", "datasets"}
    for file in _sources():
        if _folder(file) not in {"errors", "graph", "pipeline", "report"}:
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not banned & {name.split(".")[0] for name in names}, file
