"""Compress an extractive question-answering model, and ask it a question.

    python examples/question_answering.py [MODEL [DATA [OUT]]]

DATA has columns question, context and answers ({text: [...], answer_start: [...]}).
"""

import sys
from pathlib import Path

from transformers import AutoTokenizer

import obert_compiler as obc
from obert_compiler.report import summary_rows

HERE = Path(__file__).parent


def main(
    model: str = "distilbert/distilbert-base-cased-distilled-squad",
    data: str = str(HERE / "data" / "questions.jsonl"),
    out: str = "out/question-answering",
) -> None:
    """Compile, print before and after, and run the result."""
    recipe = obc.Recipe(
        model=model,
        task="question-answering",
        passes=("prune:sparsity=0.5:block=4", "quant", "pack"),
        data=data,
        eval_data=data,
    )
    result = obc.compile_model(recipe, out)
    for row in summary_rows(result.report):
        print(row.what, row.before, row.after, row.change, sep=" | ")

    tokenizer = AutoTokenizer.from_pretrained(out)
    session = obc.runtime.session(out)
    inputs = tokenizer("Who lives in Paris?", "Anna lives in Paris.", return_tensors="np")
    names = {value.name for value in session.get_inputs()}
    feed = {k: v for k, v in inputs.items() if k in names}
    start, end = session.run(["start_logits", "end_logits"], feed)
    first, last = int(start[0].argmax()), int(end[0].argmax())
    print("answer:", tokenizer.decode(inputs["input_ids"][0][first : last + 1]))


if __name__ == "__main__":
    main(*sys.argv[1:])
