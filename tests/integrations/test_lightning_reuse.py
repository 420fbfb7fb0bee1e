"""lr_find and then fit, fit twice, and finetuning callbacks: real Lightning around one term."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from optimizer_catalog import same
from trainers import BATCHES, MAKES, batches, moved, net, plain

from torchreg import L1, ProxOptimizer, attach, attach_to

L = pytest.importorskip("lightning.pytorch")
from lightning.pytorch.callbacks import BaseFinetuning  # noqa: E402
from lightning.pytorch.tuner import Tuner  # noqa: E402

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),  # Lightning's use of torch's pytrees
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]


class Model(L.LightningModule):
    """The term is made once, the optimizer by each run."""

    def __init__(self, kind: str, scheduled: bool = True) -> None:
        super().__init__()
        self.net, self.kind, self.scheduled = net(), kind, scheduled
        self.lr = 0.0  # lr_find wants one to be there
        self.term = attach(L1(0.0), self.net)

    def training_step(self, batch, index):
        x, y = batch
        return (self.net(x) - y).square().mean()

    def train_dataloader(self):
        return torch.utils.data.DataLoader(batches(), batch_size=None)

    def configure_optimizers(self):
        opt = MAKES["AdamW"]([p for p in self.net.parameters() if p.requires_grad])
        if self.kind == "hook":
            attach_to(opt, self.term)
        elif self.kind == "wrapper":
            opt = ProxOptimizer(opt, self.term)
        if not self.scheduled:
            return opt
        self.ramp, decay = moved(self.term, opt)
        return {"optimizer": opt, "lr_scheduler": {"scheduler": decay, "interval": "step"}}


def trainer(tmp_path, epochs: int = 1, **options) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **options,
    )


either = pytest.mark.parametrize("kind", ["wrapper", "hook"])


@either
def test_after_lr_find_the_run_is_that_without_it_and_a_second_one_goes_on(kind, tmp_path):
    wanted, lone, count = plain(MAKES["AdamW"])
    model = Model(kind)
    one = trainer(tmp_path)
    found = Tuner(one).lr_find(model, num_training=8, min_lr=1e-3, max_lr=1e-1)
    assert len(found.results["lr"]) > 0
    one.fit(model)
    assert same(wanted, list(model.net.parameters()))
    assert (model.ramp.count, model.term.alpha) == (count.count, lone.alpha)
    twin = Model(kind)
    twin.net.load_state_dict(copy.deepcopy(model.net.state_dict()))
    for m in (model, twin):
        trainer(tmp_path).fit(m)
    assert same(list(model.net.parameters()), list(twin.net.parameters()))
    assert model.ramp.count == twin.ramp.count == BATCHES


class Thaw(BaseFinetuning):
    """The first layer joins at the second epoch."""

    def freeze_before_training(self, pl_module) -> None:
        self.freeze(pl_module.net[0])

    def finetune_function(self, pl_module, epoch, optimizer) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.net[0], optimizer, lr=0.02)


def resumed(kind: str, scheduled: bool, tmp_path) -> Model:
    """Two epochs, and a third from their checkpoint: Lightning assigns param_groups when it restores them."""
    first, last = Model(kind, scheduled), Model(kind, scheduled)
    two = trainer(tmp_path, 2, callbacks=[Thaw()])
    two.fit(first)
    two.save_checkpoint(tmp_path / "two.ckpt")
    trainer(tmp_path, 3, callbacks=[Thaw()]).fit(last, ckpt_path=tmp_path / "two.ckpt", weights_only=False)
    return last


def test_a_finetuning_callback_and_its_resumed_run_are_those_of_the_bare_optimizer(tmp_path):
    """At alpha 0 bit for bit; Lightning itself does not resume such a run as if it had gone on."""
    runs = [resumed(kind, False, tmp_path) for kind in ("bare", "wrapper", "hook")]
    for model in runs[1:]:
        assert same(list(runs[0].net.parameters()), list(model.net.parameters()))
    runs = [resumed(kind, True, tmp_path) for kind in ("wrapper", "hook")]
    assert same(*(list(model.net.parameters()) for model in runs))
    assert all(model.ramp.count == 3 * BATCHES for model in runs)


@either
def test_a_layer_that_a_callback_thaws_is_penalised_from_then_on(kind, tmp_path):
    start = net()[0].weight.detach()
    model = Model(kind)
    trainer(tmp_path, 1, callbacks=[Thaw()]).fit(model)
    assert torch.equal(model.net[0].weight, start)
    model = Model(kind)
    trainer(tmp_path, 3, callbacks=[Thaw()]).fit(model)
    assert bool((model.net[0].weight == 0).any())
    by_hand = net()
    opt = ProxOptimizer(MAKES["AdamW"](by_hand[2].parameters()), term := attach(L1(0.0), by_hand[2]))
    ramp, decay = moved(term, opt)
    for k, (x, y) in enumerate(batches() * 3):
        if k == BATCHES:
            opt.add_param_group({"params": list(by_hand[0].parameters()), "lr": 0.02})
            opt.add_term(attach(L1(ramp.last_alpha), {"first": by_hand[0].weight}))
        opt.zero_grad()
        (by_hand(x) - y).square().mean().backward()
        opt.step()
        decay.step()
    assert same(list(by_hand.parameters()), list(model.net.parameters()))
