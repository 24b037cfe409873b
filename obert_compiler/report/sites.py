"""Figures of every Linear site of a graph: shape, sparsity, bits and bytes, as they are stored."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from obert_compiler.graph.constants import constant_nodes, read_constant
from obert_compiler.graph.graph import Graph
from obert_compiler.graph.layers import find_encoder_layers
from obert_compiler.graph.linear import (
    QUANTISATION_KEY,
    LinearSite,
    LinearSites,
    find_linear_sites,
)

__all__ = ["SiteRow", "block_sparsity", "part_bytes", "site_rows"]

_REARRANGING = frozenset({"Transpose", "Identity", "Reshape", "Cast", "DequantizeLinear"})


@dataclass(frozen=True)
class SiteRow:
    """One Linear site as it is stored.

    Attributes:
        name: stable name of the site.
        layer: index of the encoder layer that holds it, None outside the layers.
        shape: ``(out, in)``.
        sparsity: share of weights that are exactly zero, 0 to 1.
        block_sparsity: share of blocks of 4 along the input that are all zero, 0 to 1; None when 4
            does not divide the input width.
        bits: bits of one stored weight.
        bytes: size of everything that the weight is made from, in bytes (values, mask, scales).
        scheme: how it is stored: ``dense fp32``, ``dense int8``, ``packed int8`` ..., and whether
            it was trained with its rounding in place: ``packed int8, trained``.
    """

    name: str
    layer: int | None
    shape: tuple[int, int]
    sparsity: float
    block_sparsity: float | None
    bits: int
    bytes: int
    scheme: str

    def to_json(self) -> dict[str, Any]:
        """The row as report.json holds it."""
        return asdict(self) | {"shape": list(self.shape)}


def site_rows(graph: Graph, sites: LinearSites | None = None) -> list[SiteRow]:
    """One row for every Linear site of ``graph``, in graph order."""
    found = find_linear_sites(graph) if sites is None else sites
    layer_of = {
        name: layer.index for layer in find_encoder_layers(graph).layers for name in layer.sites
    }
    return [_row(site, layer_of.get(site.name)) for site in found]


def _row(site: LinearSite, layer: int | None) -> SiteRow:
    weight = site.weight()
    bits, scheme = _storage(site.weight_value)
    quantisation = site.nodes[0].metadata_props.get(QUANTISATION_KEY)
    return SiteRow(
        name=site.name,
        layer=layer,
        shape=site.shape,
        sparsity=1.0 - np.count_nonzero(weight) / max(weight.size, 1),
        block_sparsity=block_sparsity(weight, 4),
        bits=bits,
        bytes=_initializer_bytes(_roots(site.weight_value)),
        scheme=scheme if quantisation is None else f"{scheme}, {quantisation}",
    )


def block_sparsity(weight: npt.NDArray[np.float32], block: int) -> float | None:
    """Share of blocks of ``block`` neighbours along the input that are all zero.

    Args:
        weight: ``[out, in]``.
        block: length of a block.

    Returns:
        0 to 1, None when ``block`` does not divide ``in``.
    """
    if weight.size == 0 or weight.shape[1] % block:
        return None
    return float(np.mean(~weight.reshape(-1, block).any(axis=1)))


def _storage(weight: ir.Value) -> tuple[int, str]:
    nodes = constant_nodes(weight) or []
    stored = _dequantised(weight)
    dtype = _dtype(weight if stored is None else stored)
    packed = any(node.op_type not in _REARRANGING for node in nodes)
    kind = f"fp{dtype.bitwidth}" if stored is None else f"int{dtype.bitwidth}"
    return dtype.bitwidth, f"{'packed' if packed else 'dense'} {kind}"


def _dequantised(weight: ir.Value) -> ir.Value | None:
    """What DequantizeLinear makes ``weight`` from, None for a float weight."""
    value: ir.Value | None = weight
    while value is not None and (node := value.producer()) is not None:
        if node.op_type not in _REARRANGING:
            return None
        value = node.inputs[0]
        if node.op_type == "DequantizeLinear":
            return value
    return None


def _dtype(value: ir.Value) -> ir.DataType:
    if value.dtype is not None:
        return value.dtype
    return ir.DataType.from_numpy(read_constant(value).dtype)


def _roots(value: ir.Value) -> list[ir.Value]:
    """Initializers that ``value`` is made from, each once."""
    nodes = constant_nodes(value) or []
    operands = [i for node in nodes for i in node.inputs if i is not None] or [value]
    return list(dict.fromkeys(o for o in operands if o.producer() is None))


def _initializer_bytes(values: Iterable[ir.Value]) -> int:
    return sum(v.const_value.nbytes for v in values if v.const_value is not None)


def part_bytes(graph: Graph) -> dict[str, int]:
    """Bytes of the initializers of ``graph`` by part: linear, embeddings, other.

    A table read by Gather belongs to the embeddings even where a tied output layer multiplies by
    it too; every initializer is counted once.
    """
    embeddings: dict[ir.Value, None] = {}
    for node in graph.model.graph:
        if node.op_type != "Gather" or node.inputs[0] is None:
            continue
        if constant_nodes(node.inputs[0]) is not None:
            roots = _roots(node.inputs[0])
            embeddings.update(dict.fromkeys(v for v in roots if _is_table(v)))
    linear: dict[ir.Value, None] = {}
    for site in find_linear_sites(graph):
        linear.update(dict.fromkeys(v for v in _roots(site.weight_value) if v not in embeddings))
    total = _initializer_bytes(graph.model.graph.initializers.values())
    parts = {
        "linear": _initializer_bytes(linear),
        "embeddings": _initializer_bytes(embeddings),
    }
    return parts | {"other": total - sum(parts.values())}


def _is_table(value: ir.Value) -> bool:
    return value.const_value is not None and value.const_value.size > 64
