"""One command measures on a GPU what there is: rehearsed here, where a part that dies leaves the others."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from fake_device import PRETENDS

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import fit_cuml
import fit_gpu
import gpu
import gpu_record
import gpu_steps
from gpu_record import ROOT

rehearsed = pytest.mark.skipif(not PRETENDS, reason="needs the pretended device")


def ran(out: Path, *options: str, paths: Path | None = None, **environment: str) -> tuple[int, dict, str]:
    """Exit status, JSON and table of a rehearsal."""
    around = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(paths or "")} | environment
    command = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), "--tiny", "--out", str(out), *options]
    done = subprocess.run(command, env=around, capture_output=True, text=True)
    return done.returncode, json.loads((out / "gpu-tiny.json").read_text()), (out / "gpu-tiny.md").read_text()


@rehearsed
def test_a_rehearsal_runs_every_part_and_nothing_fails(out):
    code, found, table = ran(out)
    rows = [(part, row) for part, told in found["parts"].items() for row in told["rows"]]
    assert {part: told["status"] for part, told in found["parts"].items()} == dict.fromkeys(gpu.PARTS, "ran")
    assert [row for _, row in rows if row["verdict"].startswith(("failed", "missed"))] == []
    assert code == 0
    for part in ("steps", "fits"):
        assert {row["device"] for name, row in rows if name == part and "found" in row} == {"cpu", "fake"}
    assert {row["what"] for _, row in rows if row["verdict"] == "holds" and "waits" in row["what"]}
    assert all(math.isfinite(row["found"]) for _, row in rows if "found" in row)
    assert all(row["verdict"].startswith("not run: ") for _, row in rows if "found" not in row)
    assert found["parts"]["tests"]["rows"][0]["counts"]["passed"] >= 3
    assert found["environment"]["packages"]["torch"] == torch.__version__
    lines = table.splitlines()
    assert all(f"## {title}" in lines for title in gpu.TITLES.values())
    assert all(any(line.startswith(f"| {row['what']}") for line in lines) for _, row in rows)
    assert not list(out.glob("*.part")), "no half file is left"


DIES = """
import json, os, signal, sys, threading, time
from pathlib import Path

def die_after_a_row(path):
    while not (path.exists() and json.loads(path.read_text())["rows"]):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)

if any("optimizers_gpu.py" in word for word in sys.orig_argv):
    path = Path(sys.orig_argv[sys.orig_argv.index("--json") + 1])
    threading.Thread(target=die_after_a_row, args=[path], daemon=True).start()
"""


@rehearsed
def test_a_part_that_dies_keeps_its_rows_and_the_others_run(out, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(DIES)
    code, found, table = ran(out, "--only", "steps", "tests", paths=tmp_path)
    steps, tests = found["parts"]["steps"], found["parts"]["tests"]
    assert steps["status"] == f"failed: exit status -{signal.SIGKILL.value}"
    assert "L1 prox in place" in steps["rows"][0]["what"]
    assert "L1 prox in place" in steps["log"]
    assert tests["status"] == "ran"
    assert tests["rows"][0]["verdict"] == "holds"
    assert code == 1
    assert "failed: exit status" in table


@rehearsed
def test_a_part_is_stopped_at_its_limit_and_a_failed_test_is_told(out, tmp_path):
    (tmp_path / "broken.py").write_text("def pytest_runtest_call(item):\n    raise RuntimeError('broken on purpose')\n")
    began = time.monotonic()
    code, found, table = ran(
        out, "--only", "fits", "tests", "--limit", "fits=0.3", paths=tmp_path, PYTEST_ADDOPTS="-p broken"
    )
    assert found["parts"]["fits"]["status"] == "stopped after 0 s"
    assert found["parts"]["fits"]["seconds"] < time.monotonic() - began
    row = found["parts"]["tests"]["rows"][0]
    assert row["verdict"].startswith("failed: ")
    assert "broken on purpose" in table
    assert row["counts"]["failed"] == len(row["failures"]) >= 3
    assert code == 1


def test_other_arguments_are_refused(out):
    for options, words in ((["--limit", "sleep=3"], "tests, steps, fits"), (["--limit", "tests"], "PART=SECONDS")):
        command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--out", str(out), *options]
        done = subprocess.run(command, capture_output=True, text=True)
        assert (done.returncode, words in done.stderr, out.exists()) == (2, True, False)


@pytest.mark.parametrize(
    ("found", "bar", "words"),
    [
        (1.1, ("<=", 1.1), "holds"),
        (1.21, ("<=", 1.1), "missed by 10%"),
        (0.85, (">=", 0.85), "holds"),
        (0.68, (">=", 0.85), "missed by 20%"),
        (3, ("<=", 0), "missed by 3"),
        (9.0, None, ""),
        (math.nan, ("<=", 1.0), "missed by nan%"),
    ],
)
def test_verdicts(found, bar, words):
    assert gpu_record.verdict(found, bar) == words


@pytest.mark.parametrize(
    ("card", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-40GB", "a100"),
        ("Tesla T4", "t4"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        (None, "unknown"),
    ],
)
def test_files_are_named_after_the_card(card, name):
    assert gpu.name_of(card) == name


def test_a_measurement_that_fails_or_takes_too_long_is_a_row(capsys):
    record = gpu_record.Record(None, 100.0)

    def fails():
        raise ValueError("no such thing\nand more")

    def endless():
        while True:
            pass

    record.measure("works", lambda: [gpu_record.row("works", 2.0, "s")])
    record.measure("fails", fails)
    record.measure("endless", endless, at_most=0.2)
    record.measure("too late", fails, needs=1000.0)
    verdicts = [row["verdict"] for row in record.rows]
    assert verdicts == ["", "failed: ValueError: no such thing", "not run: not done after 0 s", "not run: out of time"]


def test_gaps_are_those_of_the_textbook(device):
    """For X'X = n I the solution is the soft threshold; at 0 the dual point y gives a bound that is known."""
    X = torch.eye(4, dtype=torch.float64).repeat(2, 1) * 2
    y = X @ torch.tensor([3.0, -2.0, 0.5, 0.0], dtype=torch.float64)
    c = X.T @ y / 8
    alphas = [float(c.abs().max()), 1.0]
    solution = torch.nn.functional.softshrink(c, 1.0) / (X.T @ X / 8).diagonal()
    given = fit_gpu.Problem(X.to(device), y.to(device), alphas)
    exact = torch.stack([torch.zeros(4, dtype=torch.float64), solution])
    assert fit_gpu.relative_gap(given, exact, alphas) == pytest.approx(0.0, abs=1e-12)
    share = 1.0 / alphas[0]  # of y, the dual point at coefficients of 0
    assert fit_gpu.relative_gap(given, torch.zeros(1, 4), [1.0]) == pytest.approx((1 - share) ** 2)


