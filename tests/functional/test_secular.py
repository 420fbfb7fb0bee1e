"""The equation of a group's norm in a metric, against scipy's root finder on the equation itself."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

from torchreg.functional.secular import growth

F64 = torch.float64


def equations(condition: float, many: int = 60):
    """Rows of (z, d, root) with ``d`` log-uniform over a condition, at strengths from next to none to next to all."""
    draw = np.random.default_rng(int(condition) + 7)
    for k in range(many):
        n = (2, 3, 24, 200)[k % 4]
        z = draw.standard_normal(n)
        c = 10.0 ** (condition * draw.random(n))
        level = np.linalg.norm(z * c) * (10.0 ** (-12.0 * draw.random()) if k % 3 else 1.0 - 1e-3)
        d = level / c
        f = lambda log_r, z=z, d=d: np.log(np.sum((z / (np.exp(log_r) + d)) ** 2))  # noqa: E731
        root = np.exp(brentq(f, -90.0, np.log(np.linalg.norm(z)) + 1e-9, xtol=1e-15, rtol=1e-15))
        yield torch.tensor(z), torch.tensor(d), float(root)


def sums(part: torch.Tensor, share: torch.Tensor) -> list[torch.Tensor]:
    return [(part * share**k).sum() for k in range(4)]


def rounds(z: torch.Tensor, d: torch.Tensor, many: int) -> list[float]:
    """The radius from the rule at 0, then after each round."""
    top = float((1.0 / d).max())
    found = [float(growth(sums((z / d) ** 2, 1.0 / d / top))) / top]
    for _ in range(many):
        r = found[-1]
        found.append(r * (1.0 + float(growth(sums((z / (r + d)) ** 2, r / (r + d))))))
    return found


@pytest.mark.parametrize("condition", [0, 1, 4, 8])
def test_every_round_rises_and_stays_below_the_root(condition):
    for z, d, root in equations(condition):
        found = rounds(z, d, 4)
        slack = 1e-10 * root  # what brentq leaves near a vanishing group, where h is flat
        assert found[0] <= 1.001 * root  # at 0 powers of c meet, of which float64 keeps few digits at 1e8
        assert all(r <= root + slack for r in found[1:])
        assert all(b >= a - slack for a, b in pairwise(found[1:]))


@pytest.mark.parametrize("condition", [0, 1, 4, 8])
def test_two_rounds_give_float32_and_three_float64(condition):
    """Of what the radius is for: the shares ``r / (r + d)`` by which the entries are multiplied."""
    for z, d, root in equations(condition):
        found, exact = rounds(z, d, 3), root / (root + d)
        off = [float((r / (r + d) / exact - 1.0).abs().max()) for r in found]
        assert off[2] < 1e-7
        assert off[3] < 1e-10


def test_all_entries_alike_are_solved_at_once():
    z, d = torch.tensor([3.0, 4.0], dtype=F64), torch.full((2,), 2.0, dtype=F64)
    assert rounds(z, d, 0)[0] == pytest.approx(3.0, rel=1e-15)  # 5 - 2
