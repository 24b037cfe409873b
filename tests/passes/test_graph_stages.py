"""A graph run stage by stage gives what it gives at once."""

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from obert_compiler.graph import Graph, Source
from obert_compiler.graph.layers import find_encoder_layers, prunable_sites
from obert_compiler.graph.linear import find_linear_sites
from obert_compiler.passes.graph_stages import StagedRun, cut_into_stages

BRANCHES = """
<ir_version: 10, opset_import: ["": 21]>
branches (float[n, 2] x) => (float[n, 2] y)
<float[2, 2] a = {1.0, 2.0, 3.0, 4.0}, float[2, 2] b = {1.0, 0.0, 2.0, 1.0},
 float[2, 2] c = {0.5, 1.0, 1.0, 2.0}, float[2, 2] d = {1.0, -1.0, 0.5, 2.0}>
{
  first = MatMul(x, a)
  beside = MatMul(x, b)
  bent = Relu(first)
  second = MatMul(bent, c)
  both = Add(second, beside)
  y = MatMul(both, d)
}
"""


def branches():
    return Graph(ir.from_onnx_text(BRANCHES), Source("onnx"))


def values_at_once(graph, names, feed, tmp_path):
    copy = graph.copy()
    found = {v.name: v for node in copy.model.graph for v in node.outputs}
    outputs = copy.model.graph.outputs
    outputs.clear()
    outputs.extend(found[name] for name in names)
    ir.save(copy.model, tmp_path / "whole.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "whole.onnx")
    return dict(zip(names, session.run(names, feed), strict=True))


def test_sites_are_put_behind_those_they_depend_on():
    graph = branches()
    stages = cut_into_stages(graph, list(find_linear_sites(graph)))
    assert [s.sites for s in stages.stages] == [("a", "b"), ("c",), ("d",)]
    assert stages.inputs == {"a": "x", "b": "x", "c": "bent", "d": "both"}
    assert [s.reads for s in stages.stages] == [("x",), ("x",), ("x", "bent")]
    assert stages.stages[-1].drops == ("bent", "both", "x")


def test_weights_changed_between_stages_count():
    graph = branches()
    sites = list(find_linear_sites(graph))
    stages = cut_into_stages(graph, sites)
    x = np.array([[1.0, -2.0], [0.5, 3.0]], np.float32)
    run = StagedRun(graph, stages, [{"x": x}, {"x": 2 * x}], 1 << 20)
    (first,) = [list(run.advance(stages.stages[0]))]
    np.testing.assert_array_equal(first[1]["x"], 2 * x)
    sites[0].set_weight(np.array([[1, 1], [0, 1]], np.float32))
    second = list(run.advance(stages.stages[1]))
    np.testing.assert_allclose(second[0]["bent"], np.maximum(x @ [[1, 0], [1, 1]], 0), rtol=1e-6)


@pytest.mark.parametrize("held_bytes", [0, 1 << 24])
@pytest.mark.parametrize("arch", ["bert", "deberta-v3", "modernbert", "distilbert"])
def test_every_site_of_an_encoder_sees_the_input_of_the_whole_run(
    tiny_graph, arch, held_bytes, tmp_path
):
    graph = tiny_graph(arch, "sequence")
    sites, _ = prunable_sites(graph)
    stages = cut_into_stages(graph, sites)
    rng = np.random.default_rng(0)
    feeds = []
    for length in (7, 5):
        ids = rng.integers(5, 50, (2, length))
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        feed["token_type_ids"] = np.zeros_like(ids)
        feeds.append({v.name: feed[v.name] for v in graph.model.graph.inputs})
    run = StagedRun(graph, stages, feeds, held_bytes)
    found = [{}, {}]
    for stage in stages.stages:
        for batch, inputs in enumerate(run.advance(stage)):
            found[batch].update(inputs)
    assert set(stages.inputs) == {site.name for site in sites}
    names = {*stages.inputs.values(), *stages.residuals.values()}
    assert set(found[0]) == names
    for feed, inputs in zip(feeds, found, strict=True):
        whole = values_at_once(graph, sorted(names), feed, tmp_path)
        for name, x in inputs.items():
            np.testing.assert_allclose(x, whole[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("arch", ["bert", "deberta-v3", "modernbert", "distilbert"])
def test_the_last_matrices_of_attention_and_of_a_layer_have_a_residual(tiny_graph, arch):
    graph = tiny_graph(arch, "sequence")
    sites, _ = prunable_sites(graph)
    found = cut_into_stages(graph, sites).residuals
    layers = find_encoder_layers(graph)
    assert len(found) == 2 * len(layers)
    assert {layers.layer_of(name) for name in found} == set(range(len(layers)))


def test_a_summand_that_comes_later_is_no_residual():
    graph = branches()
    stages = cut_into_stages(graph, list(find_linear_sites(graph)))
    assert not stages.residuals


def test_a_site_with_several_uses_has_no_place(tiny_graph):
    graph = tiny_graph("albert", "sequence")
    sites, _ = prunable_sites(graph)
    stages = cut_into_stages(graph, sites)
    assert set(stages.several) == {site.name for site in sites}
    assert not stages.stages
