"""Bounds on the number of non-zeros: the projection against every pattern of zeros there is, in any metric."""

import itertools
import json
import math
import pickle
import warnings

import pytest
import torch
from helpers import F64, bits, each_step, loop, normal

from torchreg import (
    L1,
    L2,
    NM,
    Group,
    NoConjugate,
    NoExactProx,
    NonNegative,
    Penalty,
    Sum,
    TopK,
    Towards,
    Weighted,
    attach,
    columns,
    filters,
    labels,
    rows,
    whole,
)

INF, NAN = math.inf, math.nan
INDEX = torch.tensor([[0, 1, 2, 2], [1, 1, 0, 3]])


def patterns(shape, groups, allowed):
    """All masks of what may differ from zero, one for each set of units that ``allowed`` lets in."""
    units = torch.eye(math.prod(shape), dtype=F64).reshape(-1, *shape)
    if groups is not None:
        like = torch.zeros(shape, dtype=F64)
        one = torch.eye(groups.count(like), dtype=F64)
        units = torch.stack([groups.expand(v, like).broadcast_to(shape) for v in one])
    chosen = [c for c in itertools.product([0.0, 1.0], repeat=len(units)) if allowed(c)]
    return torch.einsum("pu,u...->p...", torch.tensor(chosen, dtype=F64), units) > 0


def at_most(k):
    return lambda chosen: sum(chosen) <= k


def in_blocks(n, m):
    return lambda chosen: all(sum(chosen[i : i + m]) <= n for i in range(0, len(chosen), m))


