"""Lines of an ablation: their names tell them apart, and say no more than that; what is better, by a metric's name."""

import itertools

import numpy as np
import pytest
from ablations import ablation, grid, row

from torchreg.ablation.results.curves import lines, namer
from torchreg.ablation.results.metric_names import less_is_better
from torchreg.ablation.results.overview import Overview


def test_rows_of_one_line_differ_in_alpha_and_seed_alone():
    rows = [row(p, a, s, axes={"x": x}) for p, a, s, x in itertools.product("ab", (0.0, 1.0), (0, 1), (1, 2))]
    found = lines(rows, ("x",))
    assert list(found) == ["a, x=1", "a, x=2", "b, x=1", "b, x=2"]
    for line in found.values():
        assert len({(one["penalty"], one["x"]) for one in line}) == 1
        assert len({(one["alpha"], one["seed"]) for one in line}) == len(line) == 4


@pytest.mark.parametrize(
    "values", [(8, "8"), (True, "True"), (None, "None"), ([1], [1, 2]), ({"a": 1}, {"a": 2}), (0.1, 0.1 + 1e-16)]
)
def test_values_of_an_axis_that_differ_are_named_differently(values):
    rows = [row(axes={"x": value}) for value in values]
    assert len({namer(rows, ("x",))(one) for one in rows}) == 2


def test_equal_numbers_are_one_line_and_bools_are_none():
    rows = [row(axes={"x": x}, seed=k) for k, x in enumerate((0, 0.0, -0.0, False, [1], [1.0]))]
    assert [len(line) for line in lines(rows, ("x",)).values()] == [3, 1, 2]
    assert [len(line) for line in lines(rows, ("x",), {"x": 0.0}).values()] == [3]
    assert [len(line) for line in lines(rows, ("x",), {"x": False}).values()] == [1]
    assert [len(line) for line in lines(rows, ("x",), {"x": np.int64(0)}).values()] == [3]


def test_a_mode_and_an_axis_that_some_rows_lack_count():
    rows = [row(), row(axes={"x": 1}), row(mode="path")]
    assert set(lines(rows, ("x",))) == {
        "L1, x=None, mode=independent", "L1, x=1, mode=independent", "L1, x=None, mode=path",
    }  # fmt: skip


@pytest.mark.parametrize(
    "metric", ["val_loss", "loss", "testLoss", "NLL", "val.rmse", "error_rate", "valMSE", "ppl", "trainLOSS"]
)
def test_losses_and_costs_are_known_by_their_names(metric):
    assert less_is_better(metric)


@pytest.mark.parametrize("metric", ["accuracy", "sparsity", "lossless", "closeness", "f1", "auc", "", "terror", "$"])
def test_other_names_mean_that_more_is_better(metric):
    assert not less_is_better(metric)


def test_the_front_is_for_the_directions_that_are_stated():
    of = ablation(grid())
    overview = Overview.of(of)
    assert overview.minimize == {"val_loss"}
    assert overview.against_sparsity == ("val_accuracy", "val_loss")
    accuracy, loss = (
        {(r["penalty"], r["alpha"]) for r in overview.front(metric)} for metric in overview.against_sparsity
    )
    assert accuracy == loss, "val_loss is 1 - val_accuracy"
    assert len(Overview.of(of, minimize=[]).front("val_loss")) == 1, "most sparse, and most lost"
