"""Small models built by hand, so that no export is needed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from obert_compiler.data.tokenizer import Tokenizer, load_tokenizer

ROWS, WIDTH, CLASSES = 200, 8, 2


@pytest.fixture(scope="session")
def samples() -> Path:
    """The folder of sample data."""
    return Path(__file__).parents[1] / "datasets"


@pytest.fixture(scope="session")
def tokenizer(tiny_folder: Callable[[str, str], Path]) -> Tokenizer:
    """A WordPiece tokenizer with the layout of BERT."""
    return load_tokenizer(tiny_folder("bert", "sequence"))


def bag_of_words(
    batch: int | str = "batch",
    sequence: int | str = "sequence",
    *,
    quantised: bool = False,
    shared: bool = False,
    infinite: bool = False,
) -> onnx.ModelProto:
    """Logits from the masked mean of the rows of a table: a model of two inputs and one output.

    ``quantised`` puts QuantizeLinear and DequantizeLinear around the product; ``shared``
    dequantises the weight alone and gives it out too, which keeps ONNX Runtime from fusing the two.
    """
    generator = np.random.default_rng(0)
    table = generator.standard_normal((ROWS, WIDTH)).astype(np.float32)
    weight = generator.standard_normal((WIDTH, CLASSES)).astype(np.float32)
    if infinite:
        weight[:] = np.inf
    constants = {"table": table, "axis": np.array([1]), "last": np.array([2])}
    node = helper.make_node
    nodes = [
        node("Cast", ["attention_mask"], ["mask_float"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["mask_float", "last"], ["mask"]),
        node("Gather", ["table", "input_ids"], ["rows"]),
        node("Mul", ["rows", "mask"], ["kept"]),
        node("ReduceSum", ["kept", "axis"], ["sum"], keepdims=0),
        node("ReduceSum", ["mask", "axis"], ["count"], keepdims=0),
        node("Div", ["sum", "count"], ["mean"]),
    ]
    if quantised or shared:
        constants |= {
            "w_int": np.clip(np.round(weight / 0.05), -64, 64).astype(np.int8),
            "w_scale": np.full(CLASSES, 0.05, np.float32),
            "w_zero": np.zeros(CLASSES, np.int8),
        }
        nodes.append(node("DequantizeLinear", ["w_int", "w_scale", "w_zero"], ["weight"], axis=1))
    else:
        constants["weight"] = weight
    if quantised:
        constants |= {
            "x_scale": np.float32(0.05),
            "x_zero": np.uint8(128),
            "y_scale": np.float32(0.1),
            "y_zero": np.uint8(128),
        }
        nodes += [
            node("QuantizeLinear", ["mean", "x_scale", "x_zero"], ["x_int"]),
            node("DequantizeLinear", ["x_int", "x_scale", "x_zero"], ["x"]),
            node("MatMul", ["x", "weight"], ["y"], name="product"),
            node("QuantizeLinear", ["y", "y_scale", "y_zero"], ["y_int"]),
            node("DequantizeLinear", ["y_int", "y_scale", "y_zero"], ["logits"]),
        ]
    else:
        nodes.append(node("MatMul", ["mean", "weight"], ["logits"], name="product"))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "bag_of_words",
        [
            value("input_ids", TensorProto.INT64, [batch, sequence]),
            value("attention_mask", TensorProto.INT64, [batch, sequence]),
        ],
        [
            value("logits", TensorProto.FLOAT, [batch, CLASSES]),
            *([value("weight", TensorProto.FLOAT, [WIDTH, CLASSES])] if shared else []),
        ],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    opset = [helper.make_opsetid("", 21)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    """`bag_of_words` on disk, dynamic, in float."""
    path = tmp_path / "model.onnx"
    onnx.save(bag_of_words(), path)
    return path


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Path]:
    """`bag_of_words` with options, written as ``NAME.onnx``."""

    def make(name: str, *shape: int | str, **options: bool) -> Path:
        path = tmp_path / f"{name}.onnx"
        onnx.save(bag_of_words(*shape, **options), path)
        return path

    return make
