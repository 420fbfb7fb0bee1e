"""A byte-level transformer on the text of the standard library, with exact zeros: one CPU, one GPU, or many.

    python examples/cluster/byte_transformer.py --size small --steps 200          # a CPU, minutes
    python examples/cluster/byte_transformer.py --size base --compile             # one GPU
    torchrun --nproc-per-node 8 examples/cluster/byte_transformer.py --size large --fsdp

``--penalty rows`` sets whole neurons of the perceptrons to zero, ``--penalty l1`` single weights of all matrices,
``--penalty none`` is the run to compare with. The strength rises over the first quarter of the steps, the learning rate
falls to 1 % by a cosine: at 0 the threshold would be 0 too, and zeros would not settle. The same command goes on from
the last checkpoint in ``--out``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from pathlib import Path

import torch
import torch.distributed as dist
from byte_model import SIZES, ByteTransformer, batch, standard_library
from checkpoints import Checkpoints
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from torchreg import L1, Group, PenaltyScheduler, ProxOptimizer, attach, matching, rows, schedules, sparsity, weights

ALPHAS = {"rows": 2e-4, "l1": 2e-5, "none": 0.0}


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="base" if torch.cuda.is_available() else "small")
    parser.add_argument("--penalty", choices=ALPHAS, default="rows")
    parser.add_argument("--alpha", type=float, help=f"strength, {ALPHAS} if it is not given")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=64, help="rows for one step, of all processes together")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--bytes", type=int, help="of text; all of it if not given")
    parser.add_argument("--save-every", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("byte-transformer"))
    parser.add_argument("--fsdp", action="store_true", help="shard the model; start with torchrun")
    parser.add_argument("--compile", action="store_true", help="compile the model and the proximal step")
    parser.add_argument("--float32", action="store_true", help="no bfloat16 in the forward pass")
    return parser.parse_args()


def main() -> None:
    chosen = options()
    device = start(chosen.fsdp)
    torch.manual_seed(0)
    size = SIZES[chosen.size]
    model = ByteTransformer(size).to(device)
    if chosen.fsdp:
        for block in model.blocks:
            fully_shard(block)
        fully_shard(model)
    opt, schedule = optimizer(model, chosen)
    checkpoints = Checkpoints(chosen.out, model, opt, schedule)
    training, validation = standard_library(chosen.bytes)
    loss_of = torch.compile(model.loss) if chosen.compile else model.loss
    for step in range(checkpoints.resume(), chosen.steps):
        part = share(batch(training, step, chosen.batch, size.context)).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=not chosen.float32):
            loss = loss_of(part)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        schedule.step()
        opt.zero_grad()
        if (step + 1) % chosen.save_every == 0 or step + 1 == chosen.steps:
            checkpoints.save(step + 1)
            tell(step + 1, evaluated(model, validation, size.context, device, chosen), opt, chosen.out)
    finish(opt)


def start(fsdp: bool) -> torch.device:
    """This process's device; with ``--fsdp`` it joins the others."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if fsdp:
        dist.init_process_group("nccl" if cuda else "gloo")
    return device


def optimizer(model: nn.Module, chosen: argparse.Namespace) -> tuple[ProxOptimizer, LambdaLR]:
    """AdamW with the penalty's proximal step, attached to the model as it is trained: after fully_shard."""
    alpha = ALPHAS[chosen.penalty] if chosen.alpha is None else chosen.alpha
    penalised = matching(model, "*.up.weight") if chosen.penalty == "rows" else weights(model)
    term = attach(Group(L1(0.0), by=rows) if chosen.penalty == "rows" else L1(0.0), penalised)
    base = AdamW(model.parameters(), lr=chosen.lr, weight_decay=0.0, fused=torch.cuda.is_available())
    opt = ProxOptimizer(base, term)
    if chosen.compile:
        opt.prox = torch.compile(opt.prox)
    PenaltyScheduler(term, schedules.linear(0.0, alpha, steps=max(1, chosen.steps // 4)))
    return opt, LambdaLR(opt, lambda k: 0.01 + 0.495 * (1 + math.cos(math.pi * min(1.0, k / chosen.steps))))


def share(batch: Tensor) -> Tensor:
    """This process's part of a batch."""
    if dist.is_initialized() and len(batch) % dist.get_world_size():
        raise SystemExit(f"--batch {len(batch)} must be a multiple of the {dist.get_world_size()} processes")
    return batch.chunk(dist.get_world_size())[dist.get_rank()] if dist.is_initialized() else batch


@torch.no_grad()
def evaluated(
    model: ByteTransformer, text: Tensor, context: int, device: torch.device, chosen: argparse.Namespace
) -> float:
    """Bits per byte on the same random rows of the validation text each time."""
    found = []
    for k in range(4):
        part = share(batch(text, k, chosen.batch, context)).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=not chosen.float32):
            found.append(model.loss(part))
    mean = torch.stack(found).mean()
    if dist.is_initialized():
        dist.all_reduce(mean)
        mean /= dist.get_world_size()
    return float(mean) / math.log(2)


def tell(step: int, bits: float, opt: ProxOptimizer, out: Path) -> None:
    """Print a line and append it to log.jsonl; every process counts, the first one tells."""
    (term,) = opt.terms
    line = {"step": step, "bits_per_byte": round(bits, 4), "alpha": term.alpha, **sparsity(term).metrics()}
    line.pop("layers")
    if not dist.is_initialized() or dist.get_rank() == 0:
        print(json.dumps(line), flush=True)
        with (out / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")


def finish(opt: ProxOptimizer) -> None:
    """The table of zeros."""
    table = sparsity(*opt.terms)
    if not dist.is_initialized() or dist.get_rank() == 0:
        print(table)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
