"""Lowers the model that another one learns from, and checks that the two fit together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from obert_compiler.errors import ModelError
from obert_compiler.frontends.lowering import lower
from obert_compiler.graph.graph import Graph
from obert_compiler.tasks.base import label_names

__all__ = ["check_teacher", "lower_teacher"]


def lower_teacher(
    model: str, student: Graph, *, task: str | None = None, tokenizer: str | None = None
) -> Graph:
    """Lower ``model`` as the teacher of ``student``.

    Args:
        model: folder, hub id or .onnx file.
        student: the graph that learns.
        task: task of both, where their configurations do not say it.
        tokenizer: tokenizer of both, where a model has none beside it.

    Raises:
        UsageError, ModelError: there is no such model, or it cannot be lowered.
        ModelError: it has other labels, another vocabulary or other inputs than the student.
    """
    teacher = lower(model, task=task or student.source.task, tokenizer=tokenizer)
    check_teacher(teacher, student)
    return teacher


def check_teacher(teacher: Graph, student: Graph) -> None:
    """Check that both models read the same tokens and predict the same labels.

    Raises:
        ModelError: they do not.
    """
    name = f"teacher '{teacher.source.location}'"
    wanted, found = (label_names(g.source.config) for g in (student, teacher))
    if student.source.task in {"text-classification", "token-classification"} and wanted != found:
        raise ModelError(
            f"{name}: expected the labels of the model ({_listed(wanted)}), found "
            f"{_listed(found)}; name a teacher that was trained on the same labels, in the same "
            "order"
        )
    ours, theirs = (_vocabulary(g.source.folder) for g in (student, teacher))
    if ours is not None and theirs is not None and ours != theirs:
        odd = next((token for token, index in ours.items() if theirs.get(token) != index), "")
        detail = f"token '{odd}' with index {theirs.get(odd)} in place of {ours.get(odd)}"
        if len(ours) != len(theirs):
            detail = f"{len(theirs)} tokens where the model has {len(ours)}"
        raise ModelError(
            f"{name}: expected the vocabulary of the model, found {detail}; name a teacher with "
            "the same tokenizer"
        )
    rows = _vocabulary_rows(student), _vocabulary_rows(teacher)
    if None not in rows and (ours is None or theirs is None) and rows[0] != rows[1]:
        raise ModelError(
            f"{name}: expected a vocabulary of {rows[0]} tokens as in the model, found {rows[1]}; "
            "name a teacher with the same tokenizer"
        )
    inputs = {v.name for v in student.model.graph.inputs} | {"token_type_ids"}
    missing = [v.name for v in teacher.model.graph.inputs if v.name not in inputs]
    if missing:
        raise ModelError(
            f"{name}: expected the inputs of the model ({', '.join(sorted(map(str, inputs)))}), "
            f"found '{missing[0]}' too; name another teacher"
        )


def _vocabulary(folder: Path | None) -> dict[str, int] | None:
    """Token ids of tokenizer.json, special ones included; None where there is no such file."""
    if folder is None or not (folder / "tokenizer.json").is_file():
        return None
    try:
        content: dict[str, Any] = json.loads((folder / "tokenizer.json").read_text("utf-8"))
        listed = content["model"]["vocab"]
        if isinstance(listed, list):  # Unigram: pairs of token and score
            listed = {pair[0]: index for index, pair in enumerate(listed)}
        vocabulary: dict[str, int] = dict(listed)
        vocabulary |= {t["content"]: t["id"] for t in content.get("added_tokens", ())}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return vocabulary


def _vocabulary_rows(graph: Graph) -> int | None:
    size = graph.source.config.get("vocab_size")
    return None if size is None else int(size)


def _listed(labels: tuple[str, ...] | None) -> str:
    if labels is None:
        return "none"
    shown = ", ".join(labels[:6]) + (", ..." if len(labels) > 6 else "")
    return f"{len(labels)}: {shown}"
