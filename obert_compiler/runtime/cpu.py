"""The processor that figures were measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import psutil

__all__ = ["cpu_name", "default_threads"]


def cpu_name() -> str:
    """Model name of the processor, as the system calls it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in {"model name", "Hardware", "Model"} and value.strip():
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown"


def default_threads() -> int:
    """Physical cores, or fewer where this process may use fewer."""
    physical = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        physical = min(physical, len(os.sched_getaffinity(0)))
    return max(1, physical)
