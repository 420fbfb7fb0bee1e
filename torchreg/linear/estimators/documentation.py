"""What parameters and attributes of estimators mean, once: a decorator writes it into their docstrings."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from textwrap import TextWrapper
from typing import TypeVar

C = TypeVar("C")

ARGUMENTS = {
    "alpha": "strength, >= 0; 0 for no penalty.",
    "l1_ratio": "share of L1, between 0 and 1.",
    "penalty": "any `torchreg.Penalty` on a tensor (p,), or (p, K) for K targets, or K > 2 classes.",
    "metric": "what is averaged over the test rows, lower is better: a function of (prepared y, prediction, weights) "
    "that returns a 0-d tensor; None for the mean loss, which for squares is the mean squared error.",
    "groups": "None, each feature alone; an integer, blocks of so many neighbouring features; or a label for each "
    "feature, (p,), numbers or strings.",
    "group_weights": "v, >= 0; None for the square root of the group's size, a number, or one for each group in the "
    "order of the sorted labels; 0 = unpenalised, inf = forced to zero.",
    "datafit": "a `torchreg.linear.Datafit`; None for half the squared error.",
    "eps": "least alpha of the grid over the largest.",
    "alphas": "number of alphas in the grid, or the alphas.",
    "fit_intercept": "whether there is an intercept b, which is not penalised.",
    "class_weight": 'a dictionary of weights, "balanced" for ``n / (K * count of the class)``, or None.',
    "max_iter": "most iterations of the solver at each alpha; None for its own limit.",
    "tol": "at which the solver stops: duality gap relative to the objective of the model without features, or "
    "violation of the optimality conditions where there is no gap.",
    "warm_start": "whether to start from the coefficients of the last fit.",
    "cv": "number of folds, a splitter, or (train, test) index arrays; None for 5 folds, not shuffled.",
    "rule": '"min" for the least mean loss; "1se" for the largest alpha whose mean loss is within one standard error '
    "of it; or a function of the `torchreg.linear.CVPath`.",
    "positive": "whether coefficients must be >= 0.",
    "penalty_weights": "c, one for each feature, >= 0; 0 = unpenalised, inf = forced to zero; None for 1.",
    "device": 'where to compute, "cuda" say; None for where X is.',
}
_IDLE = "scikit-learn's, checked, without effect: X is never copied or changed, and one solver serves all data."
ARGUMENTS |= dict.fromkeys(
    ("copy_X", "dual", "gcv_mode", "intercept_scaling", "n_jobs", "precompute", "random_state", "selection", "solver",
     "verbose"), _IDLE,
)  # fmt: skip

ATTRIBUTES = {
    "classes_": "the labels, sorted, (K,).",
    "alpha_": "the alpha that was chosen.",
    "alphas_": "the grid, descending, (a,).",
    "mse_path_": "mean squared errors on the test rows, (a, folds).",
    "path_": "the whole `torchreg.linear.CVPath`.",
    "coef_": "w, (p,), or (K, p) for K targets; of X's kind and precision.",
    "intercept_": "b, one or (K,); 0 without one.",
    "dual_gap_": "by how much the objective may exceed its minimum.",
    "n_iter_": "iterations of the solver.",
    "alpha_max_": "the least alpha at which all penalised coefficients are zero.",
    "n_features_in_": "as in scikit-learn.",
    "feature_names_in_": "as in scikit-learn.",
}
_OF_A_FIT = ("coef_", "intercept_", "dual_gap_", "n_iter_", "alpha_max_")
_RAISES = "ValueError: if a parameter, X, y or the weights are not allowed, in scikit-learn's words."
_SECTION = re.compile(r"^(Args|Attributes|Raises|Source|Example):\n", re.MULTILINE)
_ENTRY = re.compile(r"^    ([A-Za-z_]\w*(?:, \w+)*): ", re.MULTILINE)
_WRAPPER = TextWrapper(112, initial_indent="    ", subsequent_indent=8 * " ", break_on_hyphens=False)


def documented(estimator: type[C]) -> type[C]:
    """Add to a dataclass's docstring all parameters and fitted attributes of which it says nothing itself.

    Parameters stand in the constructor's order, and those of one meaning in one line. Fitted attributes are those
    annotated in base classes, in the order of `ATTRIBUTES` behind those that the class alone has.

    Raises:
        TypeError: if nothing is known of a parameter.
    """
    if estimator.__doc__ is None:  # as under python -OO
        return estimator
    head, *parts = _SECTION.split(inspect.cleandoc(estimator.__doc__))
    sections = dict(zip(parts[::2], parts[1::2], strict=True))
    sections["Args"] = _listed(_arguments(estimator, _entries(sections.get("Args", ""))))
    sections["Attributes"] = _listed(_attributes(estimator, _entries(sections.get("Attributes", ""))))
    groups = ", or if the groups do not fit the features" if hasattr(estimator, "groups") else ""
    sections.setdefault("Raises", _WRAPPER.fill(_RAISES.replace(", in", f"{groups}, in")) + "\n\n")
    names = ("Args", "Attributes", "Raises", "Source", "Example")
    estimator.__doc__ = head + "".join(f"{name}:\n{sections[name]}" for name in names if name in sections)
    return estimator


def _entries(section: str) -> dict[str, str]:
    """The text of each name in a section."""
    _, *parts = _ENTRY.split(section)
    texts = zip(parts[::2], parts[1::2], strict=True)
    return {name: " ".join(text.split()) for names, text in texts for name in names.split(", ")}


def _arguments(estimator: type, own: dict[str, str]) -> dict[str, str]:
    names = [field.name for field in fields(estimator) if field.init]
    known = {**ARGUMENTS, **own}
    unknown = [name for name in names if name not in known] + [name for name in own if name not in names]
    if unknown:
        raise TypeError(f"{estimator.__name__} says nothing of, or has no such parameter: {', '.join(unknown)}.")
    return {name: known[name] for name in names}


def _attributes(estimator: type, own: dict[str, str]) -> dict[str, str]:
    annotated = {name for base in estimator.__mro__ for name in inspect.get_annotations(base) if name.endswith("_")}
    known = dict(ATTRIBUTES)
    if "path_" in annotated:
        known |= dict.fromkeys(_OF_A_FIT, f"as in `{estimator.__name__.removesuffix('CV')}`, at alpha_ on all rows.")
    shared = {name: text for name, text in known.items() if name in annotated or name.endswith("_in_")} | own
    alone = [name for name in own if name not in ATTRIBUTES]
    return {name: shared[name] for name in (*alone, *(name for name in ATTRIBUTES if name in shared))}


def _listed(texts: dict[str, str]) -> str:
    """Lines of a section, names of the same text together."""
    shared: dict[str, list[str]] = {}
    for name, text in texts.items():
        shared.setdefault(text, []).append(name)
    return "\n".join(_WRAPPER.fill(f"{', '.join(names)}: {text}") for text, names in shared.items()) + "\n\n"
