"""The damped Fisher of one matrix: saliency and repair of ``W [out, in]`` instead of blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from obert_compiler.errors import UsageError
from obert_compiler.passes import obs
from obert_compiler.passes.fisher_blocks import BlockLayout

__all__ = ["BlockChoice", "FisherMatrix"]

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
BlockChoice = Literal["single", "greedy", "cumulative"]


@dataclass(frozen=True)
class FisherMatrix:
    """The Fisher blocks of one matrix.

    Attributes:
        F: undamped blocks ``[count, B, B]``.
        layout: how the matrix is cut.
        damping: what is added to the diagonal of every block.
        where: the matrix, for messages.
    """

    F: FloatArray
    layout: BlockLayout
    damping: float
    where: str = "matrix"

    def saliency(self, W: FloatArray, group: int, choice: BlockChoice = "single") -> FloatArray:
        """Saliency of groups of ``group`` consecutive inputs, ``[out, in / group]``.

        Zero weights are pruned weights: they stay out of the Fisher.

        Args:
            W: ``[out, in]``.
            group: weights per group.
            choice: ``single`` has what each group costs alone (`obs.group_saliency`), ``greedy``
                and ``cumulative`` what it costs at its turn (`obs.greedy_saliency`).

        Raises:
            UsageError: ``group`` does not divide the Fisher block.
            NumericsError: a block is not positive definite.
        """
        if self.layout.block % group:
            raise UsageError(
                f"{self.where}: expected Fisher blocks of a multiple of {group} weights, found "
                f"{self.layout.block}; run 'fisher' with block={group * max(1, 32 // group)}"
            )
        blocks = self.F, self.layout.cut(W), self.layout.cut(W != 0)
        if choice == "single":
            rho = obs.group_saliency(*blocks, group=group, damping=self.damping, where=self.where)
        else:
            rho = obs.greedy_saliency(
                *blocks,
                group=group,
                damping=self.damping,
                cumulative=choice == "cumulative",
                where=self.where,
            )
        groups = self.layout.columns // group
        return rho.reshape(self.layout.rows, -1)[:, :groups].astype(np.float32)

    def output_importance(self) -> npt.NDArray[np.float64]:
        """What a squared error of each output costs the loss, up to one factor for the matrix.

        The damped diagonal summed over the inputs, ``[out]``: the gradient of a weight is that of
        its output times its input, and all outputs have the same inputs.
        """
        diagonal = self.layout.join(np.einsum("kii->ki", self.F).astype(np.float64))
        importance: npt.NDArray[np.float64] = (diagonal + self.damping).sum(axis=1)
        return importance

    def repair(self, W: FloatArray, removed: BoolArray) -> tuple[FloatArray, float]:
        """``W`` without ``removed [out, in]``, the rest moved to the joint optimum of each block.

        Returns:
            The new matrix and the predicted loss increase.

        Raises:
            NumericsError: a block is not positive definite.
        """
        blocks, increase = obs.joint_repair(
            self.F,
            self.layout.cut(W),
            self.layout.cut(W != 0),
            self.layout.cut(removed),
            damping=self.damping,
            where=self.where,
        )
        repaired = self.layout.join(blocks).astype(np.float32)
        return repaired, float(increase.sum())

    def repair_by_sum(
        self, W: FloatArray, removed: BoolArray, group: int
    ) -> tuple[FloatArray, float]:
        """As `repair`, with the updates of the removed groups added up as published."""
        blocks, increase = obs.sum_of_updates(
            self.F,
            self.layout.cut(W),
            self.layout.cut(W != 0),
            self.layout.cut(removed),
            group=group,
            damping=self.damping,
            where=self.where,
        )
        return self.layout.join(blocks).astype(np.float32), float(increase.sum())

    def remove(self, W: FloatArray, removed: BoolArray) -> tuple[FloatArray, float]:
        """``W`` without ``removed [out, in]``, the rest as it was, and the loss increase."""
        delta = self.layout.cut(np.where(removed, -W, np.float32(0)))
        loss = obs.quadratic_loss(self.F, delta, self.damping)
        return np.where(removed, np.float32(0), W), float(loss.sum())
