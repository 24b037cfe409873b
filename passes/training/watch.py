"""What a training tells while it runs: the bar, the lines of evaluations, the best weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from obert_compiler.pipeline.contract import SilentBar

if TYPE_CHECKING:
    from obert_compiler.passes.training.clock import Clock
    from obert_compiler.pipeline.contract import Bar, Progress

__all__ = ["BestWeights", "Shares", "Watch", "trained_state"]

_BEST = "best.safetensors"
_BEST_STATE = "best.json"


class Watch(TrainerCallback):
    """Moves the bar after each step and says what evaluations found.

    Args:
        name: of the training.
        clock: says how much is done.
        progress: where lines are said.
        sparsity: share of the masked weights that is held at zero, None without masks.

    Attributes:
        bar: the bar.
    """

    def __init__(self, name: str, clock: Clock, progress: Progress, sparsity: float | None) -> None:
        self._name = name
        self._clock = clock
        self.bar: Bar = SilentBar()
        self._progress = progress
        self._zeros = "" if sparsity is None else f"{sparsity:.1%} zeros"
        self._loss = ""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Keep the loss for the bar."""
        if logs and "loss" in logs:
            self._loss = f"loss {logs['loss']:.4f}"

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Move the bar."""
        text = ", ".join(part for part in (self._loss, self._zeros) if part)
        self.bar.move(self._clock.done(state.global_step), text)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Say the metric."""
        if not state.is_world_process_zero or not metrics:
            return
        figures = [f"{n.removeprefix('eval_')} {v:.4f}" for n, v in metrics.items() if n != "epoch"]
        epoch = f"epoch {state.epoch:.2f}" if state.epoch is not None else "evaluation"
        self._progress.say(f"{self._name}: {epoch}, step {state.global_step}: {', '.join(figures)}")


class Shares(TrainerCallback):
    """Tells how much of the training is done, before each step.

    Args:
        clock: says how much is done.
        tell: is called with it.
    """

    def __init__(self, clock: Clock, tell: Callable[[float], None]) -> None:
        self._clock = clock
        self._tell = tell

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tell."""
        self._tell(self._clock.share(state.global_step))


def trained_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What training changes: parameters, and buffers that are no constants of the graph."""
    buffers = {n: b for n, b in model.named_buffers() if not n.startswith("constants.")}
    return {**dict(model.named_parameters()), **buffers}


class BestWeights(TrainerCallback):
    """Keeps a copy of the parameters at the best evaluation.

    Args:
        metric: name of the figure.
        higher_is_better: whether a larger one is the better one.

    Attributes:
        weights: what `trained_state` gives, by name, None before the first evaluation.
        value: the figure they reached.
        step: after how many steps.
    """

    def __init__(self, metric: str, higher_is_better: bool) -> None:
        self._metric = f"eval_{metric}"
        self._sign = 1.0 if higher_is_better else -1.0
        self.weights: dict[str, torch.Tensor] | None = None
        self.value: float | None = None
        self.step = 0

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        model: torch.nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Copy the parameters where the metric is better than before."""
        found = (metrics or {}).get(self._metric)
        if found is None or model is None:
            return
        if self.value is None or self._sign * found > self._sign * self.value:
            self.value, self.step = found, state.global_step
            self.weights = {n: v.detach().clone() for n, v in trained_state(model).items()}

    def save(self, folder: Path, step: int) -> None:
        """Write them into a checkpoint."""
        del step
        if self.weights is not None:
            save_file(self.weights, folder / _BEST)
            state = {"value": self.value, "step": self.step}
            (folder / _BEST_STATE).write_text(json.dumps(state), encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Read them back from a checkpoint that has some."""
        if (folder / _BEST_STATE).exists():
            state = json.loads((folder / _BEST_STATE).read_text(encoding="utf-8"))
            self.value, self.step = state["value"], state["step"]
            self.weights = load_file(folder / _BEST)
