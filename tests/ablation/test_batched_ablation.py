"""Models trained together end where the loop for each alone ends; their rows are those of an ablation."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from torchreg import (
    L1,
    L1L2,
    L2,
    MCP,
    Group,
    NonNegative,
    Nuclear,
    PenaltyScheduler,
    ProxOptimizer,
    TargetSparsity,
    Weighted,
    attach,
    columns,
    labels,
    rows,
    weights,
    whole,
)
from torchreg.ablation import Ablation, BatchingError, CellsFailed, ablate, ablate_batched

STEPS = 40  # each penalty of the catalogue is stepped in tests/training/test_stacked.py
ALPHAS = (0.0, 0.02, 0.2)
X = torch.randn(40, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
X[:, 4] = 0.0  # an input that is dead: Adam's metric knows nothing of its weights
Y = (X[:, 0] - 2 * X[:, 1]).unsqueeze(1) + 0.1 * X[:, 2:3]


def mlp(seed, width=6):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, 1)).double()


def loss(model, batch):
    x, y = batch
    return functional.mse_loss(model(x), y)


def batch_of(step):
    index = torch.randint(40, (16,), generator=torch.Generator().manual_seed(step))
    return X[index], Y[index]


def stepped_by(base, **options):
    return lambda model, penalty: ProxOptimizer(base(model.parameters(), **options), attach(penalty, model))


adam = stepped_by(torch.optim.Adam, lr=0.02)


def tensors(model):
    found = {name: x.tolist() for name, x in (*model.named_parameters(), *model.named_buffers())}
    return {"loss": loss(model.eval(), (X, Y)).item(), "tensors": found}


def alone(
    penalty, seed, model_fn=mlp, optimizer_fn=adam, batch_fn=batch_of, loss_fn=loss, schedule_fn=None, steps=STEPS
):
    """The loop that the docstring promises."""
    model = model_fn(seed)
    optimizer = optimizer_fn(model, penalty)
    schedule = schedule_fn(optimizer) if schedule_fn else None
    for step in range(steps):
        optimizer.zero_grad()
        loss_fn(model, batch_fn(step)).backward()
        optimizer.step()
        if schedule:
            schedule.step()
    return tensors(model)


def together(penalties, out, alphas=ALPHAS, seeds=(0, 1), **options):
    given = {"optimizer_fn": adam, "batch_fn": batch_of, "steps": STEPS, "score_fn": tensors} | options
    loss_fn, model_fn = given.pop("loss_fn", loss), given.pop("model_fn", mlp)
    return ablate_batched(loss_fn, model_fn, penalties, alphas, seeds=seeds, out=out, progress=False, **given)


def as_tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def assert_alike(row, expected, rtol=1e-8):
    """Equal to rounding, and zero in the same places."""
    assert row["loss"] == pytest.approx(expected["loss"], rel=1e-9, abs=1e-14)
    assert row["tensors"].keys() == expected["tensors"].keys()
    for name, values in expected["tensors"].items():
        found, told = as_tensor(row["tensors"][name]), as_tensor(values)
        torch.testing.assert_close(found, told, rtol=rtol, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}")
        assert torch.equal(found == 0, told == 0), name


def assert_all_alike(result, penalty, rtol=1e-8, **options):
    for row in result.rows:
        assert_alike(row, alone(penalty.with_alpha(row["alpha"]), row["seed"], **options), rtol)


BASES = {
    "sgd": stepped_by(torch.optim.SGD, lr=0.05),
    "momentum": stepped_by(torch.optim.SGD, lr=0.02, momentum=0.9, nesterov=True),
    "adam": adam,
    "adamw": stepped_by(torch.optim.AdamW, lr=0.02, weight_decay=0.1),
    "amsgrad": stepped_by(torch.optim.Adam, lr=0.02, amsgrad=True),
    "rmsprop": stepped_by(torch.optim.RMSprop, lr=0.01, centered=True),
    "nadam": stepped_by(torch.optim.NAdam, lr=0.02),
    "radam": stepped_by(torch.optim.RAdam, lr=0.02),
    "adagrad": stepped_by(torch.optim.Adagrad, lr=0.1),
    "adamax": stepped_by(torch.optim.Adamax, lr=0.02),
    "adadelta": stepped_by(torch.optim.Adadelta, lr=1.0),
}
PENALTIES = {
    "l1": L1(1.0),
    "l2": L2(1.0),
    "mcp": MCP(1.0),
    "rows": Group(L1(1.0), by=rows),
    "whole": Group(L1(1.0), by=whole),
}


@pytest.mark.parametrize("base", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("penalty", PENALTIES.values(), ids=PENALTIES)
def test_every_model_ends_where_it_ends_alone(base, penalty, tmp_path):
    result = together(penalty, tmp_path, optimizer_fn=BASES[base])
    assert [row["status"] for row in result.rows] == ["ok"] * 6
    assert_all_alike(result, penalty, optimizer_fn=BASES[base])


@pytest.mark.parametrize("base", sorted(BASES.keys() - {"sgd", "adam", "adamw"}))
def test_every_base_steps_each_model_as_alone(base, tmp_path):
    result = together(L1(1.0), tmp_path, optimizer_fn=BASES[base])
    # Adamax adds eps = 1e-8 to the size of each gradient, and the step of the dead input has it in some launches only
    assert_all_alike(result, L1(1.0), optimizer_fn=BASES[base], rtol=1e-6 if base == "adamax" else 1e-8)


OTHERS = {
    "columns": Group(L1(1.0), by=columns),
    "l1l2": L1L2(1.0, l1_ratio=0.5),
    "sparse groups": Group(L1(0.5), by=rows) + L1(0.5),
    "sign": NonNegative(L1(1.0)),
    "nuclear": Nuclear(1.0),
}


@pytest.mark.parametrize("penalty", OTHERS.values(), ids=OTHERS)
def test_penalties_act_within_each_model(penalty, tmp_path):
    assert_all_alike(together(penalty, tmp_path, alphas=(0.01, 0.1)), penalty)


def test_each_parameter_keeps_its_own_penalty_and_weights(tmp_path):
    def optimizer_fn(model, penalty):
        scale = 1.0 + torch.arange(30.0, dtype=torch.float64).reshape(6, 5) / 10
        first = attach(Weighted(penalty, scale), {"0.weight": model[0].weight})
        index = torch.tensor([0, 0, 1, 1, 2, 2])
        second = attach(Group(L1(penalty.alpha), by=labels(index[None])), {"2.weight": model[2].weight})
        groups = [{"params": [model[0].weight, model[0].bias], "lr": 0.05}, {"params": [model[2].weight]}]
        return ProxOptimizer(torch.optim.Adam(groups, lr=0.01), first, second)  # the last bias is not trained

    result = together(L1(1.0), tmp_path, optimizer_fn=optimizer_fn)
    assert_all_alike(result, L1(1.0), optimizer_fn=optimizer_fn)


def test_penalties_of_several_kinds_are_trained_together_with_a_schedule(tmp_path):
    given = {"l1": L1(1.0), "rows": Group(L1(1.0), by=rows), "mcp": MCP(1.0)}
    cosine = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=STEPS)
    result = together(given, tmp_path, alphas=(0.02, 0.2), schedule_fn=cosine)
    assert len(result.rows) == 12
    for row in result.rows:
        penalty = given[row["penalty"]].with_alpha(row["alpha"])
        assert_alike(row, alone(penalty, row["seed"], schedule_fn=cosine))


def test_a_batch_for_each_seed(tmp_path):
    def batch_fn(step, seed):
        return batch_of(100 * seed + step)

    result = together(L1(1.0), tmp_path, seeds=(0, 3), batch_fn=batch_fn)
    for row in result.rows:
        seed = row["seed"]
        assert_alike(row, alone(L1(row["alpha"]), seed, batch_fn=lambda step, seed=seed: batch_fn(step, seed)))


class Averaging(nn.Module):
    """Buffers that a forward pass writes, replaces by new ones, and replaces by what is the same in all models."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.layer = nn.Linear(5, 1).double()
        for name in ("written", "replaced", "shared"):
            self.register_buffer(name, torch.zeros(1, dtype=torch.float64), persistent=name != "written")

    def forward(self, x):
        mean = self.layer.weight.detach().mean()
        self.written.mul_(0.9).add_(mean)
        self.replaced = 0.9 * self.replaced + mean
        self.shared = x.sum().reshape(1)
        return self.layer(x) + self.written + self.replaced + self.shared


