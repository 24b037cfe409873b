"""Fake quantisation against arithmetic written out in numpy, value by value."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from obert_compiler.passes.calibration import Quantizer, quantizer_for
from obert_compiler.passes.embedding_quantization import quantize_table_4bit
from obert_compiler.passes.fake_quantization import (
    ActivationQuantiser,
    FakeQuantiseLearnt,
    FourBitQuantiser,
    QuantisedLinear,
    RowQuantiser,
    real_values,
)
from obert_compiler.passes.weight_quantization import quantize_weight


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def rounded(value: float, scale: float, zero: int, low: int, high: int) -> tuple[float, float]:
    """Level and slope of the scale of one value, halves to even."""
    exact = np.float32(value) / np.float32(scale)
    level = float(np.rint(exact)) + zero
    if level < low:
        return low, low - zero
    if level > high:
        return high, high - zero
    return level, level - zero - float(exact)


def row_quantiser(weight: np.ndarray, *, learnt: bool = False) -> RowQuantiser:
    scale = torch.from_numpy(quantize_weight(weight).scale)
    return RowQuantiser(torch.from_numpy(weight), scale, 64, learnt=learnt)


def test_activations_are_rounded_as_quantize_linear_does() -> None:
    x = normal(7, 33) * 3
    x[0, :4] = [0.0, 0.5, 1.5, -0.5]  # halves, with a scale of 1
    for quantizer in (quantizer_for(-2.0, 4.0), quantizer_for(0.0, 5.0), Quantizer(1.0, 3)):
        module = ActivationQuantiser(quantizer)
        got = module(torch.from_numpy(x)).numpy()
        np.testing.assert_array_equal(got, quantizer.round_trip(x))
        want = [rounded(v, quantizer.scale, quantizer.zero_point, 0, 255)[0] for v in x.flat]
        levels = got.ravel() / np.float32(quantizer.scale) + quantizer.zero_point
        np.testing.assert_allclose(levels, want, atol=1e-3)
        assert module.quantizer() == quantizer


def test_activations_in_bfloat16_have_all_their_levels() -> None:
    module = ActivationQuantiser(Quantizer(1 / 128, 0))
    x = torch.arange(256, dtype=torch.float32) / 128
    assert torch.equal(module(x), x)
    assert len(module(x.bfloat16()).unique()) == len(x.bfloat16().unique())
    assert module(x.bfloat16()).dtype == torch.float32


def test_gradients_of_activations_stop_where_they_are_clipped() -> None:
    module = ActivationQuantiser(quantizer_for(-1.0, 1.0))
    x = torch.tensor([-2.0, -0.9, 0.0, 0.9, 2.0], requires_grad=True)
    module(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]


def test_rows_are_rounded_as_the_file_holds_them() -> None:
    weight = normal(12, 20)
    weight[3] = 0.0
    weight[:, ::2] = 0.0
    expected = quantize_weight(weight)
    module = row_quantiser(weight)
    parameter = torch.from_numpy(weight)
    found = module.quantized(parameter)
    np.testing.assert_array_equal(found.q, expected.q)
    np.testing.assert_array_equal(found.scale, expected.scale)
    got = module(parameter).numpy()
    np.testing.assert_array_equal(got, expected.dequantize())
    assert not got[:, ::2].any()
    ids = torch.tensor([[0, 3, -1], [5, 5, 2]])
    np.testing.assert_array_equal(module(parameter[ids], ids).numpy(), got[ids.numpy()])


def test_learnt_scales_start_where_fixed_ones_are() -> None:
    weight = normal(5, 24)
    parameter = torch.from_numpy(weight)
    fixed, learnt = row_quantiser(weight), row_quantiser(weight, learnt=True)
    assert torch.equal(fixed(parameter), learnt(parameter))
    quantizer = quantizer_for(-1.0, 2.0)
    x = torch.from_numpy(normal(4, 9))
    a, b = ActivationQuantiser(quantizer), ActivationQuantiser(quantizer, learnt=True)
    assert torch.equal(a(x), b(x))
    assert list(fixed.parameters()) == list(a.parameters()) == []


@pytest.mark.parametrize("rows", [True, False])
def test_the_gradient_of_a_learnt_scale_is_that_of_lsq(rows: bool) -> None:
    values, upstream = normal(4, 15) * 2, normal(4, 15, seed=1)
    low, high, zero = (-3, 3, 0) if rows else (0, 7, 2)
    scale = np.array([[0.5], [0.3], [0.7], [1.1]], np.float32) if rows else np.float32(0.6)
    x = torch.from_numpy(values).requires_grad_(True)
    s = torch.tensor(scale, requires_grad=True)
    out = FakeQuantiseLearnt.apply(x, s, torch.tensor(float(zero)), low, high)
    out.backward(torch.from_numpy(upstream))
    of_x, of_s = np.zeros_like(values), np.zeros((4, 1) if rows else (1, 1), np.float64)
    for i, j in np.ndindex(*values.shape):
        one = float(scale[i, 0]) if rows else float(scale)
        level, slope = rounded(values[i, j], one, zero, low, high)
        unclipped = float(np.rint(values[i, j] / np.float32(one))) + zero
        of_x[i, j] = upstream[i, j] if low <= unclipped <= high else 0.0
        of_s[i if rows else 0, 0] += upstream[i, j] * slope
        assert out[i, j].item() == pytest.approx((level - zero) * one, abs=1e-6)
    of_s /= np.sqrt((15 if rows else 60) * high)
    assert x.grad is not None
    assert s.grad is not None
    np.testing.assert_array_equal(x.grad.numpy(), of_x)
    np.testing.assert_allclose(s.grad.numpy().reshape(of_s.shape), of_s, rtol=1e-4, atol=1e-5)


def test_a_learnt_scale_learns_the_range() -> None:
    x = torch.from_numpy(normal(64, 32))
    module = ActivationQuantiser(quantizer_for(-0.5, 0.5), learnt=True)
    optimiser = torch.optim.Adam(module.parameters(), 0.05)
    before = (module(x) - x).square().mean().item()
    for _ in range(60):
        optimiser.zero_grad()
        (module(x) - x).square().mean().backward()
        optimiser.step()
    assert (module(x) - x).square().mean().item() < 0.1 * before
    assert module.quantizer().scale == pytest.approx(float(module.scale.detach()), rel=0)


def test_four_bit_tables_are_rounded_as_the_file_holds_them() -> None:
    table = normal(9, 64)
    four = quantize_table_4bit(table, 32)
    module, parameter = FourBitQuantiser(four), torch.from_numpy(table).requires_grad_(True)
    assert parameter.grad is None
    whole = module(parameter)
    np.testing.assert_array_equal(whole.detach().numpy(), four.dequantize())
    ids = torch.tensor([[1, 8], [-9, 1]])
    assert torch.equal(module(parameter[ids], ids), whole[ids])
    again = module.quantized(parameter)
    np.testing.assert_array_equal(again.packed, four.packed)
    np.testing.assert_array_equal(again.scale, four.scale)
    np.testing.assert_array_equal(again.zero_point, four.zero_point)
    # A master that has moved is rounded with the scales that the table has.
    with torch.no_grad():
        parameter += 0.3
    moved = module.quantized(parameter)
    assert (moved.packed != four.packed).any()
    np.testing.assert_array_equal(moved.dequantize(), module(parameter).detach().numpy())


def test_observed_activations_follow_the_batches_and_then_stand_still() -> None:
    quantizer = quantizer_for(-1.0, 2.0)
    module = ActivationQuantiser(quantizer)
    module.train()
    batch = torch.tensor([[-2.0, 4.0]])  # calibration cut half of the range off
    module(batch)
    assert module.quantizer() == quantizer, "nothing is observed unless it is asked for"
    module.observing = True
    for _ in range(16):
        module(batch)
    assert module.quantizer() == quantizer
    for _ in range(400):
        module(batch * 3)
    grown = module.quantizer()
    assert grown.high == pytest.approx(6.0, rel=0.02)
    assert grown.low == pytest.approx(-3.0, rel=0.02)
    module.eval()
    module(batch * 50)
    module.train()
    module.observing = False
    module(batch * 50)
    assert module.quantizer() == grown


def test_observed_ranges_know_no_padding() -> None:
    x = torch.zeros(2, 3, 4)
    x[0, 2], x[1, 1] = 5.0, 7.0
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert float(real_values(x, mask).max()) == 7.0
    mask[1, 1] = 0
    assert float(real_values(x, mask).max()) == 0.0
    flat = x.reshape(6, 4)
    assert float(real_values(flat, mask).max()) == 0.0
    assert float(real_values(x, None).max()) == 7.0
    assert real_values(x[:, 0], mask).shape == (2, 4), "one row for each text has no padding"


def test_observed_rows_keep_their_share_of_the_largest_weight() -> None:
    weight = normal(6, 10)
    weight[2] = 0.0
    module = row_quantiser(weight)
    start = module.scale.clone()
    module.observing = True
    module.train()
    module(torch.from_numpy(weight * 2))
    np.testing.assert_allclose(module.scale[[0, 1, 3]], 2 * start[[0, 1, 3]], rtol=1e-6)
    assert module.scale[2] == start[2] == 1.0


def test_a_linear_layer_trains_its_master_through_the_rounding() -> None:
    linear = nn.Linear(8, 4)
    weight = linear.weight
    scale = torch.from_numpy(quantize_weight(weight.detach().numpy()).scale)
    layer = QuantisedLinear(linear, RowQuantiser(weight, scale, 64))
    assert layer.weight is weight
    assert layer.bias is linear.bias
    x = torch.from_numpy(normal(3, 8))
    want = x @ layer.quantiser(weight).T + linear.bias
    torch.testing.assert_close(layer(x), want)
    layer(x).sum().backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, x.sum(0).expand(4, 8))
