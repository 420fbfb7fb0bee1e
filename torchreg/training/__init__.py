"""Penalties in training loops: terms, the proximal optimizer, sparsity."""

from torchreg.training.activity import ActivityTerm, attach_activity
from torchreg.training.alpha_max import alpha_max
from torchreg.training.attach import attach
from torchreg.training.attach_to import attach_to
from torchreg.training.averaging import copy_zeros
from torchreg.training.clipping import clip_grad_norm_
from torchreg.training.compaction.compact import compact
from torchreg.training.compaction.sparse_layers import to_sparse
from torchreg.training.coupled_groups import coupled
from torchreg.training.effective_step import at_most, effective_step, register_effective_step
from torchreg.training.freezing import freeze_zeros, thaw
from torchreg.training.hooks import Attachment
from torchreg.training.logging import penalty_metrics
from torchreg.training.optimizer import ProxOptimizer
from torchreg.training.scheduler import PenaltyScheduler
from torchreg.training.sparsity import Sparsity, sparsity
from torchreg.training.target_sparsity import TargetSparsity
from torchreg.training.term import Term
from torchreg.training.violation import violation

__all__ = [
    "ActivityTerm",
    "Attachment",
    "PenaltyScheduler",
    "ProxOptimizer",
    "Sparsity",
    "TargetSparsity",
    "Term",
    "alpha_max",
    "at_most",
    "attach",
    "attach_activity",
    "attach_to",
    "clip_grad_norm_",
    "compact",
    "copy_zeros",
    "coupled",
    "effective_step",
    "freeze_zeros",
    "penalty_metrics",
    "register_effective_step",
    "sparsity",
    "thaw",
    "to_sparse",
    "violation",
]
