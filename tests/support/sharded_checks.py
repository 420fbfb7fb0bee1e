"""What several processes must agree on with one alone: run by torchrun, judged by tests/training/test_sharded.py.

    torchrun --standalone --nproc-per-node 2 tests/support/sharded_checks.py OUT

Every process runs every check and writes {check: "" or what went wrong} to OUT/<rank>.json. The comparison is with the
same training in one process on all the data, in float64: a mean over processes is then the mean over their batches to
rounding.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Adam

from torchreg import (
    L0,
    L1,
    L1L2,
    L2,
    MCP,
    NM,
    SLOPE,
    Box,
    Group,
    L1Ball,
    LInf,
    NonNegative,
    Nuclear,
    Penalty,
    PenaltyScheduler,
    ProxOptimizer,
    TopK,
    TotalVariation,
    Towards,
    UnitNorm,
    Weighted,
    alpha_max,
    attach,
    clip_grad_norm_,
    columns,
    filters,
    labels,
    matching,
    rows,
    schedules,
    sparsity,
    violation,
    weights,
    whole,
)
from torchreg.functional.dtensor import Cut
from torchreg.functional.largest_entries import keep_largest
from torchreg.training import dense_copy

STEPS, BATCH = 5, 8
TOLERANCE = {"rtol": 1e-9, "atol": 1e-11}  # of float64 sums in another order, over a few steps of Adam


class Net(nn.Module):
    """7, 5 and 3 rows: uneven over two processes, and over four one of them has none of the last two."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.wide, self.out = nn.Conv1d(2, 7, 3), nn.Linear(28, 5), nn.Linear(5, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.wide(torch.relu(self.conv(x)).flatten(1))))


class Largest(Penalty):
    """``alpha * max |w|``: a user's own, which needs all entries; its prox is that of the dual ball of L1."""

    def __init__(self, alpha) -> None:
        self.alpha = alpha

    def value(self, w: Tensor) -> Tensor:
        return self.alpha * w.abs().max()

    def prox(self, w: Tensor, step) -> Tensor:
        level = self.alpha * (step.mean() if isinstance(step, Tensor) else step)
        size = w.abs().flatten().sort(descending=True).values
        excess = (size.cumsum(0) - level) / torch.arange(1, size.numel() + 1)
        cap = excess[(size > excess).nonzero().max()].clamp(min=0.0)
        return w.clamp(-cap, cap)


