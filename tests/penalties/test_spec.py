"""Penalties are frozen values: equal by content, described in JSON, changed only into new ones."""

import copy
import dataclasses
import json
import math
import pickle

import pytest
import torch
from catalog import CATALOG, OwnLogSum, Pinball
from helpers import every, normal

import torchreg
from torchreg import L1, L2, MCP, Group, Towards, Weighted, columns, labels, rows


@every()
def test_equal_penalties_have_equal_spec_and_hash(case):
    one, other = case.make(), case.make()
    assert one is not other
    assert one == other
    assert hash(one) == hash(other)
    assert one.spec() == other.spec() == json.loads(json.dumps(one.spec()))
    assert pickle.loads(pickle.dumps(one)) == one == copy.deepcopy(one)


def test_different_penalties_differ():
    specs = [json.dumps(case.make().spec(), sort_keys=True) for case in CATALOG]
    assert len(set(specs)) == len(specs)
    assert len({case.make() for case in CATALOG}) == len(CATALOG)
    assert L1(0.1) != L2(0.1)
    assert L1(0.1) != L1(math.nextafter(0.1, 1.0))
    assert L1(0.1) != 0.1
    assert MCP(0.1, 3.0) != MCP(0.1, 2.0)
    assert Group(L1(0.1), rows) != Group(L1(0.1), columns) != Group(L1(0.1), columns, weights=1.0)


def test_tensors_enter_by_content():
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0])
    assert Weighted(L1(0.1), a) == Weighted(L1(0.1), a.clone()) != Weighted(L1(0.1), b)
    assert Weighted(L1(0.1), a) != Weighted(L1(0.1), a.double()) != Weighted(L1(0.1), a[None])
    assert Towards(L1(0.1), a) == Towards(L1(0.1), a.repeat(2)[::2][[0, 1]] * 0 + a) != Towards(L1(0.1), b)
    assert Group(L1(0.1), labels(torch.tensor([0, 1]))) == Group(L1(0.1), labels(torch.tensor([0, 1])))
    assert Group(L1(0.1), labels(torch.tensor([0, 1]))) != Group(L1(0.1), labels(torch.tensor([1, 0])))
    assert L1(torch.tensor(0.1)) == L1(torch.tensor(0.1)) != L1(torch.tensor(0.2))


def test_a_strided_tensor_is_described_as_its_copy():
    for count in (1, 2):
        strided = torch.arange(6.0)[::3][:count]
        assert Weighted(L1(0.1), strided) == Weighted(L1(0.1), strided.clone(memory_format=torch.contiguous_format))
        assert L1(0.1) + Weighted(L2(0.1), strided) == L1(0.1) + Weighted(L2(0.1), strided.contiguous())


def test_numbers_of_any_kind_are_one_number():
    assert L1(1) == L1(1.0) == L1(True + 0)
    assert MCP(1, 3) == MCP(1.0, 3.0)


@every(constraint=False)
def test_with_alpha_is_a_new_object_and_changes_nothing(case):
    penalty = case.make()
    before, w = penalty.spec(), normal(case.shape).abs()
    stronger = penalty.with_alpha(7.0)
    assert float(stronger.alpha) == 7.0
    assert type(stronger) is type(penalty)
    assert stronger != penalty
    assert penalty.spec() == before
    assert stronger.with_alpha(penalty.alpha) == penalty
    assert torch.allclose(stronger.with_alpha(penalty.alpha).prox(w, 0.7), penalty.prox(w, 0.7), rtol=0, atol=0)


@every(constraint=False)
def test_alpha_can_be_a_tensor(case):
    penalty, w = case.make(), normal(case.shape).abs()
    as_tensor = penalty.with_alpha(torch.tensor(float(penalty.alpha), dtype=torch.float64))
    assert torch.allclose(as_tensor.prox(w, 0.7), penalty.prox(w, 0.7), rtol=1e-13, atol=1e-15)
    assert torch.allclose(as_tensor.value(w), penalty.value(w), rtol=1e-13, equal_nan=True)
    json.dumps(as_tensor.spec())


@every()
def test_penalties_are_frozen(case):
    penalty = case.make()
    for field in dataclasses.fields(penalty):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(penalty, field.name, 1.0)


def test_a_penalty_keeps_no_hold_of_the_callers_tensors():
    factors, reference, index = torch.ones(3), torch.zeros(3), torch.tensor([0, 0, 1])
    penalties = [
        Weighted(L1(1.0), factors),
        Towards(L1(1.0), reference),
        Group(L1(1.0), labels(index), weights=factors[:2]),
    ]
    specs = [p.spec() for p in penalties]
    factors += 1.0
    reference += 1.0
    index += 1
    assert [p.spec() for p in penalties] == specs


@every()
def test_repr_names_every_field_and_reads_back_where_it_holds_no_tensor(case):
    penalty = case.make()
    assert type(penalty).__name__ in repr(penalty) or " + " in repr(penalty)
    if "tensor" not in repr(penalty) and "labels" not in repr(penalty):
        assert (
            eval(repr(penalty), {**vars(torchreg), "OwnLogSum": OwnLogSum, "Pinball": Pinball, "inf": math.inf})
            == penalty
        )
    else:
        assert "tensor(" in repr(penalty) or "labels(" in repr(penalty)
        assert len(repr(penalty)) < 200  # shapes, not contents


@every()
def test_check_accepts_the_shape_it_was_made_for(case):
    penalty = case.make()
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        assert penalty.check(normal(case.shape).to(dtype)) is None
