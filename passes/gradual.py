"""The pass ``gradual``: prune and fine-tune in turns, up the cubic curve of sparsities.

The schedule of oBERT (arXiv 2203.07259): a training that is cut at prunings
(`obert_compiler.passes.gradual_schedule`), each with a Fisher of its own of the model as trained so
far, and a learning rate that may start anew there. Every pruning is one step of ``prune`` with any
of its choosers and repairs; every stretch in between is a training with what was pruned held at
zero (`obert_compiler.passes.training`).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from obert_compiler.errors import UsageError
from obert_compiler.graph.graph import Graph, Stage
from obert_compiler.passes.finetune import Finetune
from obert_compiler.passes.gradual_schedule import (
    Stretch,
    StretchRate,
    cubic_sparsities,
    epochs_of,
    seconds_left,
    steps_of,
    stretches,
)
from obert_compiler.passes.prune import Prune
from obert_compiler.passes.prune_options import Choice, read_override
from obert_compiler.passes.training import LearningRate, TrainingOptions, train
from obert_compiler.passes.training.options import DEFAULT_EPOCHS
from obert_compiler.pipeline.checkpoint import Checkpoints
from obert_compiler.pipeline.contract import Context, PassResult, Skip

if TYPE_CHECKING:
    from obert_compiler.passes.training import TrainingResult

__all__ = ["Gradual"]

_FIRST = 7 / 9
"""The first sparsity as a share of the last: 70% on the way to 90%, as in the paper."""
_LEAST_SECONDS = 1e-3
_OF_PRUNE = (
    "block",
    "method",
    "nm",
    "scope",
    "include",
    "exclude",
    "damping",
    "absolute_damping",
    "choice",
    "turns",
    "repair",
    "samples",
    "repair_samples",
    "repair_positions",
    "repair_damping",
    "repair_head",
    "memory",
)
"""Options that ``prune`` gets as they are."""


@dataclass(frozen=True)
class Gradual(TrainingOptions):
    """Prune in several steps with training between and after them.

    The options of ``finetune`` say how it trains, over all stretches together: ``epochs``,
    ``steps`` and ``budget`` are those of the whole pass, and a budget includes the prunings. The
    options of ``prune`` say how it prunes.

    Attributes:
        sparsity: share of groups that is removed in the end.
        prunings: number of pruning steps; their sparsities are on a cubic curve.
        first: sparsity of the first one, 7/9 of ``sparsity`` when not given.
        start: share of the training that comes before the first pruning.
        end: share that is done at the last pruning; what is left trains the final mask.
        rewind: learning rate that starts anew at ``each`` pruning, at the ``last`` one, or at
            ``none`` of them; ``rewinds`` gives other places.
        towards: what ``repair=rows`` brings the activations of the pruned model to: those of the
            model as ``trained`` so far, or those of the model as it came, ``dense``.
        block: as in ``prune``.
        method: as in ``prune``.
        nm: as in ``prune``; with a single pruning.
        scope: as in ``prune``.
        override: as in ``prune``; these sites follow the curve to their own sparsity.
        include: as in ``prune``.
        exclude: as in ``prune``.
        damping: as in ``prune``.
        absolute_damping: as in ``prune``.
        choice: as in ``prune``; what docs/recipes.md measures is ``single``.
        turns: as in ``prune``.
        repair: as in ``prune``.
        samples: examples for the Fisher of every pruning.
        repair_samples: as in ``prune``.
        repair_positions: as in ``prune``.
        repair_damping: as in ``prune``.
        repair_head: as in ``prune``.
        memory: as in ``prune``.
    """

    name: ClassVar[str] = "gradual"
    summary: ClassVar[str] = "prune and fine-tune in turns, on a cubic schedule of sparsities"
    accepts: ClassVar[frozenset[Stage]] = frozenset({Stage.DENSE, Stage.PRUNED})
    produces: ClassVar[Stage | None] = Stage.PRUNED

    sparsity: float | None = None
    prunings: int = 4
    first: float | None = None
    start: float = 0.0
    end: float = 0.5
    rewind: Literal["each", "last", "none"] = "none"
    towards: Literal["trained", "dense"] = "trained"
    block: int = 4
    method: Literal["fisher", "magnitude"] = "fisher"
    nm: str | None = None
    scope: Literal["global", "uniform"] = "global"
    override: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    damping: float = 2e-2
    absolute_damping: float | None = None
    choice: Choice = "single"
    turns: int = 4
    repair: Literal["auto", "rows", "fisher", "sum", "none"] = "auto"
    samples: int = 1024
    repair_samples: int = 4096
    repair_positions: int = 16
    repair_damping: float = 1e-3
    repair_head: bool = True
    memory: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, allowed in (
            ("rewind", ("each", "last", "none")),
            ("towards", ("trained", "dense")),
        ):
            if getattr(self, name) not in allowed:
                raise UsageError(
                    f"gradual: expected {name} {' or '.join(allowed)}, found "
                    f"'{getattr(self, name)}'"
                )
        if not 1 <= self.prunings <= 1000:
            raise UsageError(f"gradual: expected prunings from 1 to 1000, found {self.prunings}")
        if not 0 <= self.start <= self.end <= 1:
            raise UsageError(
                "gradual: expected start and end as shares of the training, 0 <= start <= end <= "
                f"1, found {self.start:g} and {self.end:g}"
            )
        if self.rewind != "none" and self.rewinds:
            raise UsageError("gradual: expected rewind or rewinds, found both; leave one out")
        if self.nm is not None and self.prunings != 1:
            raise UsageError(
                f"gradual: expected prunings=1 beside nm={self.nm}, which has no sparsity in "
                f"between, found {self.prunings}"
            )
        target = self._prune(self.sparsity).target
        if self.first is not None and not 0 <= self.first <= target:
            raise UsageError(
                f"gradual: expected first between 0 and the sparsity {target:g}, found {self.first}"
            )
        needed = sum(part.share > 0 for part in self.parts)
        if self.steps is not None and self.steps < needed:
            raise UsageError(
                f"gradual: expected steps of at least {needed}, one for each stretch between "
                f"prunings, found {self.steps}; raise steps or lower prunings"
            )

    # -- the schedule -----------------------------------------------------------------------------

    @property
    def target(self) -> float:
        """Share of groups that is removed in the end."""
        return self._prune(self.sparsity).target

    @property
    def sparsities(self) -> list[float]:
        """The sparsity of each pruning."""
        first = _FIRST * self.target if self.first is None else self.first
        return cubic_sparsities(first, self.target, self.prunings)

    @property
    def parts(self) -> list[Stretch]:
        """The training, cut at the prunings."""
        return stretches(self.prunings, self.start, self.end)

    @property
    def whole_rate(self) -> LearningRate:
        """The learning rate over the whole pass."""
        moments = [part.start for part in self.parts if part.prunings and 0 < part.start < 1]
        chosen = {"each": moments, "last": moments[-1:], "none": list(self.rewinds)}[self.rewind]
        return replace(self.schedule, rewinds=tuple(chosen))

    def _prune(self, sparsity: float | None, way: float = 1.0) -> Prune:
        """The pruning to ``sparsity``, with overrides the share ``way`` of theirs."""
        options = {name: getattr(self, name) for name in _OF_PRUNE}
        own = [read_override(item) for item in self.override]
        override = tuple(f"{pattern}@{number * way!r}" for pattern, number in own)
        return Prune(sparsity=sparsity, override=override, steps=(), **options)

    def pruning(self, number: int) -> Prune:
        """The pruning ``number``, from 0."""
        if self.nm is not None:
            return self._prune(self.sparsity)
        sparsity = self.sparsities[number]
        return self._prune(sparsity, sparsity / self.target if self.target else 1.0)

    # -- the pass ---------------------------------------------------------------------------------

    def requires(self, graph: Graph) -> None:
        """Check sites and that groups divide their rows.

        Raises:
            UsageError, GraphError: as ``prune`` and ``finetune``.
        """
        super().requires(graph)
        self.pruning(self.prunings - 1).requires(graph)

    def leaves_alone(self, graph: Graph) -> tuple[Skip, ...]:
        """Sites that are not pruned."""
        return self.pruning(self.prunings - 1).leaves_alone(graph)

    def run(self, graph: Graph, context: Context) -> PassResult:
        """Prune and train in place.

        Raises:
            UsageError, NumericsError, GraphError: as ``prune`` and `train`.
            ArtefactError: a checkpoint cannot be written, or is one of another run.
            TerminatedError: the process was told to end; a checkpoint was written.
        """
        return _Run(self, graph, context).finish()

    def ensures(self, result: PassResult) -> None:
        """Count the zero groups again, which the training must have left.

        Raises:
            GraphError: a site has fewer or more than the last pruning left.
        """
        self.pruning(self.prunings - 1).ensures(result)


class _Run:
    """One run of the pass: what is done so far, and how long it took.

    Every pruning and every training is an event with a record; a checkpoint follows each, and what
    comes next is read off the records alone, so that a run that goes on decides as the one that
    was stopped would have.
    """

    def __init__(self, options: Gradual, graph: Graph, context: Context) -> None:
        self.options, self.graph, self.context = options, graph, context
        self.records: list[dict[str, Any]] = []
        self._dense = graph.copy()
        self._checkpoints: Checkpoints | None = None
        if context.unfinished is not None:
            asked = {"pass": str(options), "seed": context.seed}
            self._checkpoints = Checkpoints(
                context.unfinished / options.name, asked, writes=context.processes.writer
            )
            found = self._checkpoints.load()
            # Every process has read it before the next one is written.
            context.processes.wait()
            if found is not None:
                self.graph = found
                self.records = self._checkpoints.records
                done = sum(record["kind"] == "pruning" for record in self.records)
                context.progress.say(
                    f"gradual: goes on after pruning {done} of {options.prunings} (checkpoint)"
                )

    def finish(self) -> PassResult:
        """Do what is not done yet."""
        parts, done = self.options.parts, len(self.records)
        events = [
            (place, number)
            for place, part in enumerate(parts)
            for number in (*part.prunings, *([None] if part.share > 0 else []))
        ]
        for place, number in events[done:]:
            if number is None:
                self._save(self._trained(parts, place))
            else:
                self._save(self._pruned(number))
        return self._result()

    def _save(self, record: dict[str, Any]) -> None:
        # The clock of one process decides for all of them how much of a budget is left.
        record["seconds"] = self.context.processes.broadcast(record["seconds"])
        if self._checkpoints is None:
            self.records.append(record)
            return
        self._checkpoints.save(self.graph, record)
        self.records = self._checkpoints.records
        self.context.processes.wait()
        folder = self.context.unfinished
        trained = record["kind"] == "training"
        if trained and folder is not None and self.context.processes.writer:
            # The graph is safe: what the training kept to go on from is not needed any more.
            shutil.rmtree(folder / self._training_name(record["part"]), ignore_errors=True)

    def _training_name(self, place: int) -> str:
        return f"{self.options.name}-{place + 1}"

    # -- one pruning ------------------------------------------------------------------------------

    def _pruned(self, number: int) -> dict[str, Any]:
        options, count = self.options, self.options.prunings
        prune = options.pruning(number)
        self.context.progress.say(
            f"gradual: pruning {number + 1} of {count}, to a sparsity of {prune.target:.1%}"
        )
        started = time.monotonic()
        # Each pruning reads other examples, and its Fisher is needed by nobody else.
        context = replace(self.context, work=None, statistics={}, seed=self.context.seed + number)
        for needed in prune.prerequisites(()):
            needed.run(self.graph, context)
        aim = self._dense if options.towards == "dense" else None
        *_, result = prune.descend(self.graph, context, aim)
        self.graph = result.graph
        self.graph.advance(Stage.PRUNED)
        return {
            "kind": "pruning",
            "number": number,
            "changed": result.changed,
            "seconds": time.monotonic() - started,
            "report": result.report,
            "skips": [[skip.subject, skip.reason] for skip in result.skips],
        }

    # -- one stretch of training ------------------------------------------------------------------

    def _trained(self, parts: Sequence[Stretch], place: int) -> dict[str, Any]:
        options, part = self.options, parts[place]
        length = self._length(parts, place)
        record: dict[str, Any] = {
            "kind": "training",
            "part": place,
            "changed": False,
            "seconds": 0.0,
            "report": None,
        }
        if length is None:
            self.context.progress.say(
                f"gradual: the budget of {options.budget} is used up; stretch {place + 1} of "
                f"{len(parts)} does not train"
            )
            return record
        last = place + 1 == len(parts)
        same = {f.name: getattr(options, f.name) for f in fields(TrainingOptions)}
        result = train(
            self.graph,
            # Other batches in each stretch, also where a stretch is less than an epoch.
            replace(self.context, seed=self.context.seed + place),
            Finetune(**same | length | {"rewinds": (), "best": options.best and last}),
            name=self._training_name(place),
            learning_rate=StretchRate.of(options.whole_rate, part),
        )
        return record | {
            "changed": True,
            "seconds": result.seconds,
            "report": _figures(result),
        }

    def _length(self, parts: Sequence[Stretch], place: int) -> dict[str, Any] | None:
        """Epochs, steps and budget of a stretch; None where no time is left for it."""
        options, part = self.options, parts[place]
        length: dict[str, Any] = {"epochs": None, "steps": None, "budget": None}
        if options.steps is not None:
            length["steps"] = steps_of(options.steps, parts)[place]
        elif options.epochs is not None or options.budget is None:
            length["epochs"] = epochs_of(options.epochs or DEFAULT_EPOCHS, part)
        if options.seconds is not None:
            used = sum(record["seconds"] for record in self.records)
            prunings = [r["seconds"] for r in self.records if r["kind"] == "pruning"]
            expected = prunings[-1] if prunings else 0.0
            seconds = seconds_left(options.seconds, used, expected, parts[place:])
            if seconds < _LEAST_SECONDS:
                return None
            length["budget"] = f"{seconds:.3f}s"
        return length

    # -- the report -------------------------------------------------------------------------------

    def _result(self) -> PassResult:
        prunings = [record for record in self.records if record["kind"] == "pruning"]
        trainings = [r for r in self.records if r["kind"] == "training" and r["report"]]
        last = prunings[-1]
        report = {
            **last["report"],
            "prunings": [
                {
                    "sparsity": record["report"]["sparsity"],
                    "predicted_loss_increase": record["report"]["predicted_loss_increase"],
                    "seconds": round(record["seconds"], 3),
                }
                for record in prunings
            ],
            "trainings": [record["report"] for record in trainings],
            "curve": _joined([record["report"] for record in trainings]),
            "training_steps": sum(record["report"]["steps"] for record in trainings),
            "seconds_training": round(sum(record["seconds"] for record in trainings), 3),
            "seconds_pruning": round(sum(record["seconds"] for record in prunings), 3),
        }
        changed = any(record["changed"] for record in self.records)
        skips = tuple(Skip(subject, reason) for subject, reason in last["skips"])
        return PassResult(self.graph, changed, report, skips)


def _figures(result: TrainingResult) -> dict[str, Any]:
    return {**result.report, "steps": result.steps}


def _joined(reports: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """The curves of all stretches one behind the other, by steps of the whole pass."""
    points: list[dict[str, float]] = []
    before = 0
    for report in reports:
        points += [point | {"step": point["step"] + before} for point in report["curve"]]
        before += report["steps"]
    return points
