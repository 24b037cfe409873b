"""What unpacking at load costs: a packed model against itself with its weights stored whole.

    python benchmarks/packed_load.py OUT/model.onnx

Every measurement is a fresh process, packed and unpacked in turn. The table gives the smallest of
each, and the least, median and most of the packed file as shares of the median of the unpacked one.
Time is that of opening the session; memory is what the process holds afterwards, the whole of it
and what the session added. Three openings are compared: ``onnxruntime.InferenceSession`` as it is;
`obert_compiler.runtime.session` without the engine, which also hands freed memory back to the
system; and the packed file with the engine against the unpacked one in ``InferenceSession``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from obert_compiler.graph.constants import read_constant
from obert_compiler.graph.graph import STAGE_KEY, Stage
from obert_compiler.passes.unpacking_chain import is_unpacked

_PROBE = """
import json, sys, time, psutil, onnxruntime
from obert_compiler.runtime.session import is_packed, open_session, session, session_options
path, threads, how = sys.argv[1], int(sys.argv[2]), sys.argv[3]
process = psutil.Process()
options = session_options(threads)
before = process.memory_info().rss
start = time.perf_counter()
if how == "runtime":
    opened = open_session(path, options)
elif how == "engine" and is_packed(path):
    opened = session(path, threads, engine="obert")
else:
    opened = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
seconds = time.perf_counter() - start
resident = process.memory_info().rss
peak = process.memory_info().rss
for line in open("/proc/self/status"):
    if line.startswith("VmHWM:"):
        peak = int(line.split()[1]) * 1024
print(json.dumps([seconds, resident, resident - before, peak]))
"""
_ROWS = ("load time, ms", "resident, MB", "resident, added, MB", "peak, MB")
_OPENINGS = ("onnxruntime", "runtime", "engine")
_UNITS = (1e3, 1e-6, 1e-6, 1e-6)


def unpacked_copy(packed: Path, target: Path) -> None:
    """Write ``packed`` with every chain replaced by the weight that it makes."""
    model = ir.load(packed)
    graph = model.graph
    made = [output for node in graph for output in node.outputs if is_unpacked(output)]
    ends = [v for v in made if not any(is_unpacked(o) for n in v.consumers() for o in n.outputs)]
    for value in ends:
        array = np.ascontiguousarray(read_constant(value))
        name = f"{value.name}_whole"
        stored = ir.Value(
            name=name,
            shape=ir.Shape(array.shape),
            type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
            const_value=ir.tensor(array, name=name),
        )
        graph.register_initializer(stored)
        ir.convenience.replace_all_uses_with(value, stored)
    if not ends:
        raise SystemExit(f"{packed}: expected a packed model, found no packed weight")
    _remove_dead(model)
    model.metadata_props[STAGE_KEY] = Stage.QUANTISED.value
    onnx.save(ir.to_proto(model), target)


def _remove_dead(model: ir.Model) -> None:
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    RemoveUnusedNodesPass()(model)


def measure(path: Path, threads: int, how: str) -> list[float]:
    """Seconds, resident bytes, resident bytes added, peak bytes of opening ``path`` once."""
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, str(path), str(threads), how],
        capture_output=True,
        text=True,
        check=True,
    )
    figures: list[float] = json.loads(done.stdout)
    return figures


def compare(packed: Path, unpacked: Path, threads: int, rounds: int, how: str) -> None:
    """Measure in turn and print a table."""
    found: dict[Path, list[list[float]]] = {packed: [], unpacked: []}
    for _ in range(rounds):
        for path, figures in found.items():
            figures.append(measure(path, threads, how))
    columns = [[sorted(c) for c in zip(*rows, strict=True)] for rows in found.values()]
    print(f"{how:20s} {'packed':>10s} {'unpacked':>10s} {'ratio':>7s}   of medians: least to most")
    for row, unit, a, b in zip(_ROWS, _UNITS, *columns, strict=True):
        usual = statistics.median(b)
        shares = [a[0] / usual, statistics.median(a) / usual, a[-1] / usual]
        least = f"{a[0] * unit:10.1f} {b[0] * unit:10.1f} {a[0] / b[0]:7.2f}"
        print(f"{row:20s} {least}   {'  '.join(f'{share:.2f}' for share in shares)}")


def main() -> None:
    """Parse the command line, compare both openings."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, help="a packed model.onnx")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--how", nargs="+", default=_OPENINGS, choices=_OPENINGS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="packed-load-") as folder:
        unpacked = Path(folder) / "unpacked.onnx"
        unpacked_copy(options.model, unpacked)
        sizes = [path.stat().st_size for path in (options.model, unpacked)]
        print(f"bytes: packed {sizes[0]}, unpacked {sizes[1]}")
        for how in options.how:
            compare(options.model, unpacked, options.threads, options.rounds, how)


if __name__ == "__main__":
    main()
