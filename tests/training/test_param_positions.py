"""Each parameter takes the step of its own name, however param_groups, model and tensors are exchanged."""

from __future__ import annotations

import copy
import pickle
import re

import pytest
import torch
from optimizer_catalog import give_gradients, matrix, same, values
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.optim import SGD, Adam

from torchreg import L1, Group, ProxOptimizer, Weighted, attach, attach_to, clip_grad_norm_, rows, sparsity
from torchreg.training import violation

LR, ALPHA = 0.5, 0.4
MADE = {
    "wrapper": lambda base, *terms: ProxOptimizer(base, *terms),
    "skipping": lambda base, *terms: ProxOptimizer(base, *terms, skip_nonfinite=True),
    "hook": lambda base, *terms: (attach_to(base, *terms), base)[1],
}
made = pytest.mark.parametrize("make", MADE.values(), ids=MADE)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)).double()


def gradients(params: list[Tensor], seed: int) -> None:
    """For the frozen ones as well: they may be left from before, and torch's optimizers use them."""
    for k, p in enumerate(params):
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * seed + k), dtype=p.dtype)


def soft(w: Tensor, threshold: float) -> Tensor:
    return w.sign() * (w.abs() - threshold).clamp(min=0.0)


def by_hand(named: dict[str, Tensor], penalised: set[str], opt) -> dict[str, Tensor]:
    """What SGD and soft thresholding make of parameters, each by its name."""
    lr = {id(p): group["lr"] for group in opt.param_groups for p in group["params"]}
    wanted = {}
    for name, p in named.items():
        t = lr.get(id(p), 0.0) if p.grad is not None else 0.0
        moved = p.detach() - t * (p.grad if t else 0.0)
        wanted[name] = soft(moved, t * ALPHA) if name in penalised else moved
    return wanted


def step_is_that_by_hand(opt, named: dict[str, Tensor], penalised: set[str], seed: int = 0) -> None:
    gradients(list(named.values()), seed)
    wanted = by_hand(named, penalised, opt)
    opt.step()
    for name, p in named.items():
        assert torch.equal(p.detach(), wanted[name]), name


def frozen_left_out(opt, model) -> set[str]:
    model[0].requires_grad_(False)
    for group in opt.param_groups:
        group["params"] = [p for p in group["params"] if p.requires_grad]
    return {"1.weight", "2.weight"}


def cleared(opt, model) -> set[str]:
    opt.param_groups.clear()
    for layer in reversed(model):
        opt.add_param_group({"params": list(layer.parameters()), "lr": 0.25})
    return {"0.weight", "1.weight", "2.weight"}


def reordered(opt, model) -> set[str]:
    opt.param_groups[0]["params"].reverse()
    return {"0.weight", "1.weight", "2.weight"}


def moved(opt, model) -> set[str]:
    opt.param_groups[0]["params"] = [p for p in opt.param_groups[0]["params"] if p is not model[1].weight]
    opt.add_param_group({"params": [matrix(9, (2,)), model[1].weight], "lr": 0.25})
    return {"0.weight", "1.weight", "2.weight"}


def another_list(opt, model) -> set[str]:
    options = {key: value for key, value in opt.param_groups[0].items() if key != "params"}
    opt.param_groups = [{**options, "params": [p], "lr": 0.125} for p in reversed(list(model.parameters()))]
    return {"0.weight", "1.weight", "2.weight"}


def frozen_group_deleted(opt, model) -> set[str]:
    moved(opt, model)
    model[1].weight.requires_grad_(False)
    del opt.param_groups[1]
    return {"0.weight", "2.weight"}


EDITS = [frozen_left_out, cleared, reordered, moved, another_list, frozen_group_deleted]


