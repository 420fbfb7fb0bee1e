"""Drivers and machines that fail: kills at random times, full disks, two drivers, Ctrl-C, forks."""

import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import ablation_runs
import pytest
from ablation_runs import alive, forked, gone, note, noted, quick, timed, told, until, workers_of

from torchreg import L1
from torchreg.ablation import Ablation, LedgerBusy, LedgerError, ablate
from torchreg.ablation.ledger import provenance

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # forks
ablate = partial(ablate, progress=False)
SUPPORT = Path(ablation_runs.__file__).parent
PATH = os.pathsep.join((str(SUPPORT), str(Path(ablation_runs.execute.__file__).parents[2])))
ALPHAS = [k / 64 for k in range(8)]
DRIVER = """
import sys
from functools import partial
from ablation_runs import timed
from torchreg import L1
from torchreg.ablation import ablate
out, log, workers, seeds, seconds = sys.argv[1:]
alphas = [k / 64 for k in range(8)]
run = partial(timed, log=log, seconds=float(seconds))
ablate(run, L1(1.0), alphas, seeds=range(int(seeds)), out=out, workers=int(workers), retries=100, progress=False)
"""


@contextmanager
def driver(out, log, *, workers, seeds, seconds):
    """A driver in a process and a group of its own, as in another terminal."""
    command = [sys.executable, "-c", DRIVER, out, log, workers, seeds, seconds]
    environment = os.environ | {"PYTHONPATH": PATH}
    process = subprocess.Popen(
        list(map(str, command)), env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


class Witness:
    """Knows what was durable and how often it had run, and sees that neither is undone."""

    def __init__(self, out, log):
        self.out, self.log = out, log
        self.done = {}

    def look(self):
        rows = Ablation.load(self.out).rows if (self.out / "manifest.json").exists() else ()
        runs = Counter(noted(self.log))
        now = {row["key"]: (row, runs[f"{L1(row['alpha'])!r} {row['seed']}"]) for row in rows}
        for key, before in self.done.items():
            assert now[key] == before, "a durable row was lost, or a finished cell was run again"
        self.done = now
        assert all(row["status"] == "ok" and count >= 1 for row, count in now.values())
        return len(now)


# ---------------------------------------------------------------------------------------------------- kill -9


def drive_until_killed(run, out, log, seeds, cells, pause):
    """A serial driver, forked, so that 35 of them need no imports; killed some time after it has run so many cells."""
    before = len(noted(log))
    pid = forked(lambda: ablate(run, L1(1.0), ALPHAS, seeds=range(seeds), out=out))
    try:
        until(lambda: len(noted(log)) >= before + cells)
        time.sleep(pause)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.mark.slow
def test_35_kills_of_a_driver_lose_and_repeat_nothing(out, log):
    draw, witness = random.Random(0), Witness(out, log)
    run = partial(timed, log=log, seconds=0.002)
    for _ in range(35):
        drive_until_killed(run, out, log, 200, draw.randrange(30), draw.uniform(0.0, 0.01))
        witness.look()
    assert 8 < len(witness.done) < 1600, "the kills were to come in the middle"
    ablate(run, L1(1.0), ALPHAS, seeds=range(200), out=out)
    assert witness.look() == 1600
    assert sum(Counter(noted(log)).values()) <= 1600 + 35  # one cell may have been cut off between its end and its row


@pytest.mark.slow
def test_15_kills_of_workers_and_their_drivers_lose_and_repeat_nothing(out, log):
    draw, witness, kills = random.Random(1), Witness(out, log), 0
    while kills < 15:
        with driver(out, log, workers=2, seeds=100, seconds=0.02) as process:
            for _ in range(4):
                count = len(noted(log))
                until(lambda count=count: len(noted(log)) > count or process.poll() is not None)
                time.sleep(draw.uniform(0.0, 0.3))
                if running := list(filter(alive, workers_of(out))):
                    with suppress(ProcessLookupError):
                        os.kill(draw.choice(running), signal.SIGKILL)
                        kills += 1
                witness.look()
            assert process.poll() is None, process.stderr.read()
            process.kill()
            kills += 1
        assert gone(workers_of(out)), "workers of a driver that was killed"
        witness.look()
    assert 8 < len(witness.done) < 800, "the kills were to come in the middle"
    ablate(partial(timed, log=str(log), seconds=0.02), L1(1.0), ALPHAS, seeds=range(100), out=out)
    assert witness.look() == 800


# ------------------------------------------------------------------------------------------------ two drivers


def test_a_second_driver_is_told_who_the_first_is(out, log):
    with driver(out, log, workers=0, seeds=1, seconds=5.0) as first:
        until(lambda: (out / "manifest.json").exists())
        with pytest.raises(LedgerBusy, match=f"process {first.pid} on {socket.gethostname()}.*merge"):
            ablate(partial(quick, log=log), L1(1.0), [0.1], out=out)
        assert len(Ablation.load(out).rows) == 0, "reading needs no lock"


def test_a_driver_waits_for_the_workers_of_a_dead_one(out, log):
    """A stopped worker cannot notice that its driver is gone; its shared lock tells the next driver."""
    with driver(out, log, workers=1, seeds=500, seconds=0.05) as first:
        until(lambda: noted(log))
        (worker,) = workers_of(out)
        os.kill(worker, signal.SIGSTOP)
        first.kill()
        first.wait()
        pid = os.fork()
        if pid == 0:
            time.sleep(1.0)
            os.kill(worker, signal.SIGCONT)
            os._exit(0)
        begin = time.monotonic()
        found = ablate(partial(quick, log=log), L1(1.0), [0.5], out=out, on_change="new")
        assert time.monotonic() - begin > 0.9
        os.waitpid(pid, 0)
    assert len(found.rows) == 1
    assert gone([worker])


def test_a_lock_is_not_inherited_by_forks(out):
    """A data loader's process that outlives its driver must not hold the ledger."""
    ready, tell = os.pipe()

    def run(penalty):
        if os.fork() == 0:
            os.setsid()
            os.write(tell, f"{os.getpid()}\n".encode())
        time.sleep(600)
        os._exit(0)

    pid = forked(lambda: ablate(run, L1(1.0), [0.1], out=out))
    child = int(told(ready))
    try:
        with pytest.raises(LedgerBusy, match=f"process {pid}"):
            ablate(run, L1(1.0), [0.1], out=out)
        os.kill(pid, signal.SIGKILL)
        until(lambda: not alive(pid))
        assert alive(child)
        ablate(lambda penalty: {"a": 1}, L1(1.0), [0.1], out=out)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.kill(child, signal.SIGKILL)
        os.close(ready), os.close(tell)


# ------------------------------------------------------------------------------------------------------ disks


@contextmanager
def file_limit(size):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_may_not_grow_is_a_clear_error_and_the_next_call_goes_on(out, log):
    def run(penalty, seed):
        return quick(penalty, seed, log) | {"text": "x" * 500}

    with file_limit(4096), pytest.raises(LedgerError, match=r"could not be written.*File too large.*run the same line"):
        ablate(run, L1(1.0), [0.1], seeds=range(20), out=out)
    done = len(Ablation.load(out).rows)
    assert 1 <= done < 20
    assert len(noted(log)) == done + 1
    assert all(file.read_bytes().endswith(b"\n") for file in (out / "rows").iterdir())
    assert len(ablate(run, L1(1.0), [0.1], seeds=range(20), out=out).rows) == 20
    assert len(noted(log)) == 20 + 1  # what had no row


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, check=False
    ).returncode:
        pytest.skip("no right to mount a small disk")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def remount(disk, options):
    subprocess.run(["mount", "-o", f"remount,{options}", disk], check=True)


