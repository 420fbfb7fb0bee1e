"""Ablations on penalty strength: a training function over penalties, strengths and seeds, resumable and parallel."""

from torchreg.ablation.ablate import CellsFailed, ablate
from torchreg.ablation.ablate_batched import ablate_batched
from torchreg.ablation.cell import Cell
from torchreg.ablation.executors.ray import RayExecutor
from torchreg.ablation.executors.worker import WorkerError
from torchreg.ablation.grid import logspace
from torchreg.ablation.ledger.files import LedgerError
from torchreg.ablation.ledger.lock import LedgerBusy
from torchreg.ablation.merge import merge
from torchreg.ablation.optuna_search import search_study
from torchreg.ablation.refused import BatchingError
from torchreg.ablation.results.ablation import Ablation
from torchreg.ablation.search import SearchResult, search

__all__ = [
    "Ablation",
    "BatchingError",
    "Cell",
    "CellsFailed",
    "LedgerBusy",
    "LedgerError",
    "RayExecutor",
    "SearchResult",
    "WorkerError",
    "ablate",
    "ablate_batched",
    "logspace",
    "merge",
    "search",
    "search_study",
]
