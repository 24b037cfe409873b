"""Tokenizers, loaded by `transformers` and only when text is encoded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from obert_compiler.errors import DataError, UsageError

__all__ = ["Tokenizer", "encode_texts", "load_tokenizer"]


class Tokenizer(Protocol):
    """The part of a `transformers` fast tokenizer that tasks use."""

    pad_token_id: int | None
    mask_token_id: int | None
    model_max_length: int
    all_special_ids: list[int]

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Encode texts."""
        ...

    def __len__(self) -> int: ...


def load_tokenizer(source: str | Path) -> Tokenizer:
    """Load the fast tokenizer of a folder or hub id.

    Raises:
        UsageError: `transformers` is not installed.
        DataError: the source has no tokenizer, or only a slow one without offsets.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise UsageError(
            f"tokenizer '{source}': expected the package transformers, found none; "
            "pip install obert-compiler[compile]"
        ) from None
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(source))
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise DataError(
            f"tokenizer '{source}': expected tokenizer files (tokenizer.json), found none that "
            f"load ({_first_line(error)}); name a folder with --tokenizer"
        ) from error
    if not tokenizer.is_fast:
        raise DataError(
            f"tokenizer '{source}': expected a fast tokenizer (tokenizer.json), found a slow one; "
            "save it again with transformers' AutoTokenizer(..., use_fast=True)"
        )
    loaded: Tokenizer = tokenizer  # type: ignore[assignment]
    return loaded


def encode_texts(
    tokenizer: Tokenizer, *texts: list[Any], max_length: int, **options: Any
) -> Mapping[str, Any]:
    """Encode one list of texts or two parallel ones, truncated to ``max_length`` tokens."""
    options.setdefault("truncation", True)
    encoded: Mapping[str, Any] = tokenizer(*texts, max_length=max_length, **options)
    return encoded


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
