"""Schedules are values: pure functions of the step that can be compared, printed, pickled and hashed."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchreg import schedules

CASES = [
    schedules.constant(0.1),
    schedules.linear(0.0, 0.3, 7, begin=2),
    schedules.cosine(0.3, 0.01, 9),
    schedules.cubic(0.0, 0.3, 10, begin=3, every=2),
    schedules.staircase(0.8, 0.5, 4),
    schedules.table({0: 0.0, 5: 0.2, 11: 0.1}),
]
RAMPS = (schedules.linear, schedules.cosine, schedules.cubic)
each_case = pytest.mark.parametrize("schedule", CASES, ids=lambda s: type(s).__name__)
each_ramp = pytest.mark.parametrize("ramp", RAMPS, ids=lambda r: r.__name__)
alphas = st.floats(0.0, 1e6)


@each_case
def test_a_schedule_is_a_value(schedule):
    for twin in (copy.deepcopy(schedule), pickle.loads(pickle.dumps(schedule)), eval(repr(schedule), vars(schedules))):
        assert twin == schedule
        assert hash(twin) == hash(schedule)
        assert [twin(k) for k in range(40)] == [schedule(k) for k in range(40)]
    assert sum(schedule == other for other in CASES) == 1
    with pytest.raises(AttributeError):
        schedule.every = 3


@each_case
def test_a_schedule_gives_python_floats_that_are_strengths_and_does_so_in_any_order(schedule):
    forward = [schedule(k) for k in range(60)]
    assert forward == [schedule(k) for k in reversed(range(60))][::-1]
    assert all(type(a) is float and math.isfinite(a) and a >= 0.0 for a in forward)


@each_ramp
@given(start=alphas, end=alphas, steps=st.integers(1, 10**6), begin=st.integers(0, 10**6), k=st.integers(0, 10**7))
def test_a_ramp_goes_from_start_to_end_exactly_and_never_back(ramp, start, end, steps, begin, k):
    schedule = ramp(start, end, steps, begin=begin)
    assert schedule(min(k, begin)) == schedule(begin) == start
    assert schedule(begin + steps) == schedule(begin + steps + k) == end
    before, after = schedule(k), schedule(k + 1)
    slack = 4e-16 * max(start, end)  # two products and a sum, each rounded to half an ulp
    assert min(start, end) - slack <= before <= max(start, end) + slack
    assert (after - before) * (end - start) >= -slack * abs(end - start)


def test_ramps_equal_their_formulas():
    # another order of operations: equal to a few ulps
    for k in range(11):
        x = k / 10
        line, wave, power = (ramp(0.4, 0.1, 10)(k) for ramp in RAMPS)
        assert line == pytest.approx(0.4 - 0.3 * x, rel=1e-14)
        assert wave == pytest.approx(0.1 + 0.3 * math.cos(math.pi * x / 2) ** 2, rel=1e-14)
        assert power == pytest.approx(0.1 + 0.3 * (1 - x) ** 3, rel=1e-14)


def test_a_cosine_is_torchs_learning_rate_schedule():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.4)
    theirs, ours = (
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20, eta_min=0.1),
        schedules.cosine(0.4, 0.1, 20),
    )
    for k in range(21):
        assert ours(k) == pytest.approx(theirs.get_last_lr()[0], rel=1e-12)  # torch's is a recursion
        optimizer.step()
        theirs.step()


def test_a_cubic_ramp_with_an_interval_holds_its_value_between_updates_and_ends_at_its_end():
    held, smooth = schedules.cubic(0.0, 1.0, 10, begin=5, every=4), schedules.cubic(0.0, 1.0, 10, begin=5)
    assert [held(k) for k in range(5, 15)] == [smooth(k) for k in (5, 5, 5, 5, 9, 9, 9, 9, 13, 13)]
    assert held(15) == 1.0


def test_a_staircase_and_a_table_of_the_same_stairs_agree():
    stairs = schedules.staircase(0.8, 0.5, 4)
    same = schedules.table([(8, 0.2), (0, 0.8), (4, 0.4), (12, 0.1)])
    assert [stairs(k) for k in range(16)] == [same(k) for k in range(16)]


BAD = {
    "negative": (lambda: schedules.constant(-1.0), ValueError, "alpha >= 0, got -1.0"),
    "nan": (lambda: schedules.linear(0.0, math.nan, 3), ValueError, "finite alpha"),
    "infinite": (lambda: schedules.cosine(math.inf, 0.0, 3), ValueError, "finite alpha"),
    "text": (lambda: schedules.constant("a"), TypeError, "number"),
    "tensor": (lambda: schedules.constant(torch.tensor(0.1)), TypeError, "strengths as numbers, got a tensor"),
    "no steps": (lambda: schedules.linear(0.0, 1.0, 0), ValueError, "steps as an int >= 1, got 0"),
    "half steps": (lambda: schedules.cubic(0.0, 1.0, 2.5), ValueError, r"steps as an int >= 1, got 2\.5"),
    "early": (lambda: schedules.cosine(0.0, 1.0, 3, begin=-1), ValueError, "begin as an int >= 0, got -1"),
    "no width": (lambda: schedules.staircase(0.1, 0.5, 0), ValueError, "every as an int >= 1"),
    "true": (lambda: schedules.staircase(0.1, 0.5, True), ValueError, "every as an int"),
    "no zero": (lambda: schedules.table({5: 0.1}), ValueError, r"strength for step 0, got steps \[5\]"),
    "empty": (lambda: schedules.table({}), ValueError, "strength for step 0"),
    "negative step": (lambda: schedules.table({0: 0.1, -2: 0.1}), ValueError, "each step as an int >= 0, got -2"),
}


@pytest.mark.parametrize(("make", "error", "says"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_with_what_was_given(make, error, says):
    with pytest.raises(error, match=says):
        make()