def in_columns_of_blocks(n, m, inputs, places):
    """For (outputs, inputs, places): inputs in blocks at each place."""

    def allowed(chosen):
        c = torch.tensor(chosen).reshape(-1, inputs // m, m, places)
        return bool((c.sum(2) <= n).all())

    return allowed


CASES = [
    ("TopK(3)", TopK(3), (2, 4), None, at_most(3)),
    ("TopK(0)", TopK(0), (2, 4), None, at_most(0)),
    ("TopK(8)", TopK(8), (2, 4), None, at_most(8)),
    ("TopK of a third", TopK(1 / 3), (2, 4), None, at_most(2)),
    ("TopK of a vector", TopK(0.5), (9,), None, at_most(4)),
    ("NM(2, 4)", NM(2, 4), (2, 4), None, in_blocks(2, 4)),
    ("NM(1, 2)", NM(1, 2), (2, 4), None, in_blocks(1, 2)),
    ("NM(0, 2)", NM(0, 2), (2, 4), None, in_blocks(0, 2)),
    ("NM of a kernel", NM(1, 2), (1, 4, 2), None, in_columns_of_blocks(1, 2, 4, 2)),
    ("rows", Group(TopK(2), by=rows), (5, 3), rows, at_most(2)),
    ("columns", Group(TopK(0.5), by=columns), (3, 5), columns, at_most(2)),
    ("filters", Group(TopK(1), by=filters), (4, 2, 3), filters, at_most(1)),
    ("labels", Group(TopK(2), by=labels(INDEX)), (2, 4), labels(INDEX), at_most(2)),
    ("whole", Group(TopK(1), by=whole), (2, 4), whole, at_most(1)),
    ("blocks of rows", Group(NM(1, 3), by=rows), (6, 2), rows, in_blocks(1, 3)),
]
each_case = pytest.mark.parametrize(
    ("bound", "shape", "groups", "allowed"), [pytest.param(*c[1:], id=c[0]) for c in CASES]
)
POSITIVE = ["small", "one", "huge", "0-d tensor", "adaptive", "ill-conditioned"]


def cost(us, w, t):
    return ((us - w) ** 2 / (2.0 * torch.as_tensor(t, dtype=F64))).flatten(1).sum(1)


@each_case
@loop("seed", range(8))
@each_step(*POSITIVE)
def test_the_projection_is_the_nearest_of_all_patterns(bound, shape, groups, allowed, seed, step):
    w, t = normal(shape, seed), step(shape)
    w = w.round() if seed % 4 == 3 else w  # with ties and zeros
    p = bound.prox(w, t)
    rivals = torch.where(patterns(shape, groups, allowed), w, 0.0)
    best = cost(rivals, w, t).min()
    assert float(bound.value(p)) == 0.0
    assert ((rivals != 0) == (p != 0)).flatten(1).all(1).any()  # it is one of them
    assert float(cost(p[None], w, t)[0] - best) <= 1e-14 * float(1 + best)


@each_case
def test_the_value_is_zero_inside_and_infinite_outside(bound, shape, groups, allowed):
    w = normal(shape).abs() + 0.1
    inside = patterns(shape, groups, allowed)
    everything = patterns(shape, groups, lambda chosen: True)
    fits = {tuple(m.flatten().tolist()) for m in inside}
    for mask in everything:
        wanted = 0.0 if tuple(mask.flatten().tolist()) in fits else INF
        assert float(bound.value(torch.where(mask, 1e-30 * w, 0.0).float())) == wanted


PLACES = [(i, j) for i in range(2) for j in range(4)]
SUMMANDS = [
    (L1(0.4), lambda u, t: 0.4 * u.abs(), lambda w, t: w.sign() * (w.abs() - 0.4 * t).clamp(min=0)),
    (L2(0.7), lambda u, t: 0.7 * u**2, lambda w, t: w / (1 + 1.4 * t)),
    (L1(0.3) + L2(0.7), lambda u, t: 0.3 * u.abs() + 0.7 * u**2,
     lambda w, t: w.sign() * (w.abs() - 0.3 * t).clamp(min=0) / (1 + 1.4 * t)),
    (NonNegative(L1(0.4)), lambda u, t: 0.4 * u.abs(), lambda w, t: (w - 0.4 * t).clamp(min=0)),
    (Weighted(L1(0.4), torch.arange(8.0).reshape(2, 4)), lambda u, t: 0.4 * torch.arange(8.0).reshape(2, 4) * u.abs(),
     lambda w, t: w.sign() * (w.abs() - 0.4 * torch.arange(8.0).reshape(2, 4) * t).clamp(min=0)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("bound", "shape", "groups", "allowed"), [pytest.param(*c[1:], id=c[0]) for c in CASES if c[2] == (2, 4)]
)
@pytest.mark.parametrize(("other", "phi", "alone"), SUMMANDS, ids=[repr(s[0]) for s in SUMMANDS])
@each_step("one", "adaptive", "ill-conditioned")
def test_sums_are_exact_too(bound, shape, groups, allowed, other, phi, alone, step):
    """On each pattern the minimiser is the other penalty's own; the sum's prox is the best of these."""
    for seed in range(5):
        w, t = normal(shape, seed), torch.as_tensor(step(shape), dtype=F64).broadcast_to(shape)
        for total in (bound + other, other + bound):
            p = total.prox(w, t)
            rivals = torch.where(patterns(shape, groups, allowed), alone(w, t), 0.0)
            costs = phi(rivals, t).flatten(1).sum(1) + cost(rivals, w, t)
            ours = phi(p, t).sum() + cost(p[None], w, t)[0]
            assert float(bound.value(p)) == 0.0
            assert float(ours - costs.min()) <= 1e-12


@pytest.mark.parametrize("bound", [TopK(3), NM(1, 2), Group(TopK(1), by=rows)], ids=repr)
def test_other_sums_are_refused(bound):
    for other in (TopK(2), Group(L1(0.1), by=rows)):
        with pytest.raises(NoExactProx):
            bound + other


@each_case
@loop("dtype", [F64, torch.float32, torch.bfloat16, torch.float16])
def test_step_zero_changes_no_bit_and_what_is_kept_keeps_every_bit(bound, shape, groups, allowed, dtype):
    w = normal(shape).to(dtype)
    for step in (0.0, torch.tensor(0.0), torch.zeros(shape)):
        assert torch.equal(bits(bound.prox(w, step)), bits(w))
    p = bound.prox(w, 0.3)
    assert p.dtype is dtype
    assert torch.equal(p, torch.where(p != 0, w, 0.0))


def test_entries_that_cannot_move_take_their_places():
    w = torch.tensor([0.1, 5.0, 4.0, 3.0, 0.0])
    step = torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0])
    assert TopK(3).prox(w, step).tolist() == pytest.approx([0.1, 5.0, 4.0, 0.0, 0.0])
    assert TopK(0).prox(w, step).tolist() == pytest.approx([0.1, 0.0, 0.0, 0.0, 0.0])
    grouped = Group(TopK(1), by=rows).prox(
        torch.tensor([[0.1, 1.0], [5.0, 5.0]]), torch.tensor([[0.0, 1.0], [1.0, 1.0]])
    )
    assert torch.equal(grouped, torch.tensor([[0.1, 1.0], [0.0, 0.0]]))


