"""Token classification: one tag per word, entities scored as seqeval does.

The tag of a word lies on its first sub-token; the others are not counted. Words that truncation
cut off count as tagged ``O``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from obert_compiler.data.tokenizer import encode_texts
from obert_compiler.errors import DataError
from obert_compiler.tasks.base import (
    IGNORED,
    Array,
    Batch,
    Example,
    Passage,
    Predictions,
    Row,
    Rows,
    Task,
    Tokenizer,
    class_index,
    label_names,
    pick_output,
)
from obert_compiler.tasks.metrics import entity_scores

if TYPE_CHECKING:
    import torch

    from obert_compiler.graph.graph import Source

__all__ = ["TokenClassification"]

TAG_COLUMNS = ("ner_tags", "tags", "labels", "slots", "pos_tags")
WORD_STARTS = "word_starts"


@dataclass(frozen=True)
class TokenClassification(Task):
    """A tag for each word.

    Attributes:
        labels: names of the tags by index; None when unknown.
    """

    labels: tuple[str, ...] | None = None

    name: ClassVar[str] = "token-classification"
    auto_model: ClassVar[str] = "AutoModelForTokenClassification"

    @classmethod
    def from_source(cls, source: Source) -> Self:
        """Tag names from the configuration."""
        return cls(label_names(source.config))

    @property
    def metric_name(self) -> str:
        """``f1`` over entities where the tags are IOB, else ``accuracy`` over words."""
        return "f1" if self._iob else "accuracy"

    @property
    def _iob(self) -> bool:
        return any(label.startswith(("B-", "I-")) for label in self.labels or ())

    def columns(self) -> str:
        """The accepted columns."""
        return f"tokens (a list of words); {', '.join(TAG_COLUMNS[:-1])} or {TAG_COLUMNS[-1]}"

    def encode(
        self, rows: Rows | Iterable[Row], tokenizer: Tokenizer, max_length: int
    ) -> list[Example]:
        """One example per row."""
        rows = Rows.of(rows)
        rows.pick_columns((("tokens",),), self.columns())
        words = [_words(rows, index) for index in range(len(rows))]
        space = " " if _loses_spaces(tokenizer) else ""
        encoded: Any = encode_texts(
            tokenizer,
            [[first, *(space + word for word in rest)] for first, *rest in words],
            max_length=max_length,
            is_split_into_words=True,
        )
        column = next((c for c in TAG_COLUMNS if c in rows.columns), None)
        examples = []
        for index in range(len(rows)):
            inputs = {name: np.asarray(ids[index], np.int64) for name, ids in encoded.items()}
            starts = _word_starts(encoded.word_ids(index), len(words[index]))
            target = labels = None
            if column is not None:
                target = self._tags(rows, index, column, len(words[index]))
                positions = np.full(len(inputs["input_ids"]), IGNORED, np.int64)
                kept = starts >= 0
                positions[starts[kept]] = np.asarray(target, np.int64)[kept]
                labels = {"labels": positions}
            examples.append(Example(inputs, labels, index, target, {WORD_STARTS: starts}))
        return examples

    def _tags(self, rows: Rows, index: int, column: str, words: int) -> list[int]:
        tags, where = rows[index].get(column), rows.where(index)
        if not isinstance(tags, list | tuple | np.ndarray) or len(tags) != words:
            found = "no list" if not hasattr(tags, "__len__") else f"{len(tags or '')}"
            raise DataError(
                f"{where}: expected {words} tags in column '{column}', one for each of 'tokens', "
                f"found {found}"
            )
        return [class_index(tag, self.labels, where) for tag in tags]

    def calibration_rows(self, passages: Sequence[Passage]) -> list[Row]:
        """Passages cut into words at spaces."""
        return [{"tokens": passage.text.split()} for passage in passages]

    def losses(self, outputs: Mapping[str, torch.Tensor], batch: Batch) -> torch.Tensor:
        """Cross-entropy summed over the tagged words of each example; ``[batch]``."""
        import torch

        if batch.labels is None:
            raise DataError("loss: expected a batch with labels, found none; sample labels first")
        logits = pick_output(outputs, "logits")
        labels = torch.as_tensor(batch.labels["labels"], device=logits.device)
        terms = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none"
        )
        return terms.sum(1)

    def predictions(
        self, outputs: Mapping[str, torch.Tensor], batch: Batch
    ) -> tuple[Predictions, ...]:
        """One row per token of the text, the special ones included."""
        import torch

        logits = pick_output(outputs, "logits")
        mask = torch.as_tensor(batch.inputs["attention_mask"], device=logits.device)
        return (Predictions("classes", logits[mask.bool()]),)

    def sample_labels(
        self, outputs: Mapping[str, torch.Tensor], batch: Batch, generator: torch.Generator
    ) -> Batch:
        """Tags drawn from the softmax at every labelled position; without labels, at every token
        of the text (neither the first nor the last, which are special tokens).
        """
        import torch

        logits = pick_output(outputs, "logits").detach()
        probabilities = logits.softmax(-1).to(generator.device)
        drawn = torch.multinomial(probabilities.flatten(0, 1), 1, generator=generator)
        labels = drawn.reshape(logits.shape[:2]).cpu().numpy()
        return replace(batch, labels={"labels": np.where(_counted(batch), labels, IGNORED)})

    def reduce(self, outputs: Mapping[str, Array], batch: Batch) -> list[Array]:
        """The most likely tag at each token."""
        best = pick_output(outputs, "logits").argmax(-1)
        lengths = batch.inputs["attention_mask"].sum(1)
        return [row[:length] for row, length in zip(best, lengths, strict=True)]

    def metric(self, outputs: Sequence[Array], examples: Sequence[Example]) -> dict[str, float]:
        """F1, precision and recall over entities (IOB tags), and accuracy over words."""
        targets = self.targets(examples)
        names = self.labels or ()
        fallback = names.index("O") if "O" in names else 0
        predicted = []
        for best, example in zip(outputs, examples, strict=True):
            starts = example.details[WORD_STARTS]
            predicted.append(np.where(starts >= 0, best[starts], fallback).tolist())
        flat = np.concatenate([np.asarray(p) for p in predicted])
        accuracy = float(np.mean(flat == np.concatenate([np.asarray(t) for t in targets])))
        if not self._iob:
            return {"accuracy": accuracy}
        entities = entity_scores(
            [[names[i] for i in tags] for tags in predicted],
            [[names[i] for i in tags] for tags in targets],
        )
        return {**entities, "accuracy": accuracy}


def _words(rows: Rows, index: int) -> list[str]:
    words = rows[index].get("tokens")
    if (
        not isinstance(words, list | tuple | np.ndarray)
        or not len(words)
        or not all(isinstance(word, str) for word in words)
    ):
        raise DataError(
            f"{rows.where(index)}: expected a non-empty list of words in column 'tokens', "
            f"found {words!r:.60}"
        )
    return list(words)


def _loses_spaces(tokenizer: Tokenizer) -> bool:
    """Whether words given one by one are not encoded as in a text.

    Byte-level tokenizers (RoBERTa, ModernBERT) mark a space in the token behind it, and see none
    between words unless they were built with ``add_prefix_space``.
    """
    apart = tokenizer(["a", "a"], is_split_into_words=True)["input_ids"]
    return bool(apart != tokenizer("a a")["input_ids"])


def _word_starts(word_ids: Sequence[int | None], words: int) -> Array:
    """Position of the first sub-token of each word, -1 where truncation cut it off; ``[words]``."""
    starts = np.full(words, -1, np.int64)
    for position, word in enumerate(word_ids):
        if word is not None and starts[word] < 0:
            starts[word] = position
    return starts


def _counted(batch: Batch) -> Array:
    if batch.labels is not None:
        return np.asarray(batch.labels["labels"] != IGNORED)
    mask = batch.inputs["attention_mask"].astype(bool)
    last = mask.sum(1) - 1
    counted = mask.copy()
    counted[:, 0] = False
    counted[np.arange(len(mask)), last] = False
    return counted
