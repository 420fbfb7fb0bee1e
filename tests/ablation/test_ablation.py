"""Ablations in one process: which cells there are, what is kept of them, what is never run twice."""

import enum
import json
import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from ablation_runs import noted, quick

from torchreg import L1, L2, MCP, Group, Weighted, rows
from torchreg.ablation import Ablation, Cell, LedgerError, ablate, logspace
from torchreg.ablation.ledger.rows import curves
from torchreg.ablation.plan import Plan

ablate = partial(ablate, progress=False)


def plan(**changes):
    given = {"penalties": [L1(1.0), L2(1.0)], "alphas": [0.0, 0.1], "seeds": range(2), "grid": None, "path": None}
    return Plan.of(**(given | changes))


def keys(plan):
    return [spec.key for chain in plan.chains() for spec in chain]


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# ------------------------------------------------------------------------------------------------ which cells


def test_a_plan_has_every_combination_once():
    chains = list(plan(grid={"width": [4, 8], "bias": [True, False]}).chains())
    cells = [(s.name, s.alpha, s.seed, s.axes["width"], s.axes["bias"]) for (s,) in chains]
    assert len(set(cells)) == len(cells) == 2 * 2 * 2 * 2 * 2
    assert len(set(keys(plan(grid={"width": [4, 8]})))) == 16
    assert all(spec.penalty.alpha == spec.alpha for (spec,) in chains)


def test_keys_depend_on_the_cell_alone():
    mine = keys(plan(grid={"width": [4], "lr": [0.1]}))
    assert keys(plan(penalties={"a": L1(7.0), "b": L2(3.0)}, grid={"lr": [0.1], "width": [4]})) == mine
    assert set(keys(plan())).isdisjoint(mine)
    assert set(keys(plan(path="descending"))).isdisjoint(keys(plan()))
    assert keys(plan(grid={"width": [0, [1, {"a": 2}]]})) == keys(plan(grid={"width": [-0.0, [1.0, {"a": 2.0}]]}))
    assert set(keys(plan(grid={"width": [0, 1]}))).isdisjoint(keys(plan(grid={"width": [False, True]})))


KEYS = """
from torchreg import L1, Group, Weighted, rows
from torchreg.ablation.plan import Plan
import torch
penalties = [Group(L1(1.0), by=rows), Weighted(L1(1.0), torch.arange(3.0))]
plan = Plan.of(penalties, [0.1], [0, 1], {"b": ["x"], "a": [{"q": 1, "p": 2}]}, None)
print([spec.key for chain in plan.chains() for spec in chain])
"""


def test_keys_are_the_same_in_every_process():
    printed = {
        subprocess.run(
            [sys.executable, "-c", KEYS], env=os.environ | {"PYTHONHASHSEED": h}, capture_output=True, check=True
        ).stdout
        for h in ("1", "2")
    }
    penalties = [Group(L1(1.0), by=rows), Weighted(L1(1.0), torch.arange(3.0))]
    here = plan(penalties=penalties, alphas=[0.1], grid={"b": ["x"], "a": [{"q": 1, "p": 2}]})
    assert printed == {f"{keys(here)}\n".encode()}


def test_names_are_what_tells_penalties_apart():
    penalties = [L1(1.0), MCP(1.0, gamma=2.5), MCP(1.0, gamma=3.0), Group(L1(1.0), by=rows), L1(1.0) + L2(0.1)]
    names = list(plan(penalties=penalties).penalties)
    assert names[:3] == ["L1", "MCP(gamma=2.5)", "MCP(gamma=3)"]
    assert len(set(names)) == len(names)
    assert not any("alpha=1" in name and "Sum" not in name for name in names[:4])
    assert list(plan(penalties={"lasso": L1(1.0)}).penalties) == ["lasso"]


