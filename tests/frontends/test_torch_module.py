"""Modules in memory: names, dynamic shapes, and independence from the module afterwards."""

import numpy as np
import pytest
import torch

from obert_compiler.errors import ModelError, UsageError
from obert_compiler.frontends import lower
from obert_compiler.graph import find_linear_sites


class Tagger(torch.nn.Module):
    """A table, a shared layer called twice, a decoder tied to the table."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(20, 8)
        self.shared = torch.nn.Linear(8, 8)
        self.decoder = torch.nn.Linear(8, 20)
        self.decoder.weight = self.table.weight
        torch.nn.init.zeros_(self.shared.bias)
        self.frozen = torch.nn.Dropout()

    def forward(self, ids, scale):
        hidden = self.table(ids) * scale[:, None]
        return self.decoder(torch.relu(self.shared(torch.relu(self.shared(hidden)))))


@pytest.fixture(scope="module")
def tagger():
    """The module in training mode, and what it was lowered to."""
    torch.manual_seed(0)
    module = Tagger().train()
    module.frozen.eval()
    ids, scale = torch.full((2, 6), 3), torch.ones(2, 8)
    graph = lower(module, example_inputs={"ids": ids, "scale": scale}, task="token-classification")
    return module, graph


def test_reproduces_the_module(tagger, run):
    module, graph = tagger
    for rows, length in ((1, 1), (3, 9), (2, 6)):
        ids, scale = torch.randint(0, 20, (rows, length)), torch.rand(rows, 8)
        with torch.no_grad():
            expected = module(ids, scale).numpy()
        (got,) = run(graph, {"ids": ids.numpy(), "scale": scale.numpy()}).values()
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_dimensions_and_source(tagger):
    module, graph = tagger
    shapes = {v.name: [str(dim) for dim in v.shape] for v in graph.model.graph.inputs}
    assert shapes == {"ids": ["batch", "sequence"], "scale": ["batch", "8"]}
    assert graph.source.kind == "torch"
    assert graph.source.task == "token-classification"
    assert graph.source.bytes_on_disk == 4 * (20 * 8 + 8 * 8 + 8 + 20)
    assert module.training
    assert not module.frozen.training


def test_shared_layer_is_one_site_and_the_decoder_stays_tied(tagger):
    module, graph = tagger
    sites = find_linear_sites(graph)
    assert [(site.name, len(site.nodes)) for site in sites] == [("shared", 2), ("decoder", 1)]
    assert sites["decoder"].weight_value.producer().op_type == "Transpose"
    names = {
        v.metadata_props.get("obert.parameter") for v in graph.model.graph.initializers.values()
    }
    assert names - {None} == {name for name, _ in module.named_parameters()}


def test_graph_does_not_follow_later_training(tagger):
    module, graph = tagger
    before = find_linear_sites(graph)["shared"].weight()
    table = graph.model.graph.initializers["table.weight"].const_value.numpy().copy()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
    np.testing.assert_array_equal(find_linear_sites(graph)["shared"].weight(), before)
    held = graph.model.graph.initializers["table.weight"].const_value.numpy()
    np.testing.assert_array_equal(held, table)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.sub_(1)


def test_parameters_that_are_not_called_weight_keep_their_names(run):
    class Projection(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.in_proj_weight = torch.nn.Parameter(torch.randn(6, 4))

        def forward(self, x):
            return torch.nn.functional.linear(x, self.in_proj_weight)

    module = torch.nn.Sequential(Projection())
    graph = lower(module, example_inputs=(torch.ones(2, 5, 4),))
    (site,) = find_linear_sites(graph)
    assert (site.name, site.shape) == ("0.in_proj_weight", (6, 4))
    (value,) = graph.model.graph.initializers.values()
    assert value.metadata_props["obert.parameter"] == "0.in_proj_weight"
    assert value.metadata_props["obert.transposed"] == "1"


def test_positional_inputs_and_fixed_shapes(run):
    module = torch.nn.Linear(4, 3, bias=False)
    graph = lower(module, example_inputs=(torch.ones(2, 4),), dynamic_shapes=({},))
    (value,) = graph.model.graph.inputs
    assert list(value.shape) == [2, 4]
    (site,) = find_linear_sites(graph)
    assert site.shape == (3, 4)


def test_half_precision_module_becomes_float32(run):
    module = torch.nn.Linear(4, 3).to(torch.bfloat16)
    graph = lower(module, example_inputs=(torch.ones(2, 4, dtype=torch.bfloat16),))
    (site,) = find_linear_sites(graph)
    np.testing.assert_array_equal(site.weight(), module.weight.detach().float().numpy())
    x = np.ones((5, 4), np.float32)
    expected = x @ site.weight().T + site.bias()
    (got,) = run(graph, {graph.model.graph.inputs[0].name: x}).values()
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_missing_example_inputs():
    with pytest.raises(UsageError, match="'Linear': expected example inputs"):
        lower(torch.nn.Linear(4, 3))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_parameters_that_are_not_finite(bad):
    module = torch.nn.Sequential(torch.nn.Linear(4, 3))
    torch.nn.init.constant_(module[0].bias, bad)
    with pytest.raises(ModelError, match=r"parameter '0\.bias': expected finite"):
        lower(module, example_inputs=(torch.ones(2, 4),))


def test_module_that_cannot_be_exported():
    class Branch(torch.nn.Module):
        def forward(self, x):
            return x + 1 if x.sum() > 0 else x - 1

    with pytest.raises(ModelError, match=r"^module 'Branch': torch.onnx.export refused it: \S"):
        lower(Branch(), example_inputs=(torch.ones(2, 4),))
