"""The proximal map is the minimiser that its definition names, for every penalty and step."""

import pytest
import torch
from catalog import CATALOG, UNCENTRED, WITHOUT_PROX
from helpers import F64, FINITE_STEPS, STEPS, bits, each_step, every, loop, moves, normal, objective

from torchreg import L0, L1, MCP, SCAD, Group, NoExactProx, Penalty, columns, filters, rows

ROUNDING = 1e-11  # float64 rounding of an objective of order 1 to 10 summed over 15 entries, with a margin


@every(*CATALOG, *UNCENTRED)
@each_step()
def test_prox_beats_every_rival(case, step):
    penalty, w, t = case.make(), normal(case.shape), step(case.shape)
    w = torch.where(torch.as_tensor(t) == 0, penalty.prox(w, 0.01), w)  # feasible where it cannot move
    p = penalty.prox(w, t)
    ours = objective(penalty, w, t, p[None])
    best = objective(penalty, w, t, moves(case, w, p, t)).min()
    assert ours.isfinite().all()
    assert float(ours - best) <= ROUNDING * (1.0 + float(best.abs()))


@every(smooth=True)
@each_step(*FINITE_STEPS)
def test_prox_is_stationary_where_the_penalty_is_smooth(case, step):
    """Where u is not at the centre, ``grad R(u) + (u - w) / step = 0``."""
    penalty, w, t = case.make(), normal(case.shape), step(case.shape)
    p = penalty.prox(w, t)
    slope = torch.func.grad(penalty.value)(p)
    off = p != case.centre
    residual = torch.where(off, slope + (p - w) / t, 0.0)
    scale = 1.0 + (w / t).abs() if penalty.groups is None else (1.0 + (w / t).abs()).max()
    assert float((residual.abs() / scale).max()) < 1e-12  # rounding, relative to what is added up


@every(convex=True)
@each_step(*FINITE_STEPS)
def test_prox_of_a_convex_penalty_is_firmly_nonexpansive(case, step):
    """``<p - q, x - y> >= |p - q|^2`` in the metric 1 / step."""
    penalty, t = case.make(), step(case.shape)
    for seed in range(20):
        x, y = normal(case.shape, seed), normal(case.shape, seed + 100, scale=0.4)
        d = penalty.prox(x, t) - penalty.prox(y, t)
        slack = (d * (x - y - d) / t).sum()
        assert float(slack) >= -1e-12 * (1.0 + float(((x - y) ** 2 / t).sum()))  # rounding only


@every()
def test_convex_says_what_the_catalogue_says(case):
    assert case.make().convex is (case.convex and case.id != "own Penalty")  # the default claims nothing


@every(convex=True)
def test_value_of_a_convex_penalty_is_convex(case):
    value = case.make().value
    for seed in range(20):
        x, y = normal(case.shape, seed), normal(case.shape, seed + 100)
        assert value((x + y) / 2) <= (value(x) + value(y)) / 2 + 1e-12


@every()
@each_step()
def test_at_the_centre_value_is_zero_and_prox_the_identity(case, step):
    penalty, centre = case.make(), case.centre
    assert float(penalty.value(centre)) == 0.0
    assert torch.equal(penalty.prox(centre, step(case.shape)), centre)


@every()
@loop("dtype", [F64, torch.float32, torch.bfloat16, torch.float16])
def test_step_zero_changes_no_bit(case, dtype):
    w = normal(case.shape).to(dtype)
    for step in (0.0, torch.tensor(0.0), *[torch.zeros(case.shape)] * case.metric):
        assert torch.equal(bits(case.make().prox(w, step)), bits(w))


@every()
@each_step("some zero", "zero, huge, endless")
def test_entries_of_step_zero_change_no_bit(case, step):
    w, t = normal(case.shape), step(case.shape)
    fixed = t == 0
    assert fixed.any()
    assert torch.equal(bits(case.make().prox(w, t)[fixed]), bits(w[fixed]))


@every(entry=True, spares=False)
def test_an_endless_step_reaches_a_minimiser_of_the_penalty(case):
    penalty = case.make()
    assert float(penalty.value(penalty.prox(normal(case.shape), float("inf")))) == 0.0


@every(constraint=False)
def test_alpha_zero_shrinks_nothing(case):
    """But for entries that an infinite weight or a constraint forces to the centre."""
    penalty, w = case.make().with_alpha(0.0), normal(case.shape)
    p = penalty.prox(w, 1.0)
    assert not penalty.value(w).isnan()
    assert float(penalty.value(p)) == 0.0
    assert torch.allclose(torch.where(p == case.centre, w, p), w, rtol=1e-15, atol=1e-15)
    if not ("0 and inf" in case.id or "Weighted" in case.id or "NonNegative" in case.id):
        assert torch.allclose(p, w, rtol=1e-15, atol=1e-15)


@every()
@loop("t", [0.0, 0.05, 6.0])
def test_a_step_as_number_as_0d_tensor_and_per_entry_agree(case, t):
    penalty, w = case.make(), normal(case.shape)
    as_number = penalty.prox(w, t)
    assert torch.allclose(penalty.prox(w, torch.tensor(t, dtype=F64)), as_number, rtol=1e-14, atol=1e-15)
    if not case.metric:
        with pytest.raises(NoExactProx, match="one step for the tensor"):
            penalty.prox(w, torch.full(case.shape, t, dtype=F64))
        return
    per_entry = penalty.prox(w, torch.full(case.shape, t, dtype=F64))
    # 1e-12: the metric prox of groups iterates to 1e-14, then divides by sums of 15 entries
    assert torch.allclose(per_entry, as_number, rtol=1e-12, atol=1e-14)
    assert torch.equal(per_entry == 0, as_number == 0)


@every(entry=True)
def test_a_step_per_entry_equals_a_loop_over_entries(case):
    penalty, w = case.make(), normal(case.shape)
    t = STEPS["zero, huge, endless"](case.shape)
    together = penalty.prox(w, t)
    alone = torch.stack([penalty.prox(w, float(s))[i] for i, s in enumerate(t)])
    assert torch.allclose(together, alone, rtol=1e-14, atol=0.0)


@pytest.mark.parametrize("inner", [L1, MCP, SCAD, L0])
def test_groups_are_independent_and_of_any_dimension(inner):
    w = normal((4, 2, 3))
    by_filter = Group(inner(0.4), by=filters, weights=1.0).prox(w, 1.0)
    by_row = Group(inner(0.4), by=rows, weights=1.0).prox(w.reshape(4, 6), 1.0)
    by_column = Group(inner(0.4), by=columns, weights=1.0).prox(w.reshape(4, 6).T, 1.0)
    assert torch.equal(by_filter.reshape(4, 6), by_row)
    assert torch.allclose(by_column.T, by_row, rtol=1e-15, atol=0.0)  # the order of a sum


def test_catalogue_covers_every_public_penalty():
    import torchreg

    def subclasses(kind):
        return {kind}.union(*(subclasses(s) for s in kind.__subclasses__()))

    public = {k for k in subclasses(Penalty) if k.__module__.startswith("torchreg") and not k.__abstractmethods__}
    named = {k for k in public if not k.__name__.startswith("_")}
    assert {k.__name__ for k in named} <= set(torchreg.__all__)
    assert {*(type(case.make()) for case in CATALOG), *map(type, WITHOUT_PROX)} >= named
    assert len({case.id for case in CATALOG}) == len(CATALOG)
