"""torch.compile(opt.step) and CUDA graphs: the base's graph and one more, never compiled twice, equal to eager."""

from __future__ import annotations

import shutil

import pytest
import torch
from optimizer_catalog import give_gradients, matrix, with_layout
from test_grad_scaler import Waits
from torch.optim import SGD, AdamW, Optimizer, RMSprop
from torch.optim.lr_scheduler import CosineAnnealingLR

from torchreg import L1, L1L2, MCP, Group, LInf, PenaltyScheduler, ProxOptimizer, attach, columns, rows, schedules

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.jit:DeprecationWarning",  # torch.compile's own
    "ignore:.*lr_scheduler.step.. before .optimizer.step",  # torch does not see a compiled step
    "ignore:.*requires_grad=True to a scalar:UserWarning",
)
BASES = {
    "AdamW": lambda p, lr: AdamW(p, lr=lr),
    "SGD": lambda p, lr: SGD(p, lr=lr, momentum=0.9),
    "RMSprop": lambda p, lr: RMSprop(p, lr=lr),
}
every_base = pytest.mark.parametrize("make", BASES.values(), ids=BASES)


def penalties(device: str = "cpu") -> dict[str, object]:
    alpha = torch.tensor(0.02, device=device)
    return {
        "L1": L1(alpha),
        "L1L2": L1L2(alpha, 0.5),
        "MCP": MCP(alpha, 3.0),
        "rows": Group(L1(alpha), by=rows),
        "columns": Group(L1(alpha), by=columns),
        "LInf": LInf(alpha, by=rows),
    }


class Counting:
    """A backend that runs graphs as they are and counts how many are compiled and run."""

    def __init__(self) -> None:
        self.compiled = self.run = 0

    def __call__(self, graph, inputs):
        self.compiled += 1

        def run(*args):
            self.run += 1
            return graph(*args)

        return run


def three(device: str = "cpu", dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(matrix(k, (4, 3), dtype).detach().to(device)) for k in range(3)]


def counts(opt: Optimizer, params, turn, steps: int = 6) -> tuple[int, int]:
    """Graphs run in the last step, and compiled after the second, while learning rate and strength move."""
    torch._dynamo.reset()
    seen = Counting()
    step = torch.compile(opt.step, backend=seen)
    for k in range(steps):
        if k == 2:
            seen.compiled = 0
        give_gradients(params, k)
        seen.run = 0
        step()
        turn(k)
    return seen.run, seen.compiled


@pytest.mark.parametrize("kind", penalties())
@every_base
def test_one_graph_more_than_the_bases_own_and_none_compiled_again(make, kind):
    bare, params = three(), three()
    base = make(bare, torch.tensor(0.1))
    opt = ProxOptimizer(make(params, torch.tensor(0.1)), term := attach(penalties()[kind], params))
    ramp = PenaltyScheduler(term, schedules.linear(0.0, 0.1, steps=10))

    def turn(k: int) -> None:
        ramp.step()
        for o in (base, opt):
            o.param_groups[0]["lr"].fill_(0.1 / (k + 2))

    alone, _ = counts(base, bare, turn)
    both, again = counts(opt, params, turn)
    assert (both, again) == (alone + 1, 0)


def trained(make, kind: str, compiled: bool) -> list[torch.Tensor]:
    torch._dynamo.reset()
    params = three()
    term = attach(penalties()[kind], params)
    opt = ProxOptimizer(make(params, torch.tensor(0.1)), term)
    ramp = PenaltyScheduler(term, schedules.linear(0.0, 0.3, steps=10))
    decay = CosineAnnealingLR(opt, 10)
    step = torch.compile(opt.step, backend="eager") if compiled else opt.step
    for k in range(8):
        give_gradients(params, k)
        step()
        ramp.step()
        decay.step()
    assert ramp.count == 8
    return [p.detach() for p in params]


@pytest.mark.parametrize("kind", penalties())
@every_base
def test_a_compiled_step_gives_what_the_eager_one_gives(make, kind):
    pairs = zip(trained(make, kind, compiled=True), trained(make, kind, compiled=False), strict=True)
    for compiled, eager in pairs:
        # a compiled Adam counts in float32, where 1 - 0.999 keeps four digits
        torch.testing.assert_close(compiled, eager, rtol=1e-3, atol=1e-4)
        assert torch.equal(compiled == 0, eager == 0)


