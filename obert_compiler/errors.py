"""Every error a user can cause, as one small tree.

    ObertError                    base: one line of text, an exit code
    ├── UsageError        (2)     the command, option, recipe or argument is wrong
    │   └── SpecError     (2)     a pass specification does not parse
    └── FailureError      (1)     the request is sound, but the work cannot be done
        ├── ModelError    (1)     a model file cannot be read or lowered
        ├── DataError     (1)     a data file cannot be read or does not fit the task
        ├── GraphError    (1)     a graph breaks a rule of its stage, or holds an unsupported op
        ├── NumericsError (1)     NaN, infinity, a singular block
        ├── ArtefactError (1)     an output folder or checkpoint cannot be written or read
        ├── LostProcessError (1)  another process of the run is gone
        └── TerminatedError (143) the process was told to end (SIGTERM)

A message is one line: the thing in quotes, what was expected, what was found, and the remedy.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "ArtefactError",
    "DataError",
    "FailureError",
    "GraphError",
    "LostProcessError",
    "ModelError",
    "NumericsError",
    "ObertError",
    "SpecError",
    "TerminatedError",
    "UsageError",
]


class ObertError(Exception):
    """Base of every error that is the user's to mend; ``str(error)`` is a single line."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class UsageError(ObertError):
    """The command, an option, a recipe or an argument is wrong."""

    exit_code = 2


class SpecError(UsageError):
    """A pass specification such as ``prune:sparsity=0.9`` does not parse."""


class FailureError(ObertError):
    """The request is sound, but the work cannot be done."""


class ModelError(FailureError):
    """A model cannot be read or lowered."""


class DataError(FailureError):
    """A data file cannot be read, or does not fit the task."""


class GraphError(FailureError):
    """A graph breaks a rule of its stage, or holds an op that cannot be handled."""


class NumericsError(FailureError):
    """NaN, infinity or a singular matrix where a finite, regular one is needed."""


class ArtefactError(FailureError):
    """An output folder or a checkpoint cannot be written, read or resumed."""


class LostProcessError(FailureError):
    """Another process of the run ended, or does not answer."""


class TerminatedError(FailureError):
    """The process was told to end by SIGTERM; the exit code is that of a shell."""

    exit_code = 143
