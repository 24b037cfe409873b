"""One training from a graph to its trained parameters (`obert_compiler.passes.training.train`)."""

from __future__ import annotations

import contextlib
import hashlib
import math
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from obert_compiler.backends.torch.module import OnnxModule, from_module, to_module
from obert_compiler.data.batches import Batches
from obert_compiler.errors import DataError, TerminatedError, UsageError
from obert_compiler.passes.training.budget import parse_interval
from obert_compiler.passes.training.checkpoints import check_identity, last_checkpoint
from obert_compiler.passes.training.clock import Clock
from obert_compiler.passes.training.data import BatchCollator, EpochSampler, digest_of_data
from obert_compiler.passes.training.evaluation import Evaluation
from obert_compiler.passes.training.frozen import freeze_tables
from obert_compiler.passes.training.loggers import logging_folder
from obert_compiler.passes.training.masks import Masks, zero_masks
from obert_compiler.passes.training.objective import TrainingObjective
from obert_compiler.passes.training.options import DEFAULT_EPOCHS, TrainingOptions
from obert_compiler.passes.training.pairs import Pairs, pairs_of
from obert_compiler.passes.training.precision import uses_bfloat16
from obert_compiler.passes.training.result import TrainingResult
from obert_compiler.passes.training.taps import Taps, tapped_graph
from obert_compiler.passes.training.teacher import Teacher, outputs_by_token
from obert_compiler.passes.training.trainer import GraphTrainer
from obert_compiler.passes.training.watch import BestWeights, Shares, Watch, trained_state

if TYPE_CHECKING:
    from obert_compiler.graph.graph import Graph
    from obert_compiler.passes.training.schedule import LearningRate
    from obert_compiler.pipeline.contract import Context

__all__ = ["Prepared", "Training"]

_CURVE_POINTS = 200
_STEPS_OF_A_BUDGET = 10 * _CURVE_POINTS
"""Stands for the number of steps where time decides: how often is logged."""
_ENDLESS = 10**9


@dataclass(frozen=True)
class Prepared:
    """What a training consists of.

    Attributes:
        trainer: the Trainer.
        clock, watch, best: its callbacks; ``best`` is None where the last weights are kept.
        epoch_steps: steps in an epoch.
    """

    trainer: GraphTrainer
    clock: Clock
    watch: Watch
    best: BestWeights | None
    epoch_steps: int


