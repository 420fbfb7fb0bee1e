"""Drivers that lose their lock, are killed or interrupted; cells that share nothing; what is counted and kept."""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import ablation_runs
import numpy as np
import pytest
import torch
from ablation_runs import alive, forked, note, noted, quick, told, until
from test_ablation_executors import Far

from torchreg import L1
from torchreg.ablation import Ablation, LedgerBusy, ablate
from torchreg.ablation.ledger import lock
from torchreg.ablation.session import Session

ablate = partial(ablate, progress=False)
SUPPORT, ROOT = Path(ablation_runs.__file__).parent, Path(__file__).parents[2]
ALPHAS = [k / 8 for k in range(6)]


def script(text, *arguments):
    """A program of its own that can import what the tests import, started in a session of its own."""
    paths = os.pathsep.join((str(SUPPORT), str(Path(__file__).parent), str(ROOT)))
    command = [sys.executable, "-c", text, *map(str, arguments)]
    return subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": paths}, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


# ------------------------------------------------------------------------------------------ copies of a directory


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_rows_that_workers_write_into_a_copy_are_not_lost(when, out, tmp_path, log):
    """Another machine has a directory of that name: a copy from before this call, or one that is kept alike."""
    copy = tmp_path / "copy"
    ablate(partial(quick, log=log), L1(1.0), [7.0], out=out)

    class Elsewhere(Far):
        def submit(self, function, argument):
            if when == "meanwhile" and not copy.exists():
                shutil.copytree(out, copy)
            return super().submit(function, argument)

    if when == "before":
        shutil.copytree(out, copy)
    before = copied(copy)
    found = ablate(partial(quick, log=log), L1(1.0), ALPHAS, out=out, executor=Elsewhere(copy))
    assert sorted(row["alpha"] for row in found.rows) == [*ALPHAS, 7.0]
    assert found.status().missing == 0
    assert len(noted(log)) == 7
    assert when == "meanwhile" or copied(copy) == before, "who has an old copy writes nothing into it"