def test_an_endless_step_costs_nothing():
    w, t = torch.tensor([9.0, 1.0, 2.0]), torch.tensor([INF, 1.0, 1.0])
    assert TopK(2).prox(w, t).tolist() == [0.0, 1.0, 2.0]
    assert TopK(1).prox(w, INF).tolist() == [9.0, 0.0, 0.0]  # one step for all: its size does not matter
    assert Group(TopK(1), by=rows).prox(w[:, None], t[:, None]).flatten().tolist() == [0.0, 0.0, 2.0]


def test_ties_are_broken_by_order_to_exactly_k():
    w = torch.tensor([[1.0, -1.0, 1.0, -1.0], [-1.0, 1.0, 1.0, 1.0]])
    for k in range(9):
        assert (TopK(k).prox(w, 1.0) != 0).flatten().tolist() == [i < k for i in range(8)]
    assert (NM(3, 4).prox(w, torch.ones(2, 4)) != 0).tolist() == [[True, True, True, False]] * 2
    assert (Group(TopK(1), by=rows).prox(w, 1.0) != 0).tolist() == [[True] * 4, [False] * 4]


def test_nan_stays_and_takes_no_place_and_infinities_come_first():
    w = torch.tensor([NAN, 1.0, -INF, 2.0, 3.0, NAN, 0.5, 0.1])
    for step in (1.0, torch.ones(8)):
        p = TopK(2).prox(w, step)
        assert p.isnan().nonzero().flatten().tolist() == [0, 5]
        assert (p == w).nonzero().flatten().tolist() == [2, 4]
        q = NM(1, 4).prox(w[None], step)[0]
        assert (q == w).nonzero().flatten().tolist() == [2, 4]
        r = Group(TopK(1), by=rows).prox(w.reshape(4, 2), step if isinstance(step, float) else step.reshape(4, 2))
        assert (r == w.reshape(4, 2)).nonzero().tolist() == [[0, 1], [1, 0], [1, 1], [2, 0]]  # groups of a NaN stay
    assert TopK(2).value(w).isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sizes_in_the_metric_neither_overflow_nor_vanish(dtype):
    w = torch.tensor([1e-30, 3e-30, 2e-30, 0.0], dtype=dtype)
    step = torch.full((4,), 1e-4)
    assert TopK(2).prox(w, step).nonzero().flatten().tolist() == [1, 2]
    assert TopK(2).prox(w * 1e60 if dtype is F64 else w / 1e-30 * 1e30, step).nonzero().flatten().tolist() == [1, 2]
    assert Group(TopK(1), by=rows).prox(w.reshape(2, 2) / 1e-30 * 1e30, 1.0).nonzero().tolist() == [[0, 0], [0, 1]]


def test_shares_are_whole_entries_by_their_decimal_digits():
    w = torch.randn(100)
    for percent in range(101):
        assert int((TopK(percent / 100).prox(w, 1.0) != 0).sum()) == percent
    assert int((TopK(0.999).prox(w, 1.0) != 0).sum()) == 99


