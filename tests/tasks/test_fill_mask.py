"""Masked language modelling: what is hidden, and the loss."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from obert_compiler.data.batches import Batches
from obert_compiler.data.tokenizer import Tokenizer
from obert_compiler.errors import DataError
from obert_compiler.tasks.base import IGNORED, Row
from obert_compiler.tasks.fill_mask import FillMask


def test_shares_of_hidden_tokens(tokenizer: Tokenizer) -> None:
    rows: list[Row] = [{"text": "film " * 100}] * 40
    examples = FillMask().encode(rows, tokenizer, 128)
    ids = np.concatenate([e.inputs["input_ids"] for e in examples])
    labels = np.concatenate([e.labels["labels"] for e in examples if e.labels])
    hidden = labels != IGNORED
    assert hidden.sum() / 4000 == pytest.approx(0.15, abs=0.02)
    masked = ids[hidden] == tokenizer.mask_token_id
    kept = ids[hidden] == labels[hidden]
    assert masked.mean() == pytest.approx(0.8, abs=0.06)
    assert kept.mean() == pytest.approx(0.1, abs=0.05)
    # Nothing else changed, and special tokens are never hidden.
    untouched = set(ids[~hidden].tolist())
    assert len(untouched) == 3
    assert not {int(labels[hidden].min())} & set(tokenizer.all_special_ids)


def test_what_is_hidden_depends_on_seed_and_row_alone(samples: Path, tokenizer: Tokenizer) -> None:
    file = samples / "squad_contexts.txt.gz"

    def ids(task: FillMask, limit: int | None = None) -> set[tuple[int, ...]]:
        found = Batches.open(file, task, tokenizer, limit=limit).examples
        return {tuple(e.inputs["input_ids"].tolist()) for e in found}

    whole, part = ids(FillMask()), ids(FillMask(), limit=10)
    assert len(whole) == 37
    assert len(part) == 10
    assert part <= whole
    assert ids(FillMask(seed=1)) != whole


def test_short_texts_hide_one_token(tokenizer: Tokenizer) -> None:
    examples = FillMask().encode([{"text": "film"}] * 5, tokenizer, 16)
    assert [e.target for e in examples] == [1] * 5


def test_loss_and_perplexity_against_the_definition(tokenizer: Tokenizer) -> None:
    task = FillMask(probability=0.4)
    batches = Batches.open([{"text": "the cat eats"}, {"text": "a dog"}], task, tokenizer)
    (batch,) = batches
    logits = np.random.default_rng(0).standard_normal((2, 5, 200)).astype(np.float32) * 3
    assert batch.labels is not None
    nll, right = [], []
    for row in range(2):
        for position, label in enumerate(batch.labels["labels"][row]):
            if label != IGNORED:
                values = logits[row, position].astype(float)
                nll.append(np.log(np.exp(values).sum()) - values[label])
                right.append(values.argmax() == label)
    found = task.metric(task.reduce({"logits": logits}, batch), batches.examples)
    assert found["loss"] == pytest.approx(np.mean(nll))
    assert found["perplexity"] == pytest.approx(np.exp(np.mean(nll)))
    assert found["accuracy"] == pytest.approx(np.mean(right))


def test_tokenizer_without_a_mask(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(tokenizer), "mask_token_id", None, raising=False)
    with pytest.raises(DataError, match="expected a tokenizer with a mask token"):
        FillMask().encode([{"text": "a"}], tokenizer, 16)


def test_columns(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="expected columns text or sentence, found body"):
        FillMask().encode([{"body": "a"}], tokenizer, 16)