@pytest.mark.parametrize("edit", EDITS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("stepped", [False, True], ids=["fresh", "stepped"])
@made
def test_after_an_edit_each_parameter_takes_the_step_of_its_name(make, stepped, edit):
    model = net()
    opt = make(SGD(model.parameters(), lr=LR), attach(L1(ALPHA), model))
    named = dict(model.named_parameters())
    if stepped:
        step_is_that_by_hand(opt, named, {"0.weight", "1.weight", "2.weight"})
    penalised = edit(opt, model)
    for k in range(2):
        step_is_that_by_hand(opt, named, penalised, k)


@pytest.mark.parametrize("edit", EDITS, ids=lambda f: f.__name__)
@made
def test_a_bare_penalty_takes_the_matrices_that_there_are(make, edit):
    model = net()
    opt = make(SGD(model.parameters(), lr=LR), L1(ALPHA))
    named = dict(model.named_parameters())
    step_is_that_by_hand(opt, named, edit(opt, model))
    later = matrix(7)
    opt.param_groups[0]["params"].append(later)
    step_is_that_by_hand(opt, {"later": later}, {"later"})


@made
def test_a_parameter_that_was_taken_out_while_frozen_comes_back(make):
    model = net()
    opt = make(SGD(model.parameters(), lr=LR), term := attach(L1(ALPHA), model))
    named = dict(model.named_parameters())
    step_is_that_by_hand(opt, named, frozen_left_out(opt, model))
    assert list(term.parameters) == ["0.weight", "1.weight", "2.weight"]  # it is penalised still, and rests
    model[0].requires_grad_(True)
    opt.add_param_group({"params": list(model[0].parameters()), "lr": 0.125})
    step_is_that_by_hand(opt, named, {"0.weight", "1.weight", "2.weight"})


def group_deleted(opt, model) -> None:
    moved(opt, model)
    del opt.param_groups[1]


def shifted_and_exchanged(opt, model) -> None:
    opt.param_groups[0]["params"] = [matrix(k, p.shape) for k, p in enumerate(opt.param_groups[0]["params"])][2:]


def of_another_shape(opt, model) -> None:
    opt.param_groups[0]["params"][2] = matrix(5, (3, 4))


def taken_out(opt, model) -> None:
    opt.param_groups[0]["params"] = [p for p in opt.param_groups[0]["params"] if p is not model[1].weight]


@pytest.mark.parametrize("edit", [group_deleted, shifted_and_exchanged, of_another_shape, taken_out])
@pytest.mark.parametrize("closure", [False, True], ids=["plain", "closure"])
@made
def test_what_has_gone_is_refused_by_name_before_anything_moves(make, closure, edit):
    model = net()
    term = attach(L1(ALPHA), {"first": model[0].weight, "middle": model[1].weight})
    opt = make(Adam(model.parameters(), lr=LR), term)
    edit(opt, model)
    named = dict(model.named_parameters())
    present = [p for group in opt.param_groups for p in group["params"]]
    give_gradients(present, 0)
    before = values([*named.values(), *present])
    name = "first" if edit is shifted_and_exchanged else "middle"
    for _ in range(2):  # and it stays refused
        with pytest.raises(ValueError, match=rf"'{name}' of shape .* no longer among .* remove_term"):
            opt.step(*([lambda: 0.0] if closure else []))
    assert same(before, [*named.values(), *present])
    assert all(not state for state in opt.state.values())
    assert list(term.parameters) == ["first", "middle"]  # reading raises nothing


@made
def test_exchanged_tensors_are_found_by_position_though_others_have_been_freed(make):
    """As FSDP2 in Accelerate, by its own function: dummies first, while the old tensors are freed."""
    switch = pytest.importorskip("accelerate.utils.fsdp_utils").fsdp2_switch_optimizer_parameters
    params = [matrix(k, shape) for k, shape in enumerate([(4, 3), (3,), (4, 3), (3,), (4, 3)])]
    opt = make(SGD(params, lr=LR), term := attach(L1(ALPHA), {"a": params[2], "b": params[4]}))
    new = {p.data_ptr(): matrix(k + 9, p.shape) for k, p in enumerate(params)}
    group, wanted = opt.param_groups[0], list(new.values())
    for k, p in enumerate(params):
        group["params"][k] = torch.empty(1)
        group["params"][k].data_ptr = p.data_ptr()
    old = term.parameters["a"]
    assert old is params[2]  # in between there is nothing else to tell of
    del params, old, p
    switch(opt, new)
    assert list(term.parameters.values()) == [wanted[2], wanted[4]]
    step_is_that_by_hand(opt, dict(zip("01a3b", wanted, strict=True)), {"a", "b"})


@made
def test_a_frozen_parameter_with_a_gradient_is_not_shrunk(make):
    """torch's own optimizers go on moving it, since they ask for a gradient alone; the penalty leaves it."""
    model = net()
    opt = make(SGD(model.parameters(), lr=LR), attach(L1(ALPHA), model))
    named = dict(model.named_parameters())
    step_is_that_by_hand(opt, named, {"0.weight", "1.weight", "2.weight"})
    model[1].weight.requires_grad_(False)
    before = model[1].weight.detach().clone()
    step_is_that_by_hand(opt, named, {"0.weight", "2.weight"}, 1)
    assert torch.equal(model[1].weight.detach(), before - LR * model[1].weight.grad)
    model[1].weight.requires_grad_(True)
    step_is_that_by_hand(opt, named, {"0.weight", "1.weight", "2.weight"}, 2)
    model.requires_grad_(False)
    step_is_that_by_hand(opt, named, set(), 3)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch.compile's own
def test_edits_and_freezing_between_compiled_steps_are_those_of_eager_ones():
    ends = []
    for compiled in (False, True):
        torch._dynamo.reset()
        params = [matrix(k, dtype=torch.float32) for k in range(3)]
        opt = ProxOptimizer(SGD(params, lr=torch.tensor(LR)), attach(L1(torch.tensor(ALPHA)), params[:2]))
        step = torch.compile(opt.step, backend="eager") if compiled else opt.step
        for k in range(6):
            if k == 2:
                opt.param_groups[0]["params"].reverse()
            params[0].requires_grad_(k != 4)
            gradients(params, k)
            step()
        ends.append(params)
    assert same(*ends)
    assert bool((ends[0][1] == 0).any())


def test_with_masters_parameters_that_are_reordered_or_frozen_keep_their_steps():
    ends = []
    for edited in (False, True):
        params = [matrix(k, dtype=torch.bfloat16) for k in range(3)]
        opt = ProxOptimizer(SGD(params, lr=LR), attach(L1(ALPHA), params[:2]), masters=True)
        for k in range(4):
            give_gradients(params, k)
            if edited:
                opt.param_groups[0]["params"].reverse()
            opt.step()
        params[0].requires_grad_(False)
        master = opt.state[params[0]]["master"].clone()
        gradients(params, 9)
        opt.step()
        assert torch.equal(opt.state[params[0]]["master"], master - LR * params[0].grad.float())  # SGD alone
        ends.append(params)
    assert same(*ends)


def test_the_state_can_be_emptied_and_the_defaults_assigned():
    """The wrapper then goes on as a new one around a new base would."""
    from collections import defaultdict

    params, fresh = [matrix(1)], [matrix(1)]
    opt = ProxOptimizer(Adam(params, lr=LR), L1(ALPHA))
    give_gradients(params, 0)
    opt.step()
    opt.state = defaultdict(dict)
    assert opt.base.state is opt.state
    with torch.no_grad():
        fresh[0].copy_(params[0])
    other = ProxOptimizer(Adam(fresh, lr=LR), L1(ALPHA))
    for k in range(3):
        for o, p in ((opt, params), (other, fresh)):
            give_gradients(p, k)
            o.step()
    assert same(params, fresh)
    opt.defaults = {**opt.defaults, "lr": 0.0625}
    opt.add_param_group({"params": [matrix(2)]})
    assert opt.base.param_groups[1]["lr"] == 0.0625
    groups = opt.param_groups[:1]
    opt.param_groups = groups
    assert opt.base.param_groups is groups


def head(model: nn.Module, out: int, seed: int = 3) -> nn.Linear:
    torch.manual_seed(seed)
    model[2] = nn.Linear(4, out).double()
    return model[2]


@pytest.mark.parametrize("how", ["assign", "head", "shrunk"])
def test_a_term_that_is_added_to_the_loss_follows_its_module(how):
    model = net()
    term = attach(L1(ALPHA), model)
    if how == "assign":
        model.load_state_dict({key: 2 * value for key, value in model.state_dict().items()}, assign=True)
    else:
        head(model, 2 if how == "head" else 1)
    torch.testing.assert_close(term(), L1(ALPHA)(model))
    found = torch.autograd.grad(term(), list(term.parameters.values()))
    torch.testing.assert_close(found, torch.autograd.grad(L1(ALPHA)(model), [layer.weight for layer in model]))
    assert all(a is b.weight for a, b in zip(term.parameters.values(), model, strict=True))
    assert sparsity(term).total == sum(layer.weight.numel() for layer in model)


def test_a_module_that_has_lost_a_parameter_or_has_one_that_does_not_fit_is_told():
    model = net()
    term = attach(L1(ALPHA), model)
    del model[2]
    with pytest.raises(RuntimeError, match=r"no \['2.weight'\] any more .*attach again"):
        term()
    assert "2.weight" in repr(term)
    model = net()
    term = attach(lambda name, p: Weighted(L1(ALPHA), torch.ones_like(p)), model)
    head(model, 5)
    with pytest.raises(ValueError, match=re.escape("'2.weight' of shape (5, 4)")):
        term()


def test_a_parameter_that_is_parametrized_or_pruned_later_is_still_the_terms():
    model = net()
    term = attach(L1(ALPHA), model)
    w = model[0].weight
    before = term().detach()
    parametrize.register_parametrization(model[0], "weight", nn.Identity())
    prune.identity(model[1], "weight")
    assert term.parameters["0.weight"] is w
    torch.testing.assert_close(term().detach(), before)


@pytest.mark.parametrize("how", ["assign", "head", "shrunk"])
@made
def test_an_optimizer_of_the_new_tensors_steps_them_by_the_old_term(make, how):
    model = net()
    term = attach(L1(ALPHA), model)
    old = make(SGD(model.parameters(), lr=LR), term)
    step_is_that_by_hand(old, dict(model.named_parameters()), set(term.parameters))
    if how == "assign":
        model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)
    else:
        head(model, 2 if how == "head" else 1)
    opt = make(SGD(model.parameters(), lr=0.25), term)
    step_is_that_by_hand(opt, dict(model.named_parameters()), {"0.weight", "1.weight", "2.weight"})


