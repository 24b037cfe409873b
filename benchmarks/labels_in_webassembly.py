"""Share of examples that a compiled classifier labels alike in Python and in WebAssembly.

    npm install --ignore-scripts --prefix tests/compat/node
    python benchmarks/labels_in_webassembly.py OUT --eval-data dev.jsonl.gz

Runs OUT/model.onnx batch by batch in onnxruntime (CPU provider) and, under node, in
onnxruntime-node or onnxruntime-web, and counts equal arg max of the first output.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from obert_compiler import Batches, lower
from obert_compiler.runtime import session
from obert_compiler.tasks import task_for

_NODE = Path(__file__).parent.parent / "tests" / "compat" / "node"


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--eval-data", required=True)
    parser.add_argument("--runtime", default="onnxruntime-web")
    parser.add_argument("--node", type=Path, default=_NODE, help="folder with node_modules")
    options = parser.parse_args()
    source = lower(str(options.out)).source
    task = task_for(source)
    if task is None:
        raise SystemExit(f"{options.out}: expected a model with a task")
    data = Batches.open(options.eval_data, task, options.out, batch_size=64)
    script = options.node / "predict.mjs"
    if not script.exists():
        shutil.copy(_NODE / "predict.mjs", script)
    model = session(options.out)
    names = [i.name for i in model.get_inputs()]
    same = count = 0
    with tempfile.TemporaryDirectory() as folder:
        feeds_file = Path(folder) / "feeds.json"
        for batch in data:
            feed = batch.feed(names)
            expected = model.run(None, feed)[0]
            feeds = {n: {"shape": a.shape, "data": a.reshape(-1).tolist()} for n, a in feed.items()}
            feeds_file.write_text(json.dumps(feeds), encoding="utf-8")
            found = run_node(script, options.runtime, options.out / "model.onnx", feeds_file)
            output = next(iter(found.values()))
            there = np.array(output["data"]).reshape(output["shape"])
            same += int((there.argmax(-1) == expected.argmax(-1)).sum())
            count += len(batch)
    print(f"{options.runtime}: same label on {same} of {count}, {100 * same / count:.2f}%")


def run_node(
    script: Path, runtime: str, model: Path, feeds: Path
) -> dict[str, dict[str, list[float]]]:
    """Outputs of one batch."""
    command = ["node", str(script), runtime, str(model.absolute()), str(feeds)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    outputs: dict[str, dict[str, list[float]]] = json.loads(done.stdout)["outputs"]
    return outputs


if __name__ == "__main__":
    main()