def copied(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# -------------------------------------------------------------------------------------------------------- axes


def test_a_run_that_changes_its_axes_changes_no_other_cell(out):
    layers, options = [64, 32], {"lr": 0.1, "decay": [1, 2]}
    seen = []

    def run(cell, layers, options):
        seen.append((cell.axes["layers"][:], layers[:], options["decay"][:], options["lr"]))
        layers.append(10)
        options["decay"].clear()
        options["lr"] = cell.alpha
        cell.axes["layers"].clear()
        cell.axes["options"]["lr"] = None
        return {"count": len(layers)}

    found = ablate(run, L1(1.0), [0.1, 0.2], seeds=[0, 1], grid={"layers": [layers], "options": [options]}, out=out)
    assert seen == [([64, 32], [64, 32], [1, 2], 0.1)] * 4
    assert [row["layers"] for row in found.rows] == [[64, 32]] * 4
    assert [row["options"] for row in found.rows] == [{"lr": 0.1, "decay": [1, 2]}] * 4
    assert [row["count"] for row in found.rows] == [3] * 4
    assert (layers, options) == ([64, 32], {"lr": 0.1, "decay": [1, 2]})
    assert found.status().missing == 0


def with_axis(penalty, x, log):
    note(log, repr(x))
    return {"loss": penalty.alpha, "kind": type(x).__name__}


@pytest.mark.parametrize("second", [[0.0, 0.5], [-0.0, 0.5, 1]], ids=str)
def test_zeros_of_both_kinds_are_one_value_and_every_table_works(second, out, log):
    run = partial(with_axis, log=log)
    ablate(run, L1(1.0), [0.0, 0.1], grid={"x": [0, 0.5]}, out=out)
    found = ablate(run, L1(1.0), [0.0, 0.1], grid={"x": second}, out=out)
    points = len({float(x) for x in second})
    assert len(noted(log)) == len(found.rows) == 2 * points
    assert len(found.summary()) == 2 * points
    assert len(found.paired()) == points
    assert len(found.best("loss", rule="min")) == points
    assert found.status().missing == 0
    assert {repr(row["x"]) for row in found.rows} == {repr(x) for x in second}, "as the last grid has them"


def test_rows_of_earlier_versions_that_took_them_for_two_are_one_cell(out, log):
    run = partial(with_axis, log=log)
    ablate(run, L1(1.0), [0.1], grid={"x": [0]}, out=out)
    (file,) = (out / "rows").iterdir()
    (line,) = file.read_text().splitlines()
    old = line.rpartition(',"sum"')[0].replace('"x":0', '"x":0.0').replace('"key":"', '"key":"f')
    (out / "rows" / "old.jsonl").write_text(f"{old}}}\n")
    assert len(Ablation.load(out).rows) == len(Ablation.load(out).summary()) == 1


def test_true_and_1_are_two_values_in_every_table(out, log):
    found = ablate(partial(with_axis, log=log), L1(1.0), [0.0, 0.1], grid={"x": [True, 1, False, 0]}, out=out)
    assert len(noted(log)) == len(found.rows) == len(found.summary()) == 8
    assert len(found.paired()) == 4
    assert Counter(row["kind"] for row in found.rows) == {"bool": 4, "int": 4}
    assert found.status().missing == 0
    assert ablate(partial(with_axis, log=log), L1(1.0), [0.0, 0.1], grid={"x": [0, True]}, out=out).rows == found.rows


# ------------------------------------------------------------------------------------------- what is counted and kept


def test_each_try_counts_as_an_attempt(out, log):
    run = partial(ablation_runs.mischief, log=log)
    whats = ["is killed once", "is killed"]
    with pytest.warns(RuntimeWarning, match="1 of 2 cells failed"):
        rows = ablate(run, L1(1.0), [0.1], grid={"what": whats}, out=out, workers=1).rows
    told = {row["what"]: (row["status"], row["attempt"]) for row in rows}
    assert told == {"is killed once": ("ok", 2), "is killed": ("failed", 2)}
    assert [noted(log).count(what) for what in whats] == [2, 2]


@pytest.mark.parametrize("kind", [np.longdouble, np.float16, np.float64, torch.tensor], ids=lambda kind: kind.__name__)
def test_numbers_of_every_width_are_kept(kind, out):
    (row,) = ablate(lambda penalty: {"a": kind(0.5), "b": [kind(2.0)]}, L1(1.0), [0.1], out=out).rows
    assert (row["status"], row["a"], row["b"]) == ("ok", 0.5, [2.0])
    assert type(row["a"]) is float


def test_a_complex_number_of_any_width_is_refused(out):
    with pytest.warns(RuntimeWarning, match=r"TypeError: metrics\['a'\]"):
        ablate(lambda penalty: {"a": np.clongdouble(1)}, L1(1.0), [0.1], out=out)


STATES = {
    "tensors": lambda: {"w": torch.ones(2), "n": 3, "names": ["a", None], "f": 0.5},
    "an optimizer's": lambda: torch.optim.Adam([torch.nn.Parameter(torch.ones(1))]).state_dict(),
    "a parameter": lambda: torch.nn.Parameter(torch.ones(1)),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "an array": lambda: np.ones(2),
    "a number of NumPy's": lambda: np.float64(1.0),
    "a module": lambda: torch.nn.Linear(2, 2),
    "a path": lambda: Path("a"),
    "an object": lambda: Counter("a"),
}


@pytest.mark.parametrize("make", STATES.values(), ids=STATES)
def test_what_save_takes_start_gives_back(make, out):
    """Whatever it is: either it is refused where it is saved, or the next cell has it."""

    def run(cell):
        start = cell.start()
        cell.save(make())
        return {"got": "nothing" if start is None else type(start).__name__}

    with suppress(RuntimeWarning):
        ablate(run, L1(1.0), [0.2, 0.1], path="descending", out=out)
    rows = Ablation.load(out).rows
    if len(rows) == 1:
        assert rows[0]["error"].startswith("TypeError: A state with ")
        assert "could not be read again" in rows[0]["error"]
    else:
        assert [row["got"] for row in rows] == ["nothing", type(make()).__name__]
    assert not list(out.rglob("*.tmp"))


def test_a_call_that_runs_nothing_leaves_every_file_but_its_mark_as_it_was(out, log):
    run = partial(quick, log=log)
    ablate(run, L1(1.0), [0.1, 0.2], out=out)
    before = copied(out)
    for _ in range(3):
        ablate(run, L1(1.0), [0.1, 0.2], out=out)
    after = copied(out)
    assert after.keys() == before.keys()
    assert {path.name for path in before if after[path] != before[path]} == {"mark"}


MANY = """
import resource, sys
from functools import partial
from ablation_runs import timed
from torchreg import L1
from torchreg.ablation import ablate
resource.setrlimit(resource.RLIMIT_NOFILE, (32, 4096))
alphas = [k / 64 for k in range(64)]
ablate(partial(timed, log=sys.argv[2]), L1(1.0), alphas, out=sys.argv[1], workers=40, progress=False)
"""


def test_more_workers_than_files_allow_are_told_how_many_there_can_be(out, log):
    process = script(MANY, out, log)
    told = process.communicate(timeout=120)[1]
    assert process.returncode == 1
    assert "WorkerError: Of 40 workers " in told
    assert "Too many open files" in told.splitlines()[-1]
    assert "`ulimit -n`" in told.splitlines()[-1]
    assert ablate(partial(ablation_runs.timed, log=str(log)), L1(1.0), [0.1], out=out).status().failed == 0


# -------------------------------------------------------------------------------------------------------- locks


def the_lock_s(out):
    """Descriptors of this process that are the ledger's lock."""
    found = {int(fd): os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")}
    return [fd for fd, path in found.items() if path in (f"{out}/lock", f"{out}/lock (deleted)")]


def removes(out):
    (out / "lock").unlink()


def closes(out):
    (fd,) = the_lock_s(out)
    os.close(fd)


def closes_and_opens(out):
    closes(out)
    os.open("/dev/null", os.O_RDONLY)  # has the number of the lock's file now


def replaces(out):
    shutil.copy(out / "lock", out / "other")
    os.replace(out / "other", out / "lock")


LOSE = (removes, closes, closes_and_opens, replaces)


@pytest.mark.parametrize("lose", LOSE, ids=lambda lose: lose.__name__)
def test_a_lock_that_was_lost_is_taken_again(lose, out):
    def run(penalty):
        if penalty.alpha == 0.125:
            lose(out)
        elif penalty.alpha == 0.25:
            assert len(the_lock_s(out)) == 1
            assert other_driver(out) == "busy"
        return {"a": 1}

    found = ablate(run, L1(1.0), ALPHAS, out=out)
    assert found.status().done == len(ALPHAS), found.rows
    assert the_lock_s(out) == []
    assert ablate(run, L1(1.0), ALPHAS, out=out).rows == found.rows


def other_driver(out):
    """What a second driver is told, in a process of its own."""
    read, write = os.pipe()

    def drive():
        try:
            ablate(lambda penalty: {"a": 1}, L1(1.0), [9.0], out=out, on_change="new")
        except LedgerBusy:
            os.write(write, b"busy")
        else:
            os.write(write, b"works")

    pid = forked(drive)
    os.close(write)  # a driver that dies otherwise tells nothing
    try:
        return told(read).decode()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(read)


@pytest.mark.parametrize("lose", LOSE, ids=lambda lose: lose.__name__)
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_the_first_driver_notices_a_second_that_its_lost_lock_let_in(lose, out):
    read, write = os.pipe()
    children = []

    def take_and_hold():
        held = lock.DriverLock(out)
        held.take()
        os.write(write, b"taken")
        time.sleep(60)

    def run(penalty):
        if penalty.alpha == 0.125:
            lose(out)
            children.append(forked(take_and_hold))
            assert told(read) == b"taken"
        return {"a": 1}

    try:
        with pytest.raises(LedgerBusy, match=r"in use by process \d+ .*lock was removed or closed while it ran"):
            ablate(run, L1(1.0), ALPHAS, out=out)
        assert (out / "lock").read_text().startswith(f"process {children[0]} ")
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        os.close(read), os.close(write)
    assert len(Ablation.load(out).rows) == 2, "what has run is kept"


class Interrupted(KeyboardInterrupt):
    pass


OPENING = tuple(f"/ablation/{name}.py" for name in ("session", "ledger/ledger", "ledger/lock", "ledger/mark"))


@contextmanager
def interrupted_at(wanted):
    """Raises what Ctrl-C does at one of the lines that open and close a ledger; gives the count of those that ran."""
    lines = [0]

    def trace(frame, event, argument):
        if not frame.f_code.co_filename.endswith(OPENING):
            return None
        if event == "line":
            lines[0] += 1
            if lines[0] == wanted:
                raise Interrupted
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield lines
    finally:
        sys.settrace(before)


def test_ctrl_c_at_any_line_of_opening_keeps_no_lock(out, monkeypatch):
    monkeypatch.setattr("torchreg.ablation.ledger.ledger.run_record", lambda *_: {})
    monkeypatch.setattr(lock, "_PATIENCE", 0.5)
    session = Session(slow, ("penalty",), out, workers=0, executor=None, timeout=None, retries=0, on_change="new",
                      progress=False)  # fmt: skip
    with interrupted_at(0) as lines:
        session.__enter__()
    opened = lines[0]
    session.__exit__(None, None, None)
    assert opened > 50
    for at in range(1, opened + 1):
        with pytest.raises(Interrupted), interrupted_at(at):
            session.__enter__()
        held = lock.DriverLock(out)
        held.take()  # which it could not if one were kept
        held.release()


# --------------------------------------------------------------------------------------------- drivers that are killed


BORROWED = """
import multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from test_drivers_and_cells import slow
from torchreg import L1
from torchreg.ablation import ablate
with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
    ablate(partial(slow, log=sys.argv[2], seconds=float(sys.argv[3])), L1(1.0), [0.1], out=sys.argv[1], executor=pool)
"""


def slow(penalty, log, seconds):
    note(log, f"begin {os.getpid()}")
    time.sleep(seconds)
    note(log, "end")
    return {"a": 1}


def killed_driver(text, out, log, seconds):
    """A driver that was killed while its cell runs; returns the pid of the process that has the cell."""
    process = script(text, out, log, seconds)
    until(lambda: noted(log))
    process.kill()
    process.wait()
    process.stderr.close()  # its worker has it too
    return int(noted(log)[0].split()[1])


@pytest.mark.slow
def test_a_cell_that_a_killed_driver_s_executor_goes_on_with_is_not_run_twice(out, log):
    worker = killed_driver(BORROWED, out, log, 3.0)
    try:
        run = partial(slow, log=str(log), seconds=3.0)
        found = ablate(run, L1(1.0), [0.1], out=out)
        assert [line.split()[0] for line in noted(log)] == ["begin", "end"]
        assert found.status().done == 1
    finally:
        with suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)


IN_C = """
import sys
from functools import partial
from test_drivers_and_cells import in_c
from torchreg import L1
from torchreg.ablation import ablate
ablate(partial(in_c, log=sys.argv[2]), L1(1.0), [0.1], out=sys.argv[1], workers=1, progress=False)
"""


def in_c(penalty, log):
    note(log, f"begin {os.getpid()}")
    ctypes.PyDLL(None).sleep(120)  # no other thread of this process runs meanwhile
    return {"a": 1}


@pytest.mark.slow
@pytest.mark.parametrize("text", [IN_C, BORROWED], ids=["in C", "borrowed"])
def test_workers_that_outlive_their_driver_are_named(text, out, log, monkeypatch):
    monkeypatch.setattr(lock, "_PATIENCE", 0.5)
    worker = killed_driver(text, out, log, 120.0)
    assert alive(worker)
    try:
        with pytest.raises(LedgerBusy, match=rf"Workers of an earlier driver still run.*: process {worker} on "):
            ablate(lambda penalty: {"a": 1}, L1(1.0), [0.1], out=out, on_change="new")
    finally:
        os.kill(worker, signal.SIGKILL)
    until(lambda: not alive(worker))
    assert len(ablate(lambda penalty: {"a": 1}, L1(1.0), [0.1], out=out, on_change="new").rows) == 1
