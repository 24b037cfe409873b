"""Losses of distillation, on tensors alone.

Every function returns a scalar, differentiable in what the student gave; what the teacher gave is
taken as constant. ``n`` counts predictions, ``b`` examples, ``t`` positions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax, normalize

__all__ = [
    "combined",
    "contrastive",
    "cosine_error",
    "kl_divergence",
    "relation_divergence",
    "similarity_distance",
    "squared_distance",
]


def combined(task: Tensor | None, distillation: Tensor | None, hardness: float) -> Tensor:
    """``(1 - h) * task + h * distillation`` (oBERT, arXiv 2203.07259, section 4: h = 1).

    A loss that is None has weight 0.
    """
    parts = []
    if task is not None and hardness < 1:
        parts.append((1 - hardness) * task)
    if distillation is not None and hardness > 0:
        parts.append(hardness * distillation)
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def kl_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``T^2 * mean_n KL(softmax(teacher / T) || softmax(student / T))``.

    Hinton, Vinyals, Dean 2015 (arXiv 1503.02531, section 2): the factor T^2 keeps the size of the
    gradients where T changes.

    Args:
        student: logits ``[n, c]``; -inf where a class cannot be.
        teacher: logits ``[n, c]``, -inf at the same places.
        temperature: T.
    """
    if not len(student):
        return student.sum()
    possible = torch.isfinite(teacher)
    log_p = log_softmax(teacher.float() / temperature, dim=-1).masked_fill(~possible, 0.0)
    log_q = log_softmax(student.float() / temperature, dim=-1).masked_fill(~possible, 0.0)
    p = log_p.exp().masked_fill(~possible, 0.0)
    return temperature**2 * (p * (log_p - log_q)).sum(-1).mean()


def squared_distance(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean of the squared difference over features and the positions that ``mask`` counts.

    Args:
        student, teacher: ``[b, t, f]``, or ``[n, f]``.
        mask: ``[b, t]``, 0 on padding.
    """
    squares = (student.float() - teacher.float()).square().mean(-1)
    if mask is None:
        return squares.mean()
    counted = mask.to(squares)
    return (squares * counted).sum() / counted.sum()


def relation_divergence(
    student: Tensor, teacher: Tensor, mask: Tensor, heads: int, temperature: float = 1.0
) -> Tensor:
    """Divergence of the relations of positions with one another.

    MiniLM v2 (Wang et al. 2021, arXiv 2012.15828, section 3.1): with ``A_h`` the features of head h
    of the queries (or keys, or values), the relation is ``softmax(A_h A_h^T / sqrt(d_h))``; the
    loss is the mean over examples, heads and positions of ``KL(teacher || student)``. Student and
    teacher may have different widths, as both are cut into the same number of heads.

    Args:
        student: ``[b, t, f]``; ``heads`` divides f.
        teacher: ``[b, t, f']``.
        mask: ``[b, t]``, 0 on padding.
        heads: number of relation heads.
        temperature: of the softmax.
    """
    possible = mask.bool()[:, None, None, :]
    log_p, log_q = (_log_relation(x, possible, heads, temperature) for x in (teacher, student))
    p = log_p.exp().masked_fill(~possible, 0.0)
    terms = (p * (log_p - log_q)).masked_fill(~possible, 0.0).sum(-1)
    counted = mask.to(terms)[:, None, :]
    return (terms * counted).sum() / (counted.sum() * heads)


def _log_relation(x: Tensor, possible: Tensor, heads: int, temperature: float) -> Tensor:
    b, t, f = x.shape
    head = x.float().reshape(b, t, heads, f // heads).transpose(1, 2)
    scores = head @ head.transpose(2, 3) / (math.sqrt(f // heads) * temperature)
    # A large negative number and not -inf, whose gradient is NaN in rows without any key.
    return log_softmax(scores.masked_fill(~possible, torch.finfo(scores.dtype).min), dim=-1)


def similarity_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """How far the embeddings of a batch lie from the teacher's, by their cosines.

    ``mean_(i != j) (cos(s_i, s_j) - cos(t_i, t_j))^2``, and where both have the same width
    ``mean_i (1 - cos(s_i, t_i))`` on top: the first alone leaves the space free to turn, so that
    a student could not be compared with embeddings of the teacher.

    Args:
        student: ``[b, f]``.
        teacher: ``[b, f']``.
    """
    s, t = normalize(student.float(), dim=-1), normalize(teacher.float(), dim=-1)
    total = s.sum() * 0.0
    if len(s) > 1:
        squares = (s @ s.T - t @ t.T).square()
        total = total + (squares.sum() - squares.diagonal().sum()) / (len(s) * (len(s) - 1))
    if s.shape[1] == t.shape[1]:
        total = total + (1.0 - (s * t).sum(-1)).mean()
    return total


def contrastive(first: Tensor, second: Tensor, temperature: float = 0.05) -> Tensor:
    """In-batch contrastive loss of pairs, both ways (InfoNCE; Oord et al. 2018, arXiv 1807.03748).

    ``mean_i -log softmax_j(cos(a_i, b_j) / T)[i]``, and the same with a and b exchanged.

    Args:
        first, second: ``[n, f]``, pairs by their index.
        temperature: T.
    """
    scores = normalize(first.float(), dim=-1) @ normalize(second.float(), dim=-1).T
    wanted = torch.arange(len(scores), device=scores.device)
    scores = scores / temperature
    return 0.5 * (cross_entropy(scores, wanted) + cross_entropy(scores.T, wanted))


def cosine_error(first: Tensor, second: Tensor, wanted: Tensor) -> Tensor:
    """``mean_i (cos(a_i, b_i) - wanted_i)^2``, the loss of pairs with a score.

    Args:
        first, second: ``[n, f]``, pairs by their index.
        wanted: ``[n]``, 0 to 1.
    """
    cosines = (normalize(first.float(), dim=-1) * normalize(second.float(), dim=-1)).sum(-1)
    return (cosines - wanted.to(cosines)).square().mean()