def big(penalty, seed, log):
    return quick(penalty, seed, log) | {"text": "x" * 3000}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_full_disk_is_a_clear_error_and_the_next_call_goes_on(workers, small_disk, log):
    run, out = partial(big, log=log), small_disk / "results"
    with pytest.raises(LedgerError, match=r"could not be written.*No space left.*run the same line"):
        ablate(run, L1(1.0), [0.1], seeds=range(40), out=out, workers=workers)
    done = len(Ablation.load(out).rows)
    assert 1 <= done < 40
    with pytest.raises(LedgerError, match="could not be written"):
        ablate(run, L1(1.0), [0.1], seeds=range(40), out=out, workers=workers)
    assert len(Ablation.load(out).rows) == done
    remount(small_disk, "size=4m")
    assert len(ablate(run, L1(1.0), [0.1], seeds=range(40), out=out, workers=workers).rows) == 40
    counts = Counter(noted(log))
    assert len(counts) == 40
    assert sum(counts.values()) <= 40 + 2


def test_a_disk_that_is_full_from_the_start_leaves_nothing_half_made(small_disk, log):
    run, out = partial(quick, log=log), small_disk / "results"
    with pytest.raises(OSError, match="No space"), (small_disk / "other").open("wb") as file:
        file.write(bytes(2**20))
    with pytest.raises(LedgerError, match="No space left"):
        ablate(run, L1(1.0), [0.1], out=out)
    (small_disk / "other").unlink()
    assert len(ablate(run, L1(1.0), [0.1], out=out).rows) == 1
    assert len(noted(log)) == 1
    assert len((out / "mark").read_text()) == 32


