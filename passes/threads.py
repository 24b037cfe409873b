"""How many threads a pass may use for work of its own."""

from __future__ import annotations

import os

__all__ = ["threads", "threads_asked_for"]


def threads_asked_for() -> int | None:
    """``OMP_NUM_THREADS`` as a number; None where it is not set.

    It is what the libraries of linear algebra read, and what ``torchrun`` sets so that several
    processes do not get into each other's way.
    """
    text = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(text) if text.isdecimal() and int(text) > 0 else None


def threads() -> int:
    """``OMP_NUM_THREADS`` where it is set, all cores otherwise."""
    return threads_asked_for() or os.cpu_count() or 1
