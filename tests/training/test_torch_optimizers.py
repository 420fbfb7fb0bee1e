"""Every configuration that torch's own optimizer tests list: at alpha 0 nothing changes, and checkpoints go on."""

import copy
import sys
import types
import unittest
import warnings
from functools import cache

import pytest
import torch
from torch.nn import Parameter

from torchreg import L1, MCP, Group, ProxOptimizer, Towards, attach, columns, rows

NAMES = [
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "Adamax",
    "AdamW",
    "ASGD",
    "LBFGS",
    "Muon",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SGD",
    "SparseAdam",
]
DECOUPLED = {"Adafactor", "ASGD", "Muon", "Rprop"}  # whose own metric is not known
REFUSED = {"LBFGS", "SparseAdam"}
STEPS = 4


@cache
def listed():
    """torch's table of optimizers, by name; it asks for expecttest, of which it needs one class to inherit from."""
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patched:
        warnings.simplefilter("ignore")
        if "expecttest" not in sys.modules:
            stand_in = types.ModuleType("expecttest")
            stand_in.TestCase = unittest.TestCase
            patched.setitem(sys.modules, "expecttest", stand_in)
        table = pytest.importorskip("torch.testing._internal.common_optimizers").optim_db
    return {info.optim_cls.__name__: info for info in table}


def configurations(name):
    """Each configuration in each implementation that runs on the CPU."""
    info = listed()[name]
    for options in info.optim_inputs_func(device="cpu"):
        for kind in info.supported_impls:
            if kind in ("foreach", "fused") and (kind == "foreach" or "cpu" in info.supports_fused_on):
                yield options.kwargs | {kind: True}
        yield options.kwargs


def parameters(name):
    draw = torch.Generator().manual_seed(0)
    shapes = [(4, 3), (3, 5)] if name == "Muon" else [(4, 3), (2, 3, 2), (5,)]
    return {str(place): Parameter(torch.randn(shape, generator=draw)) for place, shape in enumerate(shapes)}


def steps(optimizer, named, first, last):
    for number in range(first, last):
        draw = torch.Generator().manual_seed(number)
        for p in named.values():
            p.grad = torch.randn(p.shape, generator=draw)
        optimizer.step()


def built(name, options, named, *penalties):
    """The optimizer on its parameters, in a ProxOptimizer where there are penalties."""
    base = listed()[name].optim_cls(list(named.values()), **copy.deepcopy(options))
    if not penalties:
        return base
    metric = "decoupled" if name in DECOUPLED else "auto"
    terms = [attach(p, {key: w}) for p, (key, w) in zip(penalties, named.items(), strict=False)]
    return ProxOptimizer(base, *terms, metric=metric)


NOTHING = {
    "L1": (L1(0.0), L1(0.0), L1(0.0)),
    "groups": (Group(L1(0.0), by=rows), Group(L1(0.0), by=columns)),
    "MCP": (MCP(0.0), MCP(0.0)),
}


def test_the_list_is_torchs():
    assert set(listed()) == set(NAMES)


@pytest.mark.parametrize("penalties", NOTHING.values(), ids=NOTHING)
@pytest.mark.parametrize("name", [name for name in NAMES if name not in REFUSED])
def test_at_alpha_0_it_is_the_bare_optimizer(name, penalties):
    tried = 0
    for options in configurations(name):
        if options.get("maximize"):  # refused, which test_optimizer_refusals says
            continue
        bare, wrapped = parameters(name), parameters(name)
        for named in (bare, wrapped):
            named["0"].data[1, 2] = torch.inf
        steps(built(name, options, bare), bare, 0, STEPS)
        steps(built(name, options, wrapped, *penalties), wrapped, 0, STEPS)
        for key, expected in bare.items():
            torch.testing.assert_close(wrapped[key], expected, rtol=0, atol=0, equal_nan=True, msg=f"{options}, {key}")
        tried += 1
    assert tried >= 3


@pytest.mark.parametrize("name", [name for name in NAMES if name not in REFUSED])
def test_a_fresh_pair_goes_on_as_the_saved_one(name):
    for options in configurations(name):
        if options.get("maximize"):
            continue
        whole, first = parameters(name), parameters(name)
        penalties = [L1(0.05), Group(L1(0.05), by=rows)]
        steps(built(name, options, whole, *penalties), whole, 0, 2 * STEPS)
        half = built(name, options, first, *penalties)
        steps(half, first, 0, STEPS)
        second = {key: Parameter(p.detach().clone()) for key, p in first.items()}
        fresh = built(name, options, second, *penalties)
        fresh.load_state_dict(copy.deepcopy(half.state_dict()))
        steps(fresh, second, STEPS, 2 * STEPS)
        for key, expected in whole.items():
            assert torch.equal(second[key], expected), (options, key)


UNTOUCHED = {
    "rows": Group(L1(0.0), by=rows),
    "columns": Group(L1(0.0), by=columns),
    "MCP": Group(MCP(0.0), by=rows),
    "sparse groups": Group(L1(0.0), by=rows) + L1(0.0),
    "a reference": Towards(L1(0.0), torch.zeros(3, 3)),
}


@pytest.mark.parametrize("step", [0.1, torch.tensor(0.1), torch.rand(3, 3) + 0.1], ids=["number", "0-d", "metric"])
@pytest.mark.parametrize("penalty", UNTOUCHED.values(), ids=UNTOUCHED)
def test_alpha_0_leaves_infinite_weights(penalty, step):
    w = torch.tensor([[1.0, 2.0, torch.inf], [3.0, 0.0, -1.0], [-torch.inf, torch.inf, 0.0]])
    assert torch.equal(penalty.prox(w, step), w)
    changed = w.clone()
    penalty.prox_([changed], [step])
    assert torch.equal(changed, w)
