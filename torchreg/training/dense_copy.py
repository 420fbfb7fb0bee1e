"""A dense copy z of a sparse parameter w: the base's steps move z, while gradients are taken at w.

The base's update does not depend on where it is added, so it may as well step w: its state keeps what z has beyond w,
and z is the sum. z equals w where w is not zero, so that is z at the zeros, and 0 elsewhere; it takes as much memory
as z would, 4 bytes an entry. Weight decay acts at w, as a gradient does. Nothing is lent or exchanged for the time of
a step: a step that is skipped leaves both as they are, and a large z costs w no digits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchreg.training.site import Site

KEY = "dense"  # the entry of a parameter's state: the dense copy at the zeros, 0 elsewhere


def dense(site: Site) -> Tensor:
    """After the base's step: the dense copy z, a new tensor; at the first step that is the parameter."""
    return site.here + site.kept(KEY)


def keep(site: Site, mask: Tensor, z: Tensor | None = None) -> None:
    """After the base's step: the parameter takes z where a mask holds, else 0; in a skipped step all stays.

    Args:
        site: where.
        mask: bool, of the shape of the part that lies here.
        z: `dense` of the site, if it is at hand.
    """
    w, hidden = site.here, site.kept(KEY)
    z = w + hidden if z is None else z
    kept = torch.where(mask, z, 0.0)
    left = torch.where(mask, 0.0, z)
    if site.skipped is not None:
        kept, left = torch.where(site.skipped, w, kept), torch.where(site.skipped, hidden, left)
    _write(w, kept, hidden, left)


def renew(sites: Sequence[Site]) -> None:
    """Before the base's step: entries that were zero and that somebody has given a value since start anew from it."""
    for site in sites:
        if KEY in site.state:
            hidden = site.kept(KEY)
            hidden.copy_(torch.where(site.here == 0, hidden, 0.0))


def take_back(sites: Sequence[Site]) -> None:
    """After a step that raised: what it has added to hidden entries goes to the dense copy, and they are zero again."""
    for site in sites:
        if KEY in site.state:
            w, hidden = site.here, site.kept(KEY)
            was_zero = hidden != 0
            _write(w, torch.where(was_zero, 0.0, w), hidden, torch.where(was_zero, hidden + w, hidden))


def _write(w: Tensor, new: Tensor, hidden: Tensor, left: Tensor) -> None:
    """Both in one call, into which no interrupt comes."""
    torch._foreach_copy_([hidden, w], [left, new])
