"""Question answering: windows, answer positions, the best span, the metric."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from obert_compiler.data.read import read_rows
from obert_compiler.data.tokenizer import Tokenizer
from obert_compiler.errors import DataError, UsageError
from obert_compiler.tasks.base import Example
from obert_compiler.tasks.question_answering import QuestionAnswering, best_span

TASK = QuestionAnswering()


def _gold(example: Example) -> np.ndarray:
    """Logits that point at the labels of a window."""
    assert example.labels is not None
    logits = np.zeros((2, example.length))
    for row, name in enumerate(("start_positions", "end_positions")):
        logits[row, int(example.labels[name])] = 10.0
    return logits


@pytest.mark.parametrize("max_length", [64, 384])
def test_labels_of_the_windows_find_the_answers(
    samples: Path, tokenizer: Tokenizer, max_length: int
) -> None:
    """Logits made from the labels score (nearly) 1: positions, offsets and windows agree."""
    examples = TASK.encode(read_rows(samples / "squad.jsonl"), tokenizer, max_length)
    assert max(e.length for e in examples) <= max_length
    reachable = {e.row for e in examples if e.labels and int(e.labels["start_positions"]) > 0}
    chosen = [e for e in examples if e.row in reachable]
    # The tiny tokenizer spells words by letters: an answer may be longer than a span may be.
    assert len(reachable) >= 12
    kept = [e for e in chosen if len(e.target[0]) <= 20]
    assert len({e.row for e in kept}) >= 8
    found = TASK.metric([_gold(e) for e in kept], kept)
    assert found["f1"] == pytest.approx(1.0)
    assert found["exact_match"] == pytest.approx(1.0)


def test_windows_cover_the_context_and_overlap(tokenizer: Tokenizer) -> None:
    context = " ".join(["the film was good and the cat"] * 20)
    examples = TASK.encode([{"question": "who", "context": context}], tokenizer, 32)
    assert len(examples) > 3
    covered = np.zeros(len(context), int)
    for example in examples:
        offsets = example.details["offsets"]
        for start, stop in offsets[offsets[:, 0] >= 0]:
            covered[start:stop] += 1
        assert example.labels is None
    assert all(covered[i] > 0 for i, letter in enumerate(context) if letter != " ")
    assert covered.max() > 1


def test_question_longer_than_the_window_is_cut(tokenizer: Tokenizer) -> None:
    row = {"question": "what is the film " * 100, "context": "the film was good " * 20}
    examples = TASK.encode([row], tokenizer, 32)
    assert all(e.length <= 32 for e in examples)
    assert all((e.details["offsets"][:, 0] >= 0).sum() >= 8 for e in examples)


def test_answer_outside_the_window_points_at_its_first_token(tokenizer: Tokenizer) -> None:
    context = " ".join(["the film"] * 30) + " london"
    answers = {"text": ["london"], "answer_start": [len(context) - 6]}
    row = {"question": "where", "context": context, "answers": answers}
    labels = [e.labels for e in TASK.encode([row], tokenizer, 32)]
    starts = [int(label["start_positions"]) for label in labels if label is not None]
    assert starts[0] == 0
    assert starts[-1] > 0


@pytest.mark.parametrize(
    "answers",
    [
        {"text": ["london"], "answer_start": [4]},
        [{"text": "london", "answer_start": 4}],
        '{"text": ["london"], "answer_start": [4]}',
    ],
)
def test_forms_of_answers(answers: object, tokenizer: Tokenizer) -> None:
    row = {"question": "where", "context": "see london now", "answers": answers}
    (example,) = TASK.encode([row], tokenizer, 32)
    assert example.target == ("london",)
    assert example.labels is not None
    assert best_span(_gold(example), example.details["offsets"], "see london now")[1] == "london"


def test_answers_without_a_start_score_but_do_not_train(tokenizer: Tokenizer) -> None:
    row = {"question": "where", "context": "see london now", "answers": "london"}
    (example,) = TASK.encode([row], tokenizer, 32)
    assert example.target == ("london",)
    assert example.labels is None


def test_best_span_against_all_pairs() -> None:
    generator = np.random.default_rng(0)
    context = "abcdefghijklmnopqrst"
    offsets = np.array([[-1, -1]] * 3 + [[i, i + 1] for i in range(15)] + [[-1, -1]])
    for _ in range(50):
        logits = generator.standard_normal((2, len(offsets))) * 5
        best = max(
            (logits[0, i] + logits[1, j], context[offsets[i, 0] : offsets[j, 1]])
            for i in range(3, 18)
            for j in range(i, 18)
        )
        score, text = best_span(logits, offsets, context)
        assert (score, text) == (pytest.approx(best[0]), best[1])


def test_spans_are_at_most_thirty_tokens() -> None:
    offsets = np.array([[i, i + 1] for i in range(40)])
    logits = np.zeros((2, 40))
    logits[0, 0] = logits[1, 39] = 10.0
    score, text = best_span(logits, offsets, "x" * 40)
    assert score == pytest.approx(10.0)
    assert 1 <= len(text) <= 30


def test_window_without_context_has_no_span() -> None:
    assert best_span(np.zeros((2, 3)), np.full((3, 2), -1), "abc") == (-np.inf, "")


def test_the_best_window_of_a_row_answers() -> None:
    offsets = np.array([[0, 3], [4, 7]])
    details = {"offsets": offsets, "context": "one two"}
    windows = [Example({}, None, 0, ("two",), details), Example({}, None, 0, ("two",), details)]
    weak, strong = np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([[0.0, 2.0], [0.0, 2.0]])
    assert TASK.metric([weak, strong], windows)["exact_match"] == 1.0
    assert TASK.metric([strong, weak], windows)["exact_match"] == 1.0


def test_questions_without_answer() -> None:
    offsets = np.array([[-1, -1], [0, 3]])
    details = {"offsets": offsets, "context": "one"}
    rows = [Example({}, None, 0, (), details), Example({}, None, 1, ("one",), details)]
    nothing, something = np.array([[5.0, 1.0]] * 2), np.array([[0.0, 1.0]] * 2)
    assert TASK.metric([nothing, something], rows)["exact_match"] == 1.0
    # With an answer to every question, saying nothing is no choice.
    rows = [Example({}, None, 0, ("one",), details)]
    assert TASK.metric([nothing], rows)["exact_match"] == 1.0


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "a"}, "expected columns question.context.* found question"),
        ({"question": "a", "context": 3}, "row 1: expected text in column 'context'"),
        ({"question": "a", "context": "b", "answers": 3}, "row 1: expected answers as"),
        ({"question": "a", "context": "b", "answers": {"text": [1]}}, "row 1: expected answers"),
        (
            {"question": "a", "context": "b", "answers": {"text": ["b"], "answer_start": [9]}},
            "row 1: expected answer_start within the context of 1 characters, found 9",
        ),
    ],
)
def test_bad_rows(row: dict[str, Any], message: str, tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match=message):
        TASK.encode([row], tokenizer, 64)


def test_window_too_short(tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="expected at least 32 for question-answering, found 16"):
        TASK.encode([{"question": "a", "context": "b"}], tokenizer, 16)
