"""config.json and modules.json beside a model: reading them, and the task that they state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from obert_compiler.errors import ModelError

__all__ = ["TASK_OUTPUTS", "read_config", "read_json", "task_of"]

TASK_OUTPUTS = {
    "text-classification": ("logits",),
    "token-classification": ("logits",),
    "question-answering": ("start_logits", "end_logits"),
    "fill-mask": ("logits",),
    "feature-extraction": ("last_hidden_state",),
}
"""Outputs of a lowered model by task, named as Optimum names them."""

_TASK_BY_ENDING = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "fill-mask",
    "Model": "feature-extraction",
}


def read_config(folder: Path) -> dict[str, Any] | None:
    """The content of ``folder/config.json``, None where there is no such file.

    Raises:
        ModelError: the file is not a JSON object.
    """
    file = folder / "config.json"
    if not file.is_file():
        return None
    config = read_json(file)
    if not isinstance(config, dict):
        raise ModelError(f"file '{file}': expected a JSON object, found {type(config).__name__}")
    return config


def read_json(file: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ModelError: the file cannot be read or is not JSON.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"file '{file}': expected to read it, found {error.strerror}") from error
    except ValueError as error:
        raise ModelError(f"file '{file}': expected JSON, found other text ({error})") from error


def task_of(config: dict[str, Any], folder: Path | None) -> str | None:
    """The task that a configuration or a sentence-transformers folder states, None if neither."""
    if folder is not None and (folder / "modules.json").is_file():
        return "feature-extraction"
    for architecture in config.get("architectures") or ():
        for ending, task in _TASK_BY_ENDING.items():
            if str(architecture).endswith(ending):
                return task
    return None
