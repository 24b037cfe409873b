"""ONNX files of other exporters, opsets and layouts become the same canonical graph."""

import subprocess
import sys
import warnings

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from obert_compiler.errors import UsageError
from obert_compiler.frontends import lower
from obert_compiler.graph import Stage, find_linear_sites

RNG = np.random.default_rng(0)


def matrix(*shape):
    """Random float32."""
    return (RNG.standard_normal(shape) * 0.3).astype(np.float32)


def proto_of(
    body, weights, *, inputs="float[n, 8] x", outputs="float[n, m] y", opset=21, domain=""
):
    """A model from ONNX text and initializers."""
    imports = f'"" : {opset}' + (f', "{domain}" : 1' if domain else "")
    text = f"<ir_version: 8, opset_import: [{imports}]> g ({inputs}) => ({outputs}) {{ {body} }}"
    proto = onnx.parser.parse_model(text)
    for name, array in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    return proto


def save(proto, folder, name="model.onnx"):
    """The file that holds ``proto``."""
    onnx.save(proto, folder / name)
    return folder / name


MLP = "h = MatMul(x, W1) a = Add(h, b1) r = Relu(a) y = Gemm<transB=1>(r, W2, b2)"


@pytest.fixture
def mlp():
    """Weights of a small multi-layer perceptron."""
    return {"W1": matrix(8, 16), "b1": matrix(16), "W2": matrix(3, 16), "b2": matrix(3)}


def mlp_of(x, w):
    """What the perceptron computes."""
    return np.maximum(x @ w["W1"] + w["b1"], 0) @ w["W2"].T + w["b2"]


# --- exporters -------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def old_export(tiny_folder, tmp_path_factory):
    """``old_export(arch, opset)``: a file by torch's TorchScript exporter, all biases zero."""
    import torch
    import transformers

    def make(arch, opset):
        transformers.logging.disable_progress_bar()
        module = transformers.AutoModelForSequenceClassification.from_pretrained(
            tiny_folder(arch, "sequence"), attn_implementation="eager"
        ).eval()
        module.config.return_dict = False
        for name, parameter in module.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.zeros_(parameter)
            elif parameter.ndim == 1:
                torch.nn.init.ones_(parameter)
        file = tmp_path_factory.mktemp("old") / f"{arch}-{opset}.onnx"
        inputs = torch.full((2, 16), 7), torch.ones(2, 16, dtype=torch.long)
        names = ["input_ids", "attention_mask"]
        axes = {0: "batch_size", 1: "sequence_length"}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter announces its end
            torch.onnx.export(
                module,
                inputs,
                str(file),
                dynamo=False,
                opset_version=opset,
                input_names=names,
                output_names=["logits"],
                dynamic_axes={**dict.fromkeys(names, axes), "logits": {0: "batch_size"}},
            )
        return file, module

    return make


@pytest.mark.parametrize(("arch", "opset"), [("bert", 11), ("bert", 13), ("albert", 17)])
def test_older_torch_exporter(arch, opset, old_export, batches, run):
    import torch

    file, module = old_export(arch, opset)
    graph = lower(file)
    for batch in batches(module.config.vocab_size, module.config.pad_token_id):
        got = run(graph, batch)["logits"]
        np.testing.assert_allclose(got, run(file, batch)["logits"], atol=1e-4)
    linear = {n: m for n, m in module.named_modules() if isinstance(m, torch.nn.Linear)}
    sites = find_linear_sites(graph)
    assert {site.name for site in sites} == set(linear)
    for site in sites:
        np.testing.assert_array_equal(site.weight(), linear[site.name].weight.detach())
        assert len(site.nodes) == (3 if "albert_layer_groups" in site.name else 1)
        # Biases of equal content were merged by the exporter; each site has its own again.
        assert {bias.name for bias in site.bias_values} == {f"{site.name}.bias"}
    names = {
        v.metadata_props.get("obert.parameter") for v in graph.model.graph.initializers.values()
    }
    assert names - {None} == {name for name, _ in module.named_parameters()}
    assert [node for node in graph.model.graph if node.op_type in {"Identity", "Constant"}] == []
    softmax = [node for node in graph.model.graph if node.op_type == "Softmax"]
    assert {node.inputs[0].producer().op_type for node in softmax} == {"Add"}
    for value in graph.model.graph.inputs:
        assert [str(dim) for dim in value.shape] == ["batch", "sequence"]


