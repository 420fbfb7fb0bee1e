"""What is left of torch's threads in a forked process: one."""

from __future__ import annotations

import os
import sys
import threading

import torch

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


def _count() -> None:
    global _forks
    _forks += 1


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_count)
