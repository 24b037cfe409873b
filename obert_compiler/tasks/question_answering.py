"""Extractive question answering: windows over long contexts, EM and F1 as SQuAD scores them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from obert_compiler.data.tokenizer import encode_texts
from obert_compiler.errors import DataError, UsageError
from obert_compiler.tasks.base import (
    Array,
    Batch,
    Example,
    Passage,
    Predictions,
    Row,
    Rows,
    Task,
    Tokenizer,
    pick_output,
)
from obert_compiler.tasks.metrics import squad_scores

if TYPE_CHECKING:
    import torch

    from obert_compiler.graph.graph import Source

__all__ = ["QuestionAnswering"]

STRIDE = 128
CANDIDATES = 20
LONGEST_ANSWER = 30
SHORTEST_WINDOW = 32


@dataclass(frozen=True)
class QuestionAnswering(Task):
    """The span of a context that answers a question.

    A context longer than ``max_length`` tokens becomes several overlapping examples of one row; the
    best span over all of them is the answer. Spans have at most 30 tokens and come from the 20 best
    starts and ends.
    """

    name: ClassVar[str] = "question-answering"
    auto_model: ClassVar[str] = "AutoModelForQuestionAnswering"

    @classmethod
    def from_source(cls, source: Source) -> Self:
        """Nothing to read from the configuration."""
        del source
        return cls()

    @property
    def metric_name(self) -> str:
        """``f1`` over words."""
        return "f1"

    def columns(self) -> str:
        """The accepted columns."""
        return "question+context; answers ({text: [...], answer_start: [...]})"

    def encode(
        self, rows: Rows | Iterable[Row], tokenizer: Tokenizer, max_length: int
    ) -> list[Example]:
        """One example per window; windows overlap by 128 tokens or a quarter of their length."""
        rows = Rows.of(rows)
        if max_length < SHORTEST_WINDOW:
            raise UsageError(
                f"sequence length: expected at least {SHORTEST_WINDOW} for {self.name}, "
                f"found {max_length}"
            )
        rows.pick_columns((("question", "context"),), self.columns())
        contexts = rows.texts("context")
        answers = [_answers(rows, index, contexts[index]) for index in range(len(rows))]
        encoded: Any = encode_texts(
            tokenizer,
            _cut(rows.texts("question"), tokenizer, max_length // 2),
            contexts,
            max_length=max_length,
            truncation="only_second",
            stride=min(STRIDE, max_length // 4 - 1),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        names = set(encoded) - {"overflow_to_sample_mapping", "offset_mapping"}
        examples = []
        for window, row in enumerate(encoded["overflow_to_sample_mapping"]):
            inputs = {name: np.asarray(encoded[name][window], np.int64) for name in sorted(names)}
            of_context = np.array([s == 1 for s in encoded.sequence_ids(window)])
            offsets = np.asarray(encoded["offset_mapping"][window], np.int32)
            offsets = np.where(of_context[:, None], offsets, -1)
            details = {"offsets": offsets, "context": contexts[row]}
            answer = answers[row]
            labels = None if answer is None else _positions(offsets, answer)
            target = None if answer is None else answer.texts
            examples.append(Example(inputs, labels, row, target, details))
        return examples

    def calibration_rows(self, passages: Sequence[Passage]) -> list[Row]:
        """Paragraphs with the question that was asked about them."""
        return [{"question": p.question, "context": p.text} for p in passages if p.question]

    def losses(self, outputs: Mapping[str, torch.Tensor], batch: Batch) -> torch.Tensor:
        """Cross-entropy of the start plus that of the end; ``[batch]``."""
        import torch

        if batch.labels is None:
            raise DataError("loss: expected a batch with labels, found none; sample labels first")
        total = torch.zeros(())
        for logits, name in zip(self._logits(outputs, batch), _LABELS, strict=True):
            labels = torch.as_tensor(batch.labels[name], device=logits.device)
            terms = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
            total = total.to(terms) + terms
        return total

    def predictions(
        self, outputs: Mapping[str, torch.Tensor], batch: Batch
    ) -> tuple[Predictions, ...]:
        """One row per window for the start, and one for the end."""
        return tuple(Predictions("classes", logits) for logits in self._logits(outputs, batch))

    def sample_labels(
        self, outputs: Mapping[str, torch.Tensor], batch: Batch, generator: torch.Generator
    ) -> Batch:
        """Starts and ends drawn from their softmax."""
        import torch

        labels = {}
        for logits, name in zip(self._logits(outputs, batch), _LABELS, strict=True):
            probabilities = logits.detach().softmax(-1).to(generator.device)
            drawn = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
            labels[name] = drawn.cpu().numpy()
        return replace(batch, labels=labels)

    @staticmethod
    def _logits(outputs: Mapping[str, torch.Tensor], batch: Batch) -> list[torch.Tensor]:
        """Start and end logits, -inf on padding."""
        import torch

        logits = [pick_output(outputs, name) for name in ("start_logits", "end_logits")]
        padding = torch.as_tensor(batch.inputs["attention_mask"] == 0, device=logits[0].device)
        return [values.masked_fill(padding, -torch.inf) for values in logits]

    def reduce(self, outputs: Mapping[str, Array], batch: Batch) -> list[Array]:
        """Start and end logits of each example, ``[2, tokens]``."""
        start, end = (pick_output(outputs, name) for name in ("start_logits", "end_logits"))
        lengths = batch.inputs["attention_mask"].sum(1)
        return [np.stack([s[:n], e[:n]]) for s, e, n in zip(start, end, lengths, strict=True)]

    def metric(self, outputs: Sequence[Array], examples: Sequence[Example]) -> dict[str, float]:
        """F1 over words and exact match, each in 0..1 (SQuAD prints them times 100).

        Where some question has no answer (SQuAD 2.0), a window whose first token scores best
        predicts none.
        """
        targets = self.targets(examples)
        can_abstain = any(not answers for answers in targets)
        best: dict[int, tuple[float, str]] = {}
        nothing: dict[int, float] = {}
        references: dict[int, Sequence[str]] = {}
        for logits, example, answers in zip(outputs, examples, targets, strict=True):
            row = example.row
            references[row] = answers
            score, text = best_span(logits, example.details["offsets"], example.details["context"])
            if row not in best or score > best[row][0]:
                best[row] = (score, text)
            nothing[row] = min(nothing.get(row, np.inf), float(logits[:, 0].sum()))
        predicted = [
            "" if can_abstain and nothing[row] > score else text
            for row, (score, text) in best.items()
        ]
        return squad_scores(predicted, [references[row] for row in best])


_LABELS = ("start_positions", "end_positions")


@dataclass(frozen=True)
class _Answer:
    texts: tuple[str, ...]
    start: int | None


def best_span(logits: Array, offsets: Array, context: str) -> tuple[float, str]:
    """Score and text of the best span of context tokens.

    Args:
        logits: start and end logits, ``[2, tokens]``.
        offsets: first and last character of each token in ``context``, -1 outside; ``[tokens, 2]``.
        context: the text.
    """
    inside = np.flatnonzero(offsets[:, 0] >= 0)
    if not len(inside):
        return -np.inf, ""
    start = inside[np.argsort(-logits[0, inside], kind="stable")[:CANDIDATES]]
    end = inside[np.argsort(-logits[1, inside], kind="stable")[:CANDIDATES]]
    length = end[None, :] - start[:, None] + 1
    scores = logits[0, start][:, None] + logits[1, end][None, :]
    scores = np.where((length >= 1) & (length <= LONGEST_ANSWER), scores, -np.inf)
    first, last = np.unravel_index(int(scores.argmax()), scores.shape)
    score = float(scores[first, last])
    if not np.isfinite(score):
        return -np.inf, ""
    return score, context[offsets[start[first], 0] : offsets[end[last], 1]]


def _positions(offsets: Array, answer: _Answer) -> dict[str, Array] | None:
    """First and last token of the answer; the first token of the window where it is not inside.

    None when the data does not say where the answer starts.
    """
    first = last = 0
    if answer.texts:
        if answer.start is None:
            return None
        stop = answer.start + len(answer.texts[0])
        touched = np.flatnonzero((offsets[:, 0] < stop) & (offsets[:, 1] > answer.start))
        whole = (
            len(touched) > 0
            and offsets[touched[0], 0] <= answer.start
            and offsets[touched[-1], 1] >= stop
        )
        if whole:
            first, last = int(touched[0]), int(touched[-1])
    return {name: np.asarray(p, np.int64) for name, p in zip(_LABELS, (first, last), strict=True)}


def _answers(rows: Rows, index: int, context: str) -> _Answer | None:
    """The reference answers of a row, None where it has no such column."""
    value, where = rows[index].get("answers"), rows.where(index)
    if value is None:
        return None
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            value = {"text": [value]}
    if isinstance(value, Mapping):
        texts, starts = value.get("text"), value.get("answer_start")
    elif isinstance(value, list) and all(isinstance(item, Mapping) for item in value):
        texts = [item.get("text") for item in value]
        starts = [item.get("answer_start") for item in value]
    else:
        texts = starts = None
    if texts is None or not all(isinstance(text, str) for text in texts):
        raise DataError(
            f"{where}: expected answers as {{text: [...], answer_start: [...]}}, "
            f"found {value!r:.60}"
        )
    if not len(texts):
        return _Answer((), None)
    start = starts[0] if starts is not None and len(starts) else None
    if start is not None and not 0 <= int(start) <= len(context) - len(texts[0]):
        raise DataError(
            f"{where}: expected answer_start within the context of {len(context)} characters, "
            f"found {start}"
        )
    return _Answer(tuple(texts), None if start is None else int(start))


def _cut(questions: list[str], tokenizer: Tokenizer, tokens: int) -> list[str]:
    """Questions of at most ``tokens`` tokens, so that a window has room for its context."""
    encoded = encode_texts(
        tokenizer,
        questions,
        max_length=tokens - 4,
        add_special_tokens=False,
        return_offsets_mapping=True,
    )
    return [
        question[: offsets[-1][1]] if offsets else question
        for question, offsets in zip(questions, encoded["offset_mapping"], strict=True)
    ]
