"""The loss of a batch: the task's own, and what is learnt from the teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from obert_compiler.data.batches import IGNORED
from obert_compiler.errors import DataError, GraphError, UsageError
from obert_compiler.passes.training.losses import (
    combined,
    kl_divergence,
    relation_divergence,
    similarity_distance,
    squared_distance,
)

if TYPE_CHECKING:
    from obert_compiler.data.batches import Batch
    from obert_compiler.passes.training.options import TrainingOptions
    from obert_compiler.passes.training.pairs import Pairs
    from obert_compiler.passes.training.taps import Taps
    from obert_compiler.tasks.base import Predictions, Task

__all__ = ["TrainingObjective", "kept_layers_of_teacher"]


class TrainingObjective:
    """Computes the loss of a batch from the outputs of student and teacher.

    Args:
        task: gives the task's loss and says what its outputs predict; None compares all float
            outputs.
        options: weights of the parts.
        student, teacher: where inner states lie among the outputs.
        pairs: of texts, for embeddings that are trained without a teacher.
    """

    def __init__(
        self,
        task: Task | None,
        options: TrainingOptions,
        student: Taps,
        teacher: Taps,
        pairs: Pairs | None = None,
    ) -> None:
        self._task = task
        self._pairs = pairs
        self._options = options
        self._student = student
        self._teacher = teacher
        if student.hidden and len(student.hidden) > len(teacher.hidden):
            raise UsageError(
                f"hidden: expected a teacher of at least {len(student.hidden)} layers, found "
                f"{len(teacher.hidden)}; leave hidden out, or name another --teacher"
            )
        self._layers = kept_layers_of_teacher(len(student.hidden), len(teacher.hidden))

    def __call__(
        self,
        outputs: Mapping[str, torch.Tensor],
        batch: Batch,
        teacher: Mapping[str, torch.Tensor] | None,
    ) -> torch.Tensor:
        """The loss, a scalar; differentiable in ``outputs``."""
        options = self._options
        task = self._task_loss(outputs, batch) if options.hardness < 1 else None
        distilled = None
        if teacher is not None and options.hardness > 0:
            distilled = self._distillation(outputs, teacher, batch)
        total = combined(task, distilled, options.hardness)
        if teacher is not None and options.hidden:
            total = total + options.hidden * self._hidden(outputs, teacher, batch)
        if teacher is not None and options.attention:
            total = total + options.attention * self._relations(outputs, teacher, batch)
        return total

    def _task_loss(self, outputs: Mapping[str, torch.Tensor], batch: Batch) -> torch.Tensor:
        """The mean of the task's loss over what is labelled: texts, tokens, starts and ends."""
        if self._task is not None and self._pairs is not None:
            (embeddings,) = self._task.predictions(outputs, batch)
            return self._pairs.loss(embeddings.values, batch.rows.tolist())
        if self._task is None or batch.labels is None:
            raise DataError(
                "loss: expected data with labels, found none; add the column, or hardness=1"
            )
        total = self._task.losses(outputs, batch).sum()
        counted = 0
        for labels in batch.labels.values():
            tensor = torch.as_tensor(labels)
            counted += int((tensor != IGNORED).sum()) if tensor.ndim == 2 else len(tensor)
        return total / max(counted, 1)

    def _distillation(
        self,
        outputs: Mapping[str, torch.Tensor],
        teacher: Mapping[str, torch.Tensor],
        batch: Batch,
    ) -> torch.Tensor:
        if self._task is None:
            return _all_outputs(outputs, teacher)
        pairs = zip(
            self._task.predictions(outputs, batch),
            self._task.predictions(teacher, batch),
            strict=True,
        )
        parts = [self._one(student, target) for student, target in pairs]
        return torch.stack(parts).mean()

    def _one(self, student: Predictions, teacher: Predictions) -> torch.Tensor:
        if student.kind == "vector":
            return similarity_distance(student.values, teacher.values)
        if student.values.shape != teacher.values.shape:
            raise UsageError(
                f"teacher: expected predictions of shape {tuple(student.values.shape)} for a "
                f"batch, found {tuple(teacher.values.shape)}; name a teacher with the same labels"
            )
        if student.kind == "number":
            # KL of two Gaussians of variance 1; a temperature has no meaning here.
            return 0.5 * squared_distance(student.values, teacher.values)
        return kl_divergence(student.values, teacher.values, self._options.temperature)

    def _hidden(
        self,
        outputs: Mapping[str, torch.Tensor],
        teacher: Mapping[str, torch.Tensor],
        batch: Batch,
    ) -> torch.Tensor:
        mask = _mask(batch)
        parts = []
        for name, layer in zip(self._student.hidden, self._layers, strict=True):
            student, target = outputs[name], teacher[self._teacher.hidden[layer]]
            if student.shape != target.shape:
                raise UsageError(
                    f"hidden: expected a teacher of hidden size {student.shape[-1]}, found "
                    f"{target.shape[-1]}; leave hidden out, or name another --teacher"
                )
            parts.append(squared_distance(student, target, mask))
        return torch.stack(parts).mean()

    def _relations(
        self,
        outputs: Mapping[str, torch.Tensor],
        teacher: Mapping[str, torch.Tensor],
        batch: Batch,
    ) -> torch.Tensor:
        mask, heads = _mask(batch), self._student.heads
        if len(self._student.relations) != len(self._teacher.relations):
            raise UsageError(
                "attention: expected student and teacher with queries, keys and values in as many "
                "matrices, found one of them fused; leave attention out"
            )
        pairs = zip(self._student.relations, self._teacher.relations, strict=True)
        parts = [relation_divergence(outputs[s], teacher[t], mask, heads) for s, t in pairs]
        return torch.stack(parts).mean()


def kept_layers_of_teacher(student: int, teacher: int) -> Sequence[int]:
    """Which layer of the teacher each layer of the student is compared with.

    The ends of as many equal stretches, as in TinyBERT (Jiao et al. 2020, section 3.1): layer m of
    M is compared with layer ``(m + 1) * N / M - 1`` of N.
    """
    return [round((m + 1) * teacher / student) - 1 for m in range(student)]


def _mask(batch: Batch) -> torch.Tensor:
    mask: Any = batch.inputs.get("attention_mask")
    if mask is None:
        first: Any = next(iter(batch.inputs.values()))
        return torch.ones(first.shape[:2], device=first.device)
    found: torch.Tensor = mask
    return found


def _all_outputs(
    outputs: Mapping[str, torch.Tensor], teacher: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """Mean squared distance of the float outputs of a graph without a task."""
    parts = [
        squared_distance(value, teacher[name])
        for name, value in outputs.items()
        if value.is_floating_point() and name in teacher and teacher[name].shape == value.shape
    ]
    if not parts:
        raise GraphError(
            "distillation: expected a float output that student and teacher share, found "
            f"{', '.join(outputs) or 'none'}; name a --task"
        )
    return torch.stack(parts).mean()
