"""Where the samples lie, and a tiny tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from obert_compiler.data.tokenizer import Tokenizer, load_tokenizer


@pytest.fixture(scope="session")
def samples() -> Path:
    """The folder of sample data."""
    return Path(__file__).parents[1] / "datasets"


@pytest.fixture(scope="session")
def tokenizer(tiny_folder: Callable[[str, str], Path]) -> Tokenizer:
    """A WordPiece tokenizer with the layout of BERT."""
    return load_tokenizer(tiny_folder("bert", "sequence"))
