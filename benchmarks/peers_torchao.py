"""ProxOptimizer against torchao's PruneOptimizer: time of a step, operations, waits for the device, and the minimiser.

    python benchmarks/peers_torchao.py [--device cuda] [--quick]

Speed: 100 tensors of 64x64, and the matrices of the 95.8 million parameters of `harness.shapes`; each step divided by
the bare base's. Correctness: the lasso of tests/oracles/optimizer_catalog.py, 200x30, as every optimizer of torchreg is
judged by it: distance of the objective to scikit-learn's, and entries in which the support differs. torchao's threshold
is the sum of learning rates times ``reg_lambda``, on a second copy of the weights (dual averaging); so it runs with
constant and with falling learning rates, and its best is shown too: plain SGD.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from harness import medians, save, tensors
from torch import Tensor
from torch.nn import Parameter
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils._python_dispatch import TorchDispatchMode
from torchao.prototype.pat.optim import PruneOptimizer

from torchreg import L1, Group, ProxOptimizer, attach, rows

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "oracles"))
from optimizer_catalog import L1_ALPHA, least_squares

BASES: dict[str, Callable[..., Optimizer]] = {
    "SGD with momentum": lambda p: SGD(p, lr=1e-5, momentum=0.9),
    "AdamW": lambda p: AdamW(p, lr=1e-5, weight_decay=0.0),
}
PENALTIES = {"L1": ("ElemGrouper", "ProxLasso"), "rows": ("Dim0Grouper", "ProxGroupLasso")}


class Counts(TorchDispatchMode):
    """Operations that torch dispatches, and how many of them wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.waits = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations += 1
        self.waits += "_local_scalar_dense" in str(func)
        return func(*args, **(kwargs or {}))


def ours(make, parameters: list[Parameter], kind: str, alpha: float) -> Optimizer:
    penalty = L1(alpha) if kind == "L1" else Group(L1(alpha), by=rows)
    return ProxOptimizer(make(parameters), attach(penalty, parameters))


def theirs(make, parameters: list[Parameter], kind: str, alpha: float) -> Optimizer:
    group, prox = PENALTIES[kind]
    options = {"params": parameters, "group_type": group, "prox_type": prox, "reg_lambda": alpha}
    return PruneOptimizer(make([options]))


def given(shapes: list[Tensor]) -> list[Parameter]:
    parameters = [Parameter(w.clone()) for w in shapes]
    for p in parameters:
        p.grad = torch.randn_like(p) * 0.01
    return parameters


def speed(weights: list[Tensor], chosen: argparse.Namespace) -> list[dict[str, object]]:
    found = []
    for base, make in BASES.items():
        for kind in PENALTIES:
            steps = {
                "bare": make(given(weights)),
                "torchreg": ours(make, given(weights), kind, 1e-6),
                "torchao": theirs(make, given(weights), kind, 1e-6),
            }
            for opt in steps.values():
                opt.step()
            times = medians({name: opt.step for name, opt in steps.items()}, chosen.rounds, chosen.device)
            row: dict[str, object] = {"tensors": len(weights), "base": base, "penalty": kind}
            for name, opt in steps.items():
                with Counts() as seen:
                    opt.step()
                row |= {f"{name} ms": round(times[name], 3), f"{name} operations": seen.operations}
                row |= {f"{name} waits": seen.waits, f"{name} / bare": round(times[name] / times["bare"], 2)}
            found.append(row)
            over = [row[f"{name} / bare"] for name in ("torchreg", "torchao")]
            counted = [row[f"{name} {what}"] for what in ("operations", "waits") for name in ("torchreg", "torchao")]
            print(f"{len(weights):4d} tensors  {base:18s} {kind:5s} over bare {over}, operations and waits {counted}")
    return found


def correctness(steps: int) -> list[dict[str, object]]:
    problem = least_squares(0.4)
    solution = problem.elastic_net(L1_ALPHA, 0.0)

    def objective(w: Tensor) -> float:
        return problem.loss(w) + L1_ALPHA * float(w.abs().sum())

    recipes = {
        "SGD": lambda p: SGD(p, lr=0.15),
        "SGD with momentum": lambda p: SGD(p, lr=0.02, momentum=0.9),
        "AdamW": lambda p: AdamW(p, lr=0.05, weight_decay=0.0),
    }
    found = []
    for base, make in recipes.items():
        for how in ("plain", "closure"):
            for falling in (False, True):
                for name, wrap in (("torchreg", ours), ("torchao", theirs)):
                    w = Parameter(torch.zeros_like(solution)[:, None])
                    opt = wrap(make, [w], "L1", L1_ALPHA)
                    schedule = CosineAnnealingLR(opt if name == "torchreg" else opt.base_optimizer, steps)
                    for _ in range(steps):
                        _step(opt, w, problem, how)
                        if falling:
                            schedule.step()
                    x = w.detach()[:, 0]
                    row = {"base": base, "how": how, "lr": "falling" if falling else "constant", "by": name}
                    row |= {
                        "gap": objective(x) - objective(solution),
                        "wrong": int(((x == 0) != (solution == 0)).sum()),
                    }
                    found.append(row)
                    print(
                        f"{base:18s} {how:8s} {row['lr']:9s} {name:9s} gap {row['gap']:9.1e}, support differs in "
                        f"{row['wrong']} of {len(x)}"
                    )
    return found


def _step(opt: Optimizer, w: Parameter, problem, how: str) -> None:
    def gradient() -> float:
        w.grad = problem.gradient(w.detach()[:, 0])[:, None]
        return 0.0

    if how == "closure":
        opt.step(gradient)
    else:
        gradient()
        opt.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="small tensors and few steps; nothing is written")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(0)
    small = [torch.randn(64, 64, device=chosen.device) * 0.02 for _ in range(100)]
    rows_of = speed(small[:4] if chosen.quick else small, chosen)
    if not chosen.quick:
        rows_of += speed([w for w in tensors(chosen.device) if w.dim() == 2], chosen)
    found = correctness(60 if chosen.quick else 4000)
    if not chosen.quick:
        save("peers-torchao", {"speed": rows_of, "correctness": found}, chosen)


if __name__ == "__main__":
    main()