@made
def test_a_new_head_in_the_same_optimizer_takes_the_place_of_the_old_one(make):
    for edit in ("added", "exchanged"):
        model = net()
        opt = make(SGD(model.parameters(), lr=LR), attach(L1(ALPHA), model))
        step_is_that_by_hand(opt, dict(model.named_parameters()), {"0.weight", "1.weight", "2.weight"})
        old = list(model[2].parameters())
        new = list(head(model, 1).parameters())
        if edit == "added":
            opt.add_param_group({"params": new})
        else:
            swap = {id(p): q for p, q in zip(old, new, strict=True)}
            opt.param_groups[0]["params"] = [swap.get(id(p), p) for p in opt.param_groups[0]["params"]]
        step_is_that_by_hand(opt, dict(model.named_parameters()), {"0.weight", "1.weight", "2.weight"})


@made
def test_a_model_moves_by_swapped_tensors(make):
    """As `Module.to` moves what FSDP2 has cut, and every tensor under this flag; torch refuses any weak reference."""
    model = net()
    opt = make(SGD(model.parameters(), lr=LR), attach(L1(ALPHA), model))
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        for dtype in (torch.float32, torch.float64):
            give_gradients(list(model.parameters()), 0)
            clip_grad_norm_(opt, 0.1)
            opt.step()
            model.to(dtype)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)
    step_is_that_by_hand(opt, dict(model.named_parameters()), {"0.weight", "1.weight", "2.weight"})


