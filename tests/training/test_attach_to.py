"""attach_to: the steps and the state dicts of ProxOptimizer, as hooks on the raw optimizer."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from optimizer_catalog import every_recipe, give_gradients, matrix, same, values
from test_checkpoints import equal_states
from torch import nn
from torch.amp import GradScaler
from torch.optim import LBFGS, SGD, Adam, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR

from torchreg import L1, Group, PenaltyScheduler, ProxOptimizer, attach, attach_to, rows, schedules, sparsity, violation


def three() -> list[nn.Parameter]:
    return [matrix(1), matrix(2, (5, 3)), matrix(3, (3,))]


@pytest.mark.parametrize("closure", [False, True], ids=["plain", "closure"])
@every_recipe
@pytest.mark.usefixtures("every_control")
def test_the_steps_are_those_of_prox_optimizer(recipe, closure):
    wrapped, raw = three(), three()
    opt, base = ProxOptimizer(recipe.make(wrapped), L1(0.1)), recipe.make(raw)
    attach_to(base, L1(0.1))
    decays = CosineAnnealingLR(opt, 8), CosineAnnealingLR(base, 8)
    for k in range(8):
        for params, o, decay in ((wrapped, opt, decays[0]), (raw, base, decays[1])):

            def gradients(params=params, k=k) -> float:
                give_gradients(params, k)
                return 0.5

            if closure:
                assert o.step(gradients) == 0.5
            else:
                gradients()
                o.step()
            decay.step()
    assert same(wrapped, raw)
    assert equal_states(opt.state_dict(), base.state_dict())


def test_schedules_values_counts_and_residuals_are_those_of_an_owner():
    net = nn.Linear(3, 4)
    base = Adam(net.parameters(), lr=0.1)
    term = attach(Group(L1(0.0), by=rows), net)
    attachment = attach_to(base, term)
    ramp = PenaltyScheduler(term, schedules.linear(0.0, 2.0, steps=4))
    for k in range(60):
        give_gradients(list(net.parameters()), k)
        base.step()
    assert (ramp.count, term.alpha) == (60, 2.0)
    assert sparsity(term).zero_groups == 4
    assert not term().requires_grad
    wrapped = copy.deepcopy(net)
    for p, q in zip(net.parameters(), wrapped.parameters(), strict=True):
        q.grad = p.grad.clone()
    lone = attach(Group(L1(2.0), by=rows), wrapped)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = Adam(wrapped.parameters(), lr=0.1)
        other.load_state_dict(base.state_dict())
    assert violation(term) == violation(lone, optimizer=other)
    assert "L1" in repr(attachment)


def test_after_remove_the_optimizer_is_bare_and_the_term_free():
    net, bare = nn.Linear(3, 4), nn.Linear(3, 4)
    bare.load_state_dict(net.state_dict())
    opts = AdamW(net.parameters(), lr=0.1), AdamW(bare.parameters(), lr=0.1)
    term = attach(L1(5.0), net)
    attach_to(opts[0], term).remove()
    for k in range(3):
        for model, opt in zip((net, bare), opts, strict=True):
            give_gradients(list(model.parameters()), k)
            opt.step()
    assert same(list(net.parameters()), list(bare.parameters()))
    assert term().requires_grad
    assert equal_states(opts[0].state_dict(), opts[1].state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        copy.deepcopy(opts[0])
    ProxOptimizer(opts[0], term)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
def test_a_copy_without_the_step_is_told(copied):
    params = three()
    base = SGD(params, lr=0.1)
    attach_to(base, L1(0.1))
    with pytest.warns(UserWarning, match="SGD has no proximal step"):
        copied(base)


def test_checkpoints_of_hook_wrapper_and_bare_optimizer_load_each_other():
    def made(kind: str, alpha: float):
        params = three()
        base = Adam(params, lr=0.1)
        if kind == "hook":
            return params, base, attach_to(base, L1(alpha)).terms[0]
        if kind == "wrapper":
            opt = ProxOptimizer(base, L1(alpha))
            return params, opt, opt.terms[0]
        return params, base, None

    for saved_by in ("hook", "wrapper", "bare"):
        params, opt, _ = made(saved_by, 0.1)
        give_gradients(params, 0)
        opt.step()
        state = copy.deepcopy(opt.state_dict())
        for loaded_by in ("hook", "wrapper", "bare"):
            fresh, other, term = made(loaded_by, 0.2)
            if "bare" in (saved_by, loaded_by):
                other.load_state_dict(copy.deepcopy(state))
            else:
                with pytest.warns(UserWarning, match=r"alpha = 0.1 .*it was 0.2"):
                    other.load_state_dict(copy.deepcopy(state))
                assert term.alpha == 0.1
            assert torch.equal(other.state[fresh[0]]["exp_avg"], opt.state[params[0]]["exp_avg"])


def test_a_checkpoint_of_other_terms_is_refused_with_nothing_changed():
    params, others = three(), three()
    base, other = Adam(params, lr=0.1), Adam(others, lr=0.2)
    attach_to(base, L1(0.1))
    attach_to(other, attach(L1(0.1), {"first": others[0]}))
    with pytest.raises(ValueError, match="penalises other parameters"):
        other.load_state_dict(base.state_dict())
    assert other.param_groups[0]["lr"] == 0.2


def test_a_step_that_a_fused_optimizer_skips_moves_nothing():
    params = [matrix(1, dtype=torch.float32)]
    base, scaler = Adam(params, lr=0.1, fused=True), GradScaler("cpu", init_scale=4.0)
    attach_to(base, L1(0.1))
    scaler.scale(torch.ones(()))
    for k in range(4):
        give_gradients(params, k)
        before = values(params)
        if k in (0, 2):
            params[0].grad[0, 0] = float("inf")
        scaler.step(base)
        scaler.update()
        assert same(before, params) == (k in (0, 2))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch.compile's own
def test_the_hooked_step_can_be_compiled():
    pair = []
    for compiled in (False, True):
        params = [matrix(k, dtype=torch.float32) for k in range(2)]
        base = SGD(params, lr=0.1, momentum=0.9)
        attach_to(base, L1(0.5))
        torch._dynamo.reset()
        step = torch.compile(base.step, backend="eager") if compiled else base.step
        for k in range(4):
            give_gradients(params, k)
            step()
        pair.append(params)
    assert same(*pair)
    assert any(bool((p == 0).any()) for p in pair[0])


def test_what_a_hook_cannot_serve_is_refused_and_nothing_is_changed():
    params = three()
    base = SGD(params, lr=0.1)
    for given, kind, told in (
        (LBFGS(params), ValueError, "cannot follow LBFGS"),
        (ProxOptimizer(SGD(params, lr=0.1), L1(0.1)), ValueError, "cannot follow ProxOptimizer"),
        (SGD(params, lr=0.1, maximize=True), ValueError, "maximize=True"),
        ("sgd", TypeError, "got str"),
    ):
        with pytest.raises(kind, match=told):
            attach_to(given, L1(0.1))
    with pytest.raises(ValueError, match="got none"):
        attach_to(base)
    with pytest.raises(TypeError, match="got float"):
        attach_to(base, 0.1)
    owned = attach(L1(0.1), {"w": params[0]})
    keep = ProxOptimizer(SGD(params, lr=0.1), owned)
    with pytest.raises(ValueError, match="metric must be"):
        attach_to(base, owned, metric="none such")
    assert owned.owner is keep
    assert not base._optimizer_step_post_hooks
    assert not base._optimizer_step_pre_hooks
    assert "__getstate__" not in vars(base)
    assert keep.terms == [owned]


def test_an_accelerated_optimizer_takes_no_hooks_and_the_one_inside_does():
    accelerate = pytest.importorskip("accelerate")
    net = nn.Linear(3, 4)
    accelerator = accelerate.Accelerator(cpu=True)
    net, opt = accelerator.prepare(net, SGD(net.parameters(), lr=0.1))
    with pytest.raises(TypeError, match="inside"):
        attach_to(opt, L1(100.0))
    attachment = attach_to(opt.optimizer, attach(L1(100.0), net))
    accelerator.backward(net(torch.ones(2, 3)).sum())
    opt.step()
    assert sparsity(*attachment.terms).fraction == 1.0
