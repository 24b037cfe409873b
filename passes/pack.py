"""The ``pack`` pass: sparse weights take the bytes of what is left of them.

The stored matrix of every Linear site (int8 behind DequantizeLinear, or float32 where a site was
pruned and not quantised) gives way to its kept blocks and the gaps between them, and standard ops
rebuild it when a runtime opens the file (`unpacking_chain`). The length of the blocks is read off
the zeros, matrix by matrix; a matrix that is no smaller packed stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from obert_compiler.errors import GraphError
from obert_compiler.graph.graph import Graph, Stage
from obert_compiler.graph.linear import SITE_KEY, LinearSite, find_linear_sites
from obert_compiler.graph.patterns import matches
from obert_compiler.passes.sparse_packing import choose, pack
from obert_compiler.passes.unpacking_chain import UnpackingChains, is_unpacked
from obert_compiler.pipeline.contract import Context, Pass, PassResult, Skip

__all__ = ["Pack"]

_TYPES = frozenset({ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.FLOAT})

_CHAIN_BYTES = 600
"""What the nodes, names and headers of one chain take in a file, about."""


@dataclass(frozen=True)
class Pack(Pass):
    """Pack sparse weights.

    Attributes:
        include: patterns of sites to pack; all by default.
        exclude: patterns of sites to leave as they are.
    """

    name: ClassVar[str] = "pack"
    summary: ClassVar[str] = "store sparse weights as kept blocks and gaps, unpacked at load"
    accepts: ClassVar[frozenset[Stage]] = frozenset({Stage.DENSE, Stage.PRUNED, Stage.QUANTISED})
    produces: ClassVar[Stage | None] = Stage.PACKED

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def requires(self, graph: Graph) -> None:
        """Check that nothing is packed yet.

        Raises:
            GraphError: the graph is packed.
        """
        if graph.stage is Stage.PACKED or any(
            is_unpacked(_stored(site)[0]) for site in find_linear_sites(graph)
        ):
            raise GraphError(
                "pass 'pack': expected a graph that is not packed, found one that is packed "
                "already; start from the model as it was before"
            )

    def run(self, graph: Graph, context: Context) -> PassResult:
        """Pack, in place."""
        found = find_linear_sites(graph)
        skips = [Skip(other.name, other.reason) for other in found.unmatched]
        rows: list[dict[str, Any]] = []
        owners: dict[ir.Value, str] = {}
        chains = UnpackingChains(graph.model.graph)
        for site in context.progress.track(found.sites, "packing", len(found)):
            stored, transposed = _stored(site)
            reason = self._why_not(site, stored, owners)
            if reason is None:
                owners[stored] = site.name
                row = _pack(chains, site, stored, transposed=transposed)
                if isinstance(row, str):
                    reason = row
                else:
                    rows.append(row)
            if reason is not None:
                skips.append(Skip(site.name, reason))
        chains.insert()
        if rows:
            _record_names(found.sites)
        report = {
            "sites": rows,
            "bytes_before": sum(row["bytes_before"] for row in rows),
            "bytes_after": sum(row["bytes_after"] for row in rows),
        }
        return PassResult(graph, bool(rows), report, tuple(skips))

    def _why_not(
        self, site: LinearSite, stored: ir.Value, owners: dict[ir.Value, str]
    ) -> str | None:
        if self.include and not any(matches(site.name, p) for p in self.include):
            return "no pattern of include= names it"
        if any(matches(site.name, p) for p in self.exclude):
            return "a pattern of exclude= names it"
        if stored in owners:
            return f"shared with '{owners[stored]}'"
        if stored.const_value is None:
            maker = stored.producer()
            return f"its weight is computed by {'an input' if maker is None else maker.op_type}"
        if stored.const_value.dtype not in _TYPES:
            return f"its weight is stored as {stored.const_value.dtype}"
        other = _other_reader(stored)
        if other is not None:
            return f"shared with node '{other.name}' ({other.op_type})"
        return None


def _record_names(sites: tuple[LinearSite, ...]) -> None:
    """Write names that came from initializers onto the nodes: a chain has other initializers."""
    for site in sites:
        for node in site.nodes:
            node.metadata_props.setdefault(SITE_KEY, site.name)


def _stored(site: LinearSite) -> tuple[ir.Value, bool]:
    """What holds the weight of ``site``, behind DequantizeLinear and Transpose.

    Returns:
        The value, and whether it is laid out ``[in, out]``.
    """
    value, transposed = site.weight_value, site.stored_transposed
    node = value.producer()
    while node is not None and not is_unpacked(value):
        if node.op_type not in {"Transpose", "DequantizeLinear"} or node.inputs[0] is None:
            break
        transposed ^= node.op_type == "Transpose"
        value = node.inputs[0]
        node = value.producer()
    return value, transposed


def _other_reader(stored: ir.Value) -> ir.Node | None:
    """A node that reads ``stored`` for something else than a product."""
    pending = list(stored.consumers())
    while pending:
        node = pending.pop()
        if node.op_type in {"Transpose", "DequantizeLinear"}:
            pending.extend(node.outputs[0].consumers())
        elif node.op_type not in {"MatMul", "Gemm"}:
            return node
    return None


def _pack(
    chains: UnpackingChains, site: LinearSite, stored: ir.Value, *, transposed: bool
) -> dict[str, Any] | str:
    """Pack the weight of ``site``; a row of the report, or why it stays as it is."""
    if stored.const_value is None:
        raise GraphError(f"site '{site.name}': expected a stored weight, found a computed one")
    array: npt.NDArray[np.generic] = stored.const_value.numpy()
    matrix = array.T if transposed else array
    before = array.nbytes
    kept = int(np.count_nonzero(array))
    if kept * array.itemsize + _CHAIN_BYTES >= before:
        zeros = 1.0 - kept / max(1, array.size)
        return f"dense: {zeros:.1%} of its weights are zeros"
    matrix = np.ascontiguousarray(matrix)
    block, bits, size = choose(matrix)
    if size + _CHAIN_BYTES >= before:
        return f"smaller unpacked: {before} bytes, {size + _CHAIN_BYTES} packed"
    packed = pack(matrix, block, bits)
    chains.replace(stored, packed, transposed=transposed)
    return {
        "name": site.name,
        "shape": list(packed.shape),
        "scheme": f"gaps{bits}",
        "block": block,
        "density": kept / array.size,
        "bytes_before": before,
        "bytes_after": packed.nbytes,
    }
