"""ProxOptimizer(fused=True): the base's step and then the proximal one, in one compiled pass."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import subprocess
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from catalog import CATALOG, OwnLogSum
from fake_device import watch
from optimizer_catalog import RECIPES, Lion, Recipe, every_recipe
from torch import Tensor
from torch.nn import Parameter
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.flop_counter import FlopCounterMode

from torchreg import (
    L0,
    L1,
    L1L2,
    L2,
    MCP,
    SCAD,
    Group,
    NonNegative,
    Penalty,
    PenaltyScheduler,
    ProxOptimizer,
    TargetSparsity,
    Weighted,
    at_most,
    attach,
    attach_to,
    blocks,
    clip_grad_norm_,
    columns,
    freeze_zeros,
    rows,
    schedules,
)
from torchreg.functional.groups import rows as by_rows
from torchreg.penalties.diagonal_metric import norm_prox
from torchreg.training.fused import candidates, compiled_step, fused_halves, row_inputs

SHAPES = ((33, 7), (5,), (2, 3, 4))
ROWS = ((33, 7), (5, 6), (6, 3, 4))
ENTRYWISE = [case for case in CATALOG if case.entry and not case.id.startswith(("own", "Weighted own"))]
BY_ID = {recipe.id: recipe for recipe in RECIPES}


@pytest.fixture(autouse=True)
def small_ones_too(monkeypatch):
    """Parameters of two entries are fused, though two steps are faster; `TestSizes` has the true rule."""
    monkeypatch.setattr(candidates, "_MANY", 2)
    monkeypatch.setattr(candidates, "_MORE", 1)


@pytest.fixture
def no_compiler(monkeypatch):
    """The passes in torch's own operators: the same formulas, without the seconds that a compiler takes."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    monkeypatch.setattr(compiled_step, "_is_compiled", lambda: True)
    monkeypatch.setattr(compiled_step, "_STEPS", {})
    monkeypatch.setattr(compiled_step, "_TRIAL", 4096)


def weights(dtype: torch.dtype = torch.float64, shapes=SHAPES) -> list[Parameter]:
    draw = torch.Generator().manual_seed(1)
    return [Parameter((0.1 * torch.randn(shape, generator=draw)).to(dtype)) for shape in shapes]


def give(params: list[Parameter], step: int) -> None:
    """Gradients of many sizes, a third of them 0, and none ever for the first rows."""
    for k, p in enumerate(params):
        draw = torch.Generator().manual_seed(1000 * step + k)
        grad = 0.1 * torch.randn(p.shape, generator=draw) * (torch.rand(p.shape, generator=draw) > 0.3)
        if p.dim() > 1:
            grad[:1] = 0.0
        p.grad = grad.to(p.device, p.dtype)


def wrapped(make, penalty, params: list[Parameter], fused: bool | None, **options) -> ProxOptimizer:
    terms = [attach(penalty(p), {f"w{k}": p}) for k, p in enumerate(params)]
    return ProxOptimizer(make(params), *terms, fused=fused, **options)


def trained(make, penalty, fused: bool | None, steps=40, dtype=torch.float64, act=None, shapes=SHAPES, **options):
    params = weights(dtype, shapes)
    opt = wrapped(make, penalty, params, fused, **options)
    for k in range(steps):
        give(params, k)
        if act is not None:
            act(opt, k)
        opt.step()
    return params, opt


def assert_same(a: list[Tensor], b: list[Tensor], rtol: float = 1e-10) -> None:
    """Equal but for roundings in float64, and zero at the same places."""
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x == 0, y == 0)
        torch.testing.assert_close(x, y, rtol=rtol, atol=1e-14)


def passes() -> int:
    """How many kinds of passes were made, compiled or not."""
    return sum(step is not None for step in compiled_step._STEPS.values())


