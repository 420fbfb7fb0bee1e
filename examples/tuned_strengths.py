"""A strength of its own for every feature, tuned by gradient descent on held-out loss.

`solve` fits the model and is differentiable: the gradient of the held-out loss with respect to the
strengths goes through the solution itself, not through the iterations that found it. With one
strength for all, what keeps out the noise also shrinks what matters. Strengths tuned on some rows
fit these rows, so there are three sets: to fit, to tune, and to test.
"""

import torch

from torchreg import L1, Weighted
from torchreg.linear import solve

FEATURES, USEFUL = 60, 6


def planted(rows: int, seed: int):
    """A target that depends on the first few features."""
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(rows, FEATURES, generator=generator, dtype=torch.float64)
    effect = torch.linspace(0.5, 2.0, USEFUL, dtype=torch.float64)
    return X, X[:, :USEFUL] @ effect + torch.randn(rows, generator=generator, dtype=torch.float64)


def loss(fit, x, y):
    return (x @ fit.coef + fit.intercept - y).square().mean()


def main(steps: int = 60) -> float:
    X, y = planted(100, seed=0)
    tuning, test = planted(100, seed=1), planted(2000, seed=2)

    # one strength for all, the best on the tuning rows, is where the descent begins
    grid = [0.02 * 1.2**k for k in range(20)]
    best = min(grid, key=lambda alpha: loss(solve(X, y, L1(alpha)), *tuning))
    log_alphas = torch.full((FEATURES,), best, dtype=torch.float64).log().requires_grad_()
    optimizer = torch.optim.Adam([log_alphas], lr=0.1)

    print(f"{'step':>4}  {'tuning loss':>11}  {'test loss':>9}  {'non-zero':>8}  useful/other strength")
    tested = []
    for step in range(steps + 1):
        optimizer.zero_grad()
        fit = solve(X, y, Weighted(L1(1.0), log_alphas.exp()))
        held_out = loss(fit, *tuning)
        held_out.backward()
        with torch.no_grad():
            tested.append(loss(fit, *test).item())
            useful, other = log_alphas[:USEFUL].mean().exp(), log_alphas[USEFUL:].mean().exp()
        if step % 20 == 0:
            kept = int(fit.active.sum())
            print(f"{step:4d}  {held_out.item():11.4f}  {tested[-1]:9.4f}  {kept:8d}  {useful:.4f} / {other:.4f}")
        optimizer.step()
    print(f"test loss {tested[0]:.4f} with one strength, {tested[-1]:.4f} with {FEATURES}; the noise alone is 1")
    return tested[-1] / tested[0]


if __name__ == "__main__":
    main()
