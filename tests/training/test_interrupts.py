"""An interrupt at any line of a step, or of a load, leaves an optimizer that holds its parameters and goes on."""

from __future__ import annotations

import copy
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.nn import Parameter
from torch.optim import SGD, Adam

from torchreg import L1, ProxOptimizer, attach

MAKES = {
    "Adam": lambda params: Adam(params, lr=1e-2),
    "SGD with momentum": lambda params: SGD(params, lr=1e-2, momentum=0.9),
}


class At:
    """Runs a function, with KeyboardInterrupt before its n-th line, those of all that it calls counted."""

    def __init__(self, n: int) -> None:
        self.n, self.lines = n, 0

    def _trace(self, frame, event, arg):
        if event == "line":
            self.lines += 1
            if self.lines == self.n:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self._trace

    def __call__(self, run) -> bool:
        """Whether it was interrupted; in a thread, whose modes of torch an interrupt leaves as they were within."""
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(self._run, run).result()

    def _run(self, run) -> bool:
        sys.settrace(self._trace)
        try:
            run()
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(None)
        return False


def made(make, steps: int) -> tuple[list[Parameter], ProxOptimizer]:
    draw = torch.Generator().manual_seed(0)
    half = [Parameter(torch.randn(shape, generator=draw).bfloat16()) for shape in ((4, 3), (5,))]
    opt = ProxOptimizer(make(half), attach(L1(0.05), {"w": half[0]}), masters=True)
    for _ in range(steps):
        give(half)
        opt.step()
    return half, opt


def give(params: list[Parameter]) -> None:
    for p in params:
        p.grad = torch.ones_like(p)


def check(params: list[Parameter], opt: ProxOptimizer, n: int) -> None:
    held = opt.base.param_groups[0]["params"]
    assert len(held) == len(params), n
    assert all(a is b for a, b in zip(held, params, strict=True)), n
    assert {id(p) for p in opt.base.state} <= {id(p) for p in params}, n
    before = [p.detach().clone() for p in params]
    for _ in range(2):
        opt.zero_grad()
        give(params)
        opt.step()
    assert all(bool((p < q).any()) for p, q in zip(params, before, strict=True)), n  # the gradients are ones
    assert all(bool(p.isfinite().all()) for p in params), n


CASES = [("Adam", 0, False), ("Adam", 2, True), ("SGD with momentum", 0, True), ("SGD with momentum", 2, False)]


@pytest.mark.parametrize(("base", "steps", "closure"), CASES, ids=str)
def test_an_interrupt_at_any_line_of_a_step_leaves_the_models_own_parameters(base, steps, closure):
    start, n, interrupted = made(MAKES[base], steps), 0, True
    while interrupted:
        n += 1
        half, opt = copy.deepcopy(start)
        give(half)
        interrupted = At(n)(lambda h=half, o=opt: o.step((lambda: give(h)) if closure else None))
        check(half, opt, n)
    assert n > 100
