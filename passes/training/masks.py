"""Masks of pruned weights, held exactly.

A weight that is 0 and whose gradient is always 0 stays 0 under AdamW: its moments stay 0, so the
step is ``0 / (sqrt(0) + eps) = 0``, and weight decay multiplies by a factor. It is therefore
enough to clear the gradients before the optimiser reads them; neither the weights nor the state of
the optimiser are touched again, and one multiplication of each gradient is all that it costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from obert_compiler.errors import GraphError, NumericsError
from obert_compiler.graph.graph import Stage

if TYPE_CHECKING:
    from obert_compiler.backends.torch import OnnxModule
    from obert_compiler.graph.graph import Graph

__all__ = ["Masks", "zero_masks"]


_ACCIDENT = 0.05
"""Share of zeros up to which those of a matrix that nothing pruned here are left to train."""


def zero_masks(module: OnnxModule, graph: Graph) -> dict[str, torch.Tensor]:
    """Where the Linear sites of a pruned graph are not zero, by parameter name; bool.

    In a graph that came as it is, single zeros are an accident of training or of 16 bits; a matrix
    with more of them came sparse (upstream pruning), and is held as well.
    """
    least = _ACCIDENT if graph.stage is Stage.DENSE else 0.0
    names = {id(p): name for name, p in module.named_parameters()}
    masks = {}
    for linear in module.linear_sites.values():
        kept = linear.weight.detach() != 0
        if 1.0 - float(kept.float().mean()) > least:
            masks[names[id(linear.weight)]] = kept
    return masks


class Masks:
    """Keeps the masked weights of a module at zero.

    Args:
        module: the module that trains.
        masks: by parameter name, True or 1 where a weight is kept.

    Raises:
        GraphError: a name or a shape does not fit the module.
    """

    def __init__(self, module: nn.Module, masks: Mapping[str, torch.Tensor]) -> None:
        parameters = dict(module.named_parameters(remove_duplicate=False))
        self._kept: list[tuple[str, nn.Parameter, torch.Tensor]] = []
        for name, mask in masks.items():
            parameter = parameters.get(name)
            if parameter is None or parameter.shape != mask.shape:
                found = "none" if parameter is None else f"shape {tuple(parameter.shape)}"
                raise GraphError(
                    f"mask '{name}': expected a parameter of shape {tuple(mask.shape)}, "
                    f"found {found}"
                )
            # In the dtype of the gradient: a product of equal types is several times faster.
            kept = mask.bool().to(parameter.device, parameter.dtype)
            self._kept.append((name, parameter, kept))

    def __len__(self) -> int:
        return len(self._kept)

    @torch.no_grad()
    def apply_to_weights(self) -> None:
        """Set the masked weights to zero."""
        for _, parameter, kept in self._kept:
            parameter.masked_fill_(kept.to(parameter.device) == 0, 0.0)

    @torch.no_grad()
    def apply_to_gradients(self) -> None:
        """Clear the gradients of the masked weights."""
        for index, (name, parameter, kept) in enumerate(self._kept):
            if parameter.grad is None:
                continue
            if kept.device != parameter.device:
                kept = kept.to(parameter.device)
                self._kept[index] = (name, parameter, kept)
            parameter.grad.mul_(kept)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The masks by parameter name, 1 where a weight is kept."""
        return {name: kept for name, _, kept in self._kept}

    def sparsity(self) -> float | None:
        """Share of the weights of masked matrices that is held at zero; None without masks."""
        total = sum(kept.numel() for _, _, kept in self._kept)
        zeros = sum(int((kept == 0).sum()) for _, _, kept in self._kept)
        return zeros / total if total else None

    def check(self) -> None:
        """Check that the masked weights are zero.

        Raises:
            NumericsError: one is not.
        """
        for name, parameter, kept in self._kept:
            if bool(parameter.detach()[kept.to(parameter.device) == 0].any()):
                raise NumericsError(
                    f"parameter '{name}': expected its pruned weights to be 0 after the training, "
                    "found others; the optimiser moves weights without a gradient"
                )
