"""What is asked of a step on a device: waits of the host, launches, and a CUDA graph of it against the eager step."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from gpu_record import NotRunError
from torch.nn import Parameter
from torch.optim import AdamW
from torch.profiler import ProfilerActivity, profile

from torchreg import PenaltyScheduler, ProxOptimizer, attach, schedules
from torchreg.penalties import Penalty

Step = Callable[[], object]


def waits(step: Step, device: torch.device) -> int:
    """How often a step makes the host wait for the device."""
    if device.type == "cpu":
        raise NotRunError("on the CPU nothing waits")
    if device.type == "cuda":
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                step()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing CUDA operation" in str(one.message) for one in told)
    from fake_device import watch

    with watch() as seen:
        step()
    return seen.waits


def launches(step: Step, device: torch.device) -> int:
    """Kernels that one step launches."""
    if device.type == "cpu":
        raise NotRunError("the CPU launches nothing")
    if device.type == "cuda":
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            step()
            torch.cuda.synchronize()
        names = ("cudaLaunchKernel", "cuLaunchKernel")  # torch's own and Triton's, with and without attributes
        return sum(event.count for event in seen.key_averages() if event.key.startswith(names))
    from fake_device import watch

    with watch() as watched:
        step()
    return watched.launches


def captured_against_eager(
    penalty: Callable[[torch.Tensor], Penalty], device: torch.device, side: int, steps: int, **options: object
) -> tuple[float, float, bool]:
    """The largest difference, the share of zeros, and whether they are the same, of a captured and an eager run.

    Gradients, learning rate and strength move between replays, the latter two as 0-d tensors of the device.
    """
    if device.type != "cuda":
        raise NotRunError("graphs are CUDA's alone")
    captured, eager = (_Run(penalty, device, side, steps, options) for _ in range(2))
    for k in range(3):  # torch asks for warm steps on another stream
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            captured.step(captured.opt.step, k)
        torch.cuda.current_stream().wait_stream(stream)
        eager.step(eager.opt.step, k)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.opt.step()
    for k in range(3, steps):
        captured.step(graph.replay, k)
        eager.step(eager.opt.step, k)
    pairs = list(zip(captured.params, eager.params, strict=True))
    differs = max(float((a - b).detach().abs().max() / b.detach().abs().max()) for a, b in pairs)
    zeros = sum(int((b == 0).sum()) for _, b in pairs) / sum(b.numel() for _, b in pairs)
    return differs, zeros, all(torch.equal(a == 0, b == 0) for a, b in pairs)


class _Run:
    """A capturable AdamW with a penalty whose strength rises."""

    def __init__(self, penalty, device, side: int, steps: int, options: dict[str, object]) -> None:
        draw = torch.Generator(device).manual_seed(0)
        self.params = [Parameter(torch.randn(side, side, device=device, generator=draw) * 0.1) for _ in range(4)]
        self.grads = torch.Generator(device).manual_seed(1)
        for p in self.params:
            p.grad = torch.zeros_like(p)
        term = attach(penalty(torch.zeros((), device=device)), self.params)
        lr = torch.tensor(0.01, device=device)
        self.opt = ProxOptimizer(AdamW(self.params, lr=lr, capturable=True, fused=True), term, **options)
        self.ramp = PenaltyScheduler(term, schedules.linear(0.0, 0.05, steps=steps))
        self.steps = steps

    def step(self, how: Step, k: int) -> None:
        for p in self.params:
            p.grad.normal_(generator=self.grads).mul_(0.1).add_(p.detach())
        how()
        self.ramp.step()
        self.opt.param_groups[0]["lr"].fill_(0.01 * (1 - k / self.steps))
