"""Loggers of the Trainer, by their names there (tensorboard, wandb, mlflow, ...)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from transformers.integrations import integration_utils

from obert_compiler.errors import UsageError

__all__ = ["check_loggers", "logging_folder"]

_TENSORBOARD = "TENSORBOARD_LOGGING_DIR"


def check_loggers(names: Sequence[str], where: str) -> None:
    """Check that the Trainer knows the loggers and that their packages are installed.

    Raises:
        UsageError: one is unknown, or its package is missing.
    """
    if not names:
        return
    installed = integration_utils.get_available_reporting_integrations()  # type: ignore[no-untyped-call]
    for name in names:
        if name not in integration_utils.INTEGRATION_TO_CALLBACK:
            raise UsageError(
                f"{where}: expected loggers of the Trainer such as tensorboard, wandb or mlflow, "
                f"found '{name}'"
            )
        if name not in installed:
            raise UsageError(
                f"{where}: expected the package of the logger '{name}', found it not installed; "
                "install it, or leave the logger out"
            )


@contextmanager
def logging_folder(name: str) -> Iterator[None]:
    """Let TensorBoard write into ``runs/<name>``, unless its variable names another folder.

    By default the Trainer's would be the folder of checkpoints, which is removed at the end.
    """
    given = os.environ.get(_TENSORBOARD)
    if given is None:
        os.environ[_TENSORBOARD] = os.path.join("runs", name)
    try:
        yield
    finally:
        if given is None:
            del os.environ[_TENSORBOARD]
