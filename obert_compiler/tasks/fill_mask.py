"""Masked language modelling: hidden tokens are predicted (Devlin et al. 2019, section 3.1)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
import numpy.typing as npt

from obert_compiler.data.tokenizer import encode_texts
from obert_compiler.errors import DataError
from obert_compiler.tasks.base import (
    IGNORED,
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

if TYPE_CHECKING:
    import torch

    from obert_compiler.graph.graph import Source

__all__ = ["FillMask"]


@dataclass(frozen=True)
class FillMask(Task):
    """Hidden tokens of plain text.

    Attributes:
        probability: share of the tokens to predict; of these 80% become the mask token, 10% a
            random one, 10% stay. At least one token of a text is chosen.
        seed: seed of the choice; with the number of the row it fixes which tokens are hidden.
    """

    probability: float = 0.15
    seed: int = 0

    name: ClassVar[str] = "fill-mask"
    auto_model: ClassVar[str] = "AutoModelForMaskedLM"
    higher_is_better: ClassVar[bool] = False

    @classmethod
    def from_source(cls, source: Source) -> Self:
        """Nothing to read from the configuration."""
        del source
        return cls()

    @property
    def metric_name(self) -> str:
        """``loss``: mean negative log-likelihood of a hidden token, in nats."""
        return "loss"

    def columns(self) -> str:
        """The accepted columns."""
        return "text or sentence"

    def encode(
        self, rows: Rows | Iterable[Row], tokenizer: Tokenizer, max_length: int
    ) -> list[Example]:
        """One example per row that holds at least one token."""
        rows = Rows.of(rows)
        (column,) = rows.pick_columns((("text",), ("sentence",)), self.columns())
        mask = tokenizer.mask_token_id
        if mask is None:
            raise DataError(
                f"task '{self.name}': expected a tokenizer with a mask token, found none; "
                "name another --task or --tokenizer"
            )
        encoded = encode_texts(
            tokenizer, rows.texts(column), max_length=max_length, return_special_tokens_mask=True
        )
        names = [name for name in encoded if name != "special_tokens_mask"]
        examples = []
        for index in range(len(rows)):
            inputs = {name: np.asarray(encoded[name][index], np.int64) for name in names}
            open_ = np.flatnonzero(np.asarray(encoded["special_tokens_mask"][index]) == 0)
            if not len(open_):
                continue
            generator = np.random.default_rng([self.seed, rows.numbers[index]])
            labels = self._hide(inputs["input_ids"], open_, mask, len(tokenizer), generator)
            target = int(np.sum(labels != IGNORED))
            examples.append(Example(inputs, {"labels": labels}, index, target))
        return examples

    def _hide(
        self,
        ids: npt.NDArray[np.int64],
        open_: npt.NDArray[np.intp],
        mask: int,
        vocabulary: int,
        generator: np.random.Generator,
    ) -> npt.NDArray[np.int64]:
        """Hide tokens of ``ids`` in place; returns the labels, -100 where nothing is hidden."""
        chosen = open_[generator.random(len(open_)) < self.probability]
        if not len(chosen):
            chosen = generator.choice(open_, 1)
        labels = np.full(len(ids), IGNORED, np.int64)
        labels[chosen] = ids[chosen]
        fate = generator.random(len(chosen))
        ids[chosen[fate < 0.8]] = mask
        replaced = chosen[(fate >= 0.8) & (fate < 0.9)]
        ids[replaced] = generator.integers(0, vocabulary, len(replaced))
        return labels

    def losses(self, outputs: Mapping[str, torch.Tensor], batch: Batch) -> torch.Tensor:
        """Cross-entropy summed over the hidden tokens of each example; ``[batch]``."""
        import torch

        if batch.labels is None:
            raise DataError("loss: expected a batch with labels, found none; sample labels first")
        logits = pick_output(outputs, "logits")
        labels = torch.as_tensor(batch.labels["labels"], device=logits.device)
        row, position = torch.nonzero(labels != IGNORED, as_tuple=True)
        terms = torch.nn.functional.cross_entropy(
            logits[row, position], labels[row, position], reduction="none"
        )
        return torch.zeros(len(labels)).to(terms).index_add(0, row, terms)

    def predictions(
        self, outputs: Mapping[str, torch.Tensor], batch: Batch
    ) -> tuple[Predictions, ...]:
        """One row per hidden token."""
        import torch

        if batch.labels is None:
            raise DataError("predictions: expected a batch with hidden tokens, found none")
        logits = pick_output(outputs, "logits")
        hidden = torch.as_tensor(batch.labels["labels"], device=logits.device) != IGNORED
        return (Predictions("classes", logits[hidden]),)

    def sample_labels(
        self, outputs: Mapping[str, torch.Tensor], batch: Batch, generator: torch.Generator
    ) -> Batch:
        """Tokens drawn from the softmax at the hidden positions."""
        import torch

        if batch.labels is None:
            raise DataError("labels: expected a batch with hidden tokens, found none")
        logits = pick_output(outputs, "logits").detach()
        labels = batch.labels["labels"].copy()
        hidden = np.nonzero(labels != IGNORED)
        at = tuple(torch.as_tensor(i, device=logits.device) for i in hidden)
        probabilities = logits[at].softmax(-1).to(generator.device)
        drawn = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
        labels[hidden] = drawn.cpu().numpy()
        return replace(batch, labels={"labels": labels})

    def reduce(self, outputs: Mapping[str, Array], batch: Batch) -> list[Array]:
        """Negative log-likelihood of each hidden token, and 1 where it is the best guess;
        ``[hidden, 2]``.
        """
        if batch.labels is None:
            raise DataError("metric: expected a batch with hidden tokens, found none")
        all_logits = pick_output(outputs, "logits")
        reduced = []
        for row, labels in enumerate(batch.labels["labels"]):
            hidden = np.flatnonzero(labels != IGNORED)
            logits = all_logits[row, hidden].astype(np.float64)
            shifted = logits - logits.max(-1, keepdims=True)
            of_label = shifted[np.arange(len(hidden)), labels[hidden]]
            nll = np.log(np.exp(shifted).sum(-1)) - of_label
            reduced.append(np.stack([nll, (shifted.argmax(-1) == labels[hidden])], axis=1))
        return reduced

    def metric(self, outputs: Sequence[Array], examples: Sequence[Example]) -> dict[str, float]:
        """Loss over all hidden tokens, its exponential, and the share guessed right."""
        del examples
        loss, accuracy = np.concatenate(outputs).mean(0)
        return {
            "loss": float(loss),
            "perplexity": float(np.exp(loss)),
            "accuracy": float(accuracy),
        }