def drawn(like: Tensor, seed: int) -> Tensor:
    return torch.rand(like.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_label(name: str, p: Tensor) -> Penalty:
    index = (4 * drawn(p, 5)).long()
    return Group(L1(ALPHA), by=labels(index))


ALPHA = 0.05
PENALTIES: dict[str, Penalty | Callable[[str, Tensor], Penalty]] = {
    "L1": L1(ALPHA),
    "L1L2": L1L2(ALPHA, 0.5),
    "L1 + L2": L1(ALPHA) + L2(0.1),
    "L0": L0(0.002),
    "MCP": MCP(ALPHA, 50.0),
    "NonNegative": NonNegative(L1(ALPHA)),
    "Weighted": lambda name, p: Weighted(L1(ALPHA), 2 * drawn(p, 7)),
    "Weighted by column": lambda name, p: Weighted(L1(ALPHA), 2 * drawn(p[:1], 7)),
    "Towards": lambda name, p: Towards(L1(ALPHA), p),
    "Towards another": lambda name, p: Towards(L1(ALPHA), 0.3 * drawn(p, 3)),
    "rows": Group(L1(ALPHA), by=rows),
    "rows with weights": lambda name, p: Group(L1(ALPHA), by=rows, weights=8 * drawn(p.new_empty(len(p)), 4)),
    "columns": Group(L1(ALPHA), by=columns),
    "columns of MCP": Group(MCP(ALPHA, 50.0), by=columns),
    "whole": Group(L1(ALPHA / 4), by=whole),
    "labels": by_label,
    "sparse rows": Group(L1(ALPHA / 2), by=rows) + L1(ALPHA / 2),
    "sparse columns": Group(L1(ALPHA / 2), by=columns) + L1(ALPHA / 2),
    "LInf rows": LInf(ALPHA, by=rows),
    "LInf columns": LInf(ALPHA, by=columns),
    "SLOPE": SLOPE(ALPHA / 8),
    "Box": lambda name, p: Box(-0.2 * drawn(p, 6), 0.3),
    "L1Ball": L1Ball(1.5),
    "UnitNorm": UnitNorm(),
    "Towards, columns": lambda name, p: Towards(Group(L1(ALPHA), by=columns), p),
    "nuclear": Nuclear(4 * ALPHA),
    "variation": TotalVariation(ALPHA),
    "variation along rows": TotalVariation(ALPHA, dim=1),
    "fused lasso": TotalVariation(ALPHA, dim=0) + L1(ALPHA),
    "own": Largest(ALPHA),
    "TopK": TopK(0.3),
    "TopK + L1": TopK(0.5) + L1(ALPHA),
    "TopK of rows": Group(TopK(2), by=rows),
    "TopK of columns": Group(TopK(0.5), by=columns),
    "NonNegative TopK": NonNegative(TopK(9)),
    "Towards TopK": lambda name, p: Towards(TopK(9), p),
    "NM": lambda name, p: NM(1, {2: 2, 28: 4, 5: 5, 7: 7, 6: 3, 8: 4}[p.shape[1]]),
    "NM of rows": lambda name, p: Group(NM(1, len(p)), by=rows),
}
NO_ZEROS = ("own", "whole", "labels", "Towards", "Towards another", "Box", "UnitNorm")
NO_ZEROS += ("Towards, columns", "Towards TopK")
NO_ZEROS += ("LInf rows", "LInf columns")  # which cut the largest entries of rows that stay
NO_ZEROS += ("nuclear", "variation", "variation along rows")
BASES = {"SGD": lambda p: SGD(p, lr=0.1, momentum=0.9), "Adam": lambda p: Adam(p, lr=0.05)}


def data(step: int) -> tuple[Tensor, Tensor]:
    """A batch for all processes."""
    draw = torch.Generator().manual_seed(100 + step)
    n = BATCH * dist.get_world_size()
    x = torch.randn(n, 2, 6, generator=draw, dtype=torch.float64)
    return x, torch.randn(n, 3, generator=draw, dtype=torch.float64)


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return (model(x) - y).square().mean()


def mine(batch: tuple[Tensor, Tensor]) -> list[Tensor]:
    return [part.chunk(dist.get_world_size())[dist.get_rank()] for part in batch]


def sharded() -> nn.Module:
    model = Net()
    for layer in (model.conv, model.wide):
        fully_shard(layer)
    fully_shard(model)
    return model


def ddp() -> nn.Module:
    return DistributedDataParallel(Net())


WRAPPED = {"FSDP2": sharded, "DDP": ddp}


def train(model, opt, share: Callable[[tuple[Tensor, Tensor]], object], steps=range(STEPS), extra=None) -> None:
    for k in steps:
        opt.zero_grad()
        loss = loss_of(model, *share(data(k)))
        (loss if extra is None else loss + extra()).backward()
        opt.step()


def full(w: Tensor) -> Tensor:
    return (w.full_tensor() if isinstance(w, DTensor) else w).detach()


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name.removeprefix("module."): full(p) for name, p in model.named_parameters()}


def same_weights(model: nn.Module, alone: nn.Module) -> None:
    found, wanted = values(model), values(alone)
    assert found.keys() == wanted.keys()
    for name, w in found.items():
        torch.testing.assert_close(w, wanted[name], **TOLERANCE)
        assert torch.equal(w == 0, wanted[name] == 0), f"{name} has other zeros"


def close(found: float | Tensor, wanted: float | Tensor) -> None:
    assert not isinstance(found, DTensor)
    torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(wanted), **TOLERANCE)


def selected(model: nn.Module, kind: str) -> dict[str, nn.Parameter]:
    return matching(model, "*conv.weight") if kind == "filters" else weights(model)


