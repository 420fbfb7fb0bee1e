"""alpha_max: from which strength on a layer's weights stay at zero."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from torchreg.functional.dtensor import Cut, any_entry, here, is_cut, read, whole
from torchreg.penalties import Penalty
from torchreg.training.one_shape import of_one_shape
from torchreg.training.term import Term

_HUGE = 2.0**120  # a strength, in the range of float32, that leaves nothing of a penalised weight


def alpha_max(model: Module, term: Term, loss: Callable[[], Tensor], *, step: float | Tensor | None = None) -> float:
    """The least alpha at which a layer's penalised weights are stationary at zero, its other weights as they are.

    ``penalty.alpha_max(gradient of the loss where the penalised weights are zero)``: for L1 the
    largest ``|gradient|``. A grid of strengths goes down from it, as in `torchreg.linear.fit_path`.

    It is a property of the weights that are not penalised: train them first, a bias say, for the
    alpha_max of textbooks. And it is one layer's. Of two penalised layers in a row, each at zero hides the
    other from the loss, so no gradient reaches them and any alpha, however small, holds them there.
    Parallel layers, heads on one trunk say, get a gradient each; for them it is the largest.

    Args:
        model: the module that the loss calls. It is left as it was: weights, gradients, buffers such
            as running means, training mode; so is torch's random state.
        term: the layer's weights with their penalty, ``attach(L1(1.0), model.head)``. Entries that the
            penalty spares keep their values; `Towards` asks where the reference is stationary.
        loss: no arguments -> the mean loss on all the data, with its graph; it may call backward.
        step: needed only for L0, whose slope at 0 is infinite: the effective step of the prox.

    Returns:
        A number; inf where no strength suffices (L2).

    Raises:
        TypeError: if something is not of these types.
        ValueError: if the term has several alphas or `coupled` groups, the loss does not depend on one of its
            parameters, or one of several parameters gets no gradient while the others are zero.

    Example:
        >>> import torch
        >>> from torchreg import L1, alpha_max, attach
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0], [1.0]])
        >>> alpha_max(model, attach(L1(1.0), model), lambda: (model(x) - y).square().mean() / 2)
        1.5
    """
    _check(model, term, loss)
    named, penalties = term.parameters, term.penalties
    with restored(model, list(named.values())):
        for name, p in named.items():
            _write(p, _emptied(penalties[name], whole(p.detach())))
        grads = dict(zip(named, _gradients(loss, named), strict=True))
    least = _least([whole(g) for g in grads.values()], [penalties[name] for name in grads], step)
    found = read([any_entry(g) for g in grads.values()] + least)
    _refuse_hidden(dict(zip(grads, found, strict=False)))
    return max(found[len(grads) :])


def _least(grads: list[Tensor], penalties: list[Penalty], step: float | Tensor | None) -> list[Tensor]:
    """The penalty's alpha_max of each gradient, of those of one shape together where they lie on a device."""
    found: dict[int, Tensor] = {}
    single = step is None or not isinstance(step, Tensor) or not step.dim()
    for at in of_one_shape(grads, penalties, [None if single else k for k in range(len(grads))]):
        most = partial(penalties[at[0]].alpha_max, step=step)
        stacked = (
            torch.vmap(most)(torch.stack([grads[k] for k in at])).unbind() if len(at) > 1 else [most(grads[at[0]])]
        )
        found.update(zip(at, stacked, strict=True))
    return [found[k] for k in range(len(grads))]


