"""What every textbook says of L1 and L2, with plain torch and scikit-learn as oracles."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.linear_model import ElasticNet, Lasso, LinearRegression, Ridge
from torch import nn

from torchreg import L1, L1L2, L2, MCP, Group, Penalty, rows

F64 = torch.float64
TRUE = np.array([3.0, -2.0, 1.5, 0.0, 0.0, 0.0, 0.0, 0.0])


def data(n: int = 200, noise: float = 0.1, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, TRUE.size)) * np.linspace(0.5, 2.0, TRUE.size)
    X, y = X - X.mean(0), X @ TRUE + noise * rng.standard_normal(n)
    return torch.from_numpy(X), torch.from_numpy(y - y.mean())


def fista(loss, penalty: Penalty, w: torch.Tensor, step: float, steps: int = 600) -> torch.Tensor:
    """Beck and Teboulle 2009 with restarts (O'Donoghue and Candes 2015): knows the penalty by its prox alone."""
    point, momentum = w, 1.0
    for _ in range(steps):
        new = penalty.prox(point - step * torch.func.grad(loss)(point), step)
        if float(((point - new) * (new - w)).sum()) > 0.0:
            momentum = 1.0
        next_momentum = (1.0 + (1.0 + 4.0 * momentum**2) ** 0.5) / 2.0
        point, w, momentum = new + (momentum - 1.0) / next_momentum * (new - w), new, next_momentum
    return w


def least_squares(penalty: Penalty, X, y) -> np.ndarray:
    """The minimiser of ``mean((X w - y)^2) / 2 + penalty(w)``."""
    step = len(y) / float(torch.linalg.matrix_norm(X, 2)) ** 2
    return fista(lambda w: ((X @ w - y) ** 2).mean() / 2.0, penalty, torch.zeros(X.shape[1], dtype=F64), step).numpy()


def test_the_sample_calculation():
    w1, w2 = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=F64), torch.tensor([0.26, 0.25, 0.25, 0.25], dtype=F64)
    assert float(L1(1.0)(w1)) == 1.0
    assert float(L1(1.0)(w2)) == pytest.approx(1.01, rel=1e-15)
    assert float(L2(1.0)(w1)) == 1.0
    assert float(L2(1.0)(w2)) == pytest.approx(0.2551, rel=1e-14)
    assert L1(1.0)(w1) < L1(1.0)(w2)
    assert L2(1.0)(w2) < L2(1.0)(w1)


