"""A step of ProxOptimizer against the bare fused step of its base."""

import torch
from harness import medians, options, report, tensors

from torchreg import L1, Group, ProxOptimizer, attach, rows

BASES = {
    "SGD": lambda ps: torch.optim.SGD(ps, lr=1e-5, fused=True),
    "SGD with momentum": lambda ps: torch.optim.SGD(ps, lr=1e-5, momentum=0.9, fused=True),
    "AdamW": lambda ps: torch.optim.AdamW(ps, lr=1e-5, fused=True),
}
BARS = {"SGD": 1.7, "SGD with momentum": 1.5, "AdamW": 2.0}


def main() -> None:
    chosen = options(__doc__)
    parameters = [torch.nn.Parameter(w) for w in tensors(chosen.device)]
    for p in parameters:
        p.grad = torch.randn_like(p) * 0.01
    matrices = {str(k): p for k, p in enumerate(parameters) if p.dim() == 2}

    candidates, bars = {}, []
    for name, make in BASES.items():
        base = make(parameters)
        candidates[name] = base.step
        candidates[f"{name} + L1"] = ProxOptimizer(base, attach(L1(1e-6), matrices)).step
        bars.append((f"{name} + L1 / bare fused {name}", f"{name} + L1", name, BARS[name]))
    adamw = BASES["AdamW"](parameters)
    compiled = ProxOptimizer(adamw, attach(L1(1e-6), matrices))
    compiled.prox = torch.compile(compiled.prox, fullgraph=True)
    candidates["AdamW + L1, prox compiled"] = compiled.step
    bars.append(("AdamW + L1, prox compiled / bare fused AdamW", "AdamW + L1, prox compiled", "AdamW", 1.6))
    candidates["AdamW + rows"] = ProxOptimizer(adamw, attach(Group(L1(1e-6), by=rows), matrices)).step
    bars.append(("AdamW + row groups (metric) / bare fused AdamW", "AdamW + rows", "AdamW", None))

    times = medians(candidates, chosen.rounds, chosen.device)
    report("optimizers", times, bars, chosen)


if __name__ == "__main__":
    main()
