"""Derivatives of value and prox equal finite differences; vmap equals a loop."""

import torch
from catalog import Case
from helpers import F64, STEPS, every, loop, normal

from torchreg import Penalty

CHECK = {"eps": 1e-6, "atol": 1e-6, "rtol": 1e-4}  # central differences of order-1 values in float64


def gradcheck(function, *inputs, fast=False):
    return torch.autograd.gradcheck(
        function, [x.detach().clone().requires_grad_() for x in inputs], **CHECK, fast_mode=fast
    )


def at(case: Case, alpha: torch.Tensor | float) -> Penalty:
    """The penalty of this strength; a constraint, which has none, as it is."""
    return case.make() if case.constraint else case.make().with_alpha(alpha)


def _alpha(penalty: Penalty) -> torch.Tensor:
    return torch.tensor(float(penalty.alpha) * 1.01, dtype=F64)


@every(constraint=False)
def test_gradient_of_value_equals_finite_differences(case):
    penalty = case.make()
    w = penalty.prox(normal(case.shape), 0.1) if case.smooth else 0.1 * normal(case.shape, 1).abs()  # no two alike
    kept = w != case.centre  # differences across a kink or a constraint are none

    def value(x, alpha):
        return at(case, alpha).value(torch.where(kept, x, w))

    assert gradcheck(value, w, _alpha(penalty))


@every()
@loop("step", [0.3, 6.0])
def test_gradient_of_prox_equals_finite_differences(case, step):
    penalty, w = case.make(), normal(case.shape)

    def prox(x, alpha, t):
        return at(case, alpha).prox(x, t)

    assert gradcheck(prox, w, _alpha(penalty), torch.tensor(step, dtype=F64))


@every(metric=True)
@loop("seed", [0, 1])
def test_gradient_of_prox_in_a_metric_equals_finite_differences(case, seed):
    penalty, w, t = case.make(), normal(case.shape, seed), 2.0 * STEPS["adaptive"](case.shape)

    def prox(x, alpha, step):
        return at(case, alpha).prox(x, step)

    assert gradcheck(prox, w, _alpha(penalty), t, fast=True)  # one random direction


@every()
@loop("step", ["zero", "one", "huge", "endless", "zero, huge, endless"])
def test_gradients_are_finite_at_zero_at_nothing_and_at_the_end(case, step):
    """Where derivatives do not exist they still are numbers: one NaN would poison a whole model."""
    alpha = _alpha(case.make()).requires_grad_()
    t = torch.as_tensor(STEPS[step](case.shape), dtype=F64)
    if t.dim() and not case.metric:
        return
    w = normal(case.shape)
    w[:2] = 0.0
    w.requires_grad_()
    at(case, alpha).prox(w, t).sum().backward()
    assert w.grad.isfinite().all()
    if t.isfinite().all():  # alpha * step has no derivative at an endless step
        assert alpha.grad is None or alpha.grad.isfinite()


@every()
@loop("step", ["zero", "past gamma", "zero, huge, endless"])
def test_vmap_over_w_and_alpha_equals_a_loop(case, step):
    t = STEPS[step](case.shape)
    if isinstance(t, torch.Tensor) and not case.metric:
        return
    ws = torch.stack([normal(case.shape, s) for s in range(5)])
    alphas = torch.tensor([0.0, 0.05, 0.4, 1.0, 3.0], dtype=F64)

    def both(w, alpha):
        strong = at(case, alpha)
        return strong.value(w), strong.prox(w, t)

    values, proxes = torch.vmap(both)(ws, alphas)
    for i, (w, alpha) in enumerate(zip(ws, alphas.tolist(), strict=True)):
        strong = at(case, alpha)
        assert torch.allclose(values[i], strong.value(w), rtol=1e-13, atol=1e-14, equal_nan=True)
        # 1e-9: radial_prox bisects a multiplier, so its last digits depend on the order of sums
        assert torch.allclose(proxes[i], strong.prox(w, t), rtol=1e-9, atol=1e-12)
        assert torch.equal(proxes[i] == 0, strong.prox(w, t) == 0)


@every()
def test_vmap_over_steps_equals_a_loop(case):
    penalty, w = case.make(), normal(case.shape)
    steps = torch.tensor([0.0, 0.1, 1.0, 6.0, float("inf")], dtype=F64)
    together = torch.vmap(lambda t: penalty.prox(w, t))(steps)
    alone = torch.stack([penalty.prox(w, float(t)) for t in steps])
    assert torch.allclose(together, alone, rtol=1e-9, atol=1e-12)
