"""A graph cut into stages at the inputs of its Linear sites, run one stage at a time.

Sites are put in levels: a site stands one level behind the last site that its input depends on.
The stage of a level holds the nodes that lead from what earlier stages left to the inputs of its
sites. Running the stages one after the other runs every node once, and between two stages the
weights of the sites behind may change. What later stages read is kept for every batch in between:
for an encoder the hidden state, the mask and what is open inside the layer.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from obert_compiler.graph.constants import is_constant
from obert_compiler.graph.graph import Graph
from obert_compiler.graph.linear import LinearSite
from obert_compiler.passes.array_store import ArrayStore
from obert_compiler.passes.threads import threads_asked_for

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["GraphStages", "StagedRun", "WalkStage", "cut_into_stages"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class WalkStage:
    """One stage.

    Attributes:
        sites: names of the sites whose inputs it computes.
        reads: names of the values that it takes from graph inputs and earlier stages.
        gives: names of the values that it makes for its sites and for later stages.
        drops: names of the values that no later stage reads.
    """

    sites: tuple[str, ...]
    reads: tuple[str, ...]
    gives: tuple[str, ...]
    drops: tuple[str, ...]


@dataclass(frozen=True)
class GraphStages:
    """The stages in the order in which they run.

    Attributes:
        stages: without the nodes behind the last sites.
        inputs: for each site the name of the value it multiplies.
        residuals: for each site whose output goes into a sum alone, with a value that is there
            when the site runs, the name of that value (the residual connection around it).
        several: sites with several uses (ALBERT's shared layers): they have no place in the order.
    """

    stages: tuple[WalkStage, ...]
    inputs: dict[str, str]
    residuals: dict[str, str]
    several: tuple[str, ...]


def cut_into_stages(graph: Graph, sites: Sequence[LinearSite]) -> GraphStages:
    """Cut ``graph`` at the inputs of ``sites``; values without a type or a shape get them first."""
    _state_types(graph)
    placed = [site for site in sites if len(site.nodes) == 1]
    level = _levels(graph, {node for site in placed for node in site.nodes})
    by_level: dict[int, list[LinearSite]] = {}
    for site in placed:
        by_level.setdefault(level.get(site.inputs[0], 0), []).append(site)
    groups = [by_level[key] for key in sorted(by_level)]
    stage_of = _stages_of_nodes(groups)
    reads: list[dict[str, None]] = [{} for _ in groups]
    gives: list[dict[str, None]] = [{} for _ in groups]
    wanted = [(site.inputs[0], number) for number, group in enumerate(groups) for site in group]
    for x, _ in wanted:
        if x.producer() is not None:
            gives[stage_of[_maker(x)]][_name(x)] = None
    wanted += [
        (value, number)
        for node, number in stage_of.items()
        for value in node.inputs
        if value is not None and not is_constant(value)
    ]
    for value, number in wanted:
        made = -1 if value.producer() is None else stage_of[_maker(value)]
        if made < number:
            reads[number][_name(value)] = None
        if 0 <= made < number:
            gives[made][_name(value)] = None
    last = {name: number for number, names in enumerate(gives) for name in names}
    last.update((name, number) for number, names in enumerate(reads) for name in names)
    residuals: dict[str, str] = {}
    for number, group in enumerate(groups):
        for site in group:
            beside = _residual(site)
            if beside is None:
                continue
            name, maker = _name(beside), beside.producer()
            made = -1 if maker is None else stage_of.get(maker, len(groups))
            if made > number:
                continue
            residuals[site.name] = name
            if made >= 0:
                gives[made][name] = None
            last[name] = max(number, last.get(name, number))
    stages = tuple(
        WalkStage(
            tuple(site.name for site in group),
            tuple(reads[number]),
            tuple(gives[number]),
            tuple(name for name, final in last.items() if final == number),
        )
        for number, group in enumerate(groups)
    )
    inputs = {site.name: _name(site.inputs[0]) for site in placed}
    several = tuple(s.name for s in sites if len(s.nodes) > 1)
    return GraphStages(stages, inputs, residuals, several)


def _state_types(graph: Graph) -> None:
    """Inputs of a stage need types, and residuals are told by shapes; files may state neither."""
    if any(o.dtype is None or o.shape is None for node in graph.model.graph for o in node.outputs):
        common_passes.ShapeInferencePass()(graph.model)


def _residual(site: LinearSite) -> ir.Value | None:
    """The other summand, where the output of ``site`` goes into one sum of equal shapes alone."""
    output = site.outputs[0]
    readers = tuple(output.uses())
    if len(readers) != 1 or output.is_graph_output() or readers[0].node.op_type != "Add":
        return None
    add, place = readers[0]
    other = add.inputs[1 - place]
    if other is None or other is output or is_constant(other) or other.shape is None:
        return None
    same = output.shape is not None and other.shape.rank() == output.shape.rank()
    return other if same and other.shape[-1] == site.shape[0] else None


class StagedRun:
    """Runs one graph stage by stage over all batches.

    Args:
        graph: read anew at every stage, so that weights changed in between count.
        stages: of this graph, or of one with the same names.
        feeds: the graph inputs of each batch.
        held_bytes: bound on the values kept in memory between stages; the others go to files.
    """

    def __init__(
        self,
        graph: Graph,
        stages: GraphStages,
        feeds: Sequence[Mapping[str, Array]],
        held_bytes: int,
    ) -> None:
        self._graph = graph
        self._stages = stages
        self._kept = [ArrayStore(held_bytes // max(1, len(feeds))) for _ in feeds]
        for store, feed in zip(self._kept, feeds, strict=True):
            for name, array in feed.items():
                store[name] = array

    def advance(self, stage: WalkStage) -> Iterator[dict[str, Array]]:
        """Run ``stage`` and yield, batch by batch, inputs and residuals of its sites, by name."""
        places = (self._stages.inputs, self._stages.residuals)
        wanted = {names[site] for names in places for site in stage.sites if site in names}
        with _session(self._graph, stage) as session:
            for store in self._kept:
                known = {name: store[name] for name in {*stage.reads, *wanted} & set(store)}
                if stage.gives:
                    feed = {name: known[name] for name in stage.reads}
                    known.update(zip(stage.gives, session.run(stage.gives, feed), strict=True))
                for name in stage.gives:
                    if name not in stage.drops:
                        store[name] = known[name]
                for name in stage.drops:
                    store.pop(name, None)
                yield {name: known[name] for name in wanted}


@contextmanager
def _session(graph: Graph, stage: WalkStage) -> Iterator[onnxruntime.InferenceSession]:
    """The nodes of one stage; None where the sites read graph inputs."""
    import onnxruntime

    if not stage.gives:
        yield None
        return
    model = graph.model
    part = ir.convenience.extract(model.graph, stage.reads, stage.gives)
    part.opset_imports.update(model.graph.opset_imports)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads_asked_for() or 0
    with tempfile.TemporaryDirectory(prefix="obert-stage-") as folder:
        path = Path(folder) / "stage.onnx"
        # Through a file, because a message in memory is limited to 2 GB.
        ir.save(ir.Model(part, ir_version=model.ir_version), path, external_data="stage.data")
        yield onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _levels(graph: Graph, products: set[ir.Node]) -> dict[ir.Value, int]:
    """For every value the number of chosen products on the longest path to it."""
    level: dict[ir.Value, int] = {}
    for node in graph.model.graph:
        depth = max((level.get(v, 0) for v in node.inputs if v is not None), default=0)
        for output in node.outputs:
            level[output] = depth + (node in products)
    return level


def _stages_of_nodes(groups: Sequence[Sequence[LinearSite]]) -> dict[ir.Node, int]:
    """The first stage that needs each node; nodes behind the last sites are in none."""
    stage_of: dict[ir.Node, int] = {}
    for number, sites in enumerate(groups):
        pending = [site.inputs[0] for site in sites]
        while pending:
            node = pending.pop().producer()
            if node is None or node in stage_of:
                continue
            stage_of[node] = number
            pending.extend(v for v in node.inputs if v is not None and not is_constant(v))
    return stage_of


def _maker(value: ir.Value) -> ir.Node:
    node = value.producer()
    if node is None:
        raise ValueError(f"value '{value.name}' is made by no node")
    return node


def _name(value: ir.Value) -> str:
    if value.name is None:
        raise ValueError("a value without a name in a canonical graph")
    return value.name
