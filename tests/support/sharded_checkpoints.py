"""A run of FSDP2 with torch.distributed.checkpoint: run by torchrun, judged by test_sharded_checkpoints.py.

    torchrun --standalone --nproc-per-node 2 sharded_checkpoints.py DIRECTORY [--kill 4] [--fresh] --weights FILE

Trains 7 steps on the same data however many processes share them, saves after each, and goes on from the last complete
checkpoint in DIRECTORY. ``--kill k`` kills process 1 while checkpoint k is being written.
"""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Adam

from torchreg import L1, Group, PenaltyScheduler, ProxOptimizer, Term, attach, columns, schedules

STEPS, SAMPLES = 7, 16


def made(world: int) -> tuple[nn.Module, ProxOptimizer, Term, PenaltyScheduler]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    if world > 1:
        fully_shard(model[0])
        fully_shard(model)
    term = attach(Group(L1(0.0), by=columns), model)
    opt = ProxOptimizer(Adam(model.parameters(), lr=0.05), term)
    return model, opt, term, PenaltyScheduler(term, schedules.linear(0.0, 0.2, steps=5))


def step(model: nn.Module, opt: ProxOptimizer, k: int, rank: int, world: int) -> None:
    draw = torch.Generator().manual_seed(k)
    x = torch.randn(SAMPLES, 6, generator=draw, dtype=torch.float64).chunk(world)[rank]
    y = torch.randn(SAMPLES, 3, generator=draw, dtype=torch.float64).chunk(world)[rank]
    opt.zero_grad()
    (model(x) - y).square().mean().backward()
    opt.step()


def state_of(model: nn.Module, opt: ProxOptimizer, term: Term) -> dict[str, object]:
    return {"model": get_model_state_dict(model), "opt": get_optimizer_state_dict(model, opt), "term": term}


def last(directory: Path) -> int:
    """The number of the last complete checkpoint, 0 without any: its metadata are written last."""
    done = [int(path.parent.name) for path in directory.glob("*/.metadata")]
    return max(done, default=0)


def resume(directory: Path, model: nn.Module, opt: ProxOptimizer, term: Term) -> int:
    k = last(directory)
    if k:
        state = state_of(model, opt, term)
        dcp.load(state, checkpoint_id=directory / str(k))
        set_model_state_dict(model, state["model"])
        set_optimizer_state_dict(model, opt, state["opt"])
    return k


def train(directory: Path, weights: Path, rank: int, world: int, kill: int | None = None) -> None:
    model, opt, term, ramp = made(world)
    start = resume(directory, model, opt, term)
    saving = None
    apart = dist.new_group(backend="gloo") if world > 1 else None  # the saving thread talks while training does
    for k in range(start, STEPS):
        step(model, opt, k, rank, world)
        assert ramp.count == k + 1
        if saving is not None:
            saving.result()
        if k + 1 == kill and rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)  # the others are about to write and wait for it
        if world > 1:
            state, place = state_of(model, opt, term), directory / str(k + 1)
            saving = dcp.async_save(state, checkpoint_id=place, process_group=apart)
        else:
            dcp.save(state_of(model, opt, term), checkpoint_id=directory / str(k + 1))
    if saving is not None:
        saving.result()
    found = {name: whole(p) for name, p in model.named_parameters()}
    if rank == 0:
        torch.save({"start": start, "alpha": term.alpha, "weights": found}, weights)


def whole(p: Tensor) -> Tensor:
    return (p.full_tensor() if isinstance(p, DTensor) else p).detach()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--kill", type=int)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    train(chosen.directory, chosen.weights, dist.get_rank(), dist.get_world_size(), chosen.kill)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
