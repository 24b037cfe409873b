"""Encoder layers, found from the shape of the graph alone.

An encoder hands one hidden state from layer to layer: every path from the embeddings to the output
visits it. The visited values cut the graph into segments (`obert_compiler.graph.trunk`): a residual
block, a normalisation, a matrix of the head. Layers are the segments that repeat and hold
attention. No name is read, so the same search serves every exporter, quantised and packed graphs
included.

The tokens of the segments align the layers, their signatures say whether they are isomorphic.
Layers that align but are not isomorphic (ModernBERT's first has no norm before attention) are kept,
and the difference is recorded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import onnx_ir as ir

from obert_compiler.graph.linear import LinearSite, Unmatched, find_linear_sites
from obert_compiler.graph.network import Network, is_quantiser
from obert_compiler.graph.trunk import Segment, read_trunk, trunk_starts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from obert_compiler.graph.graph import Graph

__all__ = [
    "EncoderLayer",
    "EncoderLayers",
    "find_encoder_layers",
    "find_repetition",
    "prunable_sites",
]

_LEARNED_PRODUCTS = frozenset({"MatMul", "Gemm", "Conv"})


@dataclass(frozen=True)
class EncoderLayer:
    """One layer of an encoder.

    Attributes:
        index: position from the embeddings, 0 first.
        input: the hidden state that enters, ``[batch, sequence, hidden]``.
        output: the hidden state that leaves; the input of the next layer.
        nodes: nodes that belong to this layer alone, in graph order, with those that unpack its
            weights; masks and position tables that other layers read too are outside.
        sites: names of the Linear sites inside, in graph order.
    """

    index: int
    input: ir.Value
    output: ir.Value
    nodes: tuple[ir.Node, ...]
    sites: tuple[str, ...]


@dataclass(frozen=True)
class EncoderLayers:
    """The layers of a graph from the embeddings on, and what did not fit.

    Attributes:
        layers: empty when the graph has none.
        unmatched: why there are none, how layers differ from each other, attention outside them.
    """

    layers: tuple[EncoderLayer, ...]
    unmatched: tuple[Unmatched, ...]

    def __iter__(self) -> Iterator[EncoderLayer]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, index: int) -> EncoderLayer:
        return self.layers[index]

    def layer_of(self, site: str) -> int | None:
        """Index of the first layer that holds the Linear site named ``site``, None outside."""
        return self._layer_by_site.get(site)

    @cached_property
    def _layer_by_site(self) -> dict[str, int]:
        return {site: layer.index for layer in reversed(self.layers) for site in layer.sites}


def find_encoder_layers(graph: Graph) -> EncoderLayers:
    """Find the encoder layers of ``graph``; a graph without any gives a reason instead."""
    network = Network(graph)
    starts = trunk_starts(network)
    if not starts:
        return _none("no graph output depends on the contents of a graph input")
    site_by_node = {node: site for site in find_linear_sites(graph) for node in site.nodes}
    trunk: list[Segment] = []
    blocks: list[range] = []
    for start in starts:
        segments = read_trunk(network, start, site_by_node)
        found = _find_blocks(segments)
        if len(found) > len(blocks):
            trunk, blocks = segments, found
    if not blocks:
        return _none(
            "no part of the graph between two values that all paths visit holds attention "
            "(a Softmax between products of activations) inside a residual or repeated block"
        )
    return _layers(network, site_by_node, trunk, blocks)


def prunable_sites(graph: Graph) -> tuple[tuple[LinearSite, ...], tuple[Unmatched, ...]]:
    """The Linear sites that are pruned by default, and the reason for each that is not.

    They are the sites inside encoder layers (oBERT prunes neither embeddings nor pooler nor head).
    A graph without layers offers every site but those whose output is a graph output, at most
    through nodes with one operand (Softmax, Reshape).
    """
    sites = find_linear_sites(graph)
    layers = find_encoder_layers(graph)
    if layers.layers:
        reason = "outside the encoder layers"
        chosen = [s for s in sites if layers.layer_of(s.name) is not None]
    else:
        reason = f"feeds a graph output in a graph without layers ({layers.unmatched[0].reason})"
        network = Network(graph)
        chosen = [s for s in sites if not any(_feeds_output(network, v) for v in s.outputs)]
    kept = {site.name for site in chosen}
    left = [Unmatched(s.name, reason) for s in sites if s.name not in kept]
    return tuple(chosen), tuple(left)


def _none(reason: str) -> EncoderLayers:
    return EncoderLayers((), (Unmatched("encoder layers", reason),))


def _find_blocks(segments: Sequence[Segment]) -> list[range]:
    """The segments of each layer, in order; empty when none holds attention."""
    anchors = [i for i, segment in enumerate(segments) if segment.attention]
    if not anchors:
        return []
    repeated = find_repetition([s.token for s in segments], [s.attention for s in segments])
    if repeated is None:
        return _blocks_from_anchors(segments, anchors)
    start, period, repeats = repeated
    blocks = [range(start + k * period, start + (k + 1) * period) for k in range(repeats)]
    _extend_to_front(segments, blocks)
    inside = {i for block in blocks for i in block}
    if sum(anchor in inside for anchor in anchors) * 2 < len(anchors):
        return _blocks_from_anchors(segments, anchors)
    return blocks


def find_repetition(
    tokens: Sequence[Hashable], anchors: Sequence[bool]
) -> tuple[int, int, int] | None:
    """The longest run of equal neighbouring blocks that each hold an anchor.

    Returns:
        Start, period and number of repeats; None when no block repeats. Among runs that cover as
        much, the smallest period; among the phases of a run, the last, because a normalisation
        before the first layer looks like the one that ends a layer.
    """
    best: tuple[int, int, int] | None = None
    best_score = (0, 0)
    count = len(tokens)
    for period in range(1, count // 2 + 1):
        first = 0
        while first + period < count:
            last = first
            while last + period < count and tokens[last] == tokens[last + period]:
                last += 1
            covered = last - first + period
            repeats = covered // period
            start = first + covered % period
            score = (repeats * period, -period)
            if repeats > 1 and any(anchors[start : start + period]) and score > best_score:
                best, best_score = (start, period, repeats), score
            first = last + 1
    return best


def _extend_to_front(segments: Sequence[Segment], blocks: list[range]) -> None:
    """Prepend layers whose parts cannot be cut like the others' (a convolution around layer 0)."""
    wanted = _work(segments, blocks[0])
    while True:
        end = blocks[0].start
        sizes = range(1, min(end, len(blocks[0])) + 1)
        sizes_that_fit = [n for n in sizes if _work(segments, range(end - n, end)) == wanted]
        if not sizes_that_fit:
            return
        blocks.insert(0, range(end - sizes_that_fit[0], end))


