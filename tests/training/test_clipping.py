"""clip_grad_norm_: torch's clipping, with the penalty of the next step scaled alike, so that the minimiser stays."""

from __future__ import annotations

import copy
import re
import warnings

import pytest
import torch
from optimizer_catalog import LeastSquares, give_gradients, least_squares, matrix, same
from test_compiled_step import Counting
from torch import nn
from torch.nn import Parameter
from torch.optim import SGD, Adagrad, Adam, AdamW, RMSprop

from torchreg import L1, Group, ProxOptimizer, attach, attach_to, clip_grad_norm_, labels, rows

F64 = torch.float64
ALPHA, MAX_NORM, STEPS = 0.1, 0.19, 3000
BASES = {
    "SGD": lambda p: SGD(p, lr=0.3),
    "SGD momentum": lambda p: SGD(p, lr=0.05, momentum=0.9),
    "AdamW": lambda p: AdamW(p, lr=0.05, weight_decay=0.0),
    "RMSprop": lambda p: RMSprop(p, lr=0.05, eps=1e-3),
    "Adagrad": lambda p: Adagrad(p, lr=1.0),
}


def train(problem: LeastSquares, make, clip, penalty=None, *, hook: bool = False, scaler=None) -> torch.Tensor:
    p = Parameter(torch.zeros(30, dtype=F64))
    base, term = make([p]), attach(penalty or L1(ALPHA), {"w": p})
    opt = base if hook else ProxOptimizer(base, term)
    attachment = attach_to(base, term) if hook else None
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, STEPS)
    for _ in range(STEPS):
        opt.zero_grad()
        p.grad = problem.gradient(p.detach())
        if scaler is None:
            clip(opt, p)
            opt.step()
        else:
            p.grad *= float(scaler.scale(torch.ones(())))
            scaler.unscale_(opt)
            clip(opt, p)
            scaler.step(opt)
            scaler.update()
        schedule.step()
    assert attachment is None or attachment.terms == [term]
    return p.detach()


def objective(problem: LeastSquares, w: torch.Tensor) -> float:
    return problem.loss(w) + ALPHA * float(w.abs().sum())


def ours(opt, p):
    clip_grad_norm_(opt, MAX_NORM)


@pytest.mark.parametrize("make", BASES)
def test_the_lasso_is_scikit_learns_where_every_gradient_is_clipped(make):
    problem = least_squares(0.4)
    oracle = problem.elastic_net(ALPHA, 0.0)
    assert float(problem.gradient(oracle).norm()) > 2 * MAX_NORM  # so it is clipped at the solution too
    found = train(problem, BASES[make], ours)
    assert torch.equal(found == 0, oracle == 0)
    assert objective(problem, found) - objective(problem, oracle) < 1e-7
    if make in ("SGD", "AdamW"):  # torch's own solves the problem of a stronger penalty
        with pytest.warns(UserWarning, match=r"torchreg\.clip_grad_norm_\(optimizer, 0\.19\)"):
            found = train(problem, BASES[make], lambda opt, p: nn.utils.clip_grad_norm_([p], MAX_NORM))
        assert objective(problem, found) - objective(problem, oracle) > 1e-2


@pytest.mark.parametrize("how", ["attached", "GradScaler", "inf norm"])
def test_hooks_scalers_and_other_norms(how):
    problem = least_squares(0.4)
    oracle = problem.elastic_net(ALPHA, 0.0)
    norm = float("inf") if how == "inf norm" else 2.0
    bound = 0.05 if how == "inf norm" else MAX_NORM
    found = train(
        problem,
        BASES["AdamW"],
        lambda opt, p: clip_grad_norm_(opt, bound, norm),
        hook=how == "attached",
        scaler=torch.amp.GradScaler("cpu", init_scale=2.0**10) if how == "GradScaler" else None,
    )
    assert torch.equal(found == 0, oracle == 0)
    assert objective(problem, found) - objective(problem, oracle) < 1e-7


