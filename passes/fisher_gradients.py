"""Per-example gradients of Linear sites out of one batched forward and backward pass.

For ``y = x W^T`` over the positions ``t`` of example ``i`` the gradient of the example's loss is
``G_i = sum_t d_it x_it^T`` with ``d`` the gradient of the loss at ``y`` (Goodfellow 2015, arXiv
1510.01799). Losses are summed over the batch, so ``d_i`` depends on example ``i`` alone. A weight
that is used several times sums over its uses. The weights themselves are frozen: autograd computes
no weight gradient, and none is computed below a recorded site that comes first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

from obert_compiler.errors import NumericsError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    from obert_compiler.passes.fisher_blocks import BlockLayout

    Uses = list[tuple[torch.Tensor, torch.Tensor]]

__all__ = ["GradientRecorder", "accumulate_blocks"]

_TILE_COLUMNS = 1 << 8
"""Columns of W whose gradients are made at a time; as many rows as make full tiles of `_TILE`."""

_TILE = 1 << 15
"""Weights whose gradients are made at a time: 8 MiB for 64 examples, what a core's caches hold."""

_PRODUCTS = 1 << 20
"""Values of outer products made at a time: 4 MiB."""

_FOLDED_BLOCKS = 1 << 8
"""Outer products folded at a time."""


class GradientRecorder:
    """Records inputs and output gradients of Linear modules while a batch passes.

    Args:
        modules: the modules to record, by site name.

    Attributes:
        recorded: by site name, for each batch, its uses ``(x [b, t, in], d [b, t, out])``.
        ignored: sites with a use that has the batch neither in front nor as the second of three
            axes (``[sequence, batch, features]``), and the shape it had; the gradient of such a
            use cannot be told apart by example and does not count.
    """

    def __init__(self, modules: Mapping[str, torch.nn.Linear]) -> None:
        self.recorded: dict[str, list[Uses]] = {name: [] for name in modules}
        self.ignored: dict[str, tuple[int, ...]] = {}
        self._rows: npt.NDArray[np.int64] | None = None
        # Remembered from batches where batch and sequence differ, for those where they are equal.
        self._sequence_first: set[str] = set()
        self._handles = [m.register_forward_hook(self._hook(n)) for n, m in modules.items()]

    def start(self, rows: npt.NDArray[np.int64]) -> None:
        """Tell which examples of the data the next batch holds."""
        self._rows = rows
        for batches in self.recorded.values():
            batches.append([])

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    @property
    def nbytes(self) -> int:
        """Bytes of what is recorded; an input that several sites share counts once."""
        sizes = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
            for batches in self.recorded.values()
            for uses in batches
            for pair in uses
            for tensor in pair
        }
        return sum(sizes.values())

    def bytes_of(self, name: str) -> int:
        """Bytes recorded of a site, what it shares with others included."""
        batches = self.recorded[name]
        return sum(x.nbytes + d.nbytes for uses in batches for x, d in uses)

    def waiting(self, name: str) -> int:
        """Examples recorded of a site."""
        return sum(uses[0][0].shape[0] for uses in self.recorded[name] if uses)

    def clear(self, name: str) -> None:
        """Forget what is recorded of a site."""
        self.recorded[name].clear()

    def _hook(self, name: str):  # type: ignore[no-untyped-def]
        def forward(
            _module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor
        ) -> torch.Tensor:
            rows = self._rows
            if rows is None:
                return output
            x = inputs[0].detach()
            if x.ndim == 3 and x.shape[0] != len(rows) == x.shape[1]:
                self._sequence_first.add(name)
            swap = name in self._sequence_first
            if swap:
                x = x.transpose(0, 1)
            if not _separable(x, len(rows)):
                self.ignored[name] = tuple(x.shape)
                return output
            if not output.requires_grad:
                output.requires_grad_()
            shape = (len(rows), -1)

            def backward(gradient: torch.Tensor) -> None:
                d = gradient.detach().transpose(0, 1) if swap else gradient.detach()
                pair = x.reshape(*shape, x.shape[-1]), d.reshape(*shape, d.shape[-1])
                for value, what in zip(pair, ("input", "gradient"), strict=True):
                    _check_finite(value, what, name, rows)
                self.recorded[name][-1].append(pair)

            output.register_hook(backward)  # type: ignore[no-untyped-call]
            return output

        return forward