@pytest.mark.parametrize("bound", [TopK(3), TopK(0.4), NM(2, 4), Group(TopK(2), by=rows), TopK(3) + L2(0.3)], ids=repr)
def test_vmap_and_compile_agree_with_a_loop(bound):
    ws, ts = normal((5, 4, 8)).round(decimals=1), normal((5, 4, 8), 3).abs() + 0.05
    loop_of = torch.stack([bound.prox(w, t) for w, t in zip(ws, ts, strict=True)])
    assert torch.equal(torch.vmap(bound.prox)(ws, ts), loop_of)
    values = torch.vmap(bound.value)(loop_of)
    assert torch.equal(values, torch.stack([bound.value(w) for w in loop_of]))
    compiled = torch.compile(bound.prox, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(ws[0], ts[0]), loop_of[0])
    step = torch.tensor(0.5)
    assert torch.equal(compiled(ws[0], step), bound.prox(ws[0], step))


def test_views_and_tensors_without_entries():
    w, t = normal((8, 6)), normal((8, 6), 1).abs()
    for bound in (TopK(7), NM(1, 2), Group(TopK(2), by=columns)):
        assert torch.equal(bound.prox(w.T[::2], t.T[::2]), bound.prox(w.T[::2].contiguous(), t.T[::2].contiguous()))
        for shape in ((0, 4), (4, 0), (0, 0)):
            assert bound.prox(torch.zeros(shape), 1.0).shape == shape
            assert float(bound.value(torch.zeros(shape))) == 0.0


def test_a_constraint_has_no_strength_and_no_conjugate():
    for bound in (TopK(3), NM(2, 4), Group(TopK(1), by=rows), NonNegative(TopK(3))):
        with pytest.raises(ValueError, match="constraint"):
            bound.with_alpha(0.1)
        with pytest.raises(ValueError, match="constraint"):
            bound.alpha_max(torch.ones(2, 4))
        with pytest.raises(NoConjugate):
            bound.conjugate(torch.ones(2, 4))
        assert bound.convex is False


def test_combinators():
    w = torch.tensor([[3.0, -4.0, 1.0, -0.5]])
    assert NonNegative(TopK(1)).prox(w, 1.0).tolist() == [[3.0, 0.0, 0.0, 0.0]]
    reference = torch.tensor([[3.5, -1.0, 1.0, -0.5]])
    assert Towards(TopK(1), reference).prox(w, 1.0).tolist() == [[3.5, -4.0, 1.0, -0.5]]
    assert Sum((TopK(1),), alpha=0.0).prox(w, 1.0).tolist() == w.tolist()
    assert (L1(1.0) + TopK(1)).with_alpha(0.5).prox(w, 1.0).tolist() == [[0.0, -3.5, 0.0, 0.0]]


def test_equality_spec_and_pickle():
    assert TopK(1) != TopK(1.0) != TopK(0.5)
    assert TopK(3) == TopK(3) == pickle.loads(pickle.dumps(TopK(3)))
    assert len({json.dumps(p.spec()) for p in (TopK(1), TopK(1.0), NM(1, 4), NM(2, 4), Group(TopK(1), rows))}) == 5
    for p in (TopK(1), TopK(1.0), TopK(0.25), NM(1, 4)):
        assert eval(repr(p)) == p


BAD = [
    (lambda: TopK(-1), ValueError, r"between 0\.0 and 1\.0 or a whole number >= 0.*got -1"),
    (lambda: TopK(1.5), ValueError, r"got 1\.5.*TopK\(20\)"),
    (lambda: TopK(NAN), ValueError, "got nan"),
    (lambda: TopK(True), TypeError, "got bool"),
    (lambda: TopK("0.1"), TypeError, "got str"),
    (lambda: TopK(torch.tensor(3)), TypeError, "got Tensor"),
    (lambda: NM(3, 2), ValueError, "0 <= n <= m.*n=3, m=2"),
    (lambda: NM(-1, 2), ValueError, "n=-1"),
    (lambda: NM(0, 0), ValueError, "m >= 1"),
    (lambda: NM(2.0, 4), TypeError, r"n=2\.0"),
    (lambda: NM(2, True), TypeError, "m=True"),
    (lambda: Group(TopK(1), by=rows, weights=1.0), ValueError, r"no weight changes.*weights=1.*leave weights out"),
    (lambda: Group(Group(TopK(1), by=rows), by=rows), TypeError, "TopK or NM"),
    (lambda: Weighted(TopK(1), 1.0), TypeError, "separable"),
    (lambda: NM(2, 4).check(torch.ones(8)), ValueError, r"\(8,\) has none"),
    (lambda: NM(2, 4).check(torch.ones(3, 6)), ValueError, r"multiple of 4 inputs, got 6.*\(3, 6\).*w\.shape\[1\]"),
    (lambda: NM(2, 4).prox(torch.ones(3, 6), 1.0), ValueError, "multiple of 4 inputs, got 6"),
    (lambda: NM(2, 4).check(torch.ones(8, 3, 3, 3)), ValueError, "got 3"),
    (lambda: Group(NM(2, 4), by=rows).check(torch.ones(6, 4)), ValueError, "multiple of 4 groups, got 6"),
    (lambda: Group(TopK(1), by=columns).check(torch.ones(6)), ValueError, "columns"),
    (lambda: TopK(1).check(torch.ones(2, dtype=torch.int64)), TypeError, "real floating"),
    (lambda: Group(TopK(1), by=rows).check(torch.ones(2, dtype=torch.complex64)), TypeError, "real floating"),
    (lambda: TopK(3).prox(torch.ones(4, dtype=torch.int64), 1.0), TypeError, "real floating"),
]  # fmt: skip


