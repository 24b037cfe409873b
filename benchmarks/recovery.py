"""Recovery by training: the table of docs/recipes.md, cell by cell through ``obertc compile``.

    python benchmarks/recovery.py -o RESULTS \
        --sst2 MODEL --sst2-data train.jsonl.gz --sst2-eval dev.jsonl.gz \
        --stsb MODEL --stsb-data texts.jsonl --stsb-eval dev.jsonl.gz

Every cell is one compile (INT8, packed) and one ``obertc eval --engine cpu`` of what it wrote. All
cells train for the same number of optimiser steps with the same batches, so that a busy machine
changes no result; ``--rounded-steps`` more follow with the roundings of INT8 in place. The seconds
of training and of everything are reported beside it. A cell that RESULTS has is not run again, and
one that was killed goes on where it stopped: the same command can be repeated until the table is
full.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from obert_compiler.runtime.cpu import cpu_name

PAPER = (
    "repair=sum:absolute_damping=1e-7:rewind=each:learning_rate=5e-5:final_rate=0.1:"
    "hardness=1.0:temperature=2.0"
)
MAGNITUDE = "method=magnitude:repair=none:learning_rate=1e-4"


@dataclass(frozen=True)
class Row:
    """One model of the table.

    Attributes:
        title: what it is.
        data: ``sst2`` or ``stsb``.
        before: passes before the pruning, with a comma behind them.
        gradual: options that every method has.
        ours: options of ours on top.
        prune_first: ours prunes by steps of ``prune`` before all training.
    """

    title: str
    data: str
    sparsity: float
    before: str = ""
    gradual: str = "prunings=4:start=0.0:end=0.5"
    ours: str = "hidden=1.0:learning_rate=1e-4"
    prune_first: bool = False

    def passes(self, method: str, steps: int, rounded_steps: int, batch: int, common: str) -> str:
        """The text of ``--passes`` for a method."""
        length = f"steps={steps}:batch_size={batch}{common}"
        after = "quant,pack"
        if rounded_steps:
            hidden = ":hidden=1.0" if method == "ours" else ""
            after = (
                f"qat:steps={rounded_steps}:batch_size={batch}:evaluate=false"
                f":learning_rate=3e-5{hidden},pack"
            )
        if method == "ours" and self.prune_first:
            prune = f"prune:sparsity={self.sparsity}:choice=single"
            return f"{self.before}{prune},finetune:{length}:{self.ours},{after}"
        own = {"ours": self.ours, "magnitude": MAGNITUDE, "paper": PAPER}[method]
        return (
            f"{self.before}gradual:sparsity={self.sparsity}:{self.gradual}:{length}:{own},{after}"
        )


_DEEP = "prunings=4:start=0.3:end=0.6"
ROWS = {
    "sst2-80": Row("6 layers, 80% 4-block INT8", "sst2", 0.8, prune_first=True),
    "sst2-90": Row("6 layers, 90% 4-block INT8", "sst2", 0.9, prune_first=True),
    "sst2-3-layers": Row(
        "3 of 6 layers, 80% 4-block INT8", "sst2", 0.8, "drop-layers:keep=3,", _DEEP
    ),
    "stsb-80": Row("embeddings, 80% 4-block INT8", "stsb", 0.8, prune_first=True),
}
METHODS = ("ours", "magnitude", "paper")


def run_cell(options: argparse.Namespace, name: str, method: str) -> dict[str, Any]:
    """Compile and evaluate one cell."""
    row = ROWS[name]
    given = {key: getattr(options, f"{row.data}_{key}") for key in ("data", "eval")}
    model = getattr(options, row.data)
    out = options.results / f"{name}-{method}"
    common = f":{options.common}" if options.common else ""
    passes = row.passes(method, options.steps, options.rounded_steps, options.batch, common)
    command = [
        *("compile", str(model), "-o", str(out), "--passes", passes),
        *("--data", str(given["data"]), "--eval-data", str(given["eval"])),
        *("--seed", str(options.seed), "--no-latency", "--overwrite", "--resume"),
        *(("--threads", str(options.threads)) if options.threads else ()),
    ]
    if not (out / "report.json").exists():
        obertc(command)
    measured = ["eval", str(out), "--data", str(given["eval"]), "--engine", "cpu", "--json"]
    found = json.loads(obertc(measured))
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    trained = [p["report"] for p in report["passes"] if "seconds_training" in p["report"]]
    return {
        "row": name,
        "method": method,
        "command": shlex.join(["obertc", *command]),
        "dense": report["metric"]["before"],
        "value": found[found["metric"]],
        "metric": report["metric"]["name"],
        "seed": options.seed,
        "seconds_training": sum(t["seconds_training"] for t in trained),
        "seconds": sum(p["seconds"] for p in report["passes"]),
        "steps": options.steps,
        "rounded_steps": options.rounded_steps,
        "batch_size": options.batch,
        "bytes": report["bytes"]["after"],
        "cpu": cpu_name(),
    }


def obertc(arguments: list[str]) -> str:
    """Run ``obertc``; what it printed."""
    command = [sys.executable, "-m", "obert_compiler", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"obertc {shlex.join(arguments)}: exit code {done.returncode}")
    return done.stdout


def table(results: dict[tuple[str, str], dict[str, Any]], metric_points: float = 100.0) -> str:
    """The table in Markdown: value and distance from dense in points."""
    lines = ["| model | dense | ours | magnitude | as published |", "|---|---|---|---|---|"]
    for name, row in ROWS.items():
        cells = []
        dense = next((r["dense"] for (n, _), r in results.items() if n == name), None)
        for method in METHODS:
            found = results.get((name, method))
            if found is None:
                cells.append("")
                continue
            lost = metric_points * (found["value"] - found["dense"])
            cells.append(f"{found['value']:.4f} ({lost:+.1f})")
        shown = "" if dense is None else f"{dense:.4f}"
        lines.append(f"| {row.title} | {shown} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run the cells that are missing, then print the table and the commands."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("-o", "--results", type=Path, required=True)
    for data in ("sst2", "stsb"):
        add(f"--{data}", metavar="MODEL")
        add(f"--{data}-data", metavar="FILE")
        add(f"--{data}-eval", metavar="FILE")
    add("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    add("--steps", type=int, default=1000)
    add("--rounded-steps", type=int, default=0, help="of qat, which then takes the place of quant")
    add("--batch", type=int, default=32)
    add("--common", default="", help="options of every training, as precision=bfloat16")
    add("--seed", type=int, default=0)
    add("--threads", type=int)
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    results: dict[tuple[str, str], dict[str, Any]] = {}
    for method in METHODS:
        for name in ROWS:
            file = options.results / f"{name}-{method}.json"
            wanted = name in options.rows and method in options.methods
            if not file.exists() and wanted and getattr(options, ROWS[name].data):
                found = run_cell(options, name, method)
                file.write_text(json.dumps(found, indent=1), encoding="utf-8")
                print(f"{name} {method}: {found['value']:.4f}", flush=True)
            if file.exists():
                results[name, method] = json.loads(file.read_text(encoding="utf-8"))
    print(table(results))
    for (name, method), found in results.items():
        print(
            f"\n{name}, {method}: {found['seconds_training'] / 60:.1f} min of training, "
            f"{found['seconds'] / 60:.1f} min in all passes on {found['cpu']}\n"
            f"    {found['command']}"
        )


if __name__ == "__main__":
    main()
