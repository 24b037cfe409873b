"""The plan of a run: the passes asked for, what they need in front, and the stages they lead to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from obert_compiler.errors import UsageError
from obert_compiler.graph.graph import Graph, Stage
from obert_compiler.pipeline.contract import Pass

__all__ = ["Step", "accepted_stages", "plan"]


@dataclass(frozen=True)
class Step:
    """One pass of a plan.

    Attributes:
        run: the pass.
        wanted_by: name of the pass that needs it, None when the user asked for it.
    """

    run: Pass
    wanted_by: str | None = None


def plan(passes: Sequence[Pass], graph: Graph) -> list[Step]:
    """Put prerequisites in front of the passes that need them, and check the order of stages.

    Raises:
        UsageError: a pass does not accept the stage that the graph has when its turn comes.
        GraphError: a pass cannot take this graph.
    """
    steps: list[Step] = []
    for wanted in passes:
        done = [step.run for step in steps]
        steps += [Step(needed, wanted.name) for needed in wanted.prerequisites(done)]
        steps.append(Step(wanted))
    stage, reached_by = graph.stage, ""
    for step in steps:
        _check_stage(step.run, stage, reached_by)
        if step.run.produces is not None and step.run.produces.rank >= stage.rank:
            stage, reached_by = step.run.produces, step.run.name
        step.run.requires(graph)
    return steps


def accepted_stages(step: Pass | type[Pass]) -> str:
    """The stages that a pass takes, in words."""
    return " or ".join(stage.value for stage in Stage if stage in step.accepts)


def _check_stage(step: Pass, stage: Stage, reached_by: str) -> None:
    if stage in step.accepts:
        return
    accepted = accepted_stages(step)
    if reached_by == step.name:
        remedy = f"'{step.name}' stands twice; keep one"
    elif reached_by:
        remedy = f"move '{step.name}' before '{reached_by}'"
    else:
        remedy = "start from the model as it was before it was compiled"
    found = f"one that is {stage.value}" + (f" by '{reached_by}'" if reached_by else " already")
    raise UsageError(
        f"pass '{step.name}': expected a graph that is {accepted}, found {found}; {remedy}"
    )
