"""The batched estimate against gradients of one example at a time by autograd."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from obert_compiler.data.batches import Batches
from obert_compiler.errors import GraphError, NumericsError, UsageError
from obert_compiler.passes import fisher_estimation, fisher_gradients
from obert_compiler.passes.fisher_blocks import BlockLayout
from obert_compiler.passes.fisher_estimation import Estimation, group_sites
from obert_compiler.passes.fisher_statistics import FisherStatistics
from obert_compiler.pipeline.contract import SilentProgress


class Encoder(nn.Module):
    """A shared matrix over positions, one of odd width, and one without positions."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.shared = nn.Linear(6, 6)
        self.wide = nn.Linear(6, 10)
        self.head = nn.Linear(10, 3)
        self.linear_sites = {"shared": self.shared, "wide": self.wide, "head": self.head}

    def forward(self, x):
        x = x + torch.tanh(self.shared(x))
        x = x + torch.tanh(self.shared(x))
        return self.head(torch.relu(self.wide(x)).mean(dim=1))


class Objective:
    def reset(self):
        pass

    def losses(self, module, batch):
        logits = module(torch.as_tensor(batch.inputs["x"]))
        target = torch.as_tensor(batch.rows % 3)
        return nn.functional.cross_entropy(logits, target, reduction="none")


@pytest.fixture
def data():
    x = np.random.default_rng(0).normal(size=(11, 5, 6)).astype(np.float32)
    return Batches.from_arrays({"x": x}, batch_size=4)


def estimate(module, data, tmp_path, sites=None, bound=10**9, objective=None):
    layouts = {
        name: BlockLayout(m.out_features, m.in_features, 4)
        for name, m in module.linear_sites.items()
        if sites is None or name in sites
    }
    statistics = FisherStatistics.create(tmp_path, 4)
    run = Estimation(
        module.eval().requires_grad_(False),
        module.linear_sites,
        objective or Objective(),
        data,
        bound,
        statistics,
    )
    run.estimate(layouts, SilentProgress(), "fisher")
    return run


def oracle(data, name, block=4):
    module = Encoder()
    weight = module.linear_sites[name].weight
    total = 0.0
    for index, example in enumerate(data.examples):
        batch = SimpleNamespace(
            inputs={"x": example.inputs["x"][None]}, rows=np.array([index]), __len__=lambda: 1
        )
        (G,) = torch.autograd.grad(Objective().losses(module, batch).sum(), weight)
        blocks = []
        for row in G.numpy().astype(np.float64):
            for start in range(0, len(row), block):
                piece = np.zeros(block)
                piece[: len(row[start : start + block])] = row[start : start + block]
                blocks.append(np.outer(piece, piece))
        total = total + np.array(blocks)
    return total / len(data.examples)


@pytest.mark.parametrize("name", ["shared", "wide", "head"])
def test_every_block_is_the_mean_outer_product_of_gradients(data, tmp_path, name):
    run = estimate(Encoder(), data, tmp_path)
    expected = oracle(data, name)
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(
        run.statistics.blocks(name), expected, rtol=2e-4, atol=1e-6 * np.abs(expected).max()
    )


def test_neither_tiles_nor_flushes_nor_groups_change_the_estimate(data, tmp_path, monkeypatch):
    whole = estimate(Encoder(), data, tmp_path / "a").statistics
    for limit, value in (("_TILE", 24), ("_TILE_COLUMNS", 4), ("_FOLDED_BLOCKS", 2)):
        monkeypatch.setattr(fisher_gradients, limit, value)
    monkeypatch.setattr(fisher_estimation, "_FLUSH_EXAMPLES", 1)
    parts = estimate(Encoder(), data, tmp_path / "b", sites=["shared", "head"]).statistics
    for name in ("shared", "head"):
        np.testing.assert_allclose(parts.blocks(name), whole.blocks(name), rtol=1e-4, atol=1e-9)


def test_a_tight_bound_flushes_after_every_batch(data, tmp_path, monkeypatch):
    monkeypatch.setattr(fisher_estimation, "_WORKING_BYTES", 0)
    roomy = estimate(Encoder(), data, tmp_path / "a")
    held = sum(4 * layout.count * 10 for layout in roomy.statistics.layouts.values())
    one_batch = 4 * 5 * (6 + 6 + 6 + 6 + 6 + 10) * 4 + 4 * (10 + 3) * 4
    tight = estimate(Encoder(), data, tmp_path / "b", bound=held + one_batch)
    assert tight.peak_bytes <= held + one_batch < roomy.peak_bytes
    # F is read and written at each update and once to be stored, what is recorded is read once.
    recorded = 11 * 4 * (2 * 5 * (6 + 6) + 5 * (6 + 10) + (10 + 3))
    assert roomy.traffic_bytes == (2 + 2) * held + recorded
    assert tight.traffic_bytes == (3 * 2 + 2) * held + recorded
    for name in ("shared", "wide", "head"):
        np.testing.assert_allclose(
            tight.statistics.blocks(name), roomy.statistics.blocks(name), rtol=1e-4, atol=1e-9
        )


