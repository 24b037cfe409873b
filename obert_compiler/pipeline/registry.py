"""Passes, back ends and tasks by name, found through entry points (ours like anybody's).

A package adds a pass by one line in its pyproject.toml::

    [project.entry-points."obert_compiler.passes"]
    my-pass = "my_package.my_pass:MyPass"

Nothing is imported before it is asked for by name.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from obert_compiler.errors import ArtefactError, UsageError
from obert_compiler.pipeline.contract import Pass
from obert_compiler.pipeline.spec import parse_specs

__all__ = ["BACKENDS", "PASSES", "TASKS", "load", "names", "passes_from_text"]

PASSES = "obert_compiler.passes"
BACKENDS = "obert_compiler.backends"
TASKS = "obert_compiler.tasks"
_WHAT = {PASSES: "pass", BACKENDS: "back end", TASKS: "task"}


@cache
def _entries(group: str) -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=group):
        twin = found.get(entry.name)
        if twin is not None and twin.value != entry.value:
            raise ArtefactError(
                f"{_WHAT[group]} '{entry.name}' is registered twice, as {twin.value} and "
                f"{entry.value}; uninstall one of the packages"
            )
        found[entry.name] = entry
    return found


def names(group: str) -> list[str]:
    """Registered names of a group, sorted."""
    return sorted(_entries(group))


def load(group: str, name: str) -> Any:
    """Import what ``name`` stands for in ``group``.

    Raises:
        UsageError: the name is not registered.
    """
    entry = _entries(group).get(name)
    if entry is None:
        raise UsageError(
            f"{_WHAT[group]} '{name}' is unknown: expected one of {', '.join(names(group))}"
        )
    try:
        return entry.load()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != entry.module.partition(".")[0]:
            raise  # a package that the pass needs is missing, not the pass
        raise _broken(group, name, entry, error) from error
    except AttributeError as error:
        raise _broken(group, name, entry, error) from error


def _broken(group: str, name: str, entry: EntryPoint, error: Exception) -> ArtefactError:
    return ArtefactError(
        f"{_WHAT[group]} '{name}': expected '{entry.value}' to import, found {error}; mend or "
        "uninstall the package that registers it"
    )


def passes_from_text(text: str) -> list[Pass]:
    """Passes of a specification such as ``"prune:sparsity=0.9:block=4,quant,pack"``.

    Raises:
        UsageError: an unknown pass or option, or a value its type does not admit.
    """
    passes: list[Pass] = []
    for spec in parse_specs(text):
        built = load(PASSES, spec.name).from_options(spec.options)
        passes.append(built)
    return passes
