"""What a training loop logs of its penalties: value, strength and shares of zeros."""

from __future__ import annotations

from torchreg.training.sparsity import sparsity
from torchreg.training.term import Term


def penalty_metrics(*terms: Term) -> dict[str, float]:
    """Value, strength and sparsity of terms, as numbers for a logger; it waits for the device.

    ``penalty`` is the sum of the terms' values, ``sparsity`` the share of zeros in all their parameters,
    ``group_sparsity`` that of zero groups where there are groups, ``alpha`` the strength. Of several terms
    each has an ``alpha`` of its own, ``alpha_0, alpha_1, ...``; a term with several strengths has none,
    nor has a sum of them.

    Raises:
        ValueError: if there is no term.

    Example:
        >>> import torch
        >>> from torchreg import L1, attach, penalty_metrics
        >>> penalty_metrics(attach(L1(0.5), {"w": torch.tensor([0.0, 2.0])}))
        {'penalty': 1.0, 'alpha': 0.5, 'sparsity': 0.5}
    """
    if not terms:
        raise ValueError("penalty_metrics needs a term, got none; use penalty_metrics(*opt.terms).")
    values = [term().detach() for term in terms]
    shares = {key: share for key, share in sparsity(*terms).metrics().items() if isinstance(share, float)}
    return {"penalty": float(sum(values[1:], values[0])), **_alphas(terms), **shares}


def _alphas(terms: tuple[Term, ...]) -> dict[str, float]:
    found = [{None if p.several else float(p.alpha) for p in term.penalties.values()} for term in terms]
    names = ["alpha"] if len(terms) == 1 else [f"alpha_{k}" for k in range(len(terms))]
    alone = {name: alphas.pop() for name, alphas in zip(names, found, strict=True) if len(alphas) == 1}
    return {name: alpha for name, alpha in alone.items() if alpha is not None}