def test_dynamo_export_with_merged_biases(tmp_path, run):
    import torch

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.query = torch.nn.Linear(8, 8)
            self.norm = torch.nn.LayerNorm(8)

        def forward(self, x):
            return self.norm(x + self.query(x))

    blocks = torch.nn.Sequential(Block(), Block()).eval()
    for name, parameter in blocks.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.zeros_(parameter)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of torch
        program = torch.onnx.export(
            blocks,
            (torch.randn(2, 4, 8),),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            optimize=True,
            verbose=False,
        )
    file = tmp_path / "blocks.onnx"
    program.save(file)
    merged = [n for n in onnx.load(file).graph.initializer if n.name.endswith("bias")]
    assert len(merged) == 1  # else this test shows nothing
    graph = lower(file)
    parameters = dict(blocks.named_parameters())
    held = {}
    for value in graph.model.graph.initializers.values():
        name = value.metadata_props.get("obert.parameter")
        if name is not None:
            held[name] = value
    assert held.keys() == parameters.keys()
    assert [site.name for site in find_linear_sites(graph)] == ["0.query", "1.query"]
    name = graph.model.graph.inputs[0].name
    x = matrix(3, 4, 8)
    with torch.no_grad():
        expected = blocks(torch.from_numpy(x)).numpy()
    (got,) = run(graph, {name: x}).values()
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_tensorflow_style(tmp_path, run):
    kernel, bias = matrix(8, 16), matrix(16)
    weights = {"k": kernel, "b": bias, "flat": np.array([-1, 8]), "unflat": np.array([-1, 5, 16])}
    body = "f = Reshape(x, flat) m = MatMul(f, k) a = Add(m, b) y = Reshape(a, unflat)"
    shapes = {"inputs": "float[n, 5, 8] x", "outputs": "float[n, 5, 16] y"}
    proto = proto_of(body, weights, opset=13, **shapes)
    names = {"k": "dense/MatMul/ReadVariableOp:0", "b": "dense/BiasAdd/ReadVariableOp:0"}
    for node in proto.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    for tensor in proto.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    graph = lower(save(proto, tmp_path))
    (site,) = find_linear_sites(graph)
    assert (site.name, site.shape) == (names["k"], (16, 8))
    x = matrix(2, 5, 8)
    np.testing.assert_allclose(run(graph, {"x": x})["y"], x @ kernel + bias, atol=1e-5)


def test_int32_token_ids_become_int64(tmp_path, run):
    table = matrix(20, 8)
    shapes = {"inputs": "int32[n, s] ids", "outputs": "float[n, s, 8] y"}
    graph = lower(save(proto_of("y = Gather(table, ids)", {"table": table}, **shapes), tmp_path))
    assert graph.model.graph.inputs[0].dtype == ir.DataType.INT64
    ids = RNG.integers(0, 20, (2, 5))
    np.testing.assert_array_equal(run(graph, {"ids": ids})["y"], table[ids])


def test_domain_of_standard_ops_may_be_spelt_out(mlp, tmp_path, run):
    proto = proto_of(MLP, mlp, opset=13)
    proto.opset_import[0].domain = "ai.onnx"
    for node in proto.graph.node:
        node.domain = "ai.onnx"
    graph = lower(save(proto, tmp_path))
    assert graph.model.graph.opset_imports == {"": 21}
    x = matrix(5, 8)
    np.testing.assert_allclose(run(graph, {"x": x})["y"], mlp_of(x, mlp), atol=1e-5)


# --- layouts of weights ----------------------------------------------------------------------


