"""What zero groups are worth once they are cut out: latency before and after `torchreg.compact`, outputs compared.

    python benchmarks/compaction.py [--device cuda] [--threads N] [--rounds N]

The models are not trained: weights are random, and the share of groups that a penalty would have set to zero is set to
zero by hand, since speed does not depend on what the other weights are. Before and after take turns; medians, ratios
and costs go to benchmarks/results. Bars: the MLP at batch 64 at least 5 times faster,
the residual net and the transformers 1.5 times. Beside the MLP stands a dense one of the small size, made by hand.
"""

from __future__ import annotations

from typing import Any

import torch
from harness import options, save, verdict
from torch import Tensor, nn
from torch.nn import functional

from torchreg.training.compaction.cost import measure_pair

TOLERANCE = 1e-6  # of the largest output, in float32
Case = tuple[nn.Module, Tensor, float | None]  # model, inputs, how many times faster it is to be


def gone(count: int, share: float) -> Tensor:
    """A random choice of so many of `count` groups."""
    return torch.randperm(count)[: round(share * count)]


@torch.no_grad()
def mlp(share: float = 0.8) -> nn.Sequential:
    """64-512-512-10, a share of the rows of both hidden layers zero; their biases stay, so the units are constant."""
    model = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    for layer in (model[0], model[2]):
        layer.weight[gone(512, share)] = 0.0
    return model


def small_mlp(share: float = 0.8) -> nn.Sequential:
    """The MLP that is left, made by hand."""
    width = 512 - round(share * 512)
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))


class ResidualBlock(nn.Module):
    """Two convolutions with BatchNorm beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        same = stride == 1 and inputs == outputs
        shortcut = [nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)]
        self.shortcut = nn.Identity() if same else nn.Sequential(*shortcut)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """Three stages of two residual blocks."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 128), classes: int = 10) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0])
        stages = []
        for k, width in enumerate(widths):
            first = ResidualBlock(widths[max(k - 1, 0)], width, 1 if k == 0 else 2)
            stages.append(nn.Sequential(first, ResidualBlock(width, width, 1)))
        self.stages, self.head = nn.Sequential(*stages), nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(functional.relu(self.norm(self.stem(x))))
        return self.head(x.mean((2, 3)))


@torch.no_grad()
def resnet(share: float = 0.5) -> ResNet:
    """A share of the channels within each block zero, and of those that the blocks of a stage add up.

    A group is a filter with its entries of BatchNorm; a channel of a sum is zero where all its summands are.
    """
    model = ResNet()
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor.copy_(torch.rand_like(tensor) + 0.1)
    stream = gone(model.stem.out_channels, share)
    clear(model.stem, model.norm, stream)
    for k, stage in enumerate(model.stages):
        stream = gone(stage[0].conv1.out_channels, share) if k else stream
        for block in stage:
            clear(block.conv1, block.bn1, gone(block.conv1.out_channels, share))
            clear(block.conv2, block.bn2, stream)
            if isinstance(block.shortcut, nn.Sequential):
                clear(*block.shortcut, stream)
    return model


def clear(conv: nn.Conv2d, norm: nn.BatchNorm2d, channels: Tensor) -> None:
    for tensor in (conv.weight, norm.weight, norm.bias, norm.running_mean):
        tensor[channels] = 0.0


class Block(nn.Module):
    """Attention and an MLP of plain layers, with LayerNorm before each."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norm1, self.norm2 = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        q, k, v = (
            layer(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        x = x + self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


@torch.no_grad()
def transformer(share: float = 0.5, width: int = 256, heads: int = 8) -> nn.Sequential:
    """Four blocks of plain layers, a share of heads (value rows, output columns) and of neurons (rows) zero."""
    model = nn.Sequential(*(Block(width, heads) for _ in range(4)))
    for block in model:
        rows = torch.isin(torch.arange(width) // (width // heads), gone(heads, share))
        block.value.weight[rows], block.value.bias[rows] = 0.0, 0.0
        block.query.weight[rows], block.key.weight[rows], block.out.weight[:, rows] = 0.0, 0.0, 0.0
        block.up.weight[gone(4 * width, share)] = 0.0
    return model


@torch.no_grad()
def encoder(share: float = 0.5, width: int = 256, heads: int = 8) -> nn.TransformerEncoder:
    """The same in torch's own layers, which run as one fused operator each before they are cut."""
    layer = nn.TransformerEncoderLayer(width, heads, 4 * width, batch_first=True, activation="gelu")
    model = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
    for block in model.layers:
        for p in block.parameters():
            if p.dim() > 1:
                p.copy_(torch.randn_like(p) / p.shape[1] ** 0.5)
        columns = torch.isin(torch.arange(width) // (width // heads), gone(heads, share))
        block.self_attn.out_proj.weight[:, columns] = 0.0
        block.linear1.weight[gone(4 * width, share)] = 0.0
    return model


def cases() -> dict[str, Case]:
    return {
        "MLP, 80 % zero rows, batch 1": (mlp(), torch.randn(1, 64), None),
        "MLP, 80 % zero rows, batch 64": (mlp(), torch.randn(64, 64), 5.0),
        "residual net, 50 % zero channels, batch 16": (resnet(), torch.randn(16, 3, 32, 32), 1.5),
        "transformer, 50 % zero heads and neurons, batch 8 x 64": (transformer(), torch.randn(8, 64, 256), 1.5),
        "torch's encoder, 50 % zero heads and neurons, batch 8 x 64": (encoder(), torch.randn(8, 64, 256), 1.5),
    }


def difference(before: nn.Module, after: nn.Module, x: Tensor) -> float:
    """Largest difference of the outputs, relative to the largest output."""
    one, other = before(x), after(x)
    return float((one - other).abs().max() / one.abs().max())


def record(name: str, before: nn.Module, after: nn.Module, x: Tensor, bar: float | None, rounds: int) -> dict[str, Any]:
    """Both models measured in turns within this case alone, so that each finds the caches as the other leaves them."""
    cost = measure_pair(before, after, x, repeats=rounds)
    found = {field: list(getattr(cost, field)) for field in ("parameters", "flops", "memory")}
    found |= {"milliseconds": [round(t * 1e3, 4) for t in cost.seconds], "times faster": round(cost.speedup, 2)}
    found |= {"bar": bar, "verdict": verdict(1.0 / cost.speedup, None if bar is None else 1.0 / bar)}
    print(f"{name:60s} {cost.speedup:6.2f} times faster   bar {bar or '-':>4}   {found['verdict']}")
    return found


@torch.no_grad()
def main() -> None:
    chosen = options(str(__doc__).splitlines()[0], rounds=25)
    if chosen.rounds < 20:
        raise SystemExit(f"--rounds must be at least 20, got {chosen.rounds}")
    from torchreg import compact

    records = {}
    for name, (model, x, bar) in cases().items():
        model, x = model.eval().to(chosen.device), x.to(chosen.device)
        smaller, report = compact(model, x)
        found = difference(model, smaller, x)
        if not found <= TOLERANCE:
            raise SystemExit(f"{name}: outputs differ by {found:.1e} of the largest; nothing is measured.\n{report}")
        records[name] = {"difference": found} | record(name, model, smaller, x, bar, chosen.rounds)
        if name.startswith("MLP"):
            by_hand = small_mlp().eval().to(chosen.device)
            records[f"{name}, by hand"] = record(f"{name}, by hand", model, by_hand, x, None, chosen.rounds)
    save("compaction", {"models": records}, chosen)


if __name__ == "__main__":
    main()
