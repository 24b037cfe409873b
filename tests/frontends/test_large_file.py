"""A file of more than 2 GB, which no protobuf message can hold."""

import onnx
import pytest

from obert_compiler.frontends import lower
from obert_compiler.graph import find_linear_sites

SIZE = 16384
BYTES = 4 * SIZE * SIZE


@pytest.mark.slow
def test_opset_11_with_3_gb_of_external_data(tmp_path):
    body = "a = MatMul(x, W0) b = MatMul(a, W1) c = MatMul(b, W2) y = Softmax<axis=1>(c)"
    proto = onnx.parser.parse_model(
        f'<ir_version: 6, opset_import: ["" : 11]> g (float[n, {SIZE}] x) => (float[n, {SIZE}] y) '
        f"{{ {body} }}"
    )
    for index in range(3):
        tensor = proto.graph.initializer.add(
            name=f"W{index}",
            data_type=onnx.TensorProto.FLOAT,
            dims=[SIZE, SIZE],
            data_location=onnx.TensorProto.EXTERNAL,
        )
        entries = {"location": "weights.bin", "offset": index * BYTES, "length": BYTES}
        for key, entry in entries.items():
            tensor.external_data.add(key=key, value=str(entry))
    onnx.save(proto, tmp_path / "model.onnx")
    with (tmp_path / "weights.bin").open("wb") as file:
        file.truncate(3 * BYTES)  # a sparse file of zeros: no space on the disk
    graph = lower(tmp_path / "model.onnx")
    assert [site.shape for site in find_linear_sites(graph)] == [(SIZE, SIZE)] * 3
    assert [node.op_type for node in graph.model.graph] == ["MatMul"] * 3 + ["Softmax"]
    assert graph.source.bytes_on_disk == 3 * BYTES
