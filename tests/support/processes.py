"""Starts a script of this directory as several processes with torchrun, and reads what they found."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LIMIT = 400  # seconds


def torchrun(script: str, processes: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run ``tests/support/script`` in so many gloo processes here; its output is for the message of a failure."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [*command, str(HERE / script), *map(str, arguments)],
        env=env,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
