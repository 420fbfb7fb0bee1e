"""Other ways to a sparse net: torch's pruning, RigL, L1 in the loss with a threshold, and torchao's PruneOptimizer.

Each reaches its share of zeros exactly, but for those that torchao and the loss reach by a strength. RigL is written
after Evci, Gale, Menick, Castro and Elsen, "Rigging the lottery", ICML 2020; gradual pruning has the schedule of Zhu
and Gupta, "To prune, or not to prune", 2017.
"""

from __future__ import annotations

import importlib.util
import math
from itertools import product
from typing import Any

import torch
from sparse_methods import BEGIN, FREEZE, Job, Method, Training, has_groups, norms, spread
from torch import Tensor
from torch.nn.utils import prune

from torchreg import columns

SCOPES = ("global", "layer")
UPDATES = 60  # of RigL's mask and of the gradual schedule, in a run


def choices(**axes: tuple[Any, ...]) -> tuple[dict[str, Any], ...]:
    """Every combination."""
    return tuple(dict(zip(axes, values, strict=True)) for values in product(*axes.values()))


def cubic(k: int, begin: int, end: int) -> float:
    """Share of the target at step k: 0 up to ``begin``, 1 from ``end`` on."""
    x = min(max((k - begin) / max(end - begin, 1), 0.0), 1.0)
    return 1 - (1 - x) ** 3


class TorchPruning(Training):
    """torch.nn.utils.prune, of entries or columns, over all layers or in each, step by step or at once."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        mine = {id(w) for w in job.weights.values()}
        self._pairs = [(m, n) for m in job.model.modules() for n, p in m.named_parameters(recurse=False)
                       if id(p) in mine]  # fmt: skip
        for pair in self._pairs:
            prune.identity(*pair)  # from here on the parameter is called weight_orig

    def step(self, k: int) -> None:
        super().step(k)
        setting, steps = self.job.setting, self.job.steps
        if "when" in setting:
            if k == int(setting["when"] * steps):
                self.prune_to(self.job.target)
            return
        begin, end = int(BEGIN * steps), int(setting["end"] * steps)
        if begin <= k <= end and ((k - begin) % max(1, (end - begin) // UPDATES) == 0 or k == end):
            self.prune_to(self.job.target * cubic(k, begin, end))

    def prune_to(self, share: float) -> None:
        """Let so large a share of the units be pruned, those of before among them."""
        masks = [getattr(m, f"{n}_mask") for m, n in self._pairs]
        if self.job.by is None and self.job.setting["scope"] == "global":
            missing = self._missing(share, masks)
            prune.global_unstructured(self._pairs, prune.L1Unstructured, amount=missing)
            return
        for (module, name), mask in zip(self._pairs, masks, strict=True):
            missing = self._missing(share, [mask])
            if self.job.by is None:
                prune.l1_unstructured(module, name, amount=missing)
            else:
                prune.ln_structured(module, name, amount=missing, n=2, dim=1 if self.job.by is columns else 0)

    def _missing(self, share: float, masks: list[Tensor]) -> int:
        units = [norms(mask, self.job.by) for mask in masks]
        total = sum(unit.numel() for unit in units)
        return math.ceil(share * total) - sum(int((unit == 0).sum()) for unit in units)

    def now(self) -> list[Tensor]:
        return [(getattr(m, f"{n}_orig") * getattr(m, f"{n}_mask")).detach() for m, n in self._pairs]


class Masked(Training):
    """Training with masks of our own, by unit: gradients and weights outside are zero."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.masks: list[Tensor] | None = None

    def step(self, k: int) -> None:
        self._apply(gradients=True)
        super().step(k)
        self._apply()

    @torch.no_grad()
    def _apply(self, *, gradients: bool = False) -> None:
        if self.masks is None:
            return
        for w, keep in zip(self.job.weights.values(), self.masks, strict=True):
            mask = spread(keep, w, self.job.by)
            if not gradients:
                w.mul_(mask)
            elif w.grad is not None:
                w.grad.mul_(mask)

    def threshold(self, share: float, scope: str) -> None:
        """Keep the largest units, over all layers or in each."""
        sizes = [norms(w, self.job.by) for w in self.job.weights.values()]
        parts = [sizes] if scope == "global" else [[size] for size in sizes]
        self.masks = []
        for part in parts:
            flat = torch.cat([size.flatten() for size in part])
            keep = torch.ones(len(flat), dtype=torch.bool)
            keep[flat.argsort()[: math.ceil(share * len(flat))]] = False
            cut = keep.split([size.numel() for size in part])
            self.masks += [one.reshape(size.shape) for one, size in zip(cut, part, strict=True)]


class LossAndThreshold(Masked):
    """L1 in the loss, or the norms of groups; then a threshold, and the rest of the steps without the smallest."""

    def extra_loss(self, k: int) -> Tensor | float:
        if k >= int(self.job.setting["when"] * self.job.steps):
            return 0.0
        return self.job.setting["times"] * self.job.penalty(list(self.job.weights.values()))

    def step(self, k: int) -> None:
        if k == int(self.job.setting["when"] * self.job.steps):
            self.threshold(self.job.target, self.job.setting["scope"])
        super().step(k)


