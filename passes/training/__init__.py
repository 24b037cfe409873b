"""Training between and after passes: what ``finetune``, ``gradual`` and training with quantisation
share.

A pass that trains derives its dataclass from `TrainingOptions`, so that every option means the same
everywhere, and calls `train`::

    from obert_compiler.passes.training import train

    result = train(graph, context, self)

Nothing here imports torch before `train` is called. `losses`, `schedule` and `budget` are
mathematics on tensors and numbers: they know no graph and no Trainer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from obert_compiler.passes.training.options import TrainingOptions
from obert_compiler.passes.training.result import TrainingResult
from obert_compiler.passes.training.schedule import LearningRate

if TYPE_CHECKING:
    import torch
    from transformers import TrainerCallback

    from obert_compiler.backends.torch import OnnxModule
    from obert_compiler.graph.graph import Graph
    from obert_compiler.pipeline.contract import Context

__all__ = ["LearningRate", "TrainingOptions", "TrainingResult", "train"]


def train(
    graph: Graph,
    context: Context,
    options: TrainingOptions,
    *,
    name: str = "finetune",
    module: OnnxModule | None = None,
    teacher: Graph | None = None,
    masks: Mapping[str, torch.Tensor] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    on_share: Callable[[float], None] | None = None,
    learning_rate: LearningRate | None = None,
    write_back: bool = True,
) -> TrainingResult:
    """Train the parameters of ``graph`` on ``context.data``, with the Trainer of transformers.

    Where ``context.work`` is a folder, checkpoints are kept under ``context.unfinished`` and a run
    that finds one there goes on from it: the end is bit-equal to that of a run that was not
    stopped, on the same machine, with the same number of processes, where steps or epochs (and not
    a time budget) decide when it ends.

    Args:
        graph: what to train; its initializers are replaced when the training is done.
        context: data, task, seed, progress, and the graph before the passes.
        options: how.
        name: name of the training in progress bars and of its folder of checkpoints; trainings of
            one pass have names of their own.
        module: the module to train instead of ``to_module`` of `tapped_graph`; its parameters are
            changed in place. The module of a student with hidden-state losses must have been built
            from ``tapped_graph(graph, options)``.
        teacher: the graph to distil from; by default ``context.teacher``, the graph before the
            passes unless the user named another.
        masks: for each parameter name of the module that is pruned, a tensor that is True or 1
            where a weight is kept. By default the zeros of the Linear sites of a pruned graph; an
            empty mapping masks nothing.
        callbacks: more callbacks for the Trainer.
        on_share: called before each step with the share of the training that is done, 0 to 1,
            whether steps or time decide its end; after a resume too.
        learning_rate: another schedule than that of the options.
        write_back: False leaves ``graph`` as it was; the trained parameters are in ``module``.

    Raises:
        UsageError: there are no data, no teacher, or no labels for the task's loss.
        DataError: the data do not fit the model.
        NumericsError: a loss or a gradient is not finite; names step and site.
        ArtefactError: a checkpoint cannot be written, or is one of another training.
        TerminatedError: the process was told to end; a checkpoint was written.
    """
    from obert_compiler.passes.training.run import Training

    training = Training(
        graph,
        context,
        options,
        name=name,
        module=module,
        teacher=teacher,
        masks=masks,
        learning_rate=learning_rate,
    )
    return training.run(callbacks, on_share=on_share, write_back=write_back)


def __getattr__(name: str) -> Any:
    """`tapped_graph` and `zero_masks`, which import torch, when they are asked for."""
    if name == "tapped_graph":
        from obert_compiler.passes.training.taps import tapped_graph

        return tapped_graph
    if name == "zero_masks":
        from obert_compiler.passes.training.masks import zero_masks

        return zero_masks
    raise AttributeError(name)
