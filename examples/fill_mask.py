"""Compress a masked language model, and let it fill a gap.

    python examples/fill_mask.py [MODEL [DATA [OUT]]]

DATA has a column text; the metric is the loss of hidden tokens (lower is better).
"""

import sys
from pathlib import Path

from transformers import AutoTokenizer

import obert_compiler as obc
from obert_compiler.report import summary_rows

HERE = Path(__file__).parent


def main(
    model: str = "distilbert/distilbert-base-uncased",
    data: str = str(HERE / "data" / "reviews.jsonl"),
    out: str = "out/fill-mask",
) -> None:
    """Compile, print before and after, and run the result."""
    recipe = obc.Recipe(
        model=model,
        task="fill-mask",
        passes=("prune:sparsity=0.5:block=4", "quant", "pack"),
        data=data,
        eval_data=data,
    )
    result = obc.compile_model(recipe, out)
    for row in summary_rows(result.report):
        print(row.what, row.before, row.after, row.change, sep=" | ")

    tokenizer = AutoTokenizer.from_pretrained(out)
    session = obc.runtime.session(out)
    inputs = tokenizer([f"the film is {tokenizer.mask_token}"], return_tensors="np")
    names = {value.name for value in session.get_inputs()}
    (logits,) = session.run(["logits"], {k: v for k, v in inputs.items() if k in names})
    gap = int((inputs["input_ids"][0] == tokenizer.mask_token_id).argmax())
    print("word:", tokenizer.decode([int(logits[0, gap].argmax())]))


if __name__ == "__main__":
    main(*sys.argv[1:])