def _work(segments: Sequence[Segment], block: range) -> Hashable:
    matrices = sorted(shape for i in block for shape in segments[i].matrices)
    return (*matrices, any(segments[i].attention for i in block))


def _blocks_from_anchors(segments: Sequence[Segment], anchors: Sequence[int]) -> list[range]:
    """One layer from each residual attention to the next, for layers that do not repeat."""
    anchors = [i for i in anchors if segments[i].residual]
    if not anchors:
        return []
    ends = [*anchors[1:], _end_of_layer(segments, anchors[-1])]
    blocks = [range(first, last) for first, last in zip(anchors, ends, strict=True)]
    _extend_to_front(segments, blocks)
    return blocks


def _end_of_layer(segments: Sequence[Segment], anchor: int) -> int:
    """Where the layer that begins with the attention at ``anchor`` ends.

    It holds the next residual block, if any, and after it whatever followed attention too (the norm
    of post-norm layers).
    """
    block = next((i for i in range(anchor + 1, len(segments)) if segments[i].residual), anchor)
    between = [s.token for s in segments[anchor + 1 : block]]
    if any(s.matrices for s in segments[anchor + 1 : block]):
        return anchor + 1
    behind = [s.token for s in segments[block + 1 : block + 1 + len(between)]]
    return block + 1 + (len(between) if behind == between else 0)


def _layers(
    network: Network,
    site_by_node: Mapping[ir.Node, LinearSite],
    trunk: Sequence[Segment],
    blocks: Sequence[range],
) -> EncoderLayers:
    layers = []
    for index, block in enumerate(blocks):
        segments = [trunk[i] for i in block]
        nodes = [node for segment in segments for node in segment.nodes]
        nodes += _quantisers(network, nodes, segments[0].input)
        nodes += network.exclusive_sources(nodes)
        nodes.sort(key=network.order.__getitem__)
        sites = dict.fromkeys(site_by_node[node].name for node in nodes if node in site_by_node)
        layers.append(
            EncoderLayer(index, segments[0].input, segments[-1].output, tuple(nodes), tuple(sites))
        )
    unmatched = _differences(trunk, blocks)
    inside = {i for block in blocks for i in block}
    for i, segment in enumerate(trunk):
        if segment.attention and i not in inside:
            name = segment.output.name or "?"
            unmatched.append(Unmatched(name, "attention that no repeated layer holds"))
    return EncoderLayers(tuple(layers), tuple(unmatched))


def _quantisers(network: Network, nodes: Sequence[ir.Node], entry: ir.Value) -> list[ir.Node]:
    """The quantisers of activations that the layer reads, those of its input included."""
    found: dict[ir.Node, None] = {}
    pending = [v for node in nodes for v in node.inputs if v is not None]
    own = {v for node in nodes for v in node.outputs} | {entry}
    while pending:
        value = pending.pop()
        node = value.producer()
        if node is not None and is_quantiser(node) and network.root(value) in own:
            found[node] = None
            pending.extend(v for v in node.inputs[:1] if v is not None)
    return list(found)


def _differences(segments: Sequence[Segment], blocks: Sequence[range]) -> list[Unmatched]:
    signatures = [tuple(segments[i].signature for i in block) for block in blocks]
    usual, _ = Counter(signatures).most_common(1)[0]
    reference = _operations(segments, blocks[signatures.index(usual)])
    found = []
    for index, (block, signature) in enumerate(zip(blocks, signatures, strict=True)):
        if signature == usual:
            continue
        own = _operations(segments, block)
        parts = [f"{n} more {op}" for op, n in sorted((own - reference).items())]
        parts += [f"{n} fewer {op}" for op, n in sorted((reference - own).items())]
        text = ", ".join(parts) or "the same ops, wired or sized otherwise"
        found.append(Unmatched(f"layer {index}", f"not isomorphic to the other layers: {text}"))
    return found


def _operations(segments: Sequence[Segment], block: range) -> Counter[str]:
    return Counter(node.op_type for i in block for node in segments[i].nodes)


def _feeds_output(network: Network, value: ir.Value) -> bool:
    pending = [value]
    while pending:
        current = pending.pop()
        if current.is_graph_output():
            return True
        for node in current.consumers():
            if len(set(network.data_operands(node))) == 1 and node.op_type not in {
                "MatMul",
                "Gemm",
                "Conv",
            }:
                pending.extend(node.outputs)
    return False
