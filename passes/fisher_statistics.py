"""The block-diagonal Fisher of a model on disk, read one matrix at a time.

A BERT-base has 85 million prunable weights; their Fisher in blocks of 32 is 11 GB. It is written as
upper triangles (half of that), one file per Linear site, and never held whole.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from obert_compiler.errors import ArtefactError, GraphError
from obert_compiler.passes.fisher_blocks import (
    BlockLayout,
    pack_symmetric,
    packed_diagonal,
    packed_size,
    unpack_symmetric,
)
from obert_compiler.passes.obs import mean_square

__all__ = ["FisherStatistics"]

_INDEX = "fisher.json"
_CHUNK_BLOCKS = 8192


@dataclass
class FisherStatistics:
    """The empirical Fisher of Linear sites, in blocks, without damping.

    Attributes:
        folder: where the files lie.
        block: weights per Fisher block.
        count: examples whose gradients were averaged.
        layouts: how the matrix of each site is cut, by site name.
        mean_squares: mean diagonal of the Fisher of each site, by site name.
    """

    folder: Path
    block: int
    count: int = 0
    layouts: dict[str, BlockLayout] = field(default_factory=dict)
    mean_squares: dict[str, float] = field(default_factory=dict)

    @classmethod
    def create(
        cls,
        work: Path | None,
        block: int,
        layouts: Mapping[str, BlockLayout] | None = None,
        *,
        empty: bool = True,
    ) -> FisherStatistics:
        """Start in the folder ``fisher`` of ``work``, or in a temporary folder.

        A temporary folder is deleted with the object.

        Args:
            work: a folder that several processes may share, each writing some of the sites; None
                for a temporary folder, in which a process finds what it wrote itself.
            block: weights per Fisher block.
            layouts: of every site that will be written, where several processes write them.
            empty: whether to empty the folder; one process does.

        Raises:
            ArtefactError: the folder cannot be written.
        """
        try:
            if work is None:
                folder = Path(tempfile.mkdtemp(prefix="obert-fisher-"))
                statistics = cls(folder, block, layouts=dict(layouts or {}))
                weakref.finalize(statistics, shutil.rmtree, statistics.folder, ignore_errors=True)
                return statistics
            folder = work / "fisher"
            if empty:
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
        except OSError as error:
            raise ArtefactError(
                f"statistics in '{work}': {error}; choose another folder"
            ) from error
        return cls(folder, block, layouts=dict(layouts or {}))

    @classmethod
    def open(cls, work: Path) -> FisherStatistics:
        """Read what `finish` left under ``work``.

        Raises:
            ArtefactError: it is missing or damaged.
        """
        folder = work / "fisher"
        try:
            index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
            block = int(index["block"])
            layouts = {
                name: BlockLayout(rows, columns, block)
                for name, (rows, columns, _) in index["sites"].items()
            }
            means = {name: float(mean) for name, (*_, mean) in index["sites"].items()}
            statistics = cls(folder, block, int(index["examples"]), layouts, means)
            for name in layouts:
                found = statistics._file(name).stat().st_size
                if found != statistics.bytes_of(name):
                    raise ValueError(f"'{name}' has {found} bytes, not {statistics.bytes_of(name)}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtefactError(
                f"statistics '{folder}': expected the Fisher of an earlier run, found {error!r}; "
                "compile again without --resume"
            ) from error
        return statistics

    def write(self, name: str, layout: BlockLayout, blocks: npt.NDArray[np.float32]) -> None:
        """Store the blocks ``[count, B, B]`` of the site ``name``; see `write_packed`."""
        self.write_packed(name, layout, pack_symmetric(blocks))

    def write_packed(self, name: str, layout: BlockLayout, packed: npt.NDArray[np.float32]) -> None:
        """Store the upper triangles ``[count, B (B + 1) / 2]`` of the site ``name``.

        Raises:
            NumericsError: the diagonal is not finite.
            ArtefactError: the disk is full or not writable.
        """
        self.layouts[name] = layout
        diagonal = packed_diagonal(packed, layout.block)
        self.mean_squares[name] = mean_square(diagonal, layout.valid(), f"site '{name}'")
        try:
            with self._file(name).open("wb") as file:
                file.write(np.ascontiguousarray(packed, "<f4").data)
        except OSError as error:
            raise ArtefactError(
                f"Fisher of '{name}' in '{self.folder}': expected room for "
                f"{self.bytes_of(name)} bytes, found: {error}; free the disk or choose another "
                "folder for temporary files (TMPDIR)"
            ) from error

    def finish(self, examples: int, *, write: bool = True) -> None:
        """Record that every site is written, each the mean over ``examples`` gradients.

        Args:
            examples: their number.
            write: whether to write the index; one process does.
        """
        self.count = examples
        if not write:
            return
        sites = {
            name: [layout.rows, layout.columns, self.mean_squares[name]]
            for name, layout in self.layouts.items()
        }
        index = {"block": self.block, "examples": examples, "sites": sites}
        try:
            (self.folder / _INDEX).write_text(json.dumps(index), encoding="utf-8")
        except OSError as error:
            raise ArtefactError(f"index of the Fisher in '{self.folder}': {error}") from error

    def blocks(self, name: str) -> npt.NDArray[np.float32]:
        """The blocks of a site, float32 ``[n_blocks, B, B]``, rows of W cut as `BlockLayout` says.

        Raises:
            GraphError: the site has none.
            ArtefactError: the file is gone.
        """
        if name not in self.layouts:
            raise GraphError(
                f"site '{name}': expected its Fisher, found that of {len(self.layouts)} other "
                "sites; run 'fisher' with the same include and exclude as 'prune'"
            )
        layout, size = self.layouts[name], packed_size(self.block)
        blocks = np.empty((layout.count, self.block, self.block), np.float32)
        try:
            with self._file(name).open("rb") as file:
                for start in range(0, layout.count, _CHUNK_BLOCKS):
                    stop = min(start + _CHUNK_BLOCKS, layout.count)
                    packed = np.fromfile(file, "<f4", (stop - start) * size)
                    blocks[start:stop] = unpack_symmetric(packed.reshape(-1, size), self.block)
        except (OSError, ValueError) as error:
            raise ArtefactError(f"Fisher of '{name}' in '{self.folder}': {error}") from error
        return blocks

    @property
    def costs(self) -> dict[str, float]:
        """Blocks of each site: what it costs to solve, and what sites are shared out by."""
        return {name: float(layout.count) for name, layout in self.layouts.items()}

    @property
    def mean_square(self) -> float:
        """Mean diagonal over the weights of all sites: the scale of the Fisher of the model."""
        weights = {name: x.rows * x.columns for name, x in self.layouts.items()}
        total = sum(self.mean_squares[name] * count for name, count in weights.items())
        return total / max(1, sum(weights.values()))

    def bytes_of(self, name: str) -> int:
        """Bytes on disk of one site."""
        return 4 * packed_size(self.block) * self.layouts[name].count

    def _file(self, name: str) -> Path:
        return self.folder / f"{list(self.layouts).index(name)}.f32"
