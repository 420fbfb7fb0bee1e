"""Which parameters of a model to penalise, as plain dicts from name to parameter.

Dicts join with ``|``: ``weights(model) | matching(model, "*.bias")``. A parameter that several
modules share appears once.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase

from torch import nn
from torch.nn import Module, Parameter
from torch.nn.modules.batchnorm import _NormBase

Pattern = str | re.Pattern[str]
_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_COMPILED = re.compile(r"(?:^|(?<=\.))_orig_mod\.")  # what torch.compile puts before a module's names
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


def weights(model: Module) -> dict[str, Parameter]:
    """The weights that are usually penalised: matrices and filters, no biases, norms, embeddings.

    Takes parameters that require a gradient, have at least two dimensions and belong to no norm
    and no embedding module. A weight tied to an embedding counts as an embedding. Of a
    parametrized module it takes the raw tensors that are trained (``parametrizations.*``); to
    penalise the effective weight, add ``penalty(module.weight)`` to the loss.

    Returns:
        dict from name to parameter, in the model's order.

    Raises:
        ValueError: if nothing is left to penalise.

    Example:
        >>> from torch import nn
        >>> from torchreg import weights
        >>> list(weights(nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2), nn.Linear(2, 1))))
        ['0.weight', '2.weight']
    """
    spared = {id(p) for m in model.modules() if isinstance(m, _NORMS + _EMBEDDINGS) for p in m.parameters()}
    found = {name: p for name, p in _once(_named(model)) if p.requires_grad and p.dim() >= 2 and id(p) not in spared}
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no parameter that requires a gradient, has two or more dimensions and "
            "belongs to no norm or embedding; choose explicitly with matching(model, pattern) or of_type(model, type)."
        )
    return found


def matching(model: Module, pattern: Pattern, exclude: Pattern | None = None) -> dict[str, Parameter]:
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
    named = list(_named(model))
    fits = [(n, p) for n, p in named if _fits(n, pattern) and not (exclude is not None and _fits(n, exclude))]
    if not fits:
        names = [name for name, _ in named]
        text = pattern if isinstance(pattern, str) else pattern.pattern
        near = difflib.get_close_matches(text, names, n=5, cutoff=0.3) or names[:5]
        without = "" if exclude is None else f" outside exclude={exclude!r}"
        raise ValueError(f"No parameter of {type(model).__name__} matches {text!r}{without}; near names: {near}.")
    return _dense(model, dict(_once(fits)))


def of_type(model: Module, *types: type[Module]) -> dict[str, Parameter]:
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
    if not types:
        raise TypeError("of_type needs at least one module type, got none; use of_type(model, nn.Conv2d), say.")
    owned = {id(p) for m in model.modules() if isinstance(m, types) for p in m.parameters()}
    found = dict(_once((name, p) for name, p in _named(model) if id(p) in owned))
    if not found:
        wanted = ", ".join(t.__name__ for t in types)
        present = sorted({type(m).__name__ for m in model.modules() if any(True for _ in m.parameters(recurse=False))})
        raise ValueError(f"{type(model).__name__} has no parameter in a module of type {wanted}; it has {present}.")
    return _dense(model, found)


def _named(model: Module) -> Iterator[tuple[str, Parameter]]:
    """Every (name, parameter), tied ones under each name, without the prefixes of wrappers."""
    named = [(_COMPILED.sub("", n), p) for n, p in model.named_parameters(remove_duplicate=False)]
    if named and all(name.startswith("module.") for name, _ in named):
        named = [(name.removeprefix("module."), p) for name, p in named]
    yield from named


def _dense(model: Module, found: dict[str, Parameter]) -> dict[str, Parameter]:
    """``found``, unless one of its parameters gets sparse gradients, in which a penalty has no part."""
    sparse = {id(p) for m in model.modules() if isinstance(m, _EMBEDDINGS) and m.sparse for p in m.parameters()}
    for name, p in found.items():
        if id(p) in sparse:
            raise ValueError(
                f"{name!r} belongs to a module with sparse=True, whose gradients are sparse, but a penalty touches "
                "every entry; build the module with sparse=False, or let a proximal step "
                "take the rows that the gradient has: attach(penalty, {name: module.weight}, lazy=True)."
            )
    return found


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