class TestLaw:
    @every_recipe
    @pytest.mark.parametrize("penalty", [lambda p: L1(0.02), lambda p: MCP(0.05, 40.0)], ids=["L1", "MCP"])
    def test_every_optimizer(self, recipe: Recipe, penalty, no_compiler):
        fused, _ = trained(recipe.make, penalty, True)
        plain, _ = trained(recipe.make, penalty, False)
        assert passes() == 1
        assert any((x == 0).any() for x in plain)
        assert_same(fused, plain)

    @pytest.mark.parametrize("case", ENTRYWISE, ids=lambda case: case.id)
    @pytest.mark.parametrize("base", ["AdamW", "SGD momentum", "Adadelta"])
    def test_every_penalty_of_entries(self, case, base, no_compiler):
        def run(fused):
            penalty = case.make()
            penalty = penalty if case.constraint else penalty.with_alpha(0.02) if not penalty.several else penalty
            (p,) = params = weights(shapes=[case.shape])
            opt = ProxOptimizer(BY_ID[base].make(params), attach(penalty, {"w": p}), fused=fused)
            for k in range(40):
                give(params, k)
                opt.step()
            return params

        assert_same(run(True), run(False))
        assert passes() == 1

    @pytest.mark.parametrize("bound", [at_most(0.05), "decoupled", at_most(0.001, "auto")], ids=str)
    def test_other_metrics(self, bound, no_compiler):
        fused, _ = trained(BY_ID["AdamW"].make, lambda p: L1(0.5), True, metric=bound)
        assert passes() == 1
        assert_same(fused, trained(BY_ID["AdamW"].make, lambda p: L1(0.5), False, metric=bound)[0])

    @pytest.mark.parametrize("metric", [at_most(0.05), "decoupled"], ids=str)
    def test_other_metrics_of_a_common_step(self, metric, no_compiler):
        fused, _ = trained(BY_ID["SGD momentum"].make, lambda p: L1(0.5), True, metric=metric)
        assert passes() == 1
        assert_same(fused, trained(BY_ID["SGD momentum"].make, lambda p: L1(0.5), False, metric=metric)[0])

    def test_decoupled_decay_and_fused_bases(self, no_compiler):
        def make(**options):
            return lambda p: AdamW(p, lr=0.01, weight_decay=0.3, **options)

        plain, _ = trained(make(), lambda p: L1(0.02), False)
        assert_same(trained(make(fused=True), lambda p: L1(0.02), True)[0], plain)
        assert_same(trained(make(foreach=True), lambda p: L1(0.02), True)[0], plain)
        assert passes() == 1

    def test_gradients_that_are_not_finite(self, no_compiler):
        def break_them(opt, k):
            grad = opt.base.param_groups[0]["params"][0].grad
            grad[2, 0], grad[2, 1] = (torch.inf, torch.nan) if k == 5 else (grad[2, 0], grad[2, 1])

        for name in ("AdamW", "SGD momentum"):
            (a, *_), _ = trained(BY_ID[name].make, lambda p: L1(0.02), True, act=break_them)
            (b, *_), _ = trained(BY_ID[name].make, lambda p: L1(0.02), False, act=break_them)
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14, equal_nan=True)


def _falling(p: Tensor) -> Tensor:
    """Weights of rows: none, several, and one that forces its row to zero."""
    weights = torch.linspace(0.0, 3.0, p.shape[0], dtype=torch.float64)
    weights[1] = torch.inf
    return weights


OF_ROWS = {
    "rows": lambda p: Group(L1(0.02), by=rows),
    "rows, weights 1": lambda p: Group(L1(0.05), by=rows, weights=1.0),
    "rows, a weight each": lambda p: Group(L1(0.02), by=rows, weights=_falling(p)),
    "rows of L1L2": lambda p: Group(L1L2(0.02, 0.5), by=rows),
    "sparse groups": lambda p: Group(L1(0.02), by=rows) + L1(0.01),
    "sparse groups + L2": lambda p: Group(L1(1.0), by=rows) + L1(0.5) + L2(0.1),
    "non-negative rows": lambda p: NonNegative(Group(L1(0.02), by=rows)),
    "non-negative sparse groups": lambda p: NonNegative(Group(L1(0.02), by=rows) + L1(0.01)),
}


class TestRows:
    @pytest.mark.parametrize("penalty", OF_ROWS.values(), ids=OF_ROWS)
    @pytest.mark.parametrize("base", ["AdamW", "RMSprop centered", "Adadelta"])
    def test_every_penalty(self, penalty, base, no_compiler, monkeypatch):
        monkeypatch.setattr(fused_halves, "_BLOCK", 40)  # so that rows are cut into blocks
        options = {"shapes": ROWS, "act": lambda opt, k: opt.param_groups[0].update(lr=0.05 * (k % 5))}
        fused, _ = trained(BY_ID[base].make, penalty, True, **options)
        plain, _ = trained(BY_ID[base].make, penalty, False, **options)
        assert passes() == 1
        assert_same(fused, plain, rtol=1e-9)

    def test_strengths_that_are_tensors_and_move(self, no_compiler):
        alpha = torch.tensor(0.02, dtype=torch.float64)
        options = {"shapes": ROWS, "act": lambda opt, k: alpha.fill_(0.001 * k)}
        fused, _ = trained(BY_ID["AdamW"].make, lambda p: Group(L1(alpha), by=rows), True, **options)
        plain, _ = trained(BY_ID["AdamW"].make, lambda p: Group(L1(alpha), by=rows), False, **options)
        assert passes() == 1
        assert_same(fused, plain, rtol=1e-9)

    def test_rows_that_are_not_finite_stay(self, no_compiler):
        def break_them(opt, k):
            grad = opt.base.param_groups[0]["params"][0].grad
            grad[2, 0], grad[3, 1] = (torch.inf, torch.nan) if k == 5 else (grad[2, 0], grad[3, 1])

        options = {"shapes": ROWS, "act": break_them}
        (a, *_), _ = trained(BY_ID["AdamW"].make, OF_ROWS["rows"], True, **options)
        (b, *_), _ = trained(BY_ID["AdamW"].make, OF_ROWS["rows"], False, **options)
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-14, equal_nan=True)

    @pytest.mark.parametrize("condition", [0, 2, 6, 10])
    def test_float32_is_enough_for_any_metric(self, condition):
        """Against Newton in float64 on the same numbers: two roundings of the weights, and the same rows at zero."""
        draw = torch.Generator().manual_seed(condition)
        z = torch.randn(2000, 24, generator=draw)
        c = 10.0 ** (condition * torch.rand(2000, 24, generator=draw))
        most = c.amax(1, keepdim=True)
        for level in (1e-6, 1e-3, 0.1, 1.0, 10.0, 1e3):
            one = torch.full((2000, 1), level)
            found = row_inputs._prox(z, c, most, one, None, None, False)
            exact = norm_prox(z.double(), 1.0 / c.double(), one[:, 0].double(), by_rows)
            assert torch.equal(found == 0, exact == 0)
            assert ((found - exact).abs() <= 2 * (torch.nextafter(z.abs(), z.abs() + 1.0) - z.abs())).all()


