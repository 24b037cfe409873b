"""Time of a step: masked fine-tuning with a teacher here, and the plain Trainer of transformers.

::

    python benchmarks/training.py MODEL --data train.jsonl [--threads 2] [--bfloat16]

MODEL is a Hugging Face folder of a text classifier. All train on the same batches in the same order
(grouped by length), in turns in one process, after a turn that is not counted. Of every batch the
least time over the turns counts, because other programs only ever add to it; the table has their
mean, and the ratio to the plain Trainer. Rows:

- ``transformers``: ``Trainer`` on the model as ``AutoModelForSequenceClassification`` loads it,
  labels only;
- ``masked, tables too``: the module of the pruned graph, its masks held, labels only, all
  parameters training as in the row before;
- ``masked``: the same with the embedding tables as they are, the default;
- ``masked, teacher``: with the predictions of the dense model, in the first epoch, where each is
  computed;
- ``masked, teacher kept``: the same in later epochs, where they are remembered;
- the same with ``precision=bfloat16`` where ``--bfloat16`` is given.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

import obert_compiler as obc
from obert_compiler.data.batches import Batches
from obert_compiler.graph import Graph
from obert_compiler.passes.finetune import Finetune
from obert_compiler.passes.prune import Prune
from obert_compiler.passes.training.data import (
    ROWS,
    BatchCollator,
    EpochSampler,
    IndexDataset,
    as_batch,
)
from obert_compiler.passes.training.run import Training
from obert_compiler.pipeline.contract import Context
from obert_compiler.runtime.cpu import cpu_name
from obert_compiler.tasks import task_for


class _Stepper:
    """Takes steps of a Trainer one by one, by batches of its first epoch."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        trainer.accelerator.gradient_state._set_sync_gradients(True)  # noqa: SLF001
        self.loader = trainer.get_train_dataloader()
        trainer.create_optimizer_and_scheduler(1000)
        self.model, trainer.optimizer = trainer.accelerator.prepare(
            trainer.model, trainer.optimizer
        )
        trainer.current_gradient_accumulation_steps = 1
        self.batches = list(itertools.islice(iter(self.loader), 64))

    def step(self, batch: dict[str, Any]) -> float:
        """Seconds of one step: forward, backward, clipping, optimiser."""
        started = time.perf_counter()
        self.trainer.training_step(self.model, batch)
        self.trainer._clip_grad_norm(self.model)  # noqa: SLF001
        self.trainer.optimizer.step()
        self.trainer.lr_scheduler.step()
        self.model.zero_grad()
        return time.perf_counter() - started


class _Plain(Trainer):
    """The plain Trainer over our batches, so that only the training differs."""

    def __init__(self, sampler: EpochSampler, **options: Any) -> None:
        self.sampler = sampler
        super().__init__(**options)

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        del train_dataset
        return self.sampler


def _plain(model: str, data: Batches, batch_size: int, folder: Path, bfloat16: bool) -> _Stepper:
    collator = BatchCollator(data)

    def collate(indices: list[int]) -> dict[str, torch.Tensor]:
        made = collator(indices)
        return {**made["inputs"], "labels": made["labels"]["labels"]}

    trainer = _Plain(
        EpochSampler([e.length for e in data.examples], batch_size, 0),
        model=AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32),
        args=TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=batch_size,
            remove_unused_columns=False,
            report_to="none",
            use_cpu=True,
            bf16=bfloat16,
            dataloader_pin_memory=False,
        ),
        data_collator=collate,
        train_dataset=IndexDataset(data),
    )
    return _Stepper(trainer)


def _ours(graph: Graph, teacher: Graph, data: Batches, options: Finetune) -> _Stepper:
    context = Context(data=data, task=task_for(graph.source), teacher=teacher)
    training = Training(graph, context, options, name="finetune")
    return _Stepper(training.prepare(Path(tempfile.mkdtemp())).trainer)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--onnx", help="MODEL lowered before (obertc compile --passes none)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12, help="steps of a turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--sparsity", type=float, default=0.8)
    parser.add_argument("--bfloat16", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    dense = obc.lower(given.onnx or given.model)
    task = task_for(dense.source)
    if task is None or dense.source.folder is None:
        raise SystemExit("benchmark: expected a model folder with a task and a tokenizer")
    data = Batches.open(given.data, task, dense.source.folder, max_length=given.seq_len, limit=1024)
    pruned = obc.PassManager([Prune(sparsity=given.sparsity, block=4, method="magnitude")]).run(
        dense, data=data, task=task
    )
    size = given.batch_size
    rows: dict[str, Callable[[], _Stepper]] = {}
    for bfloat16 in (False, True) if given.bfloat16 else (False,):
        precision = "bfloat16" if bfloat16 else "float32"
        common: dict[str, Any] = {"batch_size": size, "precision": precision}
        with_labels, with_teacher = Finetune(hardness=0, **common), Finetune(**common)
        everything = Finetune(hardness=0, tables=True, **common)
        end = ", bfloat16" if bfloat16 else ""
        rows[f"transformers{end}"] = lambda b=bfloat16: _plain(
            given.model, data, size, Path(tempfile.mkdtemp()), b
        )
        rows[f"masked, tables too{end}"] = lambda o=everything: _ours(pruned.copy(), dense, data, o)
        rows[f"masked{end}"] = lambda o=with_labels: _ours(pruned.copy(), dense, data, o)
        rows[f"masked, teacher{end}"] = lambda o=with_teacher: _ours(pruned.copy(), dense, data, o)
        rows[f"masked, teacher kept{end}"] = rows[f"masked, teacher{end}"]
    _print(_times(rows, given.steps, given.turns), given.threads, size)


def _times(
    rows: dict[str, Callable[[], _Stepper]], steps: int, turns: int
) -> dict[str, list[float]]:
    """The least seconds of each of the first batches by row."""
    steppers = {name: make() for name, make in rows.items()}
    least = {name: [float("inf")] * steps for name in rows}
    for turn in range(turns + 1):
        for name, stepper in steppers.items():
            teacher = getattr(stepper.trainer, "_teacher", None)
            if teacher is not None:
                teacher._kept.clear()  # noqa: SLF001
            for number, batch in enumerate(stepper.batches[:steps]):
                if teacher is not None and "kept" in name:
                    teacher.outputs(as_batch(batch), batch[ROWS].tolist())
                seconds = stepper.step(batch)
                if turn:
                    least[name][number] = min(least[name][number], seconds)
    return least


def _print(times: dict[str, list[float]], threads: int, batch_size: int) -> None:
    print(f"{cpu_name()}, {threads} threads, batch {batch_size}, torch {torch.__version__}")
    print("| | time of a step | to the plain Trainer |")
    print("|---|---|---|")
    base = sum(times["transformers"])
    for name, found in times.items():
        print(f"| {name} | {1e3 * statistics.mean(found):.0f} ms | {sum(found) / base:.2f} |")


if __name__ == "__main__":
    main()
