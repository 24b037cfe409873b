"""`to_module`: a graph as a trainable torch module; `from_module`: its parameters back."""

from __future__ import annotations

from typing import cast

import numpy as np
import onnx_ir as ir
import torch
from torch import fx, nn

from obert_compiler.backends.torch.builder import Builder, identifier
from obert_compiler.backends.torch.parameters import Stored
from obert_compiler.errors import GraphError
from obert_compiler.graph.graph import Graph
from obert_compiler.graph.linear import find_linear_sites

__all__ = ["OnnxModule", "from_module", "to_module"]


class OnnxModule(fx.GraphModule):
    """A graph as a torch module: ``print(module.code)`` shows the whole forward pass.

    ``forward`` takes the graph's inputs by name, or by position in their order, and returns a
    dictionary of tensors by output name. Batch and sequence are dynamic; the device is that of the
    inputs.
    """

    def __call__(self, *args: torch.Tensor, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Run the graph; input names that are no Python identifiers are accepted as they are."""
        named = {identifier(name): value for name, value in inputs.items()}
        outputs: dict[str, torch.Tensor] = super().__call__(*args, **named)
        return outputs

    @property
    def linear_sites(self) -> dict[str, nn.Linear]:
        """The nn.Linear of every Linear site by site name; a shared weight is one module."""
        paths: dict[str, str] = self.meta["linear_paths"]
        return {name: cast("nn.Linear", self.get_submodule(path)) for name, path in paths.items()}

    @property
    def stored(self) -> dict[str, Stored]:
        """Where each parameter came from in the graph, by its path in the module."""
        return cast("dict[str, Stored]", self.meta["stored"])


def to_module(graph: Graph, *, fake_quantisation: bool = True) -> OnnxModule:
    """Turn a graph into a torch module with the same outputs.

    Float initializers become parameters under their source names, every Linear site an nn.Linear
    (weight ``[out, in]``, dequantised and unpacked where it was compressed), constants buffers
    under ``constants``. Quantised activations become fake quantisation with straight-through
    gradients.

    Args:
        graph: in canonical form; any stage.
        fake_quantisation: False leaves activations as they are instead of rounding them.

    Raises:
        GraphError: an op has no row in the operator table.
    """
    builder = Builder(graph, fake_quantisation=fake_quantisation)
    builder.build()
    module = OnnxModule(builder.tree.root, builder.fx_graph, class_name="OnnxModule")
    # What no output depends on is not in the module.
    live = {path for path, _ in module.named_parameters(remove_duplicate=False)}
    paths = builder.linear_paths.items()
    module.meta["linear_paths"] = {name: p for name, p in paths if f"{p}.weight" in live}
    module.meta["stored"] = {p: stored for p, stored in builder.tree.stored.items() if p in live}
    return module


def from_module(module: OnnxModule, graph: Graph) -> None:
    """Write the parameters of ``module`` back into the graph it was built from.

    Raises:
        GraphError: a parameter has no initializer of its shape in ``graph``, or belongs to a site
            that is quantised or packed and was changed.
    """
    initializers = graph.model.graph.initializers
    sites = None
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for path, stored in module.stored.items():
        if path not in parameters:
            raise GraphError(f"parameter '{path}': expected it in the module, found none")
        array = parameters[path].detach().to("cpu", torch.float32).numpy()
        if stored.initializer is None:
            sites = sites or find_linear_sites(graph)
            if stored.site is not None and not np.array_equal(sites[stored.site].weight(), array):
                raise GraphError(
                    f"site '{stored.site}': its weight is quantised or packed and cannot take the "
                    "trained one; train before 'quant' and 'pack'"
                )
            continue
        value = initializers.get(stored.initializer)
        array = np.ascontiguousarray(array.T if stored.transposed else array)
        if value is None or value.const_value is None:
            raise GraphError(
                f"parameter '{path}': expected initializer '{stored.initializer}' in the graph, "
                "found none; write back into the graph that the module was built from"
            )
        if tuple(value.const_value.shape.numpy()) != array.shape:
            raise GraphError(
                f"parameter '{path}': expected shape {value.const_value.shape}, found {array.shape}"
            )
        value.const_value = ir.tensor(array.copy(), name=value.name)
