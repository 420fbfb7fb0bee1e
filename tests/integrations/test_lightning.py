"""Lightning trains as the plain loop does, bit for bit; its checkpoints go on, and the callback logs."""

from __future__ import annotations

import csv
import logging
import warnings
from pathlib import Path

import pytest
import torch
from optimizer_catalog import same
from torch import nn
from trainers import BATCHES, MAKES, batches, moved, net, penalised, plain

from torchreg import ProxOptimizer, attach_to, penalty_metrics, sparsity

L = pytest.importorskip("lightning.pytorch")
integration = pytest.importorskip("torchreg.integrations.lightning")
PenaltyLogger, CopyZeros = integration.PenaltyLogger, integration.CopyZeros
callbacks_of = pytest.importorskip("lightning.pytorch.callbacks")
CSVLogger = pytest.importorskip("lightning.pytorch.loggers").CSVLogger
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),  # Lightning's use of torch's pytrees
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]


class Model(L.LightningModule):
    def __init__(self, make, manual: bool = False, hook: bool = False) -> None:
        super().__init__()
        self.net, self.make, self.hook = net(), make, hook
        self.automatic_optimization = not manual

    def training_step(self, batch, index):
        x, y = batch
        loss = (self.net(x) - y).square().mean()
        if not self.automatic_optimization:
            opt = self.optimizers()
            opt.zero_grad()
            self.manual_backward(loss)
            opt.step()
            self.lr_schedulers().step()
        return loss

    def configure_optimizers(self):
        base = self.make(self.net.parameters())
        self.term = penalised(self.net)
        opt = base if self.hook else ProxOptimizer(base, self.term)
        if self.hook:
            attach_to(base, self.term)
        self.ramp, decay = moved(self.term, opt)
        return {"optimizer": opt, "lr_scheduler": {"scheduler": decay, "interval": "step"}}


def fit(model: Model, tmp_path, *, epochs: int = 1, ckpt=None, **options) -> L.Trainer:
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **{"logger": False, "enable_checkpointing": False, **options},
    )
    loader = torch.utils.data.DataLoader(batches(), batch_size=None)
    trainer.fit(model, loader, ckpt_path=ckpt, weights_only=False)
    return trainer


@pytest.mark.parametrize("clip", [None, 0.5], ids=["", "clipped"])
@pytest.mark.parametrize("every", [1, 3], ids=["", "accumulated"])
@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
@pytest.mark.usefixtures("every_control")
def test_automatic_optimisation_is_the_plain_loop(make, every, clip, tmp_path):
    wanted, lone, count = plain(make, every, clip)
    model = Model(make)
    fit(model, tmp_path, accumulate_grad_batches=every, gradient_clip_val=clip)
    assert same(wanted, list(model.net.parameters()))
    assert model.ramp.count == count.count == BATCHES // every
    assert sparsity(model.term) == sparsity(lone)


class Clipping(Model):
    configure_gradient_clipping = integration.configure_gradient_clipping


@pytest.mark.parametrize("hook", [False, True], ids=["wrapped", "attached"])
def test_clipping_that_the_penalty_is_told_of(hook, tmp_path):
    wanted, lone, _ = plain(MAKES["AdamW"], 1, 0.5, told=True)
    model = Clipping(MAKES["AdamW"], hook=hook)
    fit(model, tmp_path, gradient_clip_val=0.5)
    assert same(wanted, list(model.net.parameters()))
    assert not same(wanted, plain(MAKES["AdamW"], 1, 0.5)[0])
    assert sparsity(model.term) == sparsity(lone)
    by_value = Clipping(MAKES["SGD"]), Model(MAKES["SGD"])
    for each in by_value:
        fit(each, tmp_path, gradient_clip_val=0.1, gradient_clip_algorithm="value")
    assert same(*(list(each.net.parameters()) for each in by_value))


@pytest.mark.parametrize("kind", ["manual", "hook"])
@pytest.mark.usefixtures("every_control")
def test_manual_optimisation_and_attach_to_are_the_plain_loop(kind, tmp_path):
    wanted, lone, _ = plain(MAKES["AdamW"])
    model = Model(MAKES["AdamW"], manual=kind == "manual", hook=kind == "hook")
    fit(model, tmp_path)
    assert same(wanted, list(model.net.parameters()))
    assert model.ramp.count == BATCHES
    assert sparsity(model.term) == sparsity(lone)
    assert sparsity(lone).zeros > 0


