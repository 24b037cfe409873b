"""Load a compiled folder as its users do, and print what it predicts as JSON.

    python predict.py ORTModelForSequenceClassification FOLDER TEXTS.json
    python predict.py SentenceTransformer FOLDER TEXTS.json

TEXTS.json is a list of texts. Runs in the environment of requirements.txt; imports nothing of the
compiler.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np


def with_optimum(kind: str, folder: str, texts: list[str]) -> dict[str, Any]:
    """Outputs of an ``ORTModelFor*`` by name."""
    import optimum.onnxruntime
    from transformers import AutoTokenizer

    model = getattr(optimum.onnxruntime, kind).from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(texts, padding=True, return_tensors="np")
    found = model(**batch)
    outputs = {
        name: np.asarray(value).tolist() for name, value in found.items() if value is not None
    }
    return {"inputs": {name: array.tolist() for name, array in batch.items()}, "outputs": outputs}


def with_sentence_transformers(folder: str, texts: list[str]) -> dict[str, Any]:
    """Embeddings of ``SentenceTransformer(folder, backend="onnx")``."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, backend="onnx")
    embeddings = model.encode(texts, batch_size=len(texts))
    batch = model.tokenizer(texts, padding=True, return_tensors="np")
    return {
        "inputs": {name: array.tolist() for name, array in batch.items()},
        "outputs": {"sentence_embedding": np.asarray(embeddings).tolist()},
    }


def main() -> None:
    """Read the command line, print one line of JSON."""
    kind, folder, texts_file = sys.argv[1:4]
    texts = json.loads(Path(texts_file).read_text(encoding="utf-8"))
    if kind == "SentenceTransformer":
        found = with_sentence_transformers(folder, texts)
    else:
        found = with_optimum(kind, folder, texts)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
