"""``torchreg ablate``: its numbers are ablate's, its errors say what to do, Ctrl-C loses nothing."""

import contextlib
import csv
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

import torchreg
from torchreg import L1, L1L2, L2, Ablation, TotalVariation
from torchreg.cli import main
from torchreg.cli.ablate.arguments import PENALTIES, alphas, axis, penalty, seeds

TRAIN = """
import os, time
from torchreg import L1L2
MINE = L1L2(5.0, l1_ratio=0.25)
NOT = 3
def run(penalty, seed, width=2, kind="plain"):
    if penalty.alpha == 0.5:
        raise RuntimeError("this strength is cursed")
    return {"val_loss": penalty.alpha * width + seed, "label": kind}
def slow(penalty, seed):
    time.sleep(0.2)
    return {"loss": 1.0}
"""
GRID = ["--alphas", "0,0.1:10:3", "--seeds", "2"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder to work in, with a module of its own name, since modules stay imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = f"train_{abs(hash(tmp_path)) % 10**12}"
    Path(f"{name}.py").write_text(TRAIN)
    yield name
    sys.modules.pop(name, None)


def test_a_run_prints_the_table_of_its_rows_and_a_longer_one_runs_what_is_new(folder, capsys):
    assert main(["ablate", "run", f"{folder}:run", *GRID, "--penalty", "l1", "--penalty", f"own={folder}:MINE"]) == 0
    done = Ablation.load("runs/run")
    assert repr(done.summary()) in capsys.readouterr().out
    assert {(row["penalty"], row["alpha"], row["seed"]) for row in done.rows} == {
        (name, alpha, seed) for name in ("l1", "own") for alpha in (0.0, 0.1, 1.0, 10.0) for seed in (0, 1)
    }
    assert done.manifest["penalties"]["own"] == L1L2(1.0, l1_ratio=0.25).spec()
    assert main(["ablate", "run", f"{folder}:run", "--alphas", "0,0.1,3", "--seeds", "3"]) == 0
    more = Ablation.load("runs/run")
    assert {row["key"] for row in done.rows} < {row["key"] for row in more.rows}
    assert {row["attempt"] for row in more.rows} == {1}


def test_axes_are_numbers_or_text_and_reach_the_function(folder):
    grid = ["--grid", "width=3,4", "--grid", "kind=plain,1e-3"]
    assert main(["ablate", "run", f"{folder}:run", "--alphas", "1", *grid]) == 0
    rows = Ablation.load("runs/run").rows
    assert {(row["width"], row["kind"]) for row in rows} == {(3, "plain"), (4, "plain"), (3, 0.001), (4, 0.001)}
    assert all(row["val_loss"] == row["width"] and row["label"] == row["kind"] for row in rows)


def test_failed_cells_are_told_once_and_end_the_command_with_1(folder, capsys):
    assert main(["ablate", "run", f"{folder}:run", "--alphas", "0.5,1", "--seeds", "2"]) == 1
    out = capsys.readouterr()
    assert "2 of 4 cells failed by RuntimeError: this strength is cursed" in out.out
    assert "Warning" not in out.err
    assert main(["ablate", "status", "runs/run"]) == 0
    assert "2 done, 2 failed, 0 missing" in capsys.readouterr().out


def test_table_plot_report_and_merge(folder, capsys):
    main(["ablate", "run", f"{folder}:run", *GRID, "--out", "a"])
    main(["ablate", "run", f"{folder}:run", "--alphas", "7", "--penalty", "l2", "--out", "b"])
    capsys.readouterr()
    assert main(["ablate", "table", "a", "--by", "alpha", "--ci", "0.9", "--csv", "t.csv"]) == 0
    table = Ablation.load("a").summary(["alpha"], ci=0.9)
    assert repr(table) in capsys.readouterr().out
    with open("t.csv", newline="") as file:
        assert [float(row["val_loss.high"]) for row in csv.DictReader(file)] == list(table.column("val_loss.high"))
    assert main(["ablate", "merge", "c", "a", "b"]) == 0
    assert {row["penalty"] for row in Ablation.load("c").rows} == {"l1", "l2"}
    pytest.importorskip("matplotlib")
    assert main(["ablate", "plot", "a"]) == 0
    assert (Path("a") / "figures" / "val_loss.png").read_bytes().startswith(b"\x89PNG")
    assert main(["ablate", "report", "a", "--out", "r.html"]) == 0
    assert "val_loss" in Path("r.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["run", "{}:run"], "--alphas"),
        (["run", "{}", "--alphas", "1"], "must be MODULE:NAME"),
        (["run", "{}:nothing", "--alphas", "1"], "cannot be found"),
        (["run", "no_such_module:run", "--alphas", "1"], "cannot be found"),
        (["run", "{}:NOT", "--alphas", "1"], "which is no function"),
        (["run", "{}:run", "--alphas", "1", "--penalty", "l7"], "must be one of l0, l1"),
        (["run", "{}:run", "--alphas", "1", "--penalty", "{}:NOT"], "which is no penalty"),
        (["run", "{}:run", "--alphas", "1", "--penalty", "a=l1", "--penalty", "a=l2"], "two penalties have one name"),
        (["run", "{}:run", "--alphas=-1"], "finite number >= 0"),
        (["run", "{}:run", "--alphas", "1:2"], "LOW:HIGH:N"),
        (["run", "{}:run", "--alphas", "2:1:3"], "0 < low < high"),
        (["run", "{}:run", "--alphas", "1,1"], "holds 1.0 twice"),
        (["run", "{}:run", "--alphas", "1", "--seeds", "0"], "whole number >= 1"),
        (["run", "{}:run", "--alphas", "1", "--grid", "width"], "NAME=A,B"),
        (["run", "{}:run", "--alphas", "1", "--grid", "depth=1"], "takes no 'depth'"),
        (["run", "{}:run", "--alphas", "1", "--timeout", "3"], "workers=1 or more"),
        (["run", "{}:run", "--alphas", "1", "--gpus", "1"], "--ray"),
        (["run", "{}:run", "--alphas", "1", "--out", "full"], "holds other files"),
        (["status", "full"], "holds no ablation"),
        (["table", "nowhere"], "holds no ablation"),
        (["merge", "full", "full"], "is not empty"),
        (["run", "{}:run", "--alphas", "1", "--workers", "2", "--ray"], "either workers or an executor"),
    ],
)
def test_errors_say_what_is_wrong_and_leave_no_directory(folder, arguments, told, capsys):
    if "--ray" in arguments:
        pytest.importorskip("ray")
    Path("full").mkdir()
    Path("full/mine.txt").write_text("mine")
    with pytest.raises(SystemExit) as left:
        main(["ablate", *(argument.replace("{}", folder) for argument in arguments)])
    assert left.value.code == 2
    assert told in capsys.readouterr().err
    assert not Path("runs").exists()
    assert [path.name for path in Path("full").iterdir()] == ["mine.txt"]


