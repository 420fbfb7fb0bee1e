"""Penalties in training loops: terms, the proximal optimizer, sparsity."""

from torchreg.training.alpha_max import alpha_max
from torchreg.training.attach import attach
from torchreg.training.attach_to import attach_to
from torchreg.training.averages import copy_zeros
from torchreg.training.clipping import clip_grad_norm_
from torchreg.training.compaction import compact
from torchreg.training.coupled_groups import coupled
from torchreg.training.effective_step import at_most, effective_step, register_effective_step
from torchreg.training.hooks import Attachment
from torchreg.training.metrics import penalty_metrics
from torchreg.training.optimizer import ProxOptimizer
from torchreg.training.scheduler import PenaltyScheduler
from torchreg.training.sparsity import Sparsity, sparsity
from torchreg.training.term import Term
from torchreg.training.violation import violation

__all__ = [
    "Attachment",
    "PenaltyScheduler",
    "ProxOptimizer",
    "Sparsity",
    "Term",
    "alpha_max",
    "at_most",
    "attach",
    "attach_to",
    "clip_grad_norm_",
    "compact",
    "copy_zeros",
    "coupled",
    "effective_step",
    "penalty_metrics",
    "register_effective_step",
    "sparsity",
    "violation",
]
