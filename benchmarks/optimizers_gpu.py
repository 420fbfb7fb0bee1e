"""What a proximal step costs on a GPU: bandwidth, time over the bare fused step, waits, launches, CUDA graphs.

    python benchmarks/optimizers_gpu.py                            # part of gpu.sh
    python benchmarks/optimizers_gpu.py --tiny --devices cpu fake  # a rehearsal where there is no GPU

Parameters are float32 matrices of 2048 x 2048, about 10^8 entries, with gradients that are not zero. Bandwidth: bytes
that a map must read and write at least, over its time, against ``b.copy_(a)`` of as many entries. Ratios are medians
over rounds in which the candidates take turns. The most important comes first; what the time does not allow says so.
"""

from __future__ import annotations

import inspect
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from gpu_record import Bar, NotRunError, Record, Row, arguments, row, run_part
from gpu_steps import Step, captured_against_eager, launches, waits
from harness import turns
from torch.nn import Parameter
from torch.optim import SGD, AdamW, Optimizer

from torchreg import L1, MCP, Group, ProxOptimizer, rows
from torchreg.penalties import Penalty

ALPHA = 1e-7
PENALTIES: dict[str, Callable[[object], Penalty]] = {
    "L1": L1,
    "rows": lambda alpha: Group(L1(alpha), by=rows),
    "MCP": lambda alpha: MCP(alpha, 3.0),
}
BARS: dict[str, Bar] = {"L1": ("<=", 1.10), "rows": ("<=", 2.0)}  # over bare fused AdamW
HAS_FUSED = "fused" in inspect.signature(ProxOptimizer).parameters


@dataclass(frozen=True)
class Size:
    """Matrices of so many rows and columns, and how they are timed."""

    count: int
    side: int
    rounds: int
    calls: int

    def __str__(self) -> str:
        return f"{self.count * self.side**2:.1g} entries in {self.count} tensors".replace("e+0", "e")


def sizes(tiny: bool) -> tuple[Size, Size, Size]:
    """Large, as the bars ask for; small, where launches count; and one for checks."""
    if tiny:
        return Size(2, 32, 2, 1), Size(3, 8, 2, 1), Size(2, 16, 2, 1)
    return Size(24, 2048, 15, 3), Size(100, 64, 15, 5), Size(4, 1024, 5, 1)


def given(size: Size, device: torch.device) -> list[Parameter]:
    made = [Parameter(torch.randn(size.side, size.side, device=device) * 0.02) for _ in range(size.count)]
    for p in made:
        p.grad = torch.randn_like(p) * 0.01 + 1e-4
    return made


def adamw(parameters: list[Parameter], **options: object) -> Optimizer:
    return AdamW(parameters, **{"lr": 1e-5, "weight_decay": 0.0, "fused": True} | options)


def ratios(candidates: dict[str, Step], size: Size, device: torch.device) -> tuple[dict[str, float], float]:
    """Of each candidate to the first, the median over rounds; and the first's milliseconds."""
    times = turns(candidates, size.rounds, device.type, size.calls)
    first = next(iter(times.values()))
    found = {name: statistics.median(t / f for t, f in zip(taken, first, strict=True)) for name, taken in times.items()}
    return found, statistics.median(first)


