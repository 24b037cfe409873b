"""What quantisation does to the output of a Linear layer, on sampled inputs; knows no graph."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from obert_compiler.passes.calibration import Quantizer
from obert_compiler.passes.weight_quantization import QuantizedWeight

__all__ = ["OutputError", "output_error", "relative_error"]

FloatArray = npt.NDArray[np.float32]
_CHUNK = 4096


@dataclass(frozen=True)
class OutputError:
    """Squared error of an output and the squares it stands against.

    Attributes:
        error: sum of (y - y_quantised)^2.
        signal: sum of y^2.
    """

    error: float
    signal: float

    @property
    def relative(self) -> float:
        """Error over signal; 0 where both vanish, infinite where only the signal does."""
        if self.signal == 0.0:
            return 0.0 if self.error == 0.0 else float("inf")
        return self.error / self.signal


def output_error(
    X: FloatArray,
    W: FloatArray,
    quantized: QuantizedWeight,
    quantizer: Quantizer | None,
    correction: FloatArray | None = None,
) -> OutputError:
    """Error of ``y = X W^T`` when its operands are rounded.

    Args:
        X: sampled inputs ``[n, in]``.
        W: weight ``[out, in]``.
        quantized: what ``W`` is rounded to.
        quantizer: of the inputs; None leaves them float.
        correction: ``[out]``, added to the rounded output (`bias_correction`).
    """
    rounded = X if quantizer is None else quantizer.round_trip(X)
    restored = quantized.dequantize()
    error = signal = 0.0
    for start in range(0, len(W), _CHUNK):
        part = slice(start, start + _CHUNK)
        exact = X @ W[part].T
        difference = exact - rounded @ restored[part].T
        if correction is not None:
            difference -= correction[part]
        error += float(np.square(difference, dtype=np.float64).sum())
        signal += float(np.square(exact, dtype=np.float64).sum())
    return OutputError(error, signal)


def relative_error(exact: FloatArray, rounded: FloatArray) -> float:
    """Sum of squared differences over the sum of squares of ``exact``, of any shape."""
    difference = np.square(exact - rounded, dtype=np.float64).sum()
    return OutputError(float(difference), float(np.square(exact, dtype=np.float64).sum())).relative
