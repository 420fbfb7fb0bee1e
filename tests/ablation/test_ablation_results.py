"""What an ablation's rows say: intervals against scipy, fronts and choices against brute force, and their laws."""

import itertools
import math
import warnings
from collections import Counter

import numpy as np
import pytest
from helpers import QUICK
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from torchreg.ablation.results.ablation import Ablation
from torchreg.ablation.results.intervals import t_quantile
from torchreg.ablation.results.metric_names import in_order, is_test

NAN, INF = math.nan, math.inf


def row(alpha=0.0, seed=0, penalty="L1", mode="independent", status="ok", axes=None, **metrics):
    return {
        "penalty": penalty, "alpha": alpha, "seed": seed, **(axes or {}), "mode": mode, "status": status, **metrics,
        "seconds": 1.0, "attempt": 1, "error": None, "key": f"{penalty}{alpha}{seed}",
    }  # fmt: skip


def of(*rows, axes=(), metrics=("val",)):
    return Ablation(tuple(rows), axes, metrics)


def curve(scores, penalty="L1", **more):
    """Rows of the metric ``val``: alpha -> a score for each seed."""
    return [row(alpha, k, penalty, val=v, **more) for alpha, values in scores.items() for k, v in enumerate(values)]


def only(table):
    (found,) = table
    return found


def drawn(alphas=(0.0, 0.1, 1.0), seeds=6, penalties=("L1", "MCP"), generator=0):
    normal = np.random.default_rng(generator).normal
    return [
        row(alpha, seed, name, val=normal(), test_loss=normal())
        for name, alpha, seed in itertools.product(penalties, alphas, range(seeds))
    ]


# Intervals


@pytest.mark.parametrize("ci", [0.01, 0.5, 0.9, 0.95, 0.99, 0.9999])
@pytest.mark.parametrize("df", [*range(1, 31), 99, 100, 999, 10_000, 99_999])
def test_quantiles_are_students(ci, df):
    assert t_quantile(ci, df) == pytest.approx(stats.t.ppf((1 + ci) / 2, df), rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("ci", [0.5, 0.95])
def test_summary_is_scipys_interval(ci):
    rows = drawn()
    for group in of(*rows, metrics=("val", "test_loss")).summary(ci=ci):
        for metric in ("val", "test_loss"):
            x = [r[metric] for r in rows if (r["penalty"], r["alpha"]) == (group["penalty"], group["alpha"])]
            low, high = stats.t.interval(ci, len(x) - 1, loc=np.mean(x), scale=stats.sem(x))
            told = [group[f"{metric}{kind}"] for kind in ("", ".low", ".high", ".se")]
            assert told == pytest.approx([np.mean(x), low, high, stats.sem(x)], rel=1e-10)
            assert group["n"] == group[f"{metric}.n"] == 6
            assert group["n_failed"] == group[f"{metric}.nan"] == 0


@given(st.permutations(drawn(seeds=3)))
@QUICK
def test_summary_does_not_depend_on_the_order_of_rows(rows):
    one, other = of(*rows).summary(), of(*drawn(seeds=3)).summary()
    assert one.columns == other.columns
    for left, right in zip(one, other, strict=True):
        assert list(left.values())[:5] == list(right.values())[:5]
        numbers = [list(r.values())[5:] for r in (left, right)]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-12, abs=1e-14)  # sums are rounded in another order


def test_one_seed_has_a_mean_and_no_interval():
    table = of(row(val=0.5)).summary()
    found = only(table)
    assert (found["val"], found["n"]) == (0.5, 1)
    assert all(math.isnan(found[f"val.{kind}"]) for kind in ("low", "high", "se"))
    assert "0.5 [-]" in repr(table)


def test_equal_numbers_have_no_spread():
    found = only(of(*curve({0.0: [0.1] * 3})).summary())
    assert (found["val.low"], found["val"], found["val.high"]) == (0.1, 0.1, 0.1)


def test_a_diverged_seed_is_a_result():
    table = of(*curve({0.0: [1.0, NAN, 3.0], 0.1: [1.0, 2.0, 3.0]})).summary()
    diverged, fine = table
    assert (diverged["val.n"], diverged["val.nan"], fine["val.nan"]) == (3, 1, 0)
    assert all(math.isnan(diverged[name]) for name in ("val", "val.low", "val.high"))
    assert fine["val"] == 2.0
    assert "val.nan" in repr(table)


def test_infinite_numbers_have_a_mean_and_no_interval():
    found = only(of(*curve({0.0: [1.0, INF, 3.0]})).summary())
    assert found["val"] == INF
    assert math.isnan(found["val.low"])


