"""A penalty of your own is two methods; weights, groups, attach and every optimizer work at once.

The log-sum penalty, ``alpha * log(1 + |w| / eps)`` (Candes, Wakin and Boyd, J. Fourier Anal. Appl.
14, 2008), stepped as a proximal map here, so that it gives exact zeros. torchreg has it as `torchreg.LogSum`; written
out it shows all that a penalty needs.
"""

from dataclasses import dataclass

import torch
from torch import nn

from torchreg import Group, ProxOptimizer, Separable, Weighted, attach, rows, sparsity


@dataclass(frozen=True, eq=False)
class MyLogSum(Separable):
    alpha: float
    eps: float = 0.1

    def phi(self, x):
        return self.alpha * torch.log1p(x.abs() / self.eps)

    def shrink(self, x, step):
        size = x.abs()
        inside = (size + self.eps) ** 2 - 4 * step * self.alpha
        root = ((size - self.eps + inside.clamp(min=0).sqrt()) / 2).clamp(min=0)
        gain = step * self.phi(root) + (root - size) ** 2 / 2 < size**2 / 2  # better than zero?
        return torch.where((inside > 0) & gain, root.copysign(x), torch.zeros_like(x))


def main(steps: int = 1000) -> int:
    torch.manual_seed(0)
    x = torch.randn(300, 40)
    truth = torch.zeros(40, 1)
    truth[:5] = torch.tensor([[3.0], [-2.0], [1.5], [-1.0], [2.5]])
    y = x @ truth + 0.1 * torch.randn(300, 1)

    model = nn.Linear(40, 1, bias=False)
    term = attach(MyLogSum(0.02), model)
    optimizer = ProxOptimizer(torch.optim.Adam(model.parameters(), lr=0.02), term)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        (nn.functional.mse_loss(model(x), y) / 2).backward()
        optimizer.step()
        schedule.step()
    print(sparsity(term))
    print("largest error of a true weight:", (model.weight.T - truth).abs().max().item())

    weighted = Weighted(MyLogSum(0.1), torch.tensor([0.0, 1.0]))  # the first entry unpenalised
    print(weighted.prox(torch.tensor([[0.2, 0.2]]), 1.0))
    grouped = Group(MyLogSum(0.1), by=rows)  # whole rows to zero
    print(grouped.prox(torch.tensor([[2.0, 1.0], [0.1, 0.1]]), 1.0))
    return int((model.weight != 0).sum())


if __name__ == "__main__":
    main()
