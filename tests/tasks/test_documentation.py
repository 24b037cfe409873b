"""The page about tasks names every task, column and metric."""

from __future__ import annotations

from pathlib import Path

import pytest

from obert_compiler.data.read import FORMATS
from obert_compiler.pipeline.registry import TASKS, names
from obert_compiler.tasks import feature_extraction, text_classification, token_classification

PAGE = (Path(__file__).parents[2] / "docs" / "tasks_and_data.md").read_text(encoding="utf-8")
TEXT, TAGS, FEATURES = text_classification, token_classification, feature_extraction
COLUMNS = {column for columns in (*TEXT.PAIR_COLUMNS, *TEXT.TEXT_COLUMNS) for column in columns}
COLUMNS |= {*TEXT.LABEL_COLUMNS, *TAGS.TAG_COLUMNS, *FEATURES.SCORE_COLUMNS}


@pytest.mark.parametrize("name", sorted(COLUMNS | set(names(TASKS)) | set(FORMATS)))
def test_page_names(name: str) -> None:
    assert f"`{name}`" in PAGE