def test_failed_rows_are_counted_and_nothing_else():
    rows = [*curve({0.0: [1.0, 3.0]}), row(seed=2, status="failed"), row(1.0, status="failed", val=9.0)]
    baseline, other = of(*rows).summary()
    assert (baseline["n"], baseline["n_failed"], baseline["val"]) == (2, 1, 2.0)
    assert (other["n"], other["n_failed"], other["val.n"]) == (0, 1, 0)
    assert math.isnan(other["val"])


def test_a_metric_that_some_rows_lack_has_its_own_n():
    rows = [row(seed=0, val=1.0, extra=4), row(seed=1, val=3.0, extra=None), row(seed=2, val=2.0)]
    table = of(*rows, metrics=("val", "extra")).summary()
    found = only(table)
    assert (found["n"], found["val.n"], found["extra.n"], found["extra.nan"], found["extra"]) == (3, 3, 1, 0, 4.0)
    assert "extra.n" in repr(table)
    assert "val.n" not in repr(table)


def test_bools_count_and_text_is_left_out():
    rows = [
        row(seed=k, done=k > 0, note="x", layers={"0": 0.5}, mixed=[1, "a", None][k], huge=10**400) for k in range(3)
    ]
    table = of(*rows, metrics=("done", "note", "layers", "mixed", "huge")).summary()
    assert only(table)["done"] == pytest.approx(2 / 3)
    assert not {"note", "layers", "mixed", "huge"} & set(table.columns)


def test_modes_are_never_mixed():
    rows = curve({0.0: [1.0, 2.0], 0.1: [3.0, 4.0]}) + curve({0.0: [5.0, 6.0], 0.1: [7.0, 8.0]}, mode="path")
    ablation = of(*rows)
    assert [(r["mode"], r["val"]) for r in ablation.summary(by="penalty")] == [("independent", 2.5), ("path", 6.5)]
    assert [r["val.diff"] for r in ablation.paired()] == [2.0, 2.0]
    assert [(r["mode"], r["val"]) for r in ablation.best("val")] == [("path", 7.5), ("independent", 3.5)]


def test_by_groups_by_what_it_says():
    rows = [
        row(alpha, seed, axes={"width": w, "opt": o}, val=float(w))
        for alpha, seed, w, o in itertools.product((0.0, 1.0), range(2), (8, 16), (["a"], ["b"]))
    ]
    ablation = of(*rows, axes=("width", "opt"))
    assert [(r["width"], r["n"], r["val"]) for r in ablation.summary(by=("width",))] == [(8, 8, 8.0), (16, 8, 16.0)]
    assert Counter(r["n"] for r in ablation.summary()) == {2: 8}
    assert [r["opt"] for r in ablation.summary(by="opt")] == [["a"], ["b"]]


def test_groups_ascend_and_a_bool_is_no_number():
    values = [True, "b", 10, NAN, "a", 9.5, None, False, 1, 10**400]
    rows = [row(axes={"flag": value}, val=1.0) for value in values]
    order = [r["flag"] for r in of(*rows, axes=("flag",)).summary()]
    assert [repr(v) for v in order] == ["False", "True", "1", "9.5", "10", repr(10**400), "nan", "'a'", "'b'", "None"]


# Pairs


@given(st.permutations(range(6)), st.floats(0.2, 0.99))
@QUICK
def test_pairs_are_those_of_a_paired_t_test(order, ci):
    rows = drawn()
    table = of(*(rows[6 * block + k] for block in range(6) for k in order)).paired(ci=ci)
    assert len(table) == 4
    for found in table:
        x, base = (
            [r["val"] for r in rows if (r["penalty"], r["alpha"]) == (found["penalty"], alpha)]
            for alpha in (found["alpha"], 0.0)
        )
        interval = stats.ttest_rel(x, base).confidence_interval(ci)
        told = [found[f"val.diff{kind}"] for kind in ("", ".low", ".high")]
        assert told == pytest.approx([np.mean(x) - np.mean(base), *interval], rel=1e-9, abs=1e-12)
        assert (found["n"], found["baseline"]) == (6, found["penalty"])


def test_only_equal_seeds_and_axes_are_paired():
    rows = [
        row(0.0, 1, axes={"width": 8}, val=1.0), row(0.0, 2, axes={"width": 16}, val=5.0),
        row(0.1, 1, axes={"width": 8}, val=4.0), row(0.1, 2, axes={"width": 8}, val=100.0),
        row(0.1, 2, axes={"width": 16}, val=6.0), row(0.1, 3, axes={"width": 16}, status="failed"),
        row(0.2, 7, axes={"width": 16}, val=6.0),
    ]  # fmt: skip
    table = of(*rows, axes=("width",)).paired()
    told = {(r["alpha"], r["width"]): (r["n"], r["n_failed"], r["baseline"], r["val.diff"]) for r in table}
    assert told[0.1, 8] == (1, 0, "L1", 3.0)
    assert told[0.1, 16] == (1, 1, "L1", 1.0)
    assert told[0.2, 16][:3] == (0, 0, None)
    assert math.isnan(told[0.2, 16][3])


