"""Encoders other than BERT, at base size: the table of docs/engine.md below that of BERT.

    python benchmarks/engine/encoders.py                        # all of them
    python benchmarks/engine/encoders.py modernbert eurobert    # these

Random weights, 80% zeros in 4-blocks, INT8, packed; 1 x 128 tokens, 2 threads, measured as
compare.py measures: ONNX Runtime in float32 and INT8, and our engine. Names are those of
``transformers``. Making a model takes one to three minutes the first time (``--models``, kept).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from compare import ROOT, THREADS, by_turns, processor
from models import compile_into, example_data

SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "cls_token_id": 1, "eos_token_id": 2}
CONFIGS: dict[str, dict[str, Any]] = {
    "modernbert": {"sep_token_id": 2},
    "gte": {},
    "nomic_bert": {},
    "eurobert": {"mask_token_id": 4},
    "deberta-v2": {  # as microsoft/deberta-v3-base
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 256,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "position_biased_input": False,
        "type_vocab_size": 0,
    },
    "mobilebert": {},
    "t5": {  # as google-t5/t5-base
        "d_model": 768,
        "d_ff": 3072,
        "num_layers": 12,
        "num_heads": 12,
    },
    "gemma3_text": {  # as google/embeddinggemma-300m
        "hidden_size": 768,
        "intermediate_size": 1152,
        "num_hidden_layers": 24,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "use_bidirectional_attention": True,
    },
    "qwen3": {  # as Qwen/Qwen3-Embedding-0.6B
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
}
WITHOUT_HEAD = {"t5": "AutoModelForTextEncoding", "gemma3_text": "AutoModel", "qwen3": "AutoModel"}
"""Encoders that hand out the hidden states of every token; others are classifiers."""
PASSES = ["prune:method=magnitude:sparsity=0.8:block=4", "quant", "pack"]


def main() -> None:
    """Make, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(CONFIGS), metavar="ENCODER")
    parser.add_argument("--models", type=Path, default=ROOT / "build" / "benchmark-encoders")
    parser.add_argument("--seconds", type=float, default=45.0, help="for each encoder")
    options = parser.parse_args()
    unknown = set(options.names) - set(CONFIGS)
    if unknown:
        parser.error(f"expected some of {', '.join(CONFIGS)}, found {', '.join(sorted(unknown))}")
    print(f"On {processor()}, {THREADS} threads:\n")
    print("| | layers | ONNX Runtime float32 | this engine | ONNX Runtime INT8 |")
    print("|---" * 5 + "|")
    for name in options.names:
        print(row(name, options.models / name, options.seconds), flush=True)


def row(name: str, folder: Path, seconds: float) -> str:
    """The line of one encoder, in Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    layers = checkpoint(name, folder / "checkpoint")
    data = example_data(folder)
    models = {
        kind: str(compile_into(folder / kind, folder / "checkpoint", data, passes))
        for kind, passes in (("float", []), ("int8", PASSES))
    }
    request = {
        "engines": {
            "float": {"engine": "cpu", "model": models["float"]},
            "ours": {"engine": "obert", "model": models["int8"]},
            "ort-int8": {"engine": "cpu", "model": models["int8"]},
        },
        "batch": 1,
        "tokens": 128,
        "threads": THREADS,
        "seconds": seconds,
        "warm_up": 2,
        "least": 3,
    }
    command = [sys.executable, str(Path(__file__).with_name("measure.py")), json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr}")
    times = json.loads(done.stdout)["times"]
    least = {engine: min(ms) for engine, ms in times.items()}

    def cell(engine: str) -> str:
        ratio, turns = least["float"] / least[engine], by_turns(times, engine)
        return f"{least[engine]:.1f} ms, {ratio:.1f}x ({turns:.1f}x)"

    return (
        f"| {name} | {layers} | {least['float']:.0f} ms | **{cell('ours')}** | {cell('ort-int8')} |"
    )


def checkpoint(name: str, folder: Path) -> int:
    """Write the encoder with random weights where it is not yet; returns its layers."""
    import transformers

    if name not in transformers.CONFIG_MAPPING:
        raise SystemExit(
            f"{name}: expected a model of transformers, found none in {transformers.__version__}; "
            "update it"
        )
    if not folder.exists():
        import torch

        torch.manual_seed(0)
        options = {"vocab_size": 30522, "num_labels": 2} | SPECIAL | CONFIGS[name]
        config = transformers.AutoConfig.for_model(name, **options)
        auto = getattr(transformers, WITHOUT_HEAD.get(name, "AutoModelForSequenceClassification"))
        unfinished = folder.with_suffix(".new")
        shutil.rmtree(unfinished, ignore_errors=True)
        auto.from_config(config).save_pretrained(unfinished)
        unfinished.rename(folder)
    return int(transformers.AutoConfig.from_pretrained(folder).num_hidden_layers)


if __name__ == "__main__":
    main()
