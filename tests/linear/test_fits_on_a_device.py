"""Fits on an accelerator: each data term and penalty as on the CPU, within a table of launches and waits."""

from __future__ import annotations

import pytest
import torch
from fake_device import watch
from torch import Tensor

from torchreg import L1, L1L2, L2, Group, NonNegative, Penalty, Weighted, labels
from torchreg.linear import fit_path, solve
from torchreg.linear.datafits import Datafit, Huber, Logistic, Multinomial, Poisson, Quadratic, SquaredHinge

F64, N, P, ALPHAS, ROOM = torch.float64, 30, 6, [0.2, 0.1], 1.5
INDEX = torch.tensor([0, 0, 1, 1, 2, 2])
FACTORS = torch.tensor([1.0, 0.5, 2.0, 1.0, 0.0, 1.0], dtype=F64)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


X, NOISE = draw(N, P), draw(N, seed=1)
ETA = X @ torch.tensor([1.0, -0.8, 0.0, 0.6, 0.0, 0.0], dtype=F64) + 0.3
DATA: dict[str, tuple[Datafit, Tensor]] = {
    "Quadratic": (Quadratic(), ETA + 0.5 * NOISE),
    "Quadratic of two": (Quadratic(), torch.stack([ETA, NOISE], 1)),
    "Huber": (Huber(1.0), ETA + 0.5 * NOISE),
    "Logistic": (Logistic(), (ETA + NOISE > 0).double()),
    "SquaredHinge": (SquaredHinge(), (ETA + NOISE > 0).double()),
    "Poisson": (Poisson(), (ETA / 2).exp() + 0.5 * NOISE.abs()),
    "Multinomial": (Multinomial(), torch.stack([ETA, NOISE, -ETA], 1).argmax(1)),
}


def penalty(name: str, device: torch.device) -> Penalty:
    groups = labels(INDEX.to(device))
    return {
        "L1": L1(1.0),
        "L2": L2(1.0),
        "L1L2": L1L2(1.0, 0.7),
        "Weighted": Weighted(L1(1.0), FACTORS.to(device)),
        "NonNegative": NonNegative(L1(1.0)),
        "groups": Group(L1(1.0), by=groups),
    }[name]


# Launches and waits for each of two strengths of 30 x 6, what a path takes at first included: what was counted.
# Rounding may add an iteration, so half as many more are left as room.
TABLE = {
    ("Quadratic", "L1"): (993, 135),
    ("Quadratic", "L2"): (185, 32),
    ("Quadratic", "L1L2"): (2544, 283),
    ("Quadratic", "Weighted"): (3145, 131),
    ("Quadratic", "NonNegative"): (882, 132),
    ("Quadratic", "groups"): (2586, 223),
    ("Quadratic of two", "L1"): (1819, 297),
    ("Huber", "L1"): (4218, 324),
    ("Logistic", "L1"): (4382, 276),
    ("Logistic", "L2"): (1136, 68),
    ("SquaredHinge", "L1"): (2779, 199),
    ("Poisson", "L1"): (7604, 572),
    ("Multinomial", "L1"): (2695, 125),
}


@pytest.mark.parametrize(("data", "kind"), TABLE)
def test_a_path_is_the_cpus_within_its_launches(data, kind, fake):
    datafit, y = DATA[data]
    wanted = fit_path(X, y, penalty(kind, torch.device("cpu")), datafit=datafit, alphas=ALPHAS)
    with watch() as seen:
        found = fit_path(X.to(fake), y.to(fake), penalty(kind, fake), datafit=datafit, alphas=ALPHAS)
    assert found.coefs.device == fake
    assert torch.equal(found.coefs.cpu() == 0, wanted.coefs == 0)
    torch.testing.assert_close(found.coefs.cpu(), wanted.coefs, rtol=1e-9, atol=1e-11)
    launches, waits = (count / len(ALPHAS) for count in (seen.launches, seen.waits))
    assert launches <= ROOM * TABLE[data, kind][0], f"{launches} launches a strength"
    assert waits <= ROOM * TABLE[data, kind][1], f"{waits} waits a strength"


@pytest.mark.parametrize("kind", ["L1", "groups"])
def test_the_gradients_of_a_solution_are_the_cpus(kind, accelerator):
    """Of the strength, the data and the weights; on the CPU differences of refits confirm them."""
    grads = {}
    for device in (torch.device("cpu"), accelerator):
        alpha = torch.tensor(0.1, dtype=F64, device=device, requires_grad=True)
        x, y, weights = (t.to(device).requires_grad_() for t in (X, DATA["Quadratic"][1], 0.5 + NOISE.abs()))
        fit = solve(x, y, penalty(kind, device).with_alpha(alpha), sample_weight=weights)
        cost = (fit.coef * torch.linspace(1.0, 2.0, P, dtype=F64, device=device)).sum() + fit.intercept.sum()
        grads[device.type] = torch.autograd.grad(cost, [alpha, x, y, weights])
    for found, wanted in zip(grads[accelerator.type], grads["cpu"], strict=True):
        assert found.device == accelerator
        assert float(wanted.abs().max()) > 0.0
        torch.testing.assert_close(found.cpu(), wanted, rtol=1e-8, atol=1e-10)
