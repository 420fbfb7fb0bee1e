"""What each constructor parameter may be: one table, and errors in scikit-learn's words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator


class InvalidParameterError(ValueError, TypeError):
    """A constructor parameter has a value or a type that is not allowed."""


@dataclass(frozen=True)
class Rule:
    """A set of allowed values.

    Args:
        words: what is allowed, to be read after "must be".
        allows: whether a value is in the set.
    """

    words: str
    allows: Callable[[Any], bool]

    def __or__(self, other: Rule) -> Rule:
        return Rule(f"{self.words} or {other.words}", lambda v: self.allows(v) or other.allows(v))


def number(least: float, most: float = np.inf, closed: str = "[)") -> Rule:
    """A real number between two bounds; ``closed`` are the brackets of the interval."""

    def allows(value: Any) -> bool:
        if not isinstance(value, Real):
            return False
        value = float(value)
        above = value >= least if closed[0] == "[" else value > least
        return bool(above and (value <= most if closed[1] == "]" else value < most))

    return Rule(f"a float in the range {closed[0]}{least}, {most}{closed[1]}", allows)


def whole_number(least: int) -> Rule:
    """An integer that is not less than ``least``."""
    return Rule(f"an int in the range [{least}, inf)", lambda v: isinstance(v, Integral) and int(v) >= least)


def one_of(*options: str) -> Rule:
    """One of some strings."""
    return Rule(f"a str among {set(options)}", lambda v: isinstance(v, str) and v in options)


def _is_array(value: Any) -> bool:
    return not isinstance(value, str) and (hasattr(value, "__len__") or hasattr(value, "__array__"))


BOOLEAN = Rule("a bool", lambda v: isinstance(v, bool | np.bool_))
NONE = Rule("None", lambda v: v is None)
ARRAY = Rule("an array-like", _is_array)
CALLABLE = Rule("a callable", callable)
DEVICE = Rule("a device or its name", lambda v: isinstance(v, str | torch.device))
SEED = Rule("an int or a RandomState", lambda v: isinstance(v, Integral | np.random.RandomState))
WORDS = Rule("a str", lambda v: isinstance(v, str))
DICT = Rule("a dict", lambda v: isinstance(v, Mapping))
INTEGER = Rule("an int", lambda v: isinstance(v, Integral))

RULES: dict[str, Rule] = {
    "C": number(0.0, closed="(]"),
    "Cs": whole_number(1) | ARRAY,
    "alpha": number(0.0),
    "alpha_per_target": BOOLEAN,
    "alphas": whole_number(1) | ARRAY,
    "class_weight": DICT | one_of("balanced") | NONE,
    "copy_X": BOOLEAN,
    "device": DEVICE | NONE,
    "dual": BOOLEAN,
    "eps": number(0.0, closed="()"),
    "fit_intercept": BOOLEAN,
    "gcv_mode": one_of("auto", "svd", "eigen") | NONE,
    "group_weights": number(0.0, closed="[]") | ARRAY | NONE,
    "groups": whole_number(1) | ARRAY | NONE,
    "intercept_scaling": number(0.0, closed="()"),
    "l1_ratio": number(0.0, 1.0, "[]"),
    "l1_ratios": ARRAY | one_of("warn") | NONE,
    "max_iter": whole_number(1) | NONE,
    "metric": CALLABLE | NONE,
    "n_jobs": INTEGER | NONE,
    "penalty_weights": ARRAY | NONE,
    "positive": BOOLEAN,
    "precompute": BOOLEAN | one_of("auto") | ARRAY,
    "random_state": SEED | NONE,
    "refit": BOOLEAN,
    "rule": one_of("min", "1se") | CALLABLE,
    "scoring": WORDS | CALLABLE | NONE,
    "selection": one_of("cyclic", "random"),
    "store_cv_results": BOOLEAN,
    "tol": number(0.0),
    "use_legacy_attributes": BOOLEAN | one_of("warn"),
    "verbose": BOOLEAN | whole_number(0),
    "warm_start": BOOLEAN,
}


def check_parameters(estimator: BaseEstimator, **special: Rule) -> None:
    """Raise InvalidParameterError, a ValueError, where a parameter of ``estimator`` is not allowed.

    Args:
        estimator: its constructor parameters that stand in `RULES` are checked; fitted attributes end in an underscore.
        special: rules that differ for this estimator.
    """
    for name, value in vars(estimator).items():
        rule = special.get(name) or RULES.get(name)
        if rule is not None and not rule.allows(value):
            raise InvalidParameterError(
                f"The {name!r} parameter of {type(estimator).__name__} must be {rule.words}. Got {value!r} instead."
            )
