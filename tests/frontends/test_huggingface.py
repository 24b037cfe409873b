"""Every architecture lowers, reproduces its source, and keeps the names of its modules."""

from collections import Counter

import numpy as np
import pytest

from obert_compiler.frontends import lower
from obert_compiler.graph import find_linear_sites

CASES = (
    ("bert", "embedding"),
    ("bert", "mlm"),
    ("roberta", "sequence"),
    ("xlm-roberta", "features"),
    ("distilbert", "qa"),
    ("electra", "reranker"),
    ("mpnet", "token"),
    ("albert", "mlm"),
    ("deberta-v2", "qa"),
    ("deberta-v3", "reranker"),
    ("modernbert", "sequence"),
    ("t5", "features"),
    ("qwen3", "features"),
    ("gemma3_text", "features"),
)
OUTPUTS = {
    "sequence": ["logits"],
    "reranker": ["logits"],
    "token": ["logits"],
    "qa": ["start_logits", "end_logits"],
    "features": ["last_hidden_state"],
    "embedding": ["last_hidden_state", "sentence_embedding"],
    "mlm": ["logits"],
}
TASKS = {
    "sequence": "text-classification",
    "reranker": "text-classification",
    "token": "token-classification",
    "qa": "question-answering",
    "features": "feature-extraction",
    "embedding": "feature-extraction",
    "mlm": "fill-mask",
}
DEPTH = {"distilbert": "n_layers", "t5": "num_layers"}
UNUSED = {"pooler.dense", "pooler"}  # by heads that read every token
POSITIONS = ("pos_key_proj", "pos_query_proj")  # DeBERTa: products of a table with a matrix


@pytest.fixture
def load_source(tiny_folder):
    """``load_source(arch, head)``: the module, by transformers alone, its own attention."""
    import transformers

    def load(arch, head):
        folder = tiny_folder(arch, head)
        architecture = transformers.AutoConfig.from_pretrained(folder).architectures[0]
        transformers.logging.disable_progress_bar()
        return getattr(transformers, architecture).from_pretrained(folder).eval()

    return load


@pytest.mark.parametrize(("arch", "head"), CASES)
def test_reproduces_its_source(arch, head, tiny_graph, load_source, batches, run):
    import torch

    graph, module = tiny_graph(arch, head), load_source(arch, head)
    assert [value.name for value in graph.model.graph.outputs] == OUTPUTS[head]
    inputs = [value.name for value in graph.model.graph.inputs]
    for batch in batches(module.config.vocab_size, module.config.pad_token_id):
        feed = {name: torch.from_numpy(batch[name]) for name in inputs}
        with torch.no_grad():
            expected = module(**feed)
        got = run(graph, batch)
        seen = batch["attention_mask"].astype(bool)
        for name in set(OUTPUTS[head]) - {"sentence_embedding"}:
            want = expected[name].numpy()
            assert got[name].shape == want.shape
            # What a model computes at padded positions depends on its attention kernel.
            per_token = want.shape[:2] == seen.shape and head not in {"sequence", "reranker"}
            chosen = seen if per_token else ...
            np.testing.assert_allclose(got[name][chosen], want[chosen], atol=1e-4)
        if head == "embedding":
            hidden = expected["last_hidden_state"].numpy() * seen[..., None]
            mean = hidden.sum(1) / seen.sum(1, keepdims=True)
            unit = mean / np.linalg.norm(mean, axis=1, keepdims=True)
            np.testing.assert_allclose(got["sentence_embedding"], unit, atol=1e-5)