def test_group_penalties_too():
    problem, level = least_squares(0.4), 0.2
    penalty = Group(L1(level), by=labels(torch.arange(30) // 3), weights=1.0)
    found = train(problem, BASES["SGD"], ours, penalty)
    oracle = problem.group_lasso(level)
    assert torch.equal(found == 0, oracle == 0)
    torch.testing.assert_close(found, oracle, rtol=0.0, atol=1e-6)


def test_clipping_by_value_above_alpha_leaves_the_minimiser_and_below_it_zeroes_all():
    problem = least_squares(0.4)
    oracle = problem.elastic_net(ALPHA, 0.0)
    found = train(problem, BASES["SGD"], lambda opt, p: nn.utils.clip_grad_value_([p], 2 * ALPHA))
    assert torch.equal(found == 0, oracle == 0)
    assert objective(problem, found) - objective(problem, oracle) < 1e-7
    assert not bool(train(problem, BASES["SGD"], lambda opt, p: nn.utils.clip_grad_value_([p], 0.99 * ALPHA)).any())


@pytest.mark.parametrize("norm_type", [1.0, 2.0, float("inf")])
def test_norm_and_gradients_are_those_of_torch(norm_type):
    lists = [[matrix(1), matrix(2, (5, 3)), matrix(3, (3,))] for _ in range(2)]
    for params in lists:
        give_gradients(params, 0)
        params[2].grad = None
    opt = ProxOptimizer(Adam([{"params": lists[0][:1]}, {"params": lists[0][1:]}]), L1(0.1))
    found = clip_grad_norm_(opt, 0.3, norm_type)
    assert torch.equal(found, nn.utils.clip_grad_norm_(lists[1], 0.3, norm_type))
    assert all(a.grad is b.grad or torch.equal(a.grad, b.grad) for a, b in zip(*lists, strict=True))
    lists[0][0].grad.fill_(torch.nan)
    with pytest.raises(RuntimeError, match="non-finite"):
        clip_grad_norm_(opt, 0.3, error_if_nonfinite=True)


def stepped(prepare) -> torch.Tensor:
    """The weight 10 after an SGD step of lr 1 at a gradient of 4, with L1(1): 10 - c (4 + 1) where c is the factor."""
    p = Parameter(torch.tensor([10.0], dtype=F64))
    opt = ProxOptimizer(SGD([p], lr=1.0), attach(L1(1.0), {"w": p}))
    p.grad = torch.tensor([4.0], dtype=F64)
    prepare(opt, p)
    opt.step()
    return p.detach()


def again(opt, p):
    clip_grad_norm_(opt, 2.0)
    clip_grad_norm_(opt, 1.0)


def cleared(opt, p):
    clip_grad_norm_(opt, 2.0)
    opt.zero_grad()
    p.grad = torch.tensor([4.0], dtype=F64)


def new_gradient(opt, p):
    clip_grad_norm_(opt, 2.0)
    p.grad = torch.tensor([4.0], dtype=F64)
    clip_grad_norm_(opt, 1.0)


@pytest.mark.parametrize(
    ("prepare", "factor"),
    [
        (lambda opt, p: None, 1.0),
        (lambda opt, p: clip_grad_norm_(opt, 8.0), 1.0),
        (lambda opt, p: clip_grad_norm_(opt, 2.0), 0.5),
        (again, 0.25),
        (cleared, 1.0),
        (new_gradient, 0.25),
    ],
    ids=["never", "not reached", "once", "twice", "cleared", "anew"],
)
def test_what_is_told_is_of_this_gradient(prepare, factor):
    torch.testing.assert_close(stepped(prepare), torch.tensor([10.0 - 5.0 * factor], dtype=F64), rtol=1e-6, atol=0.0)


def test_it_is_told_for_one_step():
    p = Parameter(torch.tensor([10.0], dtype=F64))
    opt = ProxOptimizer(SGD([p], lr=1.0), attach(L1(1.0), {"w": p}))
    for k, wanted in enumerate([9.5, 8.5]):
        p.grad = torch.zeros(1, dtype=F64) if k else torch.tensor([0.0], dtype=F64)
        if not k:
            p.grad = torch.tensor([4.0], dtype=F64)
            clip_grad_norm_(opt, 2.0)
            p.grad.zero_()
        opt.step()
        torch.testing.assert_close(p.detach(), torch.tensor([wanted], dtype=F64), rtol=1e-6, atol=0.0)
    copy.deepcopy(opt)


@pytest.mark.parametrize("around", [False, True], ids=["hooks", "a wrapper around a hook"])
def test_all_that_step_one_optimizer_are_told_and_once(around):
    """As one term over both parameters, two steps, of which the second is not clipped."""
    found = []
    for one in (True, False):
        a, b = (Parameter(torch.full((2,), 9.0, dtype=F64)) for _ in range(2))
        base, terms = SGD([a, b], lr=1.0), [attach(L1(1.0), {"a": a}), attach(L1(1.0), {"b": b})]
        if not one:
            attach_to(base, terms[0])
        opt = ProxOptimizer(base, *terms) if one else ProxOptimizer(base, terms[1]) if around else base
        if not one and not around:
            attach_to(base, terms[1])
        for clipped in (True, False):
            a.grad, b.grad = torch.tensor([3.0, 0.0], dtype=F64), torch.tensor([0.0, 4.0], dtype=F64)
            if clipped:
                clip_grad_norm_(opt, 1.0)
            opt.step()
        found.append(torch.cat([a, b]).detach())
    torch.testing.assert_close(found[0], torch.tensor([4.2, 7.8, 7.8, 3.0], dtype=F64), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(found[1], found[0], rtol=0.0, atol=0.0)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.filterwarnings("ignore:A step was skipped")
@pytest.mark.parametrize("by", ["us", "GradScaler"])
def test_what_was_told_of_a_skipped_step_harms_no_later_one(by, bad):
    p = Parameter(torch.tensor([10.0]))
    opt = ProxOptimizer(SGD([p], lr=1.0), attach(L1(1.0), {"w": p}), skip_nonfinite=by == "us")
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0, enabled=by != "us")
    for entry in (bad, 4.0, 4.0):  # the second step has no clipping, nor have gradients been cleared by the optimizer
        p.grad = torch.tensor([entry]) * scaler.scale(torch.tensor(1.0))
        scaler.unscale_(opt)
        if not p.grad.isfinite():
            clip_grad_norm_(opt, 2.0)
        scaler.step(opt)
        scaler.update()
    assert 0.0 <= p.item() <= (0.0 if by == "us" else 1.0)  # two steps of 4 + 1, one of them perhaps of 4


def test_gradients_with_a_graph_are_looked_at_without_a_warning():
    p = matrix(1)
    opt = ProxOptimizer(SGD([p], lr=1e-3), attach(L1(0.1), {"w": p}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(40):
            p.grad = p * 2.0
            opt.step()


def test_layers_that_come_while_clipping_is_looked_for():
    small, large = matrix(0, (3, 1)), matrix(1, (20, 20))
    opt = ProxOptimizer(SGD([small, large], lr=0.01), attach(L1(0.01), {"large": large}))
    for k in range(40):
        give_gradients([small, large] if k > 24 else [large], k)
        opt.step()


def test_a_decoupled_threshold_is_left_alone_and_a_function_s_is_not():
    for metric, wanted in (("decoupled", 10 - 2.0 - 1.0), (lambda group, state, p: 1.0, 10 - 2.0 - 0.5)):
        p = Parameter(torch.tensor([10.0], dtype=F64))
        opt = ProxOptimizer(SGD([p], lr=1.0), attach(L1(1.0), {"w": p}), metric=metric)
        p.grad = torch.tensor([4.0], dtype=F64)
        clip_grad_norm_(opt, 2.0)
        opt.step()
        torch.testing.assert_close(p.detach(), torch.tensor([wanted], dtype=F64), rtol=1e-6, atol=0.0)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("penalty", ["L1", "rows"])
def test_compiled_steps_are_compiled_once_and_are_the_eager_ones(penalty):
    found, seen = [], Counting()
    for compiled in (False, True):
        params = [matrix(k, (4, 3), torch.float32) for k in range(2)]
        alpha = torch.tensor(0.1)
        chosen = L1(alpha) if penalty == "L1" else Group(L1(alpha), by=rows)
        opt = ProxOptimizer(AdamW(params, lr=torch.tensor(0.1)), attach(chosen, params))
        torch._dynamo.reset()
        step = torch.compile(opt.step, backend=seen) if compiled else opt.step
        for k in range(5):
            if k == 2:
                seen.compiled = 0
            give_gradients(params, k)
            clip_grad_norm_(opt, 0.5)
            step()
        found.append([p.detach() for p in params])
    assert seen.compiled == 0
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_masters_and_bare_optimizers():
    half = Parameter(torch.tensor([10.0], dtype=torch.bfloat16))
    opt = ProxOptimizer(SGD([half], lr=1.0), attach(L1(1.0), {"w": half}), masters=True)
    half.grad = torch.tensor([4.0], dtype=torch.bfloat16)
    clip_grad_norm_(opt, 2.0)
    opt.step()
    torch.testing.assert_close(half.detach().float(), torch.tensor([7.5]), rtol=2**-7, atol=0.0)
    bare = matrix(1)
    give_gradients([bare], 0)
    assert float(clip_grad_norm_(SGD([bare], lr=0.1), 0.1)) > 0.1
    assert float(bare.grad.norm()) == pytest.approx(0.1, rel=1e-4)
    assert float(clip_grad_norm_(SGD([matrix(2)], lr=0.1), 0.1)) == 0.0
    with pytest.raises(TypeError, match=re.escape("torchreg.clip_grad_norm_(optimizer, 1.0)")):
        clip_grad_norm_([bare], 1.0)


def test_no_false_alarm_of_clipping():
    """Constant gradients, gradients that converge, gradients that are told of: nothing is said of clipping."""
    problem = least_squares(0.4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(problem, BASES["SGD"], lambda opt, p: None)
        for told in (False, True):
            p = matrix(1)
            opt = ProxOptimizer(SGD([p], lr=1e-3), attach(L1(0.1), {"w": p}))
            for k in range(40):
                give_gradients([p], k if told else 0)
                if told:
                    clip_grad_norm_(opt, 0.1)
                opt.step()
    assert same([p], [p])
