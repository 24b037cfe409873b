"""Options of ``prune``: their ranges, and those that are texts: ``2of4``, ``intermediate@0.8``."""

from __future__ import annotations

import math
import re

from obert_compiler.errors import UsageError

__all__ = [
    "check_at_least",
    "check_one_of",
    "check_positive",
    "check_sparsity",
    "read_nm",
    "read_override",
    "read_steps",
]


def check_one_of(what: str, value: str, *allowed: str) -> None:
    """Check that ``value`` is one of ``allowed``.

    Raises:
        UsageError: it is not.
    """
    if value not in allowed:
        names = f"{', '.join(allowed[:-1])} or {allowed[-1]}"
        raise UsageError(f"prune: expected {what} {names}, found '{value}'")


def check_at_least(what: str, value: int, least: int) -> None:
    """Check that ``value`` is not below ``least``.

    Raises:
        UsageError: it is.
    """
    if value < least:
        raise UsageError(f"prune: expected {what} of at least {least}, found {value}")


def check_positive(what: str, value: float | None) -> None:
    """Check that ``value``, where it is given, is a number above 0.

    Raises:
        UsageError: it is not.
    """
    if value is not None and not (0 < value < math.inf):
        raise UsageError(f"prune: expected {what} above 0, found {value}")


def check_sparsity(what: str, value: float) -> None:
    """Check that ``value`` lies in 0..1.

    Raises:
        UsageError: it does not.
    """
    if not 0.0 <= value <= 1.0:
        raise UsageError(f"prune: expected {what} between 0 and 1, found {value}")


def read_steps(steps: tuple[str, ...]) -> int | tuple[float, ...]:
    """Number of steps, where ``steps`` is one whole number, or else the sparsities on the way.

    Raises:
        UsageError: neither.
    """
    if len(steps) == 1 and steps[0].isdecimal() and int(steps[0]) >= 1:
        return int(steps[0])
    return tuple(_step(text) for text in steps)


def _step(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value <= 1.0:
        raise UsageError(
            "prune: expected steps as a number of them or as sparsities above 0 and up to 1, as in "
            f"0.5+0.7, found '{text}'"
        )
    return value


def read_override(item: str) -> tuple[str, float]:
    """Pattern and sparsity of ``PATTERN@SPARSITY``.

    Raises:
        UsageError: another form, or a sparsity outside 0..1.
    """
    pattern, at, number = item.rpartition("@")
    try:
        sparsity = float(number)
    except ValueError:
        at = ""
        sparsity = 0.0
    if not at or not pattern:
        raise UsageError(
            f"prune: expected override as PATTERN@SPARSITY, as in intermediate@0.8, found '{item}'"
        )
    check_sparsity(f"the sparsity of override '{item}'", sparsity)
    return pattern, sparsity


def read_nm(text: str) -> tuple[int, int]:
    """N and M of ``NofM``.

    Raises:
        UsageError: another form, or N above M.
    """
    match = re.fullmatch(r"(\d+)of(\d+)", text)
    if match is None:
        raise UsageError(f"prune: expected nm as NofM, as in 2of4, found '{text}'")
    n, m = int(match[1]), int(match[2])
    if n > m or m < 1:
        raise UsageError(f"prune: expected nm to keep at most all, N <= M, found {n} of {m}")
    return n, m
