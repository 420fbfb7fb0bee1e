"""A ledger from somebody else: links and pipes at every name in it; nothing outside changes, and nothing hangs."""

import os
import shutil
import signal
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import torch
from ablation_runs import quick

from torchreg import L1
from torchreg.ablation import Ablation, LedgerError, WorkerError, ablate, merge

ablate = partial(ablate, progress=False)
KEY = "0" * 32  # stands for the key of a cell in a name


def run(cell):
    cell.start()
    cell.report(0, loss=1.0)
    cell.save({"w": torch.ones(3)})
    (cell.dir / "weights.bin").write_bytes(b"weights")
    return {"a": cell.alpha}


def other(cell):
    return run(cell)


@contextmanager
def at_most(seconds):
    """What waits for a pipe is interrupted, and has failed."""

    def late(number, frame):
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def everything(folder):
    return {str(p): (p.lstat().st_mode, p.read_bytes() if p.is_file() else None) for p in sorted(folder.rglob("*"))}


def to_file(path, outside):
    path.symlink_to(outside / "diary")


def to_folder(path, outside):
    path.symlink_to(outside)


def to_nothing(path, outside):
    path.symlink_to(outside / "not there yet")


def second_name(path, outside):
    os.link(outside / "diary", path)


def pipe(path, outside):
    os.mkfifo(path)


KINDS = (to_file, to_folder, to_nothing, second_name, pipe)
CELL = f"cells/{KEY}"
NAMES = (
    "manifest.json", "manifest.json.tmp", "lock", "workers", "mark", "rows", "rows/host-1-00000000.jsonl", "cells",
    CELL, f"{CELL}/state.pt", f"{CELL}/state.tmp", f"{CELL}/state.sha256", f"{CELL}/curve.jsonl",
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A path of one cell; its next one starts at what it saved."""
    out = tmp_path_factory.mktemp("sound") / "results"
    (row,) = ablate(run, L1(1.0), [0.2], path="descending", out=out).rows
    return out, row["key"]


@pytest.fixture
def outside(tmp_path):
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "diary").write_bytes(b"all I have\n")
    return folder


def planted(finished, tmp_path, name, kind, outside, out="results"):
    """A copy of the ledger with something else at a name."""
    sound, key = finished
    shutil.copytree(sound, tmp_path / out)
    path = tmp_path / out / name.replace(KEY, key)
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    kind(path, outside)
    return tmp_path / out


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", NAMES, ids=lambda name: name.replace(KEY, "cell"))
def test_whatever_is_planted_nothing_outside_changes_and_nothing_hangs(name, kind, finished, tmp_path, outside):
    out, before = planted(finished, tmp_path, name, kind, outside), everything(outside)
    uses = (
        lambda: Ablation.load(out).curves(),
        lambda: merge(tmp_path / "joined", [out]),
        lambda: ablate(run, L1(1.0), [0.2, 0.1], path="descending", out=out),
        lambda: ablate(other, L1(1.0), [0.2], out=out, on_change="new"),
    )
    for use in uses:
        with at_most(20.0), suppress(LedgerError, FileNotFoundError):
            use()
        assert everything(outside) == before


@pytest.mark.parametrize("kind", [to_file, to_folder, to_nothing, pipe], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", ["cells", CELL, f"{CELL}/weights.bin", f"{CELL}/curve.jsonl", f"{CELL}/state.pt"])
def test_a_cell_that_runs_writes_through_nothing_that_was_planted(name, kind, finished, tmp_path, outside):
    """The ledger says that the cell has not run, so that it runs in a directory that is there."""
    out, before = planted(finished, tmp_path, name, kind, outside), everything(outside)
    for file in (out / "rows").iterdir():
        file.unlink()
    with at_most(20.0), pytest.raises(LedgerError, match=r"is a link.*remove it"):
        ablate(run, L1(1.0), [0.2], path="descending", out=out)
    assert everything(outside) == before


@pytest.mark.parametrize("kind", [to_file, to_folder, pipe], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", ["manifest.json", "rows", "rows/host-1-00000000.jsonl"])
def test_what_is_planted_is_named(name, kind, finished, tmp_path, outside):
    out = planted(finished, tmp_path, name, kind, outside)
    with at_most(20.0), pytest.raises(LedgerError, match=f"{name}.* is a link.*Look where it comes from"):
        Ablation.load(out)


def test_links_that_stay_within_a_cell_s_directory_are_a_run_s_own_affair(out):
    tries = out.parent / "tries"

    def links(cell):
        (cell.dir / f"{len(list(cell.dir.iterdir()))}.pt").touch()
        with suppress(FileExistsError):
            (cell.dir / "last.pt").symlink_to("0.pt")
        tries.touch() if not tries.exists() else None
        if len(list(cell.dir.iterdir())) < 3:
            raise RuntimeError("once more")
        return {"a": 1}

    with pytest.warns(RuntimeWarning, match="once more"):
        ablate(links, L1(1.0), [0.1], out=out)
    assert ablate(links, L1(1.0), [0.1], out=out).rows[0]["status"] == "ok"


@pytest.mark.slow
@pytest.mark.parametrize("kind", [to_folder, pipe], ids=lambda kind: kind.__name__)
def test_logs_of_workers_go_nowhere_else(kind, finished, tmp_path, outside):
    out, before = planted(finished, tmp_path, "logs", kind, outside), everything(outside)
    with at_most(60.0), pytest.raises(WorkerError, match="before it could begin"):
        ablate(partial(quick, log=tmp_path / "log"), L1(1.0), [0.1], out=out, workers=1, on_change="new")
    assert everything(outside) == before


def test_a_log_is_not_written_through_a_link(out, outside):
    from torchreg.ablation.executors import worker

    (out / "logs").mkdir(parents=True)
    (out / "logs" / worker._log_name(os.getpid())).symlink_to(outside / "diary")
    with pytest.raises(LedgerError, match="is a link"):
        worker._print_to(out)
    assert Path(outside / "diary").read_bytes() == b"all I have\n"
