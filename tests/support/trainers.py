"""The plain training loop that trainers are compared with: a small network, batches, a schedule of the strength."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import StepLR

from torchreg import L1, PenaltyScheduler, ProxOptimizer, Term, attach, clip_grad_norm_, schedules, sparsity

BATCHES, EACH = 12, 8
MAKES: dict[str, Callable[..., Optimizer]] = {
    "AdamW": lambda p: AdamW(p, lr=0.05, weight_decay=0.0),
    "SGD": lambda p: SGD(p, lr=0.05, momentum=0.9),
}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    draw = torch.Generator().manual_seed(1)
    return [(torch.randn(EACH, 6, generator=draw), torch.randn(EACH, 2, generator=draw)) for _ in range(BATCHES)]


def penalised(model: nn.Module) -> Term:
    return attach(L1(0.0), model)


def moved(term: Term, opt: Optimizer) -> tuple[PenaltyScheduler, StepLR]:
    """The schedules of strength and learning rate."""
    return PenaltyScheduler(term, schedules.linear(0.0, 0.05, steps=3)), StepLR(opt, 4, 0.5)


def plain(
    make: Callable[..., Optimizer],
    every: int = 1,
    clip: float | None = None,
    *,
    autocast: bool = False,
    epochs: int = 1,
    told: bool = False,
) -> tuple[list[nn.Parameter], Term, PenaltyScheduler]:
    """The weights, the term and the schedule after training; a step for ``every`` so many batches.

    Clipped by torch, or by our own function, of which the proximal step is ``told``.
    """
    model = net()
    opt = ProxOptimizer(make(model.parameters()), term := penalised(model))
    ramp, decay = moved(term, opt)
    for k, (x, y) in enumerate(batches() * epochs):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            out = model(x)
        ((out.float() - y).square().mean() / every).backward()
        if k % every == every - 1:
            if clip is not None:
                clip_grad_norm_(opt, clip) if told else nn.utils.clip_grad_norm_(model.parameters(), clip)
            opt.step()
            decay.step()
            opt.zero_grad()
    assert 0.1 <= sparsity(term).fraction < 0.9  # or a comparison would say little
    return list(model.parameters()), term, ramp