def test_alpha_zero_of_another_penalty_serves_where_the_own_is_missing():
    rows = curve({0.0: [1.0, 2.0], 0.1: [2.0, 4.0]}, "MCP") + curve({0.1: [3.0, 4.0]}, "L1")
    found = {r["penalty"]: (r["baseline"], r["n"], r["val.diff"]) for r in of(*rows).paired()}
    assert found == {"L1": ("MCP", 2, 2.0), "MCP": ("MCP", 2, 1.5)}


@pytest.mark.parametrize(("alpha", "mode"), [(0.5, "independent"), (0.0, "path")])
def test_no_other_baseline_serves(alpha, mode):
    """At another strength penalties differ, and on a path what came before does."""
    rows = curve({alpha: [1.0], 1.0: [2.0]}, "MCP", mode=mode) + curve({1.0: [3.0]}, "L1", mode=mode)
    assert [(r["penalty"], r["baseline"]) for r in of(*rows).paired(alpha)] == [("L1", None), ("MCP", "MCP")]


def test_nan_and_missing_values_in_pairs():
    rows = [row(0.0, 0, val=NAN), row(0.0, 1, val=1.0), row(0.0, 2, val=1.0)]
    rows += [row(0.1, 0, val=1.0), row(0.1, 1, val=None), row(0.1, 2, val=2.0)]
    found = only(of(*rows).paired())
    assert (found["n"], found["val.diff.n"], found["val.diff.nan"]) == (3, 2, 1)
    assert math.isnan(found["val.diff"])


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (curve({0.1: [1.0], 0.2: [1.0]}), "baseline alpha=0; those there: 0.1, 0.2"),
        ([row(0.0, 0, val=1.0), row(0.1, 1, val=1.0)], r"alpha=0 \(seeds \[0\]\) and one with another \(seeds \[1\]\)"),
        ([row(0.0, status="failed"), row(0.1, val=1.0)], "those there: 0.1"),
        (curve({0.0: [1.0, 2.0]}), r"another \(seeds \[\]\)"),
    ],
)
def test_without_a_pair_the_error_says_what_is_there(rows, told):
    with pytest.raises(ValueError, match=told):
        of(*rows).paired()


# Choices


def test_best_takes_each_penaltys_best_mean_and_the_larger_of_equal_ones():
    rows = curve({0.0: [1.0, 1.0], 0.1: [3.0, 3.0], 0.2: [3.0, 3.0], 0.3: [2.0, 2.0]})
    rows += curve({0.0: [0.0, 0.0], 0.1: [9.0, 9.0], 0.2: [9.0, NAN]}, "MCP")
    ablation = of(*rows)
    assert [(r["penalty"], r["alpha"]) for r in ablation.best("val")] == [("MCP", 0.1), ("L1", 0.2)]
    assert [(r["penalty"], r["alpha"]) for r in ablation.best("val", "min")] == [("MCP", 0.0), ("L1", 0.0)]


@given(st.lists(st.lists(st.floats(-10, 10), min_size=3, max_size=3), min_size=1, max_size=8), st.booleans())
@QUICK
def test_one_se_takes_the_largest_alpha_within_one_error_of_the_best(scores, less):
    means, errors = [np.mean(s) for s in scores], [stats.sem(s) for s in scores]
    sign = -1 if less else 1
    top = max(range(len(scores)), key=lambda k: sign * means[k])
    found = only(of(*curve(dict(enumerate(scores)))).best("val", "1se-min" if less else "1se"))
    slack = 1e-9  # numpy's mean is rounded otherwise
    assert sign * means[found["alpha"]] >= sign * means[top] - errors[top] - slack
    assert all(sign * m < sign * means[top] - errors[top] + slack for m in means[found["alpha"] + 1 :])


def test_choosing_on_test_data_warns():
    rows = [row(k, s, val_loss=1.0, test_loss=1.0) for k, s in itertools.product((0.0, 0.1), range(2))]
    ablation = of(*rows, metrics=("val_loss", "test_loss"))
    with pytest.warns(UserWarning, match="choose on a validation metric") as caught:
        ablation.best("test_loss", "min")
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert only(ablation.best("val_loss", "min"))["test_loss"] == 1.0


