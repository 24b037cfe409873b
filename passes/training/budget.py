"""Durations: ``30min``, ``90s``, ``2h``; intervals: a duration, or ``200steps``."""

from __future__ import annotations

import re

from obert_compiler.errors import UsageError

__all__ = ["parse_budget", "parse_interval"]

_UNITS = {"s": 1.0, "sec": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([a-z]+)")
_STEPS = re.compile(r"(\d+)steps?")


def parse_budget(text: str, where: str) -> float:
    """Seconds of a duration.

    Args:
        text: a number and its unit: s, min or h.
        where: how a message names the option.

    Raises:
        UsageError: something else, or no time at all.
    """
    found = _DURATION.fullmatch(text.strip().lower())
    seconds = 0.0
    if found is not None and found[2] in _UNITS:
        seconds = float(found[1]) * _UNITS[found[2]]
    if seconds <= 0:
        raise UsageError(f"{where}: expected a time such as 30min, 90s or 2h, found '{text}'")
    return seconds


def parse_interval(text: str, where: str) -> tuple[int | None, float | None]:
    """Steps or seconds of an interval; the other one is None.

    Raises:
        UsageError: neither a duration nor a number of steps.
    """
    found = _STEPS.fullmatch(text.strip().lower())
    if found is None:
        try:
            return None, parse_budget(text, where)
        except UsageError:
            raise UsageError(
                f"{where}: expected a time or a number of steps such as 5min or 200steps, "
                f"found '{text}'"
            ) from None
    if int(found[1]) < 1:
        raise UsageError(f"{where}: expected at least 1 step, found '{text}'")
    return int(found[1]), None
