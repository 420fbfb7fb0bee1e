"""Accelerate trains as the plain loop does, bit for bit: accumulation, clipping, bf16, checkpoints."""

from __future__ import annotations

import copy

import pytest
from optimizer_catalog import same
from trainers import BATCHES, MAKES, batches, moved, net, penalised, plain

from torchreg import ProxOptimizer, clip_grad_norm_, sparsity

accelerate = pytest.importorskip("accelerate")


@pytest.fixture(autouse=True)
def fresh():
    """Accelerate keeps its settings in singletons."""
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


def accelerated(make, every: int, clip: float | None, autocast: bool, told: bool = False):
    accelerator = accelerate.Accelerator(
        cpu=True, gradient_accumulation_steps=every, mixed_precision="bf16" if autocast else "no"
    )
    model = net()
    opt = ProxOptimizer(make(model.parameters()), term := penalised(model))
    ramp, decay = moved(term, opt)
    model, opt, decay = accelerator.prepare(model, opt, decay)
    for x, y in batches():
        with accelerator.accumulate(model):
            accelerator.backward((model(x).float() - y).square().mean())
            if clip is not None and accelerator.sync_gradients:
                if told:
                    accelerator.unscale_gradients()
                    clip_grad_norm_(opt, clip)
                else:
                    accelerator.clip_grad_norm_(model.parameters(), clip)
            opt.step()
            decay.step()
            opt.zero_grad()
    assert opt.optimizer.terms == [term]
    return list(model.parameters()), term, ramp


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize(("clip", "told"), [(None, False), (0.5, False), (0.5, True)], ids=["", "clipped", "told"])
@pytest.mark.parametrize("every", [1, 3], ids=["", "accumulated"])
@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
@pytest.mark.usefixtures("every_control")
def test_the_weights_are_those_of_the_plain_loop(make, every, clip, told, autocast):
    wanted, lone, count = plain(make, every, clip, autocast=autocast, told=told)
    found, term, ramp = accelerated(make, every, clip, autocast, told)
    assert same(wanted, found)
    assert ramp.count == count.count == BATCHES // every
    assert term.alpha == lone.alpha > 0
    assert sparsity(term) == sparsity(lone)


@pytest.mark.usefixtures("every_control")
def test_a_saved_run_goes_on_bit_for_bit(tmp_path):
    def run(start: int, stop: int, load: bool, save: bool):
        accelerator = accelerate.Accelerator(cpu=True)
        model = net()
        opt = ProxOptimizer(MAKES["AdamW"](model.parameters()), term := penalised(model))
        ramp, decay = moved(term, opt)
        model, opt, decay = accelerator.prepare(model, opt, decay)
        if load:
            accelerator.load_state(str(tmp_path / "state"))
        assert ramp.count == start
        for x, y in batches()[start:stop]:
            accelerator.backward((model(x) - y).square().mean())
            opt.step()
            decay.step()
            opt.zero_grad()
        if save:
            accelerator.save_state(str(tmp_path / "state"))
        return copy.deepcopy([p.detach() for p in model.parameters()]), term

    whole, term = run(0, BATCHES, load=False, save=False)
    run(0, 5, load=False, save=True)
    resumed, again = run(5, BATCHES, load=True, save=False)
    assert same(whole, resumed)
    assert term.alpha == again.alpha
    assert sparsity(again).zeros > 0
