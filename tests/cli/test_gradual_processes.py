"""``gradual`` under ``torchrun``: two processes prune and train as one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from obert_compiler import lower
from obert_compiler.graph.layers import prunable_sites

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
STEPS, RATE = 4, 1e-4


def test_two_processes_prune_and_train_as_one(
    obertc: Callable[..., object], tiny_folder: Callable[[str, str], Path], tmp_path: Path
) -> None:
    """The batch of one process is that of two together; a budget that is not reached is shared."""
    rows = [
        {"text": f"the film {i} is good {'very ' * (i % 5)}", "label": i % 2} for i in range(24)
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    folder = str(tiny_folder("bert", "sequence"))

    def options(out: str, batch: int) -> list[str]:
        passes = (
            f"gradual:sparsity=0.6:prunings=2:steps={STEPS}:budget=1h:batch_size={batch}:"
            f"learning_rate={RATE}:samples=12:repair_samples=16"
        )
        files = ["--data", str(tmp_path / "data.jsonl"), "-o", str(tmp_path / out)]
        return ["compile", folder, "--passes", passes, *files, "--no-latency", "--json"]

    one = obertc(*options("one", 6))
    ended = subprocess.run(
        [*TORCHRUN, "-m", "obert_compiler", *options("two", 3)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)["report"]["passes"][0]["report"]
    assert report["training_steps"] == STEPS
    assert report["sparsity"] == json.loads(one.out)["report"]["passes"][0]["report"]["sparsity"]
    found, expected = (
        np.concatenate([site.weight().ravel() for site in prunable_sites(lower(tmp_path / n))[0]])
        for n in ("two", "one")
    )
    # Groups of nearly the same saliency may change places where sums are in another order.
    assert ((found == 0) != (expected == 0)).mean() < 0.01
    both = (found != 0) & (expected != 0)
    # AdamW moves a weight by the learning rate at most, whatever the rounding of its gradient.
    assert np.abs(found - expected)[both].max() < 3 * STEPS * RATE
    assert np.median(np.abs(found - expected)[both]) < 0.1 * RATE
