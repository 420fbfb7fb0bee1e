"""How many threads torch computes on: one in a forked process, where the others are left behind, and for small fits."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_SMALL = 1 << 19  # entries of X: threads of a fit so small wait for one another, and longer where others compute too

_forks = 0  # between the first process that imported this and the present one
_minded = threading.local()  # in which of them the present thread was told; torch counts threads thread by thread


def one_thread_after_fork() -> None:
    """In a forked process, let torch compute on one thread from now on.

    The threads of OpenMP do not survive a fork: a child whose parent has computed with them waits for them forever. So
    do workers of process pools and of a DataLoader where they are forked. Anywhere else nothing happens, and whoever
    knows better in the child can call ``torch.set_num_threads`` after the first fit.
    """
    if getattr(_minded, "forks", 0) != _forks:
        torch.set_num_threads(1)
        _minded.forks = _forks


@contextmanager
def one_thread_if_small(entries: int) -> Iterator[None]:
    """Let torch compute on one thread inside the block if X has few entries, and afterwards on as many as before."""
    one_thread_after_fork()
    threads = torch.get_num_threads()
    if threads == 1 or entries > _SMALL:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _count() -> None:
    global _forks
    _forks += 1


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_count)
