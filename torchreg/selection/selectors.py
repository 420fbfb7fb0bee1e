"""Which parameters of a model to penalise, as plain dicts from name to parameter.

Dicts join with ``|``: ``weights(model) | matching(model, "*.bias")``; two parameters of one name are refused. A
parameter that several modules share appears once.
"""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase

from torch import Tensor, nn
from torch.nn import Module, Parameter
from torch.nn.parameter import UninitializedParameter

from torchreg.selection.layers import cleaner, survey
from torchreg.selection.selected import Selected
from torchreg.selection.weight_rules import EMBEDDINGS, TRANSPOSED, UNKNOWN, Classes

Pattern = str | re.Pattern[str]
Target = Module | Iterable[Module] | Mapping[str, Tensor] | Iterable[Tensor] | Tensor


def weights(model: Module) -> Selected:
    """The weights that are usually penalised, those that multiply activations; no biases, norms, embeddings.

    Takes parameters that require a gradient and are weights of Linear, Bilinear, convolutions, recurrent nets,
    MultiheadAttention and their subclasses, and what a module of another class calls a weight (``weight``,
    ``kernel``, ``W``, ``..._proj``) and has the shape of one. What else such a module holds itself (class tokens,
    position tables, state-space matrices) is left out, with a warning where neither name nor shape tells;
    `register_weights` tells it for a class of your own. A weight tied to an embedding counts as an embedding.

    Where a layer's weight is computed from other tensors, those are taken whose zeros are zeros of the weight: under
    weight_norm the lengths g, not the directions v, whose own length changes nothing (L1 of g is the group lasso of
    the rows that it scales); nothing under spectral_norm and orthogonal. To penalise the computed weight, add
    ``penalty(module.weight)`` to the loss.

    Returns:
        dict from name to parameter, in the model's order; its ``left_out`` says why others were not taken.

    Raises:
        ValueError: if nothing is left to penalise, or the classes of the modules were lost in an export.

    Example:
        >>> from torch import nn
        >>> from torchreg import weights
        >>> weights(nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2), nn.Linear(2, 1)))
        name      shape
        0.weight  (2, 3)
        2.weight  (1, 2)
        left out: 0.bias, 2.bias (has fewer than two dimensions)
        left out: 1.weight, 1.bias (belongs to a norm)
    """
    _need_module("weights(model)", model)
    found = survey(model)
    chosen = {f.name: f.p for f in found if not f.reason and f.p.requires_grad}
    left_out = {f.name: f.reason or "requires no gradient" for f in found if f.name not in chosen}
    if not chosen:
        listed = "; ".join(f"{name} {why}" for name, why in list(left_out.items())[:5])
        raise ValueError(
            f"{type(model).__name__} has no parameter that requires a gradient and is known to be a weight"
            f"{f' ({listed})' if listed else ''}; choose explicitly with matching(model, pattern) or of_type(model, "
            "type), or name the weights of a layer of your own, register_weights(type, name)."
        )
    unknown = [f for f in found if f.reason == UNKNOWN and f.p.requires_grad]
    if unknown:
        some = ", ".join(f"{f.name} {tuple(f.p.shape)} of {type(f.module).__name__}" for f in unknown[:3])
        warnings.warn(
            f"weights() leaves out {len(unknown)} parameter(s) of which nothing tells whether they are weights: {some}"
            f". Name those of a class that are, register_weights({type(unknown[0].module).__name__}, name), or none "
            "to leave all out, or choose them with matching(model, pattern).",
            stacklevel=2,
        )
    return _selected(model, chosen, left_out)


def by_name(target: Target) -> Mapping[str, Tensor]:
    """A target's tensors by name: the `weights` of a module or of several, a dict as it is, others by position."""
    if isinstance(target, Module):
        return weights(target)
    if isinstance(target, Mapping):
        return target
    if isinstance(target, Tensor):
        return {"parameter": target}
    items = list(target) if isinstance(target, Iterable) else [target]
    if items and all(isinstance(item, Module) for item in items):
        return weights(nn.ModuleList(items))
    return {str(k): item for k, item in enumerate(items)}


