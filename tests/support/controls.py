"""A control of terms as the tests use it: of all parameters of a term the larger half stay, on dense copies."""

from __future__ import annotations

import torch

from torchreg.training import dense_copy


class LargerHalf:
    """Keeps the entries of the dense copies above their median size."""

    def __repr__(self) -> str:
        return "LargerHalf()"

    def check(self, term, *, masters):
        pass

    def before(self, sites):
        dense_copy.renew(sites)

    def undo(self, sites):
        dense_copy.take_back(sites)

    def after(self, sites, shrink):
        dense = [dense_copy.dense(site) for site in sites]
        if sites:
            sizes = torch.cat([z.abs().double().flatten() for z in dense])
            middle = sizes.kthvalue((len(sizes) + 1) // 2).values
            for site, z in zip(sites, dense, strict=True):
                dense_copy.keep(site, z.abs() > middle, z)
