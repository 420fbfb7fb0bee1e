"""Cells in worker processes: what a run may do to its process, and what it costs: its own cell alone."""

import os
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path

import ablation_runs
import pytest
import torch
from ablation_runs import MISCHIEF, gone, mischief, noted, process, quick, until, warm, workers_of

from torchreg import L1
from torchreg.ablation import CellsFailed, WorkerError, ablate
from torchreg.ablation.executors.processes import Processes
from torchreg.ablation.executors.worker import Worker
from torchreg.cli import main

ablate = partial(ablate, progress=False)
SUPPORT = Path(ablation_runs.__file__).parent


def script(tmp_path, text, **options):
    """Run a script that can import what the tests import."""
    file = tmp_path / "script.py"
    file.write_text(text)
    paths = os.pathsep.join((str(SUPPORT), str(Path(ablation_runs.execute.__file__).parents[2])))
    settings = {"capture_output": True, "text": True, "timeout": 120, "cwd": tmp_path}
    return subprocess.run([sys.executable, file], env=os.environ | {"PYTHONPATH": paths}, **settings | options)


@pytest.mark.slow
def test_whatever_a_run_does_costs_its_own_cell_alone(out, log):
    limit = 20.0  # seconds, in which a slow machine too starts a loader's process
    with pytest.warns(CellsFailed):
        found = ablate(
            partial(mischief, log=log), L1(1.0), [0.1], grid={"what": list(MISCHIEF)}, out=out, workers=2, timeout=limit
        )
    told = {row["what"]: row["error"] for row in found.rows}
    failed = {what: error.splitlines()[0] for what, error in told.items() if error is not None}
    assert set(told) == set(MISCHIEF)
    assert failed.pop("raises") == "ZeroDivisionError: division by zero"
    assert failed.pop("exits") == "SystemExit: 3"
    assert failed.pop("exhausts memory").startswith("MemoryError")
    assert failed.pop("hangs") == "TimeoutError: stopped, since it took longer than 20.0 s"
    ends = {"ends the process": "exit code 0", "is killed": "signal 9", "dies before its child": "signal 9"}
    ends |= {"reads address 0": "signal 11"}
    for what, how in ends.items():
        assert how in failed.pop(what)
    assert failed == {}
    runs = Counter(noted(log))
    twice = (*ends, "is killed once")
    assert {what: runs[what] for what in MISCHIEF} == {what: 2 if what in twice else 1 for what in MISCHIEF}
    children = [int(line.split()[1]) for line in noted(log) if line.startswith("child")]
    assert len(children) == 4
    assert gone([*children, *workers_of(out)])
    assert sum(file.stat().st_size for file in (out / "logs").iterdir()) > 50 * 2**20
    (back,) = (row for row in found.rows if row["what"] == "sets the clock back")
    assert 0.0 <= back["seconds"] < limit


