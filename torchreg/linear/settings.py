"""Checks of what every fit is told besides its data."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import numpy as np

from torchreg.linear.datafits import Datafit, Quadratic
from torchreg.penalties import Penalty, Sum


def checked(penalty: Any, datafit: Any, tol: Any, max_iter: Any = None) -> Datafit:
    """The datafit, after a look at all settings.

    Raises:
        TypeError: if the penalty or the datafit is not one, but a name or a class for instance.
        ValueError: if ``tol`` is not finite and >= 0, or ``max_iter`` is neither None nor an int >= 1.
    """
    if not isinstance(penalty, Penalty):
        raise TypeError(f"penalty must be a Penalty like L1(1.0), got {_named(penalty)}.")
    if datafit is not None and not isinstance(datafit, Datafit):
        raise TypeError(f"datafit must be a Datafit like Logistic(), or None for Quadratic(), got {_named(datafit)}.")
    if not isinstance(tol, Real) or isinstance(tol, bool) or not 0.0 <= float(tol) < math.inf:
        raise ValueError(f"tol must be a finite number >= 0, got {tol!r}.")
    whole = isinstance(max_iter, Integral) and not isinstance(max_iter, bool)
    if max_iter is not None and not (whole and max_iter >= 1):
        raise ValueError(f"max_iter must be an int >= 1, or None for the engine's own limit, got {max_iter!r}.")
    return datafit or Quadratic()


def at_its_own_strength(penalty: Penalty) -> Penalty:
    """A penalty to be fitted as it is, with an alpha for the engines: of a sum of several strengths a factor."""
    return Sum((penalty,)) if penalty.several else penalty


def check_flags(**flags: Any) -> None:
    """Ask that each is true or false.

    Raises:
        TypeError: if one is something else, which Python would take for true or false.
    """
    for name, given in flags.items():
        if not isinstance(given, bool | np.bool_):
            raise TypeError(f"{name} takes True or False, got {given!r}.")


def _named(given: Any) -> str:
    return f"the class {given.__name__}; make one: {given.__name__}(...)" if isinstance(given, type) else repr(given)
