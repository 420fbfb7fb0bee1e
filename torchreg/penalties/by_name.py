"""Penalties by the words of command lines and configuration files: one vocabulary for all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from torch import Tensor

from torchreg.functional.groups import Groups, columns, filters, rows
from torchreg.penalties.base import Penalty
from torchreg.penalties.concave import L0, MCP, SCAD, LHalf, LogSum, LTwoThirds
from torchreg.penalties.differences import TotalVariation
from torchreg.penalties.grouped import Group
from torchreg.penalties.order_norms import SLOPE, LInf
from torchreg.penalties.separable import L1, L1L2, L2
from torchreg.penalties.spectral import Nuclear

PENALTY_NAMES: Mapping[str, Callable[[float | Tensor], Penalty]] = {
    "l0": L0,
    "l1": L1,
    "l1l2": lambda alpha: L1L2(alpha, l1_ratio=0.5),
    "l2": L2,
    "mcp": MCP,
    "scad": SCAD,
    "lhalf": LHalf,
    "ltwothirds": LTwoThirds,
    "logsum": LogSum,
    "slope": SLOPE,
    "rows": lambda alpha: Group(L1(alpha), by=rows),
    "columns": lambda alpha: Group(L1(alpha), by=columns),
    "filters": lambda alpha: Group(L1(alpha), by=filters),
    "nuclear": Nuclear,
    "total_variation": TotalVariation,
    "linf_rows": lambda alpha: LInf(alpha, by=rows),
}
_WITH_OPTIONS: Mapping[str, tuple[str, Callable[..., Penalty]]] = {
    "l1l2": ("l1_ratio", lambda alpha, l1_ratio: L1L2(alpha, l1_ratio=l1_ratio)),
    "group": ("by", lambda alpha, by: Group(L1(alpha), by=by)),
    "sparse_group": ("by", lambda alpha, by: Group(L1(alpha), by=by) + L1(alpha)),
}
OLD_NAMES = {"lasso": "l1", "ridge": "l2", "enet": "l1l2", "tv": "total_variation"}  # of earlier versions


def by_name(
    name: str, alpha: float | Tensor = 1.0, *, by: Groups | None = None, l1_ratio: float | None = None
) -> Penalty:
    """The penalty that a command line or a configuration file names.

    Args:
        name: one of "l0", "l1", "l1l2", "l2", "mcp", "scad", "lhalf", "ltwothirds", "logsum", "slope", "nuclear",
            "total_variation"; "rows", "columns", "filters" (group L1 of these), "linf_rows"; "group" and
            "sparse_group" (group L1, and that plus L1 of entries), which need ``by``.
        alpha: strength, >= 0.
        by: groups of "group" and "sparse_group".
        l1_ratio: share of L1 in "l1l2", from 0 to 1; None is 0.5.

    Raises:
        ValueError: if there is no such name, or an option is given to a penalty that has none, or is missing.

    Example:
        >>> from torchreg import L1, penalties
        >>> penalties.by_name("l1", 0.1) == L1(0.1)
        True
        >>> penalties.by_name("scda")
        Traceback (most recent call last):
            ...
        ValueError: There is no penalty 'scda'; did you mean 'scad'?
    """
    options: dict[str, Any] = {key: x for key, x in (("by", by), ("l1_ratio", l1_ratio)) if x is not None}
    option, make = _WITH_OPTIONS.get(name, ("", None))
    if name not in PENALTY_NAMES and make is None:
        names = list(dict.fromkeys((*PENALTY_NAMES, *_WITH_OPTIONS)))
        near = get_close_matches(name, names, n=1)
        told = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}."
        raise ValueError(f"There is no penalty {name!r}; {told}")
    if extra := options.keys() - {option}:
        raise ValueError(f"The penalty {name!r} takes no {' and no '.join(sorted(extra))}; leave it out.")
    if make is not None and option in options:
        return make(alpha, **options)
    if name not in PENALTY_NAMES:
        raise ValueError(f"The penalty {name!r} needs by: its groups, such as torchreg.rows or torchreg.labels(index).")
    return PENALTY_NAMES[name](alpha)