@pytest.mark.parametrize(("act", "error", "message"), BAD, ids=range(len(BAD)))
def test_bad_input_is_told(act, error, message):
    with pytest.raises(error, match=message):
        act()


def test_a_share_that_leaves_nothing_of_a_layer_is_told():
    layer = torch.nn.Linear(3, 2)
    with pytest.warns(UserWarning, match=r"TopK\(keep=0\.1\) keeps none of 6 entries.*TopK\(1\)"):
        attach(TopK(0.1), layer)
    with pytest.warns(UserWarning, match="keeps none of 2 groups"):
        attach(Group(TopK(0.1), by=rows), layer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attach(TopK(0), layer)
        attach(TopK(0.2), layer)


def rows_of(w: torch.Tensor) -> torch.Tensor:
    """Blocks of four inputs, as `to_sparse_semi_structured` reads a matrix."""
    return (w.reshape(-1, 4) != 0).sum(1)


def test_two_of_four_is_the_pattern_of_sparse_tensor_cores():
    linear, conv = normal((32, 64)), normal((32, 64, 3, 3))
    assert (rows_of(NM(2, 4).prox(linear, 1.0)) == 2).all()
    kept = NM(2, 4).prox(conv, 1.0)
    assert (rows_of(kept.movedim(1, -1).flatten(1)) == 2).all()
    assert torch.equal(kept[:, :, 1, 2], NM(2, 4).prox(conv[:, :, 1, 2].contiguous(), 1.0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_torchs_compressed_form_of_two_of_four_gives_back_every_entry(dtype):
    """The layout of `to_sparse_semi_structured`, which itself needs CUDA; of another matrix it loses entries."""
    from torch.sparse import _semi_structured_conversions as torchs

    for w in (normal((64, 128)), normal((32, 64, 3, 3)), 0.0 * normal((32, 64))):
        kept, dense = (x.to(dtype).movedim(1, -1).flatten(1) for x in (NM(2, 4).prox(w, 1.0), w))
        back = torchs.sparse_semi_structured_to_dense_cutlass(*torchs.sparse_semi_structured_from_dense_cutlass(kept))
        assert torch.equal(back, kept)
        if w.any():
            lost = torchs.sparse_semi_structured_to_dense_cutlass(
                *torchs.sparse_semi_structured_from_dense_cutlass(dense)
            )
            assert not torch.equal(lost, dense)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.filterwarnings("ignore:.*SparseSemiStructuredTensor is in prototype stage")
def test_torch_takes_two_of_four_on_cuda():
    w = NM(2, 4).prox(torch.randn(128, 256, device="cuda").half(), 1.0)
    x = torch.randn(64, 256, device="cuda").half()
    sparse = torch.sparse.to_sparse_semi_structured(w)
    torch.testing.assert_close(torch.nn.functional.linear(x, sparse), x @ w.T, rtol=1e-2, atol=1e-1)


def test_they_are_penalties():
    assert all(issubclass(kind, Penalty) for kind in (TopK, NM))
