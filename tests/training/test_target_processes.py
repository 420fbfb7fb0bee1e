"""TargetSparsity and freeze_zeros on real processes: exact counts, and the zeros of one process alone."""

from __future__ import annotations

import json

import pytest
import torch
from processes import torchrun

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")


@pytest.mark.slow
def test_all_processes_aim_as_one_alone(tmp_path):
    run = torchrun("sharded_targets.py", 2, tmp_path)
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    wrong = {f"{name}, rank {rank}": text for rank, checks in enumerate(found) for name, text in checks.items() if text}
    assert not wrong, "\n".join(f"{name}:\n{text}" for name, text in wrong.items())
    assert run.returncode == 0, run.stderr[-3000:]
    assert all(len(checks) > 30 for checks in found)
