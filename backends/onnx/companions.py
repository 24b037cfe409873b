"""The files beside model.onnx: configuration, tokenizer, sentence-transformers modules.

They are copied from the folder that the model came from, by kind: everything that describes the
model, nothing that holds its weights. config.json is written anew, because passes change it
(fewer layers). Modules behind the Transformer (Pooling, Dense, Normalize) keep their weights too:
sentence-transformers runs its own, behind ``last_hidden_state``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from obert_compiler.graph.graph import Source

__all__ = ["write_companions"]

_DESCRIPTIONS = ("*.json", "*.txt", "*.model", "*.spm", "*.jinja", "LICENSE*", "NOTICE*")
_NOT_COPIED = ("*.index.json", "report.json", "requirements*.txt")
_CONFIG = "config.json"


def write_companions(source: Source, folder: Path) -> list[str]:
    """Copy what describes the model, and write its configuration.

    Args:
        source: where the graph came from; nothing is written for one without a folder and
            configuration.
        folder: the artefact.

    Returns:
        Names of the files, relative to ``folder``, sorted.

    Raises:
        OSError: a file cannot be read or written.
    """
    written: list[str] = []
    if source.folder is not None and source.folder.is_dir():
        for file in (*_descriptions(source.folder), *_module_files(source.folder)):
            name = file.relative_to(source.folder)
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
            written.append(name.as_posix())
    config = _config(source, folder / _CONFIG)
    if config:
        text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)
        (folder / _CONFIG).write_text(text + "\n", encoding="utf-8")
        written.append(_CONFIG)
    return sorted(set(written))


def _descriptions(folder: Path) -> Iterator[Path]:
    for file in sorted(folder.iterdir()):
        described = any(file.match(pattern) for pattern in _DESCRIPTIONS)
        if file.is_file() and described and not any(file.match(p) for p in _NOT_COPIED):
            yield file


def _module_files(folder: Path) -> Iterator[Path]:
    """Files of the modules that modules.json names, but those of the Transformer itself."""
    listing = folder / "modules.json"
    if not listing.is_file():
        return
    modules: list[dict[str, Any]] = json.loads(listing.read_text(encoding="utf-8"))
    for module in modules:
        path = module.get("path", "")
        inner = folder / path
        if path and ".." not in Path(path).parts and inner.is_dir():
            transformer = str(module.get("type", "")).endswith(".Transformer")
            yield from _descriptions(inner) if transformer else _all_files(inner)


def _all_files(folder: Path) -> Iterator[Path]:
    yield from (file for file in sorted(folder.rglob("*")) if file.is_file())


def _config(source: Source, copied: Path) -> dict[str, Any]:
    """The configuration as passes left it; without one, the copied file stays."""
    if not source.config:
        return {}
    if not copied.is_file():
        return dict(source.config)
    before: dict[str, Any] = json.loads(copied.read_text(encoding="utf-8"))
    return before | source.config
