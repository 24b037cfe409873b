"""Checkpoints: the graph after each pass, so that a killed run goes on where it stopped.

Layout of the work folder::

    state.json          format, package version, fingerprint of the request, finished steps
    graph-<n>/          the graph after step n (model.onnx and its external data); 0 is as lowered
    unfinished/         what a pass that is not done goes on from (`Context.unfinished`)
    <anything else>     statistics of passes, re-opened by `Pass.restore`

``state.json`` is replaced atomically after ``graph-<n>`` is complete, so that it never names a
graph that is not whole.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import onnx_ir as ir

import obert_compiler
from obert_compiler.errors import ArtefactError
from obert_compiler.graph.graph import Graph, Source
from obert_compiler.pipeline.contract import UNFINISHED

__all__ = ["Checkpoints", "has_progress"]

_FORMAT = 1


def has_progress(folder: Path) -> bool:
    """Whether a work folder holds a finished pass, or what a pass left that was not done."""
    kept = ("graph-[1-9]*", f"{UNFINISHED}/*/checkpoint-*", f"{UNFINISHED}/*/graph-[1-9]*")
    return any(any(folder.glob(pattern)) for pattern in kept)


class Checkpoints:
    """The work folder of one run.

    Args:
        folder: created when it does not exist.
        fingerprint: JSON-ready description of the request; a checkpoint of another request is not
            resumed.
        writes: False in a process that only follows the one that writes.
    """

    def __init__(self, folder: Path, fingerprint: dict[str, Any], *, writes: bool = True) -> None:
        self.folder = folder
        self._writes = writes
        self._fingerprint: dict[str, Any] = json.loads(json.dumps(fingerprint))
        self.records: list[dict[str, Any]] = []
        self.notes: dict[str, Any] = {}
        if writes:
            folder.mkdir(parents=True, exist_ok=True)

    @property
    def _state_file(self) -> Path:
        return self.folder / "state.json"

    @property
    def lowered_model(self) -> Path:
        """The ONNX file of the graph as it was lowered."""
        return self.folder / "graph-0" / "model.onnx"

    @property
    def latest_model(self) -> Path:
        """The ONNX file of the graph after the last finished step."""
        return self.folder / f"graph-{len(self.records)}" / "model.onnx"

    def clear(self) -> None:
        """Forget whatever an earlier run left."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.records, self.notes = [], {}

    def save(self, graph: Graph, record: dict[str, Any] | None = None) -> None:
        """Write ``graph`` as the state after one more step (``record`` None: as lowered)."""
        if record is not None:
            self.records.append(record)
        if not self._writes:
            return
        number = len(self.records)
        target = self.folder / f"graph-{number}"
        if target.exists():
            shutil.rmtree(target)
        partial = self.folder / f"graph-{number}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            # Saving with external data repoints the tensors; the clone keeps ours in memory.
            ir.save(graph.model.clone(), partial / "model.onnx", external_data="model.onnx_data")
            partial.rename(target)
        except OSError as error:
            raise ArtefactError(
                f"checkpoint '{partial}': expected to write the graph, found {error}; free some "
                "disk space and run again with --resume"
            ) from error
        self._write_state(graph.source)
        if number > 1:
            shutil.rmtree(self.folder / f"graph-{number - 1}", ignore_errors=True)

    def note(self, key: str, value: Any, source: Source) -> None:
        """Keep a JSON-ready value (a metric measured before the passes) across a resume."""
        self.notes[key] = value
        self._write_state(source)

    def _write_state(self, source: Source) -> None:
        if not self._writes:
            return
        described = dataclasses.asdict(source)
        described["folder"] = None if source.folder is None else str(source.folder)
        state = {
            "format": _FORMAT,
            "obert_compiler": obert_compiler.__version__,
            "fingerprint": self._fingerprint,
            "source": described,
            "records": self.records,
            "notes": self.notes,
        }
        partial = self._state_file.with_suffix(".partial")
        partial.write_text(json.dumps(state, indent=1), encoding="utf-8")
        os.replace(partial, self._state_file)

    def load(self) -> Graph | None:
        """The graph after the last finished step, None when nothing was finished.

        Raises:
            ArtefactError: the checkpoint is from another version or another request, or damaged.
        """
        if not self._state_file.exists():
            return None
        try:
            state = json.loads(self._state_file.read_text(encoding="utf-8"))
            self._check(state)
            self.records, self.notes = state["records"], state["notes"]
            source = state["source"]
            source["folder"] = None if source["folder"] is None else Path(source["folder"])
            model = ir.load(self.folder / f"graph-{len(self.records)}" / "model.onnx")
            # The file goes when the next step is saved, and other processes still read it.
            model = ir.external_data.load_to_model(model)
            self._source = Source(**source)
            return Graph(model, self._source)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._damaged(error) from error

    def lowered(self) -> Graph:
        """The graph as it was lowered, before any pass; for a run that was loaded.

        Raises:
            ArtefactError: it is missing or damaged.
        """
        try:
            return Graph(ir.load(self.lowered_model), self._source)
        except (OSError, ValueError, AttributeError) as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> ArtefactError:
        return ArtefactError(
            f"checkpoint '{self.folder}': expected a whole checkpoint, found a damaged one "
            f"({error}); run again without --resume"
        )

    def _check(self, state: dict[str, Any]) -> None:
        version = obert_compiler.__version__
        if (state.get("format"), state.get("obert_compiler")) != (_FORMAT, version):
            raise ArtefactError(
                f"checkpoint '{self.folder}': expected one of version {version}, found one of "
                f"{state.get('obert_compiler')}; run again without --resume"
            )
        found = state["fingerprint"]
        for key, expected in self._fingerprint.items():
            if found.get(key) != expected:
                raise ArtefactError(
                    f"checkpoint '{self.folder}': expected the same {key} as now ({expected}), "
                    f"found {found.get(key)}; run again without --resume"
                )
