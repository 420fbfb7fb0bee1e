"""Zeros that stay zero: the other entries are trained on, without shrinkage.

Which entries are zero for good is part of the parameter's state in its optimizer, so it goes where that goes: into
checkpoints, to other devices, over processes. It is a mask of one byte an entry ("support"), or follows from the dense
copy of a projection (`torchreg.training.dense_copy`), whose part beyond w is not zero exactly there. Where neither has
come yet, as after a load that keeps only what torch knows, the zeros of the weights say it before the step.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torchreg.functional.dtensor import here
from torchreg.training.dense_copy import KEY as DENSE
from torchreg.training.site import Site
from torchreg.training.term_part import AnyTerm

SUPPORT = "support"  # the entry of a parameter's state: which entries are trained
_MOMENTA = ("exp_avg", "momentum_buffer", "grad_avg", "exp_avg_diff")  # of torch's optimizers and of like ones
Noted = dict[tuple[int, int], Tensor]


def support(state: MutableMapping[str, Any]) -> Tensor | None:
    """Which entries are trained, None where the state does not say; cut over processes as the parameter is."""
    if DENSE in state:
        return torch.as_tensor(state[DENSE] == 0)
    if SUPPORT not in state:
        return None
    if state[SUPPORT].dtype is not torch.bool:  # torch loads a state in its parameter's dtype
        state[SUPPORT] = state[SUPPORT] != 0
    return torch.as_tensor(state[SUPPORT])


def noted(sites: Sequence[Site]) -> Noted:
    """Before a step, which entries are not zero, by place, of parameters whose state does not say it."""
    unknown = [site for site in sites if DENSE not in site.state and SUPPORT not in site.state]
    return {site.place: site.param.detach() != 0 for site in unknown}


def hold(sites: Sequence[Site], known: Noted) -> None:
    """After a step, zero what is to be zero, and its momentum."""
    for site in sites:
        if site.stepped and site.place in known:
            site.state[SUPPORT] = known[site.place]
        keep = support(site.state)
        if keep is not None:
            zero = ~here(keep)
            site.here.masked_fill_(zero, 0.0)
            for name in _MOMENTA:
                if isinstance(site.state.get(name), Tensor) and site.state[name].shape == site.param.shape:
                    here(site.state[name]).masked_fill_(zero, 0.0)


class Held:
    """The control of a term whose zeros are frozen, by `freeze_zeros`."""

    def __init__(self) -> None:
        self._noted: Noted = {}

    def check(self, term: AnyTerm, *, masters: bool) -> None:
        """Any term will do."""

    def before(self, sites: Sequence[Site]) -> None:
        """The zeros of parameters that have made no step since the freeze."""
        self._noted = noted(sites)

    def after(self, sites: Sequence[Site], shrink: Callable[[], None]) -> None:
        """Zeros stay zero, and nothing is shrunk."""
        del shrink
        hold(sites, self._noted)
        self._noted = {}

    def undo(self, sites: Sequence[Site]) -> None:
        """Zeros stay zero also where a step broke off."""
        for site in sites:
            keep = self._noted.get(site.place) if support(site.state) is None else support(site.state)
            if keep is not None:
                site.here.masked_fill_(~here(keep), 0.0)

    def __getstate__(self) -> dict[str, Any]:
        return {"_noted": {}}

    def __repr__(self) -> str:
        return "freeze_zeros"
