"""Entries that have met no gradient have no metric: they are shrunk by lr * alpha a step, not erased."""

from __future__ import annotations

import pytest
import torch
from optimizer_catalog import RECIPES, Recipe, least_squares, with_layout
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Adam, AdamW

from torchreg import L1, Group, ProxOptimizer, at_most, attach, effective_step, labels, rows

F64 = torch.float64
ADAPTIVE = [r for r in RECIPES if not r.id.startswith("SGD") and r.id != "Adam decay"]
each_kind = pytest.mark.parametrize("recipe", ADAPTIVE, ids=lambda r: r.id)
LAYOUTS = ["default", "foreach", "single", "fused", "tensor lr", "fused, tensor lr", "capturable"]


def plain(recipe: Recipe) -> float:
    """The step of the same optimizer without a metric."""
    defaults = recipe.make([Parameter(torch.zeros(1))]).defaults
    return defaults["lr"] / (1.0 - defaults.get("momentum", 0.0))


def fed(base, params: list[Parameter], masks: list[Tensor], steps: int = 4) -> None:
    for k in range(steps):
        for j, (p, mask) in enumerate(zip(params, masks, strict=True)):
            draw = torch.Generator().manual_seed(7 * k + j)
            p.grad = torch.randn(p.shape, generator=draw, dtype=F64).to(p.dtype) * mask
        base.step()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shapes", [[(4, 3)], [(4, 3), (5,)], [(300, 1000)]], ids=["one", "several", "large"])
@each_kind
def test_an_entry_without_gradients_has_the_plain_step_and_the_others_theirs(recipe, shapes, layout, monkeypatch):
    params, alone = ([Parameter(torch.ones(s, dtype=F64)) for s in shapes] for _ in range(2))
    masks = [torch.arange(p.numel()).reshape(p.shape) % 3 != 0 for p in params]
    base, reference = (with_layout(recipe.make(ps), layout, monkeypatch) for ps in (params, alone))
    fed(base, params, masks)
    fed(reference, alone, [torch.ones_like(m) for m in masks])
    steps, all_met = effective_step(base), effective_step(reference)
    for p, q, met in zip(params, alone, masks, strict=True):
        step, wanted = (torch.as_tensor(s, dtype=F64).broadcast_to(p.shape) for s in (steps[p], all_met[q]))
        torch.testing.assert_close(step[met], wanted[met], rtol=1e-13, atol=0.0)
        slack = 1e-2 if recipe.id == "NAdam" else 1e-6  # its momentum grows: what steady gradients' weights add up to
        torch.testing.assert_close(step[~met], torch.full_like(step[~met], plain(recipe)), rtol=slack, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, F64], ids=str)
@pytest.mark.parametrize("foreach", [True, False])
@each_kind
def test_weights_without_gradients_move_by_lr_alpha_a_step(recipe, foreach, dtype):
    params = [Parameter(torch.ones(shape, dtype=dtype)) for shape in ((3, 2), (4, 2))]
    with pytest.warns(UserWarning, match="half") if dtype is torch.bfloat16 else torch.no_grad():
        opt = ProxOptimizer(recipe.make(params), attach(L1(1e-5), params), foreach=foreach)
    for tiny in (0.0, 1e-30, 0.0):  # the square of 1e-30 is 0 in float32
        for p in params:
            p.grad = torch.full_like(p, tiny if dtype is not F64 else 0.0)
        opt.step()
    for p in params:
        torch.testing.assert_close(
            p.double(), torch.full_like(p, 1.0 - 3e-5 * plain(recipe)).double(), rtol=3e-7, atol=0.0
        )


def test_after_the_last_gradient_adams_step_grows_by_the_root_of_beta2_and_amsgrads_does_not():
    for amsgrad in (False, True):
        p = Parameter(torch.ones(2, dtype=F64))
        base = Adam([p], lr=0.1, amsgrad=amsgrad, eps=0.0)
        for k in range(501):
            p.grad = torch.full_like(p, 1.0 if k == 0 else 0.0)
            base.step()
            found = float(effective_step(base)[p][0])
            forgotten = 1.0 if amsgrad else 0.999 ** (k / 2)
            assert found == pytest.approx(0.1 * ((1 - 0.999 ** (k + 1)) / 0.001) ** 0.5 / forgotten, rel=1e-9)


@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize("scale", [1e-12, 1e-6])
def test_with_a_bound_small_gradients_take_no_more_than_the_bound_and_the_lasso_is_exact(scale, foreach):
    problem, alpha = least_squares(), 0.05
    params = [Parameter(torch.ones(30, dtype=F64)), Parameter(torch.ones(4, dtype=F64))]
    metric = at_most(4 * 0.1 / alpha)
    opt = ProxOptimizer(Adam(params, lr=0.1), attach(L1(alpha), params), metric=metric, foreach=foreach)
    for p in params:
        p.grad = torch.full_like(p, -scale)
    opt.step()
    for p in params:
        moved = 0.1 * scale / (scale + 1e-8) - 4 * 0.1
        torch.testing.assert_close(p.detach(), torch.full_like(p, 1.0 + moved), rtol=1e-9, atol=0.0)
    with pytest.raises(ValueError, match="step > 0"):
        at_most(0.0)
    with pytest.raises(TypeError, match="decoupled"):
        at_most(1.0, "decoupled")
    if scale > 1e-10:
        return
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 2000)
    params[1].grad = None
    for _ in range(2000):
        params[0].grad = problem.gradient(params[0].detach())
        opt.step()
        schedule.step()
    oracle, found = problem.elastic_net(alpha, 0.0), params[0].detach()
    assert torch.equal(found == 0, oracle == 0)
    assert problem.loss(found) - problem.loss(oracle) + alpha * float(found.abs().sum() - oracle.abs().sum()) < 1e-8


