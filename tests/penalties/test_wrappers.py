"""Wrappers and averages around sparse training: where exact zeros survive, where they are lost, and what is told."""

from __future__ import annotations

import warnings

import pytest
import torch
from optimizer_catalog import L1_ALPHA, SAMPLES, least_squares, matrix
from torch import nn
from torch.nn import Parameter
from torch.optim import SGD, Adam
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from torchreg import L1, ProxOptimizer, attach, copy_zeros, sparsity

PROBLEM = least_squares(0.4)
SOLUTION = PROBLEM.elastic_net(L1_ALPHA, 0.0)
ZEROS = int((SOLUTION == 0).sum())
wrappers = pytest.importorskip("pytorch_optimizer")
schedulefree = pytest.importorskip("schedulefree")


def weights() -> Parameter:
    return Parameter(torch.zeros_like(SOLUTION))


def objective(w: torch.Tensor) -> float:
    return PROBLEM.loss(w) + L1_ALPHA * float(w.abs().sum())


def train(w: Parameter, opt, steps: int) -> None:
    for _ in range(steps):
        w.grad = PROBLEM.gradient(w.detach())
        opt.step()


def zeros(w: torch.Tensor) -> int:
    return int((w == 0).sum())


def like_inner(group, state, p):
    """Lookahead's fixed point is that of the optimizer inside."""
    return group["lr"]


def test_around_lookahead_the_step_finds_the_solution():
    w = weights()
    inner = wrappers.Lookahead(SGD([w], lr=0.15), k=5)
    train(w, ProxOptimizer(inner, attach(L1(L1_ALPHA), {"w": w}), metric=like_inner), 5000)
    assert torch.equal(w == 0, SOLUTION == 0)
    assert objective(w.detach()) - objective(SOLUTION) < 1e-8


def test_inside_lookahead_zeros_are_lost_and_that_is_told():
    w = Parameter(torch.ones_like(SOLUTION))  # an interpolation with weights that were not zero is not zero
    inner = ProxOptimizer(SGD([w], lr=0.15), attach(L1(L1_ALPHA), {"w": w}))
    with pytest.warns(UserWarning, match="no longer zero before the next step"):
        train(w, wrappers.Lookahead(inner, k=5), 100)
    assert zeros(w) == 0


def test_who_only_perturbs_and_restores_is_not_accused():
    """Sharpness-aware minimisation moves the weights to look around, and puts them back before the step."""

    def made(params, **options):
        return ProxOptimizer(SGD(params, **options), L1(L1_ALPHA))

    w = Parameter(torch.zeros_like(SOLUTION)[:, None])
    sam = wrappers.SAM([w], made, rho=1e-6, lr=0.15)

    def gradient() -> None:
        w.grad = PROBLEM.gradient(w.detach()[:, 0])[:, None]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(4000):
            gradient()
            sam.step(gradient)
    assert torch.equal(w[:, 0] == 0, SOLUTION == 0)
    before = w.detach().clone()
    gradient()
    sam.first_step()
    assert zeros(w) < ZEROS
    gradient()
    sam.second_step()
    assert torch.equal(w == 0, before == 0)


@pytest.mark.parametrize("outer", [True, False], ids=["around the proximal step", "inside it"])
def test_schedule_free_evaluates_an_average_and_that_is_told(outer):
    w = weights()
    if outer:
        inner = ProxOptimizer(SGD([w], lr=0.15), attach(L1(L1_ALPHA), {"w": w}))
        opt = evaluated = schedulefree.ScheduleFreeWrapper(inner, momentum=0.9)
    else:
        evaluated = schedulefree.AdamWScheduleFree([w], lr=0.1, warmup_steps=0)
        opt = ProxOptimizer(evaluated, attach(L1(L1_ALPHA), {"w": w}), metric="decoupled")
    evaluated.train()
    with pytest.warns(UserWarning, match="Schedule-Free"):
        train(w, opt, 300)
    evaluated.eval()
    assert zeros(w) < ZEROS


@pytest.mark.parametrize("decay", [0.9, 0.99])
def test_the_zeros_of_the_last_iterate_make_an_average_sparse_and_better(decay):
    """Mini-batches of 16: the average has the better values, the iterate knows the zeros, both together are best."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = weights()

    draw = torch.Generator().manual_seed(0)
    model = Model()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    term = attach(L1(L1_ALPHA), dict(model.named_parameters()))
    opt = ProxOptimizer(Adam(model.parameters(), lr=0.03), term)
    for _ in range(3000):
        rows = torch.randint(SAMPLES, (16,), generator=draw)
        X, y = PROBLEM.X[rows], PROBLEM.y[rows]
        model.w.grad = X.T @ (X @ model.w.detach() - y) / 16
        opt.step()
        average.update_parameters(model)
    dense = average.module.w.detach().clone()
    assert zeros(dense) < zeros(model.w)
    copy_zeros(term, average)
    assert torch.equal(average.module.w == 0, (model.w == 0) | (dense == 0))
    best = objective(SOLUTION)
    assert objective(average.module.w.detach()) - best < objective(dense) - best
    assert objective(average.module.w.detach()) - best < objective(model.w.detach()) - best


def test_copy_zeros_takes_names_as_the_average_has_them_and_refuses_others():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    term = attach(L1(100.0), net)
    opt = ProxOptimizer(SGD(net.parameters(), lr=0.1), term)
    average = AveragedModel(net)
    net(torch.ones(2, 3)).sum().backward()
    opt.step()
    assert sparsity(term).fraction == 1.0
    copy_zeros(term, average)
    assert sparsity(average).fraction == 1.0
    assert not bool((average.module[0].bias == 0).any())
    with torch.no_grad():
        for p in average.parameters():
            p.fill_(1.0)
    of_wrapped = AveragedModel(nn.DataParallel(average.module))
    copy_zeros(term, of_wrapped)
    assert sparsity(of_wrapped).fraction == 1.0
    with pytest.raises(ValueError, match=r"'2.weight' of shape .* found none"):
        copy_zeros(term, nn.Sequential(nn.Linear(3, 4)))
    wrong = {"0.weight": torch.ones(4, 3), "2.weight": torch.ones(4, 4)}
    with pytest.raises(ValueError, match=r"found \(4, 4\)"):
        copy_zeros(term, wrong)
    assert bool((wrong["0.weight"] == 1).all())


def test_writes_that_keep_the_zeros_are_looked_at_a_few_times_only():
    w = matrix(1)
    opt = ProxOptimizer(SGD([w], lr=0.1), L1(5.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for k in range(300):
            w.grad = torch.full_like(w, (-1.0) ** k)
            opt.step()
            with torch.no_grad():
                w.clamp_(-1.0, 1.0)
    assert opt._watch._looks == 0


def test_whose_weights_nobody_writes_to_is_not_looked_at():
    w = matrix(1)
    opt = ProxOptimizer(SGD([w], lr=0.1), L1(5.0))
    for _ in range(60):
        w.grad = torch.ones_like(w)
        opt.step()
    assert opt._watch._zeros is None
