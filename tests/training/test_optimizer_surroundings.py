"""Hooks, groups added later, loss scaling and compilation around ProxOptimizer."""

from __future__ import annotations

import pytest
import torch
from optimizer_catalog import give_gradients, matrix, same, values
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.optim.swa_utils import AveragedModel

from torchreg import L1, ProxOptimizer, Weighted, attach


def small(alpha: float = 0.5) -> tuple[list, ProxOptimizer]:
    params = [matrix(1), matrix(2, (3,))]
    return params, ProxOptimizer(Adam(params, lr=0.5), L1(alpha))


def test_hooks_get_the_wrapper_and_post_hooks_the_final_weights():
    params, opt = small()
    seen = {}
    start = values(params)

    def before(optimizer, args, kwargs):
        seen["before"] = optimizer, values(params)

    def after(optimizer, args, kwargs):
        seen["after"] = optimizer, values(params)

    handles = opt.register_step_pre_hook(before), opt.register_step_post_hook(after)
    opt.base.register_step_post_hook(lambda optimizer, *_: seen.update(base=(optimizer, values(params))))
    give_gradients(params, 0)
    opt.step()
    assert all(seen[when][0] is opt for when in ("before", "after"))
    assert seen["base"][0] is opt.base
    assert same(seen["before"][1], start)
    assert same(seen["after"][1], params)
    assert not same(seen["base"][1], params)  # the base's own hooks run before the prox
    assert bool((params[0] == 0).any())
    for handle in handles:
        handle.remove()
    seen.clear()
    opt.step()
    assert set(seen) == {"base"}


def test_a_global_hook_sees_both_steps_and_the_final_weights_last():
    params, opt = small()
    order = []
    handle = register_optimizer_step_post_hook(lambda o, *_: order.append((o, values(params))))
    try:
        give_gradients(params, 0)
        opt.step()
    finally:
        handle.remove()
    assert [o for o, _ in order] == [opt.base, opt]
    assert same(order[-1][1], params)


def test_state_dict_hooks_work_as_on_any_optimizer():
    _, opt = small()
    calls = []
    opt.register_state_dict_pre_hook(lambda o: calls.append(o))
    opt.register_state_dict_post_hook(lambda o, state: {**state, "mine": 1})
    opt.register_load_state_dict_pre_hook(lambda o, state: {k: v for k, v in state.items() if k != "mine"})
    opt.register_load_state_dict_post_hook(lambda o: calls.append(o))
    state = opt.state_dict()
    assert state["mine"] == 1
    opt.load_state_dict(state)
    assert calls == [opt, opt]
    assert "mine" in state
    assert "torchreg" in state


def test_loading_does_not_write_into_the_given_state():
    params, opt = small()
    give_gradients(params, 0)
    opt.step()
    state = opt.state_dict()
    keys = set(state)
    opt.load_state_dict(state)
    assert set(state) == keys


def test_a_bare_penalty_takes_the_matrices_of_a_group_added_later():
    params, opt = small(alpha=10.0)
    matrix_too, vector = matrix(3, (2, 2)), matrix(4, (2,))
    opt.add_param_group({"params": [matrix_too, vector], "lr": 0.25})
    assert opt.param_groups is opt.base.param_groups
    everything = [*params, matrix_too, vector]
    give_gradients(everything, 0)
    opt.step()
    assert [bool((p == 0).all()) for p in everything] == [True, False, True, False]


def test_an_attached_term_takes_nothing_of_a_group_added_later():
    first, later = matrix(1), matrix(2)
    opt = ProxOptimizer(SGD([first], lr=0.5), attach(L1(10.0), {"w": first}))
    opt.add_param_group({"params": later})
    give_gradients([first, later], 0)
    opt.step()
    assert bool((first == 0).all())
    assert bool((later != 0).all())
    assert list(opt.terms[0].parameters) == ["w"]


def test_parameters_are_found_by_position_so_their_tensors_can_be_swapped():
    params, opt = small(alpha=10.0)
    new = [matrix(8), matrix(9, (3,))]
    opt.param_groups[0]["params"] = new  # as FSDP2 and Accelerate do after construction
    before = values(params)
    give_gradients(new, 0)
    opt.step()
    assert bool((new[0] == 0).all())
    assert same(before, params)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch.compile's own
def test_the_step_can_be_compiled():
    torch.manual_seed(0)
    nets = [nn.Linear(3, 4) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    opts = [ProxOptimizer(Adam(net.parameters(), lr=0.1), attach(L1(0.3), net)) for net in nets]
    compiled = torch.compile(opts[1].step, backend="eager")
    for k in range(4):
        for net, step in zip(nets, (opts[0].step, compiled), strict=True):
            give_gradients(list(net.parameters()), k)
            step()
        # a compiled step counts in float32, where 1 - 0.999 keeps four digits
        torch.testing.assert_close(nets[0].weight, nets[1].weight, rtol=1e-3, atol=1e-5)
        assert torch.equal(nets[0].weight == 0, nets[1].weight == 0)


def test_an_average_of_sparse_iterates_is_dense_which_is_torchs_doing():
    net = nn.Linear(3, 4)
    opt = ProxOptimizer(SGD(net.parameters(), lr=0.5), attach(Weighted(L1(0.5), torch.ones(4, 3)), net))
    average = AveragedModel(net)
    opt.register_step_post_hook(lambda *_: average.update_parameters(net))
    total = torch.zeros(4, 3)
    for k in range(3):
        give_gradients(list(net.parameters()), k)
        opt.step()
        total += net.weight.detach()
    torch.testing.assert_close(average.module.weight.detach(), total / 3)  # the hook saw each iterate after its prox


def test_the_representation_lists_base_and_terms():
    _, opt = small()
    assert all(text in repr(opt) for text in ("Adam", "lr: 0.5", "metric='auto'", "L1(alpha=0.5)", "(4, 3)"))
