"""Where a command writes: results on stdout, progress and notes on stderr."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO, TypeVar

if TYPE_CHECKING:
    from obert_compiler.pipeline.contract import Bar

__all__ = ["Console"]

T = TypeVar("T")


class Console:
    """Output of one command; also the `Progress` that passes report to.

    Bars are only drawn where stderr is a terminal; notes are printed in any case.

    Args:
        stdout: where results go.
        stderr: where progress and notes go.
        as_json: print results as JSON and tables not at all.
    """

    def __init__(self, stdout: TextIO, stderr: TextIO, *, as_json: bool = False) -> None:
        self._stdout = stdout
        self._stderr = stderr
        self._as_json = as_json
        self._bars: Any = None
        self._running = 0

    def __enter__(self) -> Self:
        if self._stderr.isatty():
            from rich.console import Console as RichConsole
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )

            self._bars = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=RichConsole(file=self._stderr),
                transient=True,
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def track(self, items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
        """Yield ``items`` and draw a bar called ``what``; bars may be nested."""
        if self._bars is None:
            yield from items
            return
        if total is None and isinstance(items, Sized):
            total = len(items)
        with self._shown(what, total) as task:
            for item in items:
                yield item
                self._bars.advance(task)

    @contextmanager
    def bar(self, what: str, total: float) -> Iterator[Bar]:
        """A bar that the caller moves."""
        if self._bars is None:
            yield _MovedBar(None, None, what)
            return
        with self._shown(what, total) as task:
            yield _MovedBar(self._bars, task, what)

    @contextmanager
    def _shown(self, what: str, total: float | None) -> Iterator[Any]:
        if self._running == 0:
            self._bars.start()
        self._running += 1
        task = self._bars.add_task(what, total=total)
        self._bars.refresh()
        try:
            yield task
        finally:
            self._bars.remove_task(task)
            self._running -= 1
            if self._running == 0:
                self._bars.stop()

    def say(self, message: str) -> None:
        """One line on stderr."""
        line = f"obertc: {' '.join(message.split())}"
        if self._bars is not None and self._running:
            self._bars.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=self._stderr, flush=True)

    def result(self, data: object) -> None:
        """With ``--json``, print ``data``; nothing otherwise."""
        if self._as_json:
            print(json.dumps(data, indent=2, ensure_ascii=False), file=self._stdout)

    def line(self, text: str = "") -> None:
        """Without ``--json``, print a line of text."""
        if not self._as_json:
            print(text, file=self._stdout)

    def table(
        self, headings: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: str = ""
    ) -> None:
        """Without ``--json``, print a table.

        Args:
            headings: one per column.
            rows: cells as text.
            numbers: one character per column, ``r`` for columns set flush right; missing ones are
                flush left.
        """
        if self._as_json:
            return
        cells = [list(headings), *(list(row) for row in rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(headings))]
        right = [i < len(numbers) and numbers[i] == "r" for i in range(len(headings))]
        for number, row in enumerate(cells):
            print(_aligned(row, widths, right), file=self._stdout)
            if number == 0:
                print("  ".join("-" * width for width in widths), file=self._stdout)

    def flush(self) -> None:
        """Hand everything to the reader of stdout now, so that a closed pipe is noticed."""
        self._stdout.flush()


class _MovedBar:
    """A bar with a text of its own beside its name; without bars it shows nothing."""

    def __init__(self, bars: Any, task: Any, what: str) -> None:
        self._bars = bars
        self._task = task
        self._what = what

    def move(self, done: float, text: str = "") -> None:
        """Show how much is done, and ``text``."""
        if self._bars is None:
            return
        shown = f"{self._what}: {text}" if text else self._what
        self._bars.update(self._task, completed=done, description=shown)


def _aligned(row: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    cells = [
        cell.rjust(width) if flush_right else cell.ljust(width)
        for cell, width, flush_right in zip(row, widths, right, strict=True)
    ]
    return "  ".join(cells).rstrip()
