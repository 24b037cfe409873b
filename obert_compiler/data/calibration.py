"""The calibration text that ships with the package.

A few hundred short and long passages from openly licensed data sets, used where a compile is given
no data. ``calibration_text/README.md`` names the sources and licences.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from importlib.resources import files

__all__ = ["Passage", "calibration_passages"]


@dataclass(frozen=True)
class Passage:
    """One passage of the shipped text.

    Attributes:
        text: a sentence or a paragraph.
        question: a question that the paragraph answers, None for most.
    """

    text: str
    question: str | None = None


def calibration_passages() -> list[Passage]:
    """All passages, in the order of the file."""
    packed = files("obert_compiler.data").joinpath("calibration_text", "passages.jsonl.gz")
    lines = gzip.decompress(packed.read_bytes()).decode("utf-8").splitlines()
    rows = (json.loads(line) for line in lines)
    return [Passage(row["text"], row.get("question")) for row in rows]
