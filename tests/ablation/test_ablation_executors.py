"""Executors of the caller's, and workers that do not see the ledger: nothing durable is lost, no cell done twice."""

import dataclasses
import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest
from ablation_runs import noted, quick

from torchreg import L1
from torchreg.ablation import LedgerError, RayExecutor, ablate, logspace, search_study
from torchreg.ablation.executors.serial import Serial
from torchreg.ablation.json_values import loads

ALPHAS = logspace(0.01, 1.0, 5, zero=True)


def count(cell):
    """Note that this cell runs; returns how often it has by now."""
    file = cell.dir / "runs"
    with file.open("a") as opened:
        opened.write("x")
    return len(file.read_text())


def run(penalty, cell):
    count(cell)
    return {"loss": 2.0 * penalty.alpha, "pid": os.getpid()}


def dies_once(penalty, cell):
    """At one strength the process that runs it is killed, the first time."""
    if count(cell) == 1 and penalty.alpha == 0.1:
        time.sleep(0.5)  # others have finished theirs by now
        os.kill(os.getpid(), signal.SIGKILL)
    return {"loss": 2.0 * penalty.alpha}


def runs(out):
    return [len(file.read_text()) for file in out.glob("cells/*/runs")]


def written(out):
    """Rows as the files have them: how often each strength is there as ok."""
    lines = [line for shard in (out / "rows").glob("*.jsonl") for line in shard.read_text().splitlines()]
    return Counter(row["alpha"] for row in map(loads, lines) if row["status"] == "ok")


def losses(result):
    return {row["alpha"]: row.get("loss") for row in result.rows}


def spawned(n):
    return ProcessPoolExecutor(n, multiprocessing.get_context("spawn"))


def test_threads(tmp_path):
    with ThreadPoolExecutor(3) as executor:
        result = ablate(run, L1(1.0), ALPHAS, out=tmp_path, executor=executor, progress=False)
        assert executor.submit(int).result() == 0  # it is left open
    assert losses(result) == {alpha: 2.0 * alpha for alpha in ALPHAS}
    assert written(tmp_path) == Counter(ALPHAS)
    assert runs(tmp_path) == [1] * 6


def test_processes(tmp_path):
    with spawned(2) as executor:
        result = ablate(run, L1(1.0), ALPHAS, out=tmp_path, executor=executor, progress=False)
    assert losses(result) == {alpha: 2.0 * alpha for alpha in ALPHAS}
    assert os.getpid() not in {row["pid"] for row in result.rows}
    assert written(tmp_path) == Counter(ALPHAS)


def breaks_and_goes_on(out, make):
    """An executor that breaks with its worker: what was finished stays, a new one does the rest."""
    executor = make()
    with pytest.raises(RuntimeError, match="make a new executor and run the same line again") as broken:
        ablate(dies_once, L1(1.0), ALPHAS, out=out, executor=executor, progress=False)
    assert isinstance(broken.value.__cause__, BrokenExecutor)
    executor.shutdown()
    before = written(out)
    executor = make()
    result = ablate(dies_once, L1(1.0), ALPHAS, out=out, executor=executor, progress=False)
    executor.shutdown()
    assert losses(result) == {alpha: 2.0 * alpha for alpha in ALPHAS}
    assert 0 < len(before) < len(ALPHAS)
    assert written(out) == Counter(ALPHAS)


def test_a_pool_of_processes_that_breaks(tmp_path):
    breaks_and_goes_on(tmp_path, lambda: spawned(2))


@pytest.mark.slow
def test_loky(tmp_path):
    loky = pytest.importorskip("loky")
    breaks_and_goes_on(tmp_path, lambda: loky.ProcessPoolExecutor(2))


@pytest.fixture(scope="module")
def dask():
    """A client of two processes on this machine."""
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.mark.slow
def test_dask_replaces_a_killed_worker(tmp_path, dask):
    result = ablate(dies_once, L1(1.0), ALPHAS, out=tmp_path, executor=dask.get_executor(), progress=False)
    assert losses(result) == {alpha: 2.0 * alpha for alpha in ALPHAS}
    assert written(tmp_path) == Counter(ALPHAS)
    assert sorted(runs(tmp_path))[-1] == 2


def dies_twice(penalty, cell):
    if count(cell) <= 2 and penalty.alpha == 0.1:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"loss": 2.0 * penalty.alpha}


