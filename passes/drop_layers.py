"""Drop encoder layers: a shallower model from a deep one.

The output of a dropped layer is replaced by its input; what nothing reads any more goes with it.
Layers come from the shape of the graph (`obert_compiler.graph.layers`), so any graph whose layers
were found can be cut.

Evenly spaced layers are kept by default, the first and the last among them: layer ``i`` of ``keep``
is ``round(i * (n - 1) / (keep - 1))``, so 12 -> 6 keeps 0 2 4 7 9 11 and 12 -> 3 keeps 0 6 11. That
is how DistilBERT is initialised from BERT (Sanh et al. 2019, section 3: one layer out of two): the
last layer stays because the head was trained to read it, the first because it was trained to read
the embeddings. With data ``choose=loss`` drops the layers that the outputs miss least instead, and
``repair=rows`` moves the others to the least squares that makes up for the gaps, layer by layer
(`obert_compiler.passes.layerwise_repair`). A fine-tuning afterwards is needed to win the accuracy
back.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from obert_compiler.errors import GraphError, SpecError, UsageError
from obert_compiler.graph.graph import Graph, Stage
from obert_compiler.graph.layers import (
    EncoderLayer,
    EncoderLayers,
    find_encoder_layers,
    prunable_sites,
)
from obert_compiler.passes.layer_choice import choose_layers
from obert_compiler.passes.layerwise_repair import LayerwiseRepair
from obert_compiler.passes.output_distance import OutputDistance
from obert_compiler.passes.site_selection import sites_behind
from obert_compiler.pipeline.contract import Context, Pass, PassResult, Skip

if TYPE_CHECKING:
    from obert_compiler.data.batches import Batches

__all__ = ["KEPT_LAYERS_KEY", "DropLayers", "evenly_spaced"]

KEPT_LAYERS_KEY = "obert.kept_layers"
"""Model metadata: the kept layers as a JSON list of their indices in the source model."""

_HELD_BYTES = 4 * 10**9
_RIDGE = 1e-3
"""As in ``prune``."""

_DEPTH_KEYS = ("num_hidden_layers", "n_layers", "num_layers", "n_layer")


@dataclass(frozen=True)
class DropLayers(Pass):
    """Keep some encoder layers and drop the others.

    Attributes:
        keep: number of layers to keep.
        layers: indices of the layers to keep, 0 next to the embeddings; their order is that of the
            model. Give either this or ``keep``.
        choose: which layers ``keep`` keeps: evenly ``spaced`` ones with the first and the last, or
            by ``loss``: one layer after the other goes, each time the one without which the outputs
            lie closest to those of the whole model (needs data).
        repair: ``rows`` solves for the matrices and biases of the layers that stay, and of pooler
            and head behind them, layer by layer, so that they bring out what they did in the whole
            model (needs data); or ``none``.
        samples: examples for ``choose=loss``.
        repair_samples: examples for ``repair=rows``.
    """

    name: ClassVar[str] = "drop-layers"
    summary: ClassVar[str] = "keep some encoder layers, evenly spaced or listed, drop the others"
    accepts: ClassVar[frozenset[Stage]] = frozenset({Stage.DENSE, Stage.PRUNED})

    keep: int | None = None
    layers: tuple[int, ...] = ()
    choose: Literal["spaced", "loss"] = "spaced"
    repair: Literal["none", "rows"] = "none"
    samples: int = 256
    repair_samples: int = 2048

    def __post_init__(self) -> None:
        if self.keep is not None and self.layers:
            raise SpecError("drop-layers: expected keep=N or layers=A+B, found both; leave one out")
        if self.keep is not None and self.keep < 1:
            raise SpecError(f"drop-layers: expected keep of at least 1, found {self.keep}")
        repeated = sorted({i for i in self.layers if self.layers.count(i) > 1})
        if repeated:
            raise SpecError(f"drop-layers: layer {repeated[0]} is listed twice; list each once")
        if any(i < 0 for i in self.layers):
            raise SpecError(
                f"drop-layers: expected indices from 0 (next to the embeddings) on, "
                f"found {min(self.layers)}"
            )

        for option, values in (("choose", ("spaced", "loss")), ("repair", ("none", "rows"))):
            if getattr(self, option) not in values:
                raise UsageError(
                    f"drop-layers: expected {option} {' or '.join(values)}, "
                    f"found '{getattr(self, option)}'"
                )
        for option in ("samples", "repair_samples"):
            if getattr(self, option) < 1:
                raise UsageError(
                    f"drop-layers: expected {option} of at least 1, found {getattr(self, option)}"
                )
        if self.choose == "loss" and self.layers:
            raise UsageError("drop-layers: expected keep=N for choose=loss, found layers")

    @property
    def needs_data(self) -> bool:
        """To choose by loss, and to repair."""
        return self.choose == "loss" or self.repair == "rows"

    def requires(self, graph: Graph) -> None:
        """Check that layers are found and that there are enough of them.

        Raises:
            UsageError: neither ``keep`` nor ``layers``, or more layers asked for than there are.
            GraphError: the graph has no encoder layers.
        """
        self._kept(find_encoder_layers(graph))

    def run(self, graph: Graph, context: Context) -> PassResult:
        """Drop the layers, in place.

        Raises:
            UsageError, GraphError: as `requires`.
            GraphError: something outside reads the inside of a dropped layer.
        """
        found = find_encoder_layers(graph)
        kept = self._kept(found)
        figures: dict[str, Any] = {}
        if self.choose == "loss":
            kept, figures = self._by_loss(graph, len(found), context)
        dropped = [layer.index for layer in found if layer.index not in kept]
        before = _parameters(graph)
        whole = graph.copy()
        _cut(graph, kept)
        if self.repair == "rows" and dropped:
            figures["repaired"] = self._repair(graph, whole, context)
        skips = _update_config(graph, len(found), kept)
        _record(graph, kept)
        report = {
            "layers": len(found),
            "kept": kept,
            "dropped": dropped,
            "parameters_removed": before - _parameters(graph),
            **figures,
        }
        return PassResult(graph, bool(dropped), report, tuple(skips))

    def _by_loss(
        self, graph: Graph, count: int, context: Context
    ) -> tuple[list[int], dict[str, Any]]:
        """The layers to keep, and the distances that say so."""
        distance = OutputDistance(graph, self._data(context, self.samples))

        def loss(layers: tuple[int, ...]) -> float:
            shallow = graph.copy()
            _cut(shallow, list(layers))
            return distance(shallow)

        kept, rounds = choose_layers(count, self.keep or count, loss)
        without = [{str(i): value for i, value in found.items()} for found in rounds]
        return list(kept), {"output_distance_without": without}

    def _repair(self, graph: Graph, whole: Graph, context: Context) -> list[str]:
        sites = [site for site in prunable_sites(graph)[0] if len(site.nodes) == 1]
        sites += sites_behind(graph, sites)
        masks = {site.name: np.array(site.weight() != 0) for site in sites}
        data = self._data(context, self.repair_samples)
        LayerwiseRepair(whole, data, _RIDGE, _HELD_BYTES).repair(graph, masks, context.progress)
        return list(masks)

    def _data(self, context: Context, count: int) -> Batches:
        if context.data is None:
            option = "choose=loss" if self.choose == "loss" else "repair=rows"
            raise UsageError(
                f"drop-layers: expected data for {option}, found none; give --data FILE"
            )
        return context.data.take(count, context.seed)

    def _kept(self, found: EncoderLayers) -> list[int]:
        count = len(found)
        if self.keep is None and not self.layers:
            raise UsageError("drop-layers: expected keep=N or layers=A+B, found neither")
        if not count:
            raise GraphError(
                f"drop-layers: expected encoder layers, found none: {found.unmatched[0].reason}"
            )
        if self.keep is not None:
            if self.keep > count:
                raise UsageError(
                    f"drop-layers: expected keep of at most {count}, the layers found, "
                    f"found {self.keep}"
                )
            return evenly_spaced(count, self.keep)
        if max(self.layers) >= count:
            raise UsageError(
                f"drop-layers: expected layers from 0 to {count - 1}, found {max(self.layers)}"
            )
        return sorted(self.layers)


def evenly_spaced(count: int, keep: int) -> list[int]:
    """``keep`` of ``count`` indices, evenly spaced, the first and the last among them.

    ``keep=1`` gives the first. Halves round up.
    """
    if keep == 1:
        return [0]
    return [math.floor(i * (count - 1) / (keep - 1) + 0.5) for i in range(keep)]


def _cut(graph: Graph, kept: list[int]) -> None:
    """Drop the other layers.

    Raises:
        GraphError: something outside reads the inside of one.
    """
    dropped = [layer for layer in find_encoder_layers(graph) if layer.index not in kept]
    inside = {node for layer in dropped for node in layer.nodes}
    _bypass(graph.model.graph, dropped)
    common_passes.RemoveUnusedNodesPass()(graph.model)
    _check_gone(graph, dropped, inside)


def _bypass(graph: ir.Graph, dropped: list[EncoderLayer]) -> None:
    """Make whatever reads a dropped layer's output read its input."""
    stands_for: dict[ir.Value, ir.Value] = {}
    for layer in dropped:
        entry = stands_for.get(layer.input, layer.input)
        stands_for[layer.output] = entry
        for use in tuple(layer.output.uses()):
            use.node.replace_input_with(use.idx, entry)
        if layer.output.is_graph_output():
            _make_output(graph, layer.output, entry)


