"""Teachers that do not fit are refused in one line."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from obert_compiler.errors import ModelError
from obert_compiler.frontends.teacher import check_teacher
from obert_compiler.graph import Graph

TinyGraph = Callable[[str, str], Graph]


def _other(graph: Graph, **config: object) -> Graph:
    other = graph.copy()
    source = other.source
    other.source = dataclasses.replace(source, config={**source.config, **config}, location="other")
    return other


def test_the_same_model_fits(tiny_graph: TinyGraph) -> None:
    graph = tiny_graph("bert", "sequence")
    check_teacher(graph, graph)


def test_other_labels(tiny_graph: TinyGraph) -> None:
    graph = tiny_graph("bert", "sequence")
    turned = _other(graph, id2label={"0": "POSITIVE", "1": "NEGATIVE"})
    with pytest.raises(
        ModelError,
        match=r"teacher 'other': expected the labels of the model \(2: NEGATIVE, POSITIVE\), "
        "found 2: POSITIVE, NEGATIVE; name a teacher",
    ):
        check_teacher(turned, graph)
    more = _other(graph, id2label={str(i): f"L{i}" for i in range(9)})
    with pytest.raises(ModelError, match=r"found 9: L0, L1, L2, L3, L4, L5, \.\.\.;"):
        check_teacher(more, graph)


def test_another_vocabulary(tiny_graph: TinyGraph, tmp_path: Path) -> None:
    graph = tiny_graph("bert", "sequence")
    folder = graph.source.folder
    assert folder is not None
    shutil.copytree(folder, tmp_path / "other")
    file = tmp_path / "other" / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["film"], vocabulary["movie"] = vocabulary["movie"], vocabulary["film"]
    file.write_text(json.dumps(content))
    other = _other(graph)
    other.source = dataclasses.replace(other.source, folder=tmp_path / "other")
    with pytest.raises(ModelError, match=r"found token 'film' with index \d+ in place of \d+;"):
        check_teacher(other, graph)
    del vocabulary["movie"]
    file.write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"found \d+ tokens where the model has \d+;"):
        check_teacher(other, graph)
    with pytest.raises(ModelError, match="expected the vocabulary of the model"):
        check_teacher(tiny_graph("roberta", "sequence"), graph)


def test_another_vocabulary_without_tokenizer_files(tiny_graph: TinyGraph) -> None:
    graph = tiny_graph("bert", "sequence")
    other = _other(graph, vocab_size=7)
    other.source = dataclasses.replace(other.source, folder=None)
    with pytest.raises(ModelError, match=r"expected a vocabulary of \d+ tokens .* found 7;"):
        check_teacher(other, graph)


def test_an_input_that_the_student_has_not(tiny_graph: TinyGraph) -> None:
    graph = tiny_graph("bert", "sequence")
    other = _other(graph)
    other.model.graph.inputs[0].name = "pixels"
    with pytest.raises(ModelError, match=r"expected the inputs of the model .* found 'pixels' too"):
        check_teacher(other, graph)


def test_a_student_without_token_types_takes_a_teacher_with_them(tiny_graph: TinyGraph) -> None:
    graph = tiny_graph("bert", "sequence")
    student = _other(graph)
    inputs = student.model.graph.inputs
    del inputs[[value.name for value in inputs].index("token_type_ids")]
    check_teacher(graph, student)