def test_an_input_that_is_never_active_is_counted(data, tmp_path):
    module = Encoder()
    with torch.no_grad():
        module.wide.weight[2:4] = 0
        module.wide.bias[2:4] = -1
    run = estimate(module, data, tmp_path)
    assert run.dead_inputs == {"head": 2}


def test_a_site_that_no_gradient_reaches_is_reported(data, tmp_path):
    module = Encoder()
    module.linear_sites["unused"] = nn.Linear(4, 4)
    run = estimate(module, data, tmp_path)
    assert [(s.subject, s.reason) for s in run.skips] == [("unused", "no gradient reached it")]
    assert not run.statistics.blocks("unused").any()


@pytest.mark.parametrize("positions", [5, 3])
def test_the_batch_may_be_the_second_axis(tmp_path, positions):
    class SequenceFirst(Encoder):
        def forward(self, x):
            x = x + torch.tanh(self.shared(x))
            x = x + torch.tanh(self.shared(x))
            wide = self.wide(x.transpose(0, 1)).transpose(0, 1)
            return self.head(torch.relu(wide).mean(dim=1))

    # The last of the batches of 4 holds 3 examples: as many as positions in the second case.
    x = np.random.default_rng(0).normal(size=(11, positions, 6)).astype(np.float32)
    data = Batches.from_arrays({"x": x}, batch_size=4)
    expected = oracle(data, "wide")
    run = estimate(SequenceFirst(), data, tmp_path)
    np.testing.assert_allclose(
        run.statistics.blocks("wide"), expected, rtol=2e-4, atol=1e-6 * np.abs(expected).max()
    )


def test_a_use_without_a_batch_axis_is_reported(data, tmp_path):
    class Relative(Encoder):
        def forward(self, x):
            positions = self.shared(torch.ones(1, 5, 6))
            return super().forward(x + positions)

    run = estimate(Relative(), data, tmp_path)
    assert run.skips[0].subject == "shared"
    assert "(1, 5, 6) has no batch axis" in run.skips[0].reason


def test_a_loss_that_is_not_finite_names_the_example(data, tmp_path):
    data.examples[6].inputs["x"][0, 0] = np.nan
    with pytest.raises(NumericsError, match="NaN or infinity for example 6 of the data"):
        estimate(Encoder(), data, tmp_path)


def test_a_gradient_that_is_not_finite_names_site_and_example(data, tmp_path):
    class Steep(Encoder):
        def forward(self, x):
            x = torch.relu(self.wide(x)).mean(dim=1)
            x = x * 0 + torch.sqrt((x * (data_row != 9)).abs())
            return self.head(x)

    class Rows(Objective):
        def losses(self, module, batch):
            nonlocal data_row
            data_row = torch.as_tensor(batch.rows)[:, None]
            return super().losses(module, batch)

    data_row = None
    with pytest.raises(NumericsError, match=r"site 'wide': .* gradient.*example 9 of the data"):
        estimate(Steep(), data, tmp_path, objective=Rows())


def test_averaged_losses_are_refused(data, tmp_path):
    class Averaged(Objective):
        def losses(self, module, batch):
            return super().losses(module, batch).mean()

    with pytest.raises(GraphError, match="one loss for each of 4 examples"):
        estimate(Encoder(), data, tmp_path, objective=Averaged())


def test_groups_keep_the_bound_and_start_with_the_last_sites(monkeypatch):
    monkeypatch.setattr(fisher_estimation, "_WORKING_BYTES", 0)
    layouts = {str(i): BlockLayout(8, 8, 4) for i in range(5)}
    cost = 4 * (16 * 10 + 10 * 16)
    positions = dict.fromkeys(layouts, 10)
    assert group_sites(layouts, 2 * cost, positions) == [["4", "3"], ["2", "1"], ["0"]]
    assert group_sites(layouts, 2 * cost, positions | {"4": 20}) == [["4"], ["3", "2"], ["1", "0"]]
    assert group_sites(layouts, 5 * cost, positions) == [["4", "3", "2", "1", "0"]]
    with pytest.raises(UsageError, match="site '4'"):
        group_sites(layouts, cost - 1, positions)
