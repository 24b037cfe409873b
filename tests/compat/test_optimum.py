"""Emitted folders in Optimum's ORTModelFor* and in sentence-transformers' ONNX back end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.compat

HERE = Path(__file__).parent

TEXTS = ["a good film", "the plot is very dull and sad , but not long"]
KINDS = {
    "sequence": "ORTModelForSequenceClassification",
    "token": "ORTModelForTokenClassification",
    "qa": "ORTModelForQuestionAnswering",
    "features": "ORTModelForFeatureExtraction",
    "mlm": "ORTModelForMaskedLM",
}


@pytest.fixture
def predict(installed, run_tool, tmp_path):
    """``predict(kind, folder)``: inputs and outputs of the other environment's model, by name."""

    def run(kind: str, folder: Path) -> tuple[dict[str, np.ndarray], ...]:
        home = HERE / "optimum"
        pip = f"{home}/.venv/bin/pip install -r {home}/requirements.txt"
        how = f"python -m venv {home}/.venv; {pip}"
        python = installed("OBERT_COMPAT_PYTHON", home / ".venv" / "bin" / "python", how)
        (tmp_path / "texts.json").write_text(json.dumps(TEXTS))
        found = json.loads(
            run_tool([str(python), str(home / "predict.py"), kind, str(folder), "texts.json"])
        )
        return tuple(
            {name: np.array(values) for name, values in found[part].items()}
            for part in ("inputs", "outputs")
        )

    return run


@pytest.mark.parametrize("head", KINDS)
def test_optimum_predicts_the_same(compiled, predict, run_here, assert_close, head):
    folder = compiled("bert", head)
    inputs, outputs = predict(KINDS[head], folder)
    expected = run_here(folder, inputs)
    assert outputs
    for name, output in outputs.items():
        assert_close(output, expected[name])


def test_sentence_transformers_embeds_the_same(compiled, predict, run_here, assert_close):
    folder = compiled("bert", "embedding")
    inputs, outputs = predict("SentenceTransformer", folder)
    expected = run_here(folder, inputs)
    assert_close(outputs["sentence_embedding"], expected["sentence_embedding"])
