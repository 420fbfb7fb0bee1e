"""Cells in an executor that the caller brings: it is left open, and what is durable is not lost with it."""

import multiprocessing
import os
import signal
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial

import pytest
from ablation_runs import noted, quick

from torchreg import L1
from torchreg.ablation import Ablation, LedgerError, ablate
from torchreg.ablation.ledger import shard

ablate = partial(ablate, progress=False)
SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log of runs"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "results"


def test_threads_share_a_file_and_nothing_is_torn(out, log):
    with ThreadPoolExecutor(8) as pool:
        found = ablate(
            lambda penalty, seed: quick(penalty, seed, log),
            L1(1.0),
            [0.1, 0.2],
            seeds=range(100),
            out=out,
            executor=pool,
        )
        assert pool.submit(int, "3").result() == 3, "it is left open"
    assert len(found.rows) == len(noted(log)) == 200
    assert len(list((out / "rows").iterdir())) == 1


def killed(penalty, seed, log):
    if seed == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return quick(penalty, seed, log)


def test_a_pool_that_breaks_ends_it_and_keeps_what_is_durable(out, log):
    with ProcessPoolExecutor(1, SPAWN) as pool, pytest.raises(BrokenExecutor):
        ablate(partial(killed, log=log), L1(1.0), [0.1], seeds=range(6), out=out, executor=pool)
    assert [row["seed"] for row in Ablation.load(out).rows] == [0, 1, 2]
    assert len(noted(log)) == 3


def test_a_function_that_cannot_be_sent_blames_no_cell(out):
    with ProcessPoolExecutor(1, SPAWN) as pool, pytest.raises((TypeError, AttributeError), match=r"[Cc]an.t pickle"):
        ablate(lambda penalty: {"a": 1}, L1(1.0), [0.1], seeds=[0], out=out, executor=pool)
    assert Ablation.load(out).rows == ()


def test_a_full_disk_blames_no_cell(out, log, monkeypatch):
    def full(file, data):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, ThreadPoolExecutor(2) as pool:
        patch.setattr(shard, "_write", full)
        with pytest.raises(LedgerError, match="No space left"):
            ablate(partial(quick, log=log), L1(1.0), [0.1], seeds=range(5), out=out, executor=pool)
    assert Ablation.load(out).rows == ()


class Remote(ThreadPoolExecutor):
    """Runs cells where the ledger's directory is not to be seen."""

    def submit(self, function, task):
        def there(task):
            mark = task.ledger / "mark"
            text = mark.read_text()
            mark.unlink()
            try:
                return function(task)
            finally:
                mark.write_text(text)

        return super().submit(there, task)


def test_rows_of_machines_that_do_not_see_the_directory_are_written_by_the_driver(out, log):
    with Remote(1) as pool:
        found = ablate(partial(quick, log=log), L1(1.0), [0.1], seeds=range(3), out=out, executor=pool)
    assert len(found.rows) == len(noted(log)) == 3
