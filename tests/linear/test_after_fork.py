"""A forked child fits although torch's threads stayed behind in its parent. A hang is killed, and fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
PATIENCE = 150  # seconds: the fits take a few, a hang takes forever

SETUP = """
    import concurrent.futures, multiprocessing, os, sys, threading, warnings
    import numpy as np
    import torch
    from torchreg import L1, L2
    from torchreg.linear import Lasso, Logistic, LogisticRegression, fit_path, refit

    warnings.filterwarnings("ignore", message=".*fork.*")
    torch.set_num_threads(2)
    X = torch.randn(3000, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = X[:, 0] - X[:, 1] + torch.randn(3000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def fitted(_=0):
        return torch.cat([
            fit_path(X, y, L1(1.0), alphas=3).coefs.flatten(),
            fit_path(X, (y > 0).double(), L1(1.0), datafit=Logistic(), alphas=2).coefs.flatten(),
            torch.as_tensor(Lasso(0.1).fit(X.numpy(), y.numpy()).coef_),
        ])

    def same(found, where):
        torch.testing.assert_close(found, expected)
        print(where, flush=True)

    def in_child(work):
        if not os.fork():
            work()
            sys.stdout.flush()
            os._exit(0)
        assert os.wait()[1] == 0

    expected = fitted()
    assert torch.get_num_threads() == 2
"""


def run(script: str) -> list[str]:
    """The words that a script prints in a process of its own with two threads; killed with all its children."""
    surroundings = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SETUP) + textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=surroundings | {"OMP_WAIT_POLICY": "PASSIVE"},  # threads that wait do not take the time of others
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, _ = process.communicate()
        pytest.fail(f"a forked child hung for {PATIENCE} s, after {out.split()}")
    assert process.returncode == 0, err
    return out.split()


def test_forked_processes_pools_and_workers_fit():
    words = run("""
        in_child(lambda: (same(fitted(), "child"), print(torch.get_num_threads())))
        print(torch.get_num_threads())

        forks = multiprocessing.get_context("fork")
        with forks.Pool(2) as pool:
            for found in pool.map(fitted, range(2)):
                same(found, "pool")
        with concurrent.futures.ProcessPoolExecutor(2, mp_context=forks) as pool:
            for found in pool.map(fitted, range(2)):
                same(found, "executor")

        class Fits(torch.utils.data.Dataset):
            def __len__(self):
                return 1

            def __getitem__(self, k):
                torch.set_num_threads(2)  # a worker of torch has one, unless it asks for more
                return fitted()

        for found in torch.utils.data.DataLoader(Fits(), None, num_workers=1, multiprocessing_context="fork"):
            same(found, "worker")
    """)
    child = ["child", "1", "2"]  # the parent goes on with its two threads
    assert words == [*child, "pool", "pool", "executor", "executor", "worker"]


def test_threads_and_children_of_a_child_fit():
    words = run("""
        def both(where):
            thread = threading.Thread(target=lambda: same(fitted(), where))
            thread.start()
            thread.join()
            same(fitted(), where)

        def child():
            both("child")
            torch.set_num_threads(2)
            in_child(lambda: both("grandchild"))

        in_child(child)
    """)
    assert words == ["child", "child", "grandchild", "grandchild"]


def test_what_the_parent_has_fitted_serves_the_child():
    words = run("""
        path = fit_path(X, y, L1(1.0), alphas=3)
        several = fit_path(X[:, :3], X.repeat(1, 400), L2(1.0), alphas=[1.0, 0.5])
        model = LogisticRegression(l1_ratio=1.0).fit(X.numpy(), y.numpy() > 0)
        many = np.tile(X.numpy(), (20, 1))
        known = path.predict(X), refit(path, X, y).coefs, several.coefs, torch.as_tensor(model.predict_proba(many))
        for k, work in enumerate([
            lambda: path.predict(X),
            lambda: refit(path, X, y).coefs,
            lambda: several.coefs,
            lambda: torch.as_tensor(model.predict_proba(many)),
        ]):
            in_child(lambda: (torch.testing.assert_close(work(), known[k]), print(k)))
    """)
    assert words == ["0", "1", "2", "3"]
