"""Laws of the data terms: derivatives, conjugates, gaps, curvature, extremes, targets, predictions."""

from dataclasses import dataclass

import pytest
import torch
from helpers import F64, generator, loop, normal
from torch import Tensor

from torchreg import NoConjugate
from torchreg.linear.datafits import (
    Datafit,
    Huber,
    Logistic,
    Multinomial,
    NoHessian,
    Poisson,
    Quadratic,
    SquaredHinge,
)

ROWS = 12
COUNTS = torch.tensor([0, 0, 1, 2, 3, 0, 7, 1, 0, 12, 1, 2])
SIGNS = torch.tensor([1, -1, 1, 1, -1, -1, 1, -1, 1, -1, -1, 1])
CLASSES = torch.tensor([0, 1, 2, 0, 1, 2, 2, 1, 0, 0, 2, 1])


@dataclass(frozen=True)
class LogCosh(Datafit):
    """A user's own loss in two methods."""

    def value(self, eta: Tensor, y: Tensor) -> Tensor:
        return torch.logaddexp(eta - y, y - eta)

    def grad(self, eta: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(eta - y)


BUILT_IN = {
    "Quadratic": (Quadratic(), normal((ROWS,), 1)),
    "Quadratic tasks": (Quadratic(), normal((ROWS, 3), 1)),
    "Logistic": (Logistic(), SIGNS),
    "Multinomial": (Multinomial(), CLASSES),
    "Poisson": (Poisson(), COUNTS),
    "Huber": (Huber(0.8), normal((ROWS,), 1)),
    "SquaredHinge": (SquaredHinge(), SIGNS),
}
CATALOG = {**BUILT_IN, "own": (LogCosh(), normal((ROWS,), 1))}
SCALAR = {name: case for name, case in BUILT_IN.items() if case[0].outputs(case[0].prepare(case[1])) is None}


def each(cases):
    """Parametrize over datafits, with a prepared target and a predictor of its shape."""

    def drawn(datafit, y):
        y = datafit.prepare(y)
        return datafit, y, normal(tuple(y.shape), 2)

    return pytest.mark.parametrize(("datafit", "y", "eta"), [drawn(*case) for case in cases.values()], ids=list(cases))


def dot(u: Tensor, v: Tensor) -> Tensor:
    return (u * v).reshape(len(u), -1).sum(1)


@each(CATALOG)
def test_grad_is_the_derivative_of_value(datafit, y, eta):
    eta = eta.requires_grad_()
    (slope,) = torch.autograd.grad(datafit.value(eta, y).sum(), eta)
    assert torch.allclose(datafit.grad(eta.detach(), y), slope, rtol=1e-12, atol=1e-12)  # rounding


@each(CATALOG)
def test_grad_is_the_finite_difference_of_value(datafit, y, eta):
    h, direction = 1e-6, normal(tuple(eta.shape), 3)
    rise = datafit.value(eta + h * direction, y) - datafit.value(eta - h * direction, y)
    assert torch.allclose(dot(datafit.grad(eta, y), direction), rise / (2 * h), rtol=1e-6, atol=1e-6)  # O(h^2) + eps/h


@each(BUILT_IN)
def test_hessian_is_the_diagonal_second_derivative(datafit, y, eta):
    h, shape = 1e-6, eta.shape
    for k in range(shape[1] if eta.dim() == 2 else 1):
        bump = torch.zeros(shape, dtype=F64)
        bump.view(ROWS, -1)[:, k] = h
        second = (datafit.grad(eta + bump, y) - datafit.grad(eta - bump, y)).view(ROWS, -1)[:, k] / (2 * h)
        assert torch.allclose(datafit.hessian(eta, y).view(ROWS, -1)[:, k], second, rtol=1e-5, atol=1e-7)


@each({name: case for name, case in BUILT_IN.items() if case[0].curvature})
def test_curvature_bounds_the_change_of_grad(datafit, y, eta):
    for seed in range(20):
        move = normal(tuple(eta.shape), 10 + seed, 10.0 ** (seed % 5 - 3))
        change = dot(datafit.grad(eta + move, y) - datafit.grad(eta, y), move)
        assert (change >= -1e-12).all(), "convex"
        assert (change <= datafit.curvature * dot(move, move) * (1 + 1e-9)).all()


def test_curvature_is_tight():
    assert Logistic().hessian(torch.zeros(1, dtype=F64), torch.ones(1, dtype=F64)).item() == Logistic.curvature
    eta, y = torch.tensor([[0.0, 0.0, -50.0]], dtype=F64), torch.tensor([[1.0, 0.0, 0.0]], dtype=F64)
    full = torch.autograd.functional.hessian(lambda e: Multinomial().value(e, y).sum(), eta).reshape(3, 3)
    assert torch.linalg.eigvalsh(full).max().item() == pytest.approx(Multinomial.curvature)


@each(SCALAR)
def test_conjugate_is_the_maximum_over_a_dense_grid(datafit, y, eta):
    """The grid reaches where the maximum is, to within spacing^2 * curvature / 2."""
    u = 0.7 * datafit.grad(eta, y)
    u = datafit.feasible(u, y) * u
    grid = torch.linspace(-40.0, 40.0, 800_001, dtype=F64)[:, None]
    best = (u * grid - datafit.value(grid, y)).amax(0)
    assert torch.allclose(datafit.conjugate(u, y), best, rtol=1e-7, atol=1e-7)
    assert (datafit.conjugate(u, y) >= best - 1e-12).all()


@pytest.mark.parametrize("name", ["Quadratic tasks", "Multinomial"])
def test_conjugate_of_many_outputs_is_the_maximum(name):
    datafit, y = BUILT_IN[name]
    y = datafit.prepare(y)
    u = 0.7 * datafit.grad(normal(tuple(y.shape), 2), y)
    eta = torch.zeros_like(u).requires_grad_()
    solver = torch.optim.LBFGS(
        [eta], max_iter=500, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def loss():
        solver.zero_grad()
        total = (datafit.value(eta, y) - dot(u, eta)).sum()
        total.backward()
        return total

    solver.step(loss)
    reached = (dot(u, eta) - datafit.value(eta, y)).detach()
    assert torch.allclose(datafit.conjugate(u, y), reached, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("datafit", "u", "y"),
    [
        (Logistic(), [0.1, 1.1, -0.1], [1.0, 0.0, 0.0]),
        (Huber(0.8), [0.81, -0.81, 2.0], [0.0, 1.0, -1.0]),
        (SquaredHinge(), [0.1, -0.1, 2.0], [1.0, 0.0, 1.0]),
        (Poisson(), [-0.1, -1.1, -3.0], [0.0, 1.0, 2.0]),
        (Multinomial(), [[0.1, 0.2], [0.5, -0.5], [1.1, -1.1]], [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]),
    ],
)
def test_conjugate_is_infinite_outside_its_domain(datafit, u, y):
    u, y = torch.tensor(u, dtype=F64), torch.tensor(y, dtype=F64)
    assert (datafit.conjugate(u, y) == torch.inf).all()
    assert (datafit.fenchel_gap(torch.zeros_like(u), u, y) == torch.inf).all()


@each(BUILT_IN)
def test_feasible_is_the_largest_scale_with_a_finite_conjugate(datafit, y, eta):
    u = 5.0 * datafit.grad(eta, y)
    scale = datafit.feasible(u, y)
    assert scale.shape == ()
    assert 0 < scale <= 1
    assert datafit.conjugate(scale * u, y).isfinite().all()
    if scale < 1:
        assert not datafit.conjugate(1.000001 * scale * u, y).isfinite().all()
    assert datafit.feasible(0.99 * datafit.grad(eta, y), y) == 1.0


@pytest.mark.parametrize("datafit", [Logistic(), SquaredHinge(), Poisson()])
def test_feasible_is_zero_where_no_scale_suffices(datafit):
    u, y = torch.tensor([-1.0, 0.5], dtype=F64), torch.zeros(2, dtype=F64)
    scale = datafit.feasible(u, y)
    assert scale == 0.0
    assert datafit.conjugate(scale * u, y).isfinite().all()


@each(BUILT_IN)
def test_fenchel_gap_is_what_it_says(datafit, y, eta):
    for factor in (0.0, 0.3, 0.9):
        u = factor * datafit.grad(eta, y)
        plain = datafit.value(eta, y) + datafit.conjugate(u, y) - dot(u, eta)
        assert (datafit.fenchel_gap(eta, u, y) >= 0).all()
        assert torch.allclose(datafit.fenchel_gap(eta, u, y), plain, rtol=1e-10, atol=1e-12)


@each(BUILT_IN)
@loop("scale", [1e-3, 1.0, 10.0, 1000.0])
def test_fenchel_gap_is_zero_at_the_gradient(datafit, y, eta, scale):
    eta = scale * eta
    if not datafit.value(eta, y).isfinite().all():
        eta = eta.clamp(max=700.0)
    gap = datafit.fenchel_gap(eta, datafit.grad(eta, y), y)
    assert (gap <= 1e-30 + 1e-16 * datafit.value(eta, y).abs()).all()  # rounding of the gradient, not of the terms


@each(BUILT_IN)
def test_fenchel_gap_does_not_cancel(datafit, y, eta):
    """Near the gradient the gap is |difference|^2 / (2 curvature): right to 1e-3 where it is 1e-14 of the loss."""
    size = 1e-7
    difference = size * datafit.grad(eta, y)
    gap = datafit.fenchel_gap(eta, datafit.grad(eta, y) - difference, y)
    curvature = torch.softmax(eta, -1) if isinstance(datafit, Multinomial) else datafit.hessian(eta, y)
    curved = curvature > 0
    expected = torch.where(curved, difference.square() / torch.where(curved, curvature, 1.0) / 2.0, 0.0)
    expected = expected.sum(1) if y.dim() == 2 else expected
    gap = gap if y.dim() == 2 else torch.where(curved, gap, 0.0)
    assert torch.allclose(gap, expected, rtol=1e-3, atol=0.0)


@each(CATALOG)
@loop("size", [1000.0, -1000.0])
def test_nothing_is_nan_far_out_and_all_is_finite_but_what_overflows(datafit, y, eta, size):
    eta = torch.full_like(eta, size)
    if eta.dim() == 2:
        eta[:, 1] = -size
    u = 0.5 * datafit.grad(eta, y)
    results = [datafit.value(eta, y), datafit.grad(eta, y), datafit.predict(eta)]
    if not isinstance(datafit, LogCosh):
        results += [datafit.hessian(eta, y), datafit.conjugate(u, y), datafit.fenchel_gap(eta, u, y)]
    for result in results:
        assert not result.isnan().any()
        assert result.isfinite().all() or (isinstance(datafit, Poisson) and size > 0)


def test_logistic_keeps_its_digits_in_the_tail():
    eta, y = torch.tensor([40.0, -40.0], dtype=F64), torch.tensor([1.0, 0.0], dtype=F64)
    tail = torch.exp(torch.tensor(-40.0, dtype=F64))
    assert torch.allclose(Logistic().value(eta, y), tail, rtol=1e-12, atol=0.0)
    assert torch.allclose(Logistic().grad(eta, y).abs(), tail, rtol=1e-12, atol=0.0)
    assert torch.allclose(Logistic().hessian(eta, y), tail, rtol=1e-12, atol=0.0)


@each(BUILT_IN)
def test_leading_batch_dimensions_equal_a_loop(datafit, y, eta):
    etas = torch.stack([eta, 2.0 * eta, -eta])
    for method in (datafit.value, datafit.grad, datafit.hessian):
        each_alone = torch.stack([method(e, y) for e in etas])
        assert torch.allclose(method(etas, y), each_alone, rtol=1e-14, atol=1e-300)  # exp is vectorised
    us = 0.5 * datafit.grad(etas, y)
    each_alone = torch.stack([datafit.conjugate(u, y) for u in us])
    assert torch.allclose(datafit.conjugate(us, y), each_alone, rtol=1e-14, atol=1e-300)


@each(CATALOG)
def test_a_datafit_is_a_value(datafit, y, eta):
    assert datafit == type(datafit)(**vars(datafit))
    assert datafit.outputs(y) == (y.shape[1] if y.dim() == 2 else None)
    assert datafit.quadratic == isinstance(datafit, Quadratic)


def test_what_an_own_loss_lacks_is_said():
    zeros = torch.zeros(2, dtype=F64)
    with pytest.raises(NoHessian, match=r"LogCosh has no known second derivative; write its method hessian"):
        LogCosh().hessian(zeros, zeros)
    with pytest.raises(NoConjugate, match=r"LogCosh has no known convex conjugate; write its method conjugate"):
        LogCosh().fenchel_gap(zeros, zeros, zeros)
    assert LogCosh().feasible(zeros, zeros) == 1.0


def test_mean_response():
    eta = torch.tensor([0.0, 2.0], dtype=F64)
    assert torch.equal(Quadratic().predict(eta), eta)
    assert torch.equal(Huber().predict(eta), eta)
    assert torch.allclose(Logistic().predict(eta), 1 / (1 + torch.exp(-eta)))
    assert torch.allclose(Poisson().predict(eta), torch.exp(eta))
    assert torch.equal(SquaredHinge().predict(eta), torch.tensor([0.5, 1.0], dtype=F64))
    assert torch.allclose(Multinomial().predict(eta[None]).sum(), torch.ones((), dtype=F64))


@each(BUILT_IN)
def test_link_undoes_predict(datafit, y, eta):
    mean = datafit.predict(eta)
    assert torch.allclose(datafit.predict(datafit.link(mean)), mean, rtol=1e-12, atol=1e-12)
    assert datafit.link(torch.zeros_like(mean)).isfinite().all()
    assert datafit.link(torch.ones_like(mean)).isfinite().all()


def test_squared_hinge_predicts_the_chance_that_its_predictor_minimises():
    eta, chance = torch.linspace(-2, 2, 40_001, dtype=F64), 0.3
    ones = torch.ones_like(eta)
    risk = chance * SquaredHinge().value(eta, ones) + (1 - chance) * SquaredHinge().value(eta, 0 * ones)
    assert SquaredHinge().predict(eta[risk.argmin()]).item() == pytest.approx(chance, abs=1e-4)  # the grid's spacing


def test_two_classes_of_multinomial_are_logistic():
    y, eta = (SIGNS > 0).long(), normal((ROWS,), 2)
    both = torch.stack([-eta / 2, eta / 2], 1)
    multinomial = Multinomial().value(both, Multinomial().prepare(y))
    assert torch.allclose(multinomial, Logistic().value(eta, Logistic().prepare(y)), rtol=1e-13)


@pytest.mark.parametrize(
    "labels",
    [SIGNS, (SIGNS > 0), (SIGNS > 0).long(), (SIGNS > 0).float(), SIGNS.to(torch.float16)],
)
@pytest.mark.parametrize("datafit", [Logistic(), SquaredHinge()])
def test_two_labels_become_zero_and_one(datafit, labels):
    y = datafit.prepare(labels)
    assert y.dtype == F64
    assert torch.equal(y, (SIGNS > 0).double())
    assert torch.equal(datafit.prepare(y), y)


def test_classes_become_one_hot():
    y = Multinomial().prepare(CLASSES.float())
    assert y.dtype == F64
    assert torch.equal(y, torch.eye(3, dtype=F64)[CLASSES])


def test_prepare_leaves_the_callers_tensor_alone():
    y = torch.randn(5, generator=generator(0)).requires_grad_()
    prepared = Quadratic().prepare(y)
    assert prepared.dtype == F64
    assert not prepared.requires_grad


CONTINUOUS = torch.tensor([0.5, 1.0])
BAD = [
    (Quadratic(), torch.zeros(2, 2, 2), r"y should be a 1d or 2d array, got an array of shape \(2, 2, 2\) instead"),
    (Quadratic(), torch.tensor(1.0), r"y should be a 1d or 2d array, got an array of shape \(\) instead"),
    (Quadratic(), torch.tensor([]), r"Found array with 0 sample\(s\) \(shape=\(0,\)\) while a minimum of 1"),
    (Quadratic(), torch.tensor([1.0, torch.nan]), "Input y contains NaN"),
    (Quadratic(), torch.tensor([1.0, torch.inf]), "Input y contains infinity or a value too large"),
    (Quadratic(), torch.tensor([1j]), "Complex data not supported"),
    (Huber(), torch.zeros(2, 2), r"y should be a 1d array, got an array of shape \(2, 2\) instead"),
    (Logistic(), CONTINUOUS, "Unknown label type: continuous. Maybe you are trying to fit a classifier"),
    (Logistic(), torch.tensor([0, 1, 2]), "Only binary classification is supported. The type of the target is multi"),
    (Logistic(), torch.tensor([1, 2]), "Unknown label type: labels 1, 2; give labels 0 and 1"),
    (SquaredHinge(), torch.tensor([1, 1]), "needs samples of at least 2 classes in the data, but .* one class: 1"),
    (Multinomial(), CONTINUOUS, "Unknown label type: continuous"),
    (Multinomial(), torch.tensor([0, 0]), "needs samples of at least 2 classes in the data"),
    (Multinomial(), torch.tensor([0, 2]), "Unknown label type: labels 0, 2; number the classes 0, 1"),
    (Multinomial(), torch.arange(1, 12), "Unknown label type: labels 1, 2, 3, 4, 5, 6, ...; number the classes"),
    (Multinomial(), torch.zeros(2, 2), "y should be a 1d array"),
    (Poisson(), torch.tensor([1.0, -1.0]), "Some value.s. of y are out of the valid range of the loss 'Poisson'"),
]


@pytest.mark.parametrize(("datafit", "y", "words"), BAD)
def test_a_bad_target_is_named(datafit, y, words):
    with pytest.raises(ValueError, match=words):
        datafit.prepare(y)


@pytest.mark.parametrize("delta", [0.0, -1.0, torch.inf, torch.nan, True, "1"])
def test_a_bad_delta_is_named(delta):
    with pytest.raises(ValueError, match="Huber needs a finite delta > 0"):
        Huber(delta)


def test_huber_with_a_large_delta_is_quadratic():
    _, y = BUILT_IN["Huber"]
    eta = normal((ROWS,), 2)
    assert torch.allclose(Huber(1e3).value(eta, y), Quadratic().value(eta, y), rtol=1e-14)
