"""In-place proximal maps and values against one pass over the same memory."""

import torch
from harness import medians, options, report, tensors

from torchreg import L1, L1L2, L2, MCP, Group, columns, rows


def main() -> None:
    chosen = options(__doc__)
    every = tensors(chosen.device)
    matrices = [w for w in every if w.dim() == 2]
    learnable = [w.detach().clone().requires_grad_() for w in matrices]

    def prox(penalty):
        def run():
            for w in matrices:
                penalty.prox_([w], [1e-6])

        return run

    def value(penalty):
        return lambda: [penalty.value(w) for w in matrices]

    def gradient(loss):
        return lambda: torch.autograd.grad(sum(loss(w) for w in learnable), learnable)

    candidates = {
        "pass": lambda: torch._foreach_mul_(matrices, 0.9999999),
        "read": lambda: [w.sum() for w in matrices],
        "L1": prox(L1(1e-3)),
        "L1L2": prox(L1L2(1e-3)),
        "MCP": prox(MCP(1e-3)),
        "rows": prox(Group(L1(1e-3), by=rows)),
        "columns": prox(Group(L1(1e-3), by=columns)),
        "L1 value": value(L1(1e-3)),
        "L2 value": value(L2(1e-3)),
        "L1 gradient": gradient(L1(1e-3).value),
        "plain L1 gradient": gradient(lambda w: 1e-3 * w.abs().sum()),
        "L2 gradient": gradient(L2(1e-3).value),
        "plain L2 gradient": gradient(lambda w: 1e-3 * (w * w).sum()),
    }
    times = medians(candidates, chosen.rounds, chosen.device)
    bars = [
        ("L1 prox / one in-place pass", "L1", "pass", 1.15),
        ("L1L2 prox / one in-place pass", "L1L2", "pass", 1.5),
        ("MCP prox / one in-place pass", "MCP", "pass", None),
        ("row groups' prox / one in-place pass", "rows", "pass", 3.0),
        ("column groups' prox / one in-place pass", "columns", "pass", 5.0),
        ("L1 value / one read pass (w.sum())", "L1 value", "read", 1.6),
        ("L2 value / one read pass (w.sum())", "L2 value", "read", 1.6),
        ("L1 value with gradient / plain autograd", "L1 gradient", "plain L1 gradient", 1.0),
        ("L2 value with gradient / plain autograd", "L2 gradient", "plain L2 gradient", 1.0),
    ]
    report("prox", times, bars, chosen)


if __name__ == "__main__":
    main()