def test_buffers_that_are_written_or_replaced_are_each_models_own(tmp_path):
    assert_all_alike(together(L1(1.0), tmp_path, model_fn=Averaging), L1(1.0), model_fn=Averaging)


class Net(nn.Module):
    """Batch norm, tied weights, a frozen parameter, attention, and a loss that asks the model for its parts."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.inner = nn.Linear(5, 4)
        self.norm = nn.BatchNorm1d(4)
        self.attention = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
        self.out, self.twin = nn.Linear(4, 1), nn.Linear(4, 1)
        self.twin.weight = self.out.weight
        self.scale = nn.Parameter(torch.rand(1), requires_grad=False)
        self.double()

    def forward(self, x):
        hidden = self.norm(self.inner(x))
        mixed = self.attention(hidden.unflatten(0, (-1, 4))).flatten(0, 1)
        return self.scale * self.out(mixed) + self.twin(hidden)


def test_batch_norm_tied_and_frozen_weights_and_attention_are_as_alone(tmp_path):
    def loss_fn(model, batch):
        return loss(model, batch) + 1e-3 * model.inner.bias.square().sum()

    options = {"model_fn": Net, "loss_fn": loss_fn, "optimizer_fn": BASES["momentum"]}  # Adam blows up rounding
    result = together(L1(1.0), tmp_path, **options)
    assert_all_alike(result, L1(1.0), **options)


def test_a_model_that_is_not_finite_leaves_the_others_alone(tmp_path):
    def model_fn(seed):
        model = mlp(seed)
        if seed == 1:
            nn.init.constant_(model[0].bias, torch.nan)
        return model

    result = together(Group(L1(1.0), by=rows), tmp_path, seeds=range(3), model_fn=model_fn)
    for row in result.rows:
        if row["seed"] == 1:
            assert row["loss"] != row["loss"]
        else:
            assert_alike(row, alone(Group(L1(row["alpha"]), by=rows), row["seed"]))


SCORED = []  # values of globals are no part of a function


@pytest.fixture
def scored():
    """One entry for each model that was scored."""
    SCORED.clear()
    return SCORED


def noted(model):
    SCORED.append(1)
    return {"loss": loss(model.eval(), (X, Y)).item(), "zeros": int((weights(model)["0.weight"] == 0).sum())}


def test_what_has_a_row_is_not_run_again_and_a_longer_grid_runs_what_is_new(scored, tmp_path):
    first = together(L1(1.0), tmp_path, alphas=(0.0, 0.1), seeds=(0, 1), score_fn=noted)
    assert len(scored) == 4
    again = together(L1(1.0), tmp_path, alphas=(0.0, 0.1), seeds=(0, 1), score_fn=noted, chunk=1)
    assert len(scored) == 4
    assert again.rows == first.rows
    longer = together([L1(1.0), MCP(1.0)], tmp_path, alphas=(0.0, 0.1, 0.5), seeds=(0, 1, 2), score_fn=noted, chunk=4)
    assert len(scored) == len(longer.rows) == 18
    kept = {row["key"]: row for row in longer.rows}
    assert all(kept[row["key"]] == row for row in first.rows)
    fresh = together([L1(1.0), MCP(1.0)], tmp_path / "fresh", alphas=(0.0, 0.1, 0.5), seeds=range(3), score_fn=noted)
    for row in fresh.rows:
        assert kept[row["key"]]["loss"] == pytest.approx(row["loss"], rel=1e-9)
        assert kept[row["key"]]["zeros"] == row["zeros"]


def test_rows_are_those_of_an_ablation(tmp_path):
    def run(penalty, seed):
        found = alone(penalty, seed)
        return {"loss": found["loss"]}

    batched = together(L1(1.0), tmp_path / "a", seeds=range(3), score_fn=lambda model: {"loss": tensors(model)["loss"]})
    looped = ablate(run, L1(1.0), ALPHAS, seeds=range(3), out=tmp_path / "b", progress=False)
    assert Ablation.load(tmp_path / "a").rows == batched.rows
    for row, other in zip(batched.rows, looped.rows, strict=True):
        assert list(row) == list(other)
        for name in ("key", "penalty", "alpha", "seed", "mode", "status", "attempt", "error"):
            assert row[name] == other[name]
    pairs = ((batched.summary(), looped.summary(), "loss"), (batched.paired(), looped.paired(), "loss.diff"))
    for one, other, mean in pairs:
        for row, told in zip(one, other, strict=True):
            assert row["n"] == told["n"] == 3
            assert row[mean] == pytest.approx(told[mean], rel=1e-7)
    assert next(iter(batched.best("loss", "min")))["alpha"] == next(iter(looped.best("loss", "min")))["alpha"]


@pytest.mark.parametrize("seed", range(3))
def test_gradients_that_are_rounding_alone_are_no_difference(seed, tmp_path):
    def model_fn(seed):
        torch.manual_seed(seed)  # the gradient of a bias before batch norm is zero but for rounding
        return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))

    def loss_fn(model, batch):
        return functional.mse_loss(model(batch[0].float()), batch[1].float())

    result = together(
        L1(1.0), tmp_path, alphas=(0.01, 0.1), seeds=(seed, seed + 10), model_fn=model_fn, loss_fn=loss_fn,
        score_fn=lambda model: {"zeros": int((model[0].weight == 0).sum())},
    )  # fmt: skip
    assert [row["status"] for row in result.rows] == ["ok"] * 4


def test_half_precision_in_the_loss_needs_a_tolerance(tmp_path):
    def loss_fn(model, batch):
        with torch.autocast("cpu", torch.bfloat16):
            return functional.mse_loss(model(batch[0].float()).float(), batch[1].float())

    options = {"model_fn": lambda seed: mlp(seed).float(), "loss_fn": loss_fn, "score_fn": lambda model: {"one": 1}}
    with pytest.raises(BatchingError, match=r"autocast.*tolerance=0\.1"):
        together(L1(1.0), tmp_path, tolerance=0.0, **options)
    assert len(together(L1(1.0), tmp_path, tolerance=0.1, **options).rows) == 6


class Forgetful(nn.Module):
    """A model with a state that torch does not know."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.layer = nn.Linear(5, 1).double()
        self.mask = torch.rand(5, dtype=torch.float64)

    def forward(self, x):
        return self.layer(x * self.mask)


