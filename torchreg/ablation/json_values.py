"""What a ledger can hold: JSON's types, with NaN and the infinities, which JSON lacks, marked."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

_FLOAT = "$float"  # {"$float": "nan"} stands for a number that JSON cannot write
_MARKED = ("nan", "inf", "-inf")
_UNMARKED = json.JSONDecoder()  # a text without marks needs no look at each of its objects


def plain(value: Any, where: str) -> Any:
    """``value`` in JSON's types: 0-d tensors and NumPy's scalars as numbers, tuples as lists.

    Args:
        value: numbers, bools, strings, None, and lists, tuples and dicts of these.
        where: how an error names it.

    Raises:
        TypeError: for anything else.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return _builtin(value, where)
    if isinstance(value, Tensor | np.ndarray | np.generic):
        if value.ndim:
            raise TypeError(f"{where} is an array of shape {tuple(value.shape)}; give numbers, or a list by .tolist().")
        item = float(value) if isinstance(value, np.longdouble) else value.item()  # whose item is a longdouble again
        if not isinstance(item, np.generic):
            return plain(item, where)
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str) or name.startswith("$"):
                raise TypeError(f"{where} has the key {name!r}; keys are strings that do not begin with $.")
        return {_builtin(name, where): plain(inner, f"{where}[{name!r}]") for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner, f"{where}[{k}]") for k, inner in enumerate(value)]
    raise TypeError(
        f"{where} is {value!r} of type {type(value).__name__}; a ledger holds numbers, strings, None, lists and dicts."
    )


def _builtin(value: Any, where: str) -> Any:
    """Without the subclass: enums of ints and NumPy's float64 are numbers in JSON, and here."""
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise TypeError(f"{where} is text that UTF-8 cannot hold ({error}).") from error
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value) if kind is not str else str.__str__(value)
    return value


def unified(value: Any) -> Any:
    """The same data for equal numbers, at any depth: 0.0 is 0. Bools stay what they are, which True == 1 hides."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {name: unified(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [unified(inner) for inner in value]
    return value


def dumps(value: Any) -> str:
    """Strict JSON on one line."""
    return json.dumps(_marked(value), allow_nan=False, separators=(",", ":"), ensure_ascii=True)


def loads(text: str | bytes) -> Any:
    """What `dumps` wrote."""
    text = text.decode() if isinstance(text, bytes) else text
    return json.loads(text, object_hook=_unmarked) if _FLOAT in text else _UNMARKED.decode(text)


def _marked(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {_FLOAT: str(value)}
    if isinstance(value, dict):
        return {name: _marked(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_marked(inner) for inner in value]
    return value


def _unmarked(found: dict[str, Any]) -> Any:
    if len(found) != 1 or _FLOAT not in found:
        return found
    if found[_FLOAT] not in _MARKED:
        raise ValueError(f"{found} is no number; {_FLOAT} marks {', '.join(_MARKED)}")
    return float(found[_FLOAT])
