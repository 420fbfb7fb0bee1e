"""A checkpoint of other terms or of another model, read by the names of the parameters that it shares."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch.optim import Optimizer

from torchreg.training.checkpoint import Renewal, Saved, read, renewal, renewals, strengths
from torchreg.training.parameter_names import names_in
from torchreg.training.term import Term
from torchreg.training.validation import is_torchs_own, misfits, refuse_groups, refuse_state

_SHOWN = 5  # names in a message


def matched(
    base: Optimizer, terms: list[Term], state: dict[str, Any], parts: list[Saved], *, strict: bool
) -> tuple[dict[str, Any], list[Renewal], list[str]]:
    """The base's state, each part's renewal, and what is to be told, of a checkpoint; nothing is changed yet."""
    renewed, told = (renewals(terms, parts) if parts else [], []) if strict else shared_strengths(terms, parts)
    state, more = (state, []) if strict else shared_state(base, state)
    refuse_groups("The checkpoint's parameter group", state.get("param_groups", []))
    if strict:
        _refuse_states(base, terms, state)
    return state, renewed, told + more


def shared_strengths(terms: list[Term], saved: list[Saved]) -> tuple[list[Renewal], list[str]]:
    """Each part with what was saved for its parameters, and what is to be told of those that differ.

    A part takes a strength where all of its parameters that the checkpoint knows had that one, under a
    penalty of the same kind. Names are those of each term's module, so several terms may have the same; these are
    matched in the order of the terms, where the checkpoint has as many of them.
    """
    parts, present = [(term, part) for term in terms for part in term.parts], strengths(terms)
    known: dict[tuple[str, str], list[Saved]] = {}
    for then in read(terms, saved):
        for name in then["names"]:
            known.setdefault((name, then["penalty"]), []).append(then)
    names = {name for name, _ in known}
    wanted = Counter((name, now["penalty"]) for now in present for name in now["names"])
    met: Counter[tuple[str, str]] = Counter()
    renewed: list[Renewal] = []
    new: list[str] = []
    others: list[str] = []
    split: list[str] = []
    unsure: list[str] = []
    for (term, part), now in zip(parts, present, strict=True):
        alike: dict[str, Saved] = {}
        for name in now["names"]:
            key = name, now["penalty"]
            found = known.get(key, [])
            if not found:
                (others if name in names else new).append(name)
            elif len(found) != wanted[key]:
                unsure.append(name)
            else:
                alike[name] = found[met[key]]
            met[key] += 1
        if len({float(then["alpha"]) for then in alike.values()}) > 1:
            split += alike
        elif alike:
            renewed.append(renewal(term, part, next(iter(alike.values()))))
    here = {name for term in terms for name in term.parameters}
    told = [
        _told("does not penalise", new, "which have the strength of their term here"),
        _told("has another penalty for", others, "which keep theirs"),
        _told("gives several strengths to", split, "which share one here and keep it"),
        _told("and this optimizer have different numbers of parameters called", unsure, "which keep theirs"),
        _told("alone penalises", sorted(names - here), "which this optimizer does not"),
    ]
    return renewed, [text for text in told if text]


def shared_state(base: Optimizer, saved: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The state dict in this optimizer's order, by names, where both optimizers were given names.

    A group's options are those of the saved group that holds the first of its parameters that both
    have. Where either has no names (``Adam(model.parameters())``) the state dict is left as it is.

    Raises:
        ValueError: if there are no names and the numbers of parameters differ.
    """
    now = base.state_dict()
    if not all("param_names" in group for group in [*now["param_groups"], *saved["param_groups"]]):
        _refuse_sizes(*([len(g["params"]) for g in state["param_groups"]] for state in (saved, now)))
        return _fitting(base, saved)
    saved_keys, keys = _keys(saved["param_groups"], now["param_groups"])
    then = {
        key: (group, saved["state"].get(index))
        for group, names in zip(saved["param_groups"], saved_keys, strict=True)
        for key, index in zip(names, group["params"], strict=True)
    }
    state, groups, fresh = {}, [], []
    for group, names, tensors in zip(now["param_groups"], keys, base.param_groups, strict=True):
        options: dict[str, Any] = next((then[key][0] for key in names if key in then), {})
        groups.append({**group, **options, "params": group["params"], "param_names": group["param_names"]})
        for key, index, p in zip(names, group["params"], tensors["params"], strict=True):
            kept = then.get(key, (None, None))[1]
            if key not in then or misfits(kept or {}, p):
                fresh.append(key[0])
            elif kept is not None:
                state[index] = kept
    present = {key for names in keys for key in names}
    gone = [key[0] for key in then if key not in present]
    told = [
        _told("has no state for", fresh, "which start anew"),
        _told("alone has", gone, "whose state is left"),
    ]
    return {**saved, "state": state, "param_groups": groups}, [text for text in told if text]


def _fitting(base: Optimizer, saved: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The state dict without the states that do not fit the parameters at their positions."""
    unfit = {
        index: f"group {g}, parameter {k}"
        for g, (then, own) in enumerate(zip(saved["param_groups"], base.param_groups, strict=True))
        for k, (index, p) in enumerate(zip(then["params"], own["params"], strict=True))
        if misfits(saved["state"].get(index) or {}, p)
    }
    state = {index: kept for index, kept in saved["state"].items() if index not in unfit}
    told = _told("has no state for", list(unfit.values()), "which start anew")
    return {**saved, "state": state}, [told] if told else []


def _next_of(left: Counter[str], name: str) -> int:
    left[name] -= 1
    return left[name]


def _keys(*optimizers: list[dict[str, Any]]) -> list[list[list[tuple[str, int, int]]]]:
    """A key for each parameter of each group, from the groups of several optimizers.

    Of a name that is there several times it holds which of how many, so that all are matched in order or none.
    """
    keyed = []
    for groups in optimizers:
        counted = Counter(name for group in groups for name in group["param_names"])
        left = counted.copy()
        keyed.append(
            [[(name, _next_of(left, name), counted[name]) for name in group["param_names"]] for group in groups]
        )
    return keyed


def _refuse_states(base: Optimizer, terms: list[Term], saved: dict[str, Any]) -> None:
    """Raise where a state in the checkpoint is that of a parameter of another shape."""
    if not is_torchs_own(base):
        return
    names = names_in(base, terms)
    for group, own, called in zip(saved["param_groups"], base.param_groups, names, strict=False):
        for index, p, name in zip(group["params"], own["params"], called, strict=False):
            refuse_state(name, p, base, saved["state"].get(index, {}))


def _refuse_sizes(then: list[int], now: list[int]) -> None:
    if then != now:
        raise ValueError(
            f"The checkpoint's parameter groups hold {then} parameters, this optimizer's {now}, and they have no names "
            "by which to map them; build both optimizers with model.named_parameters()."
        )


def _told(what: str, names: list[str], so: str) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"The checkpoint {what} {names[:_SHOWN]}{more}, {so}." if names else ""
