"""Our engine against ONNX Runtime and OpenVINO: the table of README.md and docs/engine.md.

    python benchmarks/engine/compare.py                      # measure all rows, write the tables
    python benchmarks/engine/compare.py --rows 12-80 3-80    # these rows only, no table
    python benchmarks/engine/compare.py --tables             # only write the tables
    python benchmarks/engine/compare.py --avx2-only          # as on a processor with nothing newer

BERT-base shapes, random weights, 2 threads. A row is measured in a few processes, each of which
opens every engine and takes turns with them (a call unmeasured, the least of three), so that all
see the same machine and none the threads of the one before. The models are classifiers, which read
the first token of the last layer; our engine is measured where all tokens are handed out too.
Ratios are against ONNX Runtime in float32 with all 12 layers: of the minima and, in brackets, the
median of the ratios within each turn. Where the two differ much the machine was too busy: measure
again. Making the models takes about two minutes each the first time (``--models``, kept), measuring
one to four for each row. What was measured is kept in ``--results`` by processor.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avx2_only import environment
from models import (
    compiled_model,
    every_token_model,
    float_model,
    others_model,
    unpacked_model,
)

from obert_compiler.runtime import cpu_name

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "docs" / "engine.md")
THREADS = 2


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        layers: encoder layers of the model; the float32 one always has 12.
        sparsity: percent of zero 4-blocks; 0 for a dense INT8 model.
        batch: sequences in a call.
        tokens: tokens in a sequence.
        isa: the instruction set that our engine is held to; empty for its own choice, and then
            the other engines are measured too.
        others: whether the quantiser of ONNX Runtime made the file, not this compiler.
    """

    layers: int
    sparsity: int
    batch: int = 1
    tokens: int = 128
    isa: str = ""
    others: bool = False

    @property
    def name(self) -> str:
        """What ``--rows`` calls it."""
        shape = "" if (self.batch, self.tokens) == (1, 128) else f"-{self.batch}x{self.tokens}"
        by = "-others" if self.others else ""
        return f"{self.layers}-{self.sparsity}{by}{shape}" + (f"-{self.isa}" if self.isa else "")

    @property
    def words(self) -> str:
        """The first cell."""
        zeros = f"{self.sparsity}% zeros" if self.sparsity else "dense"
        isa = f", `OBERT_FORCE_ISA={self.isa}`" if self.isa else ""
        by = ", quantised by ONNX Runtime" if self.others else ""
        return f"{self.layers} layers, {zeros}, {self.batch} x {self.tokens}{by}{isa}"


ROWS = (
    Row(12, 80),
    Row(12, 90),
    Row(6, 80),
    Row(3, 80),
    Row(3, 90),
    Row(12, 0),
    Row(12, 80, 32),
    Row(12, 90, 1, 384),
    Row(12, 80, others=True),
    Row(12, 80, isa="avx2"),
    Row(12, 90, isa="avx2"),
    Row(12, 80, isa="avx512vnni"),
    Row(12, 90, isa="avx512vnni"),
)
ENGINES = {
    "ours": "this engine",
    "ours-every-token": "this engine, hidden states of every token",
    "ort-int8": "ONNX Runtime INT8",
    "openvino-bf16": "OpenVINO bfloat16 (dense)",
    "openvino-float": "OpenVINO float32 (dense)",
    "openvino-int8": "OpenVINO INT8",
}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, default=ROOT / "build" / "benchmark-models")
    parser.add_argument("--results", type=Path, default=ROOT / "build" / "benchmark-results")
    parser.add_argument("--rows", nargs="+", choices=[row.name for row in ROWS], metavar="ROW")
    parser.add_argument("--seconds", type=float, default=15.0, help="for each process")
    parser.add_argument("--repeats", type=int, default=3, help="processes for each row")
    parser.add_argument("--tables", action="store_true", help="only write the tables")
    parser.add_argument(
        "--avx2-only",
        action="store_true",
        help="hide what is newer than AVX2 from ONNX Runtime and our engine (avx2_only.py); "
        "no OpenVINO, a table of its own",
    )
    options = parser.parse_args()
    options.models.mkdir(parents=True, exist_ok=True)
    options.results.mkdir(parents=True, exist_ok=True)
    if not options.tables:
        measure_rows(options)
    if options.tables or options.rows is None:
        write_tables(options.results)


def measure_rows(options: argparse.Namespace) -> None:
    """Measure, keep and show the rows that were asked for."""
    cpu = processor() + (", seen with AVX2 alone" if options.avx2_only else "")
    with tempfile.TemporaryDirectory() as folder:
        hidden = environment(Path(folder)) if options.avx2_only else {}
        for row in ROWS:
            if options.rows is not None and row.name not in options.rows:
                continue
            if hidden and row.isa:
                print(f"{row.name}: left out, --avx2-only holds every row to avx2")
                continue
            found = measure(row, options.models, options.seconds, options.repeats, hidden)
            if found is not None:
                keep(found, row, options.results, cpu)
                show(found, row)


def engines(row: Row, models: Path, openvino_too: bool) -> dict[str, dict[str, str]]:
    """What to open for ``row``, by name."""
    made = others_model if row.others else compiled_model
    packed = str(made(models, row.layers, row.sparsity))
    dense = str(float_model(models))
    chosen = {
        "float": {"engine": "cpu", "model": dense},
        "ours": {"engine": "obert", "model": packed},
    }
    if not row.others:
        every_token = every_token_model(models, row.layers, row.sparsity)
        chosen["ours-every-token"] = {"engine": "obert", "model": str(every_token)}
    if not row.isa:
        chosen["ort-int8"] = {"engine": "cpu", "model": packed}
    if not row.isa and openvino_too:
        unpacked = packed if row.others else str(unpacked_model(models, row.layers, row.sparsity))
        openvino = {"engine": "openvino", "model": dense}
        chosen["openvino-bf16"] = openvino | {"precision": "bf16"}
        chosen["openvino-float"] = openvino | {"precision": "f32"}
        chosen["openvino-int8"] = openvino | {"precision": "f32", "model": unpacked}
    return chosen


