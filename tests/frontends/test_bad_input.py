"""What cannot be lowered is refused in one line that names it, with the right exit code."""

import shutil
import sys

import numpy as np
import onnx
import pytest

from obert_compiler.errors import ModelError, ObertError, UsageError
from obert_compiler.frontends import lower

ONE = np.ones((4, 4), np.float32)


def save(folder, body, weights=(), *, opset=21, imports="", inputs="float[n, 4] x"):
    """An ONNX file from text and initializers; its output is ``y``."""
    head = f'<ir_version: 10, opset_import: ["" : {opset}{imports}]>'
    proto = onnx.parser.parse_model(f"{head} g ({inputs}) => (float[n, m] y) {{ {body} }}")
    for name, array in dict(weights).items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(proto, folder / "model.onnx")
    return folder / "model.onnx"


def refusal(model, kind, **options):
    """The message of the error that ``lower`` raises, checked to be one line of class ``kind``."""
    with pytest.raises(ObertError) as caught:
        lower(model, **options)
    assert type(caught.value) is kind
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


# --- ONNX files ------------------------------------------------------------------------------


def test_missing_file(tmp_path):
    message = refusal(tmp_path / "none.onnx", UsageError)
    assert "none.onnx': no such file" in message


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.99])
def test_truncated_file(keep, tmp_path):
    file = save(tmp_path, "z = MatMul(x, W) y = MatMul(z, V)", {"W": ONE, "V": ONE})
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content))])
    assert "model.onnx': expected an ONNX model" in refusal(file, ModelError)


@pytest.mark.parametrize("content", [b"", b"not a model\n" * 50, b"\x00" * 100, b"PK\x03\x04" * 9])
def test_not_onnx(content, tmp_path):
    (tmp_path / "model.onnx").write_bytes(content)
    assert "expected an ONNX model" in refusal(tmp_path / "model.onnx", ModelError)


def test_missing_and_truncated_external_data(tmp_path):
    file = save(tmp_path, "y = MatMul(x, W)", {"W": ONE})
    proto = onnx.load(file)
    onnx.save(proto, file, save_as_external_data=True, location="w.bin", size_threshold=0)
    (tmp_path / "w.bin").write_bytes(b"\0" * 10)
    message = refusal(file, ModelError)
    assert "w.bin" in message
    assert "expected at least 64 bytes for 'W', found 10" in message
    (tmp_path / "w.bin").unlink()
    assert "external data in 'w.bin'" in refusal(file, ModelError)


@pytest.mark.parametrize("opset", [9, 10, 24, 26])
def test_opset_out_of_range(opset, tmp_path):
    file = save(tmp_path, "y = MatMul(x, W)", {"W": ONE}, opset=opset)
    assert f"expected opset 11 to 23, found {opset}" in refusal(file, ModelError)


def test_control_flow_is_named(tmp_path):
    body = """s = ReduceSum<keepdims=0>(x) c = Cast<to=9>(s)
      y = If(c) <then_branch = a () => (float[n, m] p) { p = MatMul(x, W) },
                 else_branch = b () => (float[n, m] q) { q = Identity(x) }>"""
    message = refusal(save(tmp_path, body, {"W": ONE}), ModelError)
    assert "without control flow, found If" in message


def test_branch_that_is_decided_is_taken(tmp_path):
    body = """c = Constant<value = bool {1}>()
      y = If(c) <then_branch = a () => (float[n, m] p) { p = MatMul(x, W) },
                 else_branch = b () => (float[n, m] q) { q = Neg(x) }>"""
    graph = lower(save(tmp_path, body, {"W": ONE}))
    assert [node.op_type for node in graph.model.graph] == ["MatMul"]


def test_foreign_op_is_named(tmp_path):
    body = "z = MatMul(x, W) y = com.microsoft.FastGelu(z)"
    file = save(tmp_path, body, {"W": ONE}, imports=', "com.microsoft" : 1')
    assert "com.microsoft.FastGelu" in refusal(file, ModelError)


def test_foreign_op_off_the_path_does_not_matter(tmp_path):
    body = "y = MatMul(x, W) z = com.microsoft.FastGelu(x)"
    file = save(tmp_path, body, {"W": ONE}, imports=', "com.microsoft" : 1')
    assert len(lower(file).model.graph) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["W", "b"])
def test_weights_that_are_not_finite(name, bad, tmp_path):
    weights = {"W": ONE.copy(), "b": ONE[0].copy()}
    weights[name].flat[3] = bad
    file = save(tmp_path, "z = MatMul(x, W) y = Add(z, b)", weights)
    assert f"parameter '{name}': expected finite" in refusal(file, ModelError)


def test_large_finite_weights_are_fine(tmp_path):
    file = save(tmp_path, "y = MatMul(x, W)", {"W": ONE * 3e38})
    assert len(lower(file).model.graph) == 1


