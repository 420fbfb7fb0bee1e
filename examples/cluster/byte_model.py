"""A byte-level transformer, and the text of the installed standard library to train it on."""

from __future__ import annotations

import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

VALIDATION = 0.05  # share of the text, at its end


@dataclass(frozen=True)
class Size:
    """Width, layers, heads and bytes of context."""

    width: int
    layers: int
    heads: int
    context: int


SIZES = {
    "tiny": Size(32, 2, 2, 32),  # 26 thousand parameters, for tests
    "small": Size(128, 4, 4, 128),  # 0.8 million, for a CPU
    "base": Size(512, 8, 8, 512),  # 25 million, for one GPU
    "large": Size(1024, 16, 16, 1024),  # 200 million, for several
}


class Block(nn.Module):
    """Attention and a multilayer perceptron, each behind a norm and around a residual."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.heads = size.heads
        self.norm1, self.norm2 = nn.LayerNorm(size.width), nn.LayerNorm(size.width)
        self.qkv, self.proj = nn.Linear(size.width, 3 * size.width), nn.Linear(size.width, size.width)
        self.up, self.down = nn.Linear(size.width, 4 * size.width), nn.Linear(4 * size.width, size.width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(mixed.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class ByteTransformer(nn.Module):
    """Predicts each byte from those before it."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.context = size.context
        self.embed, self.place = nn.Embedding(256, size.width), nn.Embedding(size.context, size.width)
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.layers))
        self.norm, self.head = nn.LayerNorm(size.width), nn.Linear(size.width, 256)
        for name, p in self.named_parameters():
            if p.dim() > 1:
                deep = (2 * size.layers) ** -0.5 if name.endswith(("proj.weight", "down.weight")) else 1.0
                nn.init.normal_(p, std=0.02 * deep)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.place.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

    def loss(self, rows: Tensor) -> Tensor:
        """Mean cross entropy in nats per byte of rows of one byte more than the context."""
        return cross_entropy(self(rows[:, :-1]).flatten(0, 1).float(), rows[:, 1:].flatten())


def standard_library(limit: int | None = None) -> tuple[Tensor, Tensor]:
    """Training and validation bytes: the Python files of the standard library, in the order of their names."""
    root = Path(sysconfig.get_path("stdlib"))
    found, size = [], 0
    for path in sorted(root.rglob("*.py")):
        if "site-packages" not in path.parts and (limit is None or size < limit):
            found.append(path.read_bytes())
            size += len(found[-1])
    text = torch.frombuffer(bytearray(b"\n".join(found)), dtype=torch.uint8)
    cut = int(len(text) * (1 - VALIDATION))
    return text[:cut], text[cut:]


def batch(text: Tensor, step: int, rows: int, context: int) -> Tensor:
    """Random rows of the text, (rows, context + 1), which depend on the step alone: so a resumed run sees the same."""
    draw = torch.Generator().manual_seed(step)
    starts = torch.randint(len(text) - context - 1, (rows, 1), generator=draw)
    return text[starts + torch.arange(context + 1)].long()