LEFT_OUT = ("SGD", "SGD dampening", "Adam", "Adam decay", "RMSprop", "RMSprop momentum", "RMSprop centered")
COMPILED = [
    *[pytest.param(r, lambda p: L1(0.02), id=r.id) for r in RECIPES if r.id not in LEFT_OUT],
    pytest.param(BY_ID["AdamW"], lambda p: MCP(0.05, 40.0), id="AdamW MCP"),
    pytest.param(BY_ID["AdamW"], lambda p: SCAD(0.02, 40.0), id="AdamW SCAD"),
    pytest.param(BY_ID["AdamW"], lambda p: Weighted(L1L2(0.02), torch.ones(p.shape)), id="AdamW Weighted"),
    pytest.param(BY_ID["SGD momentum"], lambda p: NonNegative(L0(0.001)), id="SGD NonNegative L0"),
    pytest.param(BY_ID["AdamW"], OF_ROWS["rows"], id="AdamW rows"),
    pytest.param(BY_ID["RMSprop"], OF_ROWS["sparse groups"], id="RMSprop sparse groups"),
]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch.compile's own
class TestCompiled:
    @pytest.fixture(autouse=True)
    def short_trials(self, monkeypatch):
        monkeypatch.setattr(compiled_step, "_TRIAL", 1 << 14)

    @pytest.mark.parametrize(("recipe", "penalty"), COMPILED)
    def test_is_as_exact_as_two_steps(self, recipe: Recipe, penalty):
        """From one state, by both ways and in float64: float32 roundings, of the terms of the sum, and no more."""
        fused, plain, bare = (weights(torch.float32, ROWS) for _ in range(3))
        exact = weights(shapes=ROWS)
        opts = [wrapped(recipe.make, penalty, params, way) for params, way in ((fused, True), (plain, False))]
        opts += [wrapped(recipe.make, lambda p: _doubled(penalty(p)), exact, False), recipe.make(bare)]
        far = entries = 0
        worst = {"fused": 0.0, "plain": 0.0}
        for k in range(60):
            before = [p.detach().clone() for p in fused]
            state = opts[0].state_dict()
            for params, opt in zip((plain, exact, bare), opts[1:], strict=True):
                told = {key: x for key, x in state.items() if isinstance(opt, ProxOptimizer) or key != "torchreg"}
                opt.load_state_dict(copy.deepcopy(told))
                for p, start in zip(params, before, strict=True):
                    p.data.copy_(start)
            give(fused, k)
            for params in (plain, exact, bare):
                for p, q in zip(params, fused, strict=True):
                    p.grad = q.grad.to(p.dtype)
            for opt in opts:
                opt.step()
            for w, x, y, z, u in zip(before, fused, plain, exact, bare, strict=True):
                assert torch.equal(x == 0, y == 0)
                scale = w.abs() + (u - w).abs() + (u - y).abs()
                ulp = torch.nextafter(scale, scale + 1.0) - scale
                far += int(((x - y).abs() > 2 * ulp).sum())
                entries += x.numel()
                for way, found in (("fused", x), ("plain", y)):
                    jump = (found == 0) != (z == 0)  # a threshold that float64 decides otherwise
                    worst[way] = max(worst[way], float((((found - z).abs() / ulp) * ~jump).detach().max()))
            _assert_states_alike(opts[0], opts[1])
        assert far <= 2e-3 * entries
        assert worst["fused"] <= 1.5 * worst["plain"] + 2.0

    def test_one_graph_and_one_kernel_for_all_sizes_rates_strengths_and_counts(self, monkeypatch):
        from torch._dynamo.utils import counters
        from torch._inductor import metrics

        monkeypatch.setattr(compiled_step, "_STEPS", {})
        params = weights(torch.float32, [(2,), (33, 7), (2, 3, 4), (1000,), (64, 64)])
        term = attach(L1(0.02), {f"w{k}": p for k, p in enumerate(params)})
        opt = ProxOptimizer(AdamW([{"params": params[:2]}, {"params": params[2:], "lr": 0.02}]), term, fused=True)
        with torch._inductor.config.patch(force_disable_caches=True):
            before, kernels = counters["stats"]["unique_graphs"], metrics.generated_kernel_count
            for k in range(6):
                give(params, k)
                term.alpha = 0.01 * (k + 1)
                opt.param_groups[0]["lr"] = 0.1 / (k + 1)
                opt.param_groups[1].update(weight_decay=0.1 * (k + 1), eps=1e-8 * (k + 1), betas=(0.9 - 0.01 * k, 0.99))
                if k % 2:
                    clip_grad_norm_(opt, 0.5)
                opt.step()
        assert counters["stats"]["unique_graphs"] - before == 1
        assert metrics.generated_kernel_count - kernels == 1

    def test_is_compiled_in_a_trial_alone(self, monkeypatch):
        """Settings of torch at which it would compile anew make another pass, so that no step does so halfway."""
        from torch._dynamo.utils import counters

        monkeypatch.setattr(compiled_step, "_STEPS", {})
        before = counters["stats"]["unique_graphs"]
        for _ in range(2):
            trained(BY_ID["SGD momentum"].make, lambda p: L1(0.02), True, steps=3, dtype=torch.float32)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                trained(BY_ID["SGD momentum"].make, lambda p: L1(0.02), True, steps=3, dtype=torch.float32)
        assert counters["stats"]["unique_graphs"] - before == passes() == 2

    def test_one_graph_for_rows_of_all_sizes(self, monkeypatch):
        from torch._dynamo.utils import counters

        monkeypatch.setattr(compiled_step, "_STEPS", {})
        monkeypatch.setattr(fused_halves, "_BLOCK", 100)
        params = weights(torch.float32, [(33, 7), (8, 3, 4), (2, 300), (16, 16), (64, 2)])
        term = attach(Group(L1(0.02), by=rows), {f"w{k}": p for k, p in enumerate(params)})
        opt = ProxOptimizer(AdamW(params), term, fused=True)
        before = counters["stats"]["unique_graphs"]
        for k in range(5):
            give(params, k)
            term.alpha, opt.param_groups[0]["lr"] = 0.01 * (k + 1), 0.1 / (k + 1)
            opt.step()
        assert counters["stats"]["unique_graphs"] - before == 1

    def test_writes_are_counted(self):
        params, opt = trained(BY_ID["AdamW"].make, lambda p: L1(0.02), True, steps=3, dtype=torch.float32)
        versions = [p._version for p in params]
        give(params, 4)
        opt.step()
        assert all(p._version > before for p, before in zip(params, versions, strict=True))