@pytest.mark.usefixtures("every_control")
def test_a_checkpoint_goes_on_bit_for_bit(tmp_path):
    wanted, lone, _ = plain(MAKES["AdamW"], epochs=2)
    trainer = fit(Model(MAKES["AdamW"]), tmp_path)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    resumed = Model(MAKES["AdamW"])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The checkpoint")
        fit(resumed, tmp_path, epochs=2, ckpt=tmp_path / "one.ckpt")
    assert same(wanted, list(resumed.net.parameters()))
    assert resumed.ramp.count == 2 * BATCHES
    assert resumed.term.alpha == lone.alpha


def test_the_callback_logs_every_so_many_steps(tmp_path):
    found = []

    class Watching(PenaltyLogger):
        def on_train_batch_end(self, trainer, pl_module, *args, **kwargs) -> None:
            super().on_train_batch_end(trainer, pl_module, *args, **kwargs)
            logged = {key: float(value) for key, value in trainer.callback_metrics.items()}
            if logged and trainer.global_step == self._last:
                now = {f"penalty/{key}": value for key, value in penalty_metrics(*self.terms).items()}
                found.append((trainer.global_step, logged == pytest.approx(now, rel=1e-6)))  # float32 in Lightning

    model = Model(MAKES["AdamW"])
    fit(model, tmp_path, callbacks=[Watching(every_n_steps=5)])
    assert [step for step, _ in found] == [5, 10]
    assert all(alike for _, alike in found)


class Two(L.LightningModule):
    """Two networks, each with an optimizer and a penalty of its own, as a GAN has them."""

    def __init__(self) -> None:
        super().__init__()
        self.nets = nn.ModuleList([net(), net()])
        self.automatic_optimization = False

    def training_step(self, batch, index):
        x, y = batch
        for model, opt, decay in zip(self.nets, self.optimizers(), self.lr_schedulers(), strict=True):
            opt.zero_grad()
            self.manual_backward((model(x) - y).square().mean())
            opt.step()
            decay.step()

    def configure_optimizers(self):
        found = []
        for model, make in zip(self.nets, MAKES.values(), strict=True):
            opt = ProxOptimizer(make(model.parameters()), term := penalised(model))
            _, decay = moved(term, opt)
            found.append({"optimizer": opt, "lr_scheduler": decay})
        return found


def test_several_optimizers_are_each_their_own_plain_loop(tmp_path):
    model, logger = Two(), PenaltyLogger(every_n_steps=24)
    trainer = fit(model, tmp_path, callbacks=[logger])
    for trained, make in zip(model.nets, MAKES.values(), strict=True):
        assert same(plain(make)[0], list(trained.parameters()))
    assert len(logger.terms) == 2
    assert {"penalty/alpha_0", "penalty/alpha_1"} <= set(trainer.callback_metrics)


def test_the_callback_wants_terms_and_a_positive_number(tmp_path):
    with pytest.raises(ValueError, match="at least 1, got 0"):
        PenaltyLogger(every_n_steps=0)
    with pytest.raises(ValueError, match="give the terms"):
        fit(Model(MAKES["AdamW"], hook=True), tmp_path, callbacks=[PenaltyLogger()])


def test_the_callback_follows_the_terms_of_each_run(tmp_path):
    logger, models = PenaltyLogger(every_n_steps=5), (Model(MAKES["AdamW"]), Model(MAKES["AdamW"]))
    for model in models:
        fit(model, tmp_path, callbacks=[logger])
        assert logger.terms == [model.term]


class Clock(L.Callback):
    """What is true after each batch, by the step on a logger's axis."""

    def __init__(self) -> None:
        self.truth: dict[int, dict[str, float]] = {}

    def on_train_batch_end(self, trainer, pl_module, *args, **kwargs) -> None:
        found = penalty_metrics(*pl_module.optimizers().terms)
        self.truth[len(self.truth)] = {f"penalty/{key}": value for key, value in found.items()}


