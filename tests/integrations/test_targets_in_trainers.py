"""A target in Lightning, Accelerate and transformers is the plain loop, bit for bit, and goes on after a load."""

from __future__ import annotations

import warnings

import pytest
import torch
from optimizer_catalog import same
from torch import nn
from trainers import BATCHES, MAKES, batches, net

from torchreg import L1, ProxOptimizer, TargetSparsity, attach, attach_to, sparsity


@pytest.fixture(autouse=True)
def fresh():
    """Accelerate, on which Trainer stands too, keeps its settings in singletons."""
    yield
    state = pytest.importorskip("accelerate").state
    state.AcceleratorState._reset_state(reset_partial_state=True)
    state.GradientState._reset_state()


STEPS, ZEROS = 2 * BATCHES, 28  # of 40 weights


def targeted(model: nn.Module, make="AdamW", *, hook: bool = False):
    term = attach(L1(0.0), model)
    base = MAKES[make](model.parameters())
    opt = base if hook else ProxOptimizer(base, term)
    if hook:
        attach_to(base, term)
    return opt, TargetSparsity(term, 0.7, steps=STEPS)


def plain(make: str, epochs: int = 2) -> tuple[list[nn.Parameter], TargetSparsity]:
    model = net()
    opt, target = targeted(model, make)
    for x, y in batches() * epochs:
        opt.zero_grad()
        (model(x) - y).square().mean().backward()
        opt.step()
    return list(model.parameters()), target


def check(model: nn.Module, target: TargetSparsity, make: str) -> None:
    wanted, lone = plain(make)
    assert same(wanted, list(model.parameters()))
    assert target.count == STEPS
    assert target.history == lone.history
    assert sparsity(target.term).zeros == ZEROS


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning", "ignore:.*does not have many workers")
@pytest.mark.parametrize(("make", "hook"), [("AdamW", False), ("SGD", False), ("AdamW", True)])
def test_lightning(make, hook, tmp_path):
    lightning = pytest.importorskip("test_lightning")

    class Model(lightning.Model):
        def configure_optimizers(self):
            opt, self.target = targeted(self.net, make, hook=hook)
            return opt

    model = Model(MAKES[make])
    lightning.fit(model, tmp_path, epochs=2)
    check(model.net, model.target, make)
    trainer = lightning.fit(half := Model(MAKES[make]), tmp_path)
    assert half.target.count == BATCHES
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    resumed = Model(MAKES[make])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The checkpoint")
        lightning.fit(resumed, tmp_path, epochs=2, ckpt=tmp_path / "one.ckpt")
    check(resumed.net, resumed.target, make)


@pytest.mark.parametrize("make", MAKES)
def test_accelerate(make, tmp_path):
    accelerate = pytest.importorskip("accelerate")

    def run(start: int, stop: int):
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = accelerate.Accelerator(cpu=True)
        model = net()
        opt, target = targeted(model, make)
        model, opt = accelerator.prepare(model, opt)
        if start:
            accelerator.load_state(str(tmp_path / "state"))
        assert target.count == start
        for x, y in (batches() * 2)[start:stop]:
            accelerator.backward((model(x) - y).square().mean())
            opt.step()
            opt.zero_grad()
        accelerator.save_state(str(tmp_path / "state"))
        return model, target

    for start, stop in ((0, STEPS), (0, 9), (9, STEPS)):
        model, target = run(start, stop)
        if stop == STEPS:
            check(model, target, make)


def test_transformers(tmp_path):
    trained = pytest.importorskip("test_transformers")

    def run(folder, resume=None):
        model = trained.model()
        opt = ProxOptimizer(torch.optim.AdamW(model.parameters(), lr=0.02), term := attach(L1(0.0), model))
        target = TargetSparsity(term, 0.7, steps=trained.STEPS, begin=0.0)
        trained.trainer(model, folder, optimizers=(opt, None)).train(resume_from_checkpoint=resume)
        assert target.count == trained.STEPS
        found = sparsity(term)
        assert found.zeros == -(-7 * found.total // 10)
        return model, target

    whole, target = run(tmp_path)
    again, resumed = run(tmp_path, str(tmp_path / "checkpoint-4"))
    assert same(list(whole.parameters()), list(again.parameters()))
    assert target.history == resumed.history