@made
def test_a_new_tensor_that_the_penalty_does_not_fit_is_refused_by_name(make):
    model = net()
    term = attach(lambda name, p: Weighted(L1(ALPHA), torch.ones_like(p)), model)
    opt = make(SGD(model.parameters(), lr=LR), term)
    opt.param_groups[0]["params"][-2:] = list(head(model, 5).parameters())
    before = values(model.parameters())
    give_gradients(list(model.parameters()), 0)
    with pytest.raises(ValueError, match=re.escape("'2.weight' of shape (5, 4)")):
        opt.step()
    assert same(before, list(model.parameters()))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_a_copy_after_an_edit_steps_as_the_original(copied):
    model = net()
    opt = ProxOptimizer(SGD(model.parameters(), lr=LR), attach(Group(L1(ALPHA), by=rows), model))
    frozen_left_out(opt, model)
    twin, other = copied((model, opt))
    for m, o in ((model, opt), (twin, other)):
        give_gradients(list(m.parameters()), 0)
        o.step()
    assert same(list(model.parameters()), list(twin.parameters()))


def test_reading_a_term_changes_nothing():
    model = net()
    opt = ProxOptimizer(SGD(model.parameters(), lr=LR), term := attach(L1(ALPHA), model))
    give_gradients(list(model.parameters()), 0)
    known = dict(term.parts[0].known)
    opt.param_groups[0]["params"] = [matrix(k, p.shape) for k, p in enumerate(model.parameters())]
    assert term.parameters["0.weight"] is opt.param_groups[0]["params"][0]
    give_gradients(opt.param_groups[0]["params"], 0)
    assert violation(term) > 0
    assert term.parts[0].known == known


