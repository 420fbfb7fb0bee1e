"""Whether CUDA is capturing a graph, in which case Python runs now but not when the graph is replayed."""

from __future__ import annotations

import torch


def is_capturing() -> bool:
    """Whether the current CUDA stream is being captured; False where there is no CUDA."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