@pytest.mark.parametrize("shape", [(4, 4), (1, 1, 4)])
def test_infinity_in_a_mask_is_fine_and_nan_is_not(shape, tmp_path):
    mask = np.full(shape, -np.inf, np.float32)
    mask[..., 0] = 0
    file = save(tmp_path, "y = Add(x, mask)", {"mask": mask}, inputs="float[n, 4, 4] x")
    assert len(lower(file).model.graph) == 1
    mask[..., 1] = np.nan
    file = save(tmp_path, "y = Add(x, mask)", {"mask": mask}, inputs="float[n, 4, 4] x")
    assert "parameter 'mask': expected finite" in refusal(file, ModelError)


def test_infinity_in_a_table_is_refused(tmp_path):
    table = np.full((4, 4), np.inf, np.float32)
    file = save(tmp_path, "y = Gather(table, x)", {"table": table}, inputs="int64[n] x")
    assert "parameter 'table': expected finite" in refusal(file, ModelError)


def test_unknown_task_and_misplaced_options(tmp_path):
    file = save(tmp_path, "y = MatMul(x, W)", {"W": ONE})
    message = refusal(file, UsageError, task="translation")
    assert "'translation': expected one of text-classification" in message
    message = refusal(file, UsageError, example_inputs=(1,))
    assert "belong to a torch.nn.Module" in message


# --- Hugging Face folders and names ----------------------------------------------------------


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A copy of a tiny BERT classifier that a test may break."""
    copy = tmp_path / "bert"
    shutil.copytree(tiny_folder("bert", "sequence"), copy)
    return copy


def test_missing_folder(tmp_path):
    assert "no such folder or file" in refusal(tmp_path / "nothing", UsageError)
    assert "no such folder or file" in refusal(str(tmp_path / "nothing"), UsageError)


def test_another_file(tmp_path):
    (tmp_path / "model.txt").write_text("hello")
    assert "found another file" in refusal(tmp_path / "model.txt", UsageError)


def test_empty_folder(tmp_path):
    assert "config.json" in refusal(tmp_path, UsageError)


def test_hub_without_network(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(*args, **options):
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    assert "the hub cannot be reached" in refusal("someone/some-model", UsageError)


def test_name_that_no_hub_model_can_have():
    assert "no such public model" in refusal("what is this?", UsageError)


def test_missing_extra(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "obert_compiler.frontends.huggingface", None)
    message = refusal(tmp_path, UsageError)
    assert "pip install 'obert-compiler[compile]'" in message


def test_object_of_another_kind():
    assert "found dict" in refusal({}, UsageError)


def test_config_that_is_not_json(folder):
    (folder / "config.json").write_text("{")
    assert "config.json': expected JSON" in refusal(folder, ModelError)


def test_unknown_architecture(folder):
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"bert"', '"berserk"'))
    message = refusal(folder, UsageError)
    assert "cannot load it for text-classification" in message
    assert "berserk" in message


def test_a_model_of_more_than_tokens(tmp_path):
    from transformers import AutoModel, BrosConfig

    config = BrosConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    message = refusal(tmp_path, ModelError)
    assert "module 'BrosModel': expected a model of input_ids, attention_mask" in message
    assert "ValueError: You have to specify bbox" in message


def test_a_model_of_no_tokens(tmp_path):
    from transformers import AutoModel, ViTConfig

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = ViTConfig(intermediate_size=8, image_size=4, patch_size=2, **sizes)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    message = refusal(tmp_path, ModelError, task="feature-extraction")
    assert "expected a model of tokens, found a vit without 'vocab_size'" in message


def test_architecture_that_names_no_task(folder):
    text = (folder / "config.json").read_text()
    text = text.replace("BertForSequenceClassification", "BertForNextSentencePrediction")
    (folder / "config.json").write_text(text)
    assert "pass --task" in refusal(folder, UsageError)


def test_truncated_weights(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    assert "the weights cannot be read" in refusal(folder, ModelError)


def test_missing_weights(folder):
    (folder / "model.safetensors").unlink()
    assert "the weights cannot be read" in refusal(folder, ModelError)


def test_weights_of_another_shape(folder):
    text = (folder / "config.json").read_text()
    changed = text.replace('"intermediate_size": 64', '"intermediate_size": 48')
    (folder / "config.json").write_text(changed)
    message = refusal(folder, ModelError)
    assert "bert.encoder.layer." in message
    assert "by config.json, found (" in message


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_checkpoint_that_is_not_finite(folder, bad):
    from safetensors.numpy import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["bert.encoder.layer.1.output.dense.weight"][0, 0] = bad
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    message = refusal(folder, ModelError)
    assert "'bert.encoder.layer.1.output.dense.weight': expected finite" in message


def test_task_whose_head_the_checkpoint_lacks(folder):
    message = refusal(folder, ModelError, task="question-answering")
    assert "holds no 'qa_outputs" in message


def test_unknown_task(folder):
    message = refusal(folder, UsageError, task="translation")
    assert "'translation': expected one of" in message


def test_pooling_that_is_not_supported(tiny_folder, tmp_path):
    from obert_compiler.frontends.sentence_embedding import read_modules

    copy = tmp_path / "copy"
    shutil.copytree(tiny_folder("bert", "embedding"), copy)
    (copy / "1_Pooling/config.json").write_text('{"pooling_mode_weightedmean_tokens": true}')
    with pytest.raises(ModelError, match="weightedmean"):
        read_modules(copy)
