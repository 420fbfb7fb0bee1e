"""Names that tell parameters apart where several modules, terms or groups use the same ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from torch.optim import Optimizer

from torchreg.training.term import Term


def qualified(names: Sequence[str], places: Sequence[str]) -> list[str]:
    """Each name, followed by its place in brackets where another has the same."""
    seen = Counter(names)
    return [f"{name} ({place})" if seen[name] > 1 else name for name, place in zip(names, places, strict=True)]


def names_in(optimizer: Optimizer, terms: Sequence[Term]) -> list[list[str]]:
    """A name for each parameter of each group, no two alike: the term's, else that given to the optimizer."""
    known = {id(p): name for term in terms for name, p in term.parameters.items()}
    names, places = [], []
    for g, group in enumerate(optimizer.param_groups):
        numbered = [f"group {g}, parameter {k}" for k in range(len(group["params"]))]
        given = group.get("param_names", numbered)
        names += [known.get(id(p), name) for p, name in zip(group["params"], given, strict=True)]
        places += numbered
    told = iter(qualified(names, places))
    return [[next(told) for _ in group["params"]] for group in optimizer.param_groups]
