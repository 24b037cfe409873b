"""Every metric against a naive oracle or a published implementation."""

from __future__ import annotations

import random

import numpy as np
import pytest
from scipy import stats

from obert_compiler.tasks import metrics


def test_accuracy_and_f1_by_hand() -> None:
    predicted, targets = np.array([1, 1, 0, 0, 1]), np.array([1, 0, 0, 1, 1])
    scores = metrics.classification_scores(predicted, targets)
    assert scores["accuracy"] == pytest.approx(3 / 5)
    # true positives 2, false positives 1, false negatives 1
    assert scores["f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))


def test_f1_of_many_classes_is_the_mean_over_classes() -> None:
    generator = np.random.default_rng(0)
    predicted, targets = generator.integers(0, 5, (2, 200))
    expected = []
    for label in range(5):
        right = sum(p == t == label for p, t in zip(predicted, targets, strict=True))
        precision = right / sum(predicted == label)
        recall = right / sum(targets == label)
        expected.append(2 * precision * recall / (precision + recall))
    assert metrics.classification_scores(predicted, targets)["f1"] == pytest.approx(
        np.mean(expected)
    )


def test_f1_without_any_positive_is_zero() -> None:
    assert metrics.classification_scores(np.zeros(4, int), np.zeros(4, int)) == {
        "accuracy": 1.0,
        "f1": 0.0,
    }


def test_correlations_match_scipy_with_ties() -> None:
    generator = np.random.default_rng(1)
    targets = generator.integers(0, 6, 100).astype(float)
    predicted = targets + generator.standard_normal(100)
    found = metrics.correlations(predicted, targets)
    assert found["spearman"] == pytest.approx(stats.spearmanr(predicted, targets).statistic)
    assert found["pearson"] == pytest.approx(stats.pearsonr(predicted, targets).statistic)


def test_correlation_of_a_constant_is_zero() -> None:
    assert metrics.correlations(np.ones(5), np.arange(5.0)) == {"spearman": 0.0, "pearson": 0.0}


@pytest.mark.parametrize("chunk", [3, 1000])
def test_nearest_neighbour_against_loops(chunk: int) -> None:
    generator = np.random.default_rng(2)
    points = generator.standard_normal((40, 4)) * generator.uniform(0.1, 10, (40, 1))
    labels = [str(i) for i in generator.integers(0, 3, 40)]
    hits = 0
    for i in range(40):
        angles = [
            -2.0
            if i == j
            else points[i] @ points[j] / np.linalg.norm(points[i]) / np.linalg.norm(points[j])
            for j in range(40)
        ]
        hits += labels[int(np.argmax(angles))] == labels[i]
    found = metrics.nearest_neighbour_accuracy(points, labels, chunk)
    assert found == pytest.approx(hits / 40)


def test_cosines() -> None:
    first, second = np.array([[1.0, 0.0], [2.0, 2.0]]), np.array([[0.0, 3.0], [1.0, 1.0]])
    assert metrics.cosines(first, second) == pytest.approx([0.0, 1.0])


def test_entity_spans_by_the_rules_of_conlleval() -> None:
    spans = metrics.entity_spans(["B-A", "I-A", "B-A", "O", "I-B", "I-A", "O", "S-C", "I-C"])
    assert spans == {("A", 0, 1), ("A", 2, 2), ("B", 4, 4), ("A", 5, 5), ("C", 7, 7), ("C", 8, 8)}


def test_entity_scores_match_seqeval() -> None:
    seqeval = pytest.importorskip("seqeval.metrics")
    generator = random.Random(3)
    tags = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    truth = [[generator.choice(tags) for _ in range(generator.randint(1, 12))] for _ in range(300)]
    guess = [[t if generator.random() < 0.7 else generator.choice(tags) for t in s] for s in truth]
    found = metrics.entity_scores(guess, truth)
    assert found["f1"] == pytest.approx(seqeval.f1_score(truth, guess))
    assert found["precision"] == pytest.approx(seqeval.precision_score(truth, guess))
    assert found["recall"] == pytest.approx(seqeval.recall_score(truth, guess))


def test_entity_scores_without_entities_are_zero() -> None:
    found = metrics.entity_scores([["O", "O"]], [["O", "O"]])
    assert found == {"f1": 0.0, "precision": 0.0, "recall": 0.0}


@pytest.mark.parametrize(
    ("predicted", "answers", "f1", "exact"),
    [
        ("The Denver Broncos!", ["Denver Broncos"], 1.0, 1.0),
        ("Denver Broncos team", ["Denver Broncos"], 4 / 5, 0.0),
        ("Carolina", ["Denver", "Carolina Panthers"], 2 / 3, 0.0),
        ("1,000  yards", ["1000 yards"], 1.0, 1.0),
        ("the the cat", ["cat cat"], 2 / 3, 0.0),
        ("", [], 1.0, 1.0),
        ("something", [], 0.0, 0.0),
        ("", ["something"], 0.0, 0.0),
        ("the", ["a"], 1.0, 1.0),
    ],
)
def test_squad_scores(predicted: str, answers: list[str], f1: float, exact: float) -> None:
    found = metrics.squad_scores([predicted], [answers])
    assert found == {"f1": pytest.approx(f1), "exact_match": exact}


def test_squad_scores_are_means_over_questions() -> None:
    found = metrics.squad_scores(["a b", "x"], [["a b"], ["y"]])
    assert found == {"f1": 0.5, "exact_match": 0.5}