def test_a_nan_stays_a_nan():
    p = Parameter(torch.ones(3, dtype=F64))
    base = Adam([p], lr=0.1)
    p.grad = torch.tensor([torch.nan, 0.0, 1.0], dtype=F64)
    base.step()
    assert effective_step(base)[p].isnan().tolist() == [True, False, False]


@pytest.mark.parametrize(
    "recipe", [r for r in ADAPTIVE if r.id in ("Adam", "RMSprop", "Adagrad", "Adamax")], ids=lambda r: r.id
)
def test_the_lasso_with_an_empty_column_is_still_exact(recipe):
    """scikit-learn's solution; the weight of the empty column goes down by t alpha a step, to exactly 0."""
    problem, column = least_squares(recipe.decades), 9
    alpha = 0.05
    p = Parameter(torch.zeros(30, dtype=F64))
    p.data[column] = 0.5
    opt = ProxOptimizer(recipe.make([p]), attach(L1(alpha), {"w": p}))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, recipe.steps)
    seen = []
    for _ in range(recipe.steps):
        w = p.detach().clone()
        w[column] = 0.0
        p.grad = problem.gradient(w)
        p.grad[column] = 0.0
        opt.step()
        seen.append(float(p[column].detach()))
        schedule.step()
    assert 0.5 > seen[0] > 0.4
    assert seen == sorted(seen, reverse=True)
    keep = torch.arange(30) != column
    from sklearn.linear_model import Lasso

    X = problem.X[:, keep].numpy()
    coef = Lasso(alpha=alpha, fit_intercept=False, tol=1e-14, max_iter=10**6).fit(X, problem.y.numpy()).coef_
    assert torch.equal(p.detach()[keep] == 0, torch.from_numpy(coef) == 0)
    assert seen[-1] == 0.0
    oracle = torch.zeros(30, dtype=F64)
    oracle[keep] = torch.from_numpy(coef)
    objective = [problem.loss(w) + alpha * float(w.abs().sum()) for w in (p.detach(), oracle)]
    assert objective[0] - objective[1] < recipe.gap


