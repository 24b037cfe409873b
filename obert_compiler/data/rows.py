"""Rows of a data file in memory, which remember where they came from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from obert_compiler.errors import DataError

__all__ = ["Row", "Rows"]

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Rows:
    """Rows of one file or data set.

    Attributes:
        rows: one mapping from column name to value per row.
        origin: what messages call the source: a path, a hub name, "rows in memory".
        numbers: the position of each row in the source, counted from 1.
    """

    rows: tuple[Row, ...]
    origin: str
    numbers: tuple[int, ...]

    @classmethod
    def of(cls, rows: Rows | Iterable[Row], origin: str = "rows in memory") -> Rows:
        """Wrap plain dictionaries; a `Rows` is returned as it is."""
        if isinstance(rows, Rows):
            return rows
        kept = tuple(rows)
        return cls(kept, origin, tuple(range(1, len(kept) + 1)))

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the first row."""
        return tuple(self.rows[0]) if self.rows else ()

    def where(self, index: int) -> str:
        """How a message names row ``index``: the file and the number of the row in it."""
        return f"data '{self.origin}', row {self.numbers[index]}"

    def sample(self, limit: int | None, seed: int) -> Rows:
        """At most ``limit`` rows, drawn without replacement by ``seed``, in their old order."""
        if limit is None or limit >= len(self):
            return self
        chosen = np.sort(np.random.default_rng(seed).permutation(len(self))[:limit])
        return Rows(
            tuple(self.rows[i] for i in chosen),
            self.origin,
            tuple(self.numbers[i] for i in chosen),
        )

    def pick_columns(self, choices: Sequence[Sequence[str]], expected: str) -> tuple[str, ...]:
        """The first of ``choices`` whose columns the first row has.

        Raises:
            DataError: none fits; the message names ``expected`` and what was found.
        """
        found = set(self.columns)
        for choice in choices:
            if found.issuperset(choice):
                return tuple(choice)
        raise DataError(
            f"data '{self.origin}': expected columns {expected}, found "
            f"{', '.join(self.columns) or 'none'}; rename the columns"
        )

    def texts(self, column: str) -> list[str]:
        """The values of a text column.

        Raises:
            DataError: a row lacks it or holds something else.
        """
        texts = []
        for index, row in enumerate(self.rows):
            value = row.get(column)
            if not isinstance(value, str):
                raise DataError(
                    f"{self.where(index)}: expected text in column '{column}', "
                    f"found {_shown(value)}"
                )
            texts.append(value)
        return texts


def _shown(value: object) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {value!r:.40}"
