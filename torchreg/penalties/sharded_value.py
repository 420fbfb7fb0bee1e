"""A penalty's value where processes hold parts of the tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from torchreg.functional.dtensor import Cut, here, is_cut, whole

if TYPE_CHECKING:
    from torchreg.penalties.base import Penalty


def whole_value(penalty: Penalty, w: Tensor) -> Tensor:
    """The penalty's value of all of a tensor, the same plain 0-d tensor on each process that holds a part of it.

    Its gradient is that of the part that lies here, once: a mean over processes, as of the loss, leaves it as it is.
    """
    if not is_cut(w):
        return penalty.value(w)
    cut = Cut(w)
    part = penalty.part(cut)
    return penalty.value(whole(w)) if part is None else cut.sum(part.value(here(w)))
