"""A head that is not trained yet: classes for an encoder that was trained for something else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from obert_compiler.errors import UsageError

__all__ = ["HEAD_TASKS", "describe_head", "of_the_head", "read_classes"]

HEAD_TASKS = ("text-classification", "token-classification", "question-answering")
"""Tasks whose head can be made anew."""


def read_classes(text: str, task: str | None) -> tuple[str, ...]:
    """Names of the classes of ``negative+positive``; a number gives them plain names.

    Args:
        text: names joined by ``+``, or how many there are.
        task: the task of the head.

    Raises:
        UsageError: a task without such a head, no class, or a class named twice.
    """
    if task not in HEAD_TASKS:
        raise UsageError(
            f"new head '{text}': expected a task with classes ({', '.join(HEAD_TASKS)}), found "
            f"{task}; give --task"
        )
    if text.isdecimal():
        names = tuple(f"LABEL_{i}" for i in range(int(text)))
    else:
        names = tuple(text.split("+"))
    if not names or "" in names or len(set(names)) < len(names):
        raise UsageError(
            f"new head '{text}': expected different names of classes joined by +, or their number "
            "from 1 on, as in negative+positive or 2"
        )
    if task == "question-answering" and len(names) != 2:
        raise UsageError(
            f"new head '{text}': expected 2 for question-answering, start and end, found "
            f"{len(names)}"
        )
    return names


def describe_head(config: Any, classes: tuple[str, ...], task: str) -> None:
    """Write the classes into a configuration of transformers."""
    config.num_labels = len(classes)
    config.id2label = dict(enumerate(classes))
    config.label2id = {name: index for index, name in enumerate(classes)}
    config.problem_type = None
    if task == "text-classification" and len(classes) == 1:
        config.problem_type = "regression"


def of_the_head(names: Iterable[str], prefix: str) -> set[str]:
    """Those of the parameters ``names`` that lie outside the encoder, or in its pooler."""
    return {n for n in names if not n.startswith(f"{prefix}.") or ".pooler." in n}
