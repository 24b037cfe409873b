"""Masked weights and the optimiser's state of them are zero after every step."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from obert_compiler.errors import GraphError, NumericsError
from obert_compiler.graph import Graph, Stage, find_linear_sites
from obert_compiler.passes.training.masks import Masks, zero_masks

TinyGraph = Callable[[str, str], Graph]


def _linear() -> tuple[torch.nn.Linear, torch.Tensor]:
    torch.manual_seed(0)
    linear = torch.nn.Linear(16, 8)
    return linear, torch.rand(8, 16, generator=torch.Generator().manual_seed(1)) > 0.6


@pytest.mark.parametrize("fused", [False, True])
def test_weights_and_moments_stay_zero_under_adamw(fused: bool) -> None:
    linear, kept = _linear()
    masks = Masks(linear, {"weight": kept})
    masks.apply_to_weights()
    optimiser = torch.optim.AdamW(linear.parameters(), lr=0.1, weight_decay=0.1, fused=fused)
    before = linear.weight.detach().clone()
    for step in range(5):
        x = torch.randn(4, 16, generator=torch.Generator().manual_seed(step))
        linear(x).square().sum().backward()
        masks.apply_to_gradients()
        optimiser.step()
        optimiser.zero_grad()
        state = optimiser.state[linear.weight]
        for tensor in (linear.weight, state["exp_avg"], state["exp_avg_sq"]):
            assert (tensor[~kept] == 0).all()
    assert (linear.weight[kept] != before[kept]).all()
    masks.check()
    assert masks.sparsity() == pytest.approx((~kept).float().mean().item())


def test_a_weight_that_moved_is_told() -> None:
    linear, kept = _linear()
    masks = Masks(linear, {"weight": kept})
    with pytest.raises(NumericsError, match="'weight': expected its pruned weights to be 0"):
        masks.check()
    masks.apply_to_weights()
    masks.check()


def test_masks_must_fit_the_module() -> None:
    linear, kept = _linear()
    with pytest.raises(GraphError, match=r"mask 'other': expected a parameter .* found none"):
        Masks(linear, {"other": kept})
    with pytest.raises(GraphError, match=r"found shape \(8, 16\)"):
        Masks(linear, {"weight": kept.T})


def test_masks_of_a_graph_are_the_zeros_of_its_pruned_sites(tiny_graph: TinyGraph) -> None:
    from obert_compiler.backends.torch import to_module

    graph = tiny_graph("bert", "sequence")
    site = next(s for s in find_linear_sites(graph) if "query" in s.name)
    weight = site.weight()
    weight[:, :1] = 0
    site.set_weight(weight)
    assert zero_masks(to_module(graph), graph) == {}  # a dense graph: zeros by accident
    came_sparse = graph.copy()
    sparser = weight.copy()
    sparser[:, :4] = 0
    next(s for s in find_linear_sites(came_sparse) if s.name == site.name).set_weight(sparser)
    assert list(zero_masks(to_module(came_sparse), came_sparse)) == [f"{site.name}.weight"]
    graph.advance(Stage.PRUNED)
    ((name, kept),) = zero_masks(to_module(graph), graph).items()
    assert name == f"{site.name}.weight"
    assert (kept.numpy() == (weight != 0)).all()
