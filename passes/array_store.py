"""Named arrays in memory up to a bound, and in files of a temporary folder beyond it."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from obert_compiler.errors import ArtefactError

__all__ = ["ArrayStore"]

Array = npt.NDArray[Any]


class ArrayStore(MutableMapping[str, Array]):
    """A dictionary of arrays.

    Args:
        held_bytes: bytes of arrays that stay in memory; what does not fit is written to files,
            which go away with the object.

    Raises:
        ArtefactError: a file cannot be written.
    """

    def __init__(self, held_bytes: int) -> None:
        self._bound = held_bytes
        self._held: dict[str, Array] = {}
        self._files: dict[str, Path] = {}
        self._folder: Path | None = None
        self._made = 0

    @property
    def held_bytes(self) -> int:
        """Bytes in memory now."""
        return sum(array.nbytes for array in self._held.values())

    def __setitem__(self, name: str, array: Array) -> None:
        self.pop(name, None)
        if self.held_bytes + array.nbytes <= self._bound:
            self._held[name] = array
            return
        try:
            if self._folder is None:
                folder = tempfile.TemporaryDirectory(prefix="obert-arrays-")
                weakref.finalize(self, folder.cleanup)
                self._folder = Path(folder.name)
            self._made += 1
            path = self._folder / f"{self._made}.npy"
            np.save(path, array)
        except OSError as error:
            raise ArtefactError(
                f"activations of {array.nbytes} bytes: expected room for them among temporary "
                f"files, found: {error}; free the disk, choose another folder (TMPDIR), or lower "
                "the number of examples"
            ) from error
        self._files[name] = path

    def __getitem__(self, name: str) -> Array:
        if name in self._held:
            return self._held[name]
        array: Array = np.load(self._files[name])
        return array

    def __delitem__(self, name: str) -> None:
        if name in self._held:
            del self._held[name]
        else:
            self._files.pop(name).unlink()

    def __iter__(self) -> Iterator[str]:
        yield from self._held
        yield from self._files

    def __len__(self) -> int:
        return len(self._held) + len(self._files)