def test_names_tell_the_data():
    assert all(map(is_test, ("test", "test_acc", "test/acc", "test.acc", "Test loss")))
    assert not any(map(is_test, ("testing", "latest", "val_test", "tests_passed")))
    assert in_order(["test", "b", "val_x", "test_a", "valid/y", "value"]) == (
        "val_x", "valid/y", "b", "value", "test", "test_a",
    )  # fmt: skip


def test_a_penalty_without_a_finite_mean_is_named():
    rows = curve({0.1: [1.0, 2.0]}) + curve({0.1: [NAN, 2.0]}, "MCP")
    with pytest.warns(UserWarning, match="MCP, left out"):
        assert [r["penalty"] for r in of(*rows).best("val")] == ["L1"]
    with pytest.raises(ValueError, match=r"No mean of 'val' is finite \(MCP\)"):
        of(*curve({0.1: [NAN, 2.0]}, "MCP")).best("val")


def test_one_se_needs_two_seeds():
    with pytest.raises(ValueError, match="at least two seeds at the best alpha, got 1 for L1"):
        of(*curve({0.0: [1.0, 1.0], 0.1: [2.0]})).best("val", "1se")


coarse = st.sampled_from([0.0, 1.0, 2.0, 3.0, NAN, -INF])


@given(st.lists(st.tuples(coarse, coarse, coarse), min_size=1, max_size=12), st.sets(st.sampled_from("abc")))
@QUICK
def test_the_front_is_brute_forces(points, less):
    rows = [row(float(k), a=a, b=b, c=c) for k, (a, b, c) in enumerate(points)]
    signed = [tuple(-v if name in less else v for name, v in zip("abc", p, strict=True)) for p in points]

    def beats(p, q):
        return all(x >= y for x, y in zip(p, q, strict=True)) and p != q

    whole = [k for k, p in enumerate(signed) if not any(map(math.isnan, p))]
    front = {float(k) for k in whole if not any(beats(signed[j], signed[k]) for j in whole)}
    table = of(*rows, metrics=("a", "b", "c")).pareto("a", "b", "c", minimize=tuple(less))
    assert {r["alpha"] for r in table} == front
    first = [-r["a"] if "a" in less else r["a"] for r in table]
    assert first == sorted(first, reverse=True)


def test_each_mode_has_its_front_and_minimize_names_count():
    rows = [row(0.0, val=1.0, loss=2.0), row(0.1, val=2.0, loss=1.0), row(0.1, mode="path", val=0.0, loss=9.0)]
    ablation = of(*rows, metrics=("val", "loss"))
    told = [(r["alpha"], r["mode"]) for r in ablation.pareto("val", minimize="loss")]
    assert told == [(0.1, "independent"), (0.1, "path")]
    assert repr(ablation.pareto("val", "loss", minimize=("loss",))) == repr(ablation.pareto("val", minimize="loss"))


# Bad input


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (lambda a: a.best("acc"), "Metric 'acc' is not there; metrics with a mean: val, sparsity"),
        (lambda a: a.best("note"), r"'note' is no number everywhere \(str\); metrics with a mean: val, sparsity"),
        (lambda a: a.pareto("val", "acc"), "Metric 'acc' is not there"),
        (lambda a: a.pareto("val"), "at least two metrics"),
        (lambda a: a.best("val", "best"), "rule must be one of 'max', 'min', '1se', '1se-min', got 'best'"),
        (lambda a: a.summary(by=("lr",)), "by has 'lr'.* choose of penalty, alpha, mode, seed"),
        (lambda a: a.summary(ci=95), "between 0 and 1, got 95"),
        (lambda a: a.paired(ci=0.0), "between 0 and 1, got 0.0"),
        (lambda a: a.curves(), "of no directory"),
        (lambda a: of().summary(), "no rows yet"),
        (lambda a: of().paired(), "no rows yet"),
        (lambda a: of(*a.rows, a.rows[0]).summary(), "Two rows are of one cell, penalty='L1', alpha=0.0"),
        (lambda a: of(row(n=1), metrics=("n",)).summary(), "Two columns of this table are called 'n'"),
    ],
)
def test_bad_questions(ask, told):
    rows = [row(alpha, seed, val=1.0, sparsity=0.5, note="a") for alpha in (0.0, 0.1) for seed in range(2)]
    with pytest.raises(ValueError, match=told):
        ask(of(*rows, metrics=("val", "sparsity", "note")))


def test_an_ablation_in_which_all_failed_still_counts():
    ablation = of(row(status="failed"), row(seed=1, status="failed"), metrics=())
    assert [(r["n"], r["n_failed"]) for r in ablation.summary()] == [(0, 2)]
    with pytest.raises(ValueError, match="metrics with a mean: none"):
        ablation.best("val")
