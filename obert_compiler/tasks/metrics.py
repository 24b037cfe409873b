"""Metrics as functions of arrays. They know no task, no file and no framework."""

from __future__ import annotations

import collections
import re
import string
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats

__all__ = [
    "classification_scores",
    "correlations",
    "entity_scores",
    "entity_spans",
    "nearest_neighbour_accuracy",
    "normalise_answer",
    "squad_scores",
]

IntArray = npt.NDArray[np.integer]
FloatArray = npt.NDArray[np.floating]


def classification_scores(predicted: IntArray, targets: IntArray) -> dict[str, float]:
    """Accuracy, and F1: of class 1 for two classes (as GLUE), else the mean over classes.

    A class counts when it occurs among the targets or the predictions.
    """
    classes = np.union1d(predicted, targets)
    scores = {}
    for label in classes:
        true_positives = np.sum((predicted == label) & (targets == label))
        total = np.sum(predicted == label) + np.sum(targets == label)
        scores[int(label)] = float(2 * true_positives / total)
    binary = set(scores) <= {0, 1}
    f1 = scores.get(1, 0.0) if binary else float(np.mean(list(scores.values())))
    return {"accuracy": float(np.mean(predicted == targets)), "f1": f1}


def correlations(predicted: FloatArray, targets: FloatArray) -> dict[str, float]:
    """Spearman's and Pearson's correlation; 0 where one side is constant and none is defined."""
    predicted, targets = np.asarray(predicted, np.float64), np.asarray(targets, np.float64)
    if len(predicted) < 2 or np.ptp(predicted) == 0 or np.ptp(targets) == 0:
        return {"spearman": 0.0, "pearson": 0.0}
    ranks = stats.rankdata(predicted), stats.rankdata(targets)
    return {
        "spearman": float(np.corrcoef(*ranks)[0, 1]),
        "pearson": float(np.corrcoef(predicted, targets)[0, 1]),
    }


def nearest_neighbour_accuracy(
    embeddings: FloatArray, labels: Sequence[object], chunk: int = 1024
) -> float:
    """Share of rows whose nearest other row by cosine has the same label (leave one out).

    Args:
        embeddings: ``[rows, dimensions]``.
        labels: one per row.
        chunk: rows compared at a time; memory is ``chunk * rows`` floats.
    """
    unit = _normalised(embeddings)
    _, classes = np.unique(np.asarray([str(label) for label in labels]), return_inverse=True)
    hits = 0
    for start in range(0, len(unit), chunk):
        similarity = unit[start : start + chunk] @ unit.T
        own = np.arange(len(similarity))
        similarity[own, start + own] = -np.inf
        hits += int(np.sum(classes[similarity.argmax(1)] == classes[start + own]))
    return hits / len(unit)


def cosines(first: FloatArray, second: FloatArray) -> FloatArray:
    """Cosine of each row of ``first`` with the same row of ``second``."""
    product: FloatArray = np.sum(_normalised(first) * _normalised(second), axis=1)
    return product


def _normalised(rows: FloatArray) -> FloatArray:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: FloatArray = rows / np.maximum(norms, 1e-12)
    return unit


def entity_spans(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Entities of one sentence in IOB tags as (type, first, last), by the rules of conlleval.

    An entity starts at ``B-x`` (``S-x``), and at ``I-x`` where the tag before is of another type or
    ``O``; it ends with ``E-x`` or ``S-x`` or before the next start.
    """
    spans = set()
    start, kind, closed = 0, "", False
    for position, tag in enumerate([*tags, "O"]):
        prefix, _, current = tag.partition("-")
        if kind and (closed or prefix in {"O", "B", "S"} or current != kind):
            spans.add((kind, start, position - 1))
            kind = ""
        if prefix != "O" and not kind:
            start, kind = position, current
        closed = prefix in {"E", "S"}
    return spans


def entity_scores(
    predicted: Sequence[Sequence[str]], targets: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Micro-averaged precision, recall and F1 over entities (seqeval's default mode)."""
    right = found = wanted = 0
    for guess, truth in zip(predicted, targets, strict=True):
        guessed, true = entity_spans(guess), entity_spans(truth)
        right += len(guessed & true)
        found += len(guessed)
        wanted += len(true)
    precision = right / found if found else 0.0
    recall = right / wanted if wanted else 0.0
    f1 = 2 * right / (found + wanted) if found + wanted else 0.0
    return {"f1": f1, "precision": precision, "recall": recall}


def normalise_answer(text: str) -> str:
    """SQuAD's normal form of an answer: lower case, no punctuation, no articles, single spaces."""
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def squad_scores(predicted: Sequence[str], answers: Sequence[Sequence[str]]) -> dict[str, float]:
    """Exact match and F1 over words, the best over the reference answers, averaged.

    A question without reference answers is right when nothing is predicted (SQuAD 2.0).
    Rajpurkar et al. 2016, section 6.1.
    """
    matches, overlaps = [], []
    for guess, references in zip(predicted, answers, strict=True):
        pairs = [(normalise_answer(guess), normalise_answer(r)) for r in references or [""]]
        matches.append(max(float(a == b) for a, b in pairs))
        overlaps.append(max(_word_f1(a.split(), b.split()) for a, b in pairs))
    return {"f1": float(np.mean(overlaps)), "exact_match": float(np.mean(matches))}


def _word_f1(guess: Sequence[str], truth: Sequence[str]) -> float:
    if not guess or not truth:
        return float(guess == truth)
    common = sum((collections.Counter(guess) & collections.Counter(truth)).values())
    return 2 * common / (len(guess) + len(truth))
