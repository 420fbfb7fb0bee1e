"""One step of torch's optimizers as pure functions of tensors, in the order of torch's own arithmetic.

Each follows the function ``_single_tensor_*`` of its module in torch.optim, operation by operation. What moves from
step to step (rates, corrections of a bias, counters) is reckoned by the host in double precision, as torch does, and
comes in as 0-d tensors; what does not (whether there is momentum, say) chooses the function. Beside the new values each
gives the effective steps of all entries (`torchreg.training.step_rules`). Where torch divides by the root of a second
moment, one division serves both: ``p + a m (1 / below)`` for ``p + a m / below``, which rounds once more.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, Optimizer, RAdam, RMSprop

from torchreg.training.fused.update import (
    KNOWN,
    SWITCHES,
    Group,
    Moved,
    Pace,
    Update,
    counted,
    has_decay,
    known,
    mixed,
    squares,
    uncounted,
)


def update_for(kind: type[Optimizer], group: Group) -> Update | None:
    """The update of a group of an optimizer of exactly this class; None for one that is not known."""
    if kind not in KNOWN:
        return None
    hashable: Any = kind
    return _made(hashable, SWITCHES[kind](group))


@cache
def _made(kind: Any, switches: tuple[Any, ...]) -> Update:
    return KNOWN[kind](*switches)


def _sgd_switches(group: Group) -> tuple[Any, ...]:
    return has_decay(group), group["momentum"] != 0, group["nesterov"]


@known(SGD, switches=_sgd_switches)
def _sgd(decays: bool, momentum: bool, nesterov: bool) -> Update:
    def numbers(group: Group) -> tuple[float, ...]:
        lr, kept = float(group["lr"]), group["momentum"]
        new = 1.0 - group["dampening"]
        return lr * (new if momentum else 1.0) / (1.0 - kept), -lr, group["weight_decay"], kept, new

    def move(p: Tensor, g: Tensor, kept: Sequence[Tensor], numbers: Sequence[Tensor]) -> Moved:
        _, back, decay, share, new = numbers
        g = g + decay * p if decays else g
        if not momentum:
            return p + back * g, (), None
        buffer = kept[0] * share + new * g
        return p + back * (g + share * buffer if nesterov else buffer), (buffer,), None

    return Update(("momentum_buffer",) if momentum else (), (), numbers, move, uncounted)


def _adam_switches(group: Group, decoupled: bool | None = None) -> tuple[Any, ...]:
    decoupled = group.get("decoupled_weight_decay", decoupled)
    return has_decay(group), bool(decoupled), group.get("amsgrad", False), group["betas"][0] > 0.5


def _decayed(p: Tensor, g: Tensor, decay: Tensor, decays: bool, decoupled: bool) -> tuple[Tensor, Tensor]:
    """The parameter and the gradient after weight decay, of either kind."""
    if not decays:
        return p, g
    return (p * decay, g) if decoupled else (p, g + decay * p)


def _decay(group: Group, decoupled: bool) -> float:
    decay: float = group["weight_decay"]
    return 1.0 - float(group["lr"]) * decay if decoupled else decay


@known(Adam, switches=_adam_switches)
@known(AdamW, switches=lambda group: _adam_switches(group, True))
def _adam(decays: bool, decoupled: bool, amsgrad: bool, little: bool) -> Update:
    def numbers(group: Group, k: float) -> tuple[float, ...]:
        lr, (beta1, beta2) = float(group["lr"]), group["betas"]
        root = (1.0 - beta2**k) ** 0.5
        back = -lr / (1.0 - beta1**k)
        decay, eps = _decay(group, decoupled), group["eps"]
        return lr, back * root, decay, 1.0 - beta1, beta2, 1.0 - beta2, lr * root, eps * root

    def move(p: Tensor, g: Tensor, kept: Sequence[Tensor], numbers: Sequence[Tensor]) -> Moved:
        lr, back, decay, new1, beta2, new2, rate, offset = numbers
        p, g = _decayed(p, g, decay, decays, decoupled)
        mean = mixed(kept[0], g, new1, little)
        square = squares(kept[1], beta2, new2, g)
        largest = torch.maximum(kept[2], square) if amsgrad else square
        below = largest.sqrt() + offset
        over = 1.0 / below
        pace = Pace(rate, over, below, largest == 0, lr)
        return p + back * mean * over, (mean, square, largest)[: 3 if amsgrad else 2], pace

    kept = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if amsgrad else ("exp_avg", "exp_avg_sq")
    return Update(kept, ("step",), numbers, move, counted, counts_anywhere=True)


@known(NAdam, switches=_adam_switches)
def _nadam(decays: bool, decoupled: bool, amsgrad: bool, little: bool) -> Update:
    del amsgrad

    def momentum(group: Group, k: float) -> float:
        return float(group["betas"][0] * (1.0 - 0.5 * (0.96 ** (k * group["momentum_decay"]))))

    def advance(group: Group, state: MutableMapping[str, Any]) -> tuple[float, ...]:
        (k,) = counted(group, state)
        state["mu_product"] *= momentum(group, k)
        return k, state["mu_product"].item()

    def numbers(group: Group, k: float, product: float) -> tuple[float, ...]:
        lr, (beta1, beta2) = float(group["lr"]), group["betas"]
        now, then = momentum(group, k), momentum(group, k + 1)
        of_gradient = -lr * (1.0 - now) / (1.0 - product)
        of_mean = -lr * then / (1.0 - product * then)
        steady = lr * (1.0 + then - now)
        decay = _decay(group, decoupled)
        new1, new2, unbias = 1.0 - beta1, 1.0 - beta2, 1.0 / (1.0 - beta2**k)
        return steady, of_gradient, of_mean, decay, new1, beta2, new2, unbias, group["eps"]

    def move(p: Tensor, g: Tensor, kept: Sequence[Tensor], numbers: Sequence[Tensor]) -> Moved:
        steady, of_gradient, of_mean, decay, new1, beta2, new2, unbias, eps = numbers
        p, g = _decayed(p, g, decay, decays, decoupled)
        mean = mixed(kept[0], g, new1, little)
        square = squares(kept[1], beta2, new2, g)
        below = (square * unbias).sqrt() + eps
        over = 1.0 / below
        moved = p + (of_gradient * g + of_mean * mean) * over
        return moved, (mean, square), Pace(steady, over, below, square == 0, steady)

    return Update(("exp_avg", "exp_avg_sq"), ("step", "mu_product"), numbers, move, advance)


@known(RAdam, switches=_adam_switches)
def _radam(decays: bool, decoupled: bool, amsgrad: bool, little: bool) -> Update:
    del amsgrad

    def numbers(group: Group, k: float) -> tuple[float, ...]:
        lr, (beta1, beta2) = float(group["lr"]), group["betas"]
        unbias, longest = 1.0 - beta2**k, 2.0 / (1.0 - beta2) - 1.0
        length = longest - 2.0 * k * beta2**k / unbias
        ready = length > 5.0
        n = length if ready else 6.0
        spread = ((n - 4.0) * (n - 2.0) * longest / ((longest - 4.0) * (longest - 2.0) * n)) ** 0.5 if ready else 1.0
        decay, root = _decay(group, decoupled), unbias**0.5
        steady = lr * spread * root
        first = 1.0 - beta1**k
        return lr, steady, first, decay, 1.0 - beta1, beta2, 1.0 - beta2, root, spread, float(ready), group["eps"]

    def move(p: Tensor, g: Tensor, kept: Sequence[Tensor], numbers: Sequence[Tensor]) -> Moved:
        lr, steady, first, decay, new1, beta2, new2, root, spread, ready, eps = numbers
        p, g = _decayed(p, g, decay, decays, decoupled)
        mean = mixed(kept[0], g, new1, little)
        square = squares(kept[1], beta2, new2, g)
        below = square.sqrt() + eps
        over = 1.0 / below
        plain, now = torch.ones_like(p), ready > 0
        rate, over, below = (torch.where(now, x, y) for x, y in ((steady, lr), (over, plain), (below, plain)))
        adapted = torch.where(now, root * over, plain)
        moved = p - mean * (lr / first) * adapted * spread
        return moved, (mean, square), Pace(rate, over, below, square == 0, lr)

    return Update(("exp_avg", "exp_avg_sq"), ("step",), numbers, move, counted)


def _rmsprop_switches(group: Group) -> tuple[Any, ...]:
    return has_decay(group), group["centered"], group["momentum"] > 0, group["alpha"] > 0.5


@known(RMSprop, switches=_rmsprop_switches)
def _rmsprop(decays: bool, centered: bool, momentum: bool, little: bool) -> Update:
    def numbers(group: Group, k: float) -> tuple[float, ...]:
        del k
        lr, alpha, share = float(group["lr"]), group["alpha"], group["momentum"]
        return lr / (1.0 - share), -lr, group["weight_decay"], alpha, 1.0 - alpha, share, group["eps"]

    def move(p: Tensor, g: Tensor, kept: Sequence[Tensor], numbers: Sequence[Tensor]) -> Moved:
        rate, back, decay, alpha, new, share, eps = numbers
        g = g + decay * p if decays else g
        square, made = squares(kept[0], alpha, new, g), []
        variance = square
        if centered:
            mean = mixed(kept[1], g, new, little)
            variance, made = square - mean * mean, [mean]
        below = variance.sqrt() + eps
        over = 1.0 / below
        pace = Pace(rate, over, below, square == 0, rate)
        if not momentum:
            return p + back * g * over, (square, *made), pace
        buffer = kept[-1] * share + g * over
        return p + back * buffer, (square, *made, buffer), pace

    kept = ("square_avg", *(["grad_avg"] if centered else []), *(["momentum_buffer"] if momentum else []))
    return Update(kept, ("step",), numbers, move, counted)


@known(Adagrad, switches=lambda group: (has_decay(group),))
def _adagrad(decays: bool) -> Update:
    def numbers(group: Group, k: float) -> tuple[float, ...]:
        rate = float(group["lr"]) / (1.0 + (k - 1.0) * group["lr_decay"])
        return rate, -rate, group["weight_decay"], group["eps"]

    def move(p: Tensor, g: Tensor, kept: Sequence[Tensor], numbers: Sequence[Tensor]) -> Moved:
        rate, back, decay, eps = numbers
        g = g + decay * p if decays else g
        total = kept[0] + g * g
        below = total.sqrt() + eps
        over = 1.0 / below
        return p + back * g * over, (total,), Pace(rate, over, below, total == 0, rate)

    return Update(("sum",), ("step",), numbers, move, counted)


@known(Adamax, switches=lambda group: (has_decay(group), group["betas"][0] > 0.5))
def _adamax(decays: bool, little: bool) -> Update:
    def numbers(group: Group, k: float) -> tuple[float, ...]:
        lr, (beta1, beta2) = float(group["lr"]), group["betas"]
        return lr, -lr / (1.0 - beta1**k), group["weight_decay"], 1.0 - beta1, beta2, group["eps"]

    def move(p: Tensor, g: Tensor, kept: Sequence[Tensor], numbers: Sequence[Tensor]) -> Moved:
        lr, back, decay, new, beta2, eps = numbers
        g = g + decay * p if decays else g
        mean = mixed(kept[0], g, new, little)
        size = torch.maximum(kept[1] * beta2, g.abs() + eps)
        least = eps * (1.0 + 4.0 * torch.finfo(p.dtype).eps)  # where no gradient was met: torch adds eps to each
        over = 1.0 / size
        return p + back * mean * over, (mean, size), Pace(lr, over, size, size <= least, lr)

    return Update(("exp_avg", "exp_inf"), ("step",), numbers, move, counted)


@known(Adadelta, switches=lambda group: (has_decay(group),))
def _adadelta(decays: bool) -> Update:
    def numbers(group: Group, k: float) -> tuple[float, ...]:
        del k
        lr, rho, eps = float(group["lr"]), group["rho"], group["eps"]
        return lr, -lr, group["weight_decay"], rho, 1.0 - rho, eps, rho * eps

    def move(p: Tensor, g: Tensor, kept: Sequence[Tensor], numbers: Sequence[Tensor]) -> Moved:
        lr, back, decay, rho, new, eps, least = numbers
        g = g + decay * p if decays else g
        square = squares(kept[0], rho, new, g)
        change = (kept[1] + eps).sqrt() / (square + eps).sqrt() * g
        total = squares(kept[1], rho, new, change)
        over = ((total + least) / (square + least)).sqrt()
        return p + back * change, (square, total), Pace(lr, over, 1.0 / over)

    return Update(("square_avg", "acc_delta"), ("step",), numbers, move, counted)
