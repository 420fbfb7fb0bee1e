"""An ablation's rows and tables as text, files and data frames; rows that are read from a directory."""

import csv
import json
import math
import sys
from itertools import product

import pytest
from helpers import QUICK
from hypothesis import given
from hypothesis import strategies as st

from torchreg import L1, MCP
from torchreg.ablation import ablate
from torchreg.ablation.json_values import loads
from torchreg.ablation.results.ablation import Ablation
from torchreg.ablation.results.table import Table

NAN, INF = math.nan, math.inf
ROW = {
    "penalty": "L1", "alpha": 0.1, "seed": 3, "width": [8, 16], "mode": "independent", "status": "ok",
    "test_loss": NAN, "train": 1 / 3, "val_loss": 1e-300, "layers": {"0.weight": 0.5, "b": INF}, "note": None,
    "seconds": 0.25, "attempt": 1, "error": 'line 1\r\nline "2", é', "key": "ab12",
}  # fmt: skip
ABLATION = Ablation((ROW,), ("width",), ("test_loss", "train", "val_loss", "layers", "note"))
ORDER = [
    "penalty", "alpha", "seed", "width", "mode", "status", "val_loss", "train", "layers", "note", "test_loss",
    "seconds", "attempt", "error", "key",
]  # fmt: skip


def read_csv(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file, strict=True))


def run(penalty, seed, cell, width=1):
    if seed == 2:
        raise RuntimeError("out of luck")
    cell.report(epoch=1, loss=penalty.alpha)
    return {"val": penalty.alpha * width + seed, "layers": {"0": 0.5}}


def test_csv_has_validation_first_test_last_and_every_digit(tmp_path):
    ABLATION.to_csv(tmp_path / "rows.csv")
    head, line = read_csv(tmp_path / "rows.csv")
    assert head == ORDER
    told = dict(zip(head, line, strict=True))
    assert float(told["train"]) == 1 / 3
    assert float(told["val_loss"]) == 1e-300
    assert math.isnan(float(told["test_loss"]))
    assert (told["note"], told["error"], json.loads(told["width"])) == ("", ROW["error"], [8, 16])
    assert loads(told["layers"]) == ROW["layers"]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "=cmd|' /C calc'!A0"])
def test_no_text_in_csv_is_a_formula(tmp_path, text):
    Table((text, "n"), ((text, -1.5),)).to_csv(tmp_path / "t.csv")
    assert read_csv(tmp_path / "t.csv") == [[f"'{text}", "n"], [f"'{text}", "-1.5"]]


