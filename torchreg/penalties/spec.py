"""Canonical, JSON-ready descriptions of penalties: equal penalties, equal text, on any machine."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor


def describe(value: Any) -> Any:
    """``value`` as JSON data: floats as hex, tensors as shape, dtype and sha256 of their bytes."""
    if isinstance(value, Tensor):
        return _describe_tensor(value)
    if isinstance(value, float):
        return value.hex()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, (tuple, list)):
        return [describe(v) for v in value]
    if callable(value) and not hasattr(value, "spec"):
        raise TypeError(
            f"A penalty's fields are data, got the function {value!r}; write it as a method of the penalty."
        )
    names = [f.name for f in fields(value) if f.init] if is_dataclass(value) else sorted(vars(value))
    return {"type": _type_name(type(value)), **{name: describe(getattr(value, name)) for name in names}}


def canonical(spec: Any) -> str:
    """One string for one description."""
    return json.dumps(spec, sort_keys=True, separators=(",", ":"))


def _type_name(kind: type) -> str:
    own = kind.__module__.split(".")[0] == "torchreg"
    return kind.__name__ if own else f"{kind.__module__}.{kind.__qualname__}"


def _describe_tensor(value: Tensor) -> dict[str, Any]:
    data = value.detach().cpu().flatten().clone(memory_format=torch.contiguous_format)
    raw = data.view(torch.uint8).numpy().tobytes() if data.numel() else b""
    return {
        "shape": list(value.shape),
        "dtype": str(data.dtype).removeprefix("torch."),
        "sha256": hashlib.sha256(raw).hexdigest(),
    }


def short(value: Any) -> str:
    """A field as ``repr`` shows it: a tensor by its value if 0-d, by its shape otherwise."""
    if isinstance(value, Tensor):
        return f"tensor{tuple(value.shape)}" if value.dim() else f"tensor({value.item():g})"
    return f"{value:g}" if isinstance(value, float) else repr(value)
