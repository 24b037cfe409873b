"""What a training did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from obert_compiler.backends.torch import OnnxModule

__all__ = ["TrainingResult"]


@dataclass(frozen=True)
class TrainingResult:
    """What `train` did.

    Attributes:
        module: the trained module.
        steps: optimiser steps, those before a resume included.
        epochs: passes over the data.
        seconds: time used, that before a resume included.
        loss: mean training loss since the last log, or of the last logged stretch.
        metric: figures of the last evaluation by name, empty where there was none.
        curve: one entry per logged point: ``step``, and any of ``loss``, ``learning_rate`` and the
            metric.
        report: JSON-ready figures for the report, the curve included.
    """

    module: OnnxModule
    steps: int
    epochs: float
    seconds: float
    loss: float | None
    metric: dict[str, float]
    curve: list[dict[str, float]]
    report: dict[str, Any]
