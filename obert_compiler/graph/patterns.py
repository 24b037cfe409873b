"""Choosing sites by name, the same way in every pass."""

from __future__ import annotations

from fnmatch import fnmatchcase

__all__ = ["matches"]


def matches(name: str, pattern: str) -> bool:
    """Whether ``pattern`` means ``name``: by fnmatch when it holds * or ?, else as a substring."""
    if "*" in pattern or "?" in pattern:
        return fnmatchcase(name, pattern)
    return pattern in name
