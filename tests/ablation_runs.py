"""Training functions of the tests of ablations: in a module, so that workers can import them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch


def note(log, text):
    """Add a line to a file that no part of the library knows, durably: the count of what was really run."""
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(file, f"{text}\n".encode())
    os.fsync(file)
    os.close(file)


def noted(log):
    """What `note` wrote."""
    return Path(log).read_text().split("\n")[:-1] if Path(log).exists() else []


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
    return {"pid": os.getpid(), "group": os.getpgid(0), "threads": torch.get_num_threads()}
