"""The Python example of the README runs as it stands, on a tiny model."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_python_example(
    tiny_folder: Callable[[str, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL
    )
    shutil.copytree(tiny_folder("bert", "sequence"), tmp_path / "path" / "or" / "hub-id")
    shutil.copy(ROOT / "examples" / "data" / "reviews.jsonl", tmp_path / "train.jsonl")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert (tmp_path / "out" / "model.onnx").is_file()
    assert {value.name for value in names["session"].get_outputs()} == {"logits"}  # type: ignore[attr-defined]
