"""Models trained together for a few steps, against the same models trained alone in the ordinary way."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from torchreg.ablation.plan import CellSpec
from torchreg.ablation.refused import BatchingError
from torchreg.ablation.stacked_models import Recipe, StackedModels
from torchreg.penalties import Penalty

_STEPS = 3
_SLACK = 10.0  # times what rounding makes of two runs alone, and times sqrt(eps) of the way that was gone
_MOST = 0.1  # of that way, in half precision
_NUDGES = (1, 2)  # seeds of rounding errors


def check_against_solo(recipe: Recipe, cells: Sequence[CellSpec], tolerance: float | None) -> None:
    """Train cells each alone and together, and compare all parameters and buffers.

    What rounding may do is measured: each is trained alone again from weights that differ by rounding. It can be much,
    since Adam divides gradients by their size, those too that are nothing but rounding, as of a bias before batch norm.

    Args:
        recipe: how they are made and trained.
        cells: which.
        tolerance: what share of its way a model may be off beside rounding; None for what its dtype suggests.

    Raises:
        ValueError: if a seed does not determine the model, or a step the batch.
        BatchingError: if the results differ by more, with the numbers.
    """
    if not cells:
        return
    steps = min(_STEPS, recipe.steps)
    _check_batches(recipe, cells[0].seed)
    alone = [_alone(recipe, cell.penalty, cell.seed, steps) for cell in cells]
    together = StackedModels(recipe, cells, evaluation=recipe.randomness != "error")
    try:
        for _ in together.train(steps):
            pass
    except BatchingError:
        raise
    except Exception as error:
        raise BatchingError(
            "These models can be trained alone, but together they raise an error: loss_fn does what torch.vmap cannot "
            f"map. Rewrite it, or run these models one by one by ablate. {type(error).__name__}: {error!s:.300}"
        ) from error
    for cell, own in zip(cells, alone, strict=True):
        what = f"{cell.penalty}, seed={cell.seed}, after {steps} steps"
        _compare(own, together.state(cell.penalty, cell.seed), tolerance, what)


@dataclass(frozen=True)
class _Alone:
    """A model that was trained alone several times.

    Attributes:
        start: its tensors before.
        end: its tensors after training.
        nudged: those after training from starts that differ from its own by rounding.
        losses: at each step, for each of two times that it was trained as it is.
    """

    start: dict[str, Tensor]
    end: dict[str, Tensor]
    nudged: list[dict[str, Tensor]]
    losses: list[list[float]]


def _alone(recipe: Recipe, penalty: Penalty, seed: int, steps: int) -> _Alone:
    starts, ends, losses = [], [], []
    for nudge in (None, None, *_NUDGES):
        model, optimizer = recipe.make(penalty, seed)
        starts.append({name: x.clone() for name, x in _tensors(model).items()})
        _check_start(starts[-1], starts[0], seed)
        if nudge is not None:
            _nudge(model, nudge)
        losses.append(_train(recipe, model, optimizer, seed, steps))
        ends.append(_tensors(model))
    return _Alone(starts[0], ends[0], ends[2:], losses[:2])


def _train(recipe: Recipe, model: Module, optimizer: Any, seed: int, steps: int) -> list[float]:
    """The ordinary loop; returns the loss at each step."""
    schedules, losses = recipe.schedules([optimizer]), []
    if recipe.randomness != "error":
        model.eval()
    for k in range(steps):
        optimizer.zero_grad()
        loss = recipe.loss(model, recipe.batch(k, seed))
        loss.backward()
        optimizer.step()
        for schedule in schedules:
            schedule.step()
        losses.append(float(loss.detach()))
    return losses


@torch.no_grad()
def _nudge(model: Module, seed: int) -> None:
    """Change each weight by about a rounding error."""
    draws = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        if p.is_floating_point():
            signs = torch.randint(0, 2, p.shape, generator=draws).to(p) * 2 - 1
            p.add_(p * signs, alpha=2 * torch.finfo(p.dtype).eps)


def _tensors(model: Module) -> dict[str, Tensor]:
    return {name: x.detach() for name, x in (*model.named_parameters(), *model.named_buffers())}


def _check_batches(recipe: Recipe, seed: int) -> None:
    """A batch that depends on anything but its number would not be that of the cells of another call."""
    try:
        torch.testing.assert_close(recipe.batch(0, seed), recipe.batch(0, seed), rtol=0.0, atol=0.0, equal_nan=True)
    except AssertionError as error:
        raise ValueError(
            "batch_fn gives another batch when it is asked for step 0 again; let it follow from the step (and the "
            "seed) alone: torch.randperm(n, generator=torch.Generator().manual_seed(step)), say."
        ) from error
    except (TypeError, ValueError):  # batches of the user's own types cannot be compared
        pass


def _check_start(found: dict[str, Tensor], start: dict[str, Tensor], seed: int) -> None:
    if odd := [name for name, x in found.items() if _apart(x, start[name]).any()]:
        raise ValueError(
            f"model_fn({seed}) makes another {odd[0]!r} the second time; let the seed alone decide: "
            "torch.manual_seed(seed) before the model is made."
        )


def _compare(alone: _Alone, together: dict[str, Tensor], tolerance: float | None, what: str) -> None:
    """See that a model trained with others is the one trained alone, as nearly as rounding lets two such be one."""
    end = alone.end
    wrong = {name: _apart(x, together[name]) for name, x in end.items()}
    found, moved = _length(wrong.values()), _distance(end, alone.start)
    spread = max(_distance(end, other) for other in alone.nudged)
    eps = max((torch.finfo(x.dtype).eps for x in end.values() if x.is_floating_point()), default=0.0)
    share = min(_SLACK * eps**0.5, _MOST) if tolerance is None else tolerance
    allowed = share * moved + _SLACK * (spread + eps * _length(x.double().nan_to_num() for x in end.values()))
    once, again = alone.losses
    if any(abs(a - b) > max(share, _SLACK * eps) * max(map(abs, once)) for a, b in zip(once, again, strict=True)):
        raise BatchingError(
            f"Trained alone twice, the model of {what} has other losses, {_listed(once)} and {_listed(again)}. A "
            "loss_fn, batch_fn, module or optimizer_fn keeps a state of its own (a tensor of the learning rate, say), "
            "or draws without the seed; mend that, or run these models one by one by ablate."
        )
    if found <= allowed:
        return
    worst = max(wrong, key=lambda name: _length([wrong[name]]))
    raise BatchingError(
        f"Trained together, the model of {what} is not the one trained alone: they are {found:.3g} apart (Euclidean "
        f"norm over all parameters and buffers), where rounding makes {spread:.3g} and {allowed:.3g} is allowed; it "
        f"has moved {moved:.3g}. Most apart is {worst!r}, by {float(wrong[worst].abs().max()):.3g}. Something joins "
        "the models, or is not the model's parameters, buffers, batch and seed alone: an attribute that is no buffer, "
        "a loss_fn, batch_fn or module with a state of its own. Mend that, or run these models one by one by ablate; "
        "where the loss computes in half precision (autocast), give tolerance=0.1."
    )


def _apart(a: Tensor, b: Tensor) -> Tensor:
    """The difference; NaN is equal to NaN, and a number as far from it as can be."""
    a, b = a.double(), b.double()
    difference = torch.where(a.isnan() & b.isnan() | (a == b), 0.0, a - b)
    return difference.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=torch.inf)


def _listed(losses: list[float]) -> str:
    return ", ".join(f"{loss:.6g}" for loss in losses)


def _distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return _length(_apart(x, other[name]) for name, x in one.items())


def _length(parts: Iterable[Tensor]) -> float:
    return math.sqrt(sum(float(x.square().sum()) for x in parts))
