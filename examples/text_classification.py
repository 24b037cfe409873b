"""Compress a sentiment classifier with second-order pruning, and classify a sentence with it.

    python examples/text_classification.py [MODEL [DATA [OUT]]]

DATA has columns text (or sentence, or sentence1 and sentence2) and label.
"""

import sys
from pathlib import Path

from transformers import AutoTokenizer

import obert_compiler as obc
from obert_compiler.report import summary_rows

HERE = Path(__file__).parent


def main(
    model: str = "distilbert/distilbert-base-uncased-finetuned-sst-2-english",
    data: str = str(HERE / "data" / "reviews.jsonl"),
    out: str = "out/text-classification",
) -> None:
    """Compile, print before and after, and run the result."""
    recipe = obc.Recipe(
        model=model,
        task="text-classification",
        passes=("prune:sparsity=0.5:block=4", "quant", "pack"),
        data=data,
        eval_data=data,
    )
    result = obc.compile_model(recipe, out)
    for row in summary_rows(result.report):
        print(row.what, row.before, row.after, row.change, sep=" | ")

    tokenizer = AutoTokenizer.from_pretrained(out)
    session = obc.runtime.session(out)
    inputs = tokenizer(["a quiet, funny, beautiful film"], return_tensors="np")
    names = {value.name for value in session.get_inputs()}
    (logits,) = session.run(["logits"], {k: v for k, v in inputs.items() if k in names})
    print("label", logits.argmax(-1)[0])


if __name__ == "__main__":
    main(*sys.argv[1:])
