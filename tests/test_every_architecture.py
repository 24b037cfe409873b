"""Every architecture through the whole compiler: Fisher, prune, quant, pack, emit, run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from obert_compiler import Batches, PassManager, emit, lower
from obert_compiler.graph import Graph, Stage, find_linear_sites
from obert_compiler.graph.layers import prunable_sites
from obert_compiler.tasks import task_for

TinyGraph = Callable[[str, str], Graph]

ARCHITECTURES = [
    ("bert", "sequence"),
    ("roberta", "token"),
    ("xlm-roberta", "qa"),
    ("distilbert", "sequence"),
    ("electra", "sequence"),
    ("mpnet", "embedding"),
    ("albert", "mlm"),
    ("deberta-v2", "sequence"),
    ("deberta-v3", "sequence"),
    ("modernbert", "mlm"),
    ("gte", "embedding"),
    ("nomic_bert", "sequence"),
    ("jina_embeddings_v3", "token"),
    ("eurobert", "token"),
    ("t5", "embedding"),
    ("qwen3", "embedding"),
    ("gemma3_text", "embedding"),
]


def outputs(graph_or_file: Graph | Path, data: Batches) -> list[np.ndarray]:
    """Every output for every batch, on ONNX Runtime's CPU provider."""
    model = graph_or_file
    if isinstance(model, Graph):
        model = emit(model, "onnx").SerializeToString()  # type: ignore[attr-defined]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model if isinstance(model, bytes) else str(model),
        options,
        providers=["CPUExecutionProvider"],
    )
    names = [i.name for i in session.get_inputs()]
    return [output for batch in data for output in session.run(None, batch.feed(names))]


@pytest.mark.parametrize(("arch", "head"), ARCHITECTURES, ids=lambda value: str(value))
def test_compiles_and_runs(tiny_graph: TinyGraph, tmp_path: Path, arch: str, head: str) -> None:
    graph = tiny_graph(arch, head)
    task = task_for(graph.source)
    assert task is not None
    assert graph.source.folder is not None
    data = Batches.calibration(
        task, graph.source.folder, batch_size=8, max_length=40, limit=24
    ).take(24)
    prune = "prune:sparsity=0.5:block=4:samples=24"
    manager = PassManager(f"{prune},quant,pack")
    compiled = manager.run(graph, data=data, task=task, work=tmp_path / "work")

    assert compiled.stage is Stage.PACKED
    assert [r["name"] for r in manager.records] == ["fisher", "prune", "quant", "pack"]
    sites, _ = prunable_sites(graph)
    names = {site.name for site in sites}
    after = {site.name: site.weight() for site in find_linear_sites(compiled)}
    assert names <= set(after)
    blocks = np.concatenate([after[name].reshape(-1, 4) for name in names])
    # Rounding to 7 bits may only add zero blocks to the half that pruning made.
    assert 0.5 <= np.mean(~blocks.any(axis=1)) < 0.6

    pruned = PassManager(prune).run(graph, data=data, task=task, work=tmp_path / "again")
    emit(compiled, "onnx", tmp_path / "out")
    found = outputs(tmp_path / "out" / "model.onnx", data)
    errors = []
    for expected, output in zip(outputs(pruned, data), found, strict=True):
        assert output.shape == expected.shape
        errors.append(np.abs(output - expected).mean() / np.abs(expected).max())
    # Of all batches together: a few outputs of a tiny random model may be near zero.
    assert np.mean(errors) < 0.1


FULL_SIZE = {
    "bert": {},
    "roberta": {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1},
    "xlm-roberta": {"vocab_size": 250002, "max_position_embeddings": 514, "type_vocab_size": 1},
    "distilbert": {},
    "electra": {"embedding_size": 768, "hidden_size": 768},
    "mpnet": {"vocab_size": 30527, "max_position_embeddings": 514},
    "albert": {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
    "deberta-v2": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 256,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "position_biased_input": False,
        "type_vocab_size": 0,
    },
    "modernbert": {"reference_compile": False},
    "gte": {},
    "nomic_bert": {},
    "jina_embeddings_v3": {},
    "eurobert": {},
}


@pytest.mark.slow
@pytest.mark.parametrize("arch", FULL_SIZE)
def test_full_size(tmp_path: Path, arch: str) -> None:
    """Base size with random weights; tokens are random, so no tokenizer is needed."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    torch.manual_seed(0)
    config = AutoConfig.for_model(arch, **FULL_SIZE[arch])
    model = AutoModelForSequenceClassification.from_config(config).eval()
    model.save_pretrained(tmp_path / "model")
    rng = np.random.default_rng(0)
    ids = rng.integers(1000, 30000, (4, 32))
    mask = np.ones_like(ids)
    mask[1, 20:] = 0
    arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    graph = lower(str(tmp_path / "model"))
    inputs = {i.name: arrays[str(i.name)] for i in graph.model.graph.inputs}
    data = Batches.from_arrays(inputs, batch_size=4)

    (dense,) = outputs(graph, data)
    with torch.no_grad():
        source = model(**{name: torch.from_numpy(a) for name, a in inputs.items()}).logits.numpy()
    np.testing.assert_allclose(dense, source, atol=1e-4)

    passes = "prune:method=magnitude:sparsity=0.8:block=4,quant:calibration=minmax,pack"
    compiled = PassManager(passes).run(graph, data=data)
    emit(compiled, "onnx", tmp_path / "out")
    file = tmp_path / "out" / "model.onnx"
    ratio = (tmp_path / "model" / "model.safetensors").stat().st_size / file.stat().st_size
    (found,) = outputs(file, data)
    assert found.shape == dense.shape
    assert np.isfinite(found).all()
    figures = {
        "arch": arch,
        "times smaller": round(ratio, 2),
        "sites": len(prunable_sites(graph)[0]),
    }
    print(json.dumps(figures))
    assert ratio > 8
