"""TargetSparsity on several processes: run by torchrun, judged by tests/training/test_target_processes.py.

    torchrun --standalone --nproc-per-node 2 tests/support/sharded_targets.py OUT

Each check trains the same model cut over processes and in one process on all the data, in float64: the count of zeros
is exact and the zeros are the same ones.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from sharded_checks import BASES, PENALTIES, WRAPPED, drawn, full, mine, same_weights, train, values
from sharded_checks import Net as Model
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.optim import Adam

from torchreg import L1, ProxOptimizer, TargetSparsity, attach, freeze_zeros, sparsity, weights

STEPS, SHARE = 10, 0.7
KINDS = ["L1", "rows", "columns", "labels"]
METHODS = ["projection", "magnitude", "feedback"]


def targeted(model: nn.Module, base: str, method: str, kind: str, scope: str = "global"):
    term = attach(PENALTIES[kind], weights(model))
    opt = ProxOptimizer(BASES[base](model.parameters()), term)
    shrinkage = 0.5 if (method, kind) == ("projection", "L1") else 0.0
    return opt, term, TargetSparsity(term, SHARE, steps=STEPS, method=method, scope=scope, shrinkage=shrinkage)


def aimed(wrap: str, base: str, method: str, kind: str, scope: str) -> None:
    """Weights, zeros, masks, counts and history are those of one process."""
    found = []
    for model, share in ((WRAPPED[wrap](), mine), (Model(), lambda batch: batch)):
        opt, term, target = targeted(model, base, method, kind, scope)
        train(model, opt, share, range(STEPS + 1))
        found.append((model, sparsity(term), target))
    (model, count, target), (alone, wanted, lone) = found
    same_weights(model, alone)
    assert (count.zeros, count.zero_groups) == (wanted.zeros, wanted.zero_groups)
    assert [full(m).tolist() for m in target.mask.values()] == [m.tolist() for m in lone.mask.values()]
    assert [record[:3] for record in target.history] == [record[:3] for record in lone.history]
    torch.testing.assert_close([r.alpha for r in target.history], [r.alpha for r in lone.history])
    assert target.phase == "frozen"


def resumed(method: str, at: int) -> None:
    """A distributed checkpoint of a part of the training goes on to the bit."""
    runs = []
    folder = [None]
    if dist.get_rank() == 0:
        folder = [str(Path(sys.argv[1]) / f"{method}-{at}")]
    dist.broadcast_object_list(folder)
    for stop in (STEPS, at):
        model = WRAPPED["FSDP2"]()
        opt, term, _ = targeted(model, "Adam", method, "L1")
        train(model, opt, mine, range(stop))
        runs.append((model, opt, term))
    state = [{"model": get_model_state_dict(m), "opt": get_optimizer_state_dict(m, o), "term": t} for m, o, t in runs]
    dcp.save(state[1], checkpoint_id=folder[0])
    model = WRAPPED["FSDP2"]()
    opt, term, target = targeted(model, "Adam", method, "L1")
    fresh = {"model": get_model_state_dict(model), "opt": get_optimizer_state_dict(model, opt), "term": term}
    dcp.load(fresh, checkpoint_id=folder[0])
    set_model_state_dict(model, fresh["model"])
    set_optimizer_state_dict(model, opt, fresh["opt"])
    assert target.count == at
    train(model, opt, mine, range(at, STEPS))
    for name, w in values(model).items():
        assert torch.equal(w, values(runs[0][0])[name]), name


def frozen() -> None:
    """freeze_zeros holds the zeros of each part, and a distributed checkpoint knows that it does."""
    pair = [WRAPPED["FSDP2"](), Model()]
    for model, share in zip(pair, (mine, lambda batch: batch), strict=True):
        term = attach(PENALTIES["columns"], weights(model))
        opt = ProxOptimizer(BASES["Adam"](model.parameters()), term)
        train(model, opt, share, range(5))
        before = sparsity(term).zeros
        freeze_zeros(term)
        train(model, opt, share, range(5, 8))
        assert sparsity(term).zeros == before > 0
        assert term.state_dict()["parts"][0]["frozen"]
    same_weights(*pair)


def halved() -> None:
    """bfloat16 parameters with float32 masters: the zeros and the rounded weights of one process."""
    pair = [Model().bfloat16(), Model().bfloat16()]
    torch.distributed.fsdp.fully_shard(pair[0])
    for model in pair:
        opt = ProxOptimizer(BASES["Adam"](model.parameters()), term := attach(L1(0.0), model), masters=True)
        TargetSparsity(term, SHARE, steps=STEPS)
        for k in range(STEPS):
            for j, p in enumerate(model.parameters()):
                g = (drawn(full(p), 10 * k + j) - 0.5).bfloat16()
                p.grad = distribute_tensor(g, p.device_mesh, p.placements) if isinstance(p, DTensor) else g
            opt.step()
    for (name, p), w in zip(pair[0].named_parameters(), pair[1].parameters(), strict=True):
        assert torch.equal(full(p), w), name


def placed() -> None:
    """Placements of tensor parallelism: columns cut, and replicas."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    w = drawn(torch.empty(5, 7), 1) - 0.5
    for placement in (Shard(1), Shard(0), Replicate()):
        for kind in KINDS:
            for method in METHODS:
                found: list[Tensor] = []
                for cut in (True, False):
                    p = nn.Parameter(distribute_tensor(w.clone(), mesh, [placement]) if cut else w.clone())
                    chosen = PENALTIES[kind]
                    term = attach(chosen if kind != "labels" else chosen("w", p), {"w": p})
                    opt = ProxOptimizer(Adam([p], lr=0.05), term)
                    TargetSparsity(term, SHARE, steps=STEPS, method=method)
                    for k in range(STEPS):
                        g = drawn(w, 10 + k) - 0.5
                        p.grad = distribute_tensor(g, mesh, [placement]) if cut else g
                        opt.step()
                    found.append(full(p))
                assert torch.equal(found[0] == 0, found[1] == 0), (placement, kind, method)
                torch.testing.assert_close(*found, rtol=1e-9, atol=1e-11)


def checks() -> Iterator[tuple[str, Callable[[], None]]]:
    for kind in KINDS:
        for method in METHODS:
            yield f"FSDP2, {method}, {kind}", lambda m=method, k=kind: aimed("FSDP2", "Adam", m, k, "global")
        yield f"DDP, {kind}", lambda k=kind: aimed("DDP", "Adam", "projection", k, "global")
        yield f"scope, {kind}", lambda k=kind: aimed("FSDP2", "SGD", "projection", k, "parameter")
    for method in METHODS:
        for at in (3, 7, 9):
            yield f"resumed, {method}, {at}", lambda m=method, a=at: resumed(m, a)
    for check in (frozen, halved, placed):
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
