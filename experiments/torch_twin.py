"""The GPT-2 of `models.gpt2` and its training step in PyTorch eager, to compare host time with.

The same shapes and mathematics: learned positions, pre-norm, tanh gelu, causal attention, tied head, AdamW, clipping by global norm.
Where eager PyTorch has a faster form than the literal one (fused attention, fused AdamW), the twin takes it.
"""

# torch is not installed where lint runs: it is an extra of the bench alone
# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    """[batch, seq, width] float32 -> the same. The fused projection is (heads, [q k v], head_width) outermost first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-5), nn.LayerNorm(width, eps=1e-5)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, seq, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, seq, self.heads, 3, -1).permute(3, 0, 2, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, seq, width))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Twin(nn.Module):
    """Tokens int64 [batch, seq] -> logits float32 [batch, seq, vocab]."""

    def __init__(self, *, vocab: int, context: int, layers: int, width: int, heads: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width, eps=1e-5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.tokens.weight)


def twin_of(params: dict[str, Any], *, heads: int) -> Twin:
    """The twin holding copies of the weights of a GPT-2 of `models` (its nested dict of arrays, layers stacked)."""
    vocab, width = params["tokens"]["embedding"].shape
    blocks = params["blocks"]
    layers = blocks["mlp"]["up"]["kernel"].shape[0]
    twin = Twin(vocab=vocab, context=params["positions"]["embedding"].shape[0], layers=layers, width=width, heads=heads)

    def fill(target: torch.Tensor, source: Any) -> None:
        array = np.array(source)  # a copy: the flax weights stay as they are
        target.copy_(torch.from_numpy(array).reshape(target.shape))

    def fill_norm(norm: nn.LayerNorm, scale: Any, bias: Any) -> None:
        fill(norm.weight, scale)
        fill(norm.bias, bias)

    with torch.no_grad():
        fill(twin.tokens.weight, params["tokens"]["embedding"])
        fill(twin.positions.weight, params["positions"]["embedding"])
        fill_norm(twin.norm, params["norm"]["scale"], params["norm"]["bias"])
        attention, mlp = blocks["attention"], blocks["mlp"]
        beside = lambda leaf, axis: np.stack([np.asarray(attention[x][leaf]) for x in "qkv"], axis)  # [q k v] inside the heads
        fused = {"kernel": beside("kernel", -2), "bias": beside("bias", -2)}
        linears = {"qkv": fused, "out": attention["out"], "up": mlp["up"], "down": mlp["down"]}
        for n, block in enumerate(twin.blocks):
            assert isinstance(block, Block)
            for name in ("norm1", "norm2"):
                fill_norm(getattr(block, name), blocks[name]["scale"][n], blocks[name]["bias"][n])
            for name, weights in linears.items():
                linear: nn.Linear = getattr(block, name)
                # flax keeps (in ..., out ...), PyTorch (out, in)
                fill(linear.weight, np.asarray(weights["kernel"][n]).reshape(linear.in_features, linear.out_features).T)
                fill(linear.bias, weights["bias"][n])
    return twin


def make_torch_step(
    twin: Twin, tokens: Any, targets: Any, *, threads: int, learning_rate: float, weight_decay: float, clip_norm: float
) -> Callable[[], float]:
    """A function that takes one training step on the batch (int arrays [batch, seq]) and returns its loss before the update.

    Sets PyTorch's threads for the whole process.
    """
    torch.set_num_threads(threads)
    batch, wanted = (torch.from_numpy(np.array(x, dtype=np.int64)) for x in (tokens, targets))
    optimiser = torch.optim.AdamW(twin.parameters(), lr=learning_rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=weight_decay, fused=True)

    def step() -> float:
        optimiser.zero_grad(set_to_none=True)
        loss = F.cross_entropy(twin(batch).flatten(0, 1), wanted.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(twin.parameters(), clip_norm)
        optimiser.step()
        return loss.item()

    return step
