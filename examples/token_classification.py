"""Compress a named-entity tagger, and tag a sentence with it.

    python examples/token_classification.py [MODEL [DATA [OUT]]]

DATA has columns tokens (a list of words) and ner_tags (one tag or index per word).
"""

import sys
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer

import obert_compiler as obc
from obert_compiler.report import summary_rows

HERE = Path(__file__).parent


def main(
    model: str = "dslim/distilbert-NER",
    data: str = str(HERE / "data" / "entities.jsonl"),
    out: str = "out/token-classification",
) -> None:
    """Compile, print before and after, and run the result."""
    recipe = obc.Recipe(
        model=model,
        task="token-classification",
        passes=("prune:sparsity=0.5:block=4", "quant", "pack"),
        data=data,
        eval_data=data,
    )
    result = obc.compile_model(recipe, out)
    for row in summary_rows(result.report):
        print(row.what, row.before, row.after, row.change, sep=" | ")

    tokenizer = AutoTokenizer.from_pretrained(out)
    labels = AutoConfig.from_pretrained(out).id2label
    session = obc.runtime.session(out)
    inputs = tokenizer(["Anna walks from London to Paris"], return_tensors="np")
    names = {value.name for value in session.get_inputs()}
    (logits,) = session.run(["logits"], {k: v for k, v in inputs.items() if k in names})
    tokens = tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
    for token, index in zip(tokens, logits.argmax(-1)[0], strict=True):
        print(token, labels[int(index)])


if __name__ == "__main__":
    main(*sys.argv[1:])
