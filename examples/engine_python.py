"""Run a compiled model in ONNX Runtime with the engine, without importing obert_compiler.

    python examples/engine_python.py OUT/model.onnx "$(obertc engine --path)"

Needs onnxruntime 1.23.1 or newer, numpy, and the one file that `obertc engine --path` names.
"""

import sys

import numpy as np
import onnxruntime

PROVIDER = "ObertExecutionProvider"


def open_session(model: str, library: str, threads: int = 2) -> "onnxruntime.InferenceSession":
    """Open ``model`` with the engine first and ONNX Runtime for what the engine leaves."""
    devices = [d for d in onnxruntime.get_ep_devices() if d.ep_name == PROVIDER]
    if not devices:  # once in a process: a second registration would make a second device
        onnxruntime.register_execution_provider_library(PROVIDER, library)
        devices = [d for d in onnxruntime.get_ep_devices() if d.ep_name == PROVIDER]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # ONNX Runtime warns of every node that the engine leaves to it
    options.add_provider_for_devices(devices[:1], {"threads": str(threads)})
    return onnxruntime.InferenceSession(model, options)


def main(model: str, library: str) -> None:
    """Run two sequences of eight tokens and print the providers and the first output."""
    session = open_session(model, library)
    ids = np.arange(16, dtype=np.int64).reshape(2, 8)
    known = {"attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    feed = {value.name: known.get(value.name, ids) for value in session.get_inputs()}
    print("providers:", ", ".join(session.get_providers()))
    print(session.get_outputs()[0].name, session.run(None, feed)[0])


if __name__ == "__main__":
    main(*sys.argv[1:])