class Training:
    """See `obert_compiler.passes.training.train` for the arguments."""

    def __init__(
        self,
        graph: Graph,
        context: Context,
        options: TrainingOptions,
        *,
        name: str,
        module: OnnxModule | None = None,
        teacher: Graph | None = None,
        masks: Mapping[str, torch.Tensor] | None = None,
        learning_rate: LearningRate | None = None,
    ) -> None:
        if context.data is None:
            raise UsageError(f"{name}: expected data, found none; give --data FILE")
        self.graph, self.context, self.options, self.name = graph, context, options, name
        self.data = context.data
        self._pairs = _pairs(context.data, options, name)
        self._schedule = learning_rate or options.schedule
        tapped, self._taps = tapped_graph(graph, options)
        self.module = to_module(tapped) if module is None else module
        self.masks = Masks(self.module, zero_masks(self.module, graph) if masks is None else masks)
        self.masks.apply_to_weights()
        if not options.tables:
            freeze_tables(self.module, graph)
        self._teacher_graph = self._find_teacher(teacher)
        self._input_names = [v.name or "" for v in graph.model.graph.inputs]

    def _find_teacher(self, given: Graph | None) -> Graph | None:
        if not self.options.uses_teacher:
            return None
        teacher = given or self.context.teacher
        if teacher is None:
            raise UsageError(
                f"{self.name}: expected a teacher, the graph before the passes, found none; give "
                "context.teacher, or hardness=0"
            )
        return teacher

    def run(
        self,
        callbacks: Sequence[TrainerCallback],
        *,
        on_share: Callable[[float], None] | None,
        write_back: bool,
    ) -> TrainingResult:
        """Train."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(_own_randomness())
            stack.enter_context(logging_folder(self.name))
            prepared = self.prepare(self._folder(stack), callbacks, on_share)
            clock, best = prepared.clock, prepared.best
            prepared.watch.bar = stack.enter_context(
                self.context.progress.bar(self.name, clock.total)
            )
            stack.callback(_undo_wrapping, prepared.trainer)
            self._train(prepared)
            result = self._result(prepared)
        if best is not None and best.weights is not None:
            with torch.no_grad():
                for name, value in trained_state(self.module).items():
                    value.copy_(best.weights[name])
        self.module.to("cpu")
        self.masks.check()
        if write_back:
            from_module(self.module, self.graph)
        return result

    def prepare(
        self,
        folder: Path,
        callbacks: Sequence[TrainerCallback] = (),
        on_share: Callable[[float], None] | None = None,
    ) -> Prepared:
        """Everything that a training consists of; checkpoints go into ``folder``."""
        arguments = self._arguments(folder)
        examples, world = len(self.data.examples), arguments.world_size
        sampler = EpochSampler(
            [example.length for example in self.data.examples],
            self.options.batch_size * world,
            self.context.seed,
            None if self._pairs is None else self._pairs.members,
        )
        epoch_steps = math.ceil(examples / (self.options.batch_size * world))
        total = self._total_steps(epoch_steps)
        arguments.max_steps = total or _ENDLESS
        arguments.logging_steps = max(1, (total or _STEPS_OF_A_BUDGET) // _CURVE_POINTS)
        evaluation = self._evaluation()
        clock = self._clock(total, epoch_steps, evaluates=evaluation is not None)
        best = None
        if self.options.best and evaluation is not None:
            best = BestWeights(evaluation.metric_name, evaluation.higher_is_better)
        watch = Watch(self.name, clock, self.context.progress, self.masks.sparsity())
        own: list[TrainerCallback] = [clock, watch, *([best] if best else [])]
        if on_share is not None:
            own.append(Shares(clock, on_share))
        trainer = GraphTrainer(
            self.name,
            self.module,
            arguments,
            self.data,
            sampler,
            self._input_names,
            *self._objective_and_teacher(sampler),
            self.masks,
            lambda step: self._schedule.factor(clock.share(step)),
            evaluation,
            [*own, *callbacks],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.kept_beside = [clock.save, *([best.save] if best else [])]
        return Prepared(trainer, clock, watch, best, epoch_steps)

    def _train(self, prepared: Prepared) -> None:
        trainer, clock, best = prepared.trainer, prepared.clock, prepared.best
        folder = Path(str(trainer.args.output_dir))
        last, done = None, False
        if self.context.unfinished is not None:
            identity = self._identity(trainer.args.world_size)
            check_identity(folder, identity, write=self.context.processes.writer)
            last = last_checkpoint(folder)
            # Every process has seen which checkpoint is the last before another is written.
            self.context.processes.wait()
        if last is not None:
            done = clock.load(last)
            if best is not None:
                best.load(last)
            self.context.progress.say(
                f"{self.name}: goes on from step {last.name.rpartition('-')[2]} (checkpoint)"
            )
        if done:
            trainer.restore(str(last))
            return
        with clock.listening():
            trainer.train(resume_from_checkpoint=None if last is None else str(last))
        if clock.terminated:
            kept = "" if self.context.unfinished is None else "; run again with --resume"
            raise TerminatedError(
                f"{self.name}: told to end (SIGTERM), and stopped after step "
                f"{trainer.state.global_step}{kept}"
            )

    # -- parts ------------------------------------------------------------------------------------

    def _folder(self, stack: contextlib.ExitStack) -> Path:
        if self.context.unfinished is None:
            return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="obert-training-")))
        folder = self.context.unfinished / self.name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _arguments(self, folder: Path) -> TrainingArguments:
        options = self.options
        cuda = torch.cuda.is_available()
        bfloat16 = uses_bfloat16(options.precision, self.name)
        return TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            weight_decay=options.weight_decay,
            max_grad_norm=options.clip,
            seed=self.context.seed,
            bf16=bfloat16,
            use_cpu=not cuda,
            dataloader_pin_memory=cuda,
            remove_unused_columns=False,
            label_names=[],
            eval_strategy="no",
            save_strategy="no",
            logging_strategy="steps",
            report_to=list(options.log_to) or "none",
            disable_tqdm=True,
            ddp_find_unused_parameters=True,
            max_steps=1,
        )

    def _total_steps(self, epoch_steps: int) -> int | None:
        options = self.options
        if options.steps is not None:
            return options.steps
        if options.epochs is None and options.budget is not None:
            return None
        epochs = DEFAULT_EPOCHS if options.epochs is None else options.epochs
        return max(1, math.ceil(epochs * epoch_steps))

    def _clock(self, total: int | None, epoch_steps: int, *, evaluates: bool) -> Clock:
        keeps = self.context.unfinished is not None
        steps, seconds = parse_interval(self.options.checkpoint, f"{self.name}: checkpoint")
        return Clock(
            total,
            self.options.seconds,
            save_steps=steps if keeps else None,
            save_seconds=seconds if keeps else None,
            saves=keeps,
            epoch_steps=epoch_steps,
            evaluates=evaluates,
        )

    def _evaluation(self) -> Evaluation | None:
        data, task = self.context.eval_data, self.context.task
        if data is None or task is None or not data.has_targets:
            if self.options.best:
                raise UsageError(
                    f"{self.name}: expected held-out data with labels for best=true, found none; "
                    "give --eval-data FILE"
                )
            return None
        if not self.options.evaluate and not self.options.best:
            return None
        return Evaluation(task, data, self._input_names)

    def _objective_and_teacher(
        self, sampler: EpochSampler
    ) -> tuple[TrainingObjective, Teacher | None]:
        graph = self._teacher_graph
        if graph is None:
            return self._objective(Taps()), None
        tapped, taps = tapped_graph(graph, self.options)
        teacher = Teacher(
            to_module(tapped),
            [v.name or "" for v in graph.model.graph.inputs],
            BatchCollator(self.data),
            sampler.order(0),
            self.options.batch_size,
            token_outputs=outputs_by_token(graph) if tapped is graph else None,
            bfloat16=uses_bfloat16(self.options.precision, self.name),
        )
        return self._objective(taps), teacher

    def _objective(self, teacher: Taps) -> TrainingObjective:
        task, options = self.context.task, self.options
        return TrainingObjective(task, options, self._taps, teacher, self._pairs)

    def _identity(self, world: int) -> dict[str, Any]:
        """All that decides the result."""
        teacher = self._teacher_graph
        return {
            "passes": str(self.options),
            "model": _digest({n: p.detach() for n, p in self.module.named_parameters()}),
            "masks": _digest(self.masks.tensors()),
            "teacher": None if teacher is None else _digest_of_graph(teacher),
            "data": digest_of_data(self.data),
            "seed": self.context.seed,
            "number of processes": world,
        }

    def _result(self, prepared: Prepared) -> TrainingResult:
        trainer, clock, best = prepared.trainer, prepared.clock, prepared.best
        epoch_steps = prepared.epoch_steps
        steps = trainer.state.global_step
        curve = _curve(trainer.state.log_history)
        losses = [point["loss"] for point in curve if "loss" in point]
        metric: dict[str, float] = {}
        for entry in trainer.state.log_history:
            found = {k.removeprefix("eval_"): v for k, v in entry.items() if k.startswith("eval_")}
            metric = found or metric
        loss = losses[-1] if losses else None
        report: dict[str, Any] = {
            "steps": steps,
            "epochs": round(steps / epoch_steps, 3),
            "examples": len(self.data.examples),
            "batch_size": self.options.batch_size * trainer.args.world_size,
            "processes": trainer.args.world_size,
            "seconds_training": round(clock.seconds, 3),
            "precision": "bfloat16" if trainer.args.bf16 else "float32",
            "device": trainer.args.device.type,
            "teacher": None if self._teacher_graph is None else self._teacher_graph.source.location,
            "masked_sparsity": self.masks.sparsity(),
            "loss": loss,
            "curve": curve,
        }
        if metric:
            report["metric"] = metric
        if best is not None and best.weights is not None:
            report["best"] = {"step": best.step, "metric": best.value}
        return TrainingResult(
            self.module, steps, steps / epoch_steps, clock.seconds, loss, metric, curve, report
        )


def _pairs(data: Batches, options: TrainingOptions, name: str) -> Pairs | None:
    """The pairs that embeddings learn from; None where the loss reads labels, or none.

    Raises:
        DataError: the loss would find no labels, and there are no pairs.
        UsageError: pairs do not fill the batches.
    """
    if options.hardness == 1 or data.labelled:
        return None
    pairs = pairs_of(data)
    if pairs is None:
        raise DataError(
            f"{name}: expected labelled data for hardness={options.hardness:g}, found rows without "
            f"a label in {data.origin}; add the column, or hardness=1 to learn from the teacher "
            "alone"
        )
    if options.batch_size % 2:
        raise UsageError(
            f"{name}: expected an even batch_size for pairs of texts, found {options.batch_size}"
        )
    return pairs


@contextlib.contextmanager
def _own_randomness() -> Iterator[None]:
    """Give the caller's random generators back as they were; the Trainer seeds all of them."""
    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.random.set_rng_state(states[2])