def _doubled(penalty: Penalty) -> Penalty:
    if isinstance(penalty, Weighted):
        return Weighted(penalty.penalty, penalty.weights.double())
    return penalty


def _assert_states_alike(a: ProxOptimizer, b: ProxOptimizer) -> None:
    """The same entries; equal counters, and tensors to two roundings of the largest entry."""
    for x, y in zip(a.state.values(), b.state.values(), strict=True):
        assert x.keys() == y.keys()
        for key in x:
            if isinstance(x[key], Tensor) and x[key].dim():
                largest = y[key].abs().max()
                assert (x[key] - y[key]).abs().max() <= 2 * torch.finfo(largest.dtype).eps * largest
            else:
                assert x[key] == y[key]


class TestCheckpoints:
    @pytest.mark.parametrize("name", ["AdamW", "SGD momentum", "NAdam", "Adagrad", "RMSprop centered momentum"])
    def test_go_from_each_way_to_each(self, name, no_compiler):
        make, kept = BY_ID[name].make, {}
        for first in (True, False):
            for then in (True, False):
                params, opt = trained(make, lambda p: L1(0.02), first, steps=10)
                after = [Parameter(p.detach().clone()) for p in params]
                other = wrapped(make, lambda p: L1(0.02), after, then)
                other.load_state_dict(copy.deepcopy(opt.state_dict()))
                for k in range(10, 20):
                    give(after, k)
                    other.step()
                kept[first, then] = after
        for ways in kept:
            assert_same(kept[ways], kept[False, False])

    @pytest.mark.parametrize("name", ["AdamW", "SGD momentum", "NAdam", "Adagrad", "RMSprop centered momentum"])
    def test_go_to_the_bare_optimizer_and_back(self, name, no_compiler):
        make, ends = BY_ID[name].make, []
        for fused in (True, False):
            params, opt = trained(make, lambda p: L1(0.02), fused, steps=10)
            bare = make(params)
            bare.load_state_dict({k: x for k, x in opt.state_dict().items() if k != "torchreg"})
            for k in range(10, 15):
                give(params, k)
                bare.step()
            back = wrapped(make, lambda p: L1(0.02), params, fused)
            back.load_state_dict(bare.state_dict())
            for k in range(15, 20):
                give(params, k)
                back.step()
            ends.append(params)
        assert_same(*ends)

    def test_copies_and_pickles_stay_fused(self, no_compiler):
        _, opt = trained(BY_ID["AdamW"].make, lambda p: L1(0.02), True, steps=3)
        for twin in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
            assert twin.fused is True
            own = twin.param_groups[0]["params"]
            give(own, 3)
            twin.step()
        assert "fused" not in opt.state_dict()