def matching(model: Module, pattern: Pattern, exclude: Pattern | None = None) -> Selected:
    """The parameters whose name fits a pattern; nothing else is filtered.

    Args:
        model: any module.
        pattern: a str is a shell pattern (``*`` crosses dots); a compiled ``re.Pattern`` must
            match the whole name. Prefixes that wrappers add (``_orig_mod.``, ``module.``) are
            not part of the name.
        exclude: names that fit this second pattern are left out.

    Raises:
        ValueError: if nothing matches (the error lists near names), or a match has sparse gradients.

    Example:
        >>> from torch import nn
        >>> from torchreg import matching
        >>> list(matching(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)), "*.bias", exclude="1.*"))
        ['0.bias']
    """
    _need_module("matching(model, pattern)", model)
    named = list(_named(model))
    fits = [(n, p) for n, p in named if _fits(n, pattern) and not (exclude is not None and _fits(n, exclude))]
    if not fits:
        names = [name for name, _ in named]
        text = pattern if isinstance(pattern, str) else pattern.pattern
        near = difflib.get_close_matches(text, names, n=5, cutoff=0.3) or names[:5]
        without = "" if exclude is None else f" outside exclude={exclude!r}"
        raise ValueError(f"No parameter of {type(model).__name__} matches {text!r}{without}; near names: {near}.")
    return _selected(model, _dense(model, dict(_once(fits))))


def of_type(model: Module, *types: type[Module]) -> Selected:
    """All parameters of the modules of the given types, biases too; nothing else is filtered.

    Raises:
        ValueError: if the model has no such module (the error lists the types that it has), or its
            gradients are sparse.

    Example:
        >>> from torch import nn
        >>> from torchreg import of_type
        >>> list(of_type(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(2, 1)), nn.Conv2d))
        ['0.weight', '0.bias']
    """
    _need_module("of_type(model, type)", model)
    if not types or not all(isinstance(t, type) for t in types):
        given = ", ".join(map(repr, types)) or "none"
        raise TypeError(f"of_type needs at least one module type, got {given}; use of_type(model, nn.Conv2d), say.")
    owned = {id(p) for m in model.modules() if isinstance(m, types) for p in m.parameters()}
    found = dict(_once((name, p) for name, p in _named(model) if id(p) in owned))
    if not found:
        wanted = ", ".join(t.__name__ for t in types)
        present = sorted({type(m).__name__ for m in model.modules() if any(True for _ in m.parameters(recurse=False))})
        raise ValueError(f"{type(model).__name__} has no parameter in a module of type {wanted}; it has {present}.")
    return _selected(model, _dense(model, found))


def _need_module(call: str, model: Module) -> None:
    if not isinstance(model, Module):
        raise TypeError(f"{call} needs a module, got {type(model).__name__}; of several take nn.ModuleList(modules).")


def _named(model: Module) -> Iterator[tuple[str, Parameter]]:
    """Every (name, parameter), tied ones under each name, without the prefixes of wrappers."""
    clean = cleaner(model)
    return ((clean(name), p) for name, p in model.named_parameters(remove_duplicate=False))


def _selected(model: Module, chosen: dict[str, Parameter], left_out: Mapping[str, str] | None = None) -> Selected:
    classes = Classes(model)
    groups: dict[int, int] = {}
    for module in model.modules():
        if issubclass(classes.of(module), TRANSPOSED):
            blocks, outputs = int(getattr(module, "groups", 1)), getattr(module, "out_channels", None)
            for p in module.parameters():  # weight_norm's lengths of input channels have no output channels
                lazy = isinstance(p, UninitializedParameter)
                if not lazy and outputs in (None, blocks * p.shape[1:2].numel()):
                    groups[id(p)] = blocks
    return Selected(chosen, left_out, {n: groups[id(p)] for n, p in chosen.items() if id(p) in groups})


def _dense(model: Module, found: dict[str, Parameter]) -> dict[str, Parameter]:
    """``found``, unless one of its parameters gets sparse gradients, which no penalty can use."""
    sparse = {id(p) for m in model.modules() if isinstance(m, EMBEDDINGS) and m.sparse for p in m.parameters()}
    for name, p in found.items():
        if id(p) in sparse:
            raise ValueError(
                f"{name!r} belongs to a module with sparse=True, whose gradients are sparse, but a penalty touches "
                "every entry; build the module with sparse=False, or let a proximal step take the rows that the "
                "gradient has: attach(penalty, {name: module.weight}, lazy=True)."
            )
    return Selected(found)


def _once(named: Iterable[tuple[str, Parameter]]) -> Iterator[tuple[str, Parameter]]:
    seen: set[int] = set()
    for name, p in named:
        if id(p) not in seen:
            seen.add(id(p))
            yield name, p


def _fits(name: str, pattern: Pattern) -> bool:
    if isinstance(pattern, str):
        return fnmatchcase(name, pattern)
    if isinstance(pattern, re.Pattern):
        return pattern.fullmatch(name) is not None
    raise TypeError(f"A pattern is a str (shell style) or a compiled re.Pattern, got {type(pattern).__name__}.")
