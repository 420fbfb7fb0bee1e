"""A checkpoint of other terms or of another model, read by the names of the parameters that it shares."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from torchreg.training.checkpoint import Renewal, Saved, renewal, renewals, strengths
from torchreg.training.parameter_names import names_in
from torchreg.training.refusals import is_torchs_own, misfits, refuse_groups, refuse_state
from torchreg.training.term import Term

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
    penalty of the same kind.
    """
    known = {name: then for then in saved for name in then["names"]}
    parts = [(term, part) for term in terms for part in term.parts]
    renewed: list[Renewal] = []
    new, others, split = [], [], []
    for (term, part), now in zip(parts, strengths(terms), strict=True):
        found = [name for name in now["names"] if name in known]
        alike = [name for name in found if known[name]["penalty"] == now["penalty"]]
        new += [name for name in now["names"] if name not in known]
        others += [name for name in found if name not in alike]
        if len({float(known[name]["alpha"]) for name in alike}) > 1:
            split += alike
        elif alike:
            renewed.append(renewal(term, part, known[alike[0]]))
    present = {name for term in terms for name in term.parameters}
    gone = [name for then in saved for name in then["names"] if name not in present]
    told = [
        _told("does not penalise", new, "which have the strength of their term here"),
        _told("has another penalty for", others, "which keep theirs"),
        _told("gives several strengths to", split, "which share one here and keep it"),
        _told("alone penalises", gone, "which this optimizer does not"),
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
        return saved, []
    then = {
        name: (group, saved["state"].get(index))
        for group in saved["param_groups"]
        for name, index in zip(group["param_names"], group["params"], strict=True)
    }
    state, groups, fresh = {}, [], []
    for group, tensors in zip(now["param_groups"], base.param_groups, strict=True):
        options: dict[str, Any] = next((then[name][0] for name in group["param_names"] if name in then), {})
        groups.append({**group, **options, "params": group["params"], "param_names": group["param_names"]})
        for name, index, p in zip(group["param_names"], group["params"], tensors["params"], strict=True):
            kept = then.get(name, (None, None))[1]
            if name not in then or misfits(kept or {}, p):
                fresh.append(name)
            elif kept is not None:
                state[index] = kept
    gone = [name for name in then if name not in {n for group in groups for n in group["param_names"]}]
    told = [
        _told("has no state for", fresh, "which start anew"),
        _told("alone has", gone, "whose state is left"),
    ]
    return {**saved, "state": state, "param_groups": groups}, [text for text in told if text]


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