def test_a_disk_that_is_read_only_is_a_clear_error(small_disk, log):
    run, out = partial(quick, log=log), small_disk / "results"
    ablate(run, L1(1.0), [0.1], out=out)
    remount(small_disk, "ro")
    for place in (out, small_disk / "new"):
        with pytest.raises(LedgerError, match=r"cannot be (written to|made).*give another directory"):
            ablate(run, L1(1.0), [0.1, 0.2], out=place)
    assert len(Ablation.load(out).rows) == len(noted(log)) == 1


# ----------------------------------------------------------------------------------------------------- Ctrl-C


@pytest.mark.slow
@pytest.mark.parametrize("when", ["while workers start", "while cells run"])
def test_ctrl_c_stops_within_seconds_and_leaves_nobody_behind(when, out, log):
    witness = Witness(out, log)
    with driver(out, log, workers=2, seeds=4, seconds=0.3) as process:
        until(lambda: noted(log) if when == "while cells run" else starting(process.pid))
        started = children(process.pid)
        begin = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the driver's whole group
        told = process.communicate(timeout=30)[1]
        assert time.monotonic() - begin < 10.0
    assert process.returncode not in (0, -signal.SIGKILL)
    assert told.count("Traceback") == 1, told
    assert "KeyboardInterrupt\nEvery finished cell is in" in told
    assert gone([*started, *workers_of(out)])
    witness.look()
    with driver(out, log, workers=2, seeds=4, seconds=0.3) as process:
        assert process.communicate(timeout=60) == (None, "")
    assert witness.look() == 32


def children(pid):
    """Processes that a process has started, resource trackers too."""
    with suppress(FileNotFoundError):
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def starting(pid):
    """Those that will be workers; what asks git for the commit comes before any of them."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return [p for p in children(pid) if b"spawn_main" in Path(f"/proc/{p}/cmdline").read_bytes()]
    return []


def test_a_fork_that_returns_from_run_does_not_drive_on(out, log):
    def run(penalty, seed):
        child = os.fork()
        if child:
            os.waitpid(child, 0)
        else:
            sys.exit(0)
        return quick(penalty, seed, log)

    rows = ablate(run, L1(1.0), [0.1], seeds=range(3), out=out).rows
    assert [row["status"] for row in rows] == ["ok"] * 3
    assert len(noted(log)) == 3


# ------------------------------------------------------------------------------------------------------ clocks


def test_a_clock_that_is_set_back_changes_no_order(out, tmp_path, monkeypatch):
    """The later of two tries counts, though its time is earlier."""
    times = iter(f"{2030 - k}-01-01T00:00:00Z" for k in range(30))

    class Back(provenance.datetime):
        @classmethod
        def now(cls, zone=None):
            return provenance.datetime(int(next(times)[:4]), 1, 1, tzinfo=zone)

    monkeypatch.setattr(provenance, "datetime", Back)
    monkeypatch.setattr(time, "time", lambda: 0.0)

    def run(penalty):
        note(tmp_path / "tries", "try")
        raise RuntimeError(f"try {len(noted(tmp_path / 'tries'))}")

    for k in (1, 2, 3):
        with pytest.warns(RuntimeWarning, match=f"try {k}"):
            (row,) = ablate(run, L1(1.0), [0.1], out=out).rows
        assert row["attempt"] == k
        assert f"try {k}" in row["error"]


def test_a_working_directory_that_is_gone_is_no_hindrance(tmp_path, monkeypatch):
    gone_soon = tmp_path / "gone"
    gone_soon.mkdir()
    monkeypatch.chdir(gone_soon)
    gone_soon.rmdir()
    found = ablate(lambda penalty: {"a": 1}, L1(1.0), [0.1], out=tmp_path / "results")
    assert len(found.rows) == 1
    assert found.manifest["sessions"][0]["directory"] is None
