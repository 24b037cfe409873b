"""Parameters that do not train."""

from __future__ import annotations

from typing import TYPE_CHECKING

from obert_compiler.graph.embeddings import find_embeddings

if TYPE_CHECKING:
    from obert_compiler.backends.torch import OnnxModule
    from obert_compiler.graph.graph import Graph

__all__ = ["freeze_tables"]


def freeze_tables(module: OnnxModule, graph: Graph) -> list[str]:
    """Freeze the embedding tables of a module; the paths of its parameters that are frozen.

    A table that a Linear site multiplies by (a tied decoder) is a matrix of the head and trains.
    """
    tables = {site.root.name for site in find_embeddings(graph) if not site.also_linear}
    paths = [path for path, stored in module.stored.items() if stored.initializer in tables]
    for path in paths:
        module.get_parameter(path).requires_grad_(False)
    return paths
