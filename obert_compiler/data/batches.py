"""Batches of arrays: what passes, evaluation and benchmarks read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from obert_compiler.data.calibration import calibration_passages
from obert_compiler.data.read import read_arrays, read_rows
from obert_compiler.data.rows import Rows
from obert_compiler.data.tokenizer import Tokenizer, load_tokenizer
from obert_compiler.errors import DataError, UsageError

if TYPE_CHECKING:
    from obert_compiler.tasks.base import Task

__all__ = ["IGNORED", "Batch", "Batches", "Example", "collate"]

Array = npt.NDArray[Any]

IGNORED = -100
"""Label of a position that no loss counts."""


@dataclass(frozen=True, eq=False)
class Example:
    """One sequence of a row, encoded.

    Attributes:
        inputs: the graph's inputs without the batch axis, ``input_ids`` int64 [tokens] and so on.
        labels: what the loss reads, without the batch axis; None when the row has no label.
        row: index of the row it was made from; several examples may share one.
        target: what the metric compares with (a class index, a score, answer texts), None without.
        details: what the metric needs besides (offsets of tokens, the context).
    """

    inputs: dict[str, Array]
    labels: dict[str, Array] | None
    row: int
    target: Any = None
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Number of tokens, or of entries along the first axis of the first input."""
        first = self.inputs.get("input_ids", next(iter(self.inputs.values())))
        return int(first.shape[0]) if first.ndim else 1


@dataclass(frozen=True, eq=False)
class Batch:
    """Examples stacked and padded to the longest.

    Attributes:
        inputs: ``[batch, tokens]`` int64 for text; ``attention_mask`` is 0 on padding.
        labels: ``[batch, ...]``, padded with -100; None when no labels are known.
        rows: index of each example in `Batches.examples`.
    """

    inputs: dict[str, Array]
    labels: dict[str, Array] | None
    rows: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def feed(self, names: Iterable[str]) -> dict[str, Array]:
        """The inputs called ``names``; a missing ``token_type_ids`` is all zeros.

        Raises:
            DataError: another input is missing.
        """
        feed = {}
        for name in names:
            if name in self.inputs:
                feed[name] = self.inputs[name]
            elif name == "token_type_ids" and "input_ids" in self.inputs:
                feed[name] = np.zeros_like(self.inputs["input_ids"])
            else:
                raise DataError(
                    f"input '{name}' of the graph: expected an array of that name in the data, "
                    f"found {', '.join(self.inputs)}"
                )
        return feed


def collate(
    examples: Sequence[Example], pad_token_id: int = 0, rows: npt.ArrayLike | None = None
) -> Batch:
    """Stack ``examples``; pads ``input_ids`` with ``pad_token_id``, labels with -100, rest with 0.

    Labels are kept only when every example has them.
    """
    inputs = {
        name: _stack([e.inputs[name] for e in examples], pad_token_id if name == "input_ids" else 0)
        for name in examples[0].inputs
    }
    labels = None
    known = [e.labels for e in examples if e.labels is not None]
    if len(known) == len(examples):
        labels = {name: _stack([k[name] for k in known], IGNORED) for name in known[0]}
    positions = np.arange(len(examples)) if rows is None else rows
    return Batch(inputs, labels, np.asarray(positions, np.int64))


def _stack(arrays: Sequence[Array], padding: int) -> Array:
    shapes = {a.shape for a in arrays}
    if len(shapes) == 1:
        return np.stack(arrays)
    length = max(a.shape[0] for a in arrays)
    stacked = np.full((len(arrays), length, *arrays[0].shape[1:]), padding, arrays[0].dtype)
    for index, array in enumerate(arrays):
        stacked[index, : array.shape[0]] = array
    return stacked