def proximal(wrap: str, base: str, kind: str) -> None:
    """Training with a ProxOptimizer: weights, zeros, values, counts and residuals are those of one process."""
    penalty = Group(L1(ALPHA), by=filters) if kind == "filters" else PENALTIES[kind]
    runs = []
    for model, share in ((WRAPPED[wrap](), mine), (Net(), lambda batch: batch)):
        opt = ProxOptimizer(BASES[base](model.parameters()), term := attach(penalty, selected(model, kind)))
        train(model, opt, share)
        opt.zero_grad()
        loss_of(model, *share(data(99))).backward()
        runs.append((model, term, violation(term, model=model)))
    (model, term, residual), (alone, lone, lone_residual) = runs
    same_weights(model, alone)
    close(term(), lone())
    close(residual, lone_residual)
    found, wanted = sparsity(term), sparsity(lone)
    assert (found.zeros, found.total, found.zero_groups, found.groups) == (
        wanted.zeros,
        wanted.total,
        wanted.zero_groups,
        wanted.groups,
    )
    assert wanted.zeros > 0 or kind in NO_ZEROS


class Large:
    """A control: entries of the dense copy above a size stay."""

    def check(self, term, *, masters) -> None:
        pass

    def before(self, sites) -> None:
        dense_copy.renew(sites)

    def undo(self, sites) -> None:
        dense_copy.take_back(sites)

    def after(self, sites, shrink) -> None:
        for site in sites:
            z = dense_copy.dense(site)
            dense_copy.keep(site, z.abs() > 0.1, z)


def controlled(wrap: str, base: str, kind: str) -> None:
    """Dual averaging and dense copies: weights and states are those of one process; states go on after a load."""
    runs = []
    for model, share in ((WRAPPED[wrap](), mine), (Net(), lambda batch: batch)):
        chosen = PENALTIES["L1" if kind == "dense" else kind]
        term = attach(chosen, weights(model))
        term.control = Large() if kind == "dense" else None
        mode = "prox" if kind == "dense" else "dual_averaging"
        opt = ProxOptimizer(BASES[base](model.parameters()), term, mode=mode)
        train(model, opt, share, range(2 * STEPS))
        opt.load_state_dict(opt.state_dict())
        train(model, opt, share, range(2 * STEPS, 3 * STEPS))
        runs.append((model, term, opt))
    (model, term, opt), (alone, lone, other) = runs
    same_weights(model, alone)
    assert sparsity(term).zeros == sparsity(lone).zeros > 0
    for p, q in zip(term.parameters.values(), lone.parameters.values(), strict=True):
        for key in ("dual", "threshold", "dense"):
            assert (key in opt.state[p]) == (key in other.state[q])
            if key in opt.state[p]:
                torch.testing.assert_close(full(opt.state[p][key]), full(other.state[q][key]), **TOLERANCE)


def in_the_loss(wrap: str, kind: str) -> None:
    """A penalty added to the loss: gradients and weights are those of one process, asked both ways."""
    penalty = PENALTIES[kind]
    for how in ("model", "term"):
        pair = [WRAPPED[wrap](), Net()]
        for model, share in zip(pair, (mine, lambda batch: batch), strict=True):
            term = attach(penalty, weights(model))
            direct = how == "model" and isinstance(penalty, Penalty)
            extra = (lambda m=model: penalty(weights(m))) if direct else term
            train(model, SGD(model.parameters(), lr=0.1), share, extra=extra)
            assert type(term()) is Tensor
        same_weights(*pair)


def accumulated(wrap: str) -> None:
    """Gradients of two batches for one step, without communication after the first."""
    pair = [WRAPPED[wrap](), Net()]
    for model in pair:
        term = attach(Group(L1(ALPHA), by=columns), weights(model))
        opt = ProxOptimizer(BASES["Adam"](model.parameters()), term)
        share = mine if model is pair[0] else (lambda batch: batch)
        for k in range(STEPS):
            opt.zero_grad()
            quiet = model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()
            if wrap == "FSDP2" and model is pair[0]:
                model.set_requires_gradient_sync(False)
            with quiet:
                (loss_of(model, *share(data(2 * k))) / 2).backward()
            if wrap == "FSDP2" and model is pair[0]:
                model.set_requires_gradient_sync(True)
            (loss_of(model, *share(data(2 * k + 1))) / 2).backward()
            opt.step()
    same_weights(*pair)


