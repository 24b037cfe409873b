"""Train the dense models that benchmarks/pruning.py prunes, with the Trainer of transformers.

    python benchmarks/dense_models.py ENCODER --task text-classification --data train.jsonl.gz \
        --eval-data test.jsonl.gz -o OUT

ENCODER is a folder or hub id of an encoder; its head is drawn by the seed. Class names come from
``--labels`` (a JSON list) or are the values in the data. Rows are encoded by the task as everywhere
else. The metric that is printed is that of the graph, in ONNX Runtime.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from obert_compiler import Batches, lower
from obert_compiler.data.read import read_rows
from obert_compiler.pipeline.registry import TASKS, load
from obert_compiler.runtime.evaluate import evaluate
from obert_compiler.tasks import task_for

LABEL_COLUMNS = ("label", "ner_tags", "slots")


def main() -> None:
    """Train, save, and print the metric."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("encoder")
    parser.add_argument("--task", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--eval-data", required=True)
    parser.add_argument("-o", "--out", required=True, type=Path)
    parser.add_argument("--labels", type=Path, help="JSON list of the names of the classes")
    parser.add_argument("--rows", type=int, help="training rows, all by default")
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    transformers.set_seed(options.seed)
    kind = load(TASKS, options.task)
    names = class_names(options.data, options.labels)
    labels = {} if names is None else {"id2label": dict(enumerate(names))}
    if names is not None:
        labels["label2id"] = {name: index for index, name in enumerate(names)}
    model = getattr(transformers, kind.auto_model).from_pretrained(options.encoder, **labels)
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.encoder)
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    task = task_for(lower(str(options.out), task=options.task).source, options.task)
    if task is None:
        raise SystemExit(f"{options.out}: expected a task")
    length = {"max_length": options.max_length}
    data = Batches.open(
        options.data, task, options.out, limit=options.rows, seed=options.seed, **length
    )

    def collate(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        batch = task.collate([row["example"] for row in rows], tokenizer.pad_token_id)
        arrays = {**batch.inputs, **(batch.labels or {})}
        return {name: torch.as_tensor(array) for name, array in arrays.items()}

    arguments = transformers.TrainingArguments(
        output_dir=str(options.out / "checkpoints"),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        weight_decay=0.01,
        warmup_steps=0.1,
        train_sampling_strategy="group_by_length",
        save_strategy="no",
        logging_steps=100,
        report_to=[],
        seed=options.seed,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    # The Trainer groups by the length of input_ids.
    rows = [{"input_ids": e.inputs["input_ids"], "example": e} for e in data.examples]
    trainer = transformers.Trainer(
        model=model, args=arguments, train_dataset=rows, data_collator=collate
    )
    trainer.train()
    model.save_pretrained(options.out)
    held_out = Batches.open(options.eval_data, task, options.out, **length)
    found = evaluate(lower(str(options.out), task=options.task), held_out, engine="cpu")
    print(f"{options.out}: {found.metric_name} {found.value:.4f} on {options.eval_data}")


def class_names(data: str, path: Path | None) -> list[str] | None:
    """Names of the classes by index, None where the task has none."""
    if path is not None:
        return [str(name) for name in json.loads(path.read_text())]
    rows = read_rows(data)
    column = next((c for c in LABEL_COLUMNS if c in rows.columns), None)
    if column is None:
        return None
    values: set[Any] = set()
    for index in range(len(rows)):
        value = rows[index][column]
        values.update(value if isinstance(value, list) else [value])
    if all(isinstance(value, int) for value in values):
        return [f"LABEL_{index}" for index in range(max(values) + 1)]
    return sorted(map(str, values))


if __name__ == "__main__":
    main()
