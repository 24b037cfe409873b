"""A new head on a trained encoder."""

import json

import numpy as np
import pytest

from obert_compiler import lower
from obert_compiler.errors import ModelError, UsageError
from obert_compiler.frontends.new_head import of_the_head, read_classes
from obert_compiler.graph.layers import prunable_sites
from obert_compiler.tasks import task_for


def weights(graph):
    return {site.name: site.weight() for site in prunable_sites(graph)[0]}


def test_a_classifier_on_the_encoder_of_a_masked_language_model(tiny_folder, tiny_graph):
    folder = tiny_folder("bert", "mlm")
    graph = lower(folder, task="text-classification", new_head="bad+so-so+good")
    assert [output.name for output in graph.model.graph.outputs] == ["logits"]
    assert task_for(graph.source).labels == ("bad", "so-so", "good")
    before = weights(tiny_graph("bert", "mlm"))
    after = weights(graph)
    assert before.keys() == after.keys()
    assert all(np.array_equal(after[name], W) for name, W in before.items())
    again = lower(folder, task="text-classification", new_head="bad+so-so+good")
    for name, value in graph.model.graph.initializers.items():
        np.testing.assert_array_equal(
            value.const_value.numpy(), again.model.graph.initializers[name].const_value.numpy()
        )


def test_a_head_of_another_size_is_replaced(tiny_folder):
    graph = lower(tiny_folder("distilbert", "token"), task="token-classification", new_head="7")
    classes = graph.model.graph.outputs[0].shape[-1]
    assert int(classes) == 7


def test_one_class_is_a_number(tiny_folder):
    graph = lower(tiny_folder("bert", "features"), task="text-classification", new_head="1")
    assert task_for(graph.source).regression


def test_an_encoder_that_misses_a_weight_is_still_refused(tiny_folder, tmp_path):
    from safetensors.numpy import load_file, save_file

    folder = tiny_folder("bert", "mlm")
    for file in folder.iterdir():
        if file.suffix in {".json", ".txt"}:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    arrays = load_file(folder / "model.safetensors")
    name = next(n for n in arrays if "layer.1" in n and "query.weight" in n)
    del arrays[name]
    save_file(arrays, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"query\.weight"):
        lower(tmp_path, task="text-classification", new_head="2")


def test_without_a_new_head_the_missing_one_is_refused_as_before(tiny_folder):
    with pytest.raises(ModelError, match="the checkpoint holds no 'classifier"):
        lower(tiny_folder("bert", "mlm"), task="text-classification")


@pytest.mark.parametrize(
    ("text", "task", "message"),
    [
        ("2", None, "expected a task with classes .*, found None; give --task"),
        ("2", "fill-mask", "found fill-mask"),
        ("0", "text-classification", "their number from 1 on"),
        ("a++b", "text-classification", "different names"),
        ("a+a", "text-classification", "different names"),
        ("3", "question-answering", "expected 2 for question-answering"),
    ],
)
def test_impossible_heads_are_refused(text, task, message):
    with pytest.raises(UsageError, match=message):
        read_classes(text, task)


def test_names_and_numbers():
    assert read_classes("2", "token-classification") == ("LABEL_0", "LABEL_1")
    assert read_classes("O+B-PER", "token-classification") == ("O", "B-PER")


def test_what_belongs_to_the_head():
    names = ["classifier.weight", "bert.pooler.dense.bias", "bert.embeddings.word.weight"]
    assert of_the_head(names, "bert") == {"classifier.weight", "bert.pooler.dense.bias"}


def test_an_onnx_file_has_its_head_inside(tmp_path):
    file = tmp_path / "model.onnx"
    file.write_bytes(b"")
    with pytest.raises(UsageError, match="expected a Hugging Face folder for a new head"):
        lower(file, new_head="2")


def test_the_configuration_of_the_artefact_has_the_classes(tiny_folder):
    graph = lower(tiny_folder("bert", "mlm"), task="text-classification", new_head="a+b+c")
    config = json.loads(json.dumps(graph.source.config))
    assert config["id2label"] == {"0": "a", "1": "b", "2": "c"}
