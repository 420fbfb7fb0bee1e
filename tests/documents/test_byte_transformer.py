"""The transformer of examples/cluster: killed at any moment it goes on bit for bit; FSDP2 trains as one process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import ROOT, torchrun

SCRIPT = ROOT / "examples" / "cluster" / "byte_transformer.py"
SMALL = ["--size", "tiny", "--steps", "12", "--save-every", "3", "--batch", "8", "--bytes", "60000", "--float32"]
STRONG = ["--alpha", "0.05", "--lr", "0.01"]  # so that neurons vanish within a dozen steps
# Killed in its second save: with half of the file written, or all of it and not yet in its place.
KILLED_AT = {
    "half a file": """
def save(state, path):
    buffer = io.BytesIO()
    real(state, buffer)
    if "6" in str(path.parent.name):
        path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    path.write_bytes(buffer.getvalue())
real, torch.save = torch.save, save
""",
    "before its place": """
def replace(part, place):
    if place.parent.name == "6":
        os.kill(os.getpid(), signal.SIGKILL)
    real(part, place)
real, os.replace = os.replace, replace
""",
    "between two steps": """
def step(self, *args, **kwargs):
    step.count += 1
    if step.count == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, *args, **kwargs)
step.count = 0
real, torch.optim.AdamW.step = torch.optim.AdamW.step, step
""",
}
pytestmark = pytest.mark.slow


def python(*command: object) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), str(SCRIPT.parent), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([sys.executable, *map(str, command)], env=env, capture_output=True, text=True, check=False)


def train(out: Path) -> None:
    run = python(SCRIPT, *SMALL, *STRONG, "--out", out)
    assert run.returncode == 0, run.stderr[-2000:]


def log(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def calm(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("calm")
    train(out)
    return out


def flat(state: object) -> list[object]:
    if isinstance(state, dict):
        return [x for key in state for x in [key, *flat(state[key])]]
    if isinstance(state, (list, tuple)):
        return [x for part in state for x in flat(part)]
    return [state.tolist() if isinstance(state, torch.Tensor) else state]


def test_it_learns_and_neurons_vanish(calm):
    entries = log(calm)
    assert [entry["step"] for entry in entries] == [3, 6, 9, 12]
    assert entries[-1]["bits_per_byte"] < entries[0]["bits_per_byte"] < 8.0
    assert entries[-1]["group_sparsity"] > 0.2
    assert entries[-1]["alpha"] == 0.05


@pytest.mark.parametrize("where", KILLED_AT)
def test_a_killed_run_goes_on_bit_for_bit(where, calm, tmp_path):
    setting = "import io, os, runpy, signal, sys, torch\n" + KILLED_AT[where]
    start = f"sys.argv = ['run', *{[*SMALL, *STRONG]!r}, '--out', {str(tmp_path)!r}]\n"
    run = python("-c", f"{setting}{start}runpy.run_path({str(SCRIPT)!r}, run_name='__main__')")
    assert run.returncode == -signal.SIGKILL, run.stderr[-2000:]
    assert [path.parent.name for path in tmp_path.glob("*/all.pt")] == ["3"]
    train(tmp_path)
    wanted, found = (torch.load(out / "12" / "all.pt", weights_only=True) for out in (calm, tmp_path))
    assert flat(found) == flat(wanted)
    assert log(tmp_path)[-3:] == log(calm)[-3:]


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
def test_two_processes_train_as_one(calm, tmp_path):
    run = torchrun(SCRIPT, 2, *SMALL, *STRONG, "--fsdp", "--out", tmp_path)
    assert run.returncode == 0, run.stderr[-3000:]
    for one, two in zip(log(calm), log(tmp_path), strict=True):
        # a mean over two processes is added up in another order, and a dozen steps of Adam spread that in float32
        assert two.pop("bits_per_byte") == pytest.approx(one.pop("bits_per_byte"), abs=2e-3)
        assert two == one
