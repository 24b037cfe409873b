"""Batches: padding, order, sampling; the shipped text; inputs without a task."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from obert_compiler.data.batches import Batch, Batches, Example, collate
from obert_compiler.data.calibration import calibration_passages
from obert_compiler.data.tokenizer import Tokenizer, load_tokenizer
from obert_compiler.errors import DataError, UsageError
from obert_compiler.tasks.base import Task
from obert_compiler.tasks.feature_extraction import FeatureExtraction
from obert_compiler.tasks.fill_mask import FillMask
from obert_compiler.tasks.question_answering import QuestionAnswering
from obert_compiler.tasks.text_classification import TextClassification
from obert_compiler.tasks.token_classification import TokenClassification

BINARY = TextClassification(("NEGATIVE", "POSITIVE"))
TASKS: list[Task] = [
    BINARY,
    TextClassification(("LABEL_0",)),
    TokenClassification(("O", "B-PER", "I-PER")),
    QuestionAnswering(),
    FeatureExtraction(),
    FillMask(),
]


def _example(length: int, label: int | None = None) -> Example:
    ids = np.arange(1, length + 1)
    labels = None if label is None else {"labels": np.asarray(label)}
    return Example({"input_ids": ids, "attention_mask": np.ones(length, int)}, labels, 0)


def test_collate_pads_to_the_longest() -> None:
    batch = collate([_example(2, 0), _example(4, 1)], pad_token_id=7)
    assert batch.inputs["input_ids"].tolist() == [[1, 2, 7, 7], [1, 2, 3, 4]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch.labels is not None
    assert batch.labels["labels"].tolist() == [0, 1]


def test_collate_drops_labels_unless_all_have_them() -> None:
    assert collate([_example(2, 0), _example(2)]).labels is None


def test_collate_pads_label_sequences_with_ignored() -> None:
    rows = [Example({"input_ids": np.ones(n, int)}, {"labels": np.ones(n, int)}, 0) for n in (1, 3)]
    labels = collate(rows).labels
    assert labels is not None
    assert labels["labels"].tolist() == [[1, -100, -100], [1, 1, 1]]


def test_batches_cover_every_example_once_and_again() -> None:
    examples = tuple(_example(1 + i % 5) for i in range(11))
    batches = Batches(examples, None, "test", batch_size=4)
    first, second = (np.concatenate([b.rows for b in batches]) for _ in range(2))
    assert sorted(first) == list(range(11))
    assert first.tolist() == second.tolist()
    assert [len(b) for b in batches] == [4, 4, 3]
    assert len(batches) == 3


def test_sorting_puts_the_longest_first_and_pads_little() -> None:
    examples = tuple(_example(n) for n in (3, 9, 3, 9, 3, 9))
    widths = [b.inputs["input_ids"].shape for b in Batches(examples, None, "test", batch_size=3)]
    assert widths == [(3, 9), (3, 3)]
    unsorted = Batches(examples, None, "test", batch_size=3, sort=False)
    assert [b.rows.tolist() for b in unsorted] == [[0, 1, 2], [3, 4, 5]]


def test_take_and_with_batch_size() -> None:
    batches = Batches(tuple(_example(n) for n in range(1, 21)), None, "test")
    drawn = batches.take(5, seed=1)
    assert len(drawn.examples) == 5
    assert drawn.examples == batches.take(5, seed=1).examples
    assert drawn.examples != batches.take(5, seed=2).examples
    assert [e.length for e in drawn.examples] == sorted(e.length for e in drawn.examples)
    assert batches.take(99) is batches
    assert len(batches.with_batch_size(1)) == 20


def test_feed_adds_token_types_and_names_what_is_missing() -> None:
    batch = collate([_example(3)])
    feed = batch.feed(["input_ids", "token_type_ids"])
    assert feed["token_type_ids"].tolist() == [[0, 0, 0]]
    with pytest.raises(DataError, match=r"input 'pixel_values' of the graph.*found input_ids"):
        batch.feed(["pixel_values"])


def test_open_reads_a_file(samples: Path, tokenizer: Tokenizer) -> None:
    batches = Batches.open(
        samples / "snips_music.jsonl", BINARY, tokenizer, limit=20, max_length=16
    )
    assert len(batches.examples) == 20
    assert batches.labelled
    assert max(e.length for e in batches.examples) == 16
    assert "20 examples" in batches.describe()
    assert "labelled" in batches.describe()


def test_open_takes_the_folder_of_a_tokenizer(
    samples: Path, tiny_folder: Callable[[str, str], Path], tokenizer: Tokenizer
) -> None:
    file, folder = samples / "snips_music.jsonl", tiny_folder("bert", "sequence")
    by_path = Batches.open(file, BINARY, folder, limit=3)
    by_object = Batches.open(file, BINARY, tokenizer, limit=3)
    for one, other in zip(by_path, by_object, strict=True):
        assert np.array_equal(one.inputs["input_ids"], other.inputs["input_ids"])


def test_length_ends_where_the_model_does(tokenizer: Tokenizer) -> None:
    assert tokenizer.model_max_length == 128
    rows = [{"text": "film " * 1000, "label": 0}]
    (example,) = Batches.open(rows, BINARY, tokenizer, max_length=4096).examples
    assert example.length == 128


def test_limit_draws_by_seed(samples: Path, tokenizer: Tokenizer) -> None:
    def ids(seed: int) -> list[list[int]]:
        file = samples / "snips_music.jsonl"
        found = Batches.open(file, BINARY, tokenizer, limit=5, seed=seed)
        return [e.inputs["input_ids"].tolist() for e in found.examples]

    assert ids(0) == ids(0)
    assert ids(0) != ids(1)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"limit": 0}, "limit of examples: expected at least 1"),
        ({"max_length": 2}, "sequence length: expected at least 4"),
        ({"batch_size": 0}, "batch size: expected at least 1"),
    ],
)
def test_misuse(tokenizer: Tokenizer, options: dict[str, int], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        Batches.open([{"text": "a", "label": 0}], BINARY, tokenizer, **options)  # type: ignore[arg-type]


def test_no_rows(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="expected rows, found none"):
        Batches.open([], BINARY, tokenizer)


def test_missing_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected tokenizer files"):
        load_tokenizer(tmp_path)


def test_without_transformers_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(UsageError, match=r"pip install obert-compiler\[compile\]"):
        load_tokenizer("anywhere")


def test_calibration_text_is_varied_and_small() -> None:
    passages = calibration_passages()
    lengths = [len(p.text.split()) for p in passages]
    assert len(passages) >= 512
    assert len({p.text for p in passages}) >= 0.98 * len(passages)
    assert min(lengths) <= 8
    assert max(lengths) >= 120
    assert sum(p.question is not None for p in passages) >= 128
    folder = Path(__file__).parents[2] / "obert_compiler/data/calibration_text"
    assert (folder / "passages.jsonl.gz").stat().st_size < 150_000
    assert "CC BY-SA 4.0" in (folder / "README.md").read_text()


@pytest.mark.parametrize("task", TASKS, ids=lambda t: f"{t.name}-{t.metric_name}")
def test_calibration_text_fits_every_task(task: Task, tokenizer: Tokenizer) -> None:
    batches = Batches.calibration(task, tokenizer, batch_size=8, limit=24, max_length=64)
    assert batches.origin == "calibration text of the package"
    seen = 0
    for batch in batches:
        assert set(batch.inputs) == {"input_ids", "token_type_ids", "attention_mask"}
        assert all(array.dtype == np.int64 for array in batch.inputs.values())
        assert batch.inputs["input_ids"].shape[1] <= 64
        seen += len(batch)
    assert seen == len(batches.examples) >= 24
    # Masked-LM labels are the text itself; every other task has none here.
    assert batches.labelled == isinstance(task, FillMask)


def test_pair_tasks_calibrate_on_pairs(tokenizer: Tokenizer) -> None:
    for task in (TextClassification(("LABEL_0",)), QuestionAnswering()):
        batch: Batch = next(iter(Batches.calibration(task, tokenizer, limit=8)))
        assert batch.inputs["token_type_ids"].max() == 1


def test_arrays_without_a_task(tmp_path: Path) -> None:
    arrays = {"x": np.arange(15.0).reshape(5, 3), "y": np.arange(5)}
    np.savez(tmp_path / "a.npz", **arrays)
    for source in (arrays, tmp_path / "a.npz"):
        batches = Batches.from_arrays(source, batch_size=2)
        found = [b.inputs for b in batches]
        assert np.array_equal(np.concatenate([f["x"] for f in found]), arrays["x"])
        assert np.array_equal(np.concatenate([f["y"] for f in found]), arrays["y"])
        assert not batches.labelled
    assert len(Batches.from_arrays(arrays, limit=3).examples) == 3


def test_arrays_of_different_length() -> None:
    with pytest.raises(DataError, match="same, non-empty first axis"):
        Batches.from_arrays({"x": np.zeros((2, 3)), "y": np.zeros(3)})
    with pytest.raises(DataError, match="found no array"):
        Batches.from_arrays({})
