"""Write the tables of docs/pruning.md from the results of benchmarks/pruning.py.

    python benchmarks/pruning_tables.py [--check]

Reads ``pruning-*.json`` in benchmarks/results and replaces what stands between the two marks of the
page; ``--check`` only says whether that would change it.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "pruning.md"
RESULTS = ROOT / "benchmarks" / "results"
_FIRST = (
    "magnitude",
    "oBERT, as published",
    "oBERT, joint",
    "A",
    "B",
    "ranked, in steps",
    "default",
)
START, END = "<!-- results: python benchmarks/pruning_tables.py -->", "<!-- end of results -->"


def main() -> None:
    """Write the page, or check it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    before = PAGE.read_text(encoding="utf-8")
    after = filled(before, [json.loads(p.read_text()) for p in sorted(RESULTS.glob("pruning-*"))])
    if options.check and after != before:
        raise SystemExit(f"{PAGE}: expected the tables of the results, found others; run without")
    PAGE.write_text(after, encoding="utf-8")


def filled(page: str, results: list[dict[str, Any]]) -> str:
    """``page`` with the tables of ``results`` between its marks."""
    head, _, rest = page.partition(START)
    _, found, tail = rest.partition(END)
    if not found:
        raise SystemExit(f"{PAGE}: expected the lines '{START}' and '{END}', found none")
    return f"{head}{START}\n\n{ablation(results)}\n{''.join(map(section, results))}{END}{tail}"


def section(result: dict[str, Any]) -> str:
    """Every method of one task."""
    levels = sorted({c["sparsity"] for c in result["cells"]})
    head = f"{result['name']}, {result['metric']} on {result['examples']} examples, dense "
    lines = [f"{head}{result['dense']:.4f} ({result['cpu']}):\n"]
    lines += _head([*(f"{level:.0%}" for level in levels), "seeds"])
    for method in _methods(result["cells"]):
        seeds = {c["seed"] for c in result["cells"] if c["method"] == method}
        values = [_mean(result, method, level) for level in levels]
        shown = ["" if v is None else f"{v:.4f}" for v in values]
        lines.append(f"| {method} | {' | '.join(shown)} | {len(seeds)} |")
    return "\n".join(lines) + "\n\n"


def ablation(results: list[dict[str, Any]]) -> str:
    """Distance to dense in points, by method and task, over the levels of the first methods."""
    columns = [f"{r['name']} at {_percent(_shared(r))}" for r in results]
    lines = _head([*columns, "mean of tasks"])
    for method in _methods([c for r in results for c in r["cells"]]):
        points = []
        for result in results:
            values = [_mean(result, method, level) for level in _shared(result)]
            known = [v for v in values if v is not None]
            complete = known and len(known) == len(values)
            points.append(100 * (statistics.mean(known) - result["dense"]) if complete else None)
        shown = ["" if p is None else f"{p:+.1f}" for p in points]
        known = [p for p in points if p is not None]
        if not known:
            continue
        shown.append(f"{statistics.mean(known):+.1f}" if len(known) == len(points) else "")
        lines.append(f"| {method} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def _methods(cells: list[dict[str, Any]]) -> list[str]:
    """Names of methods, those that are known elsewhere first."""
    found = dict.fromkeys(c["method"] for c in cells)
    return [m for m in _FIRST if m in found] + [m for m in found if m not in _FIRST]


def _shared(result: dict[str, Any]) -> list[float]:
    """Levels that all of the methods that come first have."""
    by_method: dict[str, set[float]] = {}
    for cell in result["cells"]:
        if cell["method"] in _FIRST:
            by_method.setdefault(cell["method"], set()).add(cell["sparsity"])
    return sorted(set.intersection(*by_method.values()))


def _mean(result: dict[str, Any], method: str, level: float) -> float | None:
    key = (method, level)
    values = [c["value"] for c in result["cells"] if (c["method"], c["sparsity"]) == key]
    return statistics.mean(values) if values else None


def _percent(levels: list[float]) -> str:
    return ", ".join(f"{100 * level:.0f}" for level in levels) + "%"


def _head(columns: list[str]) -> list[str]:
    return [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]


if __name__ == "__main__":
    main()
