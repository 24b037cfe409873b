"""Deciding how each Linear site is quantised: range by activation, rounding by weight.

An activation has one quantiser for all its readers. A reader whose output would be too wrong keeps
its input float (the weights stay int8: the file is as small, the product slower); a site whose
rounded weights alone are too wrong stays float altogether.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from obert_compiler.graph.linear import LinearSite
from obert_compiler.passes.calibration import (
    ActivationStatistics,
    Calibration,
    Quantizer,
    choose_range,
)
from obert_compiler.passes.quant_graph import root_initializer
from obert_compiler.passes.quantization_error import output_error
from obert_compiler.passes.weight_quantization import (
    QuantizedWeight,
    WeightScale,
    bias_correction,
    quantize_weight,
)
from obert_compiler.pipeline.contract import Skip

__all__ = ["SitePlan", "plan_sites"]

FloatArray = npt.NDArray[np.float32]


@dataclass
class SitePlan:
    """What becomes of one site.

    Attributes:
        site: the site.
        quantized: its rounded weight; None when it stays float.
        correction: what to add to the bias, None for no correction.
        quantizers: of the input of each use; None where the input stays float.
        errors: relative squared error of the output of each use.
        calibrations: the method that chose each quantiser, or "float".
        weight: the dequantised weight ``[in, out]``, once it is in the graph.
    """

    site: LinearSite
    quantized: QuantizedWeight | None
    correction: FloatArray | None
    quantizers: list[Quantizer | None] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    calibrations: list[str] = field(default_factory=list)
    weight: ir.Value | None = None

    @cached_property
    def root(self) -> ir.Value:
        """The initializer that holds the float weight."""
        return root_initializer(self.site.weight_value)[0]

    @cached_property
    def root_is_rows(self) -> bool:
        """Whether the initializer is laid out ``[out, in]``."""
        return self.site.stored_transposed == root_initializer(self.site.weight_value)[1]

    def report(self) -> dict[str, Any]:
        """JSON-ready figures; read before the graph is rewritten."""
        outputs, inputs = self.site.shape
        uses = []
        for x, q, error, method in zip(
            self.site.inputs, self.quantizers, self.errors, self.calibrations, strict=True
        ):
            use: dict[str, Any] = {
                "input": x.name,
                "calibration": method,
                "relative_error": _figure(error),
            }
            if q is not None:
                use |= {
                    "scale": q.scale,
                    "zero_point": q.zero_point,
                    "low": _figure(q.low),
                    "high": _figure(q.high),
                }
            uses.append(use)
        return {
            "site": self.site.name,
            "shape": [outputs, inputs],
            "scheme": "int8" if any(self.quantizers) else "int8 weights",
            "uses": uses,
            "relative_error": _figure(max(self.errors)),
            "bytes_before": 4 * outputs * inputs,
            "bytes_after": outputs * inputs + 5 * outputs,
        }


def plan_sites(
    sites: Sequence[LinearSite],
    statistics: Mapping[ir.Value, ActivationStatistics],
    *,
    calibration: Calibration,
    percentile: float,
    bits: int,
    weights: WeightScale,
    correct_bias: bool,
    limit: float,
    keep_sensitive: bool,
) -> tuple[list[SitePlan], list[Skip]]:
    """Plan every site.

    Args:
        sites: sites to quantise.
        statistics: of every input of every site.
        calibration: method tried first for every activation.
        percentile: of the method "percentile".
        bits: of the weights, 7 or 8.
        weights: how the scales of the weights are chosen.
        correct_bias: whether sites with a bias get a correction.
        limit: relative squared output error above which a use is sensitive.
        keep_sensitive: whether sensitive uses get another range, or stay float.

    Returns:
        A plan for each site, and what was kept float or is over the limit.
    """
    plans = [_weights_only(site, statistics, bits, weights, correct_bias) for site in sites]
    skips: list[Skip] = []
    readers: dict[ir.Value, list[tuple[SitePlan, int]]] = {}
    for plan in plans:
        for use, x in enumerate(plan.site.inputs):
            readers.setdefault(x, []).append((plan, use))
    methods = [calibration, *(m for m in get_args(Calibration) if m != calibration)]
    for x, uses in readers.items():
        found = statistics[x]
        if found.dead:
            skips.append(
                Skip(f"activation '{x.name}'", "only zeros on the calibration data; scale 1")
            )
        _choose(found, uses, methods if keep_sensitive else methods[:1], percentile, limit)
    for plan in plans:
        skips += _judge(plan, statistics, limit, keep_sensitive)
    return plans, skips


def _weights_only(
    site: LinearSite,
    statistics: Mapping[ir.Value, ActivationStatistics],
    bits: int,
    weights: WeightScale,
    correct_bias: bool,
) -> SitePlan:
    W = site.weight()
    squares = np.stack([np.square(statistics[x].sample).mean(axis=0) for x in site.inputs])
    importance = squares.mean(axis=0).astype(np.float32)
    quantized = quantize_weight(W, bits=bits, scale=weights, importance=importance)
    correction = None
    if correct_bias and all(bias is not None for bias in site.bias_values):
        counts = np.array([statistics[x].rows for x in site.inputs], np.float64)
        means = np.stack([statistics[x].mean for x in site.inputs])
        mean = (counts @ means / max(1.0, counts.sum())).astype(np.float32)
        correction = bias_correction(W, quantized, mean)
    uses = len(site.nodes)
    return SitePlan(site, quantized, correction, [None] * uses, [math.inf] * uses, ["float"] * uses)


def _choose(
    found: ActivationStatistics,
    uses: list[tuple[SitePlan, int]],
    methods: list[Calibration],
    percentile: float,
    limit: float,
) -> None:
    """Set quantiser and error of all readers of an activation, by the first method good enough."""
    best = math.inf
    for method in methods:
        quantizer = choose_range(found, method, percentile=percentile)
        errors = [_error(plan, found, quantizer) for plan, _ in uses]
        if max(errors) < best or method == methods[0]:
            best = max(errors)
            for (plan, use), error in zip(uses, errors, strict=True):
                plan.quantizers[use] = quantizer
                plan.errors[use] = error
                plan.calibrations[use] = method
        if best <= limit:
            return


def _judge(
    plan: SitePlan,
    statistics: Mapping[ir.Value, ActivationStatistics],
    limit: float,
    keep_sensitive: bool,
) -> list[Skip]:
    skips = []
    name = plan.site.name
    for use, x in enumerate(plan.site.inputs):
        over = plan.errors[use]
        if over <= limit:
            continue
        text = f"relative output error {over:.3g} is over the limit of {limit:g}"
        if not keep_sensitive:
            skips.append(Skip(name, f"{text}; quantised nevertheless (sensitive=report)"))
            continue
        plan.quantizers[use] = None
        plan.calibrations[use] = "float"
        plan.errors[use] = error = _error(plan, statistics[x], None)
        if error > limit:
            plan.quantized = plan.correction = None
            reason = f"{error:.3g} with int8 weights alone; the site stays float"
            return [Skip(name, f"{text}, {reason}")]
        skips.append(Skip(name, f"{text}; its input '{x.name}' stays float ({error:.3g} then)"))
    return skips


def _error(plan: SitePlan, found: ActivationStatistics, quantizer: Quantizer | None) -> float:
    if plan.quantized is None:
        return 0.0
    W = plan.site.weight()
    return output_error(found.sample, W, plan.quantized, quantizer, plan.correction).relative


def _figure(number: float) -> float:
    return float(f"{number:.6g}")
