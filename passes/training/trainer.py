"""The Trainer of transformers, for modules made from graphs.

What is changed against the Trainer: the loss, clearing the gradients of pruned weights, the order
of the data (the same after a resume), the learning rate by share of the training, evaluation by the
task's metric, and checkpoints that appear whole or not at all.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from obert_compiler.errors import ArtefactError
from obert_compiler.passes.training.checkpoints import last_checkpoint
from obert_compiler.passes.training.data import (
    ROWS,
    BatchCollator,
    EpochSampler,
    IndexDataset,
    as_batch,
)
from obert_compiler.passes.training.finite import check_gradients, check_loss

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from obert_compiler.backends.torch import OnnxModule
    from obert_compiler.data.batches import Batches
    from obert_compiler.passes.training.masks import Masks
    from obert_compiler.passes.training.objective import TrainingObjective
    from obert_compiler.passes.training.teacher import Teacher

__all__ = ["GraphTrainer"]

PARTIAL = "partial"
"""Folder in which a checkpoint is written before it is put in place."""


class GraphTrainer(Trainer):
    """Trains an `OnnxModule`.

    Args:
        name: of the training, for messages.
        module: what is trained.
        arguments: of the Trainer.
        data: training data.
        sampler: the order of the data.
        input_names: inputs of the module.
        objective: the loss.
        teacher: gives the teacher's outputs; None where nothing is learnt from one.
        masks: weights held at zero.
        factor: share of the largest learning rate for the step that comes next.
        evaluate: the metric on held-out data by name; None where there are none.
        callbacks: more callbacks.

    Attributes:
        kept_beside: called with the folder of a checkpoint and its step before it is put in place.
    """

    def __init__(
        self,
        name: str,
        module: OnnxModule,
        arguments: TrainingArguments,
        data: Batches,
        sampler: EpochSampler,
        input_names: list[str],
        objective: TrainingObjective,
        teacher: Teacher | None,
        masks: Masks,
        factor: Callable[[int], float],
        evaluate: Callable[[torch.nn.Module], dict[str, float]] | None,
        callbacks: list[TrainerCallback],
    ) -> None:
        self._name = name
        self._module = module
        self._sampler = sampler
        self._input_names = input_names
        self._objective = objective
        self._teacher = teacher
        self._masks = masks
        self._factor = factor
        self._evaluation = evaluate
        self._run_folder = str(arguments.output_dir)
        self.kept_beside: list[Callable[[Path, int], None]] = []
        super().__init__(
            model=module,
            args=arguments,
            data_collator=BatchCollator(data),
            train_dataset=IndexDataset(data),
            callbacks=callbacks,
        )

    # -- loss and gradients -----------------------------------------------------------------------

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The loss of collated tensors."""
        del num_items_in_batch
        batch = as_batch(inputs)
        outputs = model(**batch.feed(self._input_names))
        said = None
        if self._teacher is not None:
            said = self._teacher.outputs(batch, inputs[ROWS].tolist())
        loss = self._objective(outputs, batch, said)
        check_loss(loss, self._module, batch.feed(self._input_names), self._where())
        return (loss, outputs) if return_outputs else loss

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Forward and backward; the gradients of pruned weights are cleared."""
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        self._masks.apply_to_gradients()
        return loss

    def _clip_grad_norm(self, model: torch.nn.Module) -> Any:
        norm: Any = super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]
        check_gradients(norm, self._module, self._where())
        return norm

    def _where(self) -> str:
        return f"{self._name}: step {self.state.global_step + 1}"

    # -- order of the data, learning rate, decay ---------------------------------------------------

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        del train_dataset
        return self._sampler

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> LambdaLR:
        """The learning rate by share of the training."""
        del num_training_steps
        if self.lr_scheduler is None:
            self.lr_scheduler = LambdaLR(optimizer or self.create_optimizer(), self._factor)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """Matrices decay; biases and the scales of normalisations, whatever their names, do not."""
        return [name for name, p in model.named_parameters() if p.ndim > 1]

    # -- evaluation -------------------------------------------------------------------------------

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The task's metric on the held-out data."""
        del args, kwargs
        if self._evaluation is None:
            return {}
        found = self._evaluation(self._module)
        metrics = {f"eval_{name}": value for name, value in found.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    # -- checkpoints ------------------------------------------------------------------------------

    def _get_output_dir(self, trial: Any) -> str:
        del trial
        return self._run_folder

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        """Parameters, each once, and buffers that are no constants of the graph."""
        if state_dict is None:
            state_dict = {name: p.detach() for name, p in self._module.named_parameters()}
            for name, buffer in self._module.named_buffers():
                if not name.startswith("constants."):
                    state_dict[name] = buffer
        super()._save(output_dir, state_dict)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Every parameter must have been in the checkpoint, under one of its names."""
        missing = {name for name, _ in self._module.named_parameters()} & set(
            load_result.missing_keys
        )
        if missing or load_result.unexpected_keys:
            odd = next(iter([*sorted(missing), *load_result.unexpected_keys]))
            raise ArtefactError(
                f"checkpoint of {self._name}: expected the parameters of the model, found a "
                f"difference at '{odd}'; run again without --resume"
            )

    def restore(self, checkpoint: str) -> None:
        """Take parameters and log from a checkpoint at the end of the training."""
        self._load_from_checkpoint(checkpoint)
        self.state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Write beside, then rename: a checkpoint is whole or not there."""
        final = Path(str(self.args.output_dir))
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        partial = final / PARTIAL
        if self.args.should_save:
            shutil.rmtree(partial, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._run_folder = str(partial)
        try:
            super()._save_checkpoint(model, trial)
            if self.args.should_save:
                for save in self.kept_beside:
                    save(partial / name, self.state.global_step)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                _put_in_place(partial / name, final / name)
        except (OSError, RuntimeError) as error:
            # torch reports a full disk as a RuntimeError of its file writer.
            shutil.rmtree(partial, ignore_errors=True)
            earlier = last_checkpoint(final)
            kept = "no earlier one is kept" if earlier is None else f"'{earlier.name}' is kept"
            raise ArtefactError(
                f"checkpoint '{final / name}': expected to write it, found "
                f"{' '.join(str(error).split())[:200]}; {kept}; free some disk space and run "
                "again with --resume"
            ) from error
        finally:
            self._run_folder = str(final)
        if self.args.should_save:
            for old in final.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
                if old.name != name:
                    shutil.rmtree(old, ignore_errors=True)
        self.accelerator.wait_for_everyone()


def _put_in_place(partial: Path, final: Path) -> None:
    for file in partial.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    folder = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
