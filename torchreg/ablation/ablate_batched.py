"""Ablations whose models are trained together on one device, each with its own strength and seed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from torch import Tensor
from torch.nn import Module

from torchreg.ablation.ablate import warn_of_failures
from torchreg.ablation.batched_run import BatchedRun
from torchreg.ablation.plan import CellSpec, Plan
from torchreg.ablation.results.ablation import Ablation
from torchreg.ablation.session import OnChange, Session
from torchreg.ablation.solo_check import check_against_solo
from torchreg.ablation.stacked_models import Randomness, Recipe
from torchreg.ablation.user_function import takes
from torchreg.penalties import Penalty


def ablate_batched(
    loss_fn: Callable[[Any, Any], Tensor],
    model_fn: Callable[[int], Module],
    penalties: Penalty | Iterable[Penalty] | Mapping[str, Penalty],
    alphas: Iterable[float],
    *,
    seeds: Iterable[int] = (0,),
    optimizer_fn: Callable[[Module, Penalty], Any],
    batch_fn: Callable[..., Any],
    steps: int,
    score_fn: Callable[..., Mapping[str, Any]],
    schedule_fn: Callable[[Any], Any] | None = None,
    chunk: int | None = None,
    randomness: Randomness = "error",
    tolerance: float | None = None,
    out: str | Path | None = None,
    progress: bool = True,
    on_change: OnChange = "error",
) -> Ablation:
    """Train the models of all penalties, strengths and seeds together, and keep every result as `ablate` does.

    The parameters of K models are stacked along a new first dimension: one launch computes a layer of all of them
    (`torch.func.functional_call` under `torch.vmap`), one optimizer steps the stacks, and each model takes the
    proximal step of its own penalty and strength, in its own metric. Each ends where the loop below ends for it, up to
    rounding, and has a row of its own in the directory ``out``::

        model = model_fn(seed)
        optimizer = optimizer_fn(model, penalty)  # the penalty at the cell's alpha
        for step in range(steps):
            optimizer.zero_grad()
            loss_fn(model, batch_fn(step)).backward()
            optimizer.step()
        row = score_fn(model)

    Before anything is trained, two cells, of each penalty one at least, are made by this loop for up to 3 steps and
    compared. What pays is many small models, whose launches cost more than their arithmetic; large ones fill a device
    alone.

    Run the same line again to go on after Ctrl-C or a crash, or with more penalties, strengths or seeds: what has a row
    is not run again. Rows are written when the models of a chunk are trained. If training a chunk raises, or
    ``score_fn``, the cells are "failed" and are tried again by the next call.

    Args:
        loss_fn: (model, batch) -> loss, a 0-d tensor. ``model`` can be called and used as the module that it is.
            Nothing may depend on values of tensors by ``if`` or ``.item()``.
        model_fn: seed -> a new model on the device that it is to be trained on; the seed alone decides its values, and
            nothing else. Nothing is seeded for it: call ``torch.manual_seed(seed)``.
        penalties: as of `ablate`.
        alphas: strengths, >= 0, none twice.
        seeds: whole numbers from 0 to 2**32 - 1.
        optimizer_fn: (model, penalty) -> `ProxOptimizer` on a base of torch's whose update of an entry depends on that
            entry alone: SGD, Adam, AdamW, NAdam, RAdam, RMSprop, Adagrad, Adamax, Adadelta. Its options are the same
            for all strengths and seeds.
        batch_fn: step -> batch for all models, or, if it has an argument ``seed``, (step, seed) -> batch for each seed.
            The same batch comes for the same arguments, whenever it is asked for.
        steps: optimizer steps, >= 1.
        score_fn: trained model -> metrics, as what ``run`` returns to `ablate`. If it has an argument ``cell`` it is
            given the `Cell` too, by keyword, with a directory for files.
        schedule_fn: optimizer -> learning rate schedule of `torch.optim.lr_scheduler`, stepped after each step.
        chunk: how many models at most are trained at once; None for all. K models take K times the memory of one.
        randomness: what `torch.vmap` does where ``loss_fn`` draws random numbers, as dropout does: "error" refuses;
            "different" draws for each model, "same" once for all. A model's draws are then not those of a run alone and
            depend on which models it is trained with; the check is made in evaluation mode.
        tolerance: by what share of the way that it goes a model may be off in the check, beside what rounding is found
            to do; None for ten times the root of its dtype's precision, 0.003 in float32. Where the loss computes in
            half precision (autocast) that is too little; 0.1 is not.
        out: a directory of this ablation's own; None takes ``runs/`` and the name of ``model_fn``.
        progress: bars, where the output is a terminal.
        on_change: as of `ablate`, of all the functions and ``steps``.

    Returns:
        An `Ablation` of all rows in the directory. A row's ``seconds`` are its share of the training of its chunk, and
        its own score.

    Raises:
        BatchingError: if these models cannot be trained together, or the two cells differ from those trained alone.
        TypeError: if a function gives what it should not.
        ValueError: for an empty or repeated grid, optimizers that cannot be stacked, changed functions, a model or
            batch that is not decided by its seed or step.
        FileExistsError, LedgerBusy, LedgerError: as of `ablate`.

    Warns:
        CellsFailed: if cells have failed.

    Notes:
        Each model has its own buffers, so that batch norm trains as it does alone. For LSTM, GRU and RNN `torch.vmap`
        has no rule.

    Example:
        >>> import tempfile, torch
        >>> from torchreg import L1, ProxOptimizer, attach, sparsity
        >>> from torchreg.ablation import ablate_batched
        >>> x = torch.eye(4)
        >>> def model_fn(seed):
        ...     torch.manual_seed(seed)
        ...     return torch.nn.Linear(4, 1)
        >>> def loss_fn(model, batch):
        ...     return (model(batch).squeeze(1) - torch.tensor([3.0, 0.0, 0.0, 0.0])).square().mean()
        >>> def optimizer_fn(model, penalty):
        ...     return ProxOptimizer(torch.optim.SGD(model.parameters(), lr=0.3), attach(penalty, model))
        >>> def score_fn(model):
        ...     return {"zeros": int((model.weight == 0).sum())}
        >>> with tempfile.TemporaryDirectory() as out:
        ...     result = ablate_batched(
        ...         loss_fn, model_fn, L1(1.0), [0.0, 0.1, 10.0], seeds=range(2), optimizer_fn=optimizer_fn,
        ...         batch_fn=lambda step: x, steps=200, score_fn=score_fn, out=out, progress=False,
        ...     )
        >>> [row["zeros"] for row in result.rows]
        [0, 3, 4, 0, 3, 4]
    """
    if randomness not in get_args(Randomness):
        raise ValueError(f"randomness must be one of {list(get_args(Randomness))}, got {randomness!r}.")
    if tolerance is not None and not 0.0 <= tolerance < 1.0:
        raise ValueError(f"tolerance must be >= 0 and < 1, or None, got {tolerance!r}.")
    functions = {"loss_fn": loss_fn, "model_fn": model_fn, "optimizer_fn": optimizer_fn, "batch_fn": batch_fn}
    functions |= {"score_fn": score_fn} | ({} if schedule_fn is None else {"schedule_fn": schedule_fn})
    for name, function in functions.items():
        if not callable(function):
            raise TypeError(f"{name} must be a function, got {function!r:.100}.")
    by_seed = takes(batch_fn, "seed")
    recipe = Recipe(loss_fn, model_fn, optimizer_fn, batch_fn, schedule_fn, _count("steps", steps), randomness, by_seed)
    size = None if chunk is None else _count("chunk", chunk)
    plan = Plan.of(penalties, alphas, seeds, None, None)
    run = BatchedRun(recipe, score_fn)
    session = Session(
        run, ("penalty", "seed", "cell"), out, workers=0, executor=None, timeout=None, retries=0, on_change=on_change,
        progress=progress,
    )  # fmt: skip
    with session:
        rows = session.rows()
        todo = [c for (c,) in plan.chains() if c.key not in rows or rows[c.key]["status"] != "ok"]
        check_against_solo(recipe, _few(todo), tolerance)
        run.give(todo, size or len(todo), progress=progress)
        session.run(plan)
    ablation = Ablation.load(session.path)
    warn_of_failures(ablation)
    return ablation


def _few(cells: Sequence[CellSpec]) -> list[CellSpec]:
    """Two cells or more, one of each penalty, as different in seed and alpha as they come."""
    chosen = list({cell.name: cell for cell in cells}.values())
    if len(chosen) == 1:
        last = chosen[0]
        chosen += sorted(cells[:-1], key=lambda c: (c.seed == last.seed, c.alpha == last.alpha))[:1]
    return chosen


def _count(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number >= 1, got {value!r}.")
    return value
