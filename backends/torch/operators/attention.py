"""Attention and RotaryEmbedding of opset 23."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from obert_compiler.backends.torch.operators.table import Call, Operand, operator


@operator("Attention")
def _attention(call: Call) -> Sequence[Operand]:
    if call.has(6):
        raise call.error("expected no nonpad_kv_seqlen (input 6), found one")
    parts = call.emit(
        attention,
        call.tensor(0),
        call.tensor(1),
        call.tensor(2),
        call.tensor_or_none(3),
        call.tensor_or_none(4),
        call.tensor_or_none(5),
        heads=(call.integer("q_num_heads", 0), call.integer("kv_num_heads", 0)),
        scale=call.node.attributes.get_float("scale", None),
        causal=call.flag("is_causal"),
        softcap=call.number("softcap", 0.0),
        returned=call.integer("qk_matmul_output_mode", 0),
    )
    return call.outputs_of(parts, len(call.node.outputs))


@operator("RotaryEmbedding")
def _rotary_embedding(call: Call) -> Operand:
    return call.emit(
        rotary_embedding,
        call.tensor(0),
        call.tensor(1),
        call.tensor(2),
        call.tensor_or_none(3),
        heads=call.integer("num_heads", 0),
        width=call.integer("rotary_embedding_dim", 0),
        interleaved=call.flag("interleaved"),
    )


# -- at run time ----------------------------------------------------------------------------------


def _by_head(x: torch.Tensor, heads: int) -> torch.Tensor:
    """``[batch, sequence, heads * width]`` as ``[batch, heads, sequence, width]``."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2) if x.ndim == 3 else x


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    past_k: torch.Tensor | None,
    past_v: torch.Tensor | None,
    *,
    heads: tuple[int, int],
    scale: float | None,
    causal: bool,
    softcap: float,
    returned: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """ONNX Attention: the result, the keys and values used, and the scores at stage ``returned``.

    ``q`` is ``[batch, heads, sequence, width]`` or 3-D with the heads folded into the last axis.
    """
    folded = q.ndim == 3
    q, k, v = _by_head(q, heads[0]), _by_head(k, heads[1]), _by_head(v, heads[1])
    offset = 0
    if past_k is not None and past_v is not None:
        offset = past_k.shape[2]
        k, v = torch.cat((past_k, k), dim=2), torch.cat((past_v, v), dim=2)
    groups = q.shape[1] // k.shape[1]
    keys, values = (k, v) if groups == 1 else (t.repeat_interleave(groups, 1) for t in (k, v))
    factor = (q.shape[-1] ** -0.5 if scale is None else scale) ** 0.5
    stages = [torch.matmul(q * factor, (keys * factor).transpose(-1, -2))]
    stages.append(_masked(stages[0], mask, offset if causal else None))
    capped = softcap * torch.tanh(stages[1] / softcap) if softcap else stages[1]
    stages += [capped, torch.softmax(capped, dim=-1)]
    result = torch.matmul(stages[3], values)
    if folded:
        result = result.transpose(1, 2).flatten(2)
    return result, k, v, stages[returned]


def _masked(scores: torch.Tensor, mask: torch.Tensor | None, offset: int | None) -> torch.Tensor:
    """Scores with an additive or boolean mask, and a causal one where ``offset`` is given."""
    if offset is not None:
        rows = torch.arange(scores.shape[-2], device=scores.device).unsqueeze(1) + offset
        columns = torch.arange(scores.shape[-1], device=scores.device)
        scores = scores.masked_fill(columns > rows, float("-inf"))
    if mask is None:
        return scores
    if mask.shape[-1] < scores.shape[-1]:
        fill: Any = False if mask.dtype == torch.bool else float("-inf")
        missing = scores.shape[-1] - mask.shape[-1]
        mask = torch.nn.functional.pad(mask, (0, missing), value=fill)
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, float("-inf"))
    return scores + mask


def rotary_embedding(
    x: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor | None,
    *,
    heads: int,
    width: int,
    interleaved: bool,
) -> torch.Tensor:
    """Rotate pairs of features by the angle of their position (RoFormer, arXiv 2104.09864).

    ``cos`` and ``sin`` are ``[max, width / 2]`` with ``positions`` ``[batch, sequence]``, else
    ``[batch, sequence, width / 2]``. Pairs are neighbours when ``interleaved``, else halves apart.
    """
    folded = x.ndim == 3
    x = _by_head(x, heads)
    if positions is not None:
        cos, sin = cos[positions], sin[positions]
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    rotated, rest = (x[..., :width], x[..., width:]) if width else (x, None)
    if interleaved:
        a, b = rotated[..., 0::2], rotated[..., 1::2]
    else:
        a, b = rotated.chunk(2, dim=-1)
    real, imaginary = a * cos - b * sin, a * sin + b * cos
    if interleaved:
        result = torch.stack((real, imaginary), dim=-1).flatten(-2)
    else:
        result = torch.cat((real, imaginary), dim=-1)
    if rest is not None:
        result = torch.cat((result, rest), dim=-1)
    return result.transpose(1, 2).flatten(2) if folded else result
