"""The module that a node came from, as far as its exporter left traces."""

from __future__ import annotations

import ast

import onnx_ir as ir

__all__ = ["scope_of"]

_SCOPES_KEY = "pkg.torch.onnx.name_scopes"


def scope_of(node: ir.Node) -> str | None:
    """Dotted path of the module whose forward made ``node``, None where nothing tells.

    Read from the metadata of torch's dynamo exporter (the last entry is the node itself), or from
    node names like ``/encoder/layer.0/attention/self/query/MatMul`` of its older exporter.
    """
    text = node.metadata_props.get(_SCOPES_KEY)
    if text:
        try:
            scopes = ast.literal_eval(text)
        except (SyntaxError, ValueError):
            return None
        return str(scopes[-2]) or None if len(scopes) > 1 else None
    if node.name and node.name.startswith("/"):
        return ".".join(part for part in node.name.split("/")[1:-1] if part) or None
    return None
