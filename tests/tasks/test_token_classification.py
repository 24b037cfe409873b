"""Token classification: alignment of tags with sub-tokens, and the metric."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from obert_compiler.data.batches import Batches
from obert_compiler.data.tokenizer import Tokenizer, load_tokenizer
from obert_compiler.errors import DataError
from obert_compiler.tasks.base import Row
from obert_compiler.tasks.token_classification import TokenClassification

IOB = TokenClassification(("O", "B-PER", "I-PER", "B-LOC", "I-LOC"))
# [CLS] john lives in p ##q ##x [SEP]: the tokenizer spells out words it does not know.
WORDS = ["John", "lives", "in", "pqx", "."]
TAGS = [1, 0, 0, 3, 0]


def test_tags_lie_on_first_sub_tokens(tokenizer: Tokenizer) -> None:
    (example,) = IOB.encode([{"tokens": WORDS, "ner_tags": TAGS}], tokenizer, 32)
    assert example.labels is not None
    assert example.labels["labels"].tolist() == [-100, 1, 0, 0, 3, -100, -100, 0, -100]
    assert example.target == TAGS


def test_tags_by_name_and_other_column_names(tokenizer: Tokenizer) -> None:
    named = [IOB.labels[t] for t in TAGS] if IOB.labels else []
    for column in ("ner_tags", "tags", "labels", "slots"):
        (example,) = IOB.encode([{"tokens": WORDS, column: named}], tokenizer, 32)
        assert example.target == TAGS


def test_perfect_and_imperfect_predictions(tokenizer: Tokenizer) -> None:
    row = {"tokens": ["anna", "john", "likes", "paris"], "ner_tags": [1, 2, 0, 3]}
    examples = IOB.encode([row], tokenizer, 32)
    right = np.array([0, 1, 2, 0, 3, 0])
    assert IOB.metric([right], examples) == {
        "f1": 1.0,
        "precision": 1.0,
        "recall": 1.0,
        "accuracy": 1.0,
    }
    split = np.array([0, 1, 1, 0, 3, 0])
    found = IOB.metric([split], examples)
    assert found["accuracy"] == 0.75
    # Of three predicted entities one is right, of two true ones one is found.
    assert found["f1"] == pytest.approx(2 * 1 / (3 + 2))


def test_words_beyond_the_window_count_as_untagged(tokenizer: Tokenizer) -> None:
    row = {"tokens": ["the"] * 10 + ["london"], "ner_tags": [0] * 10 + [3]}
    (example,) = IOB.encode([row], tokenizer, 8)
    assert example.length == 8
    found = IOB.metric([np.zeros(8, int)], [example])
    assert found["recall"] == 0.0
    assert found["accuracy"] == pytest.approx(10 / 11)


def test_without_iob_names_accuracy_is_the_metric(tokenizer: Tokenizer) -> None:
    task = TokenClassification(("NOUN", "VERB"))
    assert task.metric_name == "accuracy"
    examples = task.encode([{"tokens": ["dog", "eats"], "tags": [0, 1]}], tokenizer, 16)
    assert task.metric([np.array([0, 0, 0, 0])], examples) == {"accuracy": 0.5}


def test_reduce_cuts_the_padding(tokenizer: Tokenizer) -> None:
    rows: list[Row] = [{"tokens": ["a"] * n, "ner_tags": [0] * n} for n in (2, 5)]
    batches = Batches.open(rows, IOB, tokenizer)
    (batch,) = batches
    logits = np.zeros((2, 7, 5))
    logits[..., 4] = 1.0
    assert [len(kept) for kept in IOB.reduce({"logits": logits}, batch)] == [7, 4]


def test_samples(samples: Path, tokenizer: Tokenizer) -> None:
    batches = Batches.open(samples / "wnut17_person_location.jsonl.gz", IOB, tokenizer)
    assert len(batches.examples) == 40
    assert sum(any(e.target) for e in batches.examples) >= 10


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["a"], "ner_tags": [7]}, r"row 1: expected a label in 0\.\.4"),
        ({"tokens": ["a"], "ner_tags": ["B-ORG"]}, r"row 1: expected a label in 0\.\.4 .*B-ORG"),
        ({"tokens": ["a"], "ner_tags": [0, 0]}, "expected 1 tags in column 'ner_tags'.*found 2"),
        ({"tokens": ["a"], "ner_tags": 0}, "found no list"),
        ({"tokens": "a b", "ner_tags": [0]}, "expected a non-empty list of words"),
        ({"tokens": [], "ner_tags": []}, "expected a non-empty list of words"),
        ({"tokens": ["a", 3], "ner_tags": [0, 0]}, "expected a non-empty list of words"),
        ({"words": ["a"], "ner_tags": [0]}, "expected columns tokens .* found words, ner_tags"),
    ],
)
def test_bad_rows(row: dict[str, Any], message: str, tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match=message):
        IOB.encode([row], tokenizer, 16)


@pytest.mark.parametrize("arch", ["roberta", "mpnet", "deberta-v2"])
def test_words_are_encoded_as_in_a_text(arch: str, tiny_folder: Callable[[str, str], Path]) -> None:
    """Byte-level tokenizers keep the spaces between words; the tags still find their words."""
    tokenizer: Any = load_tokenizer(tiny_folder(arch, "sequence"))
    (example,) = IOB.encode([{"tokens": WORDS, "ner_tags": TAGS}], tokenizer, 64)
    assert example.inputs["input_ids"].tolist() == tokenizer(" ".join(WORDS))["input_ids"]
    assert example.labels is not None
    labels = example.labels["labels"]
    assert [int(label) for label in labels if label >= 0] == TAGS
    at = tokenizer(" ".join(WORDS), return_offsets_mapping=True)["offset_mapping"]
    starts = [at[i] for i in np.flatnonzero(labels >= 0)]
    text = " ".join(WORDS)
    assert [text[a:b].strip()[:1].lower() for a, b in starts] in (
        ["j", "l", "i", "p", "."],
        ["j", "", "", "", ""],  # the space is a token of its own in a tiny vocabulary
    )