def test_texts_mean_what_the_help_says():
    assert alphas("0,1e-2:1:3,5") == (0.0, 0.01, 0.1, 1.0, 5.0)
    assert seeds("3") == (0, 1, 2)
    assert seeds("3,") == (3,)
    assert seeds("5,7") == (5, 7)
    assert axis('width=64,0.5,true,text,"a,b"') == ("width", (64, 0.5, True, "text", "a,b"))
    assert penalty("ridge=l2") == ("ridge", L2(1.0))
    assert penalty("l1") == ("l1", L1(1.0))
    assert penalty("lasso") == ("l1", L1(1.0))  # a word of an earlier version
    assert penalty("flat=tv") == ("flat", TotalVariation(1.0))
    assert all(penalty(name) == (name, found) for name, found in PENALTIES.items())


def shell(*arguments: str, **options):
    path = os.pathsep.join([str(Path(torchreg.__file__).parents[1]), str(Path.cwd())])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
    return subprocess.Popen([sys.executable, "-m", "torchreg", "ablate", *arguments], env=env, **options)


@pytest.mark.slow
def test_progress_is_shown_on_a_terminal_alone(folder):
    quiet = shell("run", f"{folder}:run", *GRID, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert quiet.communicate(timeout=60)[1] == b""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    shown = shell("run", f"{folder}:run", *GRID, "--out", "again", stdout=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    text = ""
    with contextlib.suppress(OSError):  # the terminal is gone when its last writer is
        while more := os.read(ours, 100_000):
            text += more.decode()
    os.close(ours)
    assert shown.wait(timeout=60) == 0
    assert re.search(r"8/8 .*failed=0", text), text
    assert "<" in text  # elapsed<remaining


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
def test_ctrl_c_ends_with_130_and_the_same_line_goes_on(folder, workers):
    line = ("run", f"{folder}:slow", "--alphas", "0,1,2,3,4", "--seeds", "2", "--workers", workers)
    first = shell(*line, stderr=subprocess.PIPE, start_new_session=True)
    rows = Path("runs/slow/rows")
    end = time.monotonic() + 300
    while not any(path.read_bytes().count(b"\n") >= 2 for path in rows.glob("*.jsonl")):
        assert time.monotonic() < end, "no rows in 300 seconds"
        assert first.poll() is None, first.stderr.read().decode()
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGINT)
    said = first.communicate(timeout=120)[1].decode()
    assert first.returncode == 130, said
    assert "run the same line again" in said
    assert "Traceback" not in said
    stopped = Ablation.load("runs/slow")
    assert 2 <= stopped.status().done < 10
    assert shell(*line).wait(timeout=300) == 0
    finished = Ablation.load("runs/slow")
    assert finished.status().done == 10
    kept = {row["key"]: row for row in finished.rows}
    assert all(kept[row["key"]] == row for row in stopped.rows)