def skipping() -> None:
    """A NaN on one process skips the step on all, and all name the same parameters."""
    model = sharded()
    opt = ProxOptimizer(BASES["Adam"](model.parameters()), attach(L1(ALPHA), model), skip_nonfinite=True)
    train(model, opt, mine, range(2))
    loss_of(model, *mine(data(2))).backward()
    if dist.get_rank() == 0:
        model.conv.weight.grad.to_local().view(-1)[0] = torch.nan
    before = values(model)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        opt.step()
    assert opt.skipped.parameters == {"conv.weight": 1}, opt.skipped
    assert any("conv.weight" in str(w.message) for w in told)
    for name, w in values(model).items():
        assert torch.equal(w, before[name])


def halved() -> None:
    """bfloat16 parameters with float32 masters."""
    pair = [Net().bfloat16(), Net().bfloat16()]
    fully_shard(pair[0])
    for model in pair:
        opt = ProxOptimizer(
            BASES["Adam"](model.parameters()), attach(Group(L1(ALPHA), by=columns), model), masters=True
        )
        for k in range(STEPS):
            for j, p in enumerate(model.parameters()):
                g = (drawn(full(p), 10 * k + j) - 0.5).bfloat16()
                p.grad = distribute_tensor(g, p.device_mesh, p.placements) if isinstance(p, DTensor) else g
            opt.step()
        assert all(state["master"].dtype is torch.float32 for state in opt.state.values())
    for (name, p), w in zip(pair[0].named_parameters(), pair[1].parameters(), strict=True):
        assert torch.equal(full(p), w), name


def strongest() -> None:
    """alpha_max of one layer is that of one process, and leaves the model as it was."""
    pair = [sharded(), Net()]
    found = []
    for model, share in zip(pair, (mine, lambda batch: batch), strict=True):
        before = values(model)
        for by in (L1(1.0), Group(L1(1.0), by=columns)):
            batch = share(data(0))
            x, y = batch

            def loss(model=model, x=x, y=y) -> Tensor:
                value = loss_of(model, x, y)
                value.backward()
                return value

            found.append(alpha_max(model, attach(by, matching(model, "out.weight")), loss))
        for name, w in values(model).items():
            assert torch.equal(w, before[name])
    close(found[0], found[2])
    close(found[1], found[3])


def exchanged() -> None:
    """Tensors that a trainer puts into the optimizer after it was made are those that the term tells of."""
    model = Net()
    term = attach(L1(ALPHA), model)
    opt = ProxOptimizer(BASES["SGD"](model.parameters()), term)
    names = [name for name, _ in model.named_parameters()]
    fully_shard(model)
    new = dict(model.named_parameters())
    opt.param_groups[0]["params"] = [new[name] for name in names]
    assert all(p is new[name] for name, p in term.parameters.items())
    train(model, opt, mine)
    alone = Net()
    lone = attach(L1(ALPHA), alone)
    train(alone, ProxOptimizer(BASES["SGD"](alone.parameters()), lone), lambda batch: batch)
    same_weights(model, alone)
    assert sparsity(term).zeros == sparsity(lone).zeros > 0


def scheduled() -> None:
    """A schedule counts alike on all processes; the dummy step by which a state is created does not count."""
    model = sharded()
    term = attach(L1(0.0), model)
    opt = ProxOptimizer(BASES["Adam"](model.parameters()), term)
    ramp = PenaltyScheduler(term, schedules.linear(0.0, ALPHA, steps=4))
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    before = values(model)
    get_optimizer_state_dict(model, opt)
    assert ramp.count == 0
    assert all(torch.equal(w, before[name]) for name, w in values(model).items())
    train(model, opt, mine)
    assert (ramp.count, term.alpha) == (STEPS, ALPHA)


