"""One row of compare.py in a process of its own: all engines in turn, round by round.

    python benchmarks/engine/measure.py '{"ours": MODEL, "float": MODEL, ...}'

Prints one line of JSON: milliseconds of every call by engine, and what our engine claimed.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from obert_compiler.runtime import engine_use, session

# Threads of ONNX Runtime look for work for some 0.1 s after a call, and take a core from whoever is
# called next in the same process.
_PAUSE = 0.25
_CALLS = 3

Call = Callable[[], object]


def main(request: dict[str, Any]) -> None:
    """Open every engine, warm up, time."""
    threads = request["threads"]
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    ids = np.random.default_rng(0).integers(1000, 30000, (request["batch"], request["tokens"]))
    feed = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
    }
    calls: dict[str, Call] = {}
    claims: dict[str, Any] = {}
    for name, how in request["engines"].items():
        if how["engine"] == "openvino":
            calls[name] = _openvino(how, threads, feed)
            continue
        opened = session(how["model"], threads, engine=how["engine"])
        used = engine_use(opened).claims
        if used is not None:
            claims[name] = used.to_dict()
        given = {value.name: feed[value.name] for value in opened.get_inputs()}
        calls[name] = lambda opened=opened, given=given: opened.run(None, given)
    times: dict[str, list[float]] = {name: [] for name in calls}
    start = time.perf_counter()
    rounds = -request["warm_up"]
    while rounds < request["least"] or time.perf_counter() - start < request["seconds"]:
        for name, call in calls.items():
            time.sleep(_PAUSE)
            call()  # wakes the engine's threads and fills the caches
            least = min(_timed(call) for _ in range(_CALLS))
            if rounds >= 0:
                times[name].append(least * 1e3)
        rounds += 1
    print(json.dumps({"times": times, "claims": claims}))


def _timed(call: Call) -> float:
    before = time.perf_counter()
    call()
    return time.perf_counter() - before


def _openvino(how: dict[str, Any], threads: int, feed: dict[str, np.ndarray]) -> Call:
    import openvino

    options = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": how["precision"],
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.Core().compile_model(how["model"], "CPU", options)
    request = compiled.create_infer_request()
    given = {port.get_any_name(): feed[port.get_any_name()] for port in compiled.inputs}
    return lambda: request.infer(given)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