@pytest.mark.parametrize("alpha", [0.0, 0.1, 10.0])
def test_losses_and_gradients_are_the_textbooks(alpha):
    X, y = data()
    w = torch.randn(TRUE.size, dtype=F64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    error = ((X @ w - y) ** 2).sum()
    (plain,) = torch.autograd.grad(error, w, retain_graph=True)
    for penalty, value, slope in (
        (L1(alpha), alpha * w.abs().sum(), alpha * w.sign()),
        (L2(alpha), alpha * (w**2).sum(), 2.0 * alpha * w),
    ):
        loss = error + penalty(w)
        assert torch.allclose(loss, error + value, rtol=1e-15)
        (gradient,) = torch.autograd.grad(loss, w, retain_graph=True)
        assert torch.allclose(gradient, plain + slope, rtol=1e-15)


@pytest.mark.parametrize("alpha", [0.0, 0.01, 0.3])
def test_l2_in_the_loss_is_weight_decay_of_twice_alpha(alpha):
    X, y = data()
    X, y = X.float(), y.float()
    models = [nn.Linear(TRUE.size, 1, bias=False) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    decayed = torch.optim.SGD(models[0].parameters(), lr=0.01, weight_decay=2.0 * alpha)
    plain = torch.optim.SGD(models[1].parameters(), lr=0.01)
    for _ in range(20):
        for model, opt in zip(models, (decayed, plain), strict=True):
            opt.zero_grad()
            loss = ((model(X)[:, 0] - y) ** 2).mean()
            (loss if opt is decayed else loss + L2(alpha)(model)).backward()
            opt.step()
    assert torch.allclose(models[0].weight, models[1].weight, rtol=1e-5)  # 20 float32 steps


@pytest.mark.parametrize("penalty", [L1(0.0), L2(0.0), L1L2(0.0), MCP(0.0)], ids=repr)
def test_alpha_zero_is_the_unregularised_fit(penalty):
    X, y = data()
    assert np.abs(least_squares(penalty, X, y) - LinearRegression(fit_intercept=False).fit(X, y).coef_).max() < 1e-10


def test_l1_is_zero_from_alpha_max_on_and_l2_only_in_the_limit():
    X, y = data()
    top = float(L1(1.0).alpha_max(-(X.T @ y) / len(y)))
    assert (least_squares(L1(top * (1 + 1e-12)), X, y) == 0).all()
    assert (least_squares(L1(top * 0.999), X, y) != 0).any()
    for alpha in (1e2, 1e4, 1e6):
        coef = least_squares(L2(alpha), X, y)
        assert (coef != 0).all()
        assert np.abs(coef).max() <= top / (2.0 * alpha)  # 2 alpha w = -gradient, no longer than at 0


def test_norms_shrink_as_alpha_grows():
    X, y = data()
    for kind in (L1, L2):
        norms = [float(kind(1.0)(torch.from_numpy(least_squares(kind(a), X, y)))) for a in (0.0, 0.01, 0.1, 1.0, 10.0)]
        assert all(a > b or b == 0.0 for a, b in pairwise(norms))


def test_l1_selects_the_planted_features_and_l2_keeps_all():
    X, y = data()
    assert ((least_squares(L1(0.1), X, y) != 0) == (TRUE != 0)).all()
    assert (least_squares(L2(0.1), X, y) != 0).all()


def test_equal_to_lasso_ridge_and_elastic_net_of_scikit_learn():
    X, y = data()
    tight = {"tol": 1e-14, "max_iter": 100_000, "fit_intercept": False}
    lasso = Lasso(alpha=0.1, **tight).fit(X, y).coef_
    assert np.abs(least_squares(L1(0.1), X, y) - lasso).max() < 1e-8
    assert ((least_squares(L1(0.1), X, y) == 0) == (lasso == 0)).all()
    net = ElasticNet(alpha=0.1, l1_ratio=0.3, **tight).fit(X, y).coef_
    assert np.abs(least_squares(L1L2(0.1, 0.3), X, y) - net).max() < 1e-8
    ridge = Ridge(alpha=0.1, fit_intercept=False).fit(X, y).coef_  # sum of squares + 0.1 |w|^2: over 2 n for ours
    assert np.abs(least_squares(L2(0.1 / (2 * len(y))), X, y) - ridge).max() < 1e-8


LOSSES = {
    "regression": (1, lambda out, y: nn.functional.mse_loss(out[:, 0], y.float())),
    "binary": (1, lambda out, y: nn.functional.binary_cross_entropy_with_logits(out[:, 0], (y > 0).float())),
    "multi-class": (3, lambda out, y: nn.functional.cross_entropy(out, (y > -1).long() + (y > 1).long())),
    "custom": (1, lambda out, y: torch.log(torch.cosh(out[:, 0] - y.float())).mean()),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("penalty", [L1(0.05), L2(0.05), L1L2(0.05), Group(L1(0.05), by=rows)], ids=repr)
def test_a_penalty_can_be_added_to_any_loss(name, penalty):
    """Trained by plain torch, the penalised model ends smaller, with a lower penalised loss."""
    outputs, loss = LOSSES[name]
    X, y = data()
    X = X.float()

    def train(with_penalty: bool) -> tuple[float, float]:
        torch.manual_seed(0)
        model = nn.Linear(TRUE.size, outputs)
        opt = torch.optim.Adam(model.parameters(), lr=0.05)
        for _ in range(100):
            opt.zero_grad()
            total = loss(model(X), y)
            (total + penalty(model) if with_penalty else total).backward()
            opt.step()
        with torch.no_grad():
            return float(penalty(model)), float(loss(model(X), y) + penalty(model))

    (size, total), (free_size, free_total) = train(True), train(False)
    assert size < free_size
    assert total < free_total