class TestSurroundings:
    @pytest.mark.parametrize("of_base", [False, True])
    def test_learning_rates_are_scheduled(self, of_base, no_compiler):
        def run(fused):
            params = weights()
            opt = wrapped(BY_ID["AdamW"].make, lambda p: L1(0.02), params, fused)
            scheduler = CosineAnnealingLR(opt.base if of_base else opt, 30)
            for k in range(30):
                give(params, k)
                opt.step()
                scheduler.step()
            return params

        assert_same(run(True), run(False))
        assert passes() == 1

    def test_strengths_are_scheduled(self, no_compiler):
        def run(fused):
            params = weights()
            term = attach(L1(0.02), {f"w{k}": p for k, p in enumerate(params)})
            opt = ProxOptimizer(BY_ID["AdamW"].make(params), term, fused=fused)
            ramp = PenaltyScheduler(term, schedules.linear(0.0, 0.05, steps=20))
            for k in range(30):
                give(params, k)
                opt.step()
            return params, ramp.count, term.alpha

        (a, *told), (b, *expected) = run(True), run(False)
        assert told == expected
        assert_same(a, b)

    @pytest.mark.parametrize("options", [{}, {"skip_nonfinite": True}], ids=str)
    def test_closures(self, options, no_compiler):
        def run(fused):
            params, called = weights(), []
            opt = wrapped(BY_ID["AdamW"].make, lambda p: L1(0.02), params, fused, **options)

            def closure():
                assert torch.is_grad_enabled()
                called.append(1)
                opt.zero_grad()
                loss = sum(((p - 0.3) ** 2).sum() for p in params)
                loss.backward()
                return loss

            losses = [float(opt.step(closure).detach()) for _ in range(20)]
            return params, losses, len(called)

        (a, losses, calls), (b, expected, as_many) = run(True), run(False)
        assert calls == as_many
        assert losses == pytest.approx(expected, rel=1e-12)
        assert_same(a, b)

    def test_clipping(self, no_compiler):
        def clip(opt, k):
            clip_grad_norm_(opt, 0.3)

        for name in ("AdamW", "SGD momentum"):
            fused, _ = trained(BY_ID[name].make, lambda p: L1(0.02), True, act=clip)
            plain, _ = trained(BY_ID[name].make, lambda p: L1(0.02), False, act=clip)
            assert_same(fused, plain)
        assert passes() == 2

    def test_some_are_penalised_some_rest_and_some_come_later(self, no_compiler):
        def run(fused):
            params = weights(shapes=[(33, 7), (5,), (2, 3, 4), (6, 6)])
            opt = ProxOptimizer(
                BY_ID["AdamW"].make(params),
                attach(L1(0.02), {"a": params[0], "d": params[3]}),
                attach(Group(L1(0.02), by=rows), {"c": params[2]}),
                fused=fused,
            )
            for k in range(30):
                give(params, k)
                if k < 10:
                    params[0].grad = None
                if 10 <= k < 15:
                    params[1].grad = params[3].grad = None
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    opt.step()
            return params

        assert_same(run(True), run(False))
        assert passes() == 2

    def test_layers_of_several_weights_share_a_pass_that_keeps_none_of_them(self, no_compiler):
        """A compiled pass lives as long as the process."""

        def run(fused):
            params = weights(shapes=[(8, 8), (9, 9), (7, 7)])
            factors = [0.5, 1.5, torch.full((7, 7), 2.0, dtype=torch.float64)]
            kept.append(weakref.ref(factors[2]))
            terms = [attach(Weighted(L1(0.02), w), {"w": p}) for w, p in zip(factors, params, strict=True)]
            opt = ProxOptimizer(_adamw(params), *terms, fused=fused)
            for k in range(20):
                give(params, k)
                opt.step()
            return params

        kept = []
        assert_same(run(True), run(False))
        assert passes() == 2  # numbers, and tensors
        gc.collect()
        assert [ref() for ref in kept] == [None, None]

    def test_own_hooks_see_the_gradients(self, no_compiler):
        seen = []
        params = weights()
        opt = wrapped(BY_ID["AdamW"].make, lambda p: L1(0.02), params, True)
        opt.register_step_pre_hook(lambda *_: seen.append(all(p.grad is not None for p in params)))
        opt.register_step_post_hook(lambda *_: seen.append(all(p.grad is not None for p in params)))
        for k in range(3):
            give(params, k)
            given = [p.grad for p in params]
            opt.step()
            assert all(p.grad is g for p, g in zip(params, given, strict=True))
        assert seen == [True] * 6

    def test_gradients_are_back_after_an_error_and_nothing_has_moved(self, no_compiler, monkeypatch):
        params, opt = trained(BY_ID["AdamW"].make, lambda p: L1(0.02), True, steps=3)
        before, state = [p.detach().clone() for p in params], copy.deepcopy(opt.state_dict())
        give(params, 4)
        given = [p.grad for p in params]

        def broken():
            raise OSError("broken")

        monkeypatch.setattr(opt, "prox", broken)
        with pytest.raises(OSError, match="broken"):
            opt.step()
        assert all(p.grad is g for p, g in zip(params, given, strict=True))
        assert all(torch.equal(p, w) for p, w in zip(params, before, strict=True))
        for x, y in zip(opt.state_dict()["state"].values(), state["state"].values(), strict=True):
            assert all(torch.equal(x[key], y[key]) for key in x)

    def test_strengths_that_are_tensors(self, no_compiler):
        alpha = torch.tensor(0.02)

        def turn(opt, k):
            alpha.fill_(0.001 * k)

        fused, _ = trained(BY_ID["AdamW"].make, lambda p: L1(alpha), True, act=turn)
        plain, _ = trained(BY_ID["AdamW"].make, lambda p: L1(alpha), False, act=turn)
        assert_same(fused, plain, rtol=1e-7)
        assert passes() == 1


@contextmanager
def told(what: str | None) -> Iterator[None]:
    if what is None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    else:
        with pytest.warns(UserWarning, match=what) as caught:
            yield
        assert sum("fused=True" in str(w.message) for w in caught) == 1


class _Twice(SGD):
    """An optimizer whose step takes the gradient at two places, and which is not torch's own."""

    def step(self, closure=None):
        loss = None if closure is None else closure()
        super().step()
        if closure is not None:
            closure()
            super().step()
        return loss