class Recurrent(nn.Module):
    """A layer that torch.vmap has no rule for."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.cell, self.out = nn.GRU(5, 3).double(), nn.Linear(3, 1).double()

    def forward(self, x):
        return self.out(self.cell(x)[0])


def hooked(seed):
    model = mlp(seed)
    model[0].weight.register_hook(lambda grad: grad.clamp(-1e3, 1e3))  # not yet in the first steps
    return model


def bag(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Embedding(3, 2, sparse=True), nn.Flatten(), nn.Linear(10, 1)).double()


def of_parameters(model, batch):
    if not isinstance(model[0].weight, nn.Parameter):
        raise AttributeError("no parameter")
    return loss(model, batch)


class Counting:
    """A loss that knows how often it was called."""

    def __init__(self):
        self.calls = 0

    def __call__(self, model, batch):
        self.calls += 1
        return loss(model, batch) * self.calls


def test_what_is_no_parameter_or_buffer_is_found_by_the_check(tmp_path):
    with pytest.raises(BatchingError, match=r"are [\d.e+-]+ apart .* [\d.e+-]+ is allowed.*by ablate"):
        together(L1(1.0), tmp_path, model_fn=Forgetful)


@pytest.mark.parametrize("base", ["sgd", "adam"])
def test_a_loss_with_a_state_is_found_by_the_check(base, tmp_path):
    with pytest.raises(BatchingError, match=r"Trained alone twice.*keeps a state.*ablate"):
        together(L1(1.0), tmp_path, loss_fn=Counting(), optimizer_fn=BASES[base])


def test_what_the_seed_or_the_step_does_not_decide_is_found_by_the_check(tmp_path):
    with pytest.raises(ValueError, match=r"model_fn\(1\) makes another '0.weight' the second time.*manual_seed"):
        together(L1(1.0), tmp_path, model_fn=lambda seed: nn.Sequential(nn.Linear(5, 1)).double())
    with pytest.raises(ValueError, match="another batch when it is asked for step 0 again"):
        together(L1(1.0), tmp_path, batch_fn=lambda step: (X + torch.rand(1), Y))


def deciding(model, batch):
    value = loss(model, batch)
    return value if value > 1 else 2 * value


def scheduled(scheduler, *given, **options):
    def optimizer_fn(model, penalty):
        optimizer = adam(model, penalty)
        scheduler(optimizer.terms[0], *given, **options)
        return optimizer

    return optimizer_fn


ONE = mlp(0)
REFUSED = {
    "if": ({"loss_fn": deciding}, r"decides by the value of a tensor.*torch.where.*ablate"),
    "item": ({"loss_fn": lambda m, b: loss(m, b) * m[0].bias.max().item()}, r"\.item\(\).*Keep it a tensor"),
    "list": ({"loss_fn": lambda m, b: loss(m, b) * m(b[0]).flatten().tolist()[0]}, r"\.tolist\(\).*Keep it a tensor"),
    "mask": ({"loss_fn": lambda m, b: m(b[0])[m(b[0]) > 0].sum()}, r"shape depends on values.*torch\.where"),
    "no rule": ({"model_fn": Recurrent}, "no rule for.*GRU.*ablate"),
    "another error": ({"loss_fn": of_parameters}, "alone, but together.*ablate.*AttributeError: no parameter"),
    "hooks": ({"model_fn": hooked}, r"'0.weight' has hooks on its gradient.*into loss_fn.*ablate"),
    "sparse gradients": (
        {
            "model_fn": bag,
            "loss_fn": lambda m, b: m(torch.arange(10).reshape(2, 5) % 3).square().mean(),
            "optimizer_fn": lambda m, p: BASES["sgd"](m, p),
        },
        "sparse gradients; give nn.Embedding sparse=False",
    ),
    "dropout": (
        {"model_fn": lambda seed: nn.Sequential(mlp(seed), nn.Dropout(0.5))},
        r"random numbers.*randomness='different'.*evaluation mode",
    ),
    "batch norm": (
        {"model_fn": lambda seed: nn.Sequential(mlp(seed), nn.BatchNorm1d(1, momentum=None).double())},
        r"BatchNorm\(momentum=None\)",
    ),
    "shared statistics": (
        {"loss_fn": lambda m, b: functional.batch_norm(m(b[0]), X[0, :1] * 0, X[0, :1] * 0 + 1, training=True).sum()},
        r"no buffers of the model.*replace_all_batch_norm_modules_.*eval\(\)",
    ),
    "structure": ({"model_fn": lambda seed: mlp(seed, width=6 + seed)}, r"one structure; 0.weight is .*\(7, 5\)"),
    "no scalar": ({"loss_fn": lambda m, b: m(b[0]).squeeze(1)}, r"0-d tensor, got one of shape \(16,\)"),
    "shapes": ({"batch_fn": lambda step, seed: (X[: 8 + seed], Y[: 8 + seed])}, r"\(8, 5\).*seed 0 and \(9, 5\)|pad"),
    "no tensor": ({"loss_fn": lambda m, b: (loss(m, b), 1)}, "0-d tensor, got tuple"),
    "own batches": (
        {"batch_fn": lambda step, seed: (X, Y, seed), "loss_fn": lambda m, b: loss(m, b[:2])},
        r"the same for all; got \d \(int\) at step 0",
    ),
    "nested batches": (
        {"batch_fn": lambda step, seed: (X, Y) if seed else [X, Y]},
        r"gives seed \d a batch of another structure at step 0",
    ),
    "no function": ({"batch_fn": [(X, Y)]}, "batch_fn must be a function"),
    "no schedule": ({"schedule_fn": lambda optimizer: None}, "schedule of the step alone.*LambdaLR, got NoneType"),
    "plateau": (
        {"schedule_fn": lambda optimizer: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer.base)},
        "schedule of the step alone.*got ReduceLROnPlateau.*ablate",
    ),
    "schedule of strengths": (
        {"schedule_fn": lambda optimizer: PenaltyScheduler(optimizer.terms[0], lambda step: 0.1)},
        "got PenaltyScheduler.*ablate",
    ),
    "scheduled": ({"optimizer_fn": scheduled(PenaltyScheduler, lambda step: 0.1)}, "with a scheduler.*by ablate"),
    "target": ({"optimizer_fn": scheduled(TargetSparsity, 0.5, steps=9)}, "with a scheduler, a target.*by ablate"),
    "seeds": ({"seeds": ("one",)}, "seeds must be whole numbers, got 'one'"),
    "one model": ({"model_fn": lambda seed: ONE}, "model_fn.* makes another '0.weight' the second"),
    "other model": ({"optimizer_fn": lambda m, p: adam(mlp(0), p)}, "it steps none of them"),
    "tolerance": ({"tolerance": 1.5}, "tolerance must be >= 0 and < 1"),
    "no module": ({"model_fn": lambda seed: seed}, "must return a torch.nn.Module, got int"),
    "no prox": ({"optimizer_fn": lambda m, p: torch.optim.SGD(m.parameters())}, "must return a ProxOptimizer, got SGD"),
    "steps": ({"steps": 0}, "steps must be a whole number >= 1, got 0"),
    "chunk": ({"chunk": 0}, "chunk must be a whole number >= 1, got 0"),
    "randomness": ({"randomness": "some"}, "randomness must be one of"),
    "rates": (
        {"optimizer_fn": lambda m, p: stepped_by(torch.optim.SGD, lr=0.1 + p.alpha)(m, p)},
        r"one lr, got .* and .* in param group 0",
    ),
    "base": ({"optimizer_fn": stepped_by(torch.optim.Adafactor, lr=0.1)}, r"Adafactor \(whose update.*may depend"),
    "penalties": (
        {"optimizer_fn": lambda m, p: adam(m, L1L2(p.alpha, l1_ratio=0.5 + p.alpha))},
        "penalties that differ in alpha alone",
    ),
    "mode": (
        {"optimizer_fn": lambda m, p: ProxOptimizer(adam(m, p).base, attach(p, m), mode="dual_averaging")},
        "with mode='dual_averaging'",
    ),
    "fused": (
        {"optimizer_fn": lambda m, p: ProxOptimizer(adam(m, p).base, attach(p, m), fused=True)},
        "with fused=True cannot step many models",
    ),
}


@pytest.mark.parametrize(("given", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_trained_together_is_refused_with_the_remedy(given, message, tmp_path):
    with pytest.raises((BatchingError, TypeError, ValueError), match=message):
        together(L1(1.0), tmp_path, **given)
    if (tmp_path / "rows").exists():
        assert not list((tmp_path / "rows").iterdir())


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_dropout_draws_where_it_is_allowed(randomness, tmp_path):
    def model_fn(seed):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 40), nn.Dropout(0.5), nn.Linear(40, 1)).double()

    result = together(L1(1.0), tmp_path, alphas=(0.0,), seeds=(0, 1), model_fn=model_fn, randomness=randomness)
    one, other = result.rows
    assert (one["loss"] == pytest.approx(other["loss"], rel=1e-9)) is (randomness == "same")


BROKEN = []  # values of globals are no part of a function


def breaking(model):
    if BROKEN:
        raise ArithmeticError("no score")
    return {"loss": loss(model, (X, Y)).item()}


def test_a_failed_score_is_a_row_and_is_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.BROKEN", [True])
    with pytest.warns(CellsFailed, match="2 of 2 cells failed.*no score"):
        failed = together(L1(1.0), tmp_path, alphas=(0.1,), score_fn=breaking)
    assert [row["status"] for row in failed.rows] == ["failed"] * 2
    monkeypatch.undo()
    rows = together(L1(1.0), tmp_path, alphas=(0.1,), score_fn=breaking).rows
    assert [(row["status"], row["attempt"]) for row in rows] == [("ok", 2)] * 2


def test_a_score_that_is_no_mapping_is_a_failed_row_that_says_so(tmp_path):
    with pytest.warns(CellsFailed, match="score_fn must return a mapping"):
        together(L1(1.0), tmp_path, alphas=(0.1,), score_fn=lambda model: 0.5)


def test_an_error_after_the_first_steps_fails_the_cells_of_its_chunk(tmp_path):
    def batch_fn(step):
        if step > 10:
            raise OSError("the disk is gone")
        return batch_of(step)

    with pytest.warns(CellsFailed, match="4 of 4 cells failed"):
        rows = together(L1(1.0), tmp_path, alphas=(0.0, 0.1), batch_fn=batch_fn).rows
    assert rows[0]["error"].startswith("OSError: the disk is gone")
    assert rows[1]["error"].startswith("RuntimeError: The training of 4 models together was ended by OSError")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")])
def test_where_memory_ends_the_row_tells_of_chunks(error, tmp_path):
    def batch_fn(step):
        if step > 10:
            raise error
        return batch_of(step)

    with pytest.warns(CellsFailed, match="4 of 4 cells failed"):
        rows = together(L1(1.0), tmp_path, alphas=(0.0, 0.1), batch_fn=batch_fn).rows
    assert "Give chunk=... below 4" in rows[0]["error"]


def test_seconds_are_shares_of_the_training(tmp_path):
    rows = together(L1(1.0), tmp_path, steps=50).rows
    seconds = [row["seconds"] for row in rows]
    assert min(seconds) > 0
    assert max(seconds) < 3 * min(seconds) + 0.05


def test_a_changed_function_or_count_is_refused(tmp_path):
    together(L1(1.0), tmp_path, alphas=(0.1,))
    for changed in ({"steps": 5}, {"optimizer_fn": stepped_by(torch.optim.Adam, lr=0.5)}, {"batch_fn": lambda step: 0}):
        with pytest.raises(ValueError, match="has changed"):
            together(L1(1.0), tmp_path, alphas=(0.1, 0.2), **changed)


def test_the_score_is_given_its_cell(tmp_path):
    def score_fn(model, cell):
        torch.save(model.state_dict(), cell.dir / "model.pt")
        return {"strength": cell.alpha}

    result = together(L1(1.0), tmp_path, alphas=(0.1, 0.2), score_fn=score_fn)
    assert [row["strength"] for row in result.rows] == [row["alpha"] for row in result.rows]
    assert len(list(tmp_path.glob("cells/*/model.pt"))) == 4


def test_models_are_trained_where_they_are_made(device, tmp_path):
    def at(x):
        return x.to(device)

    options = {
        "model_fn": lambda seed: at(mlp(seed)),
        "batch_fn": lambda step: tuple(map(at, batch_of(step))),
        "score_fn": lambda model: tensors(model.cpu()),
    }
    penalty = Group(L1(1.0), by=rows)
    result = together(penalty, tmp_path, alphas=(0.02, 0.2), **options)
    assert_all_alike(result, penalty)


STOPS = []  # values of globals are no part of a function


def interrupted(step):
    if STOPS and len(SCORED) == STOPS[0] and step == 10:
        raise KeyboardInterrupt
    return batch_of(step)


def test_ctrl_c_keeps_the_chunks_that_are_done(tmp_path, scored, monkeypatch):
    options = {"alphas": (0.0, 0.1), "seeds": (0, 1, 2), "chunk": 2, "score_fn": noted, "batch_fn": interrupted}
    monkeypatch.setattr(f"{__name__}.STOPS", [4])  # within the last chunk
    with pytest.raises(KeyboardInterrupt) as stopped:
        together(L1(1.0), tmp_path, **options)
    assert "run the same line again" in stopped.value.__notes__[0]
    assert [row["seed"] for row in Ablation.load(tmp_path).rows] == [0, 0, 1, 1]
    monkeypatch.undo()
    assert len(together(L1(1.0), tmp_path, **options).rows) == len(scored) == 6


def cut_off(model):
    if STOPS and len(SCORED) == STOPS[0]:
        raise KeyboardInterrupt
    return noted(model)


def test_a_chunk_that_is_cut_off_between_its_rows_keeps_those_that_are_there(tmp_path, scored, monkeypatch):
    options = {"penalties": [L1(1.0), MCP(1.0)], "alphas": (0.0, 0.1), "seeds": (0, 1), "score_fn": cut_off}
    monkeypatch.setattr(f"{__name__}.STOPS", [3])
    with pytest.raises(KeyboardInterrupt):
        together(out=tmp_path / "cut", chunk=5, **options)
    monkeypatch.undo()
    kept = Ablation.load(tmp_path / "cut").rows
    assert len(kept) == 3
    resumed = together(out=tmp_path / "cut", chunk=2, **options).rows
    assert len(scored) == 8
    assert all(row in resumed for row in kept)
    for row, expected in zip(resumed, together(out=tmp_path / "whole", **options).rows, strict=True):
        assert row["key"] == expected["key"]
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-9)
        assert row["zeros"] == expected["zeros"]


def test_the_directory_is_named_after_the_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    together(L1(1.0), None, alphas=(0.1,), seeds=(0,), steps=2, model_fn=partial(mlp, width=3))
    assert (tmp_path / "runs" / "mlp" / "manifest.json").exists()