def _make_output(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Let ``new`` be the graph output that ``old`` was, under the same name."""
    name = old.name
    old.name = f"{name}.dropped"
    if new.producer() is None or new.is_graph_output():
        identity = ir.node("Identity", [new], outputs=[ir.Value(shape=old.shape, type=old.type)])
        identity.name = f"{name}.copy"
        graph.append(identity)
        new = identity.outputs[0]
    new.name = name
    for position, output in enumerate(graph.outputs):
        if output is old:
            graph.outputs[position] = new


def _check_gone(graph: Graph, dropped: list[EncoderLayer], inside: set[ir.Node]) -> None:
    left = {node for node in graph.model.graph if node in inside}
    for layer in dropped:
        matrices = [n for n in layer.nodes if n in left and n.op_type in {"MatMul", "Gemm"}]
        if matrices:
            raise GraphError(
                f"drop-layers: layer {layer.index} cannot be dropped, because a value inside it is "
                f"read from outside (through node '{matrices[-1].name}'); keep it, or export the "
                "model without that output"
            )


def _update_config(graph: Graph, count: int, kept: list[int]) -> list[Skip]:
    """Write the new depth into the Hugging Face configuration."""
    config: dict[str, Any] = dict(graph.source.config)
    skips = []
    for key in _DEPTH_KEYS:
        if config.get(key) == count:
            config[key] = len(kept)
        elif key in config:
            reason = f"says {config[key]} where {count} layers were found; left as it is"
            skips.append(Skip(f"config.json: {key}", reason))
    for key, value in config.items():
        if "layer" in key and isinstance(value, list | tuple) and len(value) == count:
            config[key] = [value[i] for i in kept]
    graph.source = dataclasses.replace(graph.source, config=config)
    return skips


def _record(graph: Graph, kept: list[int]) -> None:
    properties = graph.model.metadata_props
    earlier = json.loads(properties.get(KEPT_LAYERS_KEY, "null"))
    properties[KEPT_LAYERS_KEY] = json.dumps([earlier[i] for i in kept] if earlier else kept)


def _parameters(graph: Graph) -> int:
    return sum(
        value.const_value.size
        for value in graph.model.graph.initializers.values()
        if value.const_value is not None and value.const_value.dtype.is_floating_point()
    )
