"""Pruning a masked language model on raw text, and transfer of its mask to a task."""

import json

import numpy as np
import pytest

from obert_compiler import lower
from obert_compiler.compile import compile_model
from obert_compiler.graph.layers import prunable_sites
from obert_compiler.pipeline.recipe import Recipe

TEXT = [f"the quick brown fox jumps over {i} lazy dogs {'again ' * (i % 7)}" for i in range(24)]


def weights(graph):
    return {site.name: site.weight() for site in prunable_sites(graph)[0]}


@pytest.fixture
def sparse_folder(tiny_folder, tmp_path):
    """A masked language model, pruned on raw text and written as a Hugging Face folder."""
    (tmp_path / "raw.txt").write_text("\n".join(TEXT), encoding="utf-8")
    out = tmp_path / "sparse"
    passes = "gradual:sparsity=0.5:prunings=2:steps=4:samples=12:repair_samples=16:batch_size=6"
    recipe = Recipe(
        (passes,),
        model=str(tiny_folder("bert", "mlm")),
        data=str(tmp_path / "raw.txt"),
        backend="torch",
    )
    compile_model(recipe, out, latency=False)
    return out


def test_the_mask_is_held_in_the_transfer_to_a_task(sparse_folder, tmp_path):
    rows = [{"text": text, "label": ("even", "odd")[i % 2]} for i, text in enumerate(TEXT)]
    data = tmp_path / "train.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    recipe = Recipe(
        ("finetune:steps=6:batch_size=6:hardness=0.0:learning_rate=1e-3", "quant", "pack"),
        model=str(sparse_folder),
        task="text-classification",
        new_head="even+odd",
        data=str(data),
        eval_data=str(data),
    )
    result = compile_model(recipe, tmp_path / "out", latency=False)
    finetune = result.report["passes"][0]["report"]
    assert finetune["masked_sparsity"] == pytest.approx(0.5, abs=0.01)
    before = weights(lower(sparse_folder))
    after = weights(lower(tmp_path / "out", task="text-classification"))
    assert before.keys() == after.keys()
    zeros = sum(int((W == 0).sum()) for W in before.values())
    assert zeros / sum(W.size for W in before.values()) == pytest.approx(0.5, abs=0.01)
    for name, W in before.items():
        assert not after[name][W == 0].any()
    assert any(not np.array_equal(after[name], W) for name, W in before.items())
    assert result.report["metric"]["name"] == "accuracy"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["id2label"] == {
        "0": "even",
        "1": "odd",
    }
