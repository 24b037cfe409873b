"""Evaluation: the same figures whatever the batches and the engine; every task on its sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from obert_compiler.data.batches import Batches
from obert_compiler.data.tokenizer import Tokenizer
from obert_compiler.errors import DataError, NumericsError, UsageError
from obert_compiler.graph.graph import Graph
from obert_compiler.runtime.engine import InputSpec, open_engine
from obert_compiler.runtime.evaluate import evaluate, label_agreement
from obert_compiler.tasks import task_for
from obert_compiler.tasks.text_classification import TextClassification

BINARY = TextClassification(("NEGATIVE", "POSITIVE"))


@pytest.fixture
def data(samples: Path, tokenizer: Tokenizer) -> Batches:
    """Sixty labelled commands."""
    return Batches.open(samples / "snips_music.jsonl", BINARY, tokenizer)


def test_accuracy_against_one_row_at_a_time(model_file: Path, data: Batches) -> None:
    engine = open_engine("cpu", model_file)
    hits = []
    for example in data.examples:
        feed = {s.name: example.inputs[s.name][None] for s in engine.inputs}
        hits.append(engine.run(feed)["logits"][0].argmax() == example.target)
    found = evaluate(model_file, data, threads=1)
    assert found.metric_name == "accuracy"
    assert found.value == pytest.approx(np.mean(hits))
    assert 0 < found.value < 1
    assert found.examples == 60
    assert found.to_dict()["threads"] == 1
    assert found.cpu


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"batch_size": 7, "sort": False}])
def test_batches_do_not_matter(model_file: Path, data: Batches, options: dict[str, Any]) -> None:
    expected = evaluate(model_file, data)
    found = evaluate(model_file, replace(data, **options))
    assert found.metrics == expected.metrics
    assert np.stack(found.outputs) == pytest.approx(np.stack(expected.outputs), abs=1e-5)


def test_openvino_gives_the_same(model_file: Path, data: Batches) -> None:
    pytest.importorskip("openvino")
    first = evaluate(model_file, data)
    second = evaluate(model_file, data, engine="openvino", threads=1)
    assert second.engine == "openvino"
    assert label_agreement(first, second) == 1.0
    assert np.stack(first.outputs) == pytest.approx(np.stack(second.outputs), abs=1e-5)


def test_label_agreement_counts_examples(model_file: Path, data: Batches) -> None:
    first = evaluate(model_file, data)
    turned = tuple(o[::-1] if i < 15 else o for i, o in enumerate(first.outputs))
    assert label_agreement(first, replace(first, outputs=turned)) == pytest.approx(45 / 60)


def test_fixed_shapes_are_filled_up(
    make_model: Callable[..., Path], model_file: Path, data: Batches
) -> None:
    fixed = make_model("fixed", 4, 100)
    assert evaluate(fixed, data).metrics == evaluate(model_file, data).metrics


def test_fixed_shape_too_short(make_model: Callable[..., Path], data: Batches) -> None:
    with pytest.raises(DataError, match="'input_ids': expected at most 6 along axis 1"):
        evaluate(make_model("short", "batch", 6), data)


def test_infinite_outputs_are_an_error(make_model: Callable[..., Path], data: Batches) -> None:
    with pytest.raises(
        NumericsError, match=r"output 'logits' of example \d+ of .*found NaN or inf"
    ):
        evaluate(make_model("infinite", infinite=True), data)


def test_data_without_labels_or_task(model_file: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="expected labelled rows"):
        evaluate(model_file, Batches.open([{"text": "a"}], BINARY, tokenizer))
    with pytest.raises(UsageError, match="expected data of a task, found plain arrays"):
        evaluate(model_file, Batches.from_arrays({"input_ids": np.ones((2, 3), np.int64)}))


def test_unknown_engine(model_file: Path, data: Batches) -> None:
    with pytest.raises(UsageError, match="engine 'tpu': expected one of obert, cpu, openvino"):
        evaluate(model_file, data, engine="tpu")


class _Constant:
    """An engine of the caller's own."""

    name = "constant"
    inputs = (InputSpec("input_ids", np.dtype(np.int32), (None, None)),)

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert feed["input_ids"].dtype == np.int32
        return {"logits": np.tile([[0.0, 1.0]], (len(feed["input_ids"]), 1))}


def test_an_engine_of_the_callers_own(data: Batches) -> None:
    found = evaluate(_Constant(), data)
    assert found.engine == "constant"
    assert found.value == pytest.approx(np.mean([e.target for e in data.examples]))


@pytest.mark.parametrize(
    ("head", "file", "length", "expected"),
    [
        ("sequence", "squad_pairs.jsonl.gz", 64, {"accuracy", "f1"}),
        ("reranker", "squad_pairs.jsonl.gz", 64, {"spearman", "pearson"}),
        (
            "token",
            "wnut17_person_location.jsonl.gz",
            64,
            {"f1", "precision", "recall", "accuracy"},
        ),
        ("qa", "squad.jsonl", 128, {"f1", "exact_match"}),
        ("embedding", "banking77_pairs.csv", 64, {"spearman", "pearson"}),
        ("embedding", "banking77.jsonl.gz", 64, {"accuracy"}),
        ("mlm", "squad_contexts.txt.gz", 64, {"loss", "perplexity", "accuracy"}),
    ],
)
def test_every_task_on_its_sample(
    head: str,
    file: str,
    length: int,
    expected: set[str],
    samples: Path,
    tiny_graph: Callable[[str, str], Graph],
) -> None:
    graph = tiny_graph("bert", head)
    task = task_for(graph.source)
    assert task is not None
    assert graph.source.folder is not None
    data = Batches.open(samples / file, task, graph.source.folder, max_length=length, limit=24)
    found = evaluate(graph, data, threads=1)
    assert set(found.metrics) == expected
    assert found.metric_name in expected
    single = evaluate(graph, data.with_batch_size(1), threads=1)
    for name, value in found.metrics.items():
        assert np.isfinite(value)
        assert single.metrics[name] == pytest.approx(value, rel=1e-3, abs=1e-6)