def placed() -> None:
    """Placements of tensor parallelism: columns cut, replicas, two dimensions; a sum not yet taken is refused."""
    world = dist.get_world_size()
    mesh = init_device_mesh("cpu", (world,))
    w = drawn(torch.empty(5, 7), 1) - 0.5
    layouts = [(mesh, [Shard(1)]), (mesh, [Shard(0)]), (mesh, [Replicate()])]
    if world == 4:
        square = init_device_mesh("cpu", (2, 2))
        layouts += [(square, p) for p in ([Shard(0), Shard(1)], [Replicate(), Shard(0)], [Shard(0), Shard(0)])]
    for on, placements in layouts:
        for kind, chosen in PENALTIES.items():
            whole_w = nn.Parameter(w.clone())
            cut_w = nn.Parameter(distribute_tensor(w.clone(), on, placements))
            pairs = []
            for p in (cut_w, whole_w):
                penalty = chosen if isinstance(chosen, Penalty) else chosen("w", p)
                term = attach(penalty, {"w": p})
                opt = ProxOptimizer(BASES["Adam"]([p]), term)
                for k in range(3):
                    g = drawn(w, 10 + k) - 0.5
                    p.grad = distribute_tensor(g, on, placements) if p is cut_w else g
                    opt.step()
                pairs.append((full(p), term(), sparsity(term).zeros))
            torch.testing.assert_close(pairs[0][0], pairs[1][0], **TOLERANCE, msg=lambda m, k=kind: f"{k}: {m}")
            close(pairs[0][1], pairs[1][1])
            assert pairs[0][2] == pairs[1][2], (kind, placements)
    partial = DTensor.from_local(w, mesh, [Partial()], run_check=False)
    with pytest.raises(ValueError, match="redistribute"):
        L1(1.0)(partial)


def ranked() -> None:
    """The k largest entries of all tensors together: those of one process, of equal ones the first, k in all."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    layouts = [(mesh, [Shard(0)]), (mesh, [Replicate()]), (mesh, [Shard(1)])]
    if dist.get_world_size() == 4:
        square = init_device_mesh("cpu", (2, 2))
        layouts += [(square, p) for p in ([Replicate(), Shard(0)], [Shard(0), Shard(0)], [Shard(0), Shard(1)])]
    shapes = [(7, 3), (1, 4), (4, 5), (3, 2)]
    for tied, first, second in itertools.product((True, False), layouts, layouts):
        scores = [(drawn(torch.empty(shape), k) - 0.3) for k, shape in enumerate(shapes)]
        scores = [s.mul(5).round() if tied else s.float() for s in scores]
        scores[0][2], scores[2][1] = torch.nan, torch.inf
        cut = [distribute_tensor(s, *how) for s, how in zip(scores, (first, second, first), strict=False)]
        cuts = [*map(Cut, cut), None]
        by_rows = not any(Shard(1) in how[1] for how in (first, second))
        for k in (0, 1, 5, 20, 44, 48, 51, 60):
            masks = keep_largest([*(c.to_local() for c in cut), scores[3]], k, cuts)
            found = [c.gathered(mask) if c else mask for c, mask in zip(cuts, masks, strict=True)]
            wanted = keep_largest(scores, k)
            assert sum(int(f.sum()) for f in found) == min(k, 51), (k, first, second)
            for f, w, s in zip(found, wanted, scores, strict=True):
                s = s.nan_to_num(nan=-9.0)  # of equal entries others may be kept where columns are cut
                assert torch.equal(f, w) if by_rows or not tied else torch.equal(s[f].sort()[0], s[w].sort()[0]), k


def clipped() -> None:
    """The norm is that of all parts, and so is what the penalty is scaled by."""
    pair = [sharded(), Net()]
    for model, share in zip(pair, (mine, lambda batch: batch), strict=True):
        opt = ProxOptimizer(BASES["Adam"](model.parameters()), attach(Group(L1(ALPHA), by=columns), weights(model)))
        for k in range(STEPS):
            opt.zero_grad()
            loss_of(model, *share(data(k))).backward()
            assert float(full(clip_grad_norm_(opt, 0.05))) > 0.05
            opt.step()
    same_weights(*pair)


def untouched() -> None:
    """Rows without a gradient: shrunk by lr * alpha, or not at all by a lazy term."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    w = drawn(torch.empty(5, 7), 1) + 0.5
    idle = torch.tensor([True, False, True, False, True])
    for placement in (Shard(0), Shard(1), Replicate()):
        for kind, lazy, base in itertools.product(
            ("L1", "rows", "columns", "Weighted", "own", "TopK"), (False, True), BASES
        ):
            results = []
            for p in (nn.Parameter(distribute_tensor(w.clone(), mesh, [placement])), nn.Parameter(w.clone())):
                chosen = PENALTIES[kind]
                term = attach(chosen if isinstance(chosen, Penalty) else chosen("w", p), {"w": p}, lazy=lazy)
                opt = ProxOptimizer(BASES[base]([p]), term)
                for k in range(3):
                    g = torch.where(idle[:, None], 0.0, drawn(w, 10 + k) - 0.5)
                    p.grad = distribute_tensor(g, mesh, [placement]) if isinstance(p, DTensor) else g
                    opt.step()
                results.append(full(p))
            torch.testing.assert_close(*results, **TOLERANCE, msg=lambda m, k=kind: f"{k}: {m}")
            if lazy and kind != "own":  # whose prox takes one step for all
                assert torch.equal(results[0][idle], w[idle])
            elif base == "Adam" and kind == "TopK":  # the others are more than it keeps
                assert not results[0][idle].any()
            elif base == "Adam" and kind != "own":
                assert float((results[0][idle] - w[idle]).abs().max()) < 0.1