def test_logspace_meets_itself():
    assert logspace(1e-4, 1.0, 5) == (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    assert logspace(1e-4, 1.0, 5, zero=True) == (0.0, *logspace(1e-4, 1.0, 5))
    assert set(logspace(1e-5, 0.3, 7)) <= set(logspace(1e-5, 0.3, 13)) <= set(logspace(1e-5, 0.3, 25))


BAD = {
    "no alpha": ({"alphas": []}, ValueError, "alphas is empty"),
    "one alpha, no list": ({"alphas": 0.1}, TypeError, "alphas is a collection"),
    "alpha twice": ({"alphas": [0.1, 0.2, 0.1]}, ValueError, "alphas holds 0.1 twice"),
    "zeros of both signs": ({"alphas": [0.0, -0.0]}, ValueError, "twice"),
    "negative alpha": ({"alphas": [-1.0]}, ValueError, "got -1.0"),
    "nan alpha": ({"alphas": [math.nan]}, ValueError, "got nan"),
    "no seed": ({"seeds": []}, ValueError, "seeds is empty"),
    "a number of seeds": ({"seeds": 5}, TypeError, "range"),
    "half a seed": ({"seeds": [0.5]}, TypeError, "whole"),
    "seed twice": ({"seeds": [1, 2, 1]}, ValueError, "seeds holds 1 twice"),
    "seed out of range": ({"seeds": [2**32]}, ValueError, "4294967296"),
    "no penalty": ({"penalties": []}, ValueError, "penalties is empty"),
    "no penalty at all": ({"penalties": ["L1"]}, TypeError, "'L1'"),
    "penalty twice": ({"penalties": [L1(1.0), L1(2.0)]}, ValueError, "'L1'"),
    "penalty twice, other names": ({"penalties": {"a": L1(1.0), "b": L1(2.0)}}, ValueError, "'a' and 'b'"),
    "empty axis": ({"grid": {"width": []}}, ValueError, "width"),
    "axis value twice": ({"grid": {"width": [1, 2, 1]}}, ValueError, "twice"),
    "axis value twice, in two kinds": ({"grid": {"width": [0, 0.5, 0.0]}}, ValueError, "twice"),
    "nan twice": ({"grid": {"width": [math.nan, math.nan]}}, ValueError, "twice"),
    "text for an axis": ({"grid": {"optimizer": "adam"}}, TypeError, r"\['adam'\]"),
    "one number for an axis": ({"grid": {"width": 3}}, TypeError, "collection"),
    "axis named as a column": ({"grid": {"alpha": [1]}}, ValueError, "taken"),
    "axis named as an argument": ({"grid": {"cell": [1]}}, ValueError, "taken"),
    "axis that is no name": ({"grid": {"my width": [1]}}, ValueError, "my width"),
    "axis of objects": ({"grid": {"f": [len]}}, TypeError, "len"),
    "unknown path": ({"path": "up"}, ValueError, "'up'"),
}


@pytest.mark.parametrize(("changes", "kind", "told"), BAD.values(), ids=BAD)
def test_a_bad_grid_is_refused_before_anything_is_written(changes, kind, told, out):
    given = {"penalties": L1(1.0), "alphas": [0.1]} | changes
    with pytest.raises(kind, match=told):
        ablate(lambda cell: {"a": 1}, given.pop("penalties"), given.pop("alphas"), **given, out=out)
    assert not out.exists()


def needs_more(penalty, width):
    return {}


def positional(penalty, /):
    return {}


def blind(seed):
    return {}


SIGNATURES = {
    "an argument that nobody gives": (needs_more, {}, TypeError, "width"),
    "by position only": (positional, {}, TypeError, "penalty"),
    "no penalty": (blind, {}, ValueError, "penalty"),
    "no seed": (lambda penalty: {}, {"seeds": [0, 1]}, ValueError, "seed"),
    "an axis that it does not take": (lambda penalty: {}, {"grid": {"width": [1, 2]}}, ValueError, "width"),
    "no function": ("train", {}, TypeError, "'train'"),
    "no signature": (dict, {}, TypeError, "signature"),
    "timeout without workers": (lambda penalty: {}, {"timeout": 1.0}, ValueError, "workers"),
    "no time": (lambda penalty: {}, {"timeout": 0.0, "workers": 1}, ValueError, "timeout"),
    "negative workers": (lambda penalty: {}, {"workers": -1}, ValueError, "workers"),
    "negative retries": (lambda penalty: {}, {"retries": -1}, ValueError, "retries"),
    "unknown on_change": (lambda penalty: {}, {"on_change": "ignore"}, ValueError, "ignore"),
    "no executor": (lambda penalty: {}, {"executor": 3}, TypeError, "3"),
}


@pytest.mark.parametrize(("run", "options", "kind", "told"), SIGNATURES.values(), ids=SIGNATURES)
def test_a_function_that_cannot_be_called_is_refused_before_anything_is_written(run, options, kind, told, out):
    with pytest.raises(kind, match=told):
        ablate(run, L1(1.0), [0.1], out=out, **options)
    assert not out.exists()


def test_a_function_gets_what_it_names(out):
    seen = []

    def run(penalty, seed, cell, width, depth=3, *args, unknown=None):
        seen.append((penalty.alpha, seed, cell.alpha, cell.seed, cell.axes, width, depth))
        return {"a": 1}

    ablate(run, L1(1.0), [0.5], seeds=[7], grid={"width": [4]}, out=out)
    ablate(lambda **given: seen.append(set(given)) or {"a": 1}, L1(1.0), [0.5], out=out / "other")
    assert seen == [(0.5, 7, 0.5, 7, {"width": 4}, 4, 3), {"penalty", "seed", "cell"}]


# --------------------------------------------------------------------------------------------- what is kept


def test_the_same_line_again_runs_nothing_and_a_longer_grid_what_is_new(out, log):
    run = partial(quick, log=log)
    first = ablate(run, L1(1.0), [0.0, 0.1], seeds=range(2), out=out)
    assert len(noted(log)) == 4
    again = ablate(run, L1(1.0), [0.0, 0.1], seeds=range(2), out=out)
    assert len(noted(log)) == 4
    assert again.rows == first.rows
    longer = ablate(run, [L1(1.0), L2(1.0)], [0.1, 0.2], seeds=range(3), out=out)
    assert len(noted(log)) == len(set(noted(log))) == 4 + (12 - 2)
    assert len(longer.rows) == len({row["key"] for row in longer.rows}) == 14
    assert all(row["loss"] == row["alpha"] + row["seed"] for row in longer.rows)
    assert [s["end"] is not None for s in longer.manifest["sessions"]] == [True] * 2  # those that have made rows


def test_a_row_has_the_columns_that_are_promised(out):
    (row,) = ablate(lambda penalty, width: {"b": 1, "a": "x"}, L1(1.0), [0.5], grid={"width": [4]}, out=out).rows
    head = ["penalty", "alpha", "seed", "width", "mode", "status", "b", "a", "seconds", "attempt", "error", "key"]
    assert list(row) == head
    assert [row[name] for name in head[:8]] == ["L1", 0.5, 0, 4, "independent", "ok", 1, "x"]
    assert (row["attempt"], row["error"]) == (1, None)


class Colour(enum.IntEnum):
    RED = 3


def test_metrics_come_back_as_they_went(out):
    given = {
        "nan": math.nan, "inf": math.inf, "minus": -math.inf, "tiny": 5e-324, "third": 1 / 3, "big": 2**80,
        "none": None, "yes": True, "text": "ä\n\u2028\x00'\"", "list": [1, [2.5, None]], "dict": {"a": {"b": math.nan}},
    }  # fmt: skip
    returned = given | {
        "tensor": torch.tensor(2.5), "count": torch.tensor(3), "flag": torch.tensor(True), "np": np.float32(0.5),
        "np64": np.float64(0.1), "npint": np.int64(4), "npbool": np.bool_(False), "enum": Colour.RED, "tuple": (1, 2),
        "grad": torch.tensor(1.5, requires_grad=True),
    }  # fmt: skip
    expected = given | {
        "tensor": 2.5, "count": 3, "flag": True, "np": 0.5, "np64": 0.1, "npint": 4, "npbool": False, "enum": 3,
        "tuple": [1, 2], "grad": 1.5,
    }  # fmt: skip
    (row,) = ablate(lambda penalty: returned, L1(1.0), [0.0], out=out).rows
    for name, value in expected.items():
        assert repr(row[name]) == repr(value), name
        assert type(row[name]) is type(value), name
    for shard in (out / "rows").iterdir():  # strict JSON: any reader can read it
        json.loads(shard.read_text(), parse_constant=pytest.fail)


def deep():
    inner: list = []
    inner.append(inner)
    return {"a": inner}


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError("no text")


def unprintable():
    raise Unprintable


RETURNED = {
    "nothing": (lambda: None, "mapping"),
    "a number": (lambda: 0.9, "mapping"),
    "no metric": (dict, "no metric"),
    "a function": (lambda: {"a": len}, "a ledger holds"),
    "a vector": (lambda: {"a": torch.zeros(3)}, "shape"),
    "a set": (lambda: {"a": {1}}, "set"),
    "a complex number": (lambda: {"a": torch.tensor(1j)}, "complex"),
    "a name that is none": (lambda: {1: 2}, "key"),
    "a name of a column": (lambda: {"alpha": 1}, "'alpha'"),
    "a name of an axis": (lambda: {"width": 1}, "'width'"),
    "a list that holds itself": (deep, "RecursionError"),
    "an integer that JSON readers refuse": (lambda: {"a": 10**5000}, "ValueError"),
    "half a character": (lambda: {"a": "\ud800"}, "UTF-8"),
    "half a character in an error": (lambda: open("/nowhere/\udce9"), "nowhere"),  # noqa: SIM115
    "an error without text": (unprintable, "Unprintable"),
    "the end of the process": (sys.exit, "SystemExit"),
}


@pytest.mark.parametrize(("make", "told"), RETURNED.values(), ids=RETURNED)
def test_what_a_ledger_cannot_hold_is_a_failed_cell_and_the_others_run(make, told, out):
    def run(penalty, width):
        return make() if penalty.alpha == 0.1 else {"b": 1.0}

    with pytest.warns(RuntimeWarning, match="1 of 3 cells failed"):
        rows = ablate(run, L1(1.0), [0.0, 0.1, 0.2], grid={"width": [1]}, out=out).rows
    assert [row["status"] for row in rows] == ["ok", "failed", "ok"]
    assert told in rows[1]["error"]
    rows[1]["error"].encode()


def test_failed_cells_are_tried_again_by_the_next_call(out, tmp_path):
    def run(penalty):
        if penalty.alpha and not (tmp_path / "mended").exists():
            raise RuntimeError("not yet")
        return {"a": penalty.alpha}

    with pytest.warns(RuntimeWarning, match="not yet"):
        first = ablate(run, L1(1.0), [0.0, 0.1], out=out)
    assert "not yet" in first.rows[1]["error"]
    assert "raise RuntimeError" in first.rows[1]["error"]
    with pytest.warns(RuntimeWarning, match="not yet"):
        ablate(run, L1(1.0), [0.0, 0.1], out=out)
    (tmp_path / "mended").touch()
    rows = ablate(run, L1(1.0), [0.0, 0.1], out=out).rows
    assert [(row["status"], row["attempt"], row["error"]) for row in rows] == [("ok", 1, None), ("ok", 3, None)]


def test_a_renamed_penalty_keeps_its_rows_and_a_name_its_penalty(out, log):
    run = partial(quick, log=log)
    ablate(run, L1(1.0), [0.1], out=out)
    renamed = ablate(run, {"lasso": L1(1.0)}, [0.1, 0.2], out=out)
    assert len(noted(log)) == 2
    assert [row["penalty"] for row in renamed.rows] == ["lasso", "lasso"]
    before = files(out / "rows")
    with pytest.raises(ValueError, match="'lasso' is not the one"):
        ablate(run, {"lasso": L2(1.0)}, [0.1], out=out)
    assert files(out / "rows") == before
    assert Ablation.load(out).rows == renamed.rows


def source(text):
    """A function whose source can be read, as of a file."""
    import linecache

    name = f"<{hash(text)}>"
    linecache.cache[name] = (len(text), None, text.splitlines(True), name)
    space: dict = {}
    exec(compile(text, name, "exec"), space)
    return space["run"]


def test_a_changed_function_does_not_mix_its_rows_with_the_old(out):
    old, new = source("def run(penalty):\n    return {'a': 1}\n"), source("def run(penalty):\n    return {'b': 2}\n")
    kept = ablate(old, L1(1.0), [0.1], out=out)
    before = files(out / "rows")
    with pytest.raises(ValueError, match=r"[0-9a-f]{64}.*[0-9a-f]{64}"):
        ablate(new, L1(1.0), [0.1, 0.2], out=out)
    assert files(out / "rows") == before
    rows = ablate(new, L1(1.0), [0.1, 0.2], out=out, on_change="new").rows
    assert [row["b"] for row in rows] == [2, 2]
    assert all("a" not in row for row in rows)
    back = ablate(old, L1(1.0), [0.1], out=out, on_change="new")
    assert back.rows == kept.rows


def test_a_function_that_has_only_failed_may_be_mended(out):
    bad, good = source("def run(penalty):\n    return {'a': b}\n"), source("def run(penalty):\n    return {'a': 1}\n")
    with pytest.warns(RuntimeWarning, match="NameError"):
        ablate(bad, L1(1.0), [0.1, 0.2], out=out)
    assert [row["status"] for row in ablate(good, L1(1.0), [0.1, 0.2], out=out).rows] == ["ok", "ok"]


def test_arguments_that_are_held_count_as_source(out):
    def run(penalty, width):
        return {"a": width}

    ablate(partial(run, width=3), L1(1.0), [0.1], out=out)
    with pytest.raises(ValueError, match="changed"):
        ablate(partial(run, width=4), L1(1.0), [0.1], out=out)


def test_cells_with_other_metrics_are_told_apart(out):
    with pytest.raises(ValueError, match=r"\['a'\] for L1, alpha=0, seed=0, \['b'\] for L1, alpha=0.1"):
        ablate(lambda penalty: {"b" if penalty.alpha else "a": 1}, L1(1.0), [0.0, 0.1], out=out)
    assert len(Ablation.load(out).rows) == 2


def test_learning_curves_are_of_the_last_try(out, tmp_path):
    def run(cell):
        for epoch in range(3):
            cell.report(epoch, loss=cell.alpha / (epoch + 1), bad=math.nan)
            if epoch == 1 and cell.alpha and not (tmp_path / "mended").exists():
                raise RuntimeError("cut off")
        return {"a": 1}

    with pytest.warns(RuntimeWarning, match="cut off"):
        ablate(run, L1(1.0), [0.0, 0.5], out=out)
    (tmp_path / "mended").touch()
    ablate(run, L1(1.0), [0.0, 0.5], out=out)
    points = curves(out)
    assert [(p["alpha"], p["epoch"], p["loss"]) for p in points] == [
        *((0.0, k, 0.0) for k in range(3)), *((0.5, k, 0.5 / (k + 1)) for k in range(3)),
    ]  # fmt: skip
    assert all(math.isnan(p["bad"]) for p in points)


def test_a_cell_has_a_directory_only_if_it_wants_one(out):
    def run(cell):
        if cell.alpha:
            (cell.dir / "weights.bin").write_bytes(b"w")
        return {"a": 1}

    rows = ablate(run, L1(1.0), [0.0, 0.5], out=out).rows
    assert [p.parent.name for p in (out / "cells").rglob("weights.bin")] == [rows[1]["key"]]
    assert len(list((out / "cells").iterdir())) == 1
    with pytest.raises(RuntimeError, match="no ledger"):
        _ = Cell(L1(1.0), 0, {}, None).dir


def test_reports_refuse_names_that_are_taken(out):
    def run(cell):
        cell.report(0, alpha=1)

    with pytest.warns(RuntimeWarning, match="'alpha', a name that is taken"):
        ablate(run, L1(1.0), [0.5], out=out)


def test_seed_everything_makes_runs_repeat(out):
    def run(cell):
        own = cell.seed_everything()
        return {"draws": [*torch.rand(2).tolist(), *np.random.rand(2), torch.rand(1, generator=own).item()]}  # noqa: NPY002

    drawn = [ablate(run, L1(1.0), [0.1], seeds=[3, 4], out=out / name).rows for name in "ab"]
    assert drawn[0][0]["draws"] == drawn[1][0]["draws"] != drawn[0][1]["draws"]


# ----------------------------------------------------------------------------------------------- directories


def test_a_directory_may_be_called_anything_and_moved_anywhere(tmp_path, log):
    run = partial(quick, log=log)
    first, second = tmp_path / "räume & leer zeichen" / "a'b\"c", tmp_path / "moved \N{SNOWMAN}"
    ablate(run, L1(1.0), [0.1], out=first)
    first.rename(second)
    assert len(ablate(run, L1(1.0), [0.1, 0.2], out=str(second)).rows) == 2
    assert len(noted(log)) == 2
    assert not first.exists()


def test_the_default_directory_bears_the_functions_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def training(penalty):
        return {"a": 1}

    assert len(ablate(training, L1(1.0), [0.1]).rows) == 1
    assert (tmp_path / "runs" / "training" / "manifest.json").exists()


def test_a_run_may_change_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()

    def run(penalty):
        os.chdir(tmp_path / "elsewhere")
        return {"a": 1}

    result = ablate(run, L1(1.0), [0.1, 0.2], out="here")
    assert len(result.rows) == 2
    assert (tmp_path / "here" / "manifest.json").exists()


def _write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


FOREIGN = {
    "other files": (lambda out: _write(out / "thesis.tex", "all I have"), FileExistsError, "other files"),
    "a file": (lambda out: _write(out, "all I have"), FileExistsError, "other files"),
    "within a file": (lambda out: _write(out.parent, "all I have"), LedgerError, "cannot be made"),
    "another tool's manifest": (lambda out: _write(out / "manifest.json", '{"name": "app"}'), LedgerError, "manifest"),
    "a list": (lambda out: _write(out / "manifest.json", "[1]"), LedgerError, "manifest"),
    "no JSON": (lambda out: _write(out / "manifest.json", "{"), LedgerError, "manifest"),
    "a later version": (lambda out: _write(out / "manifest.json", '{"format": 2}'), ValueError, "update torchreg"),
}


@pytest.mark.parametrize(("make", "kind", "told"), FOREIGN.values(), ids=FOREIGN)
def test_what_is_not_ours_is_not_touched(make, kind, told, tmp_path):
    out = tmp_path / "parent" / "out"
    make(out)
    before = files(tmp_path)
    with pytest.raises(kind, match=told):
        ablate(lambda penalty: pytest.fail("was run"), L1(1.0), [0.1], out=out)
    assert files(tmp_path) == before
    assert {p.name for p in tmp_path.rglob("*")} == {name for f in before for name in Path(f).parts}


def test_a_directory_that_is_no_ablation_is_not_loaded(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no ablation"):
        Ablation.load(tmp_path)
