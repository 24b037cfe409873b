"""A report of a small made-up compile."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture
def report() -> dict[str, Any]:
    """The content of a report.json with every part filled."""
    kinds = ("attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense")
    sites = [
        {
            "name": f"bert.encoder.layer.{layer}.{kind}",
            "layer": layer,
            "shape": [64, 64],
            "sparsity": 0.8 - 0.05 * layer,
            "block_sparsity": 0.75,
            "bits": 8,
            "bytes": 1234,
            "scheme": "packed int8",
        }
        for layer in range(3)
        for kind in kinds
    ]
    sites.append(
        {
            "name": "classifier",
            "layer": None,
            "shape": [2, 63],
            "sparsity": 0.0,
            "block_sparsity": None,
            "bits": 32,
            "bytes": 504,
            "scheme": "dense fp32",
        }
    )
    entry = {
        "name": "prune",
        "spec": "prune:sparsity=0.8:block=4",
        "inserted": False,
        "seconds": 12.25,
        "peak_memory_bytes": 3_000_000_000,
        "changed": True,
        "report": {},
        "skips": [{"subject": "classifier", "reason": "outside the <encoder> layers"}],
    }
    return {
        "schema": 1,
        "obert_compiler": "0.1.0",
        "cpu": "Some CPU with a long name @ 2.70GHz",
        "threads": 2,
        "model": {
            "kind": "huggingface",
            "location": "models/tiny & co",
            "task": "text-classification",
            "parameters": 1_234_567,
            "fp32_bytes": 4_938_268,
        },
        "recipe": {"passes": ["prune:sparsity=0.8:block=4"], "seed": 0, "data": None},
        "passes": [entry, entry | {"name": "fisher", "inserted": True, "seconds": 30.0}],
        "sites": sites,
        "bytes": {
            "before": 4_938_268,
            "after": 400_000,
            "parts": {"linear": 200_000, "embeddings": 150_000, "other": 50_000},
        },
        "metric": {"name": "accuracy", "before": 0.91, "after": 0.905, "examples": 872},
        "latency": {
            "batch": 1,
            "sequence": 128,
            "threads": 2,
            "before_ms": {"median": 10.0, "min": 9.5},
            "after_ms": {"median": 4.0, "min": 3.9},
            "ratio": 2.5,
            "before_engine": "cpu",
            "after_engine": "obert",
        },
        "engine": {
            "isa": "avx2",
            "nodes": 120,
            "claimed": 117,
            "parts": 1,
            "left": [
                {"value": "logits", "op": "Gemm", "reason": "a matrix of <2> outputs"},
            ],
        },
        "notes": ["no data was given: calibrated on the text that ships with the package"],
    }