def bandwidth(size: Size, device: torch.device) -> list[Row]:
    """The proximal maps alone, on one tensor and on many, by one number as step."""
    entries = size.count * size.side**2
    found = []
    for count in (1, size.count):
        tensors = [torch.randn(entries // count, device=device) for _ in range(count)]
        there = [torch.empty_like(w) for w in tensors]
        steps = [1e-5] * count
        maps = {
            "copy": lambda there=there, tensors=tensors: [b.copy_(a) for a, b in zip(tensors, there, strict=True)],
            "L1": lambda tensors=tensors, steps=steps: L1(ALPHA).prox_(tensors, steps),
        }
        taken, copy = ratios(maps, size, device)
        rate = 8 * entries / copy / 1e6
        note = f"copy: {rate:.0f} GB/s, read and written"
        what = f"L1 prox in place, {entries:.1g} entries in {count} tensor{'s' * (count > 1)}".replace("e+0", "e")
        bar = (">=", 0.85) if entries >= 1e7 else None
        found.append(row(what, 1 / taken["L1"], "of copy bandwidth", bar, note=note))
    return found


def group_bandwidth(size: Size, device: torch.device) -> list[Row]:
    """Rows need two readings and one writing."""
    tensors = [torch.randn(size.side, size.side, device=device) for _ in range(size.count)]
    there, steps = [torch.empty_like(w) for w in tensors], [1e-5] * size.count
    maps = {
        "copy": lambda: [b.copy_(a) for a, b in zip(tensors, there, strict=True)],
        "rows": lambda: Group(L1(ALPHA), by=rows).prox_(tensors, steps),
    }
    taken, _ = ratios(maps, size, device)
    return [row(f"rows prox in place, {size}", 1.5 / taken["rows"], "of copy bandwidth")]


def over_bare(kind: str, way: str, size: Size, device: torch.device, base: Callable[..., Optimizer]) -> list[Row]:
    """A whole step with a penalty over the bare base's step, on the same parameters and the same state."""
    parameters = given(size, device)
    bare = base(parameters)
    began = time.monotonic()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        step = step_of(kind, way, bare, parameters)
        for _ in range(3):
            step()
        note = f"first steps {time.monotonic() - began:.1f} s"
    fallen = [str(one.message).splitlines()[0] for one in told if "fused=True" in str(one.message)]
    found, milliseconds = ratios({"bare": bare.step, "wrapped": step}, size, device)
    name = f"{type(bare).__name__} + {kind}, {way}, over bare fused {type(bare).__name__}, {size}"
    bar = BARS.get(kind) if isinstance(bare, AdamW) and size.side >= 2048 else None
    note += f"; bare step {milliseconds:.3f} ms" + "".join(f"; falls back: {why}" for why in fallen)
    return [row(name, found["wrapped"], "x", bar, note=note)]


def step_of(kind: str, way: str, base: Optimizer, parameters: list[Parameter]) -> Step:
    if way == "fused=True":
        if not HAS_FUSED:
            raise NotRunError("ProxOptimizer has no argument fused")
        return ProxOptimizer(base, PENALTIES[kind](ALPHA), fused=True).step
    if way == "torchao":
        return torchao(base, parameters)
    plain = {"fused": False} if HAS_FUSED else {}
    if way == "unfused":
        return ProxOptimizer(base, PENALTIES[kind](ALPHA), **plain).step
    strength = torch.full((), ALPHA, device=parameters[0].device)
    opt = ProxOptimizer(base, PENALTIES[kind](strength), **plain)
    opt.prox = torch.compile(opt.prox)
    return opt.step


def torchao(base: Optimizer, parameters: list[Parameter]) -> Step:
    try:
        from torchao.prototype.pat.optim import PruneOptimizer
    except ImportError as error:
        raise NotRunError(f"{error.name} is not installed") from error
    group = {"params": parameters, "group_type": "ElemGrouper", "prox_type": "ProxLasso", "reg_lambda": ALPHA}
    return PruneOptimizer(type(base)([group], lr=1e-5, fused=True)).step


def counts(size: Size, device: torch.device, fused: bool) -> list[Row]:
    """Waits and launches of a step, beyond those of the bare one, with the number and the tensor as strength."""
    found = []
    options = {"fused": fused} if HAS_FUSED else {}
    if fused and not HAS_FUSED:
        raise NotRunError("ProxOptimizer has no argument fused")
    way = f"fused={fused}" if HAS_FUSED else "unfused"
    for kind in ("L1", "rows"):
        for form, alpha in (("number", ALPHA), ("tensor", torch.full((), ALPHA, device=device))):
            opt = ProxOptimizer(adamw(given(size, device)), PENALTIES[kind](alpha), **options)
            for _ in range(3):  # a fused one is compiled in the second
                opt.step()
            added = launches(opt.step, device) - launches(opt.base.step, device)
            what = f"AdamW + {kind}, {way}, alpha a {form}, {size}"
            found.append(row(f"waits in a step: {what}", waits(opt.step, device), "", ("<=", 0)))
            found.append(row(f"launches added to a step: {what}", added))
    return found


def graph(kind: str, size: Size, device: torch.device, fused: bool) -> list[Row]:
    if fused and not HAS_FUSED:
        raise NotRunError("ProxOptimizer has no argument fused")
    options = {"fused": fused} if HAS_FUSED else {}
    differs, zeros, same = captured_against_eager(PENALTIES[kind], device, size.side, 40, **options)
    name = f"AdamW + {kind}, {'fused=True' if fused else 'unfused'}: a captured step replayed, alpha moving, from eager"
    note = f"relative; {zeros:.0%} zeros, {'the same' if same else 'NOT the same'}"
    found = row(name, differs, "", ("<=", 1e-5), note=note)
    return [found if same and 0 < zeros < 1 else found | {"verdict": f"missed: {note}"}]


def measure(record: Record, device: torch.device, tiny: bool) -> None:
    large, small, check = sizes(tiny)
    told = {"device": device.type, "at_most": 0.5 * record.seconds}
    compiles = 1.0 if tiny else 25.0
    compiled = ["compiled"] if device.type == "cuda" else []  # elsewhere it is the tests' to compile
    fused = ["fused=True"] if device.type == "cuda" or not HAS_FUSED else []
    record.measure("L1 prox against a copy", lambda: bandwidth(large, device), **told)
    for way in ("unfused", *fused, *compiled):
        for kind in ("L1", "rows"):
            what, needs = f"AdamW + {kind}, {way}", compiles if way != "unfused" else 0.0
            record.measure(what, lambda k=kind, w=way: over_bare(k, w, large, device, adamw), needs=needs, **told)
    for is_fused in (False, True):
        record.measure(f"waits, fused={is_fused}", lambda f=is_fused: counts(check, device, f), needs=1.0, **told)
        for kind in ("L1", "rows"):
            what = f"CUDA graph of AdamW + {kind}, fused={is_fused}"
            record.measure(what, lambda k=kind, f=is_fused: graph(k, check, device, f), needs=1.0, **told)
    for way in ("unfused", *fused):
        record.measure(f"small, {way}", lambda w=way: over_bare("L1", w, small, device, adamw), needs=1.0, **told)
    record.measure("rows prox against a copy", lambda: group_bandwidth(large, device), needs=1.0, **told)
    sgd = lambda p: SGD(p, lr=1e-5, momentum=0.9, fused=True)  # noqa: E731
    for way in ("unfused", *fused):
        record.measure(f"SGD, {way}", lambda w=way: over_bare("L1", w, large, device, sgd), needs=compiles, **told)
    for way in ("unfused", *fused, "torchao"):
        kind = "L1" if way == "torchao" else "MCP"
        record.measure(f"{kind}, {way}", lambda w=way, k=kind: over_bare(k, w, large, device, adamw), needs=5, **told)


if __name__ == "__main__":
    run_part(arguments(__doc__), measure)
