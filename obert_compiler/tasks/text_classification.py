"""Text classification of single texts and of pairs, and regression when the model has one output.

A model with one output (STS-B, a cross-encoder reranker) predicts a number: its likelihood is the
Gaussian N(output, 1), its metric the rank correlation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np

from obert_compiler.data.tokenizer import encode_texts
from obert_compiler.errors import DataError, ModelError
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
    class_index,
    label_names,
    pick_output,
)
from obert_compiler.tasks.metrics import classification_scores, correlations

if TYPE_CHECKING:
    import torch

    from obert_compiler.graph.graph import Source

__all__ = ["TextClassification"]

PAIR_COLUMNS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("text", "text_pair"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("query", "passage"),
    ("query", "text"),
)
TEXT_COLUMNS = (("sentence",), ("text",))
LABEL_COLUMNS = ("label", "labels", "score")


@dataclass(frozen=True)
class TextClassification(Task):
    """Classes or one number for a text or a pair of texts.

    Attributes:
        labels: names of the classes by index; one name means regression; None when unknown.
    """

    labels: tuple[str, ...] | None = None

    name: ClassVar[str] = "text-classification"
    auto_model: ClassVar[str] = "AutoModelForSequenceClassification"

    @classmethod
    def from_source(cls, source: Source) -> Self:
        """Label names from the configuration.

        Raises:
            ModelError: several labels at once (``multi_label_classification``).
        """
        if source.config.get("problem_type") == "multi_label_classification":
            raise ModelError(
                f"model '{source.location}': expected one label a text, found problem_type "
                "multi_label_classification, which is not supported"
            )
        return cls(label_names(source.config))

    @property
    def regression(self) -> bool:
        """Whether the model has one output, a number."""
        return self.labels is not None and len(self.labels) == 1

    @property
    def metric_name(self) -> str:
        """``spearman`` for regression, else ``accuracy``."""
        return "spearman" if self.regression else "accuracy"

    def columns(self) -> str:
        """The accepted columns."""
        texts = "sentence, text, sentence1+sentence2, premise+hypothesis or text+text_pair"
        return f"{texts}; label (a number)" if self.regression else f"{texts}; label"

    def encode(
        self, rows: Rows | Iterable[Row], tokenizer: Tokenizer, max_length: int
    ) -> list[Example]:
        """One example per row."""
        rows = Rows.of(rows)
        columns = rows.pick_columns((*PAIR_COLUMNS, *TEXT_COLUMNS), self.columns())
        texts = [rows.texts(column) for column in columns]
        encoded = encode_texts(tokenizer, *texts, max_length=max_length)
        label = next((c for c in LABEL_COLUMNS if c in rows.columns), None)
        examples = []
        for index in range(len(rows)):
            inputs = {name: np.asarray(ids[index], np.int64) for name, ids in encoded.items()}
            target = None if label is None else self._target(rows, index, label)
            labels = None if target is None else {"labels": self._label_array(target)}
            examples.append(Example(inputs, labels, index, target))
        return examples

    def remark_on(self, examples: Sequence[Example]) -> str | None:
        """That most classes are missing, as in the first rows of a file that is sorted by label."""
        found = {e.target for e in examples}
        if self.labels is None or self.regression or None in found:
            return None
        if 2 * len(found) > len(self.labels) or len(examples) < len(self.labels):
            return None
        return (
            f"only {len(found)} of the {len(self.labels)} labels occur in its {len(examples)} "
            "examples; rows of all labels, in any order, compress better"
        )

    def _target(self, rows: Rows, index: int, column: str) -> float | int:
        value, where = rows[index].get(column), rows.where(index)
        if not self.regression:
            return class_index(value, self.labels, where)
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            number = float("nan")
        if not np.isfinite(number):
            raise DataError(f"{where}: expected a finite number as label, found {value!r:.60}")
        return number

    def _label_array(self, target: float) -> Array:
        return np.asarray(target, np.float32 if self.regression else np.int64)

    def calibration_rows(self, passages: Sequence[Passage]) -> list[Row]:
        """Pairs of a question and its paragraph for rerankers, else single passages."""
        if not self.regression:
            return [{"text": passage.text} for passage in passages]
        return [
            {"text": p.question or first_sentence(p.text), "text_pair": p.text} for p in passages
        ]

    def losses(self, outputs: Mapping[str, torch.Tensor], batch: Batch) -> torch.Tensor:
        """Cross-entropy, or half the squared error; ``[batch]``."""
        import torch

        logits = pick_output(outputs, "logits")
        labels = torch.as_tensor(_labels(batch), device=logits.device)
        if self.regression:
            return 0.5 * (logits.reshape(-1) - labels).square()
        return torch.nn.functional.cross_entropy(logits, labels, reduction="none")

    def predictions(
        self, outputs: Mapping[str, torch.Tensor], batch: Batch
    ) -> tuple[Predictions, ...]:
        """One row per text: its class, or its number."""
        del batch
        logits = pick_output(outputs, "logits")
        kind: Literal["classes", "number"] = "number" if self.regression else "classes"
        return (Predictions(kind, logits.flatten(1)),)

    def sample_labels(
        self, outputs: Mapping[str, torch.Tensor], batch: Batch, generator: torch.Generator
    ) -> Batch:
        """Classes drawn from the softmax, or numbers from N(output, 1)."""
        import torch

        logits = pick_output(outputs, "logits").detach()
        if self.regression:
            mean = logits.reshape(-1)
            noise = torch.randn(mean.shape, generator=generator, device=generator.device)
            drawn = mean + noise.to(mean)
        else:
            probabilities = logits.softmax(-1).to(generator.device)
            drawn = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
        return replace(batch, labels={"labels": drawn.cpu().numpy()})

    def reduce(self, outputs: Mapping[str, Array], batch: Batch) -> list[Array]:
        """The logits of each example."""
        del batch
        return list(pick_output(outputs, "logits"))

    def metric(self, outputs: Sequence[Array], examples: Sequence[Example]) -> dict[str, float]:
        """Accuracy and macro F1; Spearman and Pearson correlation for regression."""
        targets = np.asarray(self.targets(examples))
        logits = np.stack(outputs)
        if self.regression:
            return correlations(logits.reshape(-1), targets)
        return classification_scores(logits.argmax(-1), targets)


def first_sentence(text: str) -> str:
    """The text up to its first full stop."""
    return text.partition(". ")[0]


def _labels(batch: Batch) -> Array:
    if batch.labels is None:
        raise DataError("loss: expected a batch with labels, found none; sample labels first")
    return batch.labels["labels"]
