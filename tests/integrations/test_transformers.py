"""Trainer of transformers trains as the plain loop does, bit for bit; its checkpoints go on, and the callback logs."""

from __future__ import annotations

import os
import warnings

import pytest
import torch
from optimizer_catalog import same
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import LambdaLR

from torchreg import (
    L1,
    Group,
    PenaltyScheduler,
    ProxOptimizer,
    attach,
    attach_to,
    clip_grad_norm_,
    matching,
    rows,
    schedules,
    sparsity,
)

os.environ.setdefault("HF_HUB_OFFLINE", "1")
pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")
integration = pytest.importorskip("torchreg.integrations.transformers")
PenaltyLogger, ProxFactory = integration.PenaltyLogger, integration.ProxFactory
transformers.logging.set_verbosity_error()
pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory")
EXAMPLES, EACH, STEPS = 32, 4, 8


@pytest.fixture(autouse=True)
def fresh():
    """Accelerate, on which Trainer stands, keeps its settings in singletons."""
    yield
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def model() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=16, n_positions=8, n_embd=8, n_layer=1, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    )
    return transformers.GPT2LMHeadModel(config)


def examples() -> list[dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(1)
    tokens = torch.randint(16, (EXAMPLES, 8), generator=draw)
    return [{"input_ids": row, "labels": row} for row in tokens]


def trainer(
    net: nn.Module, folder, *, steps: int = STEPS, every: int = 1, callbacks=None, clip: float = 0.5, **options
):
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=EACH,
        gradient_accumulation_steps=every,
        max_steps=steps,
        logging_steps=4,
        save_steps=4,
        max_grad_norm=clip,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        train_sampling_strategy="sequential",
        dataloader_pin_memory=False,
    )
    return transformers.Trainer(net, arguments, train_dataset=examples(), callbacks=callbacks, **options)


def made(net: nn.Module, base=AdamW, **options):
    term = attach(Group(L1(0.0), by=rows), matching(net, "*mlp*weight"))
    opt = ProxOptimizer(base([p for p in net.parameters() if p.requires_grad], **options), term)
    return term, opt, PenaltyScheduler(term, schedules.linear(0.0, 0.004, steps=6))


def falling(opt) -> LambdaLR:
    return LambdaLR(opt, lambda k: 1.0 / (1 + k))


OPTIONS = {"AdamW": {"base": AdamW, "lr": 0.02, "weight_decay": 0.0}, "SGD": {"base": SGD, "lr": 0.5, "momentum": 0.9}}


def plain(base: str, every: int = 1, steps: int = STEPS, told: bool = False):
    net = model().train()
    term, opt, ramp = made(net, **OPTIONS[base])
    decay, data = falling(opt), examples()
    batch = iter(range(0, 10**6, EACH))
    for _ in range(steps):
        parts = [data[(start := next(batch) % EXAMPLES) : start + EACH] for _ in range(every)]
        count = sum(int((e["labels"] != -100).sum()) for part in parts for e in part)  # by which Trainer divides
        for part in parts:
            inputs = {key: torch.stack([e[key] for e in part]) for key in part[0]}
            net(**inputs, num_items_in_batch=torch.tensor(count)).loss.backward()
        clip_grad_norm_(opt, 0.5) if told else nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        opt.step()
        decay.step()
        opt.zero_grad()
    return net, term, ramp


@pytest.mark.parametrize("every", [1, 2], ids=["", "accumulated"])
@pytest.mark.parametrize("base", OPTIONS)
def test_optimizers_given_to_trainer_are_the_plain_loop(base, every, tmp_path):
    wanted, lone, count = plain(base, every)
    net = model()
    term, opt, ramp = made(net, **OPTIONS[base])
    trainer(net, tmp_path, every=every, optimizers=(opt, falling(opt))).train()
    assert same(list(wanted.parameters()), list(net.parameters()))
    assert ramp.count == count.count == STEPS
    assert sparsity(term) == sparsity(lone)