def test_workers_are_kept_and_have_their_share(out, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,8")
    before = dict(os.environ)
    found = ablate(process, L1(1.0), [0.0, 0.1, 0.2], seeds=range(20), out=out, workers=2)
    pids = {row["pid"] for row in found.rows}
    assert len(found.rows) == 60
    assert pids == set(workers_of(out))
    assert len(pids) == 2
    assert os.getpid() not in pids
    assert all(row["group"] == row["pid"] for row in found.rows)
    assert {row["gpu at import"] for row in found.rows} == {"7", "8"}
    assert {row["threads"] for row in found.rows} == {torch.get_num_threads()} == {row["blas"] for row in found.rows}
    assert dict(os.environ) == before
    assert gone(pids)


def test_nothing_to_do_starts_no_worker(out):
    ablate(quick_of(out), L1(1.0), [0.1], out=out)
    ablate(quick_of(out), L1(1.0), [0.1], out=out, workers=2)
    assert workers_of(out) == []


def quick_of(out):
    return partial(quick, log=out.parent / "log")


def test_a_worker_that_dies_idle_costs_no_cell(out):
    engine = Processes(1)
    (out / "rows").mkdir(parents=True)
    engine.open(out)
    try:
        pids = []
        for _ in range(2):
            future = engine.submit(_pid, None)
            pids.append(future.result(60))
            engine.settle(future)
            os.kill(pids[-1], signal.SIGKILL)
            with suppress(ChildProcessError):  # dead with all its threads, as the kernel says it
                os.waitid(os.P_PID, pids[-1], os.WEXITED | os.WNOWAIT)
        assert len(set(pids)) == 2
    finally:
        engine.close()


def test_a_worker_that_dies_between_a_look_and_its_cell_loses_that_cell_alone(out, monkeypatch):
    """Whatever the moment, a future is lost as that of any worker that died; nothing is raised at the driver."""
    engine = Processes(1)
    (out / "rows").mkdir(parents=True)
    engine.open(out)
    try:
        first = engine.submit(_pid, None)
        assert first.result(60)
        engine.settle(first)
        monkeypatch.setattr(Worker, "alive", True)  # as it was a moment ago
        os.kill(first.result(), signal.SIGKILL)
        until(lambda: not Path(f"/proc/{first.result()}").exists())  # the pool knows
        lost = engine.submit(_pid, None)
        assert engine.lost(lost.exception(60))
        engine.settle(lost)
        assert any("killed by signal 9" in note for note in lost.exception().__notes__)
        again = engine.submit(_pid, None)
        assert again.result(60) != first.result()
        engine.settle(again)
    finally:
        engine.close()


def _pid(nothing):
    return os.getpid()


@pytest.mark.slow
def test_a_path_goes_on_where_its_process_died_and_each_cell_has_its_own_retries(out, log):
    """Its process dies at two cells, once at each: with one retry for a cell, that is no failure."""
    run = partial(dies_twice, log=log)
    found = ablate(run, L1(1.0), [0.1, 0.2, 0.3, 0.4, 0.5], path="ascending", out=out, workers=1, retries=1)
    assert [row["status"] for row in found.rows] == ["ok"] * 5
    assert [row["trail"] for row in found.rows][-1] == [0.1, 0.2, 0.3, 0.4, 0.5]
    runs = Counter(noted(log))
    assert [runs[f"{alpha} 0"] for alpha in (0.1, 0.2, 0.3, 0.4, 0.5)] == [1, 1, 1, 1, 1]


def dies_twice(cell, log):
    if cell.alpha in (0.2, 0.4):
        ablation_runs._once(log, cell.alpha)
    return warm(cell, log)


# ------------------------------------------------------------------------------- what cannot be sent or started


def test_what_cannot_be_sent_is_named_before_anything_starts(out):
    def closure(penalty):
        return {"a": 1}

    for run, name in ((lambda penalty: {"a": 1}, "<lambda>"), (closure, "closure"), (partial(closure), "closure")):
        with pytest.raises(TypeError, match=rf"{name} cannot be sent to workers.*RayExecutor"):
            ablate(run, L1(1.0), [0.1], out=out, workers=1)
    assert not out.exists()


@pytest.mark.parametrize("way", ["-", "-c"])
def test_a_function_that_was_typed_in_is_named(way, out):
    code = f"""
from torchreg import L1
from torchreg.ablation import ablate
def run(penalty):
    return {{"a": 1}}
ablate(run, L1(1.0), [0.1], out={str(out)!r}, workers=1)
"""
    typed = {"input": code} if way == "-" else {}
    command = [sys.executable, way] if way == "-" else [sys.executable, way, code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, **typed)
    assert done.returncode == 1
    assert "run was typed in a notebook or a shell" in done.stderr
    assert not out.exists()


HEAD = """
import sys
from torchreg import L1
from torchreg.ablation import ablate
def run(penalty):
    return {"a": penalty.alpha}
def main(run=run):
    print("start", file=open("starts", "a"))
    print(len(ablate(run, L1(1.0), [0.1, 0.2, 0.3], out="results", workers=2).rows))
"""
GUARDED = """
if __name__ == "__main__":
    main()
"""
UNDER_GUARD = """
if __name__ == "__main__":
    def mine(penalty):
        return {"a": penalty.alpha}
    main(mine)
"""
SCRIPTS = {
    "no guard": (HEAD + "main()", "call it under `if __name__ == '__main__':`"),
    "a function under the guard": (HEAD + UNDER_GUARD, "cannot load what it was sent"),
    "a top that fails in workers": (HEAD + GUARDED + "else:\n    raise ImportError('no licence')", "no licence"),
    "a top that ends in workers": (HEAD + GUARDED + "else:\n    sys.exit(0)", "exit code 0"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("text", "told"), SCRIPTS.values(), ids=SCRIPTS)
def test_workers_that_cannot_start_end_it_with_what_to_do(text, told, tmp_path):
    begin = time.monotonic()
    done = script(tmp_path, text)
    assert done.returncode == 1
    assert told in done.stderr
    assert "WorkerError" in done.stderr
    assert (tmp_path / "starts").read_text().count("start") <= 3  # the script itself, and what each worker imports
    assert list((tmp_path / "results" / "rows").iterdir()) == []  # no cell is blamed
    assert gone(workers_of(tmp_path / "results"))
    assert time.monotonic() - begin < 60.0
    mended = script(tmp_path, HEAD.replace("workers=2", "workers=0") + GUARDED)
    assert mended.stdout == "3\n", mended.stderr


def test_a_program_from_standard_input_has_no_workers(out):
    code = "from ablation_runs import *\nfrom torchreg.ablation import ablate\nfrom torchreg import L1\n"
    code += f"ablate(process, L1(1.0), [0.1], out={str(out)!r}, workers=1)"
    done = subprocess.run([sys.executable, "-"], input=code, capture_output=True, text=True, timeout=60, cwd=SUPPORT)
    assert "put it in a file" in done.stderr
    assert not out.exists()


def test_the_command_says_what_workers_cannot_load(tmp_path, monkeypatch, capsys):
    (tmp_path / "licensed.py").write_text(
        "import multiprocessing\nif multiprocessing.parent_process():\n    raise ImportError('no licence')\n"
        "def run(penalty, seed):\n    return {'a': 1}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["ablate", "run", "licensed:run", "--alphas", "0.1", "--workers", "1", "--out", str(tmp_path / "out")])
    assert ended.value.code == 2
    assert "cannot load what it was sent (ImportError: no licence)" in capsys.readouterr().err


def test_a_penalty_that_cannot_be_sent_is_named(out):
    class Mine(type(L1(1.0))):
        pass

    with pytest.raises(WorkerError, match="cannot be sent to workers"), warnings.catch_warnings():
        ablate(process, Mine(1.0), [0.1], out=out, workers=1)
