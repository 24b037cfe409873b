"""The contract between a pass and the runner.

A pass is a frozen dataclass: ``name`` is a class variable, its fields are its options, and
``str(p)`` is the text that parses back to it (`obert_compiler.pipeline.spec`). It states what it
accepts (`Pass.accepts`, `Pass.requires`), does one thing (`Pass.run`) and states what then holds
(`Pass.ensures`). Verification, timing, memory, progress bars, checkpoints and resume belong to the
runner (`obert_compiler.pipeline.manager`), never to a pass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from obert_compiler.graph.graph import Graph, Stage
from obert_compiler.pipeline.processes import Processes
from obert_compiler.pipeline.spec import Spec

if TYPE_CHECKING:
    from obert_compiler.data.batches import Batches
    from obert_compiler.tasks.base import Task

__all__ = [
    "UNFINISHED",
    "Backend",
    "Bar",
    "Context",
    "Pass",
    "PassResult",
    "Progress",
    "SilentBar",
    "SilentProgress",
    "Skip",
]

T = TypeVar("T")

UNFINISHED = "unfinished"
"""Folder in the work folder for the state of a pass that is not done."""


@dataclass(frozen=True)
class Skip:
    """Something a pass left alone, and why. "Why not" is data, not a log line.

    Attributes:
        subject: name of the site, layer, matrix or node.
        reason: one clause, without a full stop.
    """

    subject: str
    reason: str


@dataclass(frozen=True)
class PassResult:
    """What a pass did.

    Attributes:
        graph: the transformed graph; passes transform in place and return the same object, a pass
            that only estimates returns it unchanged.
        changed: whether any weight or node differs from before.
        report: JSON-ready figures for the report, keyed by plain words.
        skips: what was left alone, with the reason.
    """

    graph: Graph
    changed: bool
    report: dict[str, Any] = field(default_factory=dict)
    skips: tuple[Skip, ...] = ()


class Bar(Protocol):
    """A bar of `Progress.bar`."""

    def move(self, done: float, text: str = "") -> None:
        """Show that ``done`` of the total is done, and ``text`` beside the bar."""
        ...


class SilentBar:
    """A bar that shows nothing."""

    def move(self, done: float, text: str = "") -> None:
        """Do nothing."""


class Progress(Protocol):
    """Where a pass tells how far it is; the command line shows bars, the API is silent."""

    def track(self, items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
        """Yield ``items`` and show them as progress of ``what``."""
        ...

    def bar(self, what: str, total: float) -> AbstractContextManager[Bar]:
        """A bar that the caller moves: work without a list of items, with figures beside it."""
        ...

    def say(self, message: str) -> None:
        """Tell the user one line (an inserted pass, a default taken)."""
        ...


class SilentProgress:
    """Progress that shows nothing and keeps what was said in ``lines``."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def track(self, items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
        """Yield ``items`` unseen."""
        del what, total
        yield from items

    @contextmanager
    def bar(self, what: str, total: float) -> Iterator[Bar]:
        """A bar unseen."""
        del what, total
        yield SilentBar()

    def say(self, message: str) -> None:
        """Keep the line."""
        self.lines.append(message)


@dataclass
class Context:
    """What a run gives to every pass.

    Attributes:
        task: the task of the model (columns, losses, metric), None for a graph without one.
        data: calibration or training batches, None where no pass needs them.
        eval_data: held-out batches, used to report the metric before and after.
        seed: seed of every random choice; the same seed gives the same file.
        work: folder for statistics and checkpoints, owned by the runner.
        teacher: the graph to distil from: as it was before the passes, or another that the user
            named. Not to be changed.
        progress: where to report progress.
        statistics: results that one pass leaves for later ones, by name (``"fisher"``).
        processes: those that share the work; a pass that sums over examples adds up over them.
    """

    task: Task | None = None
    data: Batches | None = None
    eval_data: Batches | None = None
    seed: int = 0
    work: Path | None = None
    teacher: Graph | None = None
    progress: Progress = field(default_factory=SilentProgress)
    statistics: dict[str, Any] = field(default_factory=dict)
    processes: Processes = field(default_factory=Processes)

    @property
    def unfinished(self) -> Path | None:
        """Where a pass of many minutes keeps what it goes on from after it was killed.

        The runner empties the folder as soon as the pass is done and its graph is saved.
        """
        return None if self.work is None else self.work / UNFINISHED


class Pass(Spec, ABC):
    """One composable step of the compiler. Subclasses are frozen dataclasses.

    Class attributes:
        name: how ``--passes``, recipes and reports call it.
        summary: one line for ``obertc passes``.
        accepts: stages of a graph that it can run on.
        produces: stage that the graph has at least reached afterwards; None if it stays.
        needs_data: whether ``run`` reads ``context.data``.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    accepts: ClassVar[frozenset[Stage]] = frozenset(Stage)
    produces: ClassVar[Stage | None] = None

    @property
    def needs_data(self) -> bool:
        """Whether ``run`` reads ``context.data``."""
        return False

    @property
    def reads_all_data(self) -> bool:
        """Whether ``run`` reads every row of the data, where others draw a sample."""
        return False

    @property
    def uses_teacher(self) -> bool:
        """Whether ``run`` reads ``context.teacher``."""
        return False

    def prerequisites(self, done: Sequence[Pass]) -> tuple[Pass, ...]:
        """Passes that must have run before and are not among ``done``; the runner inserts them."""
        del done
        return ()

    def requires(self, graph: Graph) -> None:
        """Check what must hold before; called before any work starts, and again before ``run``.

        Raises:
            GraphError: when the graph cannot take this pass.
        """
        del graph

    def leaves_alone(self, graph: Graph) -> tuple[Skip, ...]:
        """What ``run`` would skip, as far as the graph tells without data (``obertc inspect``)."""
        del graph
        return ()

    @abstractmethod
    def run(self, graph: Graph, context: Context) -> PassResult:
        """Transform ``graph``."""

    def restore(self, context: Context) -> None:
        """Re-open what ``run`` left in ``context.work``; called on resume instead of ``run``."""
        del context

    def ensures(self, result: PassResult) -> None:
        """Check what holds afterwards.

        Raises:
            GraphError: when the result breaks the promise of the pass.
        """
        del result


class Backend(Spec, ABC):
    """Writes a graph out. Subclasses are frozen dataclasses, their fields the back end's options.

    Class attributes:
        name: how ``--backend`` calls it.
        summary: one line for ``obertc backends``.
    """

    name: ClassVar[str]
    summary: ClassVar[str]

    def requires(self, graph: Graph) -> None:
        """Check that ``graph`` can be written; called before any pass runs.

        Raises:
            GraphError: when it cannot.
        """
        del graph

    @abstractmethod
    def build(self, graph: Graph) -> object:
        """The emitted model in memory."""

    @abstractmethod
    def write(self, graph: Graph, folder: Path) -> dict[str, Any]:
        """Write the model into the existing, empty ``folder``.

        Returns:
            JSON-ready figures for the report; ``bytes`` is the size of the model files.
        """
