"""The runner: takes a graph through passes, and owns everything that is not a transformation.

For each step: check the stage, run, record the stage reached, verify the graph, check the promise
of the pass, measure time and memory, and keep a checkpoint.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from obert_compiler.errors import UsageError
from obert_compiler.graph.graph import Graph
from obert_compiler.graph.verify import verify
from obert_compiler.pipeline.checkpoint import Checkpoints
from obert_compiler.pipeline.contract import Context, Pass, Progress, SilentProgress
from obert_compiler.pipeline.measure import Meter
from obert_compiler.pipeline.plan import Step, plan
from obert_compiler.pipeline.processes import Processes
from obert_compiler.pipeline.registry import passes_from_text

if TYPE_CHECKING:
    from obert_compiler.data.batches import Batches
    from obert_compiler.tasks.base import Task

__all__ = ["PassManager"]


class PassManager:
    """Runs passes in order.

    Args:
        passes: passes, or their text such as ``"prune:sparsity=0.9,quant"``.

    Attributes:
        records: one JSON-ready dictionary per step that ran (see docs/artefact.md, "passes").
    """

    def __init__(self, passes: Sequence[Pass] | str) -> None:
        self.passes = passes_from_text(passes) if isinstance(passes, str) else list(passes)
        self.records: list[dict[str, Any]] = []

    def steps(self, graph: Graph, checkpoints: Checkpoints | None = None) -> list[Step]:
        """Every pass in order, prerequisites included; a resumed run keeps its first plan.

        Raises:
            UsageError: the order of passes is wrong.
            GraphError: the graph cannot take a pass.
        """
        if checkpoints is not None and checkpoints.records:
            first = checkpoints.records[0]["plan"]
            return [Step(passes_from_text(text)[0], wanted_by) for text, wanted_by in first]
        return plan(self.passes, graph)

    def run(
        self,
        graph: Graph,
        *,
        data: Batches | None = None,
        task: Task | None = None,
        eval_data: Batches | None = None,
        teacher: Graph | None = None,
        seed: int = 0,
        work: Path | None = None,
        checkpoints: Checkpoints | None = None,
        progress: Progress | None = None,
        processes: Processes | None = None,
    ) -> Graph:
        """Take ``graph`` through the passes; the graph given is left as it was.

        Args:
            graph: the graph to compress.
            data: batches for calibration and Fisher.
            task: the task whose loss Fisher differentiates.
            eval_data: held-out batches, which training reports the metric on.
            teacher: the graph that training distils from; by default ``graph`` as it was before
                the first pass, also in a resumed run.
            seed: seed of every random choice.
            work: folder for statistics; a temporary one by default.
            checkpoints: where to keep the graph after each step; steps recorded there are restored
                instead of run again.
            progress: where to report.
            processes: those that share the work; each runs this with the same arguments and ends
                with the same graph.

        Raises:
            UsageError: the order of passes is wrong, or data is missing.
            GraphError: the graph cannot take a pass, or a pass broke a rule.
        """
        progress = progress or SilentProgress()
        finished = [] if checkpoints is None else list(checkpoints.records)
        steps = self.steps(graph, checkpoints)
        _check_data(steps, data)
        if teacher is None and any(step.run.uses_teacher for step in steps[len(finished) :]):
            teacher = graph if checkpoints is None or not finished else checkpoints.lowered()
        context = Context(
            task=task,
            data=data,
            eval_data=eval_data,
            seed=seed,
            work=work,
            teacher=teacher,
            progress=progress,
            processes=processes or Processes(),
        )
        self.records = finished
        for step in steps[: len(finished)]:
            step.run.restore(context)
            progress.say(f"'{step.run}' is done already (checkpoint)")
        for number, step in enumerate(steps[len(finished) :]):
            if step.wanted_by is not None:
                progress.say(f"'{step.run}' runs first, because '{step.wanted_by}' needs it")
            # The first step must not touch the caller's graph, which may be the teacher.
            graph = self._run_step(step, graph.copy() if number == 0 else graph, context, steps)
            if checkpoints is not None:
                checkpoints.save(graph, self.records[-1])
            if context.unfinished is not None:
                if context.processes.writer:
                    shutil.rmtree(context.unfinished, ignore_errors=True)
                # The next pass must not find what this one left.
                context.processes.wait()
        return graph

    def _run_step(self, step: Step, graph: Graph, context: Context, steps: list[Step]) -> Graph:
        step.run.requires(graph)
        with Meter() as meter:
            result = step.run.run(graph, context)
        if step.run.produces is not None:
            result.graph.advance(step.run.produces)
        verify(result.graph, result.graph.stage)
        step.run.ensures(result)
        self.records.append(
            {
                "name": step.run.name,
                "spec": str(step.run),
                "inserted": step.wanted_by is not None,
                "wanted_by": step.wanted_by,
                "plan": [[str(s.run), s.wanted_by] for s in steps],
                **meter.figures(),
                "changed": result.changed,
                "report": result.report,
                "skips": [dataclasses.asdict(skip) for skip in result.skips],
            }
        )
        return result.graph


def _check_data(steps: list[Step], data: Batches | None) -> None:
    for step in steps:
        if step.run.needs_data and data is None:
            raise UsageError(
                f"pass '{step.run.name}': expected data, found none; give data= (--data FILE), or "
                "lower the model with its tokenizer so that the shipped text can be used"
            )
