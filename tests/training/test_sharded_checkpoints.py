"""torch.distributed.checkpoint under FSDP2: killed runs, other numbers of processes, strengths and schedules."""

from __future__ import annotations

import shutil
import warnings

import pytest
import torch
from processes import torchrun
from sharded_checkpoints import STEPS, last, made, train

from torchreg import L1, attach

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo"),
    pytest.mark.filterwarnings("ignore:.*torch.distributed is disabled, unavailable or uninitialized"),
]
KILLED = 4


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One run that is not interrupted, and one that is killed while checkpoint 4 is written and then goes on."""
    out = tmp_path_factory.mktemp("runs")
    calm = torchrun("sharded_checkpoints.py", 2, out / "calm", out / "calm.pt")
    assert calm.returncode == 0, calm.stderr[-3000:]
    killed = torchrun("sharded_checkpoints.py", 2, out / "killed", out / "killed.pt", "--kill", KILLED)
    assert killed.returncode != 0
    shutil.copytree(out / "killed", out / "left")
    again = torchrun("sharded_checkpoints.py", 2, out / "killed", out / "killed.pt")
    assert again.returncode == 0, again.stderr[-3000:]
    return out


def test_a_run_killed_while_it_saves_goes_on_bit_for_bit(runs):
    calm, killed = torch.load(runs / "calm.pt"), torch.load(runs / "killed.pt")
    assert last(runs / "left") == killed["start"] == KILLED - 1
    assert calm["start"] == 0
    assert calm["alpha"] == killed["alpha"] == 0.2
    assert any(bool((w == 0).all(0).any()) for w in calm["weights"].values() if w.dim() == 2)
    for name, w in calm["weights"].items():
        assert torch.equal(w, killed["weights"][name])


@pytest.mark.parametrize("processes", [1, 4])
def test_a_checkpoint_of_two_processes_goes_on_with_others(runs, processes, tmp_path):
    shutil.copytree(runs / "left", tmp_path / "left")
    if processes == 1:
        train(tmp_path / "left", tmp_path / "weights.pt", 0, 1)
    else:
        run = torchrun("sharded_checkpoints.py", processes, tmp_path / "left", tmp_path / "weights.pt")
        assert run.returncode == 0, run.stderr[-3000:]
    calm, found = torch.load(runs / "calm.pt"), torch.load(tmp_path / "weights.pt")
    assert found["start"] == KILLED - 1
    for name, w in calm["weights"].items():
        # the mean over processes adds up in another order
        torch.testing.assert_close(found["weights"][name], w, rtol=1e-9, atol=1e-12)
        assert torch.equal(found["weights"][name] == 0, w == 0)


def test_a_terms_own_state_says_what_it_changes_and_refuses_another_term():
    _, opt, term, _ = made(1)
    saved = term.state_dict()
    other, *_ = made(1)
    fresh = attach(term.parts[0].penalty.with_alpha(0.5), other)
    with pytest.warns(UserWarning, match=r"alpha = 0 .*it was 0.5"):
        fresh.load_state_dict(saved)
    assert fresh.alpha == 0.0
    with pytest.raises(ValueError, match="penalises"):
        attach(L1(0.5), other).load_state_dict(saved)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        term.load_state_dict(saved)
    assert opt.terms[0].scheduler.count == 0 < STEPS