def logged(trainer) -> dict[int, dict[str, float]]:
    with (Path(trainer.logger.log_dir) / "metrics.csv").open() as file:
        rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    return {int(row["step"]): {k: v for k, v in row.items() if k.startswith("penalty/")} for row in rows}


@pytest.mark.parametrize(("every", "log"), [(5, 2), (2, 5), (5, 5), (1, 3), (50, 7)], ids=str)
def test_what_is_logged_was_measured_at_that_step(every, log, tmp_path):
    clock, names = Clock(), CSVLogger(tmp_path)
    callbacks = [PenaltyLogger(every_n_steps=every), clock]
    trainer = fit(Model(MAKES["AdamW"]), tmp_path, epochs=2, callbacks=callbacks, logger=names, log_every_n_steps=log)
    steps, epochs = range(2 * BATCHES), {BATCHES - 1, 2 * BATCHES - 1}
    entries = {step: row for step, row in logged(trainer).items() if row}
    assert set(entries) == {step for step in steps if step % every == every - 1} | epochs
    for step, row in entries.items():
        assert row == pytest.approx(clock.truth[step], rel=1e-6)
    told = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert told == pytest.approx(clock.truth[2 * BATCHES - 1], rel=1e-6)


AVERAGES = {
    "EMA": lambda: callbacks_of.EMAWeightAveraging(decay=0.9),
    "WeightAveraging": lambda: callbacks_of.WeightAveraging(),
    "SWA": lambda: callbacks_of.StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=2),
}


@pytest.mark.filterwarnings("ignore:.*weights_only|.*Swapping scheduler|.*lr_scheduler.step")
@pytest.mark.parametrize("make", AVERAGES.values(), ids=AVERAGES)
def test_averages_lose_zeros_unless_they_are_copied(make, tmp_path):
    shares = {}
    for kept in (False, True):
        last: list[torch.Tensor] = []

        class Last(L.Callback):
            def on_train_batch_end(self, trainer, pl_module, *args, seen=last, **kwargs) -> None:
                seen[:] = [p.detach().clone() for p in pl_module.term.parameters.values()]

        model = Model(MAKES["AdamW"])
        average = make()
        callbacks = [average, *([CopyZeros()] if kept else []), Last()]
        fit(model, tmp_path, epochs=4, callbacks=callbacks)
        trained = list(model.term.parameters.values())
        shares[kept] = sparsity(model.term).zeros
        assert not all(torch.equal(p, q) for p, q in zip(trained, last, strict=True))  # it is the average
        if kept:
            assert shares[True] == sum(int((p == 0).sum()) for p in last) > shares[False]
            assert all(bool((p[q == 0] == 0).all()) for p, q in zip(trained, last, strict=True))


def test_checkpoints_of_an_average_have_the_zeros_and_go_on(tmp_path):
    average = callbacks_of.EMAWeightAveraging(decay=0.9)
    keep = callbacks_of.ModelCheckpoint(tmp_path / "kept", save_last=True)
    model = Model(MAKES["AdamW"])
    fit(model, tmp_path, epochs=2, callbacks=[average, CopyZeros(), keep], enable_checkpointing=True)
    saved = torch.load(tmp_path / "kept" / "last.ckpt", weights_only=False)
    zeros = {name: saved["current_model_state"][name] == 0 for name in ("net.0.weight", "net.2.weight")}
    assert any(bool(zero.any()) for zero in zeros.values())
    for name, zero in zeros.items():
        assert bool((saved["state_dict"][name][zero] == 0).all())
        assert not torch.equal(saved["state_dict"][name], saved["current_model_state"][name])


def test_an_average_that_loses_zeros_is_told(tmp_path):
    with pytest.warns(UserWarning, match=r"EMAWeightAveraging.*zeros.*CopyZeros\(\) of torchreg"):
        fit(Model(MAKES["AdamW"]), tmp_path, callbacks=[PenaltyLogger(), callbacks_of.EMAWeightAveraging()])
    with pytest.raises(ValueError, match="CopyZeros has to come after"):
        fit(Model(MAKES["AdamW"]), tmp_path, callbacks=[CopyZeros(), callbacks_of.EMAWeightAveraging()])
