"""Feature extraction: pairs and labelled texts, pooling, the two metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from obert_compiler.data.batches import Batches
from obert_compiler.data.tokenizer import Tokenizer
from obert_compiler.errors import DataError
from obert_compiler.tasks.base import Row
from obert_compiler.tasks.feature_extraction import FeatureExtraction

TASK = FeatureExtraction()


def test_pairs_become_two_examples_of_a_row(samples: Path, tokenizer: Tokenizer) -> None:
    batches = Batches.open(samples / "banking77_pairs.csv", TASK, tokenizer)
    assert len(batches.examples) == 2 * 48
    assert batches.has_targets
    assert not batches.labelled


def test_spearman_of_cosines(tokenizer: Tokenizer) -> None:
    scores = [0.1, 0.9, 0.5]
    rows: list[Row] = [{"sentence1": "a", "sentence2": "b", "score": s} for s in scores]
    examples = TASK.encode(rows, tokenizer, 16)
    angle = {0: 1.0, 1: 0.1, 2: 0.5}
    outputs = [
        np.array([1.0, 0.0])
        if e.details["part"] == 0
        else 3 * np.array([np.cos(angle[e.row]), np.sin(angle[e.row])])
        for e in examples
    ]
    assert TASK.metric(outputs, examples)["spearman"] == pytest.approx(1.0)
    # The order of the examples does not matter.
    assert TASK.metric(outputs[::-1], examples[::-1])["spearman"] == pytest.approx(1.0)


@pytest.mark.parametrize("labels", [[0, 0, 1, 1], ["x", "x", "y", "y"]])
def test_nearest_neighbour_of_labelled_texts(labels: list[Any], tokenizer: Tokenizer) -> None:
    rows: list[Row] = [{"text": "a", "label": label} for label in labels]
    examples = TASK.encode(rows, tokenizer, 16)
    outputs = [np.array(v) for v in ([1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [1.0, 0.2])]
    assert TASK.metric(outputs, examples) == {"accuracy": 0.5}


def test_pooling_ignores_padding(tokenizer: Tokenizer) -> None:
    (batch,) = Batches.open([{"text": "a"}, {"text": "a b c"}], TASK, tokenizer)
    states = np.random.default_rng(0).standard_normal((2, 5, 4)).astype(np.float32)
    long, short = TASK.reduce({"last_hidden_state": states}, batch)
    assert long == pytest.approx(states[0].mean(0), rel=1e-5)
    assert short == pytest.approx(states[1, :3].mean(0), rel=1e-5)


def test_the_pooled_output_is_preferred(tokenizer: Tokenizer) -> None:
    (batch,) = Batches.open([{"text": "a"}], TASK, tokenizer)
    pooled = np.array([[1.0, 2.0]])
    outputs = {"last_hidden_state": np.zeros((1, 3, 2)), "sentence_embedding": pooled}
    assert TASK.reduce(outputs, batch)[0].tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"sentence1": "a", "sentence2": "b", "score": "high"}, "row 1: expected a finite number"),
        ({"text": "a", "label": None}, "row 1: expected a label"),
        ({"passage": "a"}, r"expected columns sentence1\+sentence2; .* found passage"),
    ],
)
def test_bad_rows(row: dict[str, Any], message: str, tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match=message):
        TASK.encode([row], tokenizer, 16)


def test_unlabelled_texts_have_no_metric(tokenizer: Tokenizer) -> None:
    examples = TASK.encode([{"text": "a"}], tokenizer, 16)
    with pytest.raises(DataError, match="expected labelled rows"):
        TASK.metric([np.zeros(2)], examples)
