"""What a proximal step costs on a GPU: bandwidth against a copy, time over the bare fused step, launches and waits.

    python benchmarks/optimizers_gpu.py                       # 10^7, 10^8 and 10^9 parameters: 70 GB
    python benchmarks/optimizers_gpu.py --device cpu --quick  # where there is no GPU; nothing is written

Parameters are matrices of 2048 x 2048 in float32, with gradients. Bandwidth: bytes that a step must read and write at
least, over its time, against ``b.copy_(a)`` of as many parameters. Bars are those for an H200.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from harness import medians, save, verdict
from torch.nn import Parameter
from torch.optim import SGD, AdamW, Optimizer
from torch.profiler import ProfilerActivity, profile

from torchreg import L1, Group, ProxOptimizer, rows

SIDE = 2048
ALPHA = 1e-7
BASES: dict[str, Callable[..., Optimizer]] = {
    "SGD": lambda p: SGD(p, lr=1e-5, fused=True),
    "AdamW": lambda p: AdamW(p, lr=1e-5, weight_decay=0.0, fused=True),
}
# label: (candidate, what it is divided by, bar, whether the bar is a share of the copy's bandwidth)
OVERHEADS = [
    ("SGD + L1", "SGD", None),
    ("SGD + rows", "SGD", None),
    ("AdamW + L1", "AdamW", 1.50),
    ("AdamW + L1, prox compiled", "AdamW", 1.45),
    ("AdamW + L1, base and prox compiled", "AdamW", 1.43),
    ("AdamW + rows", "AdamW", None),
    ("AdamW + torchao L1", "AdamW", None),
    ("SGD + torchao L1", "SGD", None),
]
BANDWIDTHS = [("prox of L1", 2, 0.85), ("prox of rows", 3, 0.60)]  # passes over the parameters that are needed


def given(count: int, side: int, device: str) -> list[Parameter]:
    parameters = [Parameter(torch.randn(side, side, device=device) * 0.02) for _ in range(max(1, count // side**2))]
    for p in parameters:
        p.grad = torch.randn_like(p) * 0.01
    return parameters


def candidates(parameters: list[Parameter], compiled: bool) -> dict[str, Callable[[], object]]:
    """Steps of bare and of wrapped optimizers on the same parameters."""
    found: dict[str, Callable[[], object]] = {}
    for name, make in BASES.items():
        base = make(parameters)
        found[name] = base.step
        found[f"{name} + L1"] = ProxOptimizer(base, L1(ALPHA)).step
        found[f"{name} + rows"] = ProxOptimizer(base, Group(L1(ALPHA), by=rows)).step
        found |= torchao(name, make, parameters)
    if compiled:
        opt = ProxOptimizer(BASES["AdamW"](parameters), L1(torch.tensor(ALPHA, device=parameters[0].device)))
        opt.prox = torch.compile(opt.prox, fullgraph=True)
        found["AdamW + L1, prox compiled"] = opt.step
        whole = AdamW(parameters, lr=torch.tensor(1e-5), weight_decay=0.0, capturable=parameters[0].is_cuda)
        both = ProxOptimizer(whole, L1(torch.tensor(ALPHA, device=parameters[0].device)))
        found["AdamW + L1, base and prox compiled"] = torch.compile(both.step)
    return found


def torchao(name: str, make: Callable[..., Optimizer], parameters: list[Parameter]) -> dict[str, Callable[[], object]]:
    """torchao's step, where it is installed; it keeps another copy of the parameters."""
    try:
        from torchao.prototype.pat.optim import PruneOptimizer
    except ImportError:
        return {}
    group = {"params": parameters, "group_type": "ElemGrouper", "prox_type": "ProxLasso", "reg_lambda": ALPHA}
    return {f"{name} + torchao L1": PruneOptimizer(make([group])).step}


def proxes(parameters: list[Parameter]) -> dict[str, Callable[[], object]]:
    """The proximal maps alone, with one step for all, and the copy that they are measured by."""
    there = [torch.empty_like(p) for p in parameters]
    steps = [1e-5] * len(parameters)
    return {
        "copy": lambda: torch._foreach_copy_(there, [p.detach() for p in parameters]),
        "prox of L1": lambda: L1(ALPHA).prox_(parameters, steps),
        "prox of rows": lambda: Group(L1(ALPHA), by=rows).prox_(parameters, steps),
    }


def launches(step: Callable[[], object]) -> int:
    """Kernels that one step launches."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        step()
        torch.cuda.synchronize()
    return sum(event.count for event in seen.key_averages() if event.key == "cudaLaunchKernel")


def waits(step: Callable[[], object]) -> str:
    """Whether a step makes the host wait for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "none"


def measured(count: int, chosen: argparse.Namespace) -> dict[str, object]:
    """One size."""
    side = 64 if chosen.quick else SIDE
    parameters = given(count, side, chosen.device)
    entries = sum(p.numel() for p in parameters)
    steps = candidates(parameters, compiled=not chosen.quick or chosen.compiled)
    for step in steps.values():
        for _ in range(3):
            step()
    times = medians(steps, chosen.rounds, chosen.device)
    print(f"\n{entries:.3g} parameters in {len(parameters)} tensors")
    found: dict[str, object] = {"entries": entries, "milliseconds": {k: round(t, 4) for k, t in times.items()}}
    found["overheads"] = [_overhead(row, times) for row in OVERHEADS if row[0] in times]
    times = medians(proxes(parameters), chosen.rounds, chosen.device)
    found["bandwidths"] = [_bandwidth(row, times, entries) for row in BANDWIDTHS]
    if chosen.device.startswith("cuda"):
        found["launches"] = {name: launches(step) for name, step in steps.items()}
        found["waits"] = {name: waits(step) for name, step in steps.items()}
        print(f"launches {found['launches']}\nwaits {found['waits']}")
    return found


def _overhead(row: tuple[str, str, float | None], times: dict[str, float]) -> dict[str, object]:
    label, base, bar = row
    ratio = times[label] / times[base]
    print(f"{label + ' / bare fused ' + base:60s} {ratio:6.3f}   bar {bar or '-':>5}   {verdict(ratio, bar)}")
    return {"what": label, "over": base, "ratio": round(ratio, 4), "bar": bar, "verdict": verdict(ratio, bar)}


def _bandwidth(row: tuple[str, int, float], times: dict[str, float], entries: int) -> dict[str, object]:
    label, passes, bar = row
    share = (passes / times[label]) / (2 / times["copy"])
    told = "met" if share >= bar else f"missed by {1 - share / bar:.0%}"
    rate = passes * 4 * entries / times[label] / 1e6
    print(f"{label:60s} {share:6.1%} of a copy's bandwidth, {rate:.0f} GB/s   bar {bar:.0%}   {told}")
    return {"what": label, "share of copy": round(share, 4), "GB/s": round(rate, 1), "bar": bar, "verdict": told}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=float, nargs="*", default=[1e7, 1e8, 1e9])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--quick", action="store_true", help="one small size, without compiled steps; nothing is written"
    )
    parser.add_argument("--compiled", action="store_true", help="compiled steps with --quick too")
    chosen = parser.parse_args()
    torch.manual_seed(0)
    found = [measured(int(size), chosen) for size in ([1e5] if chosen.quick else chosen.sizes)]
    if not chosen.quick:
        save("optimizers-gpu", {"sizes": found}, chosen)


if __name__ == "__main__":
    main()
