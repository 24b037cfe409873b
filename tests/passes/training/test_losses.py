"""Each loss against loops over its definition, in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from obert_compiler.passes.training.losses import (
    combined,
    contrastive,
    cosine_error,
    kl_divergence,
    relation_divergence,
    similarity_distance,
    squared_distance,
)


def _softmax(x: Any) -> Any:
    e = np.exp(x - np.max(x))
    return e / e.sum()


def _kl(p: Any, q: Any) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def _cos(a: Any, b: Any) -> float:
    x, y = a.tolist(), b.tolist()
    dot = sum(i * j for i, j in zip(x, y, strict=True))
    return dot / math.sqrt(sum(i * i for i in x) * sum(j * j for j in y))


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.5])
def test_kl_divergence(temperature: float) -> None:
    s, t = 3 * _random(5, 4), 3 * _random(5, 4, seed=1)
    wanted = np.mean(
        [
            temperature**2
            * _kl(
                _softmax(b.double().numpy() / temperature),
                _softmax(a.double().numpy() / temperature),
            )
            for a, b in zip(s, t, strict=True)
        ]
    )
    assert kl_divergence(s, t, temperature).item() == pytest.approx(wanted, rel=1e-5)


def test_kl_divergence_leaves_out_classes_that_cannot_be() -> None:
    s, t = _random(3, 6), _random(3, 6, seed=1)
    short = kl_divergence(s[:, :4], t[:, :4], 2.0)
    s_padded, t_padded = s.clone(), t.clone()
    s_padded[:, 4:] = t_padded[:, 4:] = -torch.inf
    s_padded.requires_grad_()
    padded = kl_divergence(s_padded, t_padded, 2.0)
    padded.backward()
    assert padded.item() == pytest.approx(short.item(), rel=1e-6)
    assert s_padded.grad is not None
    assert torch.isfinite(s_padded.grad).all()
    assert (s_padded.grad[:, 4:] == 0).all()


def test_the_gradient_of_kl_is_that_of_the_predictions_times_the_temperature() -> None:
    # Hinton et al. 2015, eq. 2: the gradient at logit i is T * (q_i - p_i), for each row.
    s, t = _random(1, 5).requires_grad_(), _random(1, 5, seed=1)
    kl_divergence(s, t, 2.0).backward()
    wanted = 2.0 * (torch.softmax(s / 2, -1) - torch.softmax(t / 2, -1))
    assert s.grad is not None
    torch.testing.assert_close(s.grad, wanted.detach())


def test_no_prediction_gives_no_loss() -> None:
    empty = torch.zeros(0, 7, requires_grad=True)
    loss = kl_divergence(empty, torch.zeros(0, 7), 2.0)
    loss.backward()
    assert loss.item() == 0


def test_squared_distance_counts_real_positions() -> None:
    s, t = _random(2, 4, 3), _random(2, 4, 3, seed=1)
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    terms = [
        np.mean([(float(s[b, i, f]) - float(t[b, i, f])) ** 2 for f in range(3)])
        for b in range(2)
        for i in range(4)
        if mask[b, i]
    ]
    assert squared_distance(s, t, mask).item() == pytest.approx(np.mean(terms), rel=1e-6)
    assert squared_distance(s, t).item() == pytest.approx(((s - t) ** 2).mean().item(), rel=1e-6)


@pytest.mark.parametrize("width", [8, 12])
def test_relation_divergence(width: int) -> None:
    heads, lengths = 2, [3, 4]
    s, t = _random(2, 4, 8), _random(2, 4, width, seed=1)
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])

    def relation(x: torch.Tensor, example: int, head: int, position: int) -> Any:
        size = x.shape[-1] // heads
        rows = x[example, : lengths[example], head * size : (head + 1) * size].double().numpy()
        return _softmax(rows @ rows[position] / math.sqrt(size))

    terms = [
        _kl(relation(t, b, h, i), relation(s, b, h, i))
        for b in range(2)
        for h in range(heads)
        for i in range(lengths[b])
    ]
    found = relation_divergence(s.requires_grad_(), t, mask, heads)
    found.backward()
    assert found.item() == pytest.approx(np.mean(terms), rel=1e-5)
    assert s.grad is not None
    assert torch.isfinite(s.grad).all()
    assert (s.grad[0, 3] == 0).all()


@pytest.mark.parametrize("width", [6, 9])
def test_similarity_distance(width: int) -> None:
    s, t = _random(4, 6), _random(4, width, seed=1)
    pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
    wanted = np.mean([(_cos(s[i], s[j]) - _cos(t[i], t[j])) ** 2 for i, j in pairs])
    if width == 6:
        wanted += np.mean([1 - _cos(s[i], t[i]) for i in range(4)])
    assert similarity_distance(s, t).item() == pytest.approx(wanted, rel=1e-5)


def test_one_embedding_alone_has_no_pairs() -> None:
    s = _random(1, 6)
    assert similarity_distance(s, s).item() == pytest.approx(0, abs=1e-6)
    assert similarity_distance(s, -s).item() == pytest.approx(2, abs=1e-6)


def test_contrastive() -> None:
    a, b = _random(3, 5), _random(3, 5, seed=1)
    scores = np.array([[_cos(x, y) / 0.05 for y in b] for x in a])
    rows = [-math.log(_softmax(scores[i])[i]) for i in range(3)]
    columns = [-math.log(_softmax(scores[:, i])[i]) for i in range(3)]
    wanted = 0.5 * (np.mean(rows) + np.mean(columns))
    assert contrastive(a, b).item() == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize(
    ("hardness", "wanted"), [(0.0, 3.0), (0.25, 0.75 * 3 + 0.25 * 5), (1.0, 5.0)]
)
def test_combined(hardness: float, wanted: float) -> None:
    assert combined(torch.tensor(3.0), torch.tensor(5.0), hardness).item() == wanted


def test_a_part_that_is_missing_counts_nothing() -> None:
    assert combined(torch.tensor(3.0), None, 0.5).item() == 1.5
    assert combined(None, torch.tensor(3.0), 0.5).item() == 1.5


def test_cosine_error() -> None:
    a, b, wanted = _random(3, 5), _random(3, 5, seed=1), torch.tensor([0.0, 0.5, 1.0])
    terms = [(_cos(x, y) - float(w)) ** 2 for x, y, w in zip(a, b, wanted, strict=True)]
    assert cosine_error(a, b, wanted).item() == pytest.approx(np.mean(terms), rel=1e-5)
