"""An axis of a grid that no run looks at is told: its rows are copies of one another."""

import json
import pickle
import warnings

import pytest

from torchreg import L1, ablate
from torchreg.ablation.cell import Axes

READERS = {
    "by name": lambda cell: cell.axes["depth"],
    "by get": lambda cell: cell.axes.get("depth"),
    "all": lambda cell: dict(**cell.axes),
    "items": lambda cell: dict(cell.axes.items()),
    "copied": lambda cell: {**cell.axes},
    "as JSON": lambda cell: json.dumps(cell.axes),
    "pickled": lambda cell: pickle.dumps(cell.axes),
    "compared": lambda cell: cell.axes == {"depth": 1},
}


def called(run, out, **more):
    return ablate(run, L1(1.0), [0.1], grid={"depth": [1, 2]}, out=out, progress=False, **more)


@pytest.mark.parametrize("reader", READERS)
def test_whoever_reads_an_axis_is_not_told(reader, out):
    def run(penalty, cell):
        READERS[reader](cell)
        return {"loss": 1.0}

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(called(run, out).rows) == 2


def test_one_cell_that_reads_suffices(out):
    def run(penalty, cell, seed):
        return {"loss": float(seed and cell.axes["depth"])}

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = called(run, out, seeds=(0, 1)).rows
    assert sorted(row["loss"] for row in rows) == [0.0, 0.0, 1.0, 2.0]


def test_an_axis_that_is_an_argument_is_read(out):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = called(lambda penalty, cell, depth: {"loss": float(depth)}, out).rows
    assert [row["loss"] for row in rows] == [1.0, 2.0]


@pytest.mark.parametrize("width", [16, None])
def test_an_axis_that_nobody_reads_is_told_by_name(width, out):
    def run(penalty, cell, width=16):
        assert "depth" in cell.axes
        return {"loss": 1.0}

    with pytest.warns(UserWarning, match=r"No cell has read the axis 'depth'.*cell.axes\['depth'\]"):
        called(run, out)


def read_by_nobody(penalty, cell):
    return {"loss": 1.0}


def test_workers_tell_too(out):
    with pytest.warns(UserWarning, match="No cell has read the axis 'depth'"):
        called(read_by_nobody, out, workers=1)


def test_cells_that_fail_tell_nothing(out):
    def run(penalty, cell):
        raise RuntimeError

    with pytest.warns() as told:
        called(run, out)
    assert not any("has read" in str(w.message) for w in told)


def test_axes_are_a_dictionary():
    axes = Axes({"depth": 1})
    assert isinstance(axes, dict)
    assert axes == {"depth": 1}
    assert pickle.loads(pickle.dumps(axes)) == {"depth": 1}
    assert axes.get("width", 3) == 3
