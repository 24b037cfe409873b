"""One compile from model to folder: lower, measure, run the passes, write, measure, report.

This is what ``obertc compile`` does. A program that wants the steps one by one uses
`obert_compiler.lower`, `PassManager` and `emit`.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from obert_compiler.emission import backend_from_text, check_out, new_folder
from obert_compiler.errors import ArtefactError, DataError, UsageError
from obert_compiler.frontends import lower
from obert_compiler.frontends.teacher import lower_teacher
from obert_compiler.graph.graph import Graph
from obert_compiler.graph.verify import verify
from obert_compiler.pipeline import registry
from obert_compiler.pipeline.checkpoint import Checkpoints, has_progress
from obert_compiler.pipeline.contract import Backend, Progress, SilentProgress
from obert_compiler.pipeline.manager import PassManager
from obert_compiler.pipeline.measure import Meter
from obert_compiler.pipeline.plan import Step
from obert_compiler.pipeline.processes import Processes
from obert_compiler.pipeline.recipe import Recipe, write_recipe
from obert_compiler.report.build import build_report, describe_model, write_report
from obert_compiler.runtime.bench import bench
from obert_compiler.runtime.cpu import cpu_name, default_threads
from obert_compiler.runtime.evaluate import evaluate
from obert_compiler.tasks import task_for

if TYPE_CHECKING:
    from obert_compiler.data.batches import Batches
    from obert_compiler.tasks.base import Task

__all__ = ["DEFAULT_PASSES", "CompileResult", "compile_model"]

DEFAULT_PASSES = ("prune", "quant", "pack")

_SAMPLES = 1024
"""Rows read from the data where no option and no pass says another number."""


@dataclass(frozen=True)
class CompileResult:
    """What a compile made.

    Attributes:
        folder: the artefact.
        report: the content of its report.json.
    """

    folder: Path
    report: dict[str, Any]


def compile_model(
    recipe: Recipe,
    out: Path | str,
    *,
    model: object | None = None,
    resume: bool = False,
    overwrite: bool = False,
    latency: bool = True,
    threads: int | None = None,
    progress: Progress | None = None,
    processes: Processes | None = None,
) -> CompileResult:
    """Compile a model into the folder ``out``, which appears complete or not at all.

    Args:
        recipe: model, passes, data and options.
        out: folder to make.
        model: a `Graph` to compile instead of ``recipe.model``.
        resume: go on from the checkpoint that a killed run left beside ``out``.
        overwrite: replace an existing ``out`` once the new one is complete.
        latency: measure latency before and after.
        threads: threads for evaluation and latency; all cores by default.
        progress: where to report.
        processes: those that share the work. Each makes this call with the same arguments; one of
            them writes, measures and reports. They see ``out`` on one file system.

    Raises:
        UsageError: an option, a pass or their order is wrong; nothing was written.
        FailureError: the work could not be done; an earlier ``out`` is as it was.
    """
    out = Path(out)
    manager = PassManager([p for text in recipe.passes for p in registry.passes_from_text(text)])
    backend = backend_from_text(recipe.backend)
    processes = processes or Processes()
    told = _Notes(progress or SilentProgress())
    with _work_folder(out, processes, overwrite=overwrite) as work:
        checkpoints = Checkpoints(work, _fingerprint(recipe), writes=processes.writer)
        graph = None
        if processes.writer:
            graph = _resumed(checkpoints, told) if resume else None
            if graph is None:
                if has_progress(work):
                    told.say(
                        "the checkpoint of an earlier run is discarded; --resume would go on from "
                        "it"
                    )
                checkpoints.clear()
                graph = _lowered(recipe, model, manager, backend, checkpoints)
        processes.wait()
        if graph is None:
            graph = _followed(checkpoints)
        task = task_for(graph.source, recipe.task)
        steps = manager.steps(graph, checkpoints)
        data = _data(recipe, graph, task, steps, told)
        _check_same_data(data, processes)
        eval_data = _eval_data(recipe, graph, task)
        teacher = _teacher(recipe, graph, steps, told)
        if processes.writer:
            _measure_before(checkpoints, graph, eval_data, threads, told)
        graph = manager.run(
            graph,
            data=data,
            task=task,
            eval_data=eval_data,
            teacher=teacher,
            seed=recipe.seed,
            work=work,
            checkpoints=checkpoints,
            progress=told,
            processes=processes,
        )
        report: dict[str, Any] = {}
        if processes.writer:
            with new_folder(out, overwrite=overwrite) as folder:
                emitted = _emit(graph, backend, checkpoints, folder)
                measured = _measure(checkpoints, emitted, eval_data, threads, latency, told)
                report = _report(
                    recipe, graph, manager, checkpoints, emitted, measured, threads, told.lines
                )
                write_recipe(recipe, folder / "recipe.yaml")
                write_report(report, folder)
        report = processes.broadcast(report)
    if processes.writer:
        shutil.rmtree(work, ignore_errors=True)
    return CompileResult(out, report)


class _Notes:
    """Progress that also keeps the lines said, for the report."""

    def __init__(self, inner: Progress) -> None:
        self._inner = inner
        self.lines: list[str] = []
        self.track = inner.track
        self.bar = inner.bar

    def say(self, message: str) -> None:
        self.lines.append(message)
        self._inner.say(message)


@contextmanager
def _work_folder(out: Path, processes: Processes, *, overwrite: bool) -> Iterator[Path]:
    """The folder beside ``out`` that keeps checkpoints, held by one run at a time.

    A run that fails before its first pass is finished leaves none: there is nothing to resume.
    """
    work = out.absolute().parent / f".{out.name}.obertc"
    if not processes.writer:
        yield work
        return
    check_out(out, overwrite=overwrite)
    work.mkdir(exist_ok=True)
    with (work.parent / f".{out.name}.obertc.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(
                f"output '{out}': another compile is writing it; wait for it or choose another name"
            ) from error
        try:
            yield work
        except BaseException:
            if not has_progress(work):
                shutil.rmtree(work, ignore_errors=True)
            raise
        finally:
            Path(lock.name).unlink(missing_ok=True)


def _fingerprint(recipe: Recipe) -> dict[str, Any]:
    """What must be equal for a checkpoint to be resumed."""
    described = dataclasses.asdict(recipe)
    described["passes"] = list(recipe.passes)
    return described


def _resumed(checkpoints: Checkpoints, told: Progress) -> Graph | None:
    graph = checkpoints.load()
    if graph is None:
        told.say("no checkpoint to resume from; starting at the beginning")
    return graph


def _followed(checkpoints: Checkpoints) -> Graph:
    """The graph that another process has put among its checkpoints."""
    graph = checkpoints.load()
    if graph is None:
        raise ArtefactError(
            f"checkpoint '{checkpoints.folder}': expected the one that the first process wrote, "
            "found none; processes on several machines need the output on a file system that all "
            "of them see"
        )
    return graph


def _check_same_data(data: Batches | None, processes: Processes) -> None:
    """Processes that read other examples would add up sums of different things."""
    if data is None or processes.count == 1:
        return
    digest = hashlib.sha256()
    for example in data.examples:
        for name, array in [*example.inputs.items(), *(example.labels or {}).items()]:
            digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    found = processes.gather(digest.hexdigest())
    others = [rank for rank, digest_of in enumerate(found) if digest_of != found[0]]
    if others:
        raise DataError(
            f"data '{data.origin}': expected the same examples in every process, found others in "
            f"rank {others[0]} than in rank 0; give every machine the same files"
        )


def _lowered(
    recipe: Recipe,
    model: object | None,
    manager: PassManager,
    backend: Backend,
    checkpoints: Checkpoints,
) -> Graph:
    with Meter() as meter:
        if isinstance(model, Graph):
            graph = model
        elif recipe.model is None:
            raise UsageError("model: expected a folder, a hub id or an .onnx file, found none")
        else:
            graph = lower(
                recipe.model,
                task=recipe.task,
                tokenizer=recipe.tokenizer,
                new_head=recipe.new_head,
            )
        verify(graph, graph.stage)
    manager.steps(graph)
    backend.requires(graph)
    checkpoints.save(graph)
    checkpoints.note("model", describe_model(graph), graph.source)
    checkpoints.note("lowering", meter.figures(), graph.source)
    return graph


def _data(
    recipe: Recipe, graph: Graph, task: Task | None, steps: list[Step], told: Progress
) -> Batches | None:
    """Batches for the passes: the data given, or the text that ships with the package."""
    wants = [s.run.name for s in steps if s.run.needs_data]
    if recipe.data is None and not wants:
        return None
    from obert_compiler.data.batches import Batches

    if recipe.data is not None:
        limit: int | None
        asked = [getattr(s.run, n, 0) for s in steps for n in ("samples", "repair_samples")]
        limit = recipe.samples or max([_SAMPLES, *asked])
        if recipe.samples is None and any(s.run.reads_all_data for s in steps):
            limit = None
        data = _open(recipe, recipe.data, graph, task, limit)
        remark = task and task.remark_on(data.examples)
        if remark:
            told.say(f"data '{recipe.data}': {remark}")
        return data
    tokenizer = _tokenizer(recipe, graph)
    if task is None or tokenizer is None:
        raise UsageError(
            f"pass '{wants[0]}': expected data, found none, and the model has no "
            f"{'task' if task is None else 'tokenizer'} for the shipped text; give --data FILE "
            "(.npz with one array per input), or --task and --tokenizer"
        )
    data = Batches.calibration(
        task,
        tokenizer,
        max_length=recipe.seq_len,
        limit=recipe.samples,
        seed=recipe.seed,
    )
    told.say(
        f"no data given: {' and '.join(dict.fromkeys(wants))} use {len(data.examples)} passages of "
        "text that ships with the package, labels drawn from the model itself; --data FILE with "
        "text of your own task is better"
    )
    return data


def _open(
    recipe: Recipe, source: str, graph: Graph, task: Task | None, limit: int | None
) -> Batches:
    from obert_compiler.data.batches import Batches

    if source.endswith(".npz"):
        return Batches.from_arrays(source, limit=limit)
    tokenizer = _tokenizer(recipe, graph)
    if task is None or tokenizer is None:
        missing, option = ("task", "--task") if task is None else ("tokenizer", "--tokenizer")
        raise UsageError(
            f"data '{source}': the model has no {missing} to read it with; give {option}, or an "
            ".npz file with one array per input"
        )
    return Batches.open(
        source, task, tokenizer, max_length=recipe.seq_len, limit=limit, seed=recipe.seed
    )


def _tokenizer(recipe: Recipe, graph: Graph) -> str | Path | None:
    return recipe.tokenizer or graph.source.folder


def _eval_data(recipe: Recipe, graph: Graph, task: Task | None) -> Batches | None:
    if recipe.eval_data is None:
        return None
    return _open(recipe, recipe.eval_data, graph, task, None)


def _teacher(recipe: Recipe, graph: Graph, steps: list[Step], told: Progress) -> Graph | None:
    """The model named by ``--teacher``; None for the model as it was before the passes."""
    if recipe.teacher is None:
        return None
    if not any(step.run.uses_teacher for step in steps):
        raise UsageError(
            f"teacher '{recipe.teacher}': expected a pass that learns from it, such as finetune, "
            "found none; leave --teacher out"
        )
    told.say(f"lowering the teacher '{recipe.teacher}'")
    return lower_teacher(recipe.teacher, graph, task=recipe.task, tokenizer=recipe.tokenizer)


def _measure_before(
    checkpoints: Checkpoints,
    graph: Graph,
    eval_data: Batches | None,
    threads: int | None,
    told: Progress,
) -> None:
    if eval_data is None or "metric" in checkpoints.notes:
        return
    told.say(f"evaluating the model as it came on {eval_data.describe()}")
    found = evaluate(
        checkpoints.lowered_model, eval_data, engine="cpu", threads=threads, progress=told
    )
    checkpoints.note("metric", {"name": found.metric_name, "before": found.value}, graph.source)


@dataclass(frozen=True)
class _Emitted:
    """What the back end wrote, and an ONNX file of the same graph to measure."""

    report: dict[str, Any]
    model: Path


def _emit(graph: Graph, backend: Backend, checkpoints: Checkpoints, folder: Path) -> _Emitted:
    backend.requires(graph)
    with Meter() as meter:
        report = backend.write(graph, folder)
    checkpoints.note("writing", meter.figures(), graph.source)
    emitted = folder / "model.onnx"
    return _Emitted(report, emitted if emitted.exists() else checkpoints.latest_model)


@dataclass(frozen=True)
class _Measured:
    """Metric and latency before and after, and what the engine took, as the report holds them."""

    metric: dict[str, Any] | None
    latency: dict[str, Any] | None
    engine: dict[str, Any] | None


def _measure(
    checkpoints: Checkpoints,
    emitted: _Emitted,
    eval_data: Batches | None,
    threads: int | None,
    with_latency: bool,
    told: Progress,
) -> _Measured:
    metric = latency = engine = None
    if eval_data is not None:
        told.say("evaluating the compiled model")
        found = evaluate(emitted.model, eval_data, threads=threads, progress=told)
        metric = checkpoints.notes["metric"] | {"after": found.value, "examples": found.examples}
    if with_latency:
        told.say("timing both models in turn")
        found_ms = bench(
            emitted.model,
            checkpoints.lowered_model,
            against_engine="cpu",
            threads=threads,
            progress=told,
        )
        if found_ms.reason:
            told.say(f"the engine is not used: {found_ms.reason}")
        timed = found_ms.to_dict()
        latency = {key: timed[key] for key in ("batch", "sequence", "threads", "ratio")}
        latency |= {"before_ms": timed["against_ms"], "after_ms": timed["model_ms"]}
        latency |= {"before_engine": timed["against_engine"], "after_engine": timed["engine"]}
        engine = timed["claims"]
    return _Measured(metric, latency, engine)


def _report(
    recipe: Recipe,
    graph: Graph,
    manager: PassManager,
    checkpoints: Checkpoints,
    emitted: _Emitted,
    measured: _Measured,
    threads: int | None,
    notes: list[str],
) -> dict[str, Any]:
    report = build_report(
        model=checkpoints.notes["model"],
        graph=graph,
        passes=manager.records,
        recipe=_fingerprint(recipe),
        bytes_after=emitted.report["bytes"],
        metric=measured.metric,
        latency=measured.latency,
        engine=measured.engine,
        notes=notes,
        cpu=cpu_name(),
        threads=threads or default_threads(),
    )
    report["lowering"] = checkpoints.notes["lowering"]
    report["writing"] = checkpoints.notes["writing"]
    return report
