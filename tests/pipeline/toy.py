"""A hand-built two-layer perceptron, and passes to run on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from obert_compiler.graph import Graph, Source, Stage, find_linear_sites
from obert_compiler.pipeline.contract import Context, Pass, PassResult, Skip


def perceptron() -> Graph:
    """x [batch, 8] -> Gemm 16 -> Relu -> MatMul 4 + bias -> y."""
    rng = np.random.default_rng(0)

    def constant(name: str, *shape: int) -> ir.Value:
        tensor = ir.tensor(rng.standard_normal(shape).astype(np.float32), name=name)
        return ir.Value(
            name=name,
            const_value=tensor,
            shape=ir.Shape(shape),
            type=ir.TensorType(ir.DataType.FLOAT),
        )

    def value(name: str, width: int) -> ir.Value:
        return ir.Value(
            name=name, shape=ir.Shape(["batch", width]), type=ir.TensorType(ir.DataType.FLOAT)
        )

    x, y = value("x", 8), value("y", 4)
    first = constant("first.weight", 16, 8), constant("first.bias", 16)
    second = constant("second.weight", 16, 4), constant("second.bias", 4)
    nodes = [
        ir.node("Gemm", [x, *first], {"transB": 1}, outputs=[value("h", 16)], name="first"),
    ]
    nodes.append(ir.node("Relu", nodes[0].outputs, outputs=[value("r", 16)], name="relu"))
    nodes.append(
        ir.node("MatMul", [nodes[1].outputs[0], second[0]], outputs=[value("m", 4)], name="second")
    )
    nodes.append(ir.node("Add", [nodes[2].outputs[0], second[1]], outputs=[y], name="bias"))
    graph = ir.Graph(
        [x], [y], nodes=nodes, initializers=[*first, *second], opset_imports={"": 21}, name="toy"
    )
    return Graph(ir.Model(graph, ir_version=10), Source("onnx", "toy.onnx"))


@dataclass(frozen=True)
class Scale(Pass):
    """Multiplies every weight by ``factor``."""

    name: ClassVar[str] = "scale"
    summary: ClassVar[str] = "multiply weights"
    accepts: ClassVar[frozenset[Stage]] = frozenset({Stage.DENSE, Stage.PRUNED})

    factor: float = 2.0
    sites: tuple[str, ...] = ()

    def run(self, graph: Graph, context: Context) -> PassResult:
        skips = []
        for site in context.progress.track(find_linear_sites(graph).sites, "sites"):
            if self.sites and site.name not in self.sites:
                skips.append(Skip(site.name, "not asked for"))
                continue
            site.set_weight(site.weight() * np.float32(self.factor))
        return PassResult(graph, changed=True, report={"factor": self.factor}, skips=tuple(skips))


@dataclass(frozen=True)
class Freeze(Pass):
    """Marks the graph quantised; needs Scale in front."""

    name: ClassVar[str] = "freeze"
    summary: ClassVar[str] = "mark as pruned"
    accepts: ClassVar[frozenset[Stage]] = frozenset({Stage.DENSE})
    produces: ClassVar[Stage | None] = Stage.PRUNED

    def prerequisites(self, done: list[Pass]) -> tuple[Pass, ...]:  # type: ignore[override]
        return () if any(isinstance(p, Scale) for p in done) else (Scale(factor=3.0),)

    def run(self, graph: Graph, context: Context) -> PassResult:
        return PassResult(graph, changed=False)
