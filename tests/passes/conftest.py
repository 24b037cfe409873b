"""Random data of every task for trainings of tiny models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from obert_compiler.data.batches import Batches
from obert_compiler.graph import Graph
from obert_compiler.tasks import task_for

WORDS = (
    *("film", "movie", "good", "bad", "great", "dull", "story", "actor", "the", "a"),
    *("of", "and", "very", "not", "house", "garden", "dog", "river", "plays", "old"),
)

MakeBatches = Callable[..., Batches]


def texts(count: int, seed: int = 0) -> list[str]:
    """Random texts of 3 to 19 words."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(3, 20))) for _ in range(count)]


def rows_for(task: str, count: int, seed: int = 0, labels: bool = True) -> list[dict[str, Any]]:
    """Random rows of a task, with labels or without."""
    rng = np.random.default_rng(seed + 1)
    found: list[dict[str, Any]] = []
    for text in texts(count, seed):
        words = text.split()
        if task == "token-classification":
            row: dict[str, Any] = {"tokens": words, "ner_tags": rng.integers(0, 5, len(words))}
            label = "ner_tags"
        elif task == "question-answering":
            start = len(words[0]) + 1
            answers = {"text": [words[1]], "answer_start": [start]}
            row = {"question": "who " + words[2], "context": text, "answers": answers}
            label = "answers"
        elif task == "feature-extraction":
            row = {"sentence1": text, "sentence2": " ".join(reversed(words)), "score": rng.random()}
            label = "score"
        else:
            row = {"text": text, "label": int(rng.integers(2))}
            label = "label"
        if not labels:
            del row[label]
        found.append(row)
    return found


@pytest.fixture(scope="session")
def make_batches() -> MakeBatches:
    """``make_batches(graph, count, seed=0, labels=True)``: random data for a tiny graph."""

    def make(graph: Graph, count: int, seed: int = 0, labels: bool = True) -> Batches:
        task = task_for(graph.source)
        assert task is not None
        rows = rows_for(task.name, count, seed, labels)
        assert graph.source.folder is not None
        return Batches.open(rows, task, graph.source.folder, max_length=64)

    return make
