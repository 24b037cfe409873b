"""In which precision a training computes its products."""

from __future__ import annotations

import torch

from obert_compiler.errors import UsageError

__all__ = ["uses_bfloat16"]


def uses_bfloat16(precision: str, name: str) -> bool:
    """Whether products are computed in bfloat16; parameters and sums stay float32.

    ``auto`` does where a CUDA device has it in hardware. On CPUs it does not (docs/training.md has
    the times): the same command gives the same file whatever the instructions of the CPU are.

    Raises:
        UsageError: bfloat16 on a CUDA device without it.
    """
    cuda = torch.cuda.is_available()
    if precision == "auto":
        return cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bfloat16" and cuda and not torch.cuda.is_bf16_supported():
        raise UsageError(
            f"{name}: expected a GPU with bfloat16 for precision=bfloat16, found "
            f"{torch.cuda.get_device_name()}; take precision=float32"
        )
    return precision == "bfloat16"
