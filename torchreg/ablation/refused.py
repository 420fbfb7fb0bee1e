"""Why models cannot be trained together, and what to do."""

from __future__ import annotations

from collections.abc import Sequence

from torch.nn import Module

_ALONE = "or run these models one by one by ablate"
_REASONS = {  # a part of torch's message -> what it means here
    "data-dependent control flow": (
        "The loss decides by the value of a tensor (an `if`, a `while`, bool()), which may differ between models. "
        f"Write torch.where(condition, a, b), {_ALONE}."
    ),
    ".item()": (
        "The loss reads a tensor as a number (.item(), float(), int()), which differs between models. Keep it a "
        f"tensor, {_ALONE}. BatchNorm(momentum=None) does so: give it a momentum."
    ),
    "random operation": (
        "The loss draws random numbers (dropout, noise). Give randomness='different' for draws of each model's own, or "
        "'same' for the same in all: such models are not those of a run alone, whose draws are others, and the check "
        f"against such runs is made in evaluation mode. Or take the randomness out, {_ALONE}."
    ),
    "nplace arithmetic": (
        "The loss writes into a tensor that all models share. Make it a buffer of the model (register_buffer), of "
        f"which each model has its own, {_ALONE}."
    ),
    "running_mean": (
        "Batch norm in training mode keeps its statistics in tensors that are no buffers of the model. Take a module "
        "such as nn.BatchNorm1d, of whose buffers each model has its own; or keep none "
        f"(torch.func.replace_all_batch_norm_modules_); or call model.eval() in model_fn, {_ALONE}."
    ),
    "Batching rule not implemented": (
        f"torch.vmap has no rule for an operation of the loss (LSTM and GRU have none); replace it, {_ALONE}."
    ),
    "vmap": f"torch.vmap cannot map the loss over models; rewrite it, {_ALONE}.",
}


class BatchingError(RuntimeError):
    """Models that cannot be trained together; the message says why and what to do."""


def told(error: RuntimeError) -> str | None:
    """Why `torch.vmap` has refused, with torch's words; None where it was something else."""
    text = str(error)
    return next((f"{why} torch says: {text:.300}" for part, why in _REASONS.items() if part in text), None)


def refuse_other_structure(models: Sequence[Module], seeds: Sequence[int]) -> None:
    """See that all models have the same modules, and tensors of the same names, shapes, dtypes and devices.

    Raises:
        BatchingError: if one differs.
    """
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
