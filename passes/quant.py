"""The ``quant`` pass: post-training static INT8 for Linear sites, 4 or 8 bits for embeddings.

The float graph runs on calibration data once; ranges, rounding and corrections are then chosen per
activation and per weight, judged by what they do to the outputs of the sites, and written as
standard QuantizeLinear and DequantizeLinear. Embedding tables follow (`quant_tables`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from obert_compiler.errors import GraphError, UsageError
from obert_compiler.graph.embeddings import EmbeddingSite
from obert_compiler.graph.graph import Graph, Stage
from obert_compiler.graph.linear import LinearSite, find_linear_sites
from obert_compiler.graph.patterns import matches
from obert_compiler.passes.attention_quantization import (
    AttentionPlan,
    find_operands,
    plan_attention,
)
from obert_compiler.passes.calibration import ActivationStatistics, Calibration
from obert_compiler.passes.calibration_run import collect_statistics
from obert_compiler.passes.quant_graph import QuantizedGraph, root_initializer
from obert_compiler.passes.quant_plan import SitePlan, plan_sites
from obert_compiler.passes.quant_tables import (
    TablePlan,
    find_tables,
    plan_parameters,
    plan_tables,
    redirect_other_readers,
    write_table,
)
from obert_compiler.passes.weight_quantization import WeightScale
from obert_compiler.pipeline.contract import Context, Pass, PassResult, Skip

__all__ = ["Quant", "QuantizationPlan"]


@dataclass(frozen=True)
class QuantizationPlan:
    """What quantisation makes of a graph that is still float.

    Attributes:
        sites: the sites that become int8.
        attention: the attentions whose queries, keys and values are rounded.
        tables: the embedding tables that become integers.
        parameters: the matrices that become integers and are read whole.
        calibration: JSON-ready figures of the calibration.
        skips: what stays float, with the reason.
    """

    sites: list[SitePlan]
    attention: list[AttentionPlan]
    tables: list[TablePlan]
    parameters: list[TablePlan]
    calibration: dict[str, Any]
    skips: tuple[Skip, ...]


@dataclass(frozen=True)
class Quant(Pass):
    """Quantise after training.

    Attributes:
        calibration: how ranges of activations are chosen: ``minmax``, ``percentile`` or ``mse``.
        percentile: upper quantile of ``calibration=percentile``, in percent.
        examples: calibration examples, spread evenly over the data.
        bits: 7 keeps |weight| <= 64, so that no CPU's 16-bit sums saturate; 8 (|weight| <= 127) is
            safe only where every CPU that will run the file has VNNI, AMX or ARM dot products.
        weights: ``mse`` searches the scale of each output row, ``max`` takes the largest weight.
        attention_products: ``int8`` rounds the queries, keys and values of attention to 8 bits
            too, for engines that multiply them as integers; probabilities stay float. ``float``
            rounds none.
        bias_correction: take the mean error of the rounded weights out of the bias.
        embeddings: ``4bit`` in groups along the row, ``8bit`` by row, or ``none``.
        group: columns of a 4-bit group.
        limit: relative squared error of a site's output above which the site is sensitive.
        sensitive: ``keep`` tries other ranges for a sensitive site, then leaves its activations
            float, then its weights too; ``report`` only reports it.
        min_outputs: sites with fewer outputs (heads of a few labels) stay float.
        include: patterns of sites to quantise; all by default.
        exclude: patterns of sites to leave float.
    """

    name: ClassVar[str] = "quant"
    summary: ClassVar[str] = "static INT8 for Linear layers, 4 or 8 bits for embeddings"
    accepts: ClassVar[frozenset[Stage]] = frozenset({Stage.DENSE, Stage.PRUNED})
    produces: ClassVar[Stage | None] = Stage.QUANTISED

    calibration: Calibration = "mse"
    percentile: float = 99.99
    examples: int = 256
    bits: Literal[7, 8] = 7
    weights: WeightScale = "mse"
    attention_products: Literal["float", "int8"] = "int8"
    bias_correction: bool = True
    embeddings: Literal["4bit", "8bit", "none"] = "4bit"
    group: int = 64
    limit: float = 0.02
    sensitive: Literal["keep", "report"] = "keep"
    min_outputs: int = 16
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._expect(50.0 < self.percentile <= 100.0, "percentile", "above 50, at most 100")
        self._expect(self.examples >= 1, "examples", "at least 1")
        self._expect(self.group >= 2, "group", "at least 2")
        self._expect(self.limit > 0.0, "limit", "above 0")
        self._expect(self.min_outputs >= 0, "min_outputs", "at least 0")
        known = self.attention_products in {"float", "int8"}
        self._expect(known, "attention_products", "float or int8")

    def _expect(self, holds: bool, option: str, expected: str) -> None:
        if not holds:
            found = getattr(self, option)
            raise UsageError(
                f"option '{option}' of '{self.name}': expected {expected}, found {found}"
            )

    @property
    def needs_data(self) -> bool:
        """Always: ranges of activations come from data."""
        return True

    def requires(self, graph: Graph) -> None:
        """Check the stage, and that there is something to quantise.

        Raises:
            GraphError: the graph is quantised or packed already, or has neither Linear sites nor
                embedding tables.
        """
        if graph.stage not in self.accepts:
            raise GraphError(
                f"pass '{self.name}': expected a dense or pruned graph, found a {graph.stage} one; "
                "quantise once, from the float model"
            )
        if not len(find_linear_sites(graph)) and not find_tables(graph):
            raise GraphError(
                f"pass '{self.name}': expected a Linear layer or an embedding table, found none; "
                "this model has nothing that the pass can quantise"
            )

    def run(self, graph: Graph, context: Context) -> PassResult:
        """Calibrate, plan, rewrite."""
        plan = self.plan(graph, context)
        return self.write(graph, plan)

    def plan(self, graph: Graph, context: Context) -> QuantizationPlan:
        """Calibrate, and decide what becomes of every site and table; ``graph`` stays float.

        Raises:
            UsageError: no data.
            NumericsError: an activation is not finite.
        """
        if context.data is None:
            raise UsageError(
                f"pass '{self.name}': expected calibration data, found none; give data="
            )
        found = find_linear_sites(graph)
        skips = [Skip(other.name, other.reason) for other in found.unmatched]
        sites, left = self._select(graph, found.sites)
        skips += left
        attention, left = find_operands(graph) if self.attention_products == "int8" else ([], [])
        skips += left
        statistics = self._calibrate(graph, sites, attention, context)
        plans, notes = plan_sites(
            sites,
            statistics,
            calibration=self.calibration,
            percentile=self.percentile,
            bits=self.bits,
            weights=self.weights,
            correct_bias=self.bias_correction,
            limit=self.limit,
            keep_sensitive=self.sensitive == "keep",
        )
        skips += notes
        attention, left = plan_attention(
            attention,
            statistics,
            calibration=self.calibration,
            percentile=self.percentile,
            limit=self.limit,
            keep_sensitive=self.sensitive == "keep",
        )
        skips += left
        tables, left = plan_tables(
            find_tables(graph), plans, kind=self.embeddings, group=self.group
        )
        skips += left
        parameters, left = plan_parameters(
            graph, _float_weights(found.sites, plans), plans, kind=self.embeddings
        )
        skips += left
        rewritten = [plan for plan in plans if plan.quantized is not None]
        calibration = self._describe(context, statistics)
        return QuantizationPlan(rewritten, attention, tables, parameters, calibration, tuple(skips))

    def write(self, graph: Graph, plan: QuantizationPlan) -> PassResult:
        """Rewrite ``graph`` as ``plan`` says."""
        site_rows = [site.report() for site in plan.sites]
        table_rows = [table.report() for table in [*plan.tables, *plan.parameters]]
        attention_rows = [row for attention in plan.attention for row in attention.report()]
        editor = QuantizedGraph(graph)
        for operand in (o for attention in plan.attention for o in attention.operands):
            operand.write(editor)
        for table in plan.tables:
            write_table(editor, table)
        for site in plan.sites:
            _rewrite(editor, site)
        editor.remove_unused()
        for site in plan.sites:
            redirect_other_readers(editor, site)
        for parameter in plan.parameters:
            write_table(editor, parameter)
        editor.remove_unused()
        report = {
            "calibration": plan.calibration,
            "sites": site_rows,
            "attention": attention_rows,
            "tables": table_rows,
            "bytes_before": sum(row["bytes_before"] for row in [*site_rows, *table_rows]),
            "bytes_after": sum(row["bytes_after"] for row in [*site_rows, *table_rows]),
        }
        changed = bool(site_rows or attention_rows or table_rows)
        return PassResult(graph, changed, report, plan.skips)

    def _select(
        self, graph: Graph, sites: tuple[LinearSite, ...]
    ) -> tuple[list[LinearSite], list[Skip]]:
        tables = find_tables(graph)
        chosen: list[LinearSite] = []
        skips: list[Skip] = []
        roots: dict[ir.Value, str] = {}
        for site in sites:
            reason = self._why_not(site, roots, tables)
            if reason is None:
                chosen.append(site)
            else:
                skips.append(Skip(site.name, reason))
        return chosen, skips

    def _why_not(
        self,
        site: LinearSite,
        roots: dict[ir.Value, str],
        tables: Mapping[ir.Value, EmbeddingSite],
    ) -> str | None:
        if self.include and not any(matches(site.name, p) for p in self.include):
            return "no pattern of include= names it"
        if any(matches(site.name, p) for p in self.exclude):
            return "a pattern of exclude= names it"
        outputs, inputs = site.shape
        if outputs < self.min_outputs:
            return f"{outputs} outputs: float costs {4 * outputs * inputs} bytes and no time"
        try:
            root, _ = root_initializer(site.weight_value)
        except GraphError as error:
            return str(error)
        if root in roots:
            return f"its weight is stored once with '{roots[root]}', in another layout"
        if root in tables and self.embeddings == "none":
            return "its weight is an embedding table, and embeddings=none"
        if root in tables and not site.stored_transposed:
            return "its weight is an embedding table that Gemm reads untransposed"
        roots[root] = site.name
        return None

    def _calibrate(
        self,
        graph: Graph,
        sites: list[LinearSite],
        attention: list[AttentionPlan],
        context: Context,
    ) -> dict[ir.Value, ActivationStatistics]:
        activations: dict[ir.Value, str] = {}
        for site in sites:
            for x in site.inputs:
                activations.setdefault(x, site.name)
        for plan in attention:
            for operand in plan.operands:
                activations.setdefault(operand.value, plan.name)
        if not activations:
            return {}
        return collect_statistics(
            graph,
            activations,
            self._batches(graph, context),
            seed=context.seed,
            processes=context.processes,
        )

    def _batches(self, graph: Graph, context: Context) -> Iterator[dict[str, npt.NDArray[Any]]]:
        """Batches at even distances, about `examples` examples: data may be sorted by length."""
        data = context.data
        if data is None:
            return
        names = [value.name or "" for value in graph.model.graph.inputs]
        count = len(data)
        sizes = [len(batch) for batch in data]
        wanted = min(count, max(1, round(self.examples * count / max(1, sum(sizes)))))
        chosen = set(np.linspace(0, count - 1, wanted).round().astype(int).tolist())
        picked = (batch for index, batch in enumerate(data) if index in chosen)
        for batch in context.progress.track(picked, "calibration", wanted):
            yield batch.feed(names)

    def _describe(
        self, context: Context, statistics: dict[ir.Value, ActivationStatistics]
    ) -> dict[str, Any]:
        data = context.data
        return {
            "data": "" if data is None else data.describe(),
            "method": self.calibration,
            "rows": max((s.rows for s in statistics.values()), default=0),
            "activations": len(statistics),
            "statistics_bytes": sum(s.nbytes for s in statistics.values()),
        }


def _float_weights(sites: tuple[LinearSite, ...], plans: list[SitePlan]) -> set[ir.Value]:
    """Initializers of the sites that stay float."""
    quantised = {plan.site.name for plan in plans if plan.quantized is not None}
    weights = set()
    for site in sites:
        if site.name not in quantised:
            with suppress(GraphError):  # a weight that is no float initializer stays as it is
                weights.add(root_initializer(site.weight_value)[0])
    return weights


def _rewrite(editor: QuantizedGraph, plan: SitePlan) -> None:
    quantized = plan.quantized
    if quantized is None:
        raise ValueError(f"site '{plan.site.name}' stays float")
    if plan.weight is None:
        plan.weight = editor.quantized_weight(plan.site.name, quantized)
    activations = [
        x if q is None else editor.quantized_activation(x, q)
        for x, q in zip(plan.site.inputs, plan.quantizers, strict=True)
    ]
    editor.rewrite_linear(plan.site, activations, plan.weight, plan.correction)
