"""The grammar of passes: ``prune:sparsity=0.9:block=4,quant,pack``.

Commas separate passes, colons options, ``=`` a value, ``+`` the items of a list. Nothing in it
needs quotes in a shell. The options of a pass are the fields of its dataclass; the annotation of a
field says how its text is read. ``str(p)`` prints only the options that differ from their defaults,
and parses back to an equal pass.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, Self, get_args, get_origin

from obert_compiler.errors import SpecError

__all__ = ["ParsedSpec", "Spec", "parse_specs"]


@dataclass(frozen=True)
class ParsedSpec:
    """One item of a specification: a name and its options, still text."""

    name: str
    options: dict[str, str]


def parse_specs(text: str) -> list[ParsedSpec]:
    """Split ``"prune:sparsity=0.9,quant"`` into names and option texts; ``"none"`` gives ``[]``.

    Raises:
        SpecError: an empty item, an option without ``=``, or an option given twice.
    """
    if text.strip() in {"", "none"}:
        return []
    return [_parse_item(item.strip(), text) for item in text.split(",")]


def _parse_item(item: str, text: str) -> ParsedSpec:
    name, *parts = item.split(":")
    if not name:
        raise SpecError(f"passes '{text}': expected names between the commas, found an empty item")
    options: dict[str, str] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if not equals or not key or not value:
            raise SpecError(f"option '{part}' of '{name}': expected name=value, as in block=4")
        key = key.replace("-", "_")
        if key in options:
            raise SpecError(f"option '{key}' of '{name}' is given twice; keep one of them")
        options[key] = value
    return ParsedSpec(name, options)


@dataclass(frozen=True)
class Spec:
    """Base of dataclasses that are written as ``name:option=value``."""

    name: ClassVar[str]

    @classmethod
    def from_options(cls, options: Mapping[str, str]) -> Self:
        """Build from option texts.

        Raises:
            SpecError: an unknown option, or a text that its type does not admit.
        """
        hints = typing.get_type_hints(cls)
        known = {f.name: hints[f.name] for f in fields(cls)}
        values: dict[str, Any] = {}
        for key, value in options.items():
            if key not in known:
                raise SpecError(
                    f"option '{key}' of '{cls.name}': expected one of "
                    f"{', '.join(sorted(known)) or 'no options'}; see 'obertc passes'"
                )
            values[key] = _read(known[key], value, f"option '{key}' of '{cls.name}'")
        return cls(**values)

    def __str__(self) -> str:
        parts = [self.name]
        for f in fields(self):
            value = getattr(self, f.name)
            if value != f.default:
                parts.append(f"{f.name}={_write(value)}")
        return ":".join(parts)


def _read(kind: Any, text: str, where: str) -> Any:
    origin = get_origin(kind)
    if origin in {typing.Union, types.UnionType}:
        if text == "none" and type(None) in get_args(kind):
            return None
        return _read_union([k for k in get_args(kind) if k is not type(None)], text, where)
    if origin is Literal:
        choices = {str(choice): choice for choice in get_args(kind)}
        if text not in choices:
            raise SpecError(f"{where}: expected {' or '.join(choices)}, found '{text}'")
        return choices[text]
    if origin is tuple:
        return tuple(_read(get_args(kind)[0], item, where) for item in text.split("+"))
    return _read_scalar(kind, text, where)


def _read_union(kinds: list[Any], text: str, where: str) -> Any:
    errors = []
    for kind in kinds:
        try:
            return _read(kind, text, where)
        except SpecError as error:
            errors.append(error)
    raise errors[-1]


def _read_bool(text: str) -> bool:
    try:
        return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
    except KeyError:
        raise ValueError(text) from None


_SCALARS: dict[Any, tuple[str, Callable[[str], Any]]] = {
    bool: ("true or false", _read_bool),
    int: ("a whole number", int),
    float: ("a number", float),
    str: ("a text", str),
}


def _read_scalar(kind: Any, text: str, where: str) -> Any:
    expected, read = _SCALARS[kind]
    try:
        return read(text)
    except ValueError:
        raise SpecError(f"{where}: expected {expected}, found '{text}'") from None


def _write(value: object) -> str:
    if isinstance(value, tuple):
        return "+".join(_write(item) for item in value)
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else str(value)
