"""What torchreg uses of torch that torch keeps to itself, checked with torch 2.13."""

from __future__ import annotations

import torch


def in_backward() -> bool:
    """Whether this runs within a backward pass, as a forward pass does that activation checkpointing repeats.

    `torch.utils.checkpoint` asks the same. Within a graph that is compiled there is none to ask for.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
