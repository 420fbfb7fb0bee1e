"""The mean loss of a linear predictor, and the model without coefficients."""

from dataclasses import dataclass

import pytest
import torch
from helpers import F64, normal
from test_datafits import BUILT_IN, CATALOG, ROWS

from torchreg.linear.datafits import Datafit, Huber, Logistic, Multinomial, Poisson, Quadratic
from torchreg.linear.designs.inputs import as_design
from torchreg.linear.intercept import best_shift
from torchreg.linear.problem import Problem

WEIGHTS = torch.linspace(0.0, 3.0, ROWS, dtype=F64)


def problem(datafit, y, *, offset=None, fit_intercept=True, weights=WEIGHTS, columns=4):
    y = datafit.prepare(y)
    offset = None if offset is None else normal(tuple(y.shape), 8, offset)
    return Problem(as_design(normal((len(y), columns), 5)), y, weights / weights.sum(), offset, datafit, fit_intercept)


each = pytest.mark.parametrize(("datafit", "y"), list(CATALOG.values()), ids=list(CATALOG))


@each
@pytest.mark.parametrize("offset", [None, 1.0])
def test_gradient_is_the_derivative_of_value(datafit, y, offset):
    given = problem(datafit, y, offset=offset)
    coef = normal(tuple(given.no_coef().shape), 6, 0.3).requires_grad_()
    intercept = torch.ones_like(given.null_intercept()).requires_grad_()
    eta = given.eta(coef, intercept)
    slopes = torch.autograd.grad(given.value(eta), (coef, intercept))
    assert torch.allclose(given.gradient(eta.detach()), slopes[0], rtol=1e-12, atol=1e-13)
    assert torch.allclose(given.row_grad(eta.detach()).sum(0), slopes[1], rtol=1e-12, atol=1e-13)


@each
@pytest.mark.parametrize("offset", [None, 1.0, 30.0])
def test_null_intercept_has_no_slope(datafit, y, offset):
    given = problem(datafit, y, offset=offset)
    rows = given.row_grad(given.null_eta())
    assert (rows.sum(0).abs() <= 1e-13 * rows.abs().sum(0) + 1e-15).all()
    assert given.null_value() <= given.value(given.null_eta(0.0))


@each
def test_without_an_intercept_the_null_model_is_the_offset(datafit, y):
    given = problem(datafit, y, offset=1.0, fit_intercept=False)
    assert torch.equal(given.null_intercept(), torch.zeros_like(given.no_coef()[0]))
    assert torch.equal(given.null_eta(), given.offset)


@each
def test_shapes(datafit, y):
    given = problem(datafit, y)
    outputs = () if given.K is None else (given.K,)
    assert given.no_coef().shape == (4, *outputs)
    assert given.null_intercept().shape == outputs
    assert given.eta(given.no_coef(), given.null_intercept()).shape == (ROWS, *outputs)
    assert given.value(given.null_eta()).shape == ()


def test_closed_forms():
    mean = {name: (WEIGHTS @ d.prepare(y)) / WEIGHTS.sum() for name, (d, y) in BUILT_IN.items()}
    null = {name: problem(d, y).null_intercept() for name, (d, y) in BUILT_IN.items()}
    assert torch.allclose(null["Quadratic"], mean["Quadratic"], rtol=1e-15)
    assert torch.allclose(null["Quadratic tasks"], mean["Quadratic tasks"], rtol=1e-14)
    assert torch.allclose(null["Logistic"], torch.logit(mean["Logistic"]), rtol=1e-14)
    assert torch.allclose(null["Poisson"], mean["Poisson"].log(), rtol=1e-14)
    assert torch.allclose(torch.softmax(null["Multinomial"], 0), mean["Multinomial"], rtol=1e-14)
    assert null["Multinomial"].sum().abs() < 1e-14


@pytest.mark.parametrize("start", [None, -1e3, 1e3, 1e6])
def test_huber_finds_its_centre_among_far_rows(start):
    """Where all rows are beyond delta the curvature is 0 and only the search along the line helps."""
    y = torch.tensor([0.0, 1.0, 2.0, 1e7, 3.0, 1e6, -1e5], dtype=F64)
    weights = torch.full((7,), 1 / 7, dtype=F64)
    at = None if start is None else torch.tensor(start, dtype=F64)
    shift = best_shift(Huber(1.0), torch.zeros_like(y), y, weights, at)
    grid = torch.linspace(-5, 5, 100_001, dtype=F64)[:, None]
    best = grid[Huber(1.0).value(grid, y).mean(1).argmin(), 0]
    assert shift.item() == pytest.approx(best.item(), abs=1e-3)  # the grid's spacing is 1e-4; the loss is flat


@pytest.mark.parametrize("start", [-30.0, 30.0, 150.0])
def test_poisson_comes_back_from_far(start):
    datafit, y = BUILT_IN["Poisson"]
    given = problem(datafit, y)
    shift = best_shift(datafit, given.null_eta(0.0), given.y, given.weights, torch.tensor(start, dtype=F64))
    assert torch.allclose(shift, given.null_intercept(), rtol=1e-13)


@pytest.mark.parametrize("start", [-20.0, 20.0])
def test_logistic_comes_back_from_far(start):
    datafit, y = BUILT_IN["Logistic"]
    given = problem(datafit, y)
    shift = best_shift(datafit, given.null_eta(0.0), given.y, given.weights, torch.tensor(start, dtype=F64))
    assert torch.allclose(shift, given.null_intercept(), rtol=1e-13)


@pytest.mark.parametrize(("datafit", "y"), [(Poisson(), torch.zeros(ROWS)), (Logistic(), WEIGHTS > 0)])
def test_a_minimum_at_infinity_gives_a_finite_intercept(datafit, y):
    """All counts 0, or all rows with weight of one class."""
    given = problem(datafit, y)
    assert given.null_intercept().isfinite()
    assert given.null_value() < 1e-14


def test_multinomial_with_an_offset_has_the_offset_mean():
    given = problem(Multinomial(), BUILT_IN["Multinomial"][1], offset=2.0)
    chances = given.datafit.predict(given.null_eta())
    assert torch.allclose(given.weights @ chances, given.weights @ given.y, rtol=1e-13)


def test_a_loss_that_is_not_convex_still_goes_down():
    @dataclass(frozen=True)
    class Cauchy(Datafit):
        def value(self, eta, y):
            return torch.log1p((eta - y).square())

        def grad(self, eta, y):
            return 2.0 * (eta - y) / (1.0 + (eta - y).square())

    given = problem(Cauchy(), torch.linspace(-9, 20, ROWS))
    assert given.null_value() < given.value(given.null_eta(given.datafit.link(given.weights @ given.y)))
    assert given.row_grad(given.null_eta()).sum().abs() < 1e-14


def test_weights_of_zero_leave_rows_out():
    datafit, y = BUILT_IN["Quadratic"]
    few = problem(datafit, y, weights=(WEIGHTS > 1.0).double())
    assert torch.allclose(few.null_intercept(), y[WEIGHTS > 1.0].mean(), rtol=1e-14)
    assert isinstance(few.datafit, Quadratic)