def _separable(x: torch.Tensor, batch: int) -> bool:
    if x.ndim == 2:
        return x.shape[0] % batch == 0
    return x.ndim > 2 and x.shape[0] == batch


def _check_finite(values: torch.Tensor, what: str, name: str, rows: npt.NDArray[np.int64]) -> None:
    # The sum of finite values is finite, short of 1e38: values are looked at only where it is not.
    if values.sum().isfinite():
        return
    finite = values.isfinite()
    if not finite.all():
        first = int((~finite.flatten(1).all(dim=1)).nonzero()[0])
        raise NumericsError(
            f"site '{name}': expected a finite {what}, found NaN or infinity for example "
            f"{int(rows[first])} of the data; look at the example and the weights before the site"
        )


def accumulate_blocks(F: torch.Tensor, layout: BlockLayout, batches: Iterable[Uses]) -> None:
    """Add ``sum_i g_i g_i^T`` of each block to ``F``.

    The gradients are made for a tile of W and all examples at a time, stay in the cache, and are
    multiplied away by one batched GEMM, ``G^T G`` with ``G [blocks, m, B]``. The products are
    folded into triangles while they are in the cache: F is half as large as its blocks.

    Args:
        F: float32 ``[layout.count, B (B + 1) / 2]``, upper triangles row by row.
        layout: how the matrix is cut.
        batches: for each batch its uses of the weight, ``(x [b, t, in], d [b, t, out])``; none
            where the loss does not depend on the weight.
    """
    import torch

    filling = layout.per_row * layout.block - layout.columns
    parts = []
    for uses in batches:
        if not uses:
            continue
        xs, ds = zip(*uses, strict=True)
        x = xs[0] if len(xs) == 1 else torch.cat(xs, dim=1)
        d = ds[0] if len(ds) == 1 else torch.cat(ds, dim=1)
        parts.append((torch.nn.functional.pad(x, (0, filling)) if filling else x, d))
    if not parts:
        return
    F = F.view(layout.rows, layout.per_row, -1)
    across = min(layout.per_row, max(1, _TILE_COLUMNS // layout.block))
    weights = min(_TILE, _PRODUCTS // layout.block)
    down = max(1, weights // (across * layout.block))
    for row in range(0, layout.rows, down):
        for first in range(0, layout.per_row, across):
            tile = F[row : row + down, first : first + across]
            _add_products(tile, _tile_gradients(parts, layout, row, first, tile.shape[:2]))


def _tile_gradients(
    parts: list[tuple[torch.Tensor, torch.Tensor]],
    layout: BlockLayout,
    row: int,
    first: int,
    shape: Sequence[int],
) -> torch.Tensor:
    """Gradients ``[m, rows, blocks, B]`` of a tile that begins at a row and a Fisher block."""
    import torch

    rows, blocks = shape
    column, width = first * layout.block, blocks * layout.block
    examples = sum(len(x) for x, _ in parts)
    # One block more between examples: where tiles lie a power of two apart, the examples of a block
    # share the same few lines of a cache and drive each other out (measured: products 1.5x).
    G = parts[0][0].new_empty(examples, rows * width + layout.block)
    G = G[:, : rows * width].view(examples, rows, width)
    start = 0
    for x, d in parts:
        stop = start + len(x)
        torch.bmm(
            d[:, :, row : row + rows].transpose(1, 2),
            x[:, :, column : column + width],
            out=G[start:stop],
        )
        start = stop
    return G.view(examples, rows, blocks, layout.block)


def _add_products(F: torch.Tensor, G: torch.Tensor) -> None:
    """Add ``sum_i g_i g_i^T`` of ``G [m, rows, blocks, B]`` to the triangles of a tile of F."""
    import torch

    _, rows, blocks, block = G.shape
    g = G.flatten(1, 2).transpose(0, 1)
    products = torch.bmm(g.transpose(1, 2), g).view(-1, block**2)
    triangle = _triangle(block).to(F.device)
    step = max(1, _FOLDED_BLOCKS // blocks)
    for row in range(0, rows, step):
        part = products[row * blocks : (row + step) * blocks].index_select(1, triangle)
        F[row : row + step].add_(part.view(-1, blocks, part.shape[1]))


@cache
def _triangle(block: int) -> torch.Tensor:
    """Places of the upper triangle in a block of ``block x block`` values, row by row."""
    import torch

    rows, columns = torch.triu_indices(block, block)
    places: torch.Tensor = rows * block + columns
    return places
