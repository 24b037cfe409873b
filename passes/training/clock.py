"""When a training saves, evaluates and ends, and how much of it is done."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

__all__ = ["Clock"]

_FILE = "clock.json"


class Clock(TrainerCallback):
    """Counts steps and seconds, also over resumed runs.

    All processes follow the clock of the first: its seconds decide the learning rate of a budget.

    Args:
        total_steps: after how many steps the training ends; None for the budget alone.
        budget: after how many seconds; None for the steps alone.
        saves: whether there are checkpoints at all.
        save_steps, save_seconds: how often one is written; None for not by that measure.
        epoch_steps: steps in an epoch.
        evaluates: whether to evaluate after each epoch and at the end.

    Attributes:
        seconds: seconds used, as of the last step.
        terminated: whether the process was told to end (SIGTERM).
    """

    def __init__(
        self,
        total_steps: int | None,
        budget: float | None,
        *,
        saves: bool,
        save_steps: int | None,
        save_seconds: float | None,
        epoch_steps: int,
        evaluates: bool,
    ) -> None:
        self._total_steps = total_steps
        self._budget = budget
        self._saves = saves
        self._save_steps = save_steps
        self._save_seconds = save_seconds
        self._epoch_steps = epoch_steps
        self._evaluates = evaluates
        self._before = 0.0
        self._started: float | None = None
        self._saved_at = 0.0
        self.seconds = 0.0
        self.terminated = False
        self._told = False

    def share(self, step: int) -> float:
        """How much of the training is done after ``step`` steps, 0 to 1."""
        by_steps = step / self._total_steps if self._total_steps else 0.0
        by_time = self.seconds / self._budget if self._budget else 0.0
        return min(1.0, max(by_steps, by_time))

    @property
    def total(self) -> float:
        """What the progress bar counts up to: steps, or the seconds of the budget."""
        return float(self._total_steps or self._budget or 0)

    def done(self, step: int) -> float:
        """Where the bar is after ``step`` steps."""
        return self.share(step) * self.total

    # -- events -----------------------------------------------------------------------------------

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start to count."""
        self._started = time.monotonic()
        self._saved_at = self._before

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Read the clock, before the learning rate of the next step is chosen."""
        started = time.monotonic() if self._started is None else self._started
        seconds, told = self._before + time.monotonic() - started, float(self._told)
        if PartialState().num_processes > 1:
            first = float(PartialState().is_main_process)
            shared: Any = reduce(
                torch.tensor([seconds * first, told], dtype=torch.float64).to(args.device), "sum"
            )
            seconds, told = shared.tolist()
        self.seconds, self.terminated = seconds, told > 0

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Decide what comes next: end, evaluation, checkpoint."""
        step = state.global_step
        ends = self.share(step) >= 1.0
        if ends or self.terminated:
            control.should_training_stop = True
        if self._evaluates and (ends or step % self._epoch_steps == 0) and not self.terminated:
            control.should_evaluate = True
        due = self._save_steps is not None and step % self._save_steps == 0
        if self._save_seconds is not None:
            due = due or self.seconds - self._saved_at >= self._save_seconds
        if self._saves and (due or control.should_training_stop):
            control.should_save = True
            self._saved_at = self.seconds
        if ends:
            control.should_log = True

    # -- signals ----------------------------------------------------------------------------------

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Let SIGTERM end the training after the current step, with a checkpoint."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def tell(_number: int, _frame: Any) -> None:
            self._told = True

        before = signal.signal(signal.SIGTERM, tell)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    # -- across a resume --------------------------------------------------------------------------

    def save(self, folder: Path, step: int) -> None:
        """Write the clock into a checkpoint."""
        state = {"seconds": self.seconds, "done": self.share(step) >= 1.0}
        (folder / _FILE).write_text(json.dumps(state), encoding="utf-8")

    def load(self, folder: Path) -> bool:
        """Read it back; whether the training was done."""
        state = json.loads((folder / _FILE).read_text(encoding="utf-8"))
        self._before = self.seconds = float(state["seconds"])
        return bool(state["done"])