@pytest.mark.parametrize("opset", [11, 12, 13, 15, 17, 18, 20, 21, 22, 23])
def test_every_opset(opset, mlp, tmp_path, run):
    graph = lower(save(proto_of(MLP, mlp, opset=opset), tmp_path))
    assert graph.model.graph.opset_imports[""] == max(opset, 21)
    x = matrix(5, 8)
    np.testing.assert_allclose(run(graph, {"x": x})["y"], mlp_of(x, mlp), atol=1e-5)
    assert [site.name for site in find_linear_sites(graph)] == ["W1", "W2"]
    assert graph.source.bytes_on_disk == 4 * sum(w.size for w in mlp.values())
    onnx.checker.check_model(ir.to_proto(graph.model), full_check=True)


def hide(name, chain):
    """The perceptron with W1 behind ``chain``, which makes ``w`` of ``W1``."""
    return f"{chain} " + MLP.replace("W1", name)


LAYOUTS = {
    "transposed": (hide("w", "w = Transpose<perm=[1,0]>(W1)"), lambda w: w.T.copy()),
    "identity": (hide("w", "w = Identity(W1)"), lambda w: w),
    "float16": (hide("w", "w = Cast<to=1>(W1)"), lambda w: w.astype(np.float16)),
    "bfloat16": (hide("w", "w = Cast<to=1>(W1)"), lambda w: w.astype(ml_dtypes.bfloat16)),
    "double": (hide("w", "w = Cast<to=1>(W1)"), lambda w: w.astype(np.float64)),
    "float16 transposed": (
        hide("w", "c = Cast<to=1>(W1) w = Transpose(c)"),
        lambda w: w.T.astype(np.float16),
    ),
}


