"""What a batched ablation runs for each cell: with the first of a chunk all of its models are trained."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn
from tqdm import tqdm

from torchreg.ablation.cell import Cell
from torchreg.ablation.plan import CellSpec
from torchreg.ablation.stacked_models import Recipe, StackedModels
from torchreg.ablation.user_function import takes
from torchreg.penalties import Penalty

Score = Callable[..., Mapping[str, Any]]


class BatchedRun:
    """What a `Session` runs for each cell; a fingerprint is taken of its attributes.

    Args:
        recipe: how models are made and trained.
        score_fn: trained model -> metrics.
    """

    __slots__ = ("__dict__", "_chunks", "_recipe")  # these are no attributes of __dict__, of which fingerprints are

    def __init__(self, recipe: Recipe, score_fn: Score) -> None:
        vars(self).update(vars(recipe), score_fn=score_fn)
        self._recipe = recipe
        self._chunks: list[_Chunk] = []

    @property
    def __func__(self) -> Callable[[int], nn.Module]:
        """What messages and records of the run are named by."""
        return self._recipe.model_fn

    def give(self, cells: Sequence[CellSpec], size: int, *, progress: bool) -> None:
        """Say which cells will come, in their order, and how many at most are trained together."""
        parts = [cells[k : k + size] for k in range(0, len(cells), size)]
        self._chunks = [_Chunk(self._recipe, part, progress=progress) for part in parts]

    def __call__(self, penalty: Penalty, seed: int, cell: Cell) -> Mapping[str, Any]:
        """The metrics of a cell."""
        while not self._chunks[0].has(penalty, seed):
            del self._chunks[0]  # with its models
        chunk, begin = self._chunks[0], time.perf_counter()
        chunk.train()
        cell.seconds_elsewhere = chunk.share - (time.perf_counter() - begin)
        model, score = chunk.model(penalty, seed), vars(self)["score_fn"]
        metrics: Mapping[str, Any] = score(model, cell=cell) if takes(score, "cell") else score(model)
        if not isinstance(metrics, Mapping):
            raise TypeError(
                f"score_fn must return a mapping of metrics such as {{'accuracy': 0.9}}, got {metrics!r:.200}."
            )
        return metrics


class _Chunk:
    """Cells that are trained together, once the first of their models is asked for.

    Attributes:
        share: the seconds that each has of the training.
    """

    def __init__(self, recipe: Recipe, cells: Sequence[CellSpec], *, progress: bool) -> None:
        self._recipe, self._cells, self._progress, self.share = recipe, cells, progress, 0.0
        self._own = {(cell.penalty, cell.seed) for cell in cells}
        self._models: StackedModels | None = None
        self._error: str | None = None

    def has(self, penalty: Penalty, seed: int) -> bool:
        """Whether a cell is one of these."""
        return (penalty, seed) in self._own

    def model(self, penalty: Penalty, seed: int) -> nn.Module:
        """The trained model of a cell."""
        assert self._models is not None, "they are trained"
        return self._models.model(penalty, seed)

    def train(self) -> None:
        """Train all models, if that is still to be done.

        Raises:
            RuntimeError: if that was tried and ended by an error.
        """
        if self._error is not None:
            raise RuntimeError(f"The training of {len(self._cells)} models together was ended by {self._error}")
        if self._models is not None:
            return
        begin, count = time.perf_counter(), len(self._cells)
        try:
            self._models = self._trained(f"{count} models")
        except Exception as error:
            if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "memory" in str(error)):
                error.add_note(f"Give chunk=... below {count}: fewer models at once take less memory.")
            self._error = f"{type(error).__name__}: {error}"
            raise
        finally:
            self.share = (time.perf_counter() - begin) / count

    def _trained(self, what: str) -> StackedModels:
        models, steps = StackedModels(self._recipe, self._cells), self._recipe.steps
        hidden = None if self._progress else True  # None: where the output is no terminal
        for _ in tqdm(models.train(steps), what, steps, leave=False, unit="step", disable=hidden):
            pass
        return models
