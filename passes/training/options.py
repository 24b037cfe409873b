"""The options of every pass that trains. Imports nothing but the standard library and errors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from obert_compiler.errors import UsageError
from obert_compiler.graph.graph import Graph
from obert_compiler.passes.training.budget import parse_budget, parse_interval
from obert_compiler.passes.training.schedule import LearningRate
from obert_compiler.pipeline.contract import Pass

__all__ = ["DEFAULT_EPOCHS", "TrainingOptions"]

DEFAULT_EPOCHS = 3.0
_LARGEST_RATE = 1.0
_LARGEST_EPOCHS = 10_000.0


@dataclass(frozen=True)
class TrainingOptions(Pass):
    """Base of passes that train.

    Attributes:
        epochs: passes over the data; 3 where neither steps nor a budget is given.
        steps: optimiser steps, instead of epochs.
        budget: time for the training, as in 30min, 90s or 2h; alone, it decides the end, beside
            epochs or steps whichever comes first. The learning rate follows the time that is used.
        batch_size: examples in a batch of one process.
        learning_rate: largest learning rate.
        final_rate: learning rate at the end, as a share of the largest.
        decay: how the learning rate falls: ``linear``, ``cosine`` or ``constant``.
        warmup: share of the training over which the learning rate rises from 0.
        rewinds: shares of the training, 0 to 1, at which the learning rate starts anew.
        weight_decay: decay of AdamW, for matrices.
        clip: largest norm of the gradient; longer ones are scaled down to it.
        hardness: weight of the teacher against the labels, 0 to 1: the loss is ``(1 - hardness) *
            task + hardness * distillation``. 1 needs no labels.
        temperature: of the softmax of both models in the distillation loss.
        hidden: weight of the squared distance of the hidden states between the layers.
        attention: weight of the divergence of the relations among queries, keys and values in the
            last layer, as in MiniLM v2.
        tables: train the embedding tables too. They are not pruned and stay those of the
            teacher; on short texts their gradients and moments are most of a step.
        precision: ``bfloat16`` computes products in 16 bits; ``auto`` does on CUDA alone.
        best: keep the weights of the epoch with the best metric on the held-out data, instead of
            the last.
        evaluate: evaluate after each epoch where there are held-out data; ``best`` does in any
            case.
        checkpoint: how often the state is saved, as in 5min or 200steps.
        log_to: loggers of the Trainer, as in tensorboard (into runs/, or where
            TENSORBOARD_LOGGING_DIR says) or wandb.
    """

    epochs: float | None = None
    steps: int | None = None
    budget: str | None = None
    batch_size: int = 32
    learning_rate: float = 5e-5
    final_rate: float = 0.1
    decay: Literal["linear", "cosine", "constant"] = "linear"
    warmup: float = 0.0
    rewinds: tuple[float, ...] = ()
    weight_decay: float = 0.0
    clip: float = 1.0
    hardness: float = 1.0
    temperature: float = 2.0
    hidden: float = 0.0
    attention: float = 0.0
    tables: bool = False
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    best: bool = False
    evaluate: bool = True
    checkpoint: str = "5min"
    log_to: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._check_length()
        self._check_range("learning_rate", 0, _LARGEST_RATE, open_below=True)
        for name in ("final_rate", "warmup", "hardness"):
            self._check_range(name, 0, 1)
        for name in ("weight_decay", "hidden", "attention"):
            self._check_range(name, 0, math.inf)
        for name in ("temperature", "clip"):
            self._check_range(name, 0, math.inf, open_below=True)
        if self.batch_size < 1:
            raise UsageError(
                f"{self.name}: expected batch_size of at least 1, found {self.batch_size}"
            )
        for share in self.rewinds:
            if not 0 < share < 1:
                raise UsageError(f"{self.name}: expected rewinds between 0 and 1, found {share}")
        if self.decay not in {"linear", "cosine", "constant"}:
            raise UsageError(
                f"{self.name}: expected decay linear, cosine or constant, found '{self.decay}'"
            )
        if self.precision not in {"auto", "float32", "bfloat16"}:
            raise UsageError(
                f"{self.name}: expected precision auto, float32 or bfloat16, "
                f"found '{self.precision}'"
            )
        parse_interval(self.checkpoint, f"{self.name}: checkpoint")

    def _check_length(self) -> None:
        if self.epochs is not None and self.steps is not None:
            raise UsageError(f"{self.name}: expected epochs or steps, found both; leave one out")
        if self.epochs is not None:
            self._check_range("epochs", 0, _LARGEST_EPOCHS, open_below=True)
        if self.steps is not None and not 1 <= self.steps <= 10**9:
            raise UsageError(f"{self.name}: expected steps from 1 to 10^9, found {self.steps}")
        if self.budget is not None:
            parse_budget(self.budget, f"{self.name}: budget")

    def _check_range(self, name: str, low: float, high: float, *, open_below: bool = False) -> None:
        value = getattr(self, name)
        inside = math.isfinite(value) and low <= value <= high and not (open_below and value == low)
        if inside:
            return
        below = "above" if open_below else "from"
        above = "" if high == math.inf else f" to {high:g}"
        raise UsageError(f"{self.name}: expected {name} {below} {low:g}{above}, found {value}")

    def requires(self, graph: Graph) -> None:
        """Check that every op can be trained and that the loggers are installed.

        Raises:
            GraphError: an op cannot.
            UsageError: a logger is not.
        """
        from obert_compiler.backends.torch.builder import check_supported
        from obert_compiler.passes.training.loggers import check_loggers

        check_supported(graph)
        check_loggers(self.log_to, f"{self.name}: log_to")

    @property
    def needs_data(self) -> bool:
        """Always."""
        return True

    @property
    def reads_all_data(self) -> bool:
        """Every row that there is."""
        return True

    @property
    def uses_teacher(self) -> bool:
        """Whether there is anything to learn from a teacher."""
        return self.hardness > 0 or self.hidden > 0 or self.attention > 0

    @property
    def seconds(self) -> float | None:
        """The budget in seconds."""
        return None if self.budget is None else parse_budget(self.budget, f"{self.name}: budget")

    @property
    def schedule(self) -> LearningRate:
        """The learning rate over the training."""
        return LearningRate(
            self.learning_rate, self.final_rate, self.decay, self.warmup, tuple(self.rewinds)
        )
