"""What the law tests share: inputs, steps, objectives and the moves that a prox must beat."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from catalog import CATALOG, Case
from hypothesis import Phase, settings
from torch import Tensor

from torchreg import Penalty

F64 = torch.float64
QUICK = settings(deadline=None, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate])


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(shape: tuple[int, ...], seed: int = 0, scale: float = 1.5) -> Tensor:
    """Entries some of which every penalty of the catalogue sets to zero at step 1, and some not."""
    return scale * torch.randn(shape, generator=generator(seed), dtype=F64)


def every(*cases: Case, **where: bool):
    """Parametrize over the catalogue, or over the cases whose flags are as given."""
    chosen = [c for c in cases or CATALOG if all(getattr(c, flag) is value for flag, value in where.items())]
    return pytest.mark.parametrize("case", chosen, ids=lambda c: c.id)


def _entries(choices: list[float], shape: tuple[int, ...], seed: int = 3) -> Tensor:
    return torch.tensor(choices, dtype=F64)[torch.randint(len(choices), shape, generator=generator(seed))]


STEPS = {
    "zero": lambda shape: 0.0,
    "small": lambda shape: 0.05,
    "one": lambda shape: 1.0,
    "past gamma": lambda shape: 6.0,
    "huge": lambda shape: 1e6,
    "endless": lambda shape: math.inf,
    "0-d tensor": lambda shape: torch.tensor(0.7, dtype=F64),
    "adaptive": lambda shape: torch.rand(shape, generator=generator(5), dtype=F64) + 0.05,
    "ill-conditioned": lambda shape: _entries([1e-6, 1e-3, 0.3, 1.0, 4.0, 1e3], shape),
    "some zero": lambda shape: _entries([0.0, 0.3, 1.0, 4.0], shape),
    "zero, huge, endless": lambda shape: _entries([0.0, 0.3, 1.0, 4.0, 1e6, math.inf], shape),
}
FINITE_STEPS = ["small", "one", "past gamma", "huge", "0-d tensor", "adaptive", "ill-conditioned"]  # and positive


def _any(value: Any, case: Case | None) -> bool:
    return True


def loop(argument: str, values: Mapping[str, Any] | Sequence[Any], where: Callable[[Any, Case | None], bool] = _any):
    """Run a test for each value in turn: cheaper than parametrize where a law is checked in a millisecond."""
    named = values if isinstance(values, Mapping) else {str(v): v for v in values}

    def decorate(test: Callable[..., None]):
        def run(**others: Any) -> None:
            for name, value in named.items():
                if not where(value, others.get("case")):
                    continue
                try:
                    test(**{argument: value}, **others)
                except BaseException as error:
                    error.add_note(f"{argument}: {name}")
                    raise

        run.__name__, run.__doc__, run.__module__ = test.__name__, test.__doc__, test.__module__
        given = inspect.signature(test)
        kept = [p for p in given.parameters.values() if p.name != argument]
        run.__signature__ = given.replace(parameters=kept)
        run.pytestmark = list(getattr(test, "pytestmark", []))
        return run

    return decorate


def each_step(*names: str):
    return loop("step", {n: STEPS[n] for n in names or STEPS}, _fits)


def _fits(step: Callable[[Any], Any], case: Case | None) -> bool:
    """Whether a case's prox takes such a step."""
    return case is None or case.metric or torch.as_tensor(step(case.shape)).dim() == 0


def objective(penalty: Penalty, w: Tensor, step: float | Tensor, us: Tensor) -> Tensor:
    """``R(u) + sum (u - w)^2 / (2 step)`` for each u in ``us``; where a step is 0, u must be w."""
    t = torch.as_tensor(step, dtype=w.dtype).broadcast_to(w.shape)
    gap = (us - w) ** 2
    cost = torch.where(t > 0, gap / (2.0 * torch.where(t > 0, t, 1.0)), torch.where(gap == 0, 0.0, math.inf))
    return torch.vmap(penalty.value)(us) + cost.flatten(1).sum(1)


def blocks(case: Case) -> Tensor:
    """Masks of what the penalty acts on together: its groups, or each entry. Shape (k, *shape)."""
    groups, like = case.make().groups, torch.zeros(case.shape, dtype=F64)
    if groups is None:
        return torch.eye(like.numel(), dtype=F64).reshape(-1, *case.shape) > 0
    one_hot = torch.eye(groups.count(like), dtype=F64)
    return torch.stack([groups.expand(v, like).broadcast_to(case.shape) for v in one_hot]) > 0


def moves(case: Case, w: Tensor, p: Tensor, step: float | Tensor) -> Tensor:
    """Rivals of the prox ``p``: each block alone elsewhere on its path, on a grid, or nearby."""
    centre, draw = case.centre, generator(7)
    t = torch.as_tensor(step, dtype=F64).broadcast_to(w.shape).clamp(max=1e12)
    mu = torch.logspace(-10, 10, 41, dtype=F64).reshape(-1, *[1] * w.dim())
    paths = torch.cat([centre + (w - centre) / (1.0 + mu * t), w[None], centre[None], torch.zeros_like(w)[None]])
    rivals = [paths]
    masks = blocks(case)
    rivals += [torch.where(mask, paths, p) for mask in masks]
    size = 1.2 * float(torch.stack([w, centre, p]).abs().max())
    points = torch.linspace(-size, size, 801 if case.entry else 21, dtype=F64)
    single = torch.eye(w.numel(), dtype=F64).reshape(-1, *w.shape) > 0
    rivals += [torch.where(one, points.reshape(-1, *[1] * w.dim()), p) for one in single]
    for scale in (1e-6, 1e-4, 1e-2, 0.1, 1.0):
        noise = scale * torch.randn(100, *w.shape, generator=draw, dtype=F64)
        sparse = torch.rand(100, *w.shape, generator=draw) < 0.5
        rivals += [p + noise, torch.where(sparse, p + noise, p), torch.where(sparse, p, centre) + 0.0]
    us = torch.cat(rivals)
    us = torch.where(torch.as_tensor(step, dtype=F64) == 0, w, us)
    if case.constraint:  # rivals that keep it: others are infinite
        moving = case.step((torch.as_tensor(step, dtype=F64).broadcast_to(w.shape) > 0).double())
        us = torch.cat([us, torch.vmap(lambda u: case.make().prox(u, moving))(us)])
    return torch.cat([us, us.clamp(min=0.0)]) if "NonNegative" in case.id else us


def bits(x: Tensor) -> Tensor:
    """The bytes of a tensor, so that equality is of every bit."""
    return x.flatten().clone(memory_format=torch.contiguous_format).view(torch.uint8)


def negative_zeros(x: Tensor) -> int:
    return int(((x == 0) & x.signbit()).sum())
