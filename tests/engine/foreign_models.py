"""Encoders of odd sizes, as people write them in torch, and their exports to ONNX.

36 features, heads of 12, a feed-forward of 54, heads of Gemm.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

WIDTH, HEADS, INNER, WORDS, LABELS = 36, 3, 54, 50, 5
BATCH, LENGTH, SPAN = 2, 12, 8


class Layer(nn.Module):
    """An encoder layer as people write it."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """``x`` [batch, tokens, WIDTH]; ``mask`` is added to the scores."""
        batch, tokens, _ = x.shape
        shape = (batch, tokens, HEADS, WIDTH // HEADS)
        q, k, v = (part(x).view(shape).transpose(1, 2) for part in (self.q, self.k, self.v))
        scores = q @ k.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5 + mask
        y = (torch.softmax(scores, -1) @ v).transpose(1, 2).reshape(batch, tokens, WIDTH)
        x = self.first(x + self.o(y))
        y: torch.Tensor = self.second(x + self.down(nn.functional.gelu(self.up(x))))
        return y


class Encoder(nn.Module):
    """Embedding, two layers, pooler and head."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList([Layer() for _ in range(2)])
        self.pool, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, LABELS)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Logits of token ids and a mask of ones and zeros, both [batch, tokens]."""
        x, added = self.words(ids), (1.0 - mask[:, None, None, :].float()) * -100.0
        for layer in self.layers:
            x = layer(x, added)
        logits: torch.Tensor = self.head(torch.tanh(self.pool(x[:, 0])))
        return logits


class RmsNorm(nn.Module):
    """RMSNorm in parts: the older exporter does not know it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(WIDTH) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` [batch, tokens, WIDTH]."""
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class RotaryLayer(nn.Module):
    """A layer as newer encoders have it: one matrix for queries, keys and values, one for gates."""

    def __init__(self, in_parts: bool) -> None:
        super().__init__()
        self.qkv, self.o = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH)
        self.first = nn.LayerNorm(WIDTH, bias=False)
        self.second = RmsNorm() if in_parts else nn.RMSNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * INNER), nn.Linear(INNER, WIDTH)

    def forward(
        self, x: torch.Tensor, mask: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> torch.Tensor:
        """``x`` [batch, tokens, WIDTH]; ``mask``: which keys count; tables [1, tokens, size]."""
        batch, tokens, _ = x.shape
        size = WIDTH // HEADS
        q, k, v = self.qkv(self.first(x)).view(batch, tokens, 3, HEADS, size).unbind(2)
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)

        def rotated(heads: torch.Tensor) -> torch.Tensor:
            left, right = heads[..., : size // 2], heads[..., size // 2 :]
            return heads * cos + torch.cat([-right, left], -1) * sin

        q, k = rotated(q.transpose(1, 2)), rotated(k.transpose(1, 2))
        y = nn.functional.scaled_dot_product_attention(q, k, v.transpose(1, 2), mask)
        x = x + self.o(y.transpose(1, 2).reshape(batch, tokens, WIDTH))
        gate, up = self.up(self.second(x)).chunk(2, -1)
        summed: torch.Tensor = x + self.down(nn.functional.silu(gate) * up)
        return summed


class RotaryEncoder(nn.Module):
    """Embedding, two layers, norm and head."""

    def __init__(self, in_parts: bool) -> None:
        super().__init__()
        self.words, self.norm = nn.Embedding(WORDS, WIDTH), nn.LayerNorm(WIDTH)
        self.layers = nn.ModuleList([RotaryLayer(in_parts) for _ in range(2)])
        self.last, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, LABELS)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Logits of each token of ids and a mask of ones and zeros, both [batch, tokens]."""
        x = self.norm(self.words(ids))
        counts = mask[:, None, None, :].bool().expand(-1, 1, ids.shape[1], -1)
        size = WIDTH // HEADS
        steps = 100.0 ** (-torch.arange(0, size, 2) / size)
        angles = torch.arange(ids.shape[1])[None, :, None] * torch.cat([steps, steps])
        cos, sin = angles.cos(), angles.sin()
        for layer in self.layers:
            x = layer(x, counts, cos, sin)
        logits: torch.Tensor = self.head(self.last(x))
        return logits


class RelativeLayer(nn.Module):
    """Attention with relative positions, as DeBERTa has it, and a feed-forward."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.of_queries, self.of_keys = (
            nn.Parameter(torch.randn(HEADS, 2 * SPAN, WIDTH // HEADS)) for _ in range(2)
        )
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)

    def forward(self, x: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """``mask`` [batch, 1, tokens, tokens]: what counts; ``positions`` [1, tokens, tokens]."""
        batch, tokens, _ = x.shape

        def heads(part: nn.Linear) -> torch.Tensor:
            split = part(x).view(batch, tokens, HEADS, -1).permute(0, 2, 1, 3)
            return split.reshape(-1, tokens, WIDTH // HEADS)

        def term(own: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
            products = torch.bmm(own, table.repeat(batch, 1, 1).transpose(1, 2))
            return torch.gather(products, -1, positions.expand(batch * HEADS, tokens, tokens))

        q, k, v = heads(self.q), heads(self.k), heads(self.v)
        scores = torch.bmm(q, k.transpose(1, 2) / 6.0)
        added = term(k, self.of_keys).transpose(1, 2) / 6.0
        scores = scores + (term(q, self.of_queries) / 6.0 + added)
        scores = scores.view(-1, HEADS, tokens, tokens)
        scores = scores.masked_fill(~mask, torch.finfo(torch.float32).min)
        weights = torch.softmax(scores, -1).view(-1, tokens, tokens)
        y = torch.bmm(weights, v).view(-1, HEADS, tokens, WIDTH // HEADS)
        y = self.o(y.permute(0, 2, 1, 3).reshape(batch, tokens, WIDTH))
        x = self.first(x + y)
        summed: torch.Tensor = self.second(x + self.down(nn.functional.gelu(self.up(x))))
        return summed


class RelativeEncoder(nn.Module):
    """Embedding, two layers and head."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.norm = nn.Embedding(WORDS, WIDTH), nn.LayerNorm(WIDTH)
        self.layers = nn.ModuleList([RelativeLayer() for _ in range(2)])
        self.head = nn.Linear(WIDTH, LABELS)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Logits of each token of ids and a mask of ones and zeros, both [batch, tokens]."""
        x = self.norm(self.words(ids)) * mask[:, :, None].float()
        counts = (mask[:, None, None, :] * mask[:, None, :, None]).bool()
        places = torch.arange(ids.shape[1])
        positions = (places[:, None] - places + SPAN).clamp(0, 2 * SPAN - 1)[None]
        for layer in self.layers:
            x = layer(x, counts, positions)
        logits: torch.Tensor = self.head(x)
        return logits


class GroupedLayer(nn.Module):
    """A layer as language models have it: one head of keys and values for all queries, norms of
    heads, a feed-forward over rows."""

    def __init__(self, in_parts: bool) -> None:
        super().__init__()
        size = WIDTH // HEADS
        self.in_parts = in_parts
        self.q, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))
        self.k, self.v = (nn.Linear(WIDTH, size, bias=False) for _ in range(2))
        self.q_norm, self.k_norm = nn.LayerNorm(size), nn.LayerNorm(size)
        self.first, self.second = RmsNorm(), RmsNorm()
        self.up, self.down = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """``mask`` [batch, 1, tokens, tokens]: what counts."""
        batch, tokens, _ = x.shape
        size = WIDTH // HEADS
        normed = self.first(x)
        q = self.q_norm(self.q(normed).view(batch, tokens, HEADS, size)).transpose(1, 2)
        k = self.k_norm(self.k(normed).view(batch, tokens, 1, size).transpose(1, 2))
        v = self.v(normed).view(batch, tokens, 1, size).transpose(1, 2)
        if self.in_parts:
            k, v = (
                heads[:, :, None]
                .expand(batch, 1, HEADS, tokens, size)
                .reshape(batch, HEADS, tokens, size)
                for heads in (k, v)
            )
            added = torch.where(mask, 0.0, torch.finfo(torch.float32).min)
            y = torch.softmax(q @ k.transpose(2, 3) * size**-0.5 + added, -1) @ v
        else:
            y = nn.functional.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)
        x = x + self.o(y.transpose(1, 2).reshape(batch, tokens, WIDTH))
        rows = x.reshape(-1, WIDTH)
        up = self.up(self.second(rows))
        rows = rows + self.down(up * torch.sigmoid(1.702 * up))
        summed: torch.Tensor = rows.view(batch, tokens, WIDTH)
        return summed


class GroupedEncoder(nn.Module):
    """Scaled embedding, two layers and head; tokens see those before them."""

    def __init__(self, in_parts: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList([GroupedLayer(in_parts) for _ in range(2)])
        self.norm, self.head = RmsNorm(), nn.Linear(WIDTH, LABELS)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Logits of each token of ids and a mask of ones and zeros, both [batch, tokens]."""
        x = self.words(ids) * WIDTH**0.5
        places = torch.arange(ids.shape[1])
        counts = (places <= places[:, None]) & mask[:, None, None, :].bool()
        for layer in self.layers:
            x = layer(x, counts)
        logits: torch.Tensor = self.head(self.norm(x))
        return logits


def export(file: Path, exporter: str) -> None:
    """Write an encoder: ``[rotary | grouped | relative] torchscript | opset``, or ``static``."""
    torch.manual_seed(0)
    torchscript = exporter.endswith("torchscript")
    model: nn.Module
    if exporter.startswith("rotary"):
        model = RotaryEncoder(torchscript)
    elif exporter.startswith("grouped"):
        model = GroupedEncoder(not exporter.endswith("23"))
    else:
        model = RelativeEncoder() if exporter.startswith("relative") else Encoder()
    model.eval()
    inputs = (torch.randint(0, WORDS, (BATCH, LENGTH)), torch.ones(BATCH, LENGTH, dtype=torch.long))
    options: dict[str, Any] = {"input_names": ["ids", "mask"], "output_names": ["logits"]}
    if torchscript:
        axes = {0: "batch", 1: "tokens"}
        options |= {
            "dynamo": False,
            "opset_version": 17,
            "dynamic_axes": {"ids": axes, "mask": axes},
        }
    else:
        opset = int(exporter.partition(" ")[2] or 20)
        options |= {"dynamo": True, "opset_version": opset, "external_data": False}
    if exporter != "static" and not torchscript:
        sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")}
        options["dynamic_shapes"] = {"ids": sizes, "mask": sizes}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(model, inputs, str(file), **options)
