"""Text classification: columns, labels and metrics of single texts, pairs and numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from obert_compiler.data.read import read_rows
from obert_compiler.data.tokenizer import Tokenizer
from obert_compiler.errors import DataError
from obert_compiler.tasks.base import Row
from obert_compiler.tasks.text_classification import PAIR_COLUMNS, TextClassification

BINARY = TextClassification(("NEGATIVE", "POSITIVE"))
NUMBER = TextClassification(("LABEL_0",))


def test_names_and_numbers_of_labels_are_the_same(samples: Path, tokenizer: Tokenizer) -> None:
    rows = read_rows(samples / "snips_intents.csv")
    names = tuple(sorted({row["label"] for row in rows}))
    task = TextClassification(names)
    by_name = [e.target for e in task.encode(rows, tokenizer, 32)]
    numbered = [{**row, "label": str(names.index(row["label"]))} for row in rows]
    assert by_name == [e.target for e in task.encode(numbered, tokenizer, 32)]
    assert [names[target] for target in by_name] == [row["label"] for row in rows]


@pytest.mark.parametrize("columns", PAIR_COLUMNS)
def test_pairs_are_told_apart_by_token_types(
    columns: tuple[str, str], tokenizer: Tokenizer
) -> None:
    row = {columns[0]: "a cat", columns[1]: "a dog", "label": 1}
    (example,) = BINARY.encode([row], tokenizer, 32)
    assert example.inputs["token_type_ids"].tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_labels_of_a_number_are_floats(tokenizer: Tokenizer) -> None:
    rows: list[Row] = [{"sentence1": "a", "sentence2": "b", "score": s} for s in (2.5, "3", 0)]
    examples = NUMBER.encode(rows, tokenizer, 16)
    assert [e.target for e in examples] == [2.5, 3.0, 0.0]
    assert examples[0].labels is not None
    assert examples[0].labels["labels"].dtype == np.float32


def test_remark_where_most_labels_are_missing(tokenizer: Tokenizer) -> None:
    task = TextClassification(tuple("abcde"))

    def remark(*labels: str) -> str | None:
        rows: list[Row] = [{"text": "a film", "label": label} for label in labels]
        return task.remark_on(task.encode(rows, tokenizer, 16))

    assert remark("a", "a", "b", "b", "b") == (
        "only 2 of the 5 labels occur in its 5 examples; "
        "rows of all labels, in any order, compress better"
    )
    assert remark("a", "b", "c", "c", "c") is None
    # Fewer examples than labels cannot have them all.
    assert remark("a", "a", "b", "b") is None
    assert task.remark_on(task.encode([{"text": "a film"}] * 6, tokenizer, 16)) is None
    numbers: list[Row] = [{"text": "a film", "label": 1.5}] * 3
    assert NUMBER.remark_on(NUMBER.encode(numbers, tokenizer, 16)) is None


def test_rows_without_labels(tokenizer: Tokenizer) -> None:
    (example,) = BINARY.encode([{"sentence": "good film"}], tokenizer, 16)
    assert example.labels is None
    with pytest.raises(DataError, match=r"expected labelled rows \(sentence, text"):
        BINARY.metric([np.zeros(2)], [example])


def test_label_out_of_range_names_file_and_row(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "train.csv"
    path.write_text("text,label\ngood,1\nbad,2\n")
    with pytest.raises(DataError, match=r"train\.csv', row 2: expected a label in 0\.\.1 .*'?2'?"):
        BINARY.encode(read_rows(path), tokenizer, 16)


@pytest.mark.parametrize("label", ["high", None, float("inf"), "nan"])
def test_label_that_is_no_number(label: object, tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="row 1: expected a finite number as label"):
        NUMBER.encode([{"text": "a", "label": label}], tokenizer, 16)


def test_missing_columns_name_the_expected_and_the_found(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match=r"expected columns sentence, text, .* found body, stars;"):
        BINARY.encode([{"body": "good", "stars": 1}], tokenizer, 16)


@pytest.mark.parametrize("value", [None, 3, ["a"]])
def test_cell_that_is_no_text_names_the_row(value: Any, tokenizer: Tokenizer) -> None:
    rows: list[Row] = [{"text": "good", "label": 1}, {"text": value, "label": 1}]
    with pytest.raises(DataError, match="row 2: expected text in column 'text'"):
        BINARY.encode(rows, tokenizer, 16)


def test_metric(tokenizer: Tokenizer) -> None:
    rows: list[Row] = [{"text": "a", "label": label} for label in (0, 1, 1, 0)]
    examples = BINARY.encode(rows, tokenizer, 16)
    logits = [
        np.array([2.0, 1.0]),
        np.array([0.0, 1.0]),
        np.array([3.0, 1.0]),
        np.array([1.0, 0.0]),
    ]
    assert BINARY.metric(logits, examples)["accuracy"] == 0.75
    numbers: list[Row] = [{"text": "a", "label": label} for label in (0.0, 1.0, 2.0, 4.0)]
    scores = [np.array([v]) for v in (-3.0, -1.0, 0.0, 9.0)]
    assert NUMBER.metric(scores, NUMBER.encode(numbers, tokenizer, 16))["spearman"] == 1.0
