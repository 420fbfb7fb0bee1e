"""Whole runs on an accelerator: the oracle's minimiser and zeros, and checkpoints that a CPU goes on from."""

from __future__ import annotations

import io
import math

import pytest
import torch
from optimizer_catalog import FEATURES, GROUP_ALPHA, INDEX, L1_ALPHA, MCP_GAMMA, SAMPLES, LeastSquares
from torch.nn import Parameter
from torch.optim import SGD, Adam, AdamW

from torchreg import L1, MCP, Group, ProxOptimizer, attach, labels, rows

BASES = {
    "SGD": (lambda p: SGD(p, lr=0.7), 60, 1e-8),
    "AdamW fused": (lambda p: AdamW(p, lr=0.1, weight_decay=0.0, fused=True), 150, 2e-2),
}


def problem() -> LeastSquares:
    """Nearly orthogonal features, so that few steps reach the minimiser: pretended launches are slow."""
    draw = torch.Generator().manual_seed(3)
    X = torch.randn(SAMPLES, FEATURES, generator=draw, dtype=torch.float64)
    X = math.sqrt(SAMPLES) * torch.linalg.qr(X)[0] + 0.05 * X
    weights = torch.where(torch.arange(FEATURES) < FEATURES // 2, 1.0, 0.0).double()
    return LeastSquares(X, X @ weights + 0.1 * torch.randn(SAMPLES, generator=draw, dtype=torch.float64))


@pytest.mark.parametrize("base", BASES)
def test_the_decisive_test(base, accelerator):
    """Minimisers by scikit-learn and FISTA with their zeros, and a stationary point of MCP."""
    given, (make, steps, close) = problem(), BASES[base]
    gram, moment = given.gram.to(accelerator), given.moment.to(accelerator)
    penalties = [
        L1(L1_ALPHA),
        MCP(L1_ALPHA, MCP_GAMMA),
        Group(L1(GROUP_ALPHA), by=labels(INDEX.to(accelerator))),
    ]
    params = [Parameter(torch.zeros_like(moment)) for _ in penalties]
    opt = ProxOptimizer(make(params), *(attach(by, [p]) for by, p in zip(penalties, params, strict=True)))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 2 * steps)
    for _ in range(steps):
        for p in params:
            p.grad = gram @ p.detach() - moment
        opt.step()
        schedule.step()
    lasso, concave, groups = (p.detach().cpu() for p in params)
    for found, oracle in (
        (lasso, given.elastic_net(L1_ALPHA, 0.0)),
        (groups, given.group_lasso(GROUP_ALPHA * math.sqrt(3.0))),
    ):
        assert 0 < int((oracle == 0).sum()) < FEATURES
        assert torch.equal(found == 0, oracle == 0)
        torch.testing.assert_close(found, oracle, rtol=0, atol=close)
    assert given.mcp_violation(concave, L1_ALPHA, MCP_GAMMA) < 10 * close
    assert 0 < int((concave != 0).sum()) < FEATURES


@pytest.mark.parametrize("masters", [False, True])
@pytest.mark.parametrize("make", [lambda p: Adam(p, lr=0.05), lambda p: AdamW(p, lr=0.05, fused=True)])
def test_a_checkpoint_saved_there_is_gone_on_from_on_the_cpu(make, masters, accelerator):
    """To the run that was never saved, and back again."""

    def begun(device: torch.device) -> tuple[list[Parameter], ProxOptimizer]:
        draw = torch.Generator().manual_seed(0)
        dtype = torch.bfloat16 if masters else torch.float32
        params = [Parameter(torch.randn(5, 3, generator=draw).to(device, dtype)) for _ in range(3)]
        terms = [attach(L1(0.3), params[:2]), attach(Group(MCP(0.2), by=rows), params[2:])]
        return params, ProxOptimizer(make(params), *terms, masters=masters)

    def go_on(params: list[Parameter], opt: ProxOptimizer, steps: range) -> None:
        for k in steps:
            draw = torch.Generator().manual_seed(k)
            for p in params:
                p.grad = torch.randn(p.shape, generator=draw).to(p)
            opt.step()

    params, opt = begun(torch.device("cpu"))
    go_on(params, opt, range(6))
    there, opt_there = begun(accelerator)
    go_on(there, opt_there, range(2))
    for device, steps in ((torch.device("cpu"), range(2, 4)), (accelerator, range(4, 6))):
        file = io.BytesIO()
        torch.save({"params": there, "opt": opt_there.state_dict()}, file)
        file.seek(0)
        saved = torch.load(file, map_location=device, weights_only=True)
        there, opt_there = begun(device)
        with torch.no_grad():
            for p, value in zip(there, saved["params"], strict=True):
                p.copy_(value)
        opt_there.load_state_dict(saved["opt"])
        go_on(there, opt_there, steps)
    for p, want in zip(there, params, strict=True):
        assert p.device == accelerator
        assert torch.equal(p.detach().cpu() == 0, want == 0)
        torch.testing.assert_close(p.detach().cpu(), want.detach(), rtol=1e-5, atol=1e-6)
