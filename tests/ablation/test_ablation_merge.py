"""Directories of several machines joined: nothing lost, nothing mixed, nothing written elsewhere."""

from functools import partial

import pytest
from ablation_runs import noted, quick

from torchreg import L1
from torchreg.ablation import ablate, merge
from torchreg.ablation.ledger.rows import curves

ablate = partial(ablate, progress=False)


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log of runs"


def test_directories_of_several_machines_become_one(tmp_path, log):
    run = partial(quick, log=log)
    ablate(run, L1(1.0), [0.0, 0.1], out=tmp_path / "a")
    ablate(run, {"lasso": L1(1.0)}, [0.1, 0.2], out=tmp_path / "b")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    joined = merge(tmp_path / "all", [tmp_path / "a", tmp_path / "b"])
    assert {p: p.read_bytes() for p in before} == before
    assert sorted(row["alpha"] for row in joined.rows) == [0.0, 0.1, 0.2]
    assert {row["penalty"] for row in joined.rows} == {"lasso"}
    assert len(joined.manifest["sessions"]) == 2
    assert len(ablate(run, L1(1.0), [0.0, 0.1, 0.2], out=tmp_path / "all").rows) == 3
    assert len(noted(log)) == 4


def test_a_cell_of_two_machines_has_the_files_of_the_row_that_counts(tmp_path):
    def run(cell):
        where = cell.dir.parents[1].name
        for epoch in range(2 if where == "a" else 4):
            cell.report(epoch, where=where)
        (cell.dir / f"{where}.txt").touch()
        if where == "a" and cell.alpha:
            raise RuntimeError("a fails")
        return {"where": where}

    with pytest.warns(RuntimeWarning, match="a fails"):
        ablate(run, L1(1.0), [0.0, 0.1], out=tmp_path / "a")
    ablate(run, L1(1.0), [0.0, 0.1], out=tmp_path / "b")
    joined = merge(tmp_path / "all", [tmp_path / "a", tmp_path / "b"])
    assert {row["alpha"]: row["where"] for row in joined.rows} == {0.0: "a", 0.1: "b"}
    for row in joined.rows:
        assert [p.stem for p in (joined.dir / "cells" / row["key"]).glob("*.txt")] == [row["where"]]
    points = curves(tmp_path / "all")
    assert {(p["alpha"], p["where"]) for p in points} == {(0.0, "a"), (0.1, "b")}
    assert len(points) == 2 + 4


def test_merging_writes_through_no_link(tmp_path):
    def run(cell):
        (cell.dir / "inner").mkdir()
        (cell.dir / "inner" / "file").write_text("of the other")
        return {"a": 1}

    victim = tmp_path / "victim"
    victim.mkdir()
    for name in "ab":
        ablate(run, L1(1.0), [0.1], out=tmp_path / name)
    (key,) = (p.name for p in (tmp_path / "a" / "cells").iterdir())
    for link in (f"cells/{key}/inner", f"cells/{key}"):
        hostile = tmp_path / "a" / link
        hostile.rename(tmp_path / f"away {len(link)}")
        hostile.symlink_to(victim)
        merge(tmp_path / f"all {len(link)}", [tmp_path / "a", tmp_path / "b"])
        assert list(victim.iterdir()) == []


def test_merging_refuses_what_cannot_be_compared(tmp_path, log):
    ablate(partial(quick, log=log), L1(1.0), [0.1], out=tmp_path / "a")
    ablate(lambda penalty: {"loss": 1}, L1(1.0), [0.1], out=tmp_path / "b")
    with pytest.raises(ValueError, match="different functions"):
        merge(tmp_path / "all", [tmp_path / "a", tmp_path / "b"])
    with pytest.raises(FileNotFoundError, match="holds no ablation"):
        merge(tmp_path / "all", [tmp_path / "a", tmp_path / "c"])
    with pytest.raises(ValueError, match="at least one"):
        merge(tmp_path / "all", [])
    with pytest.raises(FileExistsError, match="not empty"):
        merge(tmp_path / "a", [tmp_path / "b"])
    assert not (tmp_path / "all").exists()
