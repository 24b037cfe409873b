"""Values inside a graph that a loss compares: hidden states between layers, queries, keys, values.

They become outputs of a copy of the graph, so that the module of the copy returns them by name.
Layers and attention are found from the shape of the graph (`obert_compiler.graph.layers`,
`obert_compiler.graph.attention`): the student may have fewer layers than the teacher, and either
may come from any exporter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from obert_compiler.errors import UsageError
from obert_compiler.graph.attention import find_attention
from obert_compiler.graph.graph import Graph
from obert_compiler.graph.layers import find_encoder_layers
from obert_compiler.graph.linear import find_linear_sites

if TYPE_CHECKING:
    from obert_compiler.passes.training.options import TrainingOptions

__all__ = ["RELATIONS", "Taps", "read_taps", "tapped_graph"]

_PREFIX = "obert.tap."
RELATIONS = ("query", "key", "value")


@dataclass(frozen=True)
class Taps:
    """Names of the outputs that `tapped_graph` added.

    Attributes:
        hidden: the hidden state after each layer, from the embeddings on.
        relations: queries, keys and values of the last attention, by `RELATIONS`; empty for none.
        heads: heads of the last attention.
    """

    hidden: tuple[str, ...] = ()
    relations: tuple[str, ...] = ()
    heads: int = 0


def tapped_graph(graph: Graph, options: TrainingOptions) -> tuple[Graph, Taps]:
    """A copy of ``graph`` with the outputs that the losses of ``options`` read.

    Where they read none, ``graph`` itself.

    Raises:
        UsageError: ``hidden`` without encoder layers, or ``attention`` without attention.
    """
    if not options.hidden and not options.attention:
        return graph, Taps()
    return read_taps(graph, hidden=options.hidden > 0, relations=options.attention > 0)


def read_taps(graph: Graph, *, hidden: bool, relations: bool) -> tuple[Graph, Taps]:
    """The same for the values that are asked for."""
    copy = graph.copy()
    layers: list[str] = []
    if hidden:
        found = find_encoder_layers(copy)
        if not len(found):
            raise UsageError(
                f"hidden: expected encoder layers, found none: {found.unmatched[0].reason}; "
                "leave hidden out"
            )
        layers = [_tap(copy, layer.output, f"hidden.{layer.index}") for layer in found]
    if not relations:
        return copy, Taps(tuple(layers))
    attentions = find_attention(copy)
    if not len(attentions):
        reasons = [u.reason for u in attentions.unmatched] or ["the graph has no Softmax"]
        raise UsageError(
            f"attention: expected an attention, found none: {reasons[0]}; leave attention out"
        )
    last = attentions.regions[-1]
    sites = find_linear_sites(copy)
    # A fused projection is one site under all three names, and one relation of its whole width.
    wanted = {getattr(last, what): what for what in reversed(RELATIONS)}
    names = [_tap(copy, sites[site].outputs[0], what) for site, what in reversed(wanted.items())]
    return copy, Taps(tuple(layers), tuple(names), last.heads)


def _tap(graph: Graph, value: ir.Value, name: str) -> str:
    """Make ``value`` an output; its name."""
    # An output under its own name cannot be renamed, and one value cannot be output twice.
    identity = ir.node("Identity", [value], outputs=[ir.Value(shape=value.shape, type=value.type)])
    identity.outputs[0].name = identity.name = f"{_PREFIX}{name}"
    graph.model.graph.append(identity)
    graph.model.graph.outputs.append(identity.outputs[0])
    return str(identity.outputs[0].name)