def test_a_group_with_entries_that_meet_no_gradient_is_still_exact():
    problem, level = least_squares(0.4), 0.3
    empty = torch.arange(30) % 3 == 1  # one of each group of three
    p = Parameter(torch.where(empty, 0.5, 0.0).double())
    opt = ProxOptimizer(Adam([p], lr=0.2), attach(Group(L1(level), by=labels(torch.arange(30) // 3), weights=1.0), [p]))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 500)
    for _ in range(500):
        w = torch.where(empty, 0.0, p.detach())
        p.grad = torch.where(empty, 0.0, problem.gradient(w))
        opt.step()
        schedule.step()
    w = p.detach()
    assert float(w[empty].abs().max()) < 1e-3  # a group shrinks its entries by a factor
    g = torch.where(empty, 0.0, problem.gradient(w))
    for gradient, x in zip(g.split(3), w.split(3), strict=True):  # the optimality conditions of the group lasso
        norm = float(x.norm())
        off = float(gradient.norm()) - level if norm == 0.0 else float((gradient + level * x / norm).abs().max())
        assert off < 1e-3


def low_rank(opt_of, alpha: float = 1e-4, steps: int = 600) -> tuple[float, float, Tensor]:
    """LoRA's start, B = 0: the first and the last objective of fitting a matrix of rank 2 by B A."""
    draw = torch.Generator().manual_seed(0)
    target = torch.randn(8, 2, generator=draw) @ torch.randn(2, 6, generator=draw) / 2
    x = torch.randn(64, 6, generator=draw)
    A, B = Parameter(torch.randn(4, 6, generator=draw) / 2), Parameter(torch.zeros(8, 4))
    term = attach(L1(alpha), {"A": A, "B": B})
    opt = opt_of([A, B], term)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, steps)
    found = []
    for _ in range(steps):
        opt.zero_grad()
        loss = (x @ (B @ A - target).T).square().mean()
        loss.backward()
        found.append(float(loss.detach()) + float(term().detach()))
        opt.step()
        schedule.step()
        if len(found) == 1:
            first = A.detach().clone()
    return found[0], found[-1], first


@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize("penalty", ["entries", "rows"])
def test_a_factor_that_meets_its_first_gradient_late_is_trained(foreach, penalty):
    start, end, first = low_rank(
        lambda ps, term: ProxOptimizer(AdamW(ps, lr=1e-2, weight_decay=0.0), term, foreach=foreach)
    )
    assert bool((first != 0).all())
    assert end < 0.01 * start
    if penalty == "rows":
        net = nn.Linear(3, 4)
        opt = ProxOptimizer(Adam(net.parameters(), lr=1e-3), attach(Group(L1(1e-5), by=rows), net), foreach=foreach)
        before = net.weight.detach().clone()
        for p in net.parameters():
            p.grad = torch.zeros_like(p)
        opt.step()
        torch.testing.assert_close(net.weight.detach(), before, rtol=0.0, atol=1e-7)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_compiled_and_with_masters_too():
    params, others = ([Parameter(torch.ones(3, 2)), Parameter(torch.ones(4))] for _ in range(2))
    masks = [torch.tensor([[1.0, 0.0]]), torch.tensor([0.0, 1.0, 1.0, 0.0])]
    opts = [
        ProxOptimizer(AdamW(ps, lr=torch.tensor(0.1)), attach(L1(torch.tensor(0.1)), ps)) for ps in (params, others)
    ]
    torch._dynamo.reset()
    compiled = torch.compile(opts[1].step, backend="eager")
    for k in range(3):
        for ps in (params, others):
            for p, mask in zip(ps, masks, strict=True):
                p.grad = torch.full_like(p, 1.0 + k) * mask
        opts[0].step()
        compiled()
    for p, q, mask in zip(params, others, masks, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=0.0)  # counters are float32 there
        unmet = (mask == 0).expand_as(p)
        torch.testing.assert_close(
            p[unmet], torch.full_like(p[unmet], (1 - 0.1 * 0.01) ** 3 - 3 * 0.01), rtol=1e-3, atol=0.0
        )
    half = Parameter(torch.ones(4, dtype=torch.bfloat16))
    opt = ProxOptimizer(Adam([half], lr=0.1), attach(L1(0.1), [half]), masters=True)
    for _ in range(20):
        half.grad = torch.zeros_like(half)
        opt.step()
    torch.testing.assert_close(half.float(), torch.full((4,), 0.8), rtol=2**-8, atol=0.0)


@pytest.mark.parametrize("foreach", [None, True, False])
@pytest.mark.parametrize(
    "recipe", [r for r in ADAPTIVE if not r.id.startswith(("Adadelta", "RAdam"))], ids=lambda r: r.id
)
def test_a_neuron_with_a_dead_input_goes_to_zero_as_one_without(recipe, foreach):
    """Its entry without a gradient takes the step of the others, and does not hold the row from zero."""
    draw = torch.Generator().manual_seed(0)
    start, slope = torch.randn(8, 4, generator=draw, dtype=F64), 1e-3 * torch.randn(8, 4, generator=draw, dtype=F64)
    dead, weak = torch.cat([start, 0.5 * start[:, :1]], 1), slope.norm(dim=1) < 2e-3
    assert 0 < weak.sum() < 8
    for w in (start, dead):
        p = Parameter(w.clone())
        opt = ProxOptimizer(recipe.make([p]), attach(Group(L1(2e-3), by=rows, weights=1.0), {"w": p}), foreach=foreach)
        for _ in range(3000):
            p.grad = torch.zeros_like(p)
            p.grad[:, :4] = slope  # of a linear loss: in the end a row is zero where its slope is weaker than 2e-3
            opt.step()
            if torch.equal((p == 0).all(1), weak):
                break
        assert torch.equal((p == 0).all(1), weak)


def test_entries_of_a_row_take_the_harmonic_mean_of_the_others_steps():
    p = Parameter(torch.ones(2, 3, dtype=F64))
    opt = ProxOptimizer(Adam([p], lr=1e-2), attach(Group(L1(1e-3), by=rows, weights=1.0), {"w": p}))
    p.grad = torch.tensor([[1.0, 3.0, 0.0], [0.0, 0.0, 0.0]], dtype=F64)
    opt.step()
    base = torch.tensor([[0.99, 0.99, 1.0], [1.0, 1.0, 1.0]], dtype=F64)
    step = torch.tensor([[1e-2, 1e-2 / 3, 1e-2 / 2], [1e-2] * 3], dtype=F64)  # 2 / (1 / t + 1 / t') where t = lr / |g|
    torch.testing.assert_close(p.detach(), Group(L1(1e-3), by=rows, weights=1.0).prox(base, step), rtol=1e-8, atol=0.0)


def test_a_group_that_is_not_a_number_leaves_the_others_as_they_are():
    def stepped(spoil: bool) -> Tensor:
        p = Parameter(torch.ones(3, 4, dtype=F64))
        opt = ProxOptimizer(Adam([p], lr=0.1), attach(Group(L1(0.1), by=rows), {"p": p}))
        for k in range(3):
            p.grad = torch.randn(3, 4, generator=torch.Generator().manual_seed(k), dtype=F64)
            p.grad[1, 2] = 0.0  # has never met a gradient
            if spoil:
                p.grad[0, 0] = torch.nan
            opt.step()
        return p.detach()

    assert torch.equal(stepped(True)[1:], stepped(False)[1:])
