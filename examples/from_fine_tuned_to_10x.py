"""From a fine-tuned model to one ten times smaller, with training: docs/from_fine_tuned_to_10x.md.

    python examples/from_fine_tuned_to_10x.py MODEL --data TRAIN --eval-data DEV -o OUT

Compiles twice, without training and with it, and prints what either costs in the task's metric.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from obert_compiler import Recipe, compile_model
from obert_compiler.report import summary_rows


def main(
    model: str,
    data: str,
    eval_data: str,
    out: str,
    training: str = "budget=20min",
    rounded: str = "budget=10min",
    seed: int = 0,
) -> None:
    """Compile into ``out/as-it-is`` and ``out/recovered``.

    Args:
        model: a fine-tuned model: folder or hub id.
        data: text of the task; labels are not read.
        eval_data: labelled rows that were not trained on.
        out: folder for both.
        training: how long to train, as options of ``finetune``.
        rounded: how long to train with the roundings of INT8, as options of ``qat``.
        seed: of every random choice.
    """
    prune = "prune:sparsity=0.8:block=4"
    finetune = f"finetune:{training}:learning_rate=1e-4:warmup=0.05:hidden=1.0"
    Path(out).mkdir(parents=True, exist_ok=True)
    qat = f"qat:{rounded}:learning_rate=3e-5:hidden=1.0"
    ways = {"as-it-is": (prune, "quant"), "recovered": (prune, finetune, qat)}
    for name, passes in ways.items():
        recipe = Recipe((*passes, "pack"), model=model, data=data, eval_data=eval_data, seed=seed)
        result = compile_model(recipe, Path(out) / name, latency=False, overwrite=True)
        print(f"{name}: {','.join(map(str, recipe.passes))}")
        for row in summary_rows(result.report):
            print(f"    {row.what:10} {row.before:>12} {row.after:>12} {row.change:>10}")
    print(f"model   {Path(out) / 'recovered' / 'model.onnx'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--eval-data", required=True)
    parser.add_argument("-o", "--out", default="out/recovered")
    parser.add_argument("--training", default="budget=20min")
    options = parser.parse_args()
    main(options.model, options.data, options.eval_data, options.out, options.training)
