"""Effective steps of optimizers whose learning rate is relative to something: Adafactor to the weights, Prodigy to d.

Adafactor divides by the root of a second moment of rank one (of the rows times of the columns), which is a step for
each entry as Adam's is, and scales the whole update by the root mean square of the weights and of itself. Those of
transformers and Prodigy are known by name, so that nothing need be imported. What has met no gradient has the plain
step, as in `torchreg.training.step_rules`. Source: Shazeer and Stern, "Adafactor", ICML 2018; Mishchenko and Defazio,
"Prodigy", ICML 2024.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adafactor, Optimizer

from torchreg.functional.reductions import widened
from torchreg.functional.shrinkage import Scalar
from torchreg.training.step_rules import RULES, ParamGroup, State, StepRule

_NAMED: dict[str, StepRule] = {}


def known_rule(kind: type[Optimizer]) -> StepRule | None:
    """The rule of an optimizer class, None if there is none."""
    return RULES.get(kind) or _NAMED.get(f"{kind.__module__}.{kind.__qualname__}")


_Step = Callable[[ParamGroup, State, Tensor], Tensor]


def _named(*names: str) -> Callable[[_Step], _Step]:
    def register(function: _Step) -> _Step:
        def steps(group: ParamGroup, states: Sequence[State], params: Sequence[Tensor]) -> list[Scalar]:
            return [function(group, state, p) for state, p in zip(states, params, strict=True)]

        for name in names:
            _NAMED[name] = StepRule(steps, "tensor")
        return function

    return register


def _rms(x: Tensor) -> Tensor:
    return x.norm(2) / x.numel() ** 0.5


def _divided(rate: Any, inverse: Tensor, p: Tensor, threshold: float, met: Tensor) -> Tensor:
    """``rate * inverse``, as the update by the gradient is scaled where its root mean square exceeds the threshold."""
    assert p.grad is not None
    shrunk = (_rms(inverse * p.grad) / threshold).clamp(min=1.0)
    return torch.where(met, rate / shrunk * inverse, rate)


@_named("torch.optim._adafactor.Adafactor")
def _adafactor(group: ParamGroup, state: State, p: Tensor) -> Tensor:
    w, (least, floor) = widened(p.detach()), group["eps"]
    least = torch.finfo(p.dtype).eps if least is None else least
    rate = _rms(w).clamp(min=floor) * min(group["lr"], 1.0 / float(state["step"]) ** 0.5)
    if "variance" in state:
        square = state["variance"]
    else:
        row, col = widened(state["row_var"]), widened(state["col_var"])
        square = (row @ col) / row.mean(dim=-2, keepdim=True).clamp(min=least)
    inverse = square.clamp(min=least * least).rsqrt()
    return _divided(rate, inverse, p, group["d"], square > 0)


@_named("transformers.optimization.Adafactor")
def _adafactor_of_transformers(group: ParamGroup, state: State, p: Tensor) -> Tensor:
    rate = group["lr"]
    if group["relative_step"]:
        rate = min(1e-6 * state["step"] if group["warmup_init"] else 1e-2, 1.0 / math.sqrt(state["step"]))
    if group["scale_parameter"]:
        rate = rate * torch.as_tensor(state["RMS"]).clamp(min=group["eps"][1])
    least = 2.0 * group["eps"][0]  # which is added to every square
    if "exp_avg_sq" in state:
        square = state["exp_avg_sq"]
        met, inverse = square > least, square.rsqrt()
    else:
        row, col = state["exp_avg_sq_row"].unsqueeze(-1), state["exp_avg_sq_col"].unsqueeze(-2)
        met, inverse = (row > least) & (col > least), (row / row.mean(dim=-2, keepdim=True)).rsqrt() * col.rsqrt()
    return _divided(rate, inverse, p, group["clip_threshold"], met)


@_named("pytorch_optimizer.optimizer.prodigy.Prodigy", "prodigyopt.prodigy.Prodigy")
def _prodigy(group: ParamGroup, state: State, p: Tensor) -> Tensor:
    del p
    d, root = group["d"], widened(state["exp_avg_sq"]).sqrt()  # the gradients that it holds are multiplied by d
    rate = d * group["lr"]
    return torch.where(root > 0, rate * d / (root + d * (group["eps"] or 0.0)), rate)


RULES[Adafactor] = _NAMED["torch.optim._adafactor.Adafactor"]

_BY_RATIO = ("lamb", "lars", "larc", "dog", "ldog")


def check_rate(optimizer: Optimizer, metric: Any) -> None:
    """Refuse or warn where the learning rate is not the step that a metric takes it for.

    Raises:
        ValueError: if the step is learned or relative and the metric "decoupled", or cannot be told.
    """
    kind = type(optimizer)
    for group in optimizer.param_groups:
        if metric == "auto" and group.get("relative_step") is not None and group.get("beta1") is not None:
            raise ValueError(
                f"The effective step of {kind.__name__} with beta1={group['beta1']} cannot be told: it averages "
                "updates that it has multiplied by changing rates before. Use beta1=None."
            )
        if metric != "decoupled":
            continue
        auto = "metric='auto', which knows it, or " if known_rule(kind) else ""
        if "d" in group and not isinstance(optimizer, Adafactor):
            raise ValueError(
                f"metric='decoupled' takes lr={group['lr']:g} for the step, but {kind.__name__} learns it: d * lr, "
                f"with d={float(group['d']):g} now, so that every weight would be zeroed. Use {auto}"
                "metric=lambda group, state, p: group['d'] * group['lr']."
            )
        if group.get("relative_step"):
            raise ValueError(
                f"metric='decoupled' takes lr={group['lr']} for the step, but {kind.__name__} with relative_step=True "
                f"does not use it. Use {auto}relative_step=False, or a function (group, state, p) -> step."
            )
    if metric == "decoupled" and kind.__name__.lower() in _BY_RATIO:
        lr = float(optimizer.param_groups[0]["lr"])
        warnings.warn(
            f"metric='decoupled' thresholds at lr * alpha, with lr={lr:g}, but {kind.__name__} multiplies lr by a "
            "ratio of norms for each tensor, which can be far from 1: weights may be zeroed too early or never. Use a "
            "function metric=(group, state, p) -> step that has the ratio, or another optimizer.",
            stacklevel=4,
        )
