"""Feature extraction: one embedding per text.

Scored by Spearman's correlation of the cosine with human scores where rows are pairs, and by the
label of the nearest other row (leave one out) where they are labelled texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from obert_compiler.data.tokenizer import encode_texts
from obert_compiler.errors import DataError
from obert_compiler.tasks.base import (
    Array,
    Batch,
    Example,
    Predictions,
    Row,
    Rows,
    Task,
    Tokenizer,
    pick_output,
)
from obert_compiler.tasks.metrics import correlations, cosines, nearest_neighbour_accuracy

if TYPE_CHECKING:
    import torch

    from obert_compiler.graph.graph import Source

__all__ = ["FeatureExtraction"]

SCORE_COLUMNS = ("score", "similarity_score", "label", "labels")
PART = "part"
_WITH_DECODER = frozenset({"mt5", "t5", "umt5"})


@dataclass(frozen=True)
class FeatureExtraction(Task):
    """An embedding of each text: ``sentence_embedding``, else the mean of ``last_hidden_state``.

    The predictive distribution of an embedding is the Gaussian N(output, I).
    """

    name: ClassVar[str] = "feature-extraction"
    auto_model: ClassVar[str] = "AutoModel"

    @classmethod
    def auto_class(cls, model_type: str) -> str:
        """Of models with a decoder, the encoder alone."""
        return "AutoModelForTextEncoding" if model_type in _WITH_DECODER else cls.auto_model

    @classmethod
    def from_source(cls, source: Source) -> Self:
        """Nothing to read from the configuration."""
        del source
        return cls()

    @property
    def metric_name(self) -> str:
        """``spearman`` for pairs; rows of labelled texts give ``accuracy`` instead."""
        return "spearman"

    def columns(self) -> str:
        """The accepted columns."""
        return "sentence1+sentence2; score or label (a number); or text or sentence; label"

    def encode(
        self, rows: Rows | Iterable[Row], tokenizer: Tokenizer, max_length: int
    ) -> list[Example]:
        """One example per text: two for a row that is a pair. Labels for a loss there are none."""
        rows = Rows.of(rows)
        columns = rows.pick_columns(
            (("sentence1", "sentence2"), ("text",), ("sentence",)), self.columns()
        )
        label = next((c for c in SCORE_COLUMNS if c in rows.columns), None)
        targets = [self._target(rows, i, label, len(columns) == 2) for i in range(len(rows))]
        examples = []
        for part, column in enumerate(columns):
            encoded = encode_texts(tokenizer, rows.texts(column), max_length=max_length)
            for index in range(len(rows)):
                inputs = {name: np.asarray(ids[index], np.int64) for name, ids in encoded.items()}
                details = {PART: part} if len(columns) == 2 else {}
                examples.append(Example(inputs, None, index, targets[index], details))
        return examples

    def _target(self, rows: Rows, index: int, column: str | None, pair: bool) -> Any:
        if column is None:
            return None
        value = rows[index].get(column)
        if not pair:
            if not isinstance(value, str | int | np.integer):
                raise DataError(
                    f"{rows.where(index)}: expected a label (a number or a name), "
                    f"found {value!r:.60}"
                )
            return value
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            number = float("nan")
        if not np.isfinite(number):
            raise DataError(
                f"{rows.where(index)}: expected a finite number in column '{column}', "
                f"found {value!r:.60}"
            )
        return number

    def losses(self, outputs: Mapping[str, torch.Tensor], batch: Batch) -> torch.Tensor:
        """Half the squared distance to the labels' embedding; ``[batch]``."""
        import torch

        if batch.labels is None:
            raise DataError("loss: expected a batch with labels, found none; sample labels first")
        embeddings = _pooled_torch(outputs, batch)
        labels = torch.as_tensor(batch.labels["embedding"]).to(embeddings)
        return 0.5 * (embeddings - labels).square().sum(1)

    def predictions(
        self, outputs: Mapping[str, torch.Tensor], batch: Batch
    ) -> tuple[Predictions, ...]:
        """One row per text: its embedding."""
        return (Predictions("vector", _pooled_torch(outputs, batch)),)

    def sample_labels(
        self, outputs: Mapping[str, torch.Tensor], batch: Batch, generator: torch.Generator
    ) -> Batch:
        """Embeddings drawn from N(output, I)."""
        import torch

        mean = _pooled_torch(outputs, batch).detach()
        noise = torch.randn(mean.shape, generator=generator, device=generator.device)
        return replace(batch, labels={"embedding": (mean + noise.to(mean)).cpu().numpy()})

    def reduce(self, outputs: Mapping[str, Array], batch: Batch) -> list[Array]:
        """The embedding of each example."""
        values = _embedding_output(outputs)
        if values.ndim == 3:
            mask = batch.inputs["attention_mask"][..., None].astype(values.dtype)
            # A model of fixed length gives more positions than the batch has.
            values = (values[:, : mask.shape[1]] * mask).sum(1) / mask.sum(1)
        return list(values)

    def metric(self, outputs: Sequence[Array], examples: Sequence[Example]) -> dict[str, float]:
        """Spearman and Pearson of the cosines for pairs, else nearest-neighbour accuracy."""
        targets = self.targets(examples)
        embeddings = np.stack(outputs)
        if PART not in examples[0].details:
            return {"accuracy": nearest_neighbour_accuracy(embeddings, targets)}
        sides: tuple[dict[int, int], dict[int, int]] = ({}, {})
        for index, example in enumerate(examples):
            sides[example.details[PART]][example.row] = index
        rows = sorted(sides[0].keys() & sides[1].keys())
        first, second = ([side[row] for row in rows] for side in sides)
        similarity = cosines(embeddings[first], embeddings[second])
        return correlations(similarity, np.asarray(targets, np.float64)[first])


def _embedding_output(outputs: Mapping[str, Any]) -> Any:
    if "sentence_embedding" in outputs:
        return outputs["sentence_embedding"]
    return pick_output(outputs, "last_hidden_state")


def _pooled_torch(outputs: Mapping[str, torch.Tensor], batch: Batch) -> torch.Tensor:
    import torch

    values: torch.Tensor = _embedding_output(outputs)
    if values.ndim == 3:
        mask = torch.as_tensor(batch.inputs["attention_mask"]).to(values)[..., None]
        values = (values * mask).sum(1) / mask.sum(1)
    return values
