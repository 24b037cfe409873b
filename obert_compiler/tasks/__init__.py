"""Tasks: columns, losses and metrics, one file each."""

from __future__ import annotations

from obert_compiler.graph.graph import Source
from obert_compiler.pipeline.registry import TASKS, load
from obert_compiler.tasks.base import Example, Task

__all__ = ["Example", "Task", "task_class", "task_for"]


def task_class(name: str) -> type[Task]:
    """The task that is registered as ``name``.

    Raises:
        UsageError: none is.
    """
    found: type[Task] = load(TASKS, name)
    return found


def task_for(source: Source, name: str | None = None) -> Task | None:
    """The task of a model: the one called ``name``, else the one its source states.

    Returns:
        None when neither says which.

    Raises:
        UsageError: no task of that name is registered.
        ModelError: the model's configuration does not fit it.
    """
    wanted = name or source.task
    if wanted is None:
        return None
    return task_class(wanted).from_source(source)
