"""What pruning BERT-base shapes costs, beside the forward and backward passes of a training step.

    python benchmarks/pruning_cost.py                         (all 12 layers, 1,024 examples)
    python benchmarks/pruning_cost.py --layers 2 --measured 64

Processor seconds, so that other work on the machine does not count. Weights and tokens are random
(128 tokens in each example): cost does not depend on them. The Fisher costs the same for every
batch and the solver for every block, so that ``--measured`` examples stand for all ``--examples``;
with fewer layers the bound on memory is that much smaller and all figures are of these layers.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from bert_base import write_data
from transformers import BertConfig, BertForSequenceClassification

from obert_compiler import Batches, lower
from obert_compiler.backends.torch.module import to_module
from obert_compiler.passes.fisher import Fisher
from obert_compiler.passes.fisher_matrix import FisherMatrix
from obert_compiler.passes.layerwise_repair import LayerwiseRepair, RowChoice
from obert_compiler.passes.prune import Prune
from obert_compiler.passes.site_selection import select_sites
from obert_compiler.passes.sparsity_allocation import choose_all_but, groups_left_by_turn
from obert_compiler.pipeline.contract import Context, SilentProgress
from obert_compiler.runtime.cpu import cpu_name

_GROUP, _LAYERS, _POSITIONS, _TOKENS = 4, 12, 16 * 3072, 128
_GB = 10**9


def processor_seconds(work: Callable[[], object]) -> float:
    """Of all threads, while ``work`` runs."""
    start = time.process_time()
    work()
    return time.process_time() - start


def training_steps(module: torch.nn.Module, data: Batches) -> None:
    """Forward and backward passes with the gradients of all parameters."""
    for batch in data:
        module.zero_grad()
        outputs = module(**{name: torch.as_tensor(array) for name, array in batch.inputs.items()})
        next(iter(outputs.values())).sum().backward()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=_LAYERS)
    parser.add_argument("--examples", type=int, default=1024)
    parser.add_argument("--measured", type=int, help="examples to run (default: all)")
    parser.add_argument("--sparsity", type=float, default=0.8)
    parser.add_argument("--skip-repair", action="store_true")
    options = parser.parse_args()
    measured = options.measured or options.examples
    times = options.examples / measured
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = BertConfig(num_hidden_layers=options.layers)
        BertForSequenceClassification(config).save_pretrained(folder)
        graph = lower(str(folder), task="text-classification")
        write_data(folder / "data.npz", measured)
        data = Batches.from_arrays(folder / "data.npz")
        print(f"{options.layers} layers, {options.examples} examples, on {cpu_name()}")

        module = to_module(graph).eval()

        training_steps(module, data.take(16))
        passes = times * processor_seconds(lambda: training_steps(module, data))
        show("forward and backward passes", passes, passes)

        context = Context(data=data, work=folder)
        memory = Fisher.memory * options.layers / _LAYERS

        traffic: list[int] = []

        def estimate(examples: int) -> float:
            fisher = Fisher(samples=examples, memory=memory)

            def run() -> None:
                traffic.append(fisher.run(graph, context).report["traffic_bytes"])

            return processor_seconds(run)

        # What it costs once (the module, the files) does not grow with the examples; what the first
        # call of a process costs belongs to neither.
        estimate(16)
        half, whole = estimate(measured // 2), estimate(measured)
        whole += (options.examples - measured) * (whole - half) / (measured - measured // 2)
        sites, _ = select_sites(graph)
        statistics = context.statistics["fisher"]

        def solve() -> None:
            for site in sites:
                F, layout = statistics.blocks(site.name), statistics.layouts[site.name]
                FisherMatrix(F, layout, 1e-2 * statistics.mean_square).saliency(
                    site.weight(), _GROUP, Prune().ranking
                )

        solved = processor_seconds(solve)
        show("Fisher", whole, passes)
        show("solve", solved, passes)
        show("Fisher and solve", whole + solved, passes)
        print(f"  {traffic[-1] / 1e12:.3g} TB to and from F for {measured} examples")
        if options.skip_repair:
            return
        write_data(folder / "repair.npz", _POSITIONS // _TOKENS)
        rng = np.random.default_rng(0)
        kept, choices = {}, {}
        pruned = graph.copy()
        for site in select_sites(pruned)[0]:
            groups = rng.random((site.shape[0], site.shape[1] // _GROUP)) >= options.sparsity
            kept[site.name] = np.repeat(groups, _GROUP, axis=1)
            counts = groups_left_by_turn(groups.size, int(groups.sum()), Prune.turns)
            turns = [partial(choose_all_but, left=count) for count in counts]
            choices[site.name] = RowChoice(
                np.ones(site.shape, bool), _GROUP, np.ones(len(groups)), turns
            )
            site.set_weight(np.where(kept[site.name], site.weight(), np.float32(0)))
        for what, chosen in (("row repair", {}), ("choice by rows and repair", choices)):
            examples = Batches.from_arrays(folder / "repair.npz")
            walk = LayerwiseRepair(graph, examples, 1e-3, int(4 * _GB), choices=chosen)
            start = time.perf_counter()
            seconds = processor_seconds(partial(walk.repair, pruned.copy(), kept, SilentProgress()))
            wall = time.perf_counter() - start
            show(f"{what} at {options.sparsity:.0%}", seconds, passes)
            repair, choice = walk.operations, walk.choice_operations
            print(f"  {wall:.0f} s on the clock; multiply-adds of factorisations: ", end="")
            print(f"repair {sum(repair.values()):.3g}, choice {sum(choice.values()):.3g}")


def show(what: str, seconds: float, passes: float) -> None:
    """One line: seconds, and times the forward and backward passes."""
    print(f"  {what:28} {seconds:8.1f} s of processor   {seconds / passes:5.2f}x", flush=True)


if __name__ == "__main__":
    main()
