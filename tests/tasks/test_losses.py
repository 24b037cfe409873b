"""Losses against sums written out, their freedom from padding, and labels drawn from the model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from obert_compiler.data.batches import Batch
from obert_compiler.errors import DataError
from obert_compiler.tasks.base import IGNORED, Task
from obert_compiler.tasks.feature_extraction import FeatureExtraction
from obert_compiler.tasks.fill_mask import FillMask
from obert_compiler.tasks.question_answering import QuestionAnswering
from obert_compiler.tasks.text_classification import TextClassification
from obert_compiler.tasks.token_classification import TokenClassification

torch = pytest.importorskip("torch")

LENGTHS = np.array([5, 3])
CLASSES = TextClassification(("a", "b", "c"))
NUMBER = TextClassification(("LABEL_0",))
TAGS = TokenClassification(("O", "B-X", "I-X"))


def _batch(labels: dict[str, np.ndarray] | None = None, width: int = 5) -> Batch:
    mask = (np.arange(width) < LENGTHS[:, None]).astype(np.int64)
    return Batch({"input_ids": mask * 7, "attention_mask": mask}, labels, np.arange(2))


def _outputs(seed: int = 0, width: int = 5) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    wide = torch.randn(2, 9, 3, generator=generator)
    return {
        "tokens": wide[:, :width],
        "classes": wide[:, 0],
        "number": wide[:, 0, :1],
        "start_logits": wide[:, :width, 0],
        "end_logits": wide[:, :width, 1],
    }


def _log_softmax(values: np.ndarray) -> np.ndarray:
    return values - np.log(np.exp(values).sum())


def test_classes_against_the_definition() -> None:
    logits = _outputs()["classes"]
    found = CLASSES.losses({"logits": logits}, _batch({"labels": np.array([2, 0])}))
    expected = [-_log_softmax(logits[0].numpy())[2], -_log_softmax(logits[1].numpy())[0]]
    assert found.numpy() == pytest.approx(np.array(expected), rel=1e-5)


def test_number_against_the_definition() -> None:
    value = _outputs()["number"]
    labels = np.array([0.5, -2.0], np.float32)
    found = NUMBER.losses({"logits": value}, _batch({"labels": labels}))
    assert found.shape == (2,)
    assert found.numpy() == pytest.approx(0.5 * (value.numpy()[:, 0] - labels) ** 2, rel=1e-5)


@pytest.mark.parametrize("task", [TAGS, FillMask()])
def test_positions_are_summed(task: Task) -> None:
    logits = _outputs()["tokens"]
    labels = np.full((2, 5), IGNORED)
    labels[0, 1], labels[0, 3], labels[1, 2] = 2, 0, 1
    found = task.losses({"logits": logits}, _batch({"labels": labels}))
    values = logits.numpy()
    expected = [
        -_log_softmax(values[0, 1])[2] - _log_softmax(values[0, 3])[0],
        -_log_softmax(values[1, 2])[1],
    ]
    assert found.numpy() == pytest.approx(np.array(expected), rel=1e-5)


def test_answer_against_the_definition() -> None:
    outputs = _outputs()
    labels = {"start_positions": np.array([1, 0]), "end_positions": np.array([4, 2])}
    found = QuestionAnswering().losses(outputs, _batch(labels))
    expected = []
    for row, length in enumerate(LENGTHS):
        start = _log_softmax(outputs["start_logits"][row, :length].numpy())
        end = _log_softmax(outputs["end_logits"][row, :length].numpy())
        row_labels = labels["start_positions"][row], labels["end_positions"][row]
        expected.append(-start[row_labels[0]] - end[row_labels[1]])
    assert found.numpy() == pytest.approx(np.array(expected), rel=1e-5)


@pytest.mark.parametrize("pooled", [True, False])
def test_embedding_against_the_definition(pooled: bool) -> None:
    states = _outputs()["tokens"]
    labels = {"embedding": np.ones((2, 3), np.float32)}
    if pooled:
        outputs = {"sentence_embedding": states[:, 0], "last_hidden_state": states}
        mean = states[:, 0].numpy()
    else:
        outputs = {"last_hidden_state": states}
        mean = np.stack([states[i, :n].numpy().mean(0) for i, n in enumerate(LENGTHS)])
    found = FeatureExtraction().losses(outputs, _batch(labels))
    assert found.numpy() == pytest.approx(0.5 * ((mean - 1) ** 2).sum(1), rel=1e-5)


CASES: list[tuple[Task, dict[str, str], dict[str, np.ndarray]]] = [
    (TAGS, {"logits": "tokens"}, {"labels": np.array([[0, 1, 2, 0, 1], [2, 2, 1, -100, -100]])}),
    (
        QuestionAnswering(),
        {"start_logits": "start_logits", "end_logits": "end_logits"},
        {"start_positions": np.array([1, 2]), "end_positions": np.array([4, 2])},
    ),
    (
        FeatureExtraction(),
        {"last_hidden_state": "tokens"},
        {"embedding": np.zeros((2, 3), np.float32)},
    ),
    (
        FillMask(),
        {"logits": "tokens"},
        {"labels": np.array([[-100, 1, -100, -100, 2], [0] + [-100] * 4])},
    ),
]


@pytest.mark.parametrize(("task", "names", "labels"), CASES, ids=lambda c: getattr(c, "name", ""))
def test_losses_do_not_depend_on_padding(
    task: Task, names: dict[str, str], labels: dict[str, np.ndarray]
) -> None:
    def losses(width: int) -> np.ndarray:
        outputs = {name: _outputs(width=width)[of] for name, of in names.items()}
        widened = {
            name: np.pad(v, ((0, 0), (0, width - 5)), constant_values=IGNORED)
            if v.shape == (2, 5)
            else v
            for name, v in labels.items()
        }
        return np.asarray(task.losses(outputs, _batch(widened, width)))

    assert losses(9) == pytest.approx(losses(5), rel=1e-5)


def test_gradient_at_drawn_labels_is_the_score() -> None:
    """The mean over drawn labels of the gradient of the loss by the logits is zero."""
    logits = _outputs()["classes"].repeat(4000, 1).requires_grad_()
    batch = Batch({}, None, np.arange(len(logits)))
    drawn = CLASSES.sample_labels({"logits": logits}, batch, torch.Generator().manual_seed(0))
    CLASSES.losses({"logits": logits}, drawn).sum().backward()
    gradient = logits.grad.reshape(4000, 2, 3).mean(0)
    assert gradient.abs().max() < 4 * 0.5 / np.sqrt(4000)


def test_drawn_numbers_have_the_variance_of_the_likelihood() -> None:
    logits = torch.full((4000, 1), 3.0)
    batch = Batch({}, None, np.arange(4000))
    drawn = NUMBER.sample_labels({"logits": logits}, batch, torch.Generator().manual_seed(0))
    assert drawn.labels is not None
    assert drawn.labels["labels"].mean() == pytest.approx(3.0, abs=0.07)
    assert drawn.labels["labels"].std() == pytest.approx(1.0, abs=0.05)


def test_drawn_embeddings_lie_around_the_pooled_mean() -> None:
    states = _outputs()["tokens"]
    drawn = FeatureExtraction().sample_labels(
        {"last_hidden_state": states}, _batch(), torch.Generator().manual_seed(0)
    )
    assert drawn.labels is not None
    assert drawn.labels["embedding"].shape == (2, 3)
    again = FeatureExtraction().losses({"last_hidden_state": states}, drawn)
    noise = torch.randn((2, 3), generator=torch.Generator().manual_seed(0))
    assert again.numpy() == pytest.approx(0.5 * (noise.numpy() ** 2).sum(1), rel=1e-4)


def test_drawn_tags_stay_on_labelled_positions() -> None:
    sure = torch.full((2, 5, 3), -50.0)
    sure[..., 1] = 50.0
    labels = np.array([[-100, 0, -100, 2, -100], [-100, 0, -100, -100, -100]])
    drawn = TAGS.sample_labels({"logits": sure}, _batch({"labels": labels}), torch.Generator())
    assert drawn.labels is not None
    assert drawn.labels["labels"].tolist() == np.where(labels == IGNORED, IGNORED, 1).tolist()
    free = TAGS.sample_labels({"logits": sure}, _batch(), torch.Generator())
    assert free.labels is not None
    assert free.labels["labels"].tolist() == [[-100, 1, 1, 1, -100], [-100, 1, -100, -100, -100]]


def test_drawn_answers_never_lie_on_padding() -> None:
    logits = torch.zeros(2, 5)
    logits[1, 3:] = 100.0
    outputs = {"start_logits": logits, "end_logits": logits}
    for seed in range(20):
        drawn = QuestionAnswering().sample_labels(
            outputs, _batch(), torch.Generator().manual_seed(seed)
        )
        assert drawn.labels is not None
        assert drawn.labels["start_positions"][1] < 3
        assert drawn.labels["end_positions"][1] < 3


def test_drawn_tokens_replace_the_hidden_ones_only() -> None:
    sure = torch.full((2, 5, 3), -50.0)
    sure[..., 2] = 50.0
    labels = np.array([[-100, 0, -100, 1, -100], [1, -100, -100, -100, -100]])
    batch = _batch({"labels": labels})
    drawn = FillMask().sample_labels({"logits": sure}, batch, torch.Generator())
    assert drawn.labels is not None
    assert drawn.labels["labels"].tolist() == np.where(labels == IGNORED, IGNORED, 2).tolist()
    assert batch.labels is not None
    assert batch.labels["labels"].max() == 1


def test_the_same_generator_draws_the_same_labels() -> None:
    outputs = {"logits": _outputs()["classes"]}
    one, other = (
        CLASSES.sample_labels(outputs, _batch(), torch.Generator().manual_seed(5)) for _ in range(2)
    )
    assert one.labels is not None
    assert other.labels is not None
    assert one.labels["labels"].tolist() == other.labels["labels"].tolist()


@pytest.mark.parametrize(
    "task", [CLASSES, TAGS, QuestionAnswering(), FeatureExtraction(), FillMask()]
)
def test_loss_without_labels_says_so(task: Task) -> None:
    outputs = _outputs() | {"logits": _outputs()["tokens"]}
    with pytest.raises(DataError, match="expected a batch with labels, found none"):
        task.losses(outputs, replace(_batch(), labels=None))
