"""Why models cannot be trained together, and what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.nn import Module

_ALONE = "or run these models one by one by ablate"
_NUMBER = (
    "reads a tensor as a number (.item(), .tolist(), .numpy(), float()), which differs between models. Keep it a "
    f"tensor, {_ALONE}. BatchNorm(momentum=None) does so: give it a momentum."
)
_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")  # of a tensor; None or missing where it has none
_REASONS = {  # a part of torch's message -> what the loss, or a proximal map, does
    "data-dependent control flow": (
        "decides by the value of a tensor (an `if`, a `while`, bool()), which may differ between models. Write "
        f"torch.where(condition, a, b), {_ALONE}."
    ),
    ".item()": _NUMBER,
    "data pointer": _NUMBER,
    "dynamic shape": (
        "makes a tensor whose shape depends on values, which may differ between models (x[mask], nonzero, unique). "
        f"Multiply by the mask, or write torch.where(mask, x, 0), {_ALONE}."
    ),
    "random operation": (
        "draws random numbers (dropout, noise). Give randomness='different' for draws of each model's own, or "
        "'same' for the same in all: such models are not those of a run alone, whose draws are others, and the check "
        f"against such runs is made in evaluation mode. Or take the randomness out, {_ALONE}."
    ),
    "nplace arithmetic": (
        "writes into a tensor that all models share. Make it a buffer of the model (register_buffer), of which each "
        f"model has its own, {_ALONE}."
    ),
    "running_mean": (
        "has batch norm in training mode that keeps its statistics in tensors that are no buffers of the model. Take "
        "a module such as nn.BatchNorm1d, of whose buffers each model has its own; or keep none "
        f"(torch.func.replace_all_batch_norm_modules_); or call model.eval() in model_fn, {_ALONE}."
    ),
    "Batching rule not implemented": (
        f"has an operation that torch.vmap has no rule for (LSTM, GRU and RNN have none); replace it, {_ALONE}."
    ),
    "for sparse tensors": f"has sparse gradients; give nn.Embedding sparse=False, {_ALONE}.",
    "vmap": f"cannot be mapped over models by torch.vmap; rewrite it, {_ALONE}.",
}


class BatchingError(RuntimeError):
    """Models that cannot be trained together; the message says why and what to do."""


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Raise, where torch refuses to map something over models, a `BatchingError` that says why and what to do."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        why = next((why for part, why in _REASONS.items() if part in text), None)
        if why is None or isinstance(error, (BatchingError, torch.OutOfMemoryError)):
            raise
        raise BatchingError(f"{what} {why} torch says: {text:.300}") from error


def refuse_other_structure(models: Sequence[Module], seeds: Sequence[int]) -> None:
    """See that all models have the same modules, and tensors of the same names, shapes, dtypes and devices.

    Raises:
        BatchingError: if one differs, or if a parameter has hooks, which no stack of parameters takes over.
    """
    if hooked := [name for name, p in models[0].named_parameters() if any(getattr(p, hooks, None) for hooks in _HOOKS)]:
        raise BatchingError(
            f"{hooked[0]!r} has hooks on its gradient (register_hook), which do not act on many models at once; write "
            f"what they do into loss_fn, {_ALONE}."
        )
    first = _structure(models[0])
    for model, seed in zip(models[1:], seeds[1:], strict=True):
        found = _structure(model)
        if found != first:
            name = next(n for n in (*first, *found) if first.get(n) != found.get(n))
            raise BatchingError(
                f"Models that are trained together have one structure; {name or 'the model'} is "
                f"{first.get(name, 'missing')} for seed {seeds[0]} and {found.get(name, 'missing')} for seed {seed}. "
                f"Let model_fn(seed) change nothing but values, {_ALONE}."
            )


def _structure(model: Module) -> dict[str, str]:
    found = {
        name: f"{type(module).__name__} in {'training' if module.training else 'evaluation'} mode"
        for name, module in model.named_modules()
    }
    for kind, named in (("a parameter", model.named_parameters()), ("a buffer", model.named_buffers())):
        for name, x in named:
            grad = "" if x.requires_grad or kind == "a buffer" else " without a gradient"
            found[name] = f"{kind} of shape {tuple(x.shape)}, {x.dtype}, on {x.device}{grad}"
    return found
