"""Training functions of the tests of ablations, in a module that workers can import, and what watches processes."""

from __future__ import annotations

import ctypes
import math
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from torchreg.ablation import execute
from torchreg.ablation.ledger import provenance

GPU_AT_IMPORT = os.environ.get("CUDA_VISIBLE_DEVICES")  # as code sees it that asks for the device at its top


def note(log, text):
    """Add a line to a file that no part of the library knows, durably: the count of what was really run."""
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(file, f"{text}\n".encode())
    os.fsync(file)
    os.close(file)


def noted(log):
    """What `note` wrote."""
    return Path(log).read_text().split("\n")[:-1] if Path(log).exists() else []


def alive(pid):
    """Whether a process runs; one that is dead and not yet taken from the kernel does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def gone(pids, patience=5.0):
    end = time.monotonic() + patience
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.02)
    return not any(map(alive, pids))


def until(condition, patience=60.0):
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def forked(act):
    """The number of a child of this process that acts and ends, whatever happens to it."""
    pid = os.fork()
    if pid == 0:
        try:
            act()
        finally:
            os._exit(0)
    return pid


def told(pipe, patience=60.0):
    """What comes out of a pipe; whoever should write to it may be dead."""
    assert select.select([pipe], [], [], patience)[0], "waited in vain"
    return os.read(pipe, 100)


def workers_of(out):
    return [int(p.stem.rpartition("-")[2]) for p in (out / "logs").glob("*.log")]


def quick(penalty, seed, log):
    note(log, f"{penalty!r} {seed}")
    return {"loss": penalty.alpha + seed}


def timed(penalty, seed, log, seconds=0.0):
    """Notes its end, so that a cell that was cut off does not count."""
    time.sleep(seconds)
    note(log, f"{penalty!r} {seed}")
    return {"loss": penalty.alpha + seed}


def warm(cell, log):
    """A path: the state is the list of strengths that led here."""
    trail = [*(cell.start() or {"trail": []})["trail"], cell.alpha]
    note(log, f"{cell.alpha} {cell.seed}")
    cell.save({"trail": trail, "w": torch.tensor(trail)})
    return {"trail": trail}


def process(penalty, seed):
    told = {"pid": os.getpid(), "group": os.getpgid(0), "threads": torch.get_num_threads()}
    return told | {"gpu at import": GPU_AT_IMPORT, "blas": int(os.environ["OMP_NUM_THREADS"])}


def _limited(more, act):
    """``act()`` while this process may have ``more`` bytes of memory than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, hard))
    try:
        return act()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _child(log):
    note(log, f"child {subprocess.Popen(['sleep', '600']).pid}")


def _stubborn(log):
    _child(log)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)
    while True:
        time.sleep(600)


def _once(log, what):
    if f"done {what}" not in noted(log):
        note(log, f"done {what}")
        os.kill(os.getpid(), signal.SIGKILL)


def _without_directory():
    gone = tempfile.mkdtemp()
    os.chdir(gone)
    shutil.rmtree(gone)


def _dies_before_its_child(log):
    child = os.fork()
    if child == 0:
        time.sleep(600)
    note(log, f"child {child}")
    os.kill(os.getpid(), signal.SIGKILL)


def _dies_before_it_tells():
    append = execute.append

    def append_and_die(*row):
        append(*row)
        os._exit(0)

    execute.append = append_and_die


def _print_a_lot():
    for _ in range(50):
        print("x" * 2**20)


def _clock_set_back():
    class Past(datetime):
        @classmethod
        def now(cls, *zone):
            return datetime(1970, 1, 1, tzinfo=UTC)

    provenance.datetime, time.time = Past, lambda: 0.0


MISCHIEF = {
    "nothing": lambda log: None,
    "raises": lambda log: 1 / 0,
    "exits": lambda log: sys.exit(3),
    "ends the process": lambda log: os._exit(0),
    "is killed": lambda log: os.kill(os.getpid(), signal.SIGKILL),
    "is killed once": lambda log: _once(log, "is killed once"),
    "reads address 0": lambda log: ctypes.string_at(0),
    "hangs": _stubborn,
    "leaves a child": _child,
    "exhausts memory": lambda log: _limited(2**26, lambda: bytearray(2**31)),
    "prints": lambda log: _print_a_lot(),
    "removes its directory": lambda log: _without_directory(),
    "ignores signals": lambda log: [signal.signal(n, signal.SIG_IGN) for n in (signal.SIGINT, signal.SIGTERM)],
    "sets the clock back": lambda log: _clock_set_back(),
    "dies before it tells": lambda log: _dies_before_it_tells(),
    "dies before its child": _dies_before_its_child,
    "forks": lambda log: os.fork(),
    "loads data in a process": lambda log: list(DataLoader(range(4), num_workers=1)),
}


def mischief(penalty, what, log):
    note(log, what)
    MISCHIEF[what](log)
    return {"a": math.nan if what == "nothing" else 1.0}
