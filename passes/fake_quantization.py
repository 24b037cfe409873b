"""Fake quantisation for training: values rounded as the emitted file rounds them; knows no graph.

    forward   v_hat = (clip(round(v / s) + z, low, high) - z) s
    backward  dL/dv = dL/dv_hat where nothing was clipped, else 0

(straight-through with clipping, Jacob et al. 2018, arXiv 1712.05877). A learnt scale has the
gradient of Esser et al. 2020 (LSQ, arXiv 1902.08153),

    dv_hat/ds = round(v / s) - v / s  inside,  low - z  below,  high - z  above,

divided by sqrt(n high) for n values that share the scale; it is learnt as s = s_0 exp(t), so that
one learning rate fits scales of every size. A scale that is not learnt may follow the values while
it is observed, as `ActivationQuantiser` and `RowQuantiser` say.

Zero is exactly representable in all of them: a pruned weight stays zero. The modules round in the
very operations of QuantizeLinear and of the chains that `quant` writes, so that their outputs are
those of the emitted file bit by bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from obert_compiler.backends.torch.operators.indexing import from_end
from obert_compiler.backends.torch.operators.quantisation import FakeQuantise
from obert_compiler.passes.calibration import Quantizer
from obert_compiler.passes.embedding_quantization import FourBitTable
from obert_compiler.passes.weight_quantization import QuantizedWeight

__all__ = [
    "ActivationQuantiser",
    "FakeQuantiseLearnt",
    "FourBitQuantiser",
    "QuantisedLinear",
    "RowQuantiser",
    "real_values",
]

_MOMENTUM = 0.02
_REFERENCE_BATCHES = 16
_LEVELS = 255


class FakeQuantiseLearnt(torch.autograd.Function):
    """Fake quantisation with a gradient for the scale too."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        scale: torch.Tensor,
        zero: torch.Tensor | None,
        low: int,
        high: int,
    ) -> torch.Tensor:
        """``scale`` and ``zero`` (of the type of ``x``) broadcast against ``x``."""
        exact = x / scale
        levels = exact.round()
        if zero is not None:
            levels.add_(zero)
        shifted = levels.clamp(low, high)
        inside = levels.eq_(shifted)
        if zero is not None:
            shifted.sub_(zero)
        ctx.save_for_backward(inside, torch.addcmul(shifted, exact, inside, value=-1))
        ctx.shape, ctx.high = scale.shape, high
        return shifted.mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        """Gradients with respect to ``x`` and ``scale``."""
        inside, slope = ctx.saved_tensors
        of_scale = (gradient * slope).sum_to_size(ctx.shape)
        shared = max(1, gradient.numel() // max(1, of_scale.numel()))
        return gradient * inside, of_scale / float(shared * ctx.high) ** 0.5, None, None, None


def _fake_quantise(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    low: int,
    high: int,
    learnt: bool,
) -> torch.Tensor:
    function = FakeQuantiseLearnt if learnt else FakeQuantise
    result: torch.Tensor = function.apply(x, scale, zero, low, high)  # type: ignore[no-untyped-call]
    return result


class _Scale(nn.Module):
    """A scale that is fixed, observed or learnt.

    Attributes:
        observing: whether a forward pass in training mode moves the scale.
    """

    start: torch.Tensor

    def __init__(self, start: torch.Tensor, *, learnt: bool) -> None:
        super().__init__()
        self.register_buffer("start", start)
        self.log_factor = nn.Parameter(torch.zeros_like(start)) if learnt else None
        self.observing = False

    @property
    def learnt(self) -> bool:
        """Whether the scale is a parameter."""
        return self.log_factor is not None

    @property
    def scale(self) -> torch.Tensor:
        """The scale now, above zero."""
        return self.start if self.log_factor is None else self.start * torch.exp(self.log_factor)


class ActivationQuantiser(_Scale):
    """Fake quantisation of an activation, uint8 with one scale and zero point.

    Observed, the range follows the extremes of the batches: both ends keep the proportion to a
    running mean of the batches' extremes that they had to the mean over the first 16 batches. That
    keeps what calibration decided about outliers.

    Args:
        quantizer: the calibrated range, where training starts.
        learnt: whether the scale is learnt; the zero point stays.
    """

    zero_point: torch.Tensor
    seen: torch.Tensor
    reference: torch.Tensor
    running: torch.Tensor
    calibrated: torch.Tensor

    def __init__(self, quantizer: Quantizer, *, learnt: bool = False) -> None:
        super().__init__(torch.tensor(quantizer.scale, dtype=torch.float32), learnt=learnt)
        self.register_buffer("zero_point", torch.tensor(quantizer.zero_point, dtype=torch.float32))
        self.register_buffer("seen", torch.tensor(0))
        self.register_buffer("reference", torch.zeros(2))
        self.register_buffer("running", torch.zeros(2))
        self.register_buffer("calibrated", torch.tensor([quantizer.low, quantizer.high]))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """``x`` rounded; ``mask`` ``[batch, sequence]`` tells padding from what is observed.

        In float32 whatever ``x`` is: bfloat16 does not hold 256 levels.
        """
        x = x.float()
        if self.training and self.observing and not self.learnt:
            with torch.no_grad():
                self._observe(real_values(x, mask))
        return _fake_quantise(x, self.scale, self.zero_point, 0, _LEVELS, self.learnt)

    def quantizer(self) -> Quantizer:
        """Scale and zero point as the file holds them."""
        with torch.no_grad():
            return Quantizer(float(self.scale), int(self.zero_point))

    def _observe(self, values: torch.Tensor) -> None:
        if not values.numel():
            return
        extremes = torch.stack([values.amin().clamp(max=0), values.amax().clamp(min=0)])
        self.seen += 1
        if self.seen <= _REFERENCE_BATCHES:
            self.reference += (extremes - self.reference) / self.seen
            self.running.copy_(self.reference)
            return
        self.running.lerp_(extremes.to(self.running.dtype), _MOMENTUM)
        moved = torch.where(self.reference != 0, self.running / self.reference, 1.0)
        low, high = self.calibrated * moved
        scale = (high - low) / _LEVELS
        if scale < torch.finfo(torch.float32).tiny:
            return
        self.start.copy_(scale)
        self.zero_point.copy_(torch.round(-low / scale).clamp(0, _LEVELS))


class RowQuantiser(_Scale):
    """Fake quantisation of a weight ``[out, in]``, symmetric with one scale for each row.

    Observed, the scale of a row keeps its proportion to the largest weight of the row.

    Args:
        weight: the weight, where training starts.
        scale: float32 ``[out]``, the scales chosen for it.
        limit: largest |q|.
        learnt: whether the scales are learnt.
    """

    share: torch.Tensor

    def __init__(
        self, weight: torch.Tensor, scale: torch.Tensor, limit: int, *, learnt: bool = False
    ) -> None:
        super().__init__(scale, learnt=learnt)
        self.limit = limit
        largest = weight.detach().abs().amax(dim=1)
        dead = largest < torch.finfo(torch.float32).tiny * limit
        # A row of zeros keeps its scale.
        self.register_buffer("share", torch.where(dead, 0.0, scale / largest))

    def forward(self, rows: torch.Tensor, ids: torch.Tensor | None = None) -> torch.Tensor:
        """``rows`` rounded: the whole weight, or its rows ``ids``, gathered ``[..., in]``."""
        if ids is None and self.training and self.observing and not self.learnt:
            with torch.no_grad():
                followed = self.share * rows.abs().amax(dim=1)
                self.start.copy_(torch.where(followed > 0, followed, self.start))
        scale = self.scale
        if ids is not None:
            scale = scale[from_end(ids, len(scale))]
        return _fake_quantise(rows, scale[..., None], None, -self.limit, self.limit, self.learnt)

    def quantized(self, weight: torch.Tensor) -> QuantizedWeight:
        """``weight`` as the file holds it."""
        with torch.no_grad():
            scale = self.scale
            q = torch.round(weight / scale[:, None]).clamp(-self.limit, self.limit)
            return QuantizedWeight(q.to(torch.int8).cpu().numpy(), scale.float().cpu().numpy())


class FourBitQuantiser(nn.Module):
    """Fake quantisation of an embedding table in 4 bits; scales and zero points stay.

    Args:
        table: the table's scales and zero points.
    """

    scale: torch.Tensor
    zero_point: torch.Tensor

    def __init__(self, table: FourBitTable) -> None:
        super().__init__()
        self.table = table
        self.register_buffer("scale", torch.from_numpy(table.scale.astype(np.float32)))
        self.register_buffer("zero_point", torch.from_numpy(table.zero_point.astype(np.float32)))

    def forward(self, rows: torch.Tensor, ids: torch.Tensor | None = None) -> torch.Tensor:
        """``rows`` rounded: the whole table, or its rows ``ids``, gathered ``[..., columns]``."""
        scale, zero_point = self.scale, self.zero_point
        if ids is not None:
            ids = from_end(ids, len(scale))
            scale, zero_point = scale[ids], zero_point[ids]
        grouped = _grouped(rows, scale.shape[-1])
        rounded = _fake_quantise(grouped, scale[..., None], zero_point[..., None], 0, 15, False)
        return rounded.flatten(-2)

    def quantized(self, weight: torch.Tensor) -> FourBitTable:
        """``weight`` as the file holds it."""
        with torch.no_grad():
            grouped = _grouped(weight, self.scale.shape[-1])
            levels = torch.round(grouped / self.scale[..., None]) + self.zero_point[..., None]
            q = levels.clamp(0, 15).flatten(-2).to(torch.uint8).cpu().numpy()
        half = q.shape[1] // 2
        packed = (q[:, :half] | (q[:, half:] << 4)).astype(np.uint8)
        return FourBitTable(packed, self.table.scale, self.table.zero_point)


class QuantisedLinear(nn.Linear):
    """An nn.Linear that multiplies by its rounded weight; ``weight`` is the float master.

    Args:
        linear: the layer whose parameters it takes over.
        quantiser: of the weight.
    """

    def __init__(self, linear: nn.Linear, quantiser: RowQuantiser) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_parameter("bias", None)
        # Whatever else lies under the layer's name (an alias of its bias) stays there.
        for name, parameter in linear.named_parameters(remove_duplicate=False):
            self.register_parameter(name, parameter)
        self.quantiser = quantiser

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 (the name of nn.Linear)
        """``input`` times the rounded weight, plus the bias."""
        return nn.functional.linear(input, self.quantiser(self.weight), self.bias)


def _grouped(rows: torch.Tensor, groups: int) -> torch.Tensor:
    return rows.reshape(*rows.shape[:-1], groups, -1)


def real_values(x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The entries of an activation at positions that ``mask`` ``[batch, sequence]`` does not pad.

    The mask applies to activations that begin with its axes or have one row for each position.
    """
    if mask is not None and mask.ndim == 2:
        if x.ndim >= 3 and x.shape[:2] == mask.shape:
            return x[mask.bool()]
        if x.ndim == 2 and x.shape[0] == mask.numel() and mask.shape[1] > 1:
            return x[mask.reshape(-1).bool()]
    return x
