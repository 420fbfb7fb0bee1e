"""The README's Python, each block run as a script of its own, after the names that a reader would have."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
READER = """
from collections import OrderedDict
import numpy as np, torch
from torch import nn
from torchreg import L1, ProxOptimizer, attach
torch.manual_seed(0)
X, y = np.random.default_rng(0).normal(size=(2, 60, 8))
y = X[:, 0] - 0.5 * X[:, 1] + 0.1 * y[:, 0]
class Net(nn.Sequential):
    head = property(lambda self: self[2])
model = Net(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 1))
x, criterion, penalty, accuracy = torch.as_tensor(X, dtype=torch.float32), nn.MSELoss(), L1(0.01), 0.9
wanted = torch.as_tensor(y, dtype=torch.float32)[:, None]
loss = lambda: criterion(model(x), wanted)
term = attach(L1(5e-4), model)
optimizer = ProxOptimizer(torch.optim.AdamW(model.parameters(), weight_decay=0.0), term)
def train():
    for _ in range(3):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
"""


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS, ids=[block.splitlines()[0][:40] for block in BLOCKS])
def test_a_block_runs_as_a_script(block, tmp_path):
    reader = READER if "model(x), y)" not in block else READER.replace("[:, None]", "[:, None]\ny = wanted", 1)
    script = tmp_path / "script.py"
    script.write_text(reader + re.sub(r"^( *)\.\.\.  #.*$", r"\1train()", block, flags=re.MULTILINE))
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr, done.stderr


def test_there_are_blocks():
    assert len(BLOCKS) >= 5
    assert any("ablate(" in block and "workers=" in block for block in BLOCKS)
