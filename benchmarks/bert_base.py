"""Size and cost of compiling BERT-base shapes: bytes, seconds and peak memory by pass.

    python benchmarks/bert_base.py --layers 12 6 3
    python benchmarks/bert_base.py --passes prune,quant,pack --examples 512

The weights are random and so are the tokens (128 in each example): neither bytes nor cost depend on
what a model has learned. Sizes are compared with the float32 checkpoint of all 12 layers, without
any further compression of either file. Each compile is a process of its own, so that peaks do not
mix.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

DEFAULT = "prune:method=magnitude:sparsity=0.8:block=4,quant,pack"
_LAYERS = 12
_TOKENS = 128


def write_checkpoint(folder: Path) -> int:
    """Write a BERT-base classifier with random weights; its bytes on disk."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    BertForSequenceClassification(BertConfig()).save_pretrained(folder)
    return (folder / "model.safetensors").stat().st_size


def write_data(path: Path, examples: int) -> None:
    """Write random tokens, one array per input of the graph."""
    rng = np.random.default_rng(0)
    ids = rng.integers(1000, 30000, (examples, _TOKENS))
    np.savez(
        path,
        input_ids=ids,
        attention_mask=np.ones_like(ids),
        token_type_ids=np.zeros_like(ids),
    )


def compile_once(model: Path, data: Path, out: Path, passes: str) -> dict[str, object]:
    """Compile in a fresh process; its report."""
    command = [sys.executable, "-m", "obert_compiler", "compile", str(model), "-o", str(out)]
    command += ["--passes", passes, "--data", str(data), "--no-latency"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    report: dict[str, object] = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return report


def main() -> None:
    """Compile for each number of layers and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[_LAYERS])
    parser.add_argument("--passes", default=DEFAULT)
    parser.add_argument("--examples", type=int, default=16)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = write_checkpoint(folder / "model")
        write_data(folder / "data.npz", options.examples)
        for layers in options.layers:
            passes = options.passes
            if layers != _LAYERS:
                passes = f"drop-layers:keep={layers},{passes}"
            out = folder / f"out-{layers}"
            report = compile_once(folder / "model", folder / "data.npz", out, passes)
            show(report, layers, passes, checkpoint, (out / "model.onnx").stat().st_size)


def show(
    report: dict[str, object], layers: int, passes: str, checkpoint: int, emitted: int
) -> None:
    """Print what one compile took and made."""
    print(f"{layers} layers, {passes}, on {report['cpu']}")
    print(f"  {emitted / 1e6:.2f} MB, {checkpoint / emitted:.2f}x smaller than the checkpoint")
    steps = [("lowering", report["lowering"])]
    steps += [(record["name"], record) for record in report["passes"]]  # type: ignore[attr-defined]
    steps.append(("writing", report["writing"]))
    for name, figures in steps:
        seconds, peak = figures["seconds"], figures["peak_memory_bytes"] / 1e9
        print(f"  {name:12} {seconds:8.1f} s   peak {peak:5.2f} GB")


if __name__ == "__main__":
    main()
