"""Where a penalty's own tensors lie: with the parameters, since else a step waits for copies, or cannot be made."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from torchreg.functional.groups import Groups
from torchreg.penalties import Penalty


def check_placement(name: str, penalty: Penalty, p: Tensor) -> None:
    """Refuse tensors of a penalty that lie on another device than the parameter.

    Raises:
        ValueError: naming the parameter, the tensor and both devices.
    """
    away = [(what, t) for what, t in _tensors(penalty) if t.device != p.device]
    if away and not p.is_meta:
        (what, t), place = away[0], repr(str(p.device))
        remedy = f"move it with .to({place})" if t.dim() else f"make it with device={place}, or give a number"
        raise ValueError(
            f"Parameter {name!r} lies on {p.device} and {what} on {t.device}: a step would wait for a copy of it, and "
            f"a captured one would keep the value of now. Attach after the model has moved, and {remedy}."
        )


def _tensors(held: Penalty | Groups) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a penalty and of what it is made of; of a user's own only its strength."""
    ours = type(held).__module__.startswith("torchreg.")
    for field, value in getattr(held, "__dict__", {}).items():
        if isinstance(value, Tensor) and (ours or field == "alpha"):
            yield f"{type(held).__name__}'s {field}", value
        for inner in value if isinstance(value, tuple) else (value,):
            if isinstance(inner, (Penalty, Groups)):
                yield from _tensors(inner)