def crossed() -> None:
    """FSDP2 over tensor parallelism: parameters cut in two directions of a mesh."""
    if dist.get_world_size() < 4:
        return
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))

    def small() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).double()

    for kind in ("L1", "Weighted", "rows", "columns", "sparse columns", "own", "TopK", "TopK of rows"):
        results = []
        for cut in (True, False):
            model = small()
            if cut:
                parallelize_module(model, mesh["tensor"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
                fully_shard(model, mesh=mesh["data"])
            term = attach(PENALTIES[kind], model)
            opt = ProxOptimizer(BASES["Adam"](model.parameters()), term)
            for k in range(STEPS):
                draw = torch.Generator().manual_seed(k)
                x = torch.randn(8, 6, generator=draw, dtype=torch.float64)
                x = x.chunk(2)[mesh.get_local_rank("data")] if cut else x
                opt.zero_grad()
                (model(x) - 1.0).square().mean().backward()
                opt.step()
            results.append((values(model), term(), sparsity(term).zeros))
        for name, w in results[0][0].items():
            torch.testing.assert_close(w, results[1][0][name], **TOLERANCE, msg=lambda m, k=kind: f"{k}: {m}")
        close(results[0][1], results[1][1])
        assert results[0][2] == results[1][2], kind


def flattened() -> None:
    """FullyShardedDataParallel flattens parameters: refused, with the remedy."""
    for original in (True, False):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = FullyShardedDataParallel(Net(), device_id=torch.device("cpu"), use_orig_params=original)
        with pytest.raises(TypeError, match="fully_shard"):
            attach(L1(ALPHA), dict(model.named_parameters()))


def checks() -> Iterator[tuple[str, Callable[[], None]]]:
    bases = BASES if dist.get_world_size() == 2 else ["Adam"]  # more processes show what uneven parts do
    for wrap in WRAPPED:
        for base in bases:
            for kind in [*PENALTIES, "filters"] if wrap == "FSDP2" else ["L1", "columns"]:
                yield f"{wrap}, {base}, {kind}", lambda w=wrap, b=base, k=kind: proximal(w, b, k)
        for kind in ["L1", "Weighted", "Towards", "rows", "columns", "sparse columns"]:
            yield f"{wrap}, in the loss, {kind}", lambda w=wrap, k=kind: in_the_loss(w, k)
        yield f"{wrap}, accumulated", lambda w=wrap: accumulated(w)
        for base, kind in itertools.product(bases, ["L1", "Weighted", "rows", "columns", "dense"]):
            yield f"{wrap}, {base}, controlled, {kind}", lambda w=wrap, b=base, k=kind: controlled(w, b, k)
    for check in (
        skipping,
        halved,
        strongest,
        exchanged,
        scheduled,
        placed,
        untouched,
        ranked,
        clipped,
        crossed,
        flattened,
    ):
        yield check.__name__, check


def main(out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=30))
    found = {}
    for name, check in checks():
        try:
            check()
            found[name] = ""
        except (Exception, pytest.fail.Exception):
            found[name] = traceback.format_exc()
        (out / f"{dist.get_rank()}.json").write_text(json.dumps(found))
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(Path(sys.argv[1]))
