"""Layers dropped by what their loss does to the outputs, and the repair of those that stay."""

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from obert_compiler.data.batches import Batches
from obert_compiler.errors import UsageError
from obert_compiler.graph.layers import prunable_sites
from obert_compiler.passes.drop_layers import DropLayers
from obert_compiler.pipeline.contract import Context
from obert_compiler.tasks import task_for

ROWS = [
    {"text": f"the quick brown fox jumps over {i} lazy dogs {'again ' * (i % 7)}"}
    for i in range(40)
]


@pytest.fixture
def encoder(tiny_graph, tiny_folder):
    def make(arch="bert"):
        graph = tiny_graph(arch, "sequence")
        task = task_for(graph.source)
        data = Batches.open(ROWS, task, tiny_folder(arch, "sequence"), batch_size=8)
        return graph, Context(task=task, data=data)

    return make


def logits(graph, data):
    names = [value.name for value in graph.model.graph.inputs]
    payload = ir.to_proto(graph.model).SerializeToString()
    session = onnxruntime.InferenceSession(payload, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, batch.feed(names))[0] for batch in data])


def test_the_layer_goes_that_the_outputs_miss_least(encoder):
    graph, context = encoder()
    expected = logits(graph, context.data)
    errors = {}
    for dropped in range(3):
        kept = tuple(i for i in range(3) if i != dropped)
        shallow = DropLayers(layers=kept).run(graph.copy(), context).graph
        errors[dropped] = float(np.square(logits(shallow, context.data) - expected).sum())
    result = DropLayers(keep=2, choose="loss").run(graph.copy(), context)
    assert result.report["dropped"] == [min(errors, key=errors.get)]
    (distances,) = result.report["output_distance_without"]
    variance = np.square(expected - expected.mean(axis=0)).sum()
    for layer, error in errors.items():
        assert distances[str(layer)] == pytest.approx(error / variance, rel=1e-3)


@pytest.mark.parametrize("arch", ["bert", "distilbert", "modernbert"])
def test_the_layers_that_stay_make_up_for_the_gap(encoder, arch):
    graph, context = encoder(arch)
    expected = logits(graph, context.data)
    errors = []
    for repair in ("none", "rows"):
        result = DropLayers(layers=(0, 2), repair=repair).run(graph.copy(), context)
        errors.append(np.square(logits(result.graph, context.data) - expected).sum())
    assert errors[1] < errors[0]
    inside, outside = prunable_sites(result.graph)
    names = [site.name for site in inside]
    assert result.report["repaired"] == names + [site.name for site in outside]


def test_pruned_weights_stay_pruned(encoder):
    graph, context = encoder()
    for site in prunable_sites(graph)[0]:
        W = site.weight()
        W[:, ::2] = 0
        site.set_weight(W)
    DropLayers(keep=2, repair="rows").run(graph, context)
    for site in prunable_sites(graph)[0]:
        assert not site.weight()[:, ::2].any()


@pytest.mark.parametrize("options", [{"choose": "loss"}, {"repair": "rows"}])
def test_without_data_it_says_what_needs_them(encoder, options):
    graph, _ = encoder()
    step = DropLayers(keep=2, **options)
    assert step.needs_data
    with pytest.raises(UsageError, match="expected data"):
        step.run(graph, Context())


@pytest.mark.parametrize(
    "options",
    [
        {"choose": "best"},
        {"repair": "all"},
        {"samples": 0},
        {"repair_samples": 0},
        {"choose": "loss", "keep": None, "layers": (0,)},
    ],
)
def test_misuse_is_refused(options):
    with pytest.raises(UsageError, match="expected"):
        DropLayers(**{"keep": 2, **options})
