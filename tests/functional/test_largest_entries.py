"""Exactly the k largest of several tensors: against sorting in exact arithmetic, on each way to find them."""

import math
import random

import pytest
import torch

from torchreg.functional import largest_entries
from torchreg.functional.largest_entries import decimal_ratio, keep_largest, median_of_moved, metric_size

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
INF, NAN = math.inf, math.nan
ODD = [0.0, -0.0, INF, -INF, NAN, 1e-45, -1e-45, 3e38, -3e38, 1.0, 1.0000001, -1.0]


def by_sorting(scores, k):
    """The same by Python's stable sort of all numbers."""
    flat = [x for s in scores for x in s.double().flatten().tolist()]
    order = sorted(range(len(flat)), key=lambda i: (math.isnan(flat[i]), -flat[i] if flat[i] == flat[i] else 0.0))
    chosen = set(order[:k])
    mask = torch.tensor([i in chosen for i in range(len(flat))], dtype=torch.bool)
    return [m.reshape(s.shape) for m, s in zip(mask.split([s.numel() for s in scores]), scores, strict=True)]


def drawn(seed):
    """Some tensors of odd shapes and dtypes, with ties and odd numbers."""
    draw = random.Random(seed)
    shapes = draw.sample([(), (0,), (1,), (5,), (3, 4), (2, 3, 2), (7, 1)], draw.randint(1, 4))
    ties = [-1.0, 0.0, 0.25, 1.0, 2.0]
    pick = {0: lambda: draw.gauss(0, 1), 1: lambda: draw.choice(ties), 2: lambda: draw.choice(ODD)}
    kind = draw.randrange(4)
    tensors = []
    for shape in shapes:
        n = math.prod(shape)
        numbers = [pick[draw.randrange(3) if kind == 3 else kind]() for _ in range(n)]
        tensors.append(torch.tensor(numbers, dtype=torch.float64).reshape(shape).to(draw.choice(DTYPES)))
    return tensors


@pytest.mark.parametrize("way", ["k-th value", "top k", "bisection"])
def test_the_same_as_sorting_all_numbers(way, monkeypatch):
    if way == "top k":
        monkeypatch.setattr(largest_entries, "_kth_largest", largest_entries._end_of_top)
    for seed in range(150):
        scores = drawn(seed)
        n = sum(s.numel() for s in scores)
        for k in {0, 1, n // 3, n // 2, (2 * n) // 3, max(n - 1, 0), n, n + 3}:
            found = keep_largest(scores, torch.tensor(k) if way == "bisection" else k)
            for mask, wanted in zip(found, by_sorting(scores, k), strict=True):
                assert mask.dtype is torch.bool
                assert torch.equal(mask, wanted), (seed, k, scores)


def test_no_entry_is_kept_of_nothing_and_k_may_not_be_negative():
    assert keep_largest([], 3) == []
    assert keep_largest([torch.zeros(0, 3)], 2)[0].shape == (0, 3)
    with pytest.raises(ValueError, match="k >= 0, got -1"):
        keep_largest([torch.ones(2)], -1)


def test_views_of_any_layout_keep_their_order():
    x = torch.randn(6, 4)
    for view in (x.T, x[::2], x[:, 1:3], x.expand(2, 6, 4)):
        assert torch.equal(*(keep_largest([v], 5)[0] for v in (view, view.contiguous())))


@pytest.mark.parametrize("k", [1, 4, 8])
def test_under_vmap_each_problem_has_its_k(k):
    batch = torch.randn(5, 3, 3).round(decimals=1)
    found = torch.vmap(lambda x: keep_largest([x], k)[0])(batch)
    assert torch.equal(found, torch.stack([keep_largest([x], k)[0] for x in batch]))
    assert (found.flatten(1).sum(1) == k).all()


def test_compiled_it_is_one_graph_and_the_same():
    scores = [torch.randn(40, 3).round(decimals=1), torch.randn(30, dtype=torch.float64).bfloat16()]
    compiled = torch.compile(lambda a, b, k: keep_largest([a, b], k), fullgraph=True, backend="aot_eager")
    for k in (3, torch.tensor(17)):
        for found, wanted in zip(compiled(*scores, k), by_sorting(scores, int(k)), strict=True):
            assert torch.equal(found, wanted)


def test_sizes_in_a_metric_have_the_order_of_exact_costs_and_stay_in_range():
    w = torch.tensor([1e-30, -3e-30, 0.0, 1e30, -3e30, 2.0, INF, 5.0, 0.0, 5.0, INF], dtype=torch.float32)
    t = torch.tensor([1e-3, 1e-3, 1e-3, 1e-3, 1e-3, 4.0, 1.0, INF, 0.0, 0.0, INF], dtype=torch.float32)
    size = metric_size(w, t)
    wanted = [1e-30 / 1e-3**0.5, 3e-30 / 1e-3**0.5, 0.0, 1e30 / 1e-3**0.5, 3e30 / 1e-3**0.5, 1.0]
    torch.testing.assert_close(size[:6], torch.tensor(wanted))
    assert size[6:].tolist() == [INF, 0.0, 0.0, INF, INF]
    assert metric_size(torch.tensor([NAN]), 0.1).isnan().all()
    assert torch.equal(metric_size(torch.tensor([3.0]).half(), 4.0), torch.tensor([1.5]))


def test_a_share_is_the_ratio_that_its_decimal_digits_say():
    for percent in range(101):
        above, below = decimal_ratio(percent / 100)
        assert above * 100 == percent * below
    assert decimal_ratio(0.29) == (29, 100)
    assert int(100 * 0.29) == 28


@pytest.mark.parametrize("zeros", [0, 3, 40])
@pytest.mark.parametrize("dtypes", [(torch.float32, torch.bfloat16), (torch.float32, torch.float64)])
def test_the_median_of_what_is_not_zero(zeros, dtypes):
    sizes = [torch.rand(5, 7).to(dtypes[0]), torch.rand(6).to(dtypes[1])]
    for size in sizes:
        size.view(-1)[:zeros] = 0.0
    moved = sorted(x for size in sizes for x in size.flatten().tolist() if x)
    found = median_of_moved(sizes)
    assert found.isnan() if not moved else found == torch.tensor(moved[len(moved) // 2], dtype=found.dtype)
