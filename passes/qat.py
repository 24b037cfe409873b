"""The pass ``qat``: trains with the roundings of ``quant`` in place, then writes them.

The plan is that of `obert_compiler.passes.quant`: same sites, ranges, scales, tables. The float
graph's module gets the roundings (`obert_compiler.passes.quantization_training`), trains with the
core that ``finetune`` uses, and the graph is written with the integers, scales and ranges that the
training ended with. What is emitted therefore computes what was trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from obert_compiler.errors import GraphError, UsageError
from obert_compiler.graph.graph import Graph
from obert_compiler.graph.linear import QUANTISATION_KEY, find_linear_sites
from obert_compiler.passes.quant import Quant, QuantizationPlan
from obert_compiler.passes.training import TrainingOptions, train
from obert_compiler.pipeline.contract import Context, PassResult

if TYPE_CHECKING:
    from obert_compiler.backends.torch.module import OnnxModule

__all__ = ["QuantizationAwareTraining"]

_LARGEST_DIFFERENCE = 1e-3


@dataclass(frozen=True)
class QuantizationAwareTraining(TrainingOptions, Quant):
    """Quantise as ``quant`` does, with training of what is rounded.

    Attributes:
        scales: ``observed`` lets ranges of activations and scales of weights follow the training
            for its first part, then freezes them; ``learnt`` learns them by their gradients.
        observe: share of the training, 0 to 1, for which ``observed`` scales move.
    """

    name: ClassVar[str] = "qat"
    summary: ClassVar[str] = "static INT8 as by quant, trained with the rounding in place"

    scales: Literal["observed", "learnt"] = "observed"
    observe: float = 0.5

    def __post_init__(self) -> None:
        Quant.__post_init__(self)
        TrainingOptions.__post_init__(self)
        if self.scales not in {"observed", "learnt"}:
            raise UsageError(f"qat: expected scales observed or learnt, found '{self.scales}'")
        if not 0.0 <= self.observe <= 1.0:
            raise UsageError(f"qat: expected observe from 0 to 1, found {self.observe}")

    def requires(self, graph: Graph) -> None:
        """Check that there is something to quantise, and that every op can be trained.

        Raises:
            GraphError: otherwise.
        """
        from obert_compiler.backends.torch.builder import check_supported

        Quant.requires(self, graph)
        check_supported(graph)

    def run(self, graph: Graph, context: Context) -> PassResult:
        """Calibrate, plan, train, rewrite.

        Raises:
            as `obert_compiler.passes.training.train`.
            GraphError: the rewritten graph computes something else than the trained module.
        """
        from obert_compiler.backends.torch.module import to_module
        from obert_compiler.passes.quantization_training import FakeQuantisation, prepare
        from obert_compiler.passes.training import tapped_graph

        plan = self.plan(graph, context)
        prepare(graph, plan)
        module = to_module(tapped_graph(graph, self)[0])
        learnt = self.scales == "learnt"
        rounding = FakeQuantisation(module, plan, bits=self.bits, learnt=learnt)
        result = train(
            graph,
            context,
            self,
            name=self.name,
            module=module,
            on_share=lambda share: rounding.observe(share < self.observe),
        )
        rounding.observe(False)
        rounding.read_back(plan)
        written = self.write(graph, plan)
        _mark(graph, plan)
        difference = self._difference(graph, module, context)
        report = written.report | result.report | {"scales": self.scales}
        report |= {"difference_from_trained_module": difference}
        return PassResult(graph, True, report, written.skips)

    def _difference(self, graph: Graph, module: OnnxModule, context: Context) -> float:
        """Relative squared difference of the graph's outputs from the trained module's."""
        import torch

        from obert_compiler.backends.torch.module import to_module

        if context.data is None:
            return 0.0
        names = [value.name or "" for value in graph.model.graph.inputs]
        batch = next(iter(context.data)).feed(names)
        feed = {name: torch.from_numpy(array) for name, array in batch.items()}
        error = size = 0.0
        with torch.no_grad():
            trained = module.eval()(**feed)
            for name, value in to_module(graph).eval()(**feed).items():
                if value.is_floating_point():
                    error += float((value - trained[name]).double().square().sum())
                    size += float(trained[name].double().square().sum())
        relative = error / size if size else error
        if not relative <= _LARGEST_DIFFERENCE:
            raise GraphError(
                f"qat: expected the quantised graph to compute what was trained, found a relative "
                f"squared difference of {relative:.3g} on the first batch; please report this model"
            )
        return relative


def _mark(graph: Graph, plan: QuantizationPlan) -> None:
    trained = {site.site.name for site in plan.sites}
    for site in find_linear_sites(graph):
        if site.name in trained:
            for node in site.nodes:
                node.metadata_props[QUANTISATION_KEY] = "trained"