@pytest.mark.slow
def test_dask_is_given_again_what_it_gave_up(tmp_path, dask):
    """Dask answers equal work with the result it had, and so with the error: what goes out again must be new to it."""
    dask.run_on_scheduler(lambda dask_scheduler: setattr(dask_scheduler, "allowed_failures", 0))
    result = ablate(dies_twice, L1(1.0), [0.1], out=tmp_path, executor=dask.get_executor(), progress=False, retries=2)
    assert losses(result) == {0.1: 0.2}
    assert runs(tmp_path) == [3]


@pytest.mark.slow
def test_dask_fails_and_resumes(tmp_path, dask):
    trouble = tmp_path / "trouble"
    trouble.touch()

    def sometimes(penalty, cell):
        if count(cell) and trouble.exists() and penalty.alpha > 0.5:
            raise OverflowError("too much of it")
        return {"loss": 2.0 * penalty.alpha}

    out, executor = tmp_path / "out", dask.get_executor()
    with pytest.warns(RuntimeWarning, match="1 of 6 cells failed"):
        ablate(sometimes, L1(1.0), ALPHAS, out=out, executor=executor, progress=False)
    trouble.unlink()
    result = ablate(sometimes, L1(1.0), ALPHAS, out=out, executor=executor, progress=False)
    assert losses(result) == {alpha: 2.0 * alpha for alpha in ALPHAS}
    assert sorted(runs(out)) == [1] * 5 + [2]


def test_what_cannot_be_sent_is_no_dead_process(tmp_path):
    def local(penalty):
        return {"loss": 0.0}

    with spawned(1) as executor, pytest.raises((AttributeError, TypeError), match="local"):
        ablate(local, L1(1.0), ALPHAS, out=tmp_path, executor=executor, progress=False)
    assert not list((tmp_path / "rows").iterdir())


def removes_the_rows(penalty, cell):
    (cell.dir.parents[1] / "rows").rmdir()
    return {"loss": 0.0}


def test_a_row_that_cannot_be_written_is_no_dead_process(tmp_path):
    with ThreadPoolExecutor(1) as executor, pytest.raises(LedgerError, match="could not be written"):
        ablate(removes_the_rows, L1(1.0), [0.1], out=tmp_path, executor=executor, progress=False)


class Far(Serial):
    """Workers of another machine: the ledger's path leads to another directory, or to none."""

    def __init__(self, path):
        self._path = path

    def submit(self, function, argument):
        return super().submit(function, dataclasses.replace(argument, ledger=self._path))


@pytest.mark.parametrize("made", [False, True], ids=["no directory", "another directory"])
def test_rows_of_workers_that_do_not_see_the_ledger_are_the_driver_s(tmp_path, made):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    if made:
        ablate(run, L1(1.0), [7.0], out=elsewhere, progress=False)
    result = ablate(run, L1(1.0), ALPHAS, out=out, executor=Far(elsewhere), progress=False)
    assert losses(result) == {alpha: 2.0 * alpha for alpha in ALPHAS}
    assert written(out) == Counter(ALPHAS)
    assert not made or written(elsewhere) == Counter([7.0])
    ablate(run, L1(1.0), ALPHAS, out=out, executor=Far(elsewhere), progress=False)
    assert runs(elsewhere) == [1] * (6 + made)


@pytest.mark.parametrize(
    ("module", "make"),
    [
        ("ray", RayExecutor),
        ("optuna", lambda: search_study(run, L1(1.0), Study(), alphas=(0.1, 1.0), objectives=["loss"])),
    ],
)
def test_a_missing_extra_is_named(monkeypatch, tmp_path, module, make):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"pip install {module}"):
        make()
    assert not list(Path(tmp_path).iterdir())


class Study:
    """As far as it is looked at before Optuna is."""

    directions = ("maximize",)


def test_threads_share_a_file_and_nothing_is_torn(tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    with ThreadPoolExecutor(8) as pool:
        found = ablate(
            lambda penalty, seed: quick(penalty, seed, log),
            L1(1.0),
            [0.1, 0.2],
            seeds=range(100),
            out=out,
            executor=pool,
            progress=False,
        )
        assert pool.submit(int, "3").result() == 3, "it is left open"
    assert len(found.rows) == len(noted(log)) == 200
    assert len(list((out / "rows").iterdir())) == 1