def measure(
    row: Row, models: Path, seconds: float, repeats: int, hidden: dict[str, str]
) -> dict[str, Any] | None:
    """Time one row in ``repeats`` processes; None where the processor lacks its instruction set.

    ``hidden`` are the variables that hide instruction sets, or none.
    """
    request = {
        "engines": engines(row, models, openvino_too=not hidden),
        "batch": row.batch,
        "tokens": row.tokens,
        "threads": THREADS,
        "seconds": seconds,
        "warm_up": 1 if row.batch > 1 else 3,
        "least": 3,
    }
    found: dict[str, Any] = {}
    for _ in range(repeats):
        done = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("measure.py")), json.dumps(request)],
            env=os.environ | ({"OBERT_FORCE_ISA": row.isa} if row.isa else {}) | hidden,
            capture_output=True,
            text=True,
            check=False,
        )
        if "OBERT_FORCE_ISA: expected" in done.stderr:
            print(f"{row.name}: this processor has no {row.isa}")
            return None
        if done.returncode:
            raise SystemExit(f"{row.name}: {done.stderr}")
        new = json.loads(done.stdout)
        for name, times in found.get("times", {}).items():
            new["times"][name] = times + new["times"][name]
        found = new
    return found


def processor() -> str:
    """Its name, family and model, and what matters here of what it can do."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    numbers = re.findall(r"^(?:cpu family|model)\s*: (\d+)", info, re.MULTILINE)[:2]
    flags = set(re.findall(r"^flags\s*: (.*)", info, re.MULTILINE)[0].split())
    names = {"avx2": "AVX2", "avx512_vnni": "AVX-512 VNNI", "amx_int8": "AMX"}
    can = [name for flag, name in names.items() if flag in flags]
    return f"{cpu_name()} (family {numbers[0]}, model {numbers[1]}: {', '.join(can)})"


def keep(found: dict[str, Any], row: Row, folder: Path, cpu: str) -> None:
    """Remember a row, in the file of this processor."""
    file = folder / (re.sub(r"\W+", "-", cpu).strip("-").lower() + ".json")
    known = json.loads(file.read_text()) if file.exists() else {"cpu": cpu, "rows": {}}
    times = found["times"]
    known["rows"][row.name] = {
        name: {
            "min": min(ms),
            "median": statistics.median(ms),
            "turns": len(ms),
            "by_turns": by_turns(times, name),
        }
        for name, ms in times.items()
    } | {"isa": found["claims"]["ours"]["isa"]}
    file.write_text(json.dumps(known, indent=1) + "\n")


def by_turns(times: dict[str, list[float]], name: str) -> float:
    """How many times faster than float32, the median over the turns."""
    turns = zip(times["float"], times[name], strict=True)
    return statistics.median(dense / ours for dense, ours in turns)


def show(found: dict[str, Any], row: Row) -> None:
    """Print one row."""
    least = {name: min(ms) for name, ms in found["times"].items()}
    print(f"{row.words} (kernels {found['claims']['ours']['isa']})")
    for name, ms in found["times"].items():
        ratio = least["float"] / least[name]
        median = statistics.median(ms)
        paired = by_turns(found["times"], name)
        print(
            f"    {name:15} min {least[name]:8.2f}  median {median:8.2f}  {ratio:6.2f}x by minima, "
            f"{paired:6.2f}x by turns  {len(ms)} turns"
        )
    sys.stdout.flush()


def table(known: dict[str, Any]) -> str:
    """The rows of one processor, in Markdown."""
    measured = {name for figures in known["rows"].values() for name in figures}
    names = [name for name in ENGINES if name in measured]
    heads = ["", "ONNX Runtime float32, 12 layers", *(ENGINES[name] for name in names)]
    lines = [f"On {known['cpu']}, {THREADS} threads:", "", f"| {' | '.join(heads)} |"]
    lines.append("|---" * len(heads) + "|")
    for row in ROWS:
        figures = known["rows"].get(row.name)
        if figures is None:
            continue
        least = {name: f["min"] for name, f in figures.items() if name != "isa"}
        cells = [row.words, _milliseconds(least["float"])]
        for name in names:
            cell = ""
            if name in least:
                ratio, turns = least["float"] / least[name], figures[name]["by_turns"]
                cell = f"{_milliseconds(least[name])}, {ratio:.1f}x ({turns:.1f}x)"
            cells.append(f"**{cell}**" if name == "ours" else cell)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _milliseconds(value: float) -> str:
    return f"{value:.1f} ms" if value < 100 else f"{value:.0f} ms"


def write_tables(folder: Path) -> None:
    """Put the tables of every processor between the marks of the pages."""
    known = [json.loads(file.read_text()) for file in folder.glob("*.json")]
    text = "\n\n".join(table(one) for one in sorted(known, key=lambda one: str(one["cpu"])))
    for page in PAGES:
        before = page.read_text(encoding="utf-8")
        marks = r"(<!-- engine table -->\n).*?(\n<!-- end -->)"
        after = re.sub(marks, lambda m: m[1] + text + m[2], before, flags=re.DOTALL)
        page.write_text(after, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