def _made_outside() -> list[Parameter]:
    with torch.inference_mode(False):
        return weights()


class OwnAdamW(AdamW):
    """A subclass, whose step may be another one."""


def _adamw(p: list[Parameter]) -> Optimizer:
    return AdamW(p, lr=0.05)


def _one(penalty: Callable[[Parameter], Penalty], make=_adamw, **options):
    return lambda params, fused: wrapped(make, penalty, params, fused, **options)


def _l1(p: Tensor) -> Penalty:
    return L1(0.02)


def _column_weights(p: Tensor) -> Tensor:
    return torch.ones(p.shape[0], *[1] * (p.dim() - 1), dtype=p.dtype)


def _lazily(params: list[Parameter], fused: bool | None) -> ProxOptimizer:
    term = attach(L1(0.02), {f"w{k}": p for k, p in enumerate(params)}, lazy=True)
    return ProxOptimizer(_adamw(params), term, fused=fused)


def _hook(opt: ProxOptimizer) -> None:
    opt.base.register_step_post_hook(lambda *_: None)


def _other_step(opt: ProxOptimizer) -> None:
    original = opt.base.step
    opt.base.step = lambda closure=None: original(closure)


def _also_by_hooks(opt: ProxOptimizer) -> None:
    extra = Parameter(torch.ones(3, dtype=torch.float64))
    opt.base.add_param_group({"params": [extra]})
    attach_to(opt.base, attach(L1(0.1), {"extra": extra}))


def _target(opt: ProxOptimizer) -> None:
    for term in opt.terms:
        TargetSparsity(term, 0.5, steps=5)


FALLS_BACK = {
    "a subclass of the base": (_one(_l1, OwnAdamW, metric="decoupled"), "OwnAdamW is not known"),
    "an unknown base": (_one(_l1, Lion, metric="decoupled"), "Lion is not known"),
    "a metric of one's own": (_one(_l1, metric=lambda group, state, p: group["lr"]), "metric is a function"),
    "columns": (_one(lambda p: Group(L1(0.02), by=columns)), "Group is no penalty of entries or convex one of rows"),
    "concave groups": (_one(lambda p: Group(MCP(0.02), by=rows)), "Group is no penalty of entries or convex"),
    "an own penalty": (_one(lambda p: OwnLogSum(0.02)), "OwnLogSum is no penalty"),
    "an own penalty inside": (_one(lambda p: NonNegative(OwnLogSum(0.02))), "NonNegative is no penalty"),
    "dual averaging": (_one(_l1, mode="dual_averaging"), "dual_averaging"),
    "masters": (_one(_l1, masters=True), "masters=True"),
    "a decay that is a tensor": (
        _one(_l1, lambda p: SGD(p, lr=0.1, weight_decay=torch.tensor(0.1))),
        "weight_decay is a tensor",
    ),
    "weights that broadcast": (_one(lambda p: Weighted(L1(0.02), _column_weights(p))), "not of its shape"),
    "lazy terms": (_lazily, "lazy=True"),
}
ACTS = {
    "hooks of the base": (_hook, "hooks"),
    "attach_to on the base": (_also_by_hooks, "hooks"),
    "another step of the base": (_other_step, "step was replaced"),
    "frozen zeros": (lambda opt: [freeze_zeros(term) for term in opt.terms], "controlled"),
    "a target": (_target, "controlled"),
}