def test_problems_are_as_they_say(device):
    torch.manual_seed(0)
    for made in (fit_gpu.dense(200, 30, 7, device), fit_gpu.zipf(200, 300, 9, 7, device)):
        assert made.X.device.type == made.y.device.type == device.type
        X, y = made.X.to_dense().cpu(), made.y.cpu()
        assert float(y.mean()) == pytest.approx(0, abs=1e-12)
        assert float(y.square().mean()) == pytest.approx(1)
        assert made.alphas[0] == pytest.approx(float((X.T @ y).abs().max()) / 200)
        assert made.alphas[-1] / made.alphas[0] == pytest.approx(1e-3 if X.shape[1] == 30 else 1e-2)
    X = fit_gpu.dense(20_000, 3, 5, device).X.cpu()
    torch.testing.assert_close(X.mean(0), torch.zeros(3, dtype=X.dtype))
    correlated = torch.tensor([[1, 0.5, 0.25], [0.5, 1, 0.5], [0.25, 0.5, 1]], dtype=X.dtype)
    torch.testing.assert_close(X.T @ X / 20_000, correlated, rtol=0, atol=0.03)


def test_cumls_loop_finds_the_minimiser():
    torch.manual_seed(0)
    given = fit_gpu.dense(60, 20, 4, torch.device("cpu"))
    coefs = fit_cuml.coordinate_descent(given.X, given.y, given.alphas, 1e-10)
    assert fit_gpu.relative_gap(given, coefs, given.alphas) < 1e-8
    assert len(fit_cuml.coordinate_descent(given.X, given.y, given.alphas, 1e-10, seconds=0.0)) == 1


def test_waits_and_launches_are_counted(accelerator):
    x = torch.ones(3, device=accelerator)
    assert gpu_steps.waits(lambda: x.add_(1), accelerator) == 0
    assert gpu_steps.waits(lambda: (x.sum().item(), x.add_(1), x.max().item()), accelerator) == 2
    assert gpu_steps.launches(lambda: x.add_(1).mul_(2), accelerator) == 2


def test_where_there_is_a_gpu_the_mark_chooses_tests_on_any_accelerator(tmp_path):
    (tmp_path / "pretended.py").write_text("import torch\ntorch.cuda.is_available = lambda: True\n")
    files = [
        "tests/linear/test_path_result.py",
        "tests/training/test_devices.py",
        "tests/training/test_compiled_step.py",
    ]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "pretended",
        "-p",
        "no:cacheprovider",
        "-n0",
        "-q",
        "--collect-only",
    ]
    around = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run([*command, "-m", "gpu", *files], cwd=ROOT, env=around, capture_output=True, text=True)
    chosen = [line.split("::")[1] for line in done.stdout.splitlines() if "::" in line]
    assert "test_results_lie_on_one_device" in chosen
    assert any(name.startswith("test_a_captured_step") for name in chosen)
    strengths = [name for name in chosen if name.startswith("test_a_strength_on_the_device_is_the_number")]
    assert strengths
    assert all("[accelerator-" in name for name in strengths), "not the CPU's cases of the fixture device"
    assert not [name for name in chosen if name.startswith("test_a_refit_is_that_of_least_squares")]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["L1", "rows", "MCP"])
def test_a_captured_run_is_the_eager_one(kind):
    import optimizers_gpu

    differs, zeros, same = gpu_steps.captured_against_eager(
        optimizers_gpu.PENALTIES[kind], torch.device("cuda"), 64, 20
    )
    assert (differs < 1e-5, same, 0 < zeros < 1) == (True, True, True)