class RigL(Masked):
    """A sparse net from its start, which drops its smallest weights and grows where the gradient is largest.

    Layers are equally sparse, or by the Erdos-Renyi kernel; the share that moves falls by a cosine until 75 % of the
    steps. At an update of the mask no gradient step is made; what grows starts at 0, with new moments.
    """

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._every, self._end = max(1, int(0.75 * job.steps) // UPDATES), int(0.75 * job.steps)
        sizes = [norms(w, job.by) for w in job.weights.values()]
        draw = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
        self.masks = []
        for size, count in zip(sizes, self._counts(), strict=True):
            keep = torch.zeros(size.numel(), dtype=torch.bool)
            keep[torch.randperm(size.numel(), generator=draw)[:count]] = True
            self.masks.append(keep.reshape(size.shape))
        self._apply()

    def _counts(self) -> list[int]:
        """Units that each layer keeps; together exactly as many as are wanted."""
        weights, by = list(self.job.weights.values()), self.job.by
        units = [norms(w, by).numel() for w in weights]
        wanted = sum(units) - math.ceil(self.job.target * sum(units))
        erk = self.job.setting["layers"] == "erk"
        parts = [sum(w.shape) / w.numel() * n if erk else n for w, n in zip(weights, units, strict=True)]
        shares = self._shares(parts, units, wanted)
        counts = [math.floor(share) for share in shares]
        by_rest = sorted(range(len(units)), key=lambda i: (counts[i] >= units[i], counts[i] - shares[i]))
        for i in by_rest[: wanted - sum(counts)]:
            counts[i] += 1
        return counts

    @staticmethod
    def _shares(parts: list[float], units: list[int], wanted: int) -> list[float]:
        """In proportion to ``parts``, where no layer has more than all of its units."""
        full: set[int] = set()
        while True:
            free = [i for i in range(len(units)) if i not in full]
            scale = (wanted - sum(units[i] for i in full)) / max(sum(parts[i] for i in free), 1e-30)
            over = {i for i in free if scale * parts[i] > units[i]}
            if not over:
                return [float(units[i]) if i in full else scale * parts[i] for i in range(len(units))]
            full |= over

    def step(self, k: int) -> None:
        if k and k < self._end and k % self._every == 0:
            self._move(self.job.setting["drop"] / 2 * (1 + math.cos(math.pi * k / self._end)))
        else:
            super().step(k)

    @torch.no_grad()
    def _move(self, share: float) -> None:
        for i, w in enumerate(self.job.weights.values()):
            keep, count = self.masks[i].flatten(), int(share * int(self.masks[i].sum()))
            count = min(count, int((~keep).sum()))
            size, slope = norms(w, self.job.by).flatten(), norms(w.grad, self.job.by).flatten()
            drop = torch.where(keep, size, torch.inf).argsort()[:count]
            left = keep.clone()
            left[drop] = False
            grow = torch.where(left, -torch.inf, slope).argsort(descending=True)[:count]
            new = left.clone()
            new[grow] = True
            self.masks[i] = new.reshape(self.masks[i].shape)
            fresh = spread((new & ~keep).reshape(self.masks[i].shape), w, self.job.by)
            for moment in ("exp_avg", "exp_avg_sq"):
                self.optimizer.state[w][moment].masked_fill_(fresh, 0.0)
        self._apply()


def _torchao(job: Job, prox: str, group: str, **options: Any) -> Training:
    from torchao.prototype.pat.optim import PruneOptimizer

    heal = int(job.setting.get("heal", FREEZE) * job.steps)
    base = job.base(prox_type=prox, group_type=group, **options)
    return Training(job, PruneOptimizer(base, warmup_steps=int(BEGIN * job.steps), healing_start_step=heal))


def _torchao_lasso(job: Job) -> Training:
    prox, group = ("ProxLasso", "ElemGrouper") if job.by is None else ("ProxGroupLasso", "Dim1Grouper")
    return _torchao(job, prox, group, reg_lambda=float(job.penalty.alpha))


def _torchao_group(job: Job) -> Training:
    """Filters of convolutions and columns of matrices, as the group penalty of ours."""
    training = _torchao(job, "ProxGroupLasso", "Dim1Grouper", reg_lambda=float(job.penalty.alpha))
    whole = training.optimizer.param_groups[0]
    kernels = [p for p in whole["params"] if p.dim() > 2]
    if kernels:
        whole["params"] = [p for p in whole["params"] if p.dim() <= 2]
        training.optimizer.param_groups.append({**whole, "params": kernels, "group_type": "Dim0Grouper"})
    return training


def _torchao_count(job: Job) -> Training:
    options: dict[str, Any] = {"min_sparsity": job.target, "min_sparsity_schedule": True}
    group = "ElemGrouper" if job.by is None else "Dim1Grouper"
    if job.setting["scope"] == "global":
        return _torchao(job, "GlobalMinSparsityConstraint", group, **options)
    if job.by is None:
        group, options["k"] = "KElementGrouper", 1
    return _torchao(job, "MinSparsityConstraint", group, **options)


def _has_torchao() -> bool:
    return importlib.util.find_spec("torchao") is not None


PEERS = {
    "gradual": Method("torch pruning, gradual", TorchPruning, settings=choices(scope=SCOPES, end=(0.5, 0.8))),
    "torchao-count": Method(
        "torchao, min-sparsity", _torchao_count, settings=choices(scope=SCOPES, heal=(0.6, 0.8)), available=_has_torchao
    ),
    "torchao-l1": Method("torchao, L1", _torchao_lasso, searched=True, search_from=50.0, available=_has_torchao),
    "rigl": Method("RigL", RigL, settings=choices(layers=("uniform", "erk"), drop=(0.1, 0.3))),
    "loss": Method(
        "L1 in the loss, threshold",
        LossAndThreshold,
        settings=choices(times=(0.1, 1.0), scope=SCOPES, when=(0.7,)),
        alpha=None,
    ),
    "one-shot": Method("torch pruning, one-shot", TorchPruning, settings=choices(scope=SCOPES, when=(0.3, 0.6))),
    "torchao-group": Method(
        "torchao, group L1", _torchao_group, searched=True, search_from=50.0, fits=has_groups, available=_has_torchao
    ),
}
