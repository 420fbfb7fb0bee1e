"""Nuclear, Rank, Spectral, Orthogonality: against numpy's decomposition, optimality conditions and differences."""

import math

import numpy as np
import pytest
import torch
from catalog import WITHOUT_PROX
from helpers import F64, normal
from torch import nn
from torch.optim import SGD, Adam

from torchreg import (
    L1,
    L2,
    NoExactProx,
    Nuclear,
    Orthogonality,
    ProxOptimizer,
    Rank,
    Spectral,
    Sum,
    TotalVariation,
    Weighted,
    attach,
    attach_to,
)

SHAPES = [(5, 3), (3, 5), (4, 4), (1, 6), (6, 1), (4, 2, 3), (2, 1, 1, 5)]


def by_numpy(w: torch.Tensor, f) -> np.ndarray:
    """``U diag(f(s)) V'`` by numpy, of the tensor as (dim 0, all others)."""
    u, s, vt = np.linalg.svd(w.reshape(w.shape[0], -1).numpy(), full_matrices=False)
    return ((u * f(s)) @ vt).reshape(w.shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("step", [0.1, 1.0, 3.0])
def test_singular_values_are_soft_thresholded(shape, step):
    for seed in range(3):
        w = normal(shape, seed)
        expected = by_numpy(w, lambda s: np.maximum(s - 0.8 * step, 0.0))
        assert np.allclose(Nuclear(0.8).prox(w, step).numpy(), expected, rtol=0, atol=1e-13)
        value = 0.8 * np.linalg.norm(w.reshape(shape[0], -1).numpy(), "nuc")
        assert float(Nuclear(0.8).value(w)) == pytest.approx(value, rel=1e-13)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_prox_satisfies_its_optimality_condition(shape):
    """``(w - p) / step`` is ``alpha U V'`` on the singular vectors of p and of norm alpha at most beside them."""
    w = normal(shape)
    p = Nuclear(0.8).prox(w, 1.0).reshape(shape[0], -1).numpy()
    slope = (w.reshape(shape[0], -1).numpy() - p) / 0.8
    u, s, vt = np.linalg.svd(p, full_matrices=False)
    alive = s > 1e-12
    assert np.allclose(u[:, alive].T @ slope, vt[alive], atol=1e-12)
    assert np.linalg.norm(slope, 2) <= 1.0 + 1e-12
    assert alive.sum() == np.linalg.matrix_rank(p)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("r", [0, 1, 2, 9])
def test_rank_keeps_the_largest_singular_values(shape, r):
    w, constraint = normal(shape), Rank(r)
    p = constraint.prox(w, 0.3)
    assert np.allclose(p.numpy(), by_numpy(w, lambda s: np.where(np.arange(len(s)) < r, s, 0.0)), rtol=0, atol=1e-13)
    assert float(constraint.value(p)) == 0.0
    assert torch.equal(constraint.prox(p, 0.3), p)  # what fulfils it stays, to the bit
    least = min(shape[0], math.prod(shape[1:]))
    assert float(constraint.value(w)) == (0.0 if r >= least else math.inf)
    if r >= least:
        assert torch.equal(p, w)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_projected_matrix_has_its_rank_in_its_own_dtype(dtype):
    w = normal((40, 30), scale=0.1).to(dtype)
    p = Rank(3).prox(w, 1.0)
    assert p.dtype == dtype
    assert float(Rank(3).value(p)) == 0.0
    assert float(Rank(2).value(p)) == math.inf
    assert float(Rank(3).value(w)) == math.inf


def test_a_step_beyond_every_float32_is_an_endless_one():
    w = normal((4, 3)).float()
    for step in (1e30, 1e300, math.inf):
        assert not Nuclear(1e30).prox(w, step).any()
        assert torch.equal(Rank(1).prox(w, step), Rank(1).prox(w, 1.0))
        assert not (TotalVariation(1e30) + L1(1e30)).prox(w, step).any()
        assert not TotalVariation(1e30).prox(w, step).diff(dim=-1).any()


def test_an_infinite_or_unknown_matrix_stays_and_raises_nothing():
    for bad in (math.nan, math.inf, -math.inf):
        w = normal((4, 3))
        w[1, 2] = bad
        for penalty in (Nuclear(0.5), Rank(1)):
            assert torch.equal(penalty.prox(w, 1.0).nan_to_num(7.0), w.nan_to_num(7.0))
        assert not Nuclear(0.5).value(w).isfinite()
        assert str(float(Rank(1).value(w))) == str(abs(bad))


REPEATED = torch.diag(torch.tensor([2.0, 2.0, 0.5], dtype=F64))
LOW = normal((4, 1)) @ normal((1, 3), 1)


@pytest.mark.parametrize("w", [REPEATED, normal((4, 3)), normal((3, 4)), 2.0 * torch.eye(3, dtype=F64)])
def test_gradient_of_the_prox_at_repeated_singular_values(w):
    """Differentiable wherever no singular value is at the threshold itself, so differences exist at ties too."""
    function = lambda x, t: Nuclear(1.0).prox(x, t)  # noqa: E731
    step = torch.tensor(0.9, dtype=F64)
    assert torch.autograd.gradcheck(function, (w.clone().requires_grad_(), step.requires_grad_()), eps=1e-6, atol=1e-6)
    if w is REPEATED:
        assert torch.autograd.gradcheck(lambda x: Rank(2).prox(x, 1.0), w.clone().requires_grad_(), atol=1e-6)


@pytest.mark.parametrize("w", [torch.zeros(4, 3, dtype=F64), LOW, REPEATED, torch.eye(3, dtype=F64)])
@pytest.mark.parametrize("penalty", [Nuclear(1.0), Spectral(1.0), Spectral(1.0, power=2), Orthogonality(1.0)], ids=repr)
def test_the_slope_is_a_subgradient_where_there_are_many(w, penalty):
    """``R(u) >= R(w) + <g, u - w>`` for convex ones; 0 at 0; finite everywhere."""
    slope = torch.func.grad(penalty.value)(w)
    assert slope.isfinite().all()
    if not w.any():
        assert not slope.any()
    for seed in range(20) if penalty.convex else ():
        u = w + normal(tuple(w.shape), seed, scale=0.5)
        assert float(penalty.value(u) - penalty.value(w) - (slope * (u - w)).sum()) >= -1e-12


@pytest.mark.parametrize("shape", SHAPES)
def test_values_for_the_loss_equal_numpys(shape):
    w = normal(shape)
    x = w.reshape(shape[0], -1).numpy()
    assert float(Spectral(0.3).value(w)) == pytest.approx(0.3 * np.linalg.norm(x, 2), rel=1e-13)
    assert float(Spectral(0.3, power=2).value(w)) == pytest.approx(0.3 * np.linalg.norm(x, 2) ** 2, rel=1e-13)
    grams = {"rows": x @ x.T, "columns": x.T @ x}
    grams["fewer"] = grams["rows"] if x.shape[0] <= x.shape[1] else grams["columns"]
    for of, gram in grams.items():
        off = gram - np.diag(np.diag(gram))
        unit = np.linalg.norm(gram - np.eye(len(gram))) ** 2
        assert float(Orthogonality(0.3, of=of).value(w)) == pytest.approx(0.3 * unit, rel=1e-12)
        free = 0.3 * np.linalg.norm(off) ** 2
        assert float(Orthogonality(0.3, of=of, unit=False).value(w)) == pytest.approx(free, rel=1e-12, abs=1e-13)


@pytest.mark.parametrize("penalty", [*WITHOUT_PROX, Orthogonality(0.2, of="rows", unit=False)], ids=repr)
def test_gradients_for_the_loss_equal_differences(penalty):
    for shape in ((4, 3), (3, 2, 2)):
        assert torch.autograd.gradcheck(penalty.value, normal(shape).requires_grad_())
    ws = torch.stack([normal((4, 3), s) for s in range(3)])
    assert torch.allclose(torch.vmap(penalty.value)(ws), torch.stack([penalty.value(w) for w in ws]))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        value = penalty.value(normal((4, 3)).to(dtype))
        assert value.dtype == torch.float32
        assert torch.allclose(value.double(), penalty.value(normal((4, 3)).to(dtype).double()), rtol=1e-5)
    assert float(penalty.value(torch.zeros(0, 3))) == float(penalty.value(torch.zeros(0, 0))) == 0.0


def test_orthogonality_in_the_loss_makes_rows_orthonormal():
    layer = nn.Linear(6, 4)
    optimizer = SGD(layer.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        Orthogonality(1.0)(layer).backward()
        optimizer.step()
    assert torch.allclose(layer.weight @ layer.weight.T, torch.eye(4), atol=1e-5)


@pytest.mark.parametrize("penalty", [*WITHOUT_PROX, Spectral(0.1) + L2(0.1)], ids=repr)
def test_what_has_no_prox_is_refused_when_an_optimizer_is_made(penalty):
    model = nn.Linear(3, 2)
    base = SGD(model.parameters(), lr=0.1)
    term = attach(penalty, model)
    assert term().requires_grad  # for the loss it is as good as any
    opt = ProxOptimizer(base, L1(0.0))
    for act in (
        lambda: ProxOptimizer(base, term),
        lambda: ProxOptimizer(base, penalty),
        lambda: attach_to(base, term),
        lambda: opt.add_term(penalty),
        lambda: penalty.prox(torch.ones(2, 2), 1.0),
        lambda: penalty.prox(torch.ones(2, 2), 0.0),
    ):
        with pytest.raises(NoExactProx, match=r"no proximal map.*loss \+ penalty\(model\)"):
            act()
    assert not base._optimizer_step_post_hooks
    assert len(opt.terms) == 1


def test_a_step_per_entry_is_refused_by_name():
    for penalty in (Nuclear(0.1), Rank(2), Nuclear(0.1) + L2(0.2), Sum((Nuclear(1.0),), alpha=0.5)):
        with pytest.raises(NoExactProx, match=r"step per entry.*\(3, 2\).*ProxOptimizer"):
            penalty.prox(torch.ones(3, 2), torch.ones(3, 2))
        assert penalty.prox(torch.ones(3, 2), torch.ones(1, 1)).shape == (3, 2)


def test_a_ridge_per_entry_beside_a_penalty_of_one_step_is_refused_before_a_step():
    model = nn.Linear(3, 2)
    penalty = Nuclear(0.1) + Weighted(L2(0.1), torch.ones(2, 3))
    with pytest.raises(NoExactProx, match="ridge"):
        ProxOptimizer(Adam(model.parameters()), penalty)


@pytest.mark.parametrize("penalty", [Nuclear(0.1), Rank(1), *WITHOUT_PROX], ids=repr)
@pytest.mark.parametrize("shape", [(), (3,)])
def test_a_matrix_is_asked_for_with_the_shape(penalty, shape):
    with pytest.raises(ValueError, match=rf"{type(penalty).__name__} needs a tensor of 2 or more.*shape"):
        penalty.check(torch.ones(shape))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Rank(-1), ValueError, "got -1"),
        (lambda: Rank(2.0), TypeError, "got float"),
        (lambda: Rank(True), TypeError, "got bool"),
        (lambda: Spectral(0.1, power=3), ValueError, "got 3"),
        (lambda: Spectral(0.1, power=True), ValueError, "got True"),
        (lambda: Spectral(0.1, power=1.0), ValueError, "got 1.0"),
        (lambda: Orthogonality(0.1, unit="no"), TypeError, "got 'no'"),
        (lambda: Orthogonality(0.1, of="row"), ValueError, "got 'row'"),
        (lambda: Nuclear(-1.0), ValueError, "alpha >= 0"),
        (lambda: Rank(1).with_alpha(2.0), ValueError, "constraint"),
    ],
)
def test_arguments_out_of_range_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_the_rank_of_a_tall_matrix_is_that_of_its_singular_values():
    u = torch.linalg.qr(normal((200_000, 16)).float()).Q
    w = u * torch.tensor([1.0] + [0.02] * 15)
    assert Rank(1).value(w) == math.inf
    near = Rank(1).prox(w, 1.0)
    assert Rank(1).value(near) == 0.0
    assert int((torch.linalg.svdvals(near.double()) > 1e-5).sum()) == 1
    w.requires_grad_(True)
    (grad,) = torch.autograd.grad(Nuclear(1.0).value(w), w)
    torch.testing.assert_close(grad, u, rtol=0.0, atol=1e-5)
