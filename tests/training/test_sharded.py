"""DDP, FSDP2 and tensor-parallel placements on real processes: the same as one process alone."""

from __future__ import annotations

import json

import pytest
import torch
from processes import torchrun

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_all_processes_agree_with_one_alone(processes, tmp_path):
    run = torchrun("sharded_checks.py", processes, tmp_path)
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(processes)]
    wrong = {f"{name}, rank {rank}": text for rank, checks in enumerate(found) for name, text in checks.items() if text}
    assert not wrong, "\n".join(f"{name}:\n{text}" for name, text in wrong.items())
    assert run.returncode == 0, run.stderr[-3000:]
    assert all(len(checks) > 40 for checks in found)