@dataclass(frozen=True, eq=False)
class Batches:
    """Examples in batches; can be iterated again and again, always in the same order.

    Attributes:
        examples: all examples, in the order of the data.
        task: the task that encoded them, None for plain arrays.
        origin: where they came from, for messages and reports.
        batch_size: examples in a batch; the last batch may be smaller.
        pad_token_id: padding of ``input_ids``.
        sort: put examples of similar length together, longest first, which wastes little on padding
            and meets the largest batch first.
    """

    examples: tuple[Example, ...]
    task: Task | None
    origin: str
    batch_size: int = 16
    pad_token_id: int = 0
    sort: bool = True

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UsageError(f"batch size: expected at least 1, found {self.batch_size}")
        if not self.examples:
            raise DataError(f"data '{self.origin}': expected rows, found none")

    @classmethod
    def open(
        cls,
        source: object,
        task: Task,
        tokenizer: Tokenizer | str | Path,
        *,
        batch_size: int = 16,
        max_length: int = 128,
        limit: int | None = None,
        split: str | None = None,
        seed: int = 0,
        sort: bool = True,
    ) -> Batches:
        """Read and encode a data file, a hub data set, a `datasets.Dataset` or a list of rows.

        Args:
            source: path (.jsonl, .csv, .parquet, .txt, each also .gz), ``name:split`` on the hub,
                a `datasets.Dataset`, or dictionaries.
            task: says which columns are read and how.
            tokenizer: a fast tokenizer, or the folder or hub id of one.
            batch_size: examples in a batch.
            max_length: tokens at most, and never more than the tokenizer says the model takes;
                longer text is cut (question answering: windows).
            limit: rows at most, drawn by ``seed``.
            split: split of a hub data set.
            seed: seed of the draw.
            sort: see `Batches`.

        Raises:
            UsageError: a missing file, an unknown format, no transformers.
            DataError: the file cannot be read or does not fit the task.
        """
        if limit is not None and limit < 1:
            raise UsageError(f"limit of examples: expected at least 1, found {limit}")
        if max_length < 4:
            raise UsageError(f"sequence length: expected at least 4, found {max_length}")
        rows = read_rows(source, split, limit=limit, seed=seed).sample(limit, seed)
        return cls._encode(rows, task, tokenizer, batch_size, max_length, sort)

    @classmethod
    def calibration(
        cls,
        task: Task,
        tokenizer: Tokenizer | str | Path,
        *,
        batch_size: int = 16,
        max_length: int = 128,
        limit: int | None = None,
        seed: int = 0,
        sort: bool = True,
    ) -> Batches:
        """The text that ships with the package, as rows of ``task`` without labels."""
        rows = Rows.of(
            task.calibration_rows(calibration_passages()), "calibration text of the package"
        )
        return cls._encode(rows.sample(limit, seed), task, tokenizer, batch_size, max_length, sort)

    @classmethod
    def _encode(
        cls,
        rows: Rows,
        task: Task,
        tokenizer: Tokenizer | str | Path,
        batch_size: int,
        max_length: int,
        sort: bool,
    ) -> Batches:
        if isinstance(tokenizer, str | Path):
            tokenizer = load_tokenizer(tokenizer)
        if not len(rows):
            raise DataError(f"data '{rows.origin}': expected rows, found none")
        # transformers gives 1e30 where the model states no length.
        max_length = min(max_length, tokenizer.model_max_length)
        examples = tuple(task.encode(rows, tokenizer, max_length))
        pad = tokenizer.pad_token_id or 0
        return cls(examples, task, rows.origin, batch_size, pad, sort)

    @classmethod
    def from_arrays(
        cls,
        arrays: Mapping[str, npt.ArrayLike] | str | Path,
        batch_size: int = 16,
        limit: int | None = None,
    ) -> Batches:
        """Inputs of a graph without a task: arrays by input name, one example per first index.

        Args:
            arrays: a mapping, or the path of an .npz file.
            batch_size: examples in a batch.
            limit: take the first ``limit`` examples only.

        Raises:
            UsageError: the file is missing.
            DataError: it is no .npz file, is empty, or the first axes differ.
        """
        origin = str(arrays) if isinstance(arrays, str | Path) else "arrays in memory"
        found = read_arrays(arrays) if isinstance(arrays, str | Path) else arrays
        inputs = {name: np.asarray(array) for name, array in found.items()}
        counts = {name: a.shape[0] if a.ndim else 0 for name, a in inputs.items()}
        if len(set(counts.values())) != 1 or 0 in counts.values():
            raise DataError(
                f"data '{origin}': expected arrays with the same, non-empty first axis, found "
                f"{', '.join(f'{name} {a.shape}' for name, a in inputs.items()) or 'no array'}"
            )
        count = next(iter(counts.values()))
        examples = tuple(
            Example({name: a[i] for name, a in inputs.items()}, None, i)
            for i in range(count if limit is None else min(limit, count))
        )
        return cls(examples, None, origin, batch_size, sort=False)

    @property
    def labelled(self) -> bool:
        """Whether every example has the labels that the task's loss reads."""
        return all(e.labels is not None for e in self.examples)

    @property
    def has_targets(self) -> bool:
        """Whether every example has what the task's metric compares with."""
        return all(e.target is not None for e in self.examples)

    def __len__(self) -> int:
        return -(-len(self.examples) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        order = np.arange(len(self.examples))
        if self.sort:
            lengths = np.array([e.length for e in self.examples])
            order = np.argsort(-lengths, kind="stable")
        make = collate if self.task is None else self.task.collate
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            batch = make([self.examples[i] for i in rows], self.pad_token_id)
            yield replace(batch, rows=rows)

    def take(self, count: int, seed: int = 0) -> Batches:
        """At most ``count`` examples, drawn by ``seed``, in their old order."""
        if count >= len(self.examples):
            return self
        chosen = np.sort(np.random.default_rng(seed).permutation(len(self.examples))[:count])
        return replace(self, examples=tuple(self.examples[i] for i in chosen))

    def with_batch_size(self, batch_size: int) -> Batches:
        """The same examples in batches of another size."""
        return replace(self, batch_size=batch_size)

    def describe(self) -> str:
        """One line: origin, number of examples, mean and largest length, labels or none."""
        lengths = [e.length for e in self.examples]
        labels = "labelled" if self.labelled or self.has_targets else "without labels"
        return (
            f"{self.origin}: {len(self.examples)} examples, {np.mean(lengths):.0f} tokens on "
            f"average, {max(lengths)} at most, {labels}"
        )
