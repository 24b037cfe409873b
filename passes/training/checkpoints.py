"""Checkpoints of a training: which one is the last, and whether it is one of this training."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from obert_compiler.errors import ArtefactError

__all__ = ["check_identity", "last_checkpoint"]

_IDENTITY = "training.json"


def last_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the most steps; None where there is none."""
    found = [
        (int(number), path)
        for path in folder.glob("checkpoint-*")
        if (number := path.name.rpartition("-")[2]).isdecimal() and path.is_dir()
    ]
    return max(found)[1] if found else None


def check_identity(folder: Path, identity: Mapping[str, Any], *, write: bool = True) -> None:
    """Check that the checkpoints in ``folder`` are of this training; write down which it is.

    Args:
        folder: of the training.
        identity: JSON-ready description of all that decides the result, by plain words.
        write: whether this is the process that writes it down.

    Raises:
        ArtefactError: they are of another training; names the first difference.
    """
    file = folder / _IDENTITY
    wanted = json.loads(json.dumps(dict(identity)))
    if last_checkpoint(folder) is not None:
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ArtefactError(
                f"checkpoint '{folder}': expected {_IDENTITY} beside it, found {error}; run again "
                "without --resume"
            ) from error
        for key, value in wanted.items():
            if found.get(key) != value:
                raise ArtefactError(
                    f"checkpoint '{folder}': expected the same {key} as now ({value}), found "
                    f"{found.get(key)}; run again without --resume"
                )
        return
    if not write:
        return
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(wanted, indent=1), encoding="utf-8")
    os.replace(partial, file)
