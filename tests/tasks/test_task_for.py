"""Which task a model gets, and how label cells are read."""

from __future__ import annotations

from typing import Any

import pytest

from obert_compiler.errors import DataError, GraphError, ModelError, UsageError
from obert_compiler.graph.graph import Source
from obert_compiler.pipeline.registry import TASKS, load, names
from obert_compiler.tasks import task_for
from obert_compiler.tasks.base import class_index, label_names, pick_output
from obert_compiler.tasks.text_classification import TextClassification
from obert_compiler.tasks.token_classification import TokenClassification


def _source(task: str | None = None, **config: object) -> Source:
    return Source("huggingface", location="somewhere", task=task, config=dict(config))


@pytest.mark.parametrize("name", names(TASKS))
def test_registered_name_is_the_name_of_the_class(name: str) -> None:
    task = load(TASKS, name).from_source(_source(id2label={"0": "a", "1": "b"}))
    assert task.name == name
    assert task.auto_model.startswith("AutoModel")
    assert task.columns()
    assert task.metric_name


def test_the_source_says_the_task_unless_a_name_does() -> None:
    assert task_for(_source()) is None
    found = task_for(_source("token-classification", id2label={0: "O", 1: "B-X"}))
    assert found == TokenClassification(("O", "B-X"))
    assert isinstance(task_for(_source("fill-mask"), "text-classification"), TextClassification)
    with pytest.raises(UsageError, match="task 'translation' is unknown"):
        task_for(_source("translation"))


def test_one_label_means_regression() -> None:
    task = task_for(_source("text-classification", id2label={"0": "LABEL_0"}))
    assert task is not None
    assert task.metric_name == "spearman"


def test_several_labels_at_once_are_refused() -> None:
    with pytest.raises(ModelError, match="multi_label_classification"):
        task_for(_source("text-classification", problem_type="multi_label_classification"))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"id2label": {"1": "b", "0": "a"}}, ("a", "b")),
        ({"id2label": {0: "a"}}, ("a",)),
        ({"num_labels": 3}, ("LABEL_0", "LABEL_1", "LABEL_2")),
        ({"hidden_size": 32}, ("LABEL_0", "LABEL_1")),
        ({}, None),
    ],
)
def test_label_names(config: dict[str, Any], expected: tuple[str, ...] | None) -> None:
    assert label_names(config) == expected


@pytest.mark.parametrize("cell", [1, "1", "b", 1.0, " 1 "])
def test_label_cell(cell: object) -> None:
    assert class_index(cell, ("a", "b"), "here") == 1


@pytest.mark.parametrize("cell", [2, -1, "c", "-1", 0.5, None, True, [0], float("nan")])
def test_label_cell_out_of_range(cell: object) -> None:
    with pytest.raises(DataError, match=r"^here: expected a label in 0\.\.1 or one of a, b, found"):
        class_index(cell, ("a", "b"), "here")


def test_label_cell_of_a_model_without_names() -> None:
    assert class_index("17", None, "here") == 17
    with pytest.raises(DataError, match="the model names no labels"):
        class_index("positive", None, "here")


def test_pick_output() -> None:
    assert pick_output({"logits": 1, "other": 2}, "logits") == 1
    assert pick_output({"output_0": 3}, "logits") == 3
    with pytest.raises(GraphError, match="found a, b"):
        pick_output({"a": 1, "b": 2}, "logits")