def _undo_wrapping(trainer: GraphTrainer) -> None:
    """Take off what accelerate put around the module (autocast, processes)."""
    trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
    trainer.accelerator.free_memory()


def _curve(history: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Logged points, thinned out; evaluations are all kept."""
    points: list[dict[str, float]] = []
    kept = ("loss", "learning_rate")
    for entry in history:
        point = {k: float(entry[k]) for k in kept if k in entry}
        point |= {k.removeprefix("eval_"): float(v) for k, v in entry.items() if k[:5] == "eval_"}
        if point:
            points.append({"step": entry["step"], **point})
    losses = [p for p in points if "loss" in p]
    stride = max(1, math.ceil(len(losses) / _CURVE_POINTS))
    chosen = {id(p) for p in losses[::-1][::stride]}
    return [p for p in points if id(p) in chosen or "loss" not in p]


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    sha = hashlib.sha256()
    for name in sorted(tensors):
        sha.update(name.encode())
        sha.update(np.ascontiguousarray(tensors[name].cpu().numpy()).data)
    return sha.hexdigest()[:16]


def _digest_of_graph(graph: Graph) -> str:
    sha = hashlib.sha256()
    for name, value in sorted(graph.model.graph.initializers.items()):
        if value.const_value is not None:
            sha.update(name.encode())
            sha.update(np.ascontiguousarray(value.const_value.numpy()).tobytes())
    return sha.hexdigest()[:16]