@pytest.mark.parametrize(("arch", "head"), CASES)
def test_sites_are_the_linear_modules(arch, head, tiny_graph, load_source):
    import torch

    graph, module = tiny_graph(arch, head), load_source(arch, head)
    linear = {n: m for n, m in module.named_modules() if isinstance(m, torch.nn.Linear)}
    sites = find_linear_sites(graph)
    unused = set() if head in {"sequence", "reranker"} else UNUSED
    expected = {name for name in linear if name not in unused and not name.endswith(POSITIONS)}
    assert {site.name for site in sites} == expected
    for site in sites:
        np.testing.assert_array_equal(site.weight(), linear[site.name].weight.detach())
        bias = site.bias()
        if linear[site.name].bias is None:
            assert bias is None
        else:
            np.testing.assert_array_equal(bias, linear[site.name].bias.detach())
        uses = 3 if "albert_layer_groups" in site.name else 1
        assert len(site.nodes) == uses, site.name


@pytest.mark.parametrize(("arch", "head"), CASES)
def test_form_is_canonical(arch, head, tiny_graph, load_source):
    graph, module = tiny_graph(arch, head), load_source(arch, head)
    model = graph.model
    ops = Counter(node.op_type for node in model.graph)
    forbidden = {"Constant", "Identity", "GatherND", "SplitToSequence", "If", "Dropout", "IsNaN"}
    assert not forbidden & ops.keys()
    assert model.graph.opset_imports == {"": 21}
    assert not model.functions
    parameters = dict(module.named_parameters())
    held = {}
    for name, value in model.graph.initializers.items():
        parameter = value.metadata_props.get("obert.parameter")
        if parameter is None:
            assert value.const_value.size <= 1024, name
            continue
        array = value.const_value.numpy()
        if value.metadata_props.get("obert.transposed") == "1":
            array = array.T
        np.testing.assert_array_equal(array, parameters[parameter].detach().numpy())
        held[parameter] = value
    missing = parameters.keys() - held.keys()
    assert all(name.removesuffix(".weight").removesuffix(".bias") in UNUSED for name in missing)
    assert not any("pkg.torch" in key for node in model.graph for key in node.metadata_props)
    names = [v.name for node in model.graph for v in node.outputs]
    names += [v.name for v in model.graph.inputs] + list(model.graph.initializers)
    assert len(names) == len(set(names))
    for value in model.graph.inputs:
        assert [str(dim) for dim in value.shape] == ["batch", "sequence"]


def test_source_says_where_it_came_from(tiny_graph, tiny_folder):
    for arch, head in CASES:
        source = tiny_graph(arch, head).source
        assert source.kind == "huggingface"
        assert source.task == TASKS[head]
        assert source.folder == tiny_folder(arch, head)
        assert source.config[DEPTH.get(arch, "num_hidden_layers")] == 3
        size = (source.folder / "model.safetensors").stat().st_size
        # The file also holds names, and a tied decoder once or twice.
        assert 0.7 * size < source.bytes_on_disk <= size


def test_tied_decoder_reads_the_table(tiny_graph):
    graph = tiny_graph("bert", "mlm")
    site = find_linear_sites(graph)["cls.predictions.decoder"]
    transpose = site.weight_value.producer()
    assert transpose.op_type == "Transpose"
    table = transpose.inputs[0]
    assert table.name == "bert.embeddings.word_embeddings.weight"
    assert {use.node.op_type for use in table.uses()} == {"Gather", "Transpose"}


def test_inputs_follow_the_tokenizer(tiny_graph):
    names = {
        arch: [value.name for value in tiny_graph(arch, head).model.graph.inputs]
        for arch, head in CASES
    }
    assert names["bert"] == ["input_ids", "attention_mask", "token_type_ids"]
    assert names["distilbert"] == names["roberta"] == ["input_ids", "attention_mask"]


def test_a_model_that_takes_no_mask(tmp_path):
    from transformers import AutoModel, FNetConfig

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 20}
    AutoModel.from_config(FNetConfig(**sizes)).save_pretrained(tmp_path)
    assert [value.name for value in lower(tmp_path).model.graph.inputs] == ["input_ids"]


def test_a_cache_is_no_output_and_stays_in_the_configuration(tiny_graph):
    graph = tiny_graph("qwen3", "features")
    assert graph.source.config["use_cache"] is True
    assert [value.name for value in graph.model.graph.outputs] == ["last_hidden_state"]
