"""The models that compare.py times: BERT-base shapes with random weights, each made once.

Speed does not depend on what a model has learned, only on its shapes and on where its zeros are.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

_LAYERS = 12
_EXAMPLES, _TOKENS = 16, 128


def float_model(folder: Path) -> Path:
    """The float32 classifier of 12 layers, as ONNX."""
    return _compiled(folder, "float", [])


def compiled_model(folder: Path, layers: int, sparsity: int) -> Path:
    """``layers`` layers in INT8 with ``sparsity`` percent of zero 4-blocks, packed; 0: dense."""
    passes = ["quant"]
    if sparsity:
        passes.append("pack")
        passes.insert(0, f"prune:method=magnitude:sparsity={sparsity / 100}:block=4")
    if layers != _LAYERS:
        passes.insert(0, f"drop-layers:keep={layers}")
    return _compiled(folder, f"{layers}-{sparsity}", passes)


def others_model(folder: Path, layers: int, sparsity: int) -> Path:
    """The pruned float32 model, quantised by ONNX Runtime: every MatMul, those of attention too.

    Weights have a scale for each output and use all 8 bits.
    """
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Examples(CalibrationDataReader):  # type: ignore[misc] # onnxruntime has no types
        def __init__(self, examples: dict[str, np.ndarray]) -> None:
            starts = range(0, _EXAMPLES, 4)
            self._feeds = iter([{n: a[i : i + 4] for n, a in examples.items()} for i in starts])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._feeds, None)

    passes = [f"prune:method=magnitude:sparsity={sparsity / 100}:block=4"]
    if layers != _LAYERS:
        passes.insert(0, f"drop-layers:keep={layers}")
    source = _compiled(folder, f"{layers}-{sparsity}-float", passes)
    target = source.with_name("quantised.onnx")
    if not target.exists():
        unfinished = target.with_suffix(".new")
        quantize_static(
            source,
            unfinished,
            Examples(dict(np.load(example_data(folder)))),
            QuantFormat.QDQ,
            per_channel=True,
            op_types_to_quantize=["MatMul", "Gemm"],
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        unfinished.rename(target)
    return target


def every_token_model(folder: Path, layers: int, sparsity: int) -> Path:
    """The same without its head: it hands out the hidden states of every token.

    The classifier reads the first token alone, and our engine computes what leads to others only
    as far as that one needs it.
    """
    classifier = compiled_model(folder, layers, sparsity)
    target = classifier.with_name("every_token.onnx")
    if not target.exists():
        import onnx

        graph = onnx.load(classifier).graph
        first = [
            node for node in graph.node if node.op_type == "Gather" and node.output[0] == "select"
        ]
        (hidden,) = {node.input[0] for node in first}
        unfinished = target.with_name("every_token.new.onnx")
        inputs = [value.name for value in graph.input]
        onnx.utils.extract_model(classifier, unfinished, inputs, [hidden], check_model=False)
        unfinished.rename(target)
    return target


def unpacked_model(folder: Path, layers: int, sparsity: int) -> Path:
    """The same with its INT8 weights stored whole, for OpenVINO, which unpacks at every call."""
    packed = compiled_model(folder, layers, sparsity)
    if not sparsity:
        return packed
    target = packed.with_name("unpacked.onnx")
    if not target.exists():
        sys.path.append(str(Path(__file__).parents[1]))
        from packed_load import unpacked_copy

        unfinished = target.with_suffix(".new")
        unpacked_copy(packed, unfinished)
        unfinished.rename(target)
    return target


def _compiled(folder: Path, name: str, passes: list[str]) -> Path:
    return compile_into(folder / name, _checkpoint(folder), example_data(folder), passes)


def compile_into(out: Path, checkpoint: Path, data: Path, passes: list[str]) -> Path:
    """The ONNX file that ``passes`` make of ``checkpoint``, made once."""
    if not (out / "model.onnx").exists():
        print(f"making {out.name}: {','.join(passes) or 'no passes'}", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "obert_compiler", "compile", str(checkpoint)]
        command += ["-o", str(out), "--passes", ",".join(passes) or "none", "--overwrite"]
        command += ["--data", str(data), "--no-latency"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return out / "model.onnx"


def _checkpoint(folder: Path) -> Path:
    checkpoint = folder / "checkpoint"
    if not checkpoint.exists():
        import torch
        from transformers import BertConfig, BertForSequenceClassification

        torch.manual_seed(0)
        unfinished = folder / "checkpoint.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        BertForSequenceClassification(BertConfig()).save_pretrained(unfinished)
        unfinished.rename(checkpoint)
    return checkpoint


def example_data(folder: Path) -> Path:
    """Random tokens in ``folder``, made once."""
    data = folder / "data.npz"
    if not data.exists():
        ids = np.random.default_rng(0).integers(1000, 30000, (_EXAMPLES, _TOKENS))
        mask = np.ones_like(ids)
        np.savez(data, input_ids=ids, attention_mask=mask, token_type_ids=np.zeros_like(ids))
    return data
