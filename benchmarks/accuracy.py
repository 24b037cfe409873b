"""Metric of one-shot compression, and the same labels in every runtime.

    python benchmarks/accuracy.py MODEL --data train.jsonl.gz --eval-data dev.jsonl.gz

Rows: the model as it came, ``quant,pack``, and pruning by Fisher and by magnitude at each sparsity,
each in ONNX Runtime; for compiled files the share of examples that OpenVINO labels alike.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from obert_compiler import Batches, PassManager, emit, lower
from obert_compiler.runtime.evaluate import evaluate, label_agreement
from obert_compiler.runtime.measure import model_bytes
from obert_compiler.tasks import task_for


def main() -> None:
    """Compile each row and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--task")
    parser.add_argument("--data", required=True)
    parser.add_argument("--eval-data", required=True)
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--repair", default="auto", help="of the Fisher rows")
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.5])
    options = parser.parse_args()

    graph = lower(options.model, task=options.task)
    task = task_for(graph.source, options.task)
    if task is None or graph.source.folder is None:
        raise SystemExit(f"{options.model}: expected a model with a task and a tokenizer")
    folder = graph.source.folder
    data = Batches.open(options.data, task, folder, limit=options.samples)
    held_out = Batches.open(options.eval_data, task, folder)
    rows = ["none", "quant,pack"]
    for sparsity in options.sparsity:
        pruned = f"prune:sparsity={sparsity}:block=4"
        by_fisher = f"{pruned}:repair={options.repair}"
        rows += [by_fisher, f"{pruned}:method=magnitude", f"{by_fisher},quant,pack"]
    print(f"{options.model} on {options.eval_data}, {len(held_out.examples)} examples")
    for passes in rows:
        with tempfile.TemporaryDirectory() as name:
            compiled = PassManager(passes).run(graph, data=data, task=task)
            out = emit(compiled, "onnx", Path(name) / "out")
            here = evaluate(str(out), held_out, engine="cpu")
            size = model_bytes(str(out)) / 1e6
            row = f"{passes:50} {here.metric_name} {here.value:.4f}  {size:6.1f} MB"
            if "quant" in passes:
                there = evaluate(str(out), held_out, engine="openvino")
                same = label_agreement(here, there)
                row += f"  OpenVINO {there.value:.4f}, same label {100 * same:.2f}%"
            print(row, flush=True)


if __name__ == "__main__":
    main()