@pytest.mark.parametrize("every", [1, 2], ids=["", "accumulated"])
def test_clipping_that_the_penalty_is_told_of(every, tmp_path):
    wanted, lone, _ = plain("AdamW", every, told=True)
    net = model()
    term, opt, _ = made(net, **OPTIONS["AdamW"])
    clips = [integration.ClipGradNorm(0.5)]
    run = trainer(net, tmp_path, every=every, optimizers=(opt, falling(opt)), clip=0.0, callbacks=clips)
    run.train()
    assert same(list(wanted.parameters()), list(net.parameters()))
    assert sparsity(term) == sparsity(lone)
    assert any(entry.get("grad_norm", 0.0) > 0 for entry in run.state.log_history)  # Trainer measures it still
    with pytest.raises(ValueError, match=r"max_grad_norm=0\.5"):
        trainer(net, tmp_path, optimizers=(opt, falling(opt)), callbacks=clips).train()


@pytest.mark.usefixtures("every_control")
def test_a_hook_on_the_raw_optimizer_is_the_plain_loop(tmp_path):
    wanted, lone, _ = plain("AdamW")
    net = model()
    term = attach(Group(L1(0.0), by=rows), matching(net, "*mlp*weight"))
    base = AdamW(net.parameters(), lr=0.02, weight_decay=0.0)
    attach_to(base, term)
    PenaltyScheduler(term, schedules.linear(0.0, 0.004, steps=6))
    trainer(net, tmp_path, optimizers=(base, falling(base))).train()
    assert same(list(wanted.parameters()), list(net.parameters()))
    assert sparsity(term) == sparsity(lone)


@pytest.mark.parametrize("base", OPTIONS)
def test_the_factory_builds_the_same_optimizer(base, tmp_path):
    nets = model(), model()
    choose = {"penalty": Group(L1(0.004), by=rows), "select": lambda m: matching(m, "*mlp*weight")}
    run = trainer(nets[0], tmp_path, optimizer_cls_and_kwargs=(ProxFactory, {**OPTIONS[base], **choose}))
    run.train()
    term = attach(choose["penalty"], choose["select"](nets[1]))
    options = dict(OPTIONS[base])
    opt = ProxOptimizer(options.pop("base")(nets[1].parameters(), **options), term)
    other = trainer(nets[1], tmp_path, optimizers=(opt, None))
    other.train()
    assert same(list(nets[0].parameters()), list(nets[1].parameters()))
    assert run.optimizer.optimizer.terms[0].alpha == 0.004
    assert sparsity(term).zeros > 0


@pytest.mark.usefixtures("every_control")
def test_a_checkpoint_goes_on_bit_for_bit(tmp_path):
    wanted, lone, _ = plain("AdamW")
    net = model()
    _, opt, _ = made(net, **OPTIONS["AdamW"])
    trainer(net, tmp_path, optimizers=(opt, falling(opt))).train()
    resumed = model()
    term, opt, ramp = made(resumed, **OPTIONS["AdamW"])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The checkpoint")
        run = trainer(resumed, tmp_path, optimizers=(opt, falling(opt)))
        run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert same(list(wanted.parameters()), list(resumed.parameters()))
    assert (ramp.count, term.alpha) == (STEPS, lone.alpha)


def test_the_callback_adds_to_every_entry_of_the_log(tmp_path):
    net = model()
    term, opt, _ = made(net, **OPTIONS["AdamW"])
    run = trainer(net, tmp_path, optimizers=(opt, falling(opt)), callbacks=[PenaltyLogger()])
    run.train()
    entries = [entry for entry in run.state.log_history if "loss" in entry]
    assert [entry["penalty/alpha"] for entry in entries] == pytest.approx([0.004 * 4 / 6, 0.004])
    assert entries[-1]["penalty/group_sparsity"] == sparsity(term).metrics()["group_sparsity"]
    assert entries[-1]["penalty/penalty"] == float(term())


def test_the_callback_wants_terms(tmp_path):
    net = model()
    run = trainer(net, tmp_path, optimizers=(SGD(net.parameters(), lr=0.1), None), callbacks=[PenaltyLogger()])
    with pytest.raises(ValueError, match="give the terms"):
        run.train()


def test_the_callback_follows_the_terms_of_each_run_and_lets_an_evaluation_before_it_be(tmp_path):
    logger = PenaltyLogger()
    for _ in range(2):
        net = model()
        term, opt, _ = made(net, **OPTIONS["AdamW"])
        run = trainer(net, tmp_path, optimizers=(opt, falling(opt)), callbacks=[logger])
        run.evaluate(examples())
        run.train()
        assert logger.terms == [term]
