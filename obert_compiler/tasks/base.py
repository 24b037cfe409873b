"""What a task is: its columns, how rows are encoded, its loss, its labels and its metric.

One file per task. Nothing here imports torch at the top: only `Task.losses`,
`Task.predictions` and `Task.sample_labels`, which Fisher estimation and training call, do so
inside.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeVar

import numpy as np
import numpy.typing as npt

from obert_compiler.data.batches import IGNORED, Batch, Example, collate
from obert_compiler.data.calibration import Passage
from obert_compiler.data.rows import Row, Rows
from obert_compiler.data.tokenizer import Tokenizer
from obert_compiler.errors import DataError, GraphError

if TYPE_CHECKING:
    import torch

    from obert_compiler.graph.graph import Source

__all__ = [
    "IGNORED",
    "Array",
    "Batch",
    "Example",
    "Passage",
    "Predictions",
    "Row",
    "Rows",
    "Task",
    "Tokenizer",
    "class_index",
    "label_names",
    "pick_output",
]

Array = npt.NDArray[Any]
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model predicts for a batch, in the form that distillation compares.

    Attributes:
        kind: ``classes`` for logits of a softmax, ``number`` for the mean of a Gaussian, ``vector``
            for an embedding.
        values: one row per prediction, ``[n, classes or features]``; -inf where a class cannot be.
    """

    kind: Literal["classes", "number", "vector"]
    values: torch.Tensor


class Task(ABC):
    """A task of a model.

    Class attributes:
        name: how ``--task``, configurations and reports call it.
        auto_model: the transformers class that loads a model of this task.
        higher_is_better: whether a larger figure is the better one.
    """

    name: ClassVar[str]
    auto_model: ClassVar[str]
    higher_is_better: ClassVar[bool] = True

    @classmethod
    def auto_class(cls, model_type: str) -> str:
        """The transformers class that loads a model of this task and ``model_type``."""
        del model_type
        return cls.auto_model

    @property
    @abstractmethod
    def metric_name(self) -> str:
        """The key of the primary figure in what `metric` returns."""

    @classmethod
    @abstractmethod
    def from_source(cls, source: Source) -> Self:
        """Build the task of a model from its configuration (label names, problem type).

        Raises:
            ModelError: the configuration is for something this task cannot do.
        """

    @abstractmethod
    def columns(self) -> str:
        """The accepted columns, as messages and the documentation name them."""

    @abstractmethod
    def encode(
        self, rows: Rows | Iterable[Row], tokenizer: Tokenizer, max_length: int
    ) -> list[Example]:
        """Tokenise rows.

        Args:
            rows: rows of a data file, or plain dictionaries.
            tokenizer: a fast tokenizer.
            max_length: tokens at most, special tokens included.

        Raises:
            DataError: a column is missing, or a label does not fit; names file and row.
        """

    def remark_on(self, examples: Sequence[Example]) -> str | None:
        """What a user should know of examples to compress with; None when there is nothing."""
        del examples
        return None

    def collate(self, examples: Sequence[Example], pad_token_id: int) -> Batch:
        """Stack and pad examples."""
        return collate(examples, pad_token_id)

    def calibration_rows(self, passages: Sequence[Passage]) -> list[Row]:
        """Passages of the shipped text as rows of this task, without labels."""
        return [{"text": passage.text} for passage in passages]

    @abstractmethod
    def losses(self, outputs: Mapping[str, torch.Tensor], batch: Batch) -> torch.Tensor:
        """Negative log-likelihood of each example's labels, ``[batch]``, differentiable.

        It sums over the labelled positions of an example (tokens, start and end) and does not
        depend on the padding, hence not on which examples share a batch.
        """

    @abstractmethod
    def predictions(
        self, outputs: Mapping[str, torch.Tensor], batch: Batch
    ) -> tuple[Predictions, ...]:
        """What the model predicts for the examples of a batch, padding left out, differentiable.

        Two models of the same task give rows that belong together for the same batch, whatever
        their labels.
        """

    @abstractmethod
    def sample_labels(
        self, outputs: Mapping[str, torch.Tensor], batch: Batch, generator: torch.Generator
    ) -> Batch:
        """The batch with labels drawn from the model's own predictive distribution.

        Gradients of `losses` at such labels give the true Fisher information, where labels of the
        data give the empirical one (Kunstner, Balles, Hennig 2019, section 2).
        """

    @abstractmethod
    def reduce(self, outputs: Mapping[str, Array], batch: Batch) -> list[Array]:
        """What `metric` needs of each example of a batch, cut to its length.

        Evaluation keeps these instead of the outputs: masked-LM logits of a data set would not fit
        in memory.
        """

    @abstractmethod
    def metric(self, outputs: Sequence[Array], examples: Sequence[Example]) -> dict[str, float]:
        """Figures over a data set; fractions lie in 0..1.

        Args:
            outputs: what `reduce` kept of each example, in the order of ``examples``.
            examples: the encoded data.

        Raises:
            DataError: the examples have no targets.
        """

    def targets(self, examples: Sequence[Example]) -> list[Any]:
        """Targets of the examples.

        Raises:
            DataError: an example has none.
        """
        if any(e.target is None for e in examples):
            raise DataError(
                f"task '{self.name}': expected labelled rows ({self.columns()}), found rows "
                "without a label; add the column"
            )
        return [e.target for e in examples]


def pick_output(outputs: Mapping[str, T], name: str) -> T:
    """The output called ``name``, or the only one there is.

    Raises:
        GraphError: several outputs, none called ``name``.
    """
    if name in outputs:
        return outputs[name]
    if len(outputs) == 1:
        return next(iter(outputs.values()))
    raise GraphError(
        f"output '{name}': expected it among the outputs of the graph, found "
        f"{', '.join(outputs) or 'none'}; rename the output or name another --task"
    )


def label_names(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Label names of a Hugging Face configuration by class index; None when it says nothing."""
    names = config.get("id2label")
    if names:
        by_index = {int(index): str(name) for index, name in names.items()}
        if set(by_index) == set(range(len(by_index))):
            return tuple(by_index[i] for i in range(len(by_index)))
    if "num_labels" in config:
        return tuple(f"LABEL_{i}" for i in range(int(config["num_labels"])))
    if config:
        # transformers' own default for configurations that name no labels
        return ("LABEL_0", "LABEL_1")
    return None


def class_index(value: object, labels: tuple[str, ...] | None, where: str) -> int:
    """Index of the class that a label cell names: a whole number, or a label name.

    Args:
        value: the cell.
        labels: names by index, None when the number of classes is unknown.
        where: names file and row.

    Raises:
        DataError: neither a name of the model nor a number in its range.
    """
    if isinstance(value, str):
        if labels is not None and value in labels:
            return labels.index(value)
        value = int(value) if value.strip().lstrip("-").isdecimal() else value
    if isinstance(value, float | np.floating) and float(value).is_integer():
        value = int(value)
    if (
        isinstance(value, int | np.integer)
        and not isinstance(value, bool)
        and int(value) >= 0
        and (labels is None or int(value) < len(labels))
    ):
        return int(value)
    raise DataError(f"{where}: expected a label {_expected(labels)}, found {value!r:.60}")


def _expected(labels: tuple[str, ...] | None) -> str:
    if labels is None:
        return "that is a whole number from 0 (the model names no labels)"
    named = ", ".join(labels[:8]) + (", ..." if len(labels) > 8 else "")
    return f"in 0..{len(labels) - 1} or one of {named}"
