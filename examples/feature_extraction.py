"""Compress a sentence-embedding model, and compare three sentences with it.

    python examples/feature_extraction.py [MODEL [DATA [OUT]]]

DATA has columns sentence1, sentence2 and score, or text and label. A sentence-transformers folder
keeps its pooling and normalisation: they are a part of model.onnx.
"""

import sys
from pathlib import Path

from transformers import AutoTokenizer

import obert_compiler as obc
from obert_compiler.report import summary_rows

HERE = Path(__file__).parent


def main(
    model: str = "sentence-transformers/all-MiniLM-L6-v2",
    data: str = str(HERE / "data" / "pairs.jsonl"),
    out: str = "out/feature-extraction",
) -> None:
    """Compile, print before and after, and run the result."""
    recipe = obc.Recipe(
        model=model,
        task="feature-extraction",
        passes=("prune:sparsity=0.5:block=4", "quant", "pack"),
        data=data,
        eval_data=data,
    )
    result = obc.compile_model(recipe, out)
    for row in summary_rows(result.report):
        print(row.what, row.before, row.after, row.change, sep=" | ")

    tokenizer = AutoTokenizer.from_pretrained(out)
    session = obc.runtime.session(out)
    texts = ["The cat sleeps.", "A cat is sleeping.", "The train is late."]
    inputs = tokenizer(texts, padding=True, return_tensors="np")
    names = {value.name for value in session.get_inputs()}
    feed = {k: v for k, v in inputs.items() if k in names}
    (embedding,) = session.run(["sentence_embedding"], feed)
    print((embedding @ embedding.T).round(2))


if __name__ == "__main__":
    main(*sys.argv[1:])