@given(st.lists(st.tuples(st.text(), st.floats(allow_nan=False), st.integers()), max_size=5))
@QUICK
def test_csv_gives_text_and_numbers_back(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    Table(("text", "x", "k"), tuple(rows)).to_csv(path)
    _, *found = read_csv(path)
    for (text, x, k), (told, y, j) in zip(rows, found, strict=True):
        assert told.removeprefix("'") == text.removeprefix("'")
        assert not told.startswith(("=", "+", "-", "@", "\t", "\r"))
        assert (float(y), int(j)) == (x, k)


def test_jsonl_is_strict_and_loses_nothing(tmp_path):
    ABLATION.to_jsonl(tmp_path / "rows.jsonl")
    (line,) = (tmp_path / "rows.jsonl").read_text(encoding="ascii").splitlines()
    json.loads(line, parse_constant=pytest.fail)
    found = loads(line)
    assert list(found) == ORDER
    assert math.isnan(found.pop("test_loss"))
    assert found == {name: value for name, value in ROW.items() if name != "test_loss"}


def test_a_data_frame_has_the_columns_and_the_numbers():
    pandas = pytest.importorskip("pandas")
    frame = ABLATION.to_pandas()
    assert list(frame.columns) == ORDER
    assert frame["layers"][0] == ROW["layers"]
    summary = Ablation(tuple(ROW | {"seed": k, "train": k} for k in range(4)), ("width",), ("train",)).summary()
    assert summary.to_pandas()["train"].tolist() == [1.5]
    assert len(Table(("a",), ()).to_pandas()) == 0
    assert pandas.api.types.is_float_dtype(frame["alpha"])


def test_without_pandas_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install pandas"):
        ABLATION.to_pandas()


def test_text_shows_means_with_intervals_and_one_line_a_row():
    columns = ("penalty", "n", "loss", "loss.low", "loss.high", "loss.se", "loss.n", "loss.nan", "loss.other")
    rows = [("a\x1b[31m\nb", 3, 2.0, 1.5, 2.5, 0.1, 3, 0, None), ("x" * 100, 1, NAN, NAN, NAN, NAN, 1, 0, True)]
    head, first, second = repr(Table(columns, tuple(rows))).splitlines()
    assert head.split() == ["penalty", "n", "loss", "loss.other"]
    assert first.split() == [r"a\x1b[31m\nb", "3", "2", "[1.5,", "2.5]", "-"]
    assert second.split() == ["x" * 57 + "...", "1", "nan", "[-]", "True"]


def test_long_tables_print_their_beginning():
    lines = repr(Table(("k",), tuple((k,) for k in range(250)))).splitlines()
    assert len(lines) == 102
    assert lines[-1] == "... and 150 more rows; to_csv writes all."


def test_tables_are_read_by_row_and_by_column():
    table = Table(("a", "b"), ((1, "x"), (2, "y")))
    assert (len(table), list(table)[1], table.column("b")) == (2, {"a": 2, "b": "y"}, ("x", "y"))
    with pytest.raises(ValueError, match="No column 'c'; the columns are a, b"):
        table.column("c")
    with pytest.raises(ValueError, match="needs 2 values"):
        Table(("a", "b"), ((1,),))


def test_an_ablation_is_read_from_its_directory(tmp_path):
    out = tmp_path / "run"
    with pytest.warns(RuntimeWarning, match="failed"):
        ablate(run, [L1(1.0), MCP(1.0)], [0.0, 0.5], seeds=range(3), grid={"width": [1, 2]}, out=out, progress=False)
    ablation = Ablation.load(out)
    assert (ablation.axes, ablation.metrics, ablation.dir) == (("width",), ("val", "layers"), out)
    assert repr(ablation.status()) == "16 done, 8 failed, 0 missing"
    assert {(r["n"], r["n_failed"]) for r in ablation.summary()} == {(2, 1)}
    assert [(r["alpha"], r["width"], r["val.diff"]) for r in ablation.paired()][:2] == [(0.5, 1, 0.5), (0.5, 2, 1.0)]
    points = [(p["penalty"], p["alpha"], p["seed"], p["width"], p["epoch"], p["loss"]) for p in ablation.curves()]
    assert sorted(points) == [
        (name, alpha, seed, width, 1, alpha)
        for name, alpha, seed, width in product(("L1", "MCP(gamma=3)"), (0.0, 0.5), (0, 1), (1, 2))
    ]
    for told in ("L1, MCP", "2: 0 to 0.5; seeds: 3", "axes: width; metrics: val, layers", str(out)):
        assert told in repr(ablation)


def test_status_knows_what_is_missing_whatever_the_order_of_axes():
    grid = {
        "penalties": ["L1"],
        "alphas": [0.0, 0.1],
        "seeds": [0, 1],
        "axes": {"b": [1], "a": [2]},
        "path": "ascending",
    }
    manifest = {"penalties": {"L1": {}}, "grids": [grid, grid | {"axes": {"a": [2], "b": [1]}}]}
    cell = {"penalty": "L1", "alpha": 0.1, "seed": 1, "a": 2, "b": 1, "mode": "path", "status": "ok"}
    rows = (cell, cell | {"seed": 0, "status": "failed"}, cell | {"mode": "independent"})
    found = Ablation(rows, ("b", "a"), (), manifest=manifest).status()
    assert (found.done, found.failed, found.missing) == (2, 1, 2)
    assert repr(Ablation(rows, ("b", "a"), ()).status()) == "2 done, 1 failed, ? missing"


def test_an_ablation_without_rows_prints_and_writes_its_head(tmp_path):
    ablation = Ablation((), (), ())
    assert "penalties: none" in repr(ablation)
    ablation.to_csv(tmp_path / "none.csv")
    assert read_csv(tmp_path / "none.csv") == [
        ["penalty", "alpha", "seed", "mode", "status", "seconds", "attempt", "error", "key"]
    ]