@pytest.mark.parametrize("constant", [False, True], ids=["initializers", "constant nodes"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_hidden_weights_come_to_light(layout, constant, mlp, tmp_path, run):
    body, store = LAYOUTS[layout]
    stored = store(mlp["W1"])
    exact = stored.astype(np.float32)
    mlp["W1"] = exact.T if "transposed" in layout else exact
    proto = proto_of(body, {**mlp, "W1": stored})
    if constant:
        constants_for_initializers(proto)
    graph = lower(save(proto, tmp_path))
    assert {node.op_type for node in graph.model.graph} == {"MatMul", "Add", "Relu", "Gemm"}
    first, _ = find_linear_sites(graph)
    assert first.weight_value.const_value.dtype == ir.DataType.FLOAT
    np.testing.assert_array_equal(first.weight(), mlp["W1"].T)
    x = matrix(5, 8)
    np.testing.assert_allclose(run(graph, {"x": x})["y"], mlp_of(x, mlp), atol=1e-5)


def constants_for_initializers(proto):
    """Turn every initializer into a Constant node."""
    nodes = [
        onnx.helper.make_node("Constant", [], [tensor.name], value=tensor)
        for tensor in proto.graph.initializer
    ]
    nodes += proto.graph.node
    del proto.graph.node[:]
    del proto.graph.initializer[:]
    proto.graph.node.extend(nodes)


def test_half_precision_graph(mlp, tmp_path, run):
    half = {name: weight.astype(np.float16) for name, weight in mlp.items()}
    body = "h = Cast<to=10>(x) " + MLP.replace("MatMul(x", "MatMul(h").replace("h = M", "i = M")
    body = body.replace("Add(h", "Add(i")
    proto = proto_of(body, half, inputs="float16[n, 8] x", outputs="float16[n, m] y")
    graph = lower(save(proto, tmp_path))
    assert {node.op_type for node in graph.model.graph} == {"MatMul", "Add", "Relu", "Gemm"}
    assert graph.model.graph.inputs[0].dtype == ir.DataType.FLOAT
    assert graph.model.graph.outputs[0].dtype == ir.DataType.FLOAT
    x = matrix(5, 8)
    exact = {name: weight.astype(np.float32) for name, weight in half.items()}
    np.testing.assert_allclose(run(graph, {"x": x})["y"], mlp_of(x, exact), atol=1e-5)


def test_external_data_stays_in_its_file(mlp, tmp_path, run):
    proto = proto_of(MLP, mlp, opset=13)
    file = tmp_path / "model.onnx"
    onnx.save(proto, file, save_as_external_data=True, location="weights.bin", size_threshold=0)
    graph = lower(file)
    tensor = graph.model.graph.initializers["W1"].const_value
    assert not tensor.numpy().flags.writeable  # mapped from the file, not read into memory
    (tmp_path / "elsewhere").mkdir()
    ir.save(graph.model, tmp_path / "elsewhere/model.onnx")
    x = matrix(5, 8)
    for model in (graph, tmp_path / "elsewhere/model.onnx"):
        np.testing.assert_allclose(run(model, {"x": x})["y"], mlp_of(x, mlp), atol=1e-5)


def test_initializers_listed_as_inputs(mlp, tmp_path):
    proto = proto_of(MLP, mlp, opset=11)
    for tensor in proto.graph.initializer:
        value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        proto.graph.input.append(value)
    graph = lower(save(proto, tmp_path))
    assert [value.name for value in graph.model.graph.inputs] == ["x"]


def test_local_functions_are_inlined(mlp, tmp_path, run):
    text = """<ir_version: 8, opset_import: ["" : 18, "local" : 1]>
    g (float[n, 8] x) => (float[n, 3] y) { a = local.Dense(x, W1, b1) r = Relu(a)
      y = Gemm<transB=1>(r, W2, b2) }
    <opset_import: ["" : 18], domain: "local"> Dense (x, w, b) => (y)
      { h = MatMul(x, w) y = Add(h, b) }"""
    proto = onnx.parser.parse_model(text)
    for name, array in mlp.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    graph = lower(save(proto, tmp_path))
    assert not graph.model.functions
    x = matrix(5, 8)
    np.testing.assert_allclose(run(graph, {"x": x})["y"], mlp_of(x, mlp), atol=1e-5)


def test_weights_that_are_shared_or_tied_stay_one(tmp_path, run):
    table = matrix(20, 8)
    body = "e = Gather(table, ids) t = Transpose<perm=[1,0]>(table) y = MatMul(e, t)"
    proto = proto_of(
        body, {"table": table}, inputs="int64[n, s] ids", outputs="float[n, s, 20] y", opset=17
    )
    graph = lower(save(proto, tmp_path))
    assert list(graph.model.graph.initializers) == ["table"]
    assert [node.op_type for node in graph.model.graph] == ["Gather", "Transpose", "MatMul"]
    ids = RNG.integers(0, 20, (2, 5))
    np.testing.assert_allclose(run(graph, {"ids": ids})["y"], table[ids] @ table.T, atol=1e-5)


def test_product_of_parameters_is_not_frozen(tmp_path):
    # DeBERTa: a table of positions times the key projection, which also reads activations.
    body = "p = MatMul(table, W) k = MatMul(x, W) t = Transpose(p) y = MatMul(k, t)"
    weights = {"table": matrix(6, 8), "W": matrix(8, 8)}
    graph = lower(save(proto_of(body, weights), tmp_path))
    weight = graph.model.graph.initializers["W"]
    assert len(weight.uses()) == 2
    assert [site.name for site in find_linear_sites(graph)] == ["W"]


# --- what is no Transformer ------------------------------------------------------------------


def test_convolutional_network(tmp_path, run):
    body = (
        "c = Conv<kernel_shape=[3], pads=[1,1]>(x, K, kb) n = BatchNormalization(c, g, b, m, v) "
        "r = Relu(n) p = GlobalAveragePool(r) f = Flatten(p) y = Gemm<transB=1>(f, W, wb)"
    )
    weights = {"K": matrix(4, 2, 3), "kb": matrix(4), "W": matrix(3, 4), "wb": matrix(3)}
    weights |= {"g": matrix(4), "b": matrix(4), "m": matrix(4), "v": matrix(4) ** 2 + 0.1}
    proto = proto_of(body, weights, inputs="float[n, 2, t] x", outputs="float[n, 3] y", opset=14)
    file = save(proto, tmp_path)
    graph = lower(file)
    assert graph.model.graph.initializers.keys() == weights.keys()
    sites = find_linear_sites(graph)
    assert [site.name for site in sites] == ["W"]
    assert ["Conv" in unmatched.reason for unmatched in sites.unmatched] == [True]
    x = matrix(2, 2, 9)
    np.testing.assert_allclose(run(graph, {"x": x})["y"], run(file, {"x": x})["y"], atol=1e-5)


def test_quantised_file_keeps_its_stage(mlp, tmp_path):
    body = MLP.replace("W1", "w")
    q = RNG.integers(-64, 65, (8, 16)).astype(np.int8)
    proto = proto_of(
        f"w = DequantizeLinear<axis=1>(q, s) {body}", {**mlp, "q": q, "s": matrix(16) ** 2}
    )
    graph = lower(save(proto, tmp_path))
    assert graph.stage is Stage.QUANTISED
    assert "DequantizeLinear" in {node.op_type for node in graph.model.graph}


def test_own_file_comes_back_as_it_was(mlp, tmp_path):
    graph = lower(save(proto_of(MLP, mlp), tmp_path))
    graph.advance(Stage.PRUNED)
    before = ir.to_proto(graph.model)
    again = lower(save(before, tmp_path, "again.onnx"))
    assert again.stage is Stage.PRUNED
    assert ir.to_proto(again.model).SerializeToString() == before.SerializeToString()
    names = [site.name for site in find_linear_sites(graph)]
    assert [site.name for site in find_linear_sites(again)] == names


# --- what lies beside the file ---------------------------------------------------------------


@pytest.fixture
def encoder():
    """A file with Optimum's names: one table, read by token ids."""
    body = "last_hidden_state = Gather(table, input_ids) m = Cast<to=1>(attention_mask)"
    return proto_of(
        body,
        {"table": matrix(20, 8)},
        inputs="int64[batch_size, tokens] input_ids, int64[batch_size, tokens] attention_mask",
        outputs="float[batch_size, tokens, 8] last_hidden_state",
    )


@pytest.mark.parametrize("layout", ["file", "folder", "onnx subfolder"])
def test_configuration_beside_the_file(layout, encoder, tmp_path):
    inner = tmp_path / "onnx" if layout == "onnx subfolder" else tmp_path
    inner.mkdir(exist_ok=True)
    file = save(encoder, inner)
    (tmp_path / "config.json").write_text(
        '{"architectures": ["BertForMaskedLM"], "vocab_size": 20}'
    )
    graph = lower(file if layout == "file" else tmp_path)
    assert graph.source.kind == "onnx"
    assert graph.source.task == "fill-mask"
    assert graph.source.folder == tmp_path
    assert graph.source.config["vocab_size"] == 20
    assert lower(file, task="feature-extraction").source.task == "feature-extraction"


def test_folder_with_another_file_name(encoder, tmp_path):
    save(encoder, tmp_path, "encoder.onnx")
    (tmp_path / "training_args.bin").write_bytes(b"")
    assert lower(tmp_path).source.location == str(tmp_path / "encoder.onnx")
    save(encoder, tmp_path, "again.onnx")
    with pytest.raises(UsageError, match=r"found again\.onnx, encoder\.onnx; name the file"):
        lower(tmp_path)


def test_no_configuration(encoder, tmp_path):
    source = lower(save(encoder, tmp_path)).source
    assert (source.task, source.folder, source.config) == (None, None, {})


def test_sentence_embedding_is_added(encoder, tmp_path, run):
    (tmp_path / "config.json").write_text("{}")
    modules = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    entries = ", ".join(f'{{"type": "x.{kind}", "path": "{path}"}}' for kind, path in modules)
    (tmp_path / "modules.json").write_text(f"[{entries}]")
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling/config.json").write_text('{"pooling_mode_cls_token": true}')
    graph = lower(save(encoder, tmp_path))
    assert graph.source.task == "feature-extraction"
    ids = RNG.integers(0, 20, (3, 5))
    got = run(graph, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
    first = got["last_hidden_state"][:, 0]
    expected = first / np.linalg.norm(first, axis=1, keepdims=True)
    np.testing.assert_allclose(got["sentence_embedding"], expected, atol=1e-6)


def test_needs_no_torch(mlp, tmp_path):
    file = save(proto_of(MLP, mlp, opset=13), tmp_path)
    code = (
        f"import sys, obert_compiler.frontends as f; f.lower({str(file)!r}); "
        "print({'torch', 'transformers', 'onnxruntime'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