def test_the_prox_alone_is_one_graph():
    params = three()
    opt = ProxOptimizer(AdamW(params, lr=0.1), L1(torch.tensor(0.1)))
    give_gradients(params, 0)
    opt.step()
    torch._dynamo.reset()
    seen = Counting()
    torch.compile(opt.prox, backend=seen, fullgraph=True)()
    assert (seen.compiled, seen.run) == (1, 1)


@every_base
def test_with_masters_nothing_is_compiled_again_either(make):
    params = three(dtype=torch.bfloat16)
    opt = ProxOptimizer(make(params, torch.tensor(0.1)), L1(torch.tensor(0.1)), masters=True)
    _, again = counts(opt, params, lambda k: opt.param_groups[0]["lr"].fill_(0.1 / (k + 2)), steps=5)
    assert again == 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="the default compiler needs a C++ compiler")
def test_the_default_compiler_gives_what_the_eager_step_gives():
    pair = three(), three()
    opts = [ProxOptimizer(AdamW(params, lr=torch.tensor(0.1)), L1(torch.tensor(0.1))) for params in pair]
    torch._dynamo.reset()
    steps = opts[0].step, torch.compile(opts[1].step)
    for k in range(4):
        for params, step in zip(pair, steps, strict=True):
            give_gradients(params, k)
            step()
    for eager, compiled in zip(*pair, strict=True):
        # a compiled Adam counts in float32, where 1 - 0.999 keeps four digits
        torch.testing.assert_close(compiled, eager, rtol=1e-3, atol=1e-4)
        assert torch.equal(compiled == 0, eager == 0)


@every_base
def test_a_capturable_step_reads_nothing_more_on_the_host_than_the_base(make, monkeypatch):
    """What a CUDA graph needs; torch runs a capturable optimizer on the CPU only while compiling."""

    def reads(wrap) -> int:
        params = three()
        opt = wrap(with_layout(make(params, torch.tensor(0.1)), "capturable", monkeypatch))
        give_gradients(params, 0)
        opt.step()
        give_gradients(params, 1)
        with Waits() as seen:
            opt.step()
        return seen.count

    assert reads(lambda base: ProxOptimizer(base, L1(torch.tensor(0.1)))) == reads(lambda base: base)


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("masters", [False, True], ids=["float32", "bfloat16 with masters"])
@pytest.mark.parametrize("kind", penalties())
@pytest.mark.parametrize("fused", [False, True], ids=["foreach", "fused"])
def test_a_captured_step_replayed_is_the_eager_one(kind, fused, masters):
    def make() -> tuple:
        params = three("cuda", torch.bfloat16 if masters else torch.float32)
        for p in params:
            p.grad = torch.zeros_like(p)
        term = attach(penalties("cuda")[kind], params)
        base = AdamW(params, lr=torch.tensor(0.05, device="cuda"), capturable=True, fused=fused)
        opt = ProxOptimizer(base, term, masters=masters)
        return params, opt, PenaltyScheduler(term, schedules.linear(0.0, 0.3, steps=10))

    def give(params, k: int) -> None:
        for j, p in enumerate(params):
            p.grad.copy_(matrix(100 * k + j, (4, 3)).to(p))

    def step(params, opt, ramp, how, k: int) -> None:
        give(params, k)
        how()
        ramp.step()
        opt.param_groups[0]["lr"].fill_(0.05 / (k + 1))

    captured, eager = make(), make()
    for k in range(3):  # torch asks for warm steps on another stream
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step(*captured, captured[1].step, k)
        torch.cuda.current_stream().wait_stream(stream)
        step(*eager, eager[1].step, k)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured[1].step()
    for k in range(3, 8):
        step(*captured, graph.replay, k)
        step(*eager, eager[1].step, k)
    assert captured[2].count == eager[2].count == 8
    for a, b in zip(captured[0], eager[0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)  # sums of a group may be in another order
        assert torch.equal(a == 0, b == 0)
