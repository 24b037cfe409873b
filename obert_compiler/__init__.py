"""A compression compiler for BERT-type encoders.

    import obert_compiler as obc
    from obert_compiler.passes import Pack, Prune, Quant

    graph = obc.lower("path/or/hub-id", task="text-classification")
    graph = obc.PassManager([Prune(sparsity=0.8, block=4), Quant(), Pack()]).run(graph, data=rows)
    obc.emit(graph, "onnx", out="out/")
    session = obc.runtime.session("out/model.onnx", threads=2)

Everything is imported when it is first used: a program that only runs a compiled model needs
neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "Batches",
    "CompileResult",
    "Graph",
    "PassManager",
    "Recipe",
    "compile_model",
    "emit",
    "lower",
    "runtime",
]

if TYPE_CHECKING:
    from obert_compiler import runtime
    from obert_compiler.compile import CompileResult, compile_model
    from obert_compiler.data.batches import Batches
    from obert_compiler.emission import emit
    from obert_compiler.frontends import lower
    from obert_compiler.graph.graph import Graph
    from obert_compiler.pipeline.manager import PassManager
    from obert_compiler.pipeline.recipe import Recipe

_LAZY = {
    "Batches": "obert_compiler.data.batches",
    "CompileResult": "obert_compiler.compile",
    "Graph": "obert_compiler.graph.graph",
    "PassManager": "obert_compiler.pipeline.manager",
    "Recipe": "obert_compiler.pipeline.recipe",
    "compile_model": "obert_compiler.compile",
    "emit": "obert_compiler.emission",
    "lower": "obert_compiler.frontends",
}


def __getattr__(name: str) -> Any:
    if name == "runtime":
        return import_module("obert_compiler.runtime")
    if name not in _LAZY:
        raise AttributeError(f"module 'obert_compiler' has no attribute '{name}'")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value