@made
def test_a_weight_that_is_tied_later_counts_once(make):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).double()
    term = attach(L1(ALPHA), model)
    model[1].weight = model[0].weight
    torch.testing.assert_close(term(), L1(ALPHA)(model))
    opt = make(SGD(model.parameters(), lr=LR), term)
    step_is_that_by_hand(opt, dict(model.named_parameters()), {"0.weight"})
    assert list(term.parameters) == ["0.weight"]


def test_copies_between_an_exchange_and_the_next_step_have_the_new_tensors():
    params = [matrix(1), matrix(2)]
    for term in (L1(ALPHA), attach(L1(ALPHA), params)):
        opt = ProxOptimizer(SGD(params, lr=LR), term)
        opt.param_groups[0]["params"] = [matrix(5), matrix(6)]
        for other in (copy.copy(opt), copy.deepcopy(opt), opt):
            found = zip(other.terms[0].parameters.values(), other.param_groups[0]["params"], strict=True)
            assert all(p is q for p, q in found)


def test_a_parameter_that_is_exchanged_for_a_dense_one_is_no_lost_zero():
    """The warning that zeros were undone between steps is of the tensor that was stepped."""
    p = matrix(1)
    opt = ProxOptimizer(SGD([p], lr=LR), term := attach(L1(100.0), {"w": p}))
    for k in range(4):
        give_gradients([p], k)
        opt.step()
        p.data = p.data.clone()  # someone writes, and keeps the zeros
        with torch.no_grad():
            p.mul_(1.0)
    assert bool((p == 0).all())
    new = matrix(2)
    opt.param_groups[0]["params"] = [new]
    give_gradients([new], 5)
    opt.step()
    assert term.parameters["w"] is new
