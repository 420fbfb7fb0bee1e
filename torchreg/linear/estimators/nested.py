"""Parameters of a parameter: the fields of a penalty or a datafit, by scikit-learn's names (``penalty__alpha``)."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

from torchreg.linear.datafits import Datafit
from torchreg.penalties import Penalty

BETWEEN = "__"


def _fields_of(value: Any) -> dict[str, Any]:
    """The fields of a penalty or a datafit, alpha if it has one; a sum's terms by place; nothing of anything else."""
    if isinstance(value, tuple) and all(isinstance(part, Penalty) for part in value):
        return {str(place): part for place, part in enumerate(value)}
    if not isinstance(value, Penalty | Datafit):
        return {}
    alpha = {"alpha": value.alpha} if isinstance(value, Penalty) else {}
    named: list[str] = [f.name for f in fields(value) if f.init] if is_dataclass(value) else []
    found = alpha | {name: getattr(value, name) for name in named}
    if getattr(value, "several", ()):
        found.pop("alpha")
    return found


def nested(name: str, value: Any) -> dict[str, Any]:
    """The fields of a parameter, and theirs, by their whole names."""
    found: dict[str, Any] = {}
    for field, part in _fields_of(value).items():
        whole = f"{name}{BETWEEN}{field}"
        found |= {whole: part} | nested(whole, part)
    return found


def with_field(value: Any, path: str, new: Any) -> Any:
    """A new penalty or datafit that differs in one field; the one that was given is not changed.

    Args:
        value: the penalty, the datafit or the terms of a sum.
        path: the field, or the way to it: "alpha", "penalty__gamma", "terms__0__alpha".
        new: what the field is to be.

    Raises:
        ValueError: if there is no such field.

    Example:
        >>> from torchreg import MCP, NonNegative
        >>> with_field(NonNegative(MCP(0.1)), "penalty__gamma", 5.0)
        NonNegative(penalty=MCP(alpha=0.1, gamma=5))
    """
    name, _, rest = path.partition(BETWEEN)
    known = _fields_of(value)
    if name not in known and not (name == "alpha" and isinstance(value, Penalty)):  # with_alpha says why there is none
        raise ValueError(f"Invalid parameter {name!r} for {value!r}. Valid parameters are: {sorted(known)!r}.")
    part = with_field(known.get(name), rest, new) if rest else new
    if isinstance(value, tuple):
        return tuple(part if str(place) == name else other for place, other in enumerate(value))
    return value.with_alpha(part) if name == "alpha" else replace(value, **{name: part})
