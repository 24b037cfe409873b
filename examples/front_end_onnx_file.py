"""An ONNX file from any exporter: prune, quantise with arrays of its own inputs, pack.

    python examples/front_end_onnx_file.py MODEL.onnx ARRAYS.npz [OUT]

ARRAYS.npz holds one array per input of the graph, examples along the first axis.
"""

import sys

import obert_compiler as obc
from obert_compiler.report import summary_rows


def main(model: str, arrays: str, out: str = "out/onnx-file") -> None:
    """Compile and print before and after."""
    recipe = obc.Recipe(
        model=model,
        passes=("prune:method=magnitude:sparsity=0.75:include=*", "quant", "pack"),
        data=arrays,
    )
    result = obc.compile_model(recipe, out)
    for row in summary_rows(result.report):
        print(row.what, row.before, row.after, row.change, sep=" | ")
    for record in result.report["passes"]:
        for skip in record["skips"]:
            print(record["name"], "left", skip["subject"], "alone:", skip["reason"])


if __name__ == "__main__":
    main(*sys.argv[1:])
