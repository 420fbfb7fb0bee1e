"""Weights that a layer computes from other tensors: parametrizations, weight_norm, spectral_norm, masks of pruning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.nn.utils.parametrize import ParametrizationList

from torchreg.functional.dtensor import whole

SCALE_FREE = "is scale-free: its length does not change the layer's weight"
MIXED = "has zeros that are no zeros of the layer's weight"
_TORCHS = {  # torch's own, known without a trial
    "_WeightNorm": {"original1": SCALE_FREE},
    "_SpectralNorm": {"original": SCALE_FREE},
    "_Orthogonal": {"original": MIXED},
}
_SAME = 1e-3  # of the largest entry, for half precision too
_tried: WeakKeyDictionary[Module, dict[tuple[str, int], str]] = WeakKeyDictionary()


def computed(made: ParametrizationList, raw: Mapping[str, Tensor]) -> Tensor:
    """The weight that a parametrization makes of raw tensors; none of its buffers moves."""
    with torch.no_grad(), _evaluating(made):
        first, *others = made
        w: Tensor = first(*raw.values())
        for module in others:
            w = module(w)
    return w


def raws(made: ParametrizationList) -> dict[str, Tensor]:
    """The raw tensors of a parametrization by name, in order; gathered where they are cut over processes."""
    names = ["original"] if made.is_tensor else [f"original{k}" for k in range(made.ntensors)]
    return {name: whole(getattr(made, name).detach()) for name in names}


def raw_reason(made: ParametrizationList, name: str) -> str:
    """Why a raw tensor of a parametrization is not to be penalised, "" if it is; tried once, and kept.

    If twice the tensor makes the same weight, a penalty shrinks it at no loss, down to 0 / 0. If zeros in it make
    none in the weight, they are of no use.
    """
    kind = type(made[0]).__name__
    if len(made) == 1 and kind in _TORCHS:
        return _TORCHS[kind].get(name, "")
    known = _tried.setdefault(made, {})
    key = name, len(made)  # another may be put on top of a parametrization
    if key not in known:
        known[key] = _try(made, name)
    return known[key]


def _try(made: ParametrizationList, name: str) -> str:
    raw = {key: _filled(w) for key, w in raws(made).items()}
    if raw[name].device.type == "meta":
        return ""
    every_other = (torch.arange(raw[name].numel(), device=raw[name].device) % 2).reshape(raw[name].shape)
    plain, twice, half = (computed(made, {**raw, name: c * raw[name]}) for c in (1.0, 2.0, every_other))
    if bool(((twice - plain).abs() <= _SAME * plain.abs().max()).all()):
        return SCALE_FREE
    rotates = any(type(module).__name__ == "_Orthogonal" for module in made)  # its diagonal is signs, cut to integers
    return MIXED if rotates or not bool(((half == 0) & (plain != 0)).any()) else ""


def _filled(w: Tensor) -> Tensor:
    """A tensor, or numbers in its place where it is all zero and shows nothing."""
    return w if bool(w.any()) else torch.linspace(1.0, 2.0, w.numel()).to(w).reshape(w.shape)


@contextmanager
def _evaluating(module: Module) -> Iterator[None]:
    """Evaluation mode, in which power iterations stand still."""
    was = {m: m.training for m in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for m, training in was.items():
            m.training = training


def hooked(module: Module, name: str) -> tuple[str, str]:
    """The weight that hooks of torch.nn.utils make of a parameter, by name, and why not to penalise it or ""."""
    stem, _, role = name.rpartition("_")
    if isinstance(getattr(module, stem, None), Parameter) or not _has(module, stem):
        return name, ""
    if role in ("g", "v") and _has(module, f"{stem}_g", f"{stem}_v"):
        return stem, SCALE_FREE if role == "v" else ""
    if role == "orig":
        return stem, SCALE_FREE if _has(module, f"{stem}_u") else ""
    return name, ""


def used(module: Module, name: str) -> Tensor:
    """A weight as its layer uses it, but for the factor of the old spectral_norm."""
    made = getattr(module, "parametrizations", {})
    if name in made:
        return computed(made[name], raws(made[name]))
    w: Tensor = getattr(module, name)
    if isinstance(w, Parameter):
        return w
    if _has(module, f"{name}_orig"):
        w = getattr(module, f"{name}_orig")
        return w * getattr(module, f"{name}_mask") if _has(module, f"{name}_mask") else w
    if _has(module, f"{name}_g", f"{name}_v"):
        g, v = getattr(module, f"{name}_g"), getattr(module, f"{name}_v")
        across = [d for d in range(v.dim()) if g.dim() == 0 or g.shape[d] == 1]
        return v * (g / torch.linalg.vector_norm(v, dim=across, keepdim=True))
    return w


def _has(module: Module, *names: str) -> bool:
    return all(isinstance(getattr(module, name, None), Tensor) for name in names)
