"""Passes, one file each; the mathematics of each in a file beside it that knows no graph.

``from obert_compiler.passes import Prune`` imports the file of that pass alone.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = [
    "DropLayers",
    "Finetune",
    "Fisher",
    "Gradual",
    "Pack",
    "Prune",
    "Quant",
    "QuantizationAwareTraining",
]

if TYPE_CHECKING:
    from obert_compiler.passes.drop_layers import DropLayers
    from obert_compiler.passes.finetune import Finetune
    from obert_compiler.passes.fisher import Fisher
    from obert_compiler.passes.gradual import Gradual
    from obert_compiler.passes.pack import Pack
    from obert_compiler.passes.prune import Prune
    from obert_compiler.passes.qat import QuantizationAwareTraining
    from obert_compiler.passes.quant import Quant

_FILES = {
    "DropLayers": "drop_layers",
    "Finetune": "finetune",
    "Fisher": "fisher",
    "Gradual": "gradual",
    "Pack": "pack",
    "Prune": "prune",
    "QuantizationAwareTraining": "qat",
    "Quant": "quant",
}


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module 'obert_compiler.passes' has no attribute '{name}'")
    return getattr(import_module(f"obert_compiler.passes.{_FILES[name]}"), name)
