"""A Hugging Face model step by step: lower, look, compress, emit as ONNX and as torch.

python examples/front_end_huggingface.py [MODEL [OUT]]
"""

import sys

import obert_compiler as obc
from obert_compiler.graph import find_linear_sites
from obert_compiler.passes import Pack, Prune, Quant
from obert_compiler.tasks import task_for


def main(
    model: str = "distilbert/distilbert-base-uncased-finetuned-sst-2-english",
    out: str = "out/step-by-step",
) -> None:
    """Compress without data: magnitude pruning, and text that ships with the package for ranges."""
    graph = obc.lower(model, task="text-classification")
    for site in list(find_linear_sites(graph))[:4]:
        print(site.name, site.shape)

    task = task_for(graph.source)
    data = obc.Batches.calibration(task, graph.source.folder, limit=64)
    manager = obc.PassManager([Prune(sparsity=0.5, method="magnitude"), Quant(), Pack()])
    small = manager.run(graph, data=data, task=task)
    for record in manager.records:
        print(f"{record['spec']}: {record['seconds']} s, {len(record['skips'])} left alone")

    obc.emit(small, "onnx", out)
    module = obc.emit(small, "torch")
    print(type(module).__mro__[0].__name__, "and", out)


if __name__ == "__main__":
    main(*sys.argv[1:])