class TestFallsBack:
    """To the bits of fused=False: with one notice where it was asked for, with none where it was not."""

    def check(self, make, says: str, act=lambda opt: None, params=weights) -> None:
        ends = []
        for fused in (True, None, False):
            own = params()
            opt = make(own, fused)
            act(opt)
            with told(says if fused else None):
                for k in range(6):
                    give(own, k)
                    opt.step()
            ends.append(own)
        for found in ends:
            assert all(torch.equal(p, q) for p, q in zip(found, ends[-1], strict=True))
        assert passes() == 0

    @pytest.mark.parametrize(("make", "says"), FALLS_BACK.values(), ids=FALLS_BACK)
    def test_what_is_made_so(self, make, says, no_compiler):
        self.check(make, says, params=lambda: weights(shapes=[(33, 7), (2, 3, 4)]))

    @pytest.mark.parametrize(("act", "says"), ACTS.values(), ids=ACTS)
    def test_what_is_done_to_it(self, act, says, no_compiler):
        self.check(_one(_l1), says, act)

    def test_hooks_of_all_optimizers(self, no_compiler):
        from torch.optim.optimizer import register_optimizer_step_post_hook

        handle = register_optimizer_step_post_hook(lambda *_: None)
        try:
            self.check(_one(_l1), "hooks")
        finally:
            handle.remove()

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (lambda p: p.bfloat16(), "bfloat16"),
            (lambda p: p.t().contiguous().t(), "not contiguous"),
        ],
        ids=["bfloat16", "transposed"],
    )
    def test_what_the_parameter_is(self, change, says, no_compiler):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "(?s).*half the distance")
            self.check(_one(_l1), says, params=lambda: [Parameter(change(weights()[0].detach()))])

    def test_groups_within_rows(self, no_compiler):
        by_threes = _one(lambda p: Group(L1(0.02), by=blocks(1, 3)))
        self.check(by_threes, "groups are not its rows", params=lambda: weights(shapes=[(4, 6)]))

    def test_a_class_of_its_own(self, no_compiler):
        class Own(Tensor):
            pass

        self.check(_one(_l1), "class of its own", params=lambda: [Parameter(weights()[0].detach().as_subclass(Own))])

    def test_skipping_on_the_device(self, no_compiler):
        def lend(opt):
            opt.found_inf = torch.zeros(())

        self.check(_one(_l1, lambda p: AdamW(p, fused=True)), "GradScaler", lend, lambda: weights(torch.float32))

    def test_several_processes(self, no_compiler, monkeypatch):
        for name, value in (("is_initialized", True), ("get_world_size", 2)):
            monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
        with told("several processes"):
            trained(_adamw, _l1, True, steps=3)
        assert passes() == 0

    @pytest.mark.parametrize(
        "mode",
        [lambda: FlopCounterMode(display=False), torch.inference_mode, lambda: torch.device("cpu")],
        ids=["counted operations", "inference", "default device"],
    )
    def test_modes_of_torch(self, mode, no_compiler):
        """Compiled code would be compiled anew within one, or be run as Python from then on."""
        with mode():
            self.check(_one(_l1), "a mode of torch is on", params=_made_outside)
        trained(_adamw, _l1, True, steps=3)  # and afterwards as ever
        assert passes() == 1

    def test_run_as_python(self, no_compiler, monkeypatch):
        """As with TORCH_COMPILE_DISABLE=1: right, but slower than two steps."""
        monkeypatch.setattr(compiled_step, "_is_compiled", lambda: False)
        with told("no working compiler"):
            fused, _ = trained(_adamw, _l1, True, steps=6)
        plain, _ = trained(_adamw, _l1, False, steps=6)
        assert all(torch.equal(p, q) for p, q in zip(fused, plain, strict=True))

    def test_too_many_kinds(self, no_compiler, monkeypatch):
        monkeypatch.setattr(compiled_step, "_MOST", 1)
        params = weights(shapes=[(8, 8), (9, 9)])
        terms = [attach(MCP(0.02, gamma), {f"w{gamma}": p}) for gamma, p in zip((3.0, 4.0), params, strict=True)]
        opt = ProxOptimizer(_adamw(params), *terms, fused=True)
        with told("compiled too many kinds"):
            for k in range(4):
                give(params, k)
                opt.step()
        assert passes() == 1

    @pytest.mark.parametrize("closes", [True, False])
    def test_an_unknown_base_gets_the_closure(self, closes):
        """As SAM needs it, which calls it twice."""
        called, ends = [], []
        for fused in (True, False):
            p = Parameter(torch.ones(3))

            def closure(p=p):
                called.append(1)
                p.grad = 2.0 * p.detach()
                return p.detach().sum()

            opt = ProxOptimizer(_Twice([p], lr=0.1), attach(L1(0.1), {"p": p}), metric="decoupled", fused=fused)
            p.grad = torch.ones(3)
            with told("_Twice is not known" if fused else None):
                opt.step(closure if closes else None)
            ends.append(p)
        assert len(called) == (4 if closes else 0)
        assert torch.equal(*ends)

    @pytest.mark.parametrize("where", ["gradient", "state", "other parameter", "part of another parameter"])
    def test_memory_that_is_shared(self, where, no_compiler):
        """The order of the steps matters where a step of one moves another."""

        def params():
            flat = 0.1 * torch.randn(100, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
            start = {"part of another parameter": 20, "other parameter": 0}.get(where, 50)
            return [Parameter(flat[:50]), Parameter(flat[start : start + 50])]

        def share(opt, k):
            p, q = opt.param_groups[0]["params"]
            if where == "gradient":
                p.grad = p.detach()
            if where == "state" and k == 2:
                opt.state[p]["exp_avg"] = opt.state[q]["exp_avg"]

        ends = []
        for fused in (True, False):
            own = params()
            opt = wrapped(_adamw, _l1, own, fused)
            with told("shares memory" if fused else None):
                for k in range(6):
                    give(own, k)
                    share(opt, k)
                    opt.step()
            ends.append(own)
        assert_same(*ends)

    def test_no_compiler(self, no_compiler, monkeypatch):
        def broken(function, **options):
            def run(*args):
                raise RuntimeError("no g++")

            return run

        monkeypatch.setattr(torch, "compile", broken)
        self.check(_one(_l1), "no working compiler")

    def test_no_compiler_on_the_machine(self, tmp_path):
        """As `test_no_compiler`, but with torch's own machinery, in a process that has none in its cache."""
        script = (
            "import torch, warnings\n"
            "from torchreg import L1, ProxOptimizer, attach\n"
            "ends = []\n"
            "warnings.simplefilter('ignore', DeprecationWarning)\n"
            "with warnings.catch_warnings(record=True) as caught:\n"
            "    for fused in (True, False):\n"
            "        p = torch.nn.Parameter(torch.linspace(-1, 1, 1 << 14))\n"
            "        opt = ProxOptimizer(torch.optim.AdamW([p]), attach(L1(0.1), {'p': p}), fused=fused)\n"
            "        for k in range(4):\n"
            "            p.grad = torch.sin(p.detach() * k)\n"
            "            opt.step()\n"
            "        ends.append(p)\n"
            "told = [str(w.message) for w in caught if 'fused=True' in str(w.message)]\n"
            "assert len(told) == 1 and 'no working compiler' in told[0], told\n"
            "assert torch.equal(*ends)\n"
        )
        nowhere = {"CXX": str(tmp_path / "g++"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
        subprocess.run([sys.executable, "-c", script], env=os.environ | nowhere, check=True)

    def test_a_compiler_that_reckons_wrong(self, no_compiler, monkeypatch):
        def wrong(function, **options):
            def run(p, *args):
                function(p, *args)
                p.mul_(1.001)

            return run

        monkeypatch.setattr(torch, "compile", wrong)
        self.check(_one(_l1), "its result differs")

    def test_only_what_must(self, no_compiler):
        params = weights(torch.float64, [(33, 7), (6, 6)])
        opt = ProxOptimizer(
            _adamw(params),
            attach(L1(0.02), {"entries": params[0]}),
            attach(Group(L1(0.02), by=columns), {"columns": params[1]}),
            fused=True,
        )
        with told("columns: Group"):
            for k in range(6):
                give(params, k)
                opt.step()
        assert passes() == 1

    def test_empty_parameters_are_no_news(self, no_compiler):
        with told(None):
            trained(_adamw, _l1, True, steps=3, shapes=[(0, 3), (4, 4)])
        assert passes() == 1

    def test_not_asked_for(self, no_compiler):
        for fused in (None, False):
            with told(None):
                trained(_adamw, _l1, fused, steps=3)
        assert passes() == 0


class TestSizes:
    """What gains is fused, at any size the rest is not; nothing is told of what is too small."""

    @pytest.fixture(autouse=True)
    def true_rule(self, small_ones_too, no_compiler, monkeypatch):
        monkeypatch.setattr(candidates, "_MANY", 1 << 14)
        monkeypatch.setattr(candidates, "_MORE", 64)

    def fused(self, make, penalty, shape, **options) -> bool:
        with told(None):
            trained(make, penalty, True, steps=3, dtype=torch.float32, shapes=[shape], **options)
        return passes() > 0

    @pytest.mark.parametrize(("shape", "gains"), [((127, 129), False), ((128, 128), True)], ids=str)
    def test_a_step_for_each_entry(self, shape, gains):
        assert self.fused(_adamw, _l1, shape) is gains

    @pytest.mark.parametrize(("shape", "gains"), [((1023, 1025), False), ((1024, 1024), True)], ids=str)
    def test_one_step_for_all_entries(self, shape, gains):
        assert self.fused(BY_ID["SGD momentum"].make, _l1, shape) is gains

    def test_the_metric_decides_and_not_the_base(self):
        assert not self.fused(_adamw, _l1, (128, 128), metric="decoupled")

    @pytest.mark.parametrize(("base", "gains"), [("AdamW", True), ("SGD momentum", False)])
    def test_rows(self, base, gains):
        assert self.fused(BY_ID[base].make, OF_ROWS["rows"], (16, 16)) is gains

    def test_many_small_ones_to_the_bits_of_two_steps(self):
        shapes = [(64, 64)] * 5
        a, b = (trained(_adamw, _l1, fused, 5, torch.float32, shapes=shapes)[0] for fused in (True, False))
        assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


class TestDecisive:
    def test_reaches_the_minimiser(self, no_compiler):
        from optimizer_catalog import L1_ALPHA, least_squares

        problem = least_squares()
        w = Parameter(torch.zeros(30, dtype=torch.float64))
        opt = ProxOptimizer(Adam([w], lr=0.1), attach(L1(L1_ALPHA), {"w": w}), fused=True)
        scheduler = CosineAnnealingLR(opt, 3000)
        for _ in range(3000):
            w.grad = problem.gradient(w.detach())
            opt.step()
            scheduler.step()
        oracle = problem.elastic_net(L1_ALPHA, 0.0)
        assert passes() == 1
        assert torch.equal(w == 0, oracle == 0)
        torch.testing.assert_close(w.detach(), oracle, rtol=1e-5, atol=1e-6)


ON_DEVICES = {
    "SGD": lambda p: SGD(p, lr=0.1, momentum=0.9),
    "AdamW": lambda p: AdamW(p, lr=0.05),
    "AdamW fused": lambda p: AdamW(p, lr=0.05, fused=True),
    "Adam fused amsgrad": lambda p: Adam(p, lr=0.05, fused=True, amsgrad=True),
}


class TestDevices:
    """The passes in torch's own operators on an accelerator, pretended where there is none."""

    @pytest.mark.parametrize("make", ON_DEVICES.values(), ids=ON_DEVICES)
    @pytest.mark.parametrize("clips", [False, True])
    def test_equal_the_host_and_never_wait(self, make, clips, accelerator, no_compiler, monkeypatch):
        monkeypatch.setattr(candidates, "has_modes", lambda: False)  # what watches is one
        ends = []
        for device, fused in ((accelerator, True), (torch.device("cpu"), False)):
            params = [Parameter(p.detach().to(device)) for p in weights()]
            opt = wrapped(make, lambda p: L1(0.02), params, fused)
            for k in range(12):
                give(params, k)
                with watch(allow_waits=k < 3 or device.type == "cpu"):  # the first compile
                    if clips and k % 2:
                        clip_grad_norm_(opt, 0.5)
                    opt.step()
            ends.append([p.detach().cpu() for p in params])
        assert passes() == 1
        assert_same(*ends, rtol=1e-6)
