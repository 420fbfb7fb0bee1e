"""One vocabulary of penalties for every command line and configuration."""

import pytest
import torch

import torchreg
from torchreg import L1, L1L2, Group, columns, labels
from torchreg.cli.argument_types import penalty_name
from torchreg.cli.demo.choices import PENALTIES as OF_DEMO
from torchreg.cli.fit.options import FORMULAS as OF_FIT
from torchreg.penalties import Penalty, by_name
from torchreg.penalties.by_name import OLD_NAMES, PENALTY_NAMES
from torchreg.penalties.constraint import Constraint


@pytest.mark.parametrize("name", PENALTY_NAMES)
def test_a_name_is_that_of_its_class_or_of_its_groups_and_carries_alpha(name):
    found = by_name(name, 0.25)
    assert found.alpha == 0.25
    assert by_name(name).with_alpha(0.25) == found
    bare = name.replace("_", "").removesuffix("rows") or "group"
    assert type(found).__name__.lower() == ("group" if isinstance(found, Group) else bare)


def test_all_penalties_with_an_alpha_alone_have_a_name():
    """Constraints have none, and a penalty that the prox does not know is no choice for a command."""
    simple = set()
    for name in torchreg.__all__:
        kind = getattr(torchreg, name)
        if isinstance(kind, type) and issubclass(kind, Penalty) and not issubclass(kind, Constraint):
            try:
                one = kind(1.0)
                one.prox(torch.ones(3, 3), 0.1)
                simple |= {type(one)} if getattr(one, "alpha", None) == 1.0 else set()
            except (TypeError, ValueError, NotImplementedError):
                continue
    named = {type(by_name(name)) for name in PENALTY_NAMES}
    assert simple - named == set()


def test_options_are_those_of_their_penalty():
    assert by_name("l1l2", 2.0, l1_ratio=0.3) == L1L2(2.0, l1_ratio=0.3)
    assert by_name("group", 2.0, by=columns) == Group(L1(2.0), by=columns)
    by = labels(torch.tensor([0, 0, 1]))
    assert by_name("sparse_group", 2.0, by=by) == Group(L1(2.0), by=by) + L1(2.0)
    with pytest.raises(ValueError, match="needs by"):
        by_name("group")
    with pytest.raises(ValueError, match="takes no by"):
        by_name("l1", by=columns)
    with pytest.raises(ValueError, match="takes no l1_ratio"):
        by_name("l2", l1_ratio=0.5)
    with pytest.raises(ValueError, match="did you mean 'scad'"):
        by_name("scda")


def test_commands_speak_this_language_and_understand_their_older_words(capsys):
    known = {*PENALTY_NAMES, "group", "sparse_group"}
    assert {*OF_DEMO, *OF_FIT} <= known
    for old, new in OLD_NAMES.items():
        assert new in known
        assert penalty_name(old) == new
        assert f"{old} is called {new} now" in capsys.readouterr().err
    assert penalty_name("l1") == "l1"
    assert capsys.readouterr().err == ""
