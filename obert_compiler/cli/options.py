"""Options of passes and back ends, read off their dataclasses and docstrings."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Literal, get_args, get_origin

from obert_compiler.cli.console import Console
from obert_compiler.pipeline.registry import load, names
from obert_compiler.pipeline.spec import Spec

__all__ = ["Entry", "Option", "entries", "option_type", "print_entries"]


@dataclass(frozen=True)
class Option:
    """One option of a pass or a back end.

    Attributes:
        name: as it is written in ``--passes``.
        type: what it accepts, in words.
        default: the text that gives its default.
        doc: what it does.
    """

    name: str
    type: str
    default: str
    doc: str


@dataclass(frozen=True)
class Entry:
    """A registered pass or back end.

    Attributes:
        name: how it is called.
        summary: one line.
        distribution: the installed package that it comes with.
        options: in the order of its fields.
    """

    name: str
    summary: str
    distribution: str
    options: tuple[Option, ...]


def entries(group: str) -> list[Entry]:
    """Every registered entry of ``group`` (imports each of them)."""
    owners = {e.name: "" if e.dist is None else e.dist.name for e in entry_points(group=group)}
    return [_entry(name, owners[name], load(group, name)) for name in names(group)]


def print_entries(found: list[Entry], console: Console) -> None:
    """Print entries with their options, or as JSON."""
    console.result([dataclasses.asdict(entry) for entry in found])
    for entry in found:
        console.line(f"{entry.name}: {entry.summary}")
        for option in entry.options:
            console.line(f"    {option.name}={option.default}  ({option.type})")
            if option.doc:
                console.line(f"        {option.doc}")
        console.line()


def _entry(name: str, distribution: str, kind: type[Spec]) -> Entry:
    hints = typing.get_type_hints(kind)
    docs: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        docs |= _documented(base)
    options = []
    for field in dataclasses.fields(kind):
        default = _text(field.default)
        doc = docs.get(field.name, "")
        options.append(Option(field.name, option_type(hints[field.name]), default, doc))
    summary: str = kind.summary  # type: ignore[attr-defined] # passes and back ends have one
    return Entry(name, summary, distribution, tuple(options))


def option_type(kind: Any) -> str:
    """What an annotation admits, in words."""
    origin = get_origin(kind)
    if origin in {typing.Union, types.UnionType}:
        return " or ".join(option_type(k) for k in get_args(kind))
    if origin is Literal:
        return " or ".join(str(choice) for choice in get_args(kind))
    if origin is tuple:
        return f"list of {option_type(get_args(kind)[0])}, joined by +"
    plain = {bool: "true or false", int: "whole number", float: "number", str: "text"}
    return "none" if kind is type(None) else plain.get(kind, str(kind))


def _text(value: object) -> str:
    if value is None or value == ():
        return "none"
    if isinstance(value, tuple):
        return "+".join(_text(item) for item in value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _documented(kind: type) -> dict[str, str]:
    """Texts of the ``Attributes:`` section of a docstring, by name."""
    lines = inspect.cleandoc(vars(kind).get("__doc__") or "").splitlines()
    docs: dict[str, str] = {}
    name = ""
    if "Attributes:" not in lines:
        return docs
    for line in lines[lines.index("Attributes:") + 1 :]:
        if line and not line.startswith(" "):
            break
        start = re.match(r" {4}(\w+): (.*)", line)
        if start:
            name = start.group(1)
            docs[name] = start.group(2).strip()
        elif name and line.strip():
            docs[name] += f" {line.strip()}"
    return docs