def _check(model: Any, term: Any, loss: Any) -> None:
    for what, given, wanted in (("a module", model, Module), ("a term", term, Term)):
        if not isinstance(given, wanted):
            raise TypeError(
                f"alpha_max needs {what}, got {type(given).__name__}; alpha_max(model, attach(L1(1.0), layer), f)."
            )
    if not callable(loss):
        raise TypeError(f"alpha_max needs a function that returns the loss, got {type(loss).__name__}; use a lambda.")
    if term.together is not None:
        raise ValueError(
            f"alpha_max is one layer's, and this term has {term.together!r}: with all of them at zero no gradient "
            "reaches any, and every alpha holds them there. Name the share of units: TargetSparsity(term, 0.5, steps="
            "...)."
        )
    frozen = [name for name, p in term.parameters.items() if not p.requires_grad]
    if frozen:
        raise ValueError(f"alpha_max needs gradients, and {frozen[:3]} require none; unfreeze them or attach to fewer.")
    term.alpha  # noqa: B018  raises where the term has several


def _emptied(penalty: Penalty, w: Tensor) -> Tensor:
    """``w`` where a huge strength brings it: its penalised entries at zero or the reference, the spared ones kept."""
    return penalty.with_alpha(_HUGE).prox(w, 1.0)


def _write(p: Tensor, value: Tensor) -> None:
    here(p.data).copy_(Cut(p).part(value) if is_cut(p) else value)


def _gradients(loss: Callable[[], Tensor], named: dict[str, Tensor]) -> list[Tensor]:
    params = list(named.values())
    with torch.enable_grad():
        value = loss()
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise TypeError(f"The loss must return one number as a tensor, got {value!r}; take its mean.")
        if any(p.grad is not None for p in params):  # it has called backward
            grads: list[Tensor | None] = [p.grad for p in params]
        elif value.requires_grad:
            grads = list(torch.autograd.grad(value, params, allow_unused=True))
        else:
            grads = [None] * len(params)
    missing = [name for name, g in zip(named, grads, strict=True) if g is None]
    if missing:
        raise ValueError(
            f"The loss does not depend on {missing[:3]}; penalise weights that it uses, without no_grad()."
        )
    return [g for g in grads if g is not None]


def _refuse_hidden(reached: dict[str, float]) -> None:
    hidden = [name for name, gradient in reached.items() if not gradient]
    if len(reached) > 1 and hidden:
        raise ValueError(
            f"{hidden[:3]} gets no gradient while all of {list(reached)[:4]} are zero: zeroed weights in a row hide "
            "each other from the loss, and every alpha holds them at zero. Ask for one layer at a time, the others as "
            "they are: attach(penalty, layer)."
        )


@contextmanager
def restored(model: Module, penalised: list[Tensor]) -> Iterator[None]:
    """Afterwards all is as before: these weights, gradients, buffers, training modes and the random state."""
    params = list({id(p): p for p in [*penalised, *model.parameters()]}.values())
    weights, grads = [p.detach().clone() for p in penalised], [p.grad for p in params]
    modes = [(m, m.training) for m in model.modules()]
    buffers = [(m, n, b, None if b is None else b.clone()) for m in model.modules() for n, b in m._buffers.items()]
    devices = {p.device for p in params}
    with torch.random.fork_rng(devices=[]), ExitStack() as generators:
        for restore in map(_random_state, devices):
            generators.callback(restore)
        try:
            for p in params:
                p.grad = None
            yield
        finally:
            for p, w in zip(penalised, weights, strict=True):
                p.data.copy_(w)
            for p, grad in zip(params, grads, strict=True):
                p.grad = grad
            for module, training in modes:
                module.training = training
            for module, name, buffer, kept in buffers:
                module._buffers[name] = buffer
                if buffer is not None and kept is not None:
                    buffer.data.copy_(kept)


def _random_state(device: torch.device) -> Callable[[], None]:
    """What brings an accelerator's random state back to what it is now; nothing where it has none."""
    module: Any = None if device.type in ("cpu", "meta") else torch.get_device_module(device)
    if not hasattr(module, "get_rng_state"):
        return lambda: None
    one = () if device.type == "mps" else (device,)  # MPS has one device, and no argument for it
    state = module.get_rng_state(*one)
    return lambda: module.set_rng_state(state, *one)
