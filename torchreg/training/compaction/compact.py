"""A smaller model that computes the same function: units that are zero, constant or unread are cut out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch.nn import Module
from torch.nn.parameter import UninitializedParameter

from torchreg.functional.dtensor import is_cut
from torchreg.training.compaction.classes import KeptClasses
from torchreg.training.compaction.cost import measure_pair
from torchreg.training.compaction.graph import UnitGraph, unit_graph
from torchreg.training.compaction.modules import UnitCount, copied, shrink_modules
from torchreg.training.compaction.named_sizes import NamedSizes, changed_sizes, connected, with_literals
from torchreg.training.compaction.removal import exact_in_training, held_tensors, remove_units
from torchreg.training.compaction.report import CompactReport, count_flops, count_parameters, layer_changes
from torchreg.training.compaction.same_function import Arguments, Trial, seeded

_MOST_GROUPS = 64  # of modules whose named sizes are tried one by one


def compact(model: Module, example_inputs: Any, *, repeats: int = 20) -> tuple[Module, CompactReport]:
    """A smaller copy of a model that computes the same function, with a report.

    Removed are output units of layers that are constant for every input (a row of zeros gives its bias, whatever
    element-wise functions make of it) or that nothing reads (all their columns are zero), with the columns, filters,
    norm entries and biases that belong to them: in linear layers, convolutions (of grouped ones whole groups), batch,
    group and RMS norms, embeddings and attention heads, through element-wise functions, residual sums,
    concatenations, reshapes and pooling. Constants that are not zero move into the next layer's bias. A layer keeps
    one unit at least. What enters a layer norm stays, since mean and variance count it.

    The copy is of the model's own class; where the code itself holds numbers that no longer fit, it is a
    ``torch.fx.GraphModule``. The function is that of evaluation mode; ``report.exact_in_training`` says whether
    training mode agrees. Removals are checked on the example, on disturbed inputs and on longer ones, where the model
    takes them; what does not reproduce the outputs in float64 is taken back, and the report says so.

    Recurrent layers lose the hidden units that stay zero whatever the input, ``nn.MultiheadAttention`` its heads, and
    torch's transformer layers their neurons; the modules in their place take and return the same sizes, but no
    attention weights.

    Only the forward pass that the example takes is followed: code that takes other layers for other inputs may find
    sizes that no longer fit. Batch sizes and lengths are free as before.

    Args:
        model: the model, which is not changed.
        example_inputs: what its forward pass takes: a tensor, a tuple of positional arguments, or a dict of keyword
            arguments; two samples are enough to compact, but time is measured on these.
        repeats: measurements of each model, of which the report's latencies are the medians; 0 measures nothing.

    Returns:
        The smaller model, in the same mode as the model, and a `CompactReport`.

    Raises:
        TypeError: if ``model`` is no module.
        ValueError: if ``repeats`` is no whole number >= 0, parameters have no values (lazy, on the meta device) or are
            cut over processes, or the model does not run on ``example_inputs``.

    Example:
        >>> import torch
        >>> from torchreg import compact
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> _ = model[0].weight.data[2:].zero_()
        >>> smaller, report = compact(model, torch.randn(2, 4), repeats=0)
        >>> report
        name        before  after  zeros left
        0.weight    8 x 4   2 x 4
        2.weight    2 x 8   2 x 2
        parameters  58      16
        FLOPs       192     48
    """
    model, arguments = checked(model), as_arguments(example_inputs)
    if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 0:
        raise ValueError(f"compact needs repeats >= 0, a whole number, got {repeats!r}.")
    smaller, report = _compacted(model, arguments)
    if repeats:
        report = replace(report, cost=measure_pair(model, smaller, example_inputs, repeats=repeats))
    return smaller, report


@seeded()
def _compacted(model: Module, arguments: Arguments) -> tuple[Module, CompactReport]:
    twin = copied(model).eval()
    try:
        trial = Trial(twin, arguments)
    except Exception as error:
        raise ValueError(
            f"The model does not run on example_inputs ({type(error).__name__}: {error}); give a tensor, a tuple of "
            "positional arguments or a dict of keyword arguments of its forward."
        ) from error
    numbers = count_parameters(model), count_flops(twin, arguments)
    reduced, modules, same = _reduced(model, trial)
    solution, graph, smaller, left, renamed = None, None, copied(reduced), list[str](), tuple[str, ...]()
    try:
        graph = unit_graph(copied(reduced), arguments)
    except Exception as error:
        left = [f"all, since torch.export cannot take the forward pass ({type(error).__name__}: {_start(error)})"]
    if graph is not None:
        smaller, solution, left, renamed = _smaller(reduced, graph, trial)
    layers = () if graph is None or solution is None else layer_changes(reduced, smaller, graph, solution)
    if graph is not None and solution is not None:
        same = bool(same and exact_in_training(graph, solution) and not trial.trains_otherwise(smaller))
    flops = count_flops(copied(smaller).eval(), arguments)
    report = CompactReport(
        layers,
        (numbers[0], count_parameters(smaller)),
        None if flops is None or numbers[1] is None else (numbers[1], flops),
        same,
        type(smaller) is not type(reduced),
        tuple(left),
        modules,
        renamed,
    )
    return smaller, report


def _reduced(model: Module, trial: Trial) -> tuple[Module, tuple[UnitCount, ...], bool]:
    """A copy whose recurrent, attention and transformer layers are smaller, and whether it trains alike."""
    reduced, counts = shrink_modules(model)
    if all(count.reason for count in counts):
        return reduced, counts, True
    why = trial.differs(copied(reduced).eval(), folded=True)
    if not why:
        return reduced, counts, not trial.trains_otherwise(reduced)
    kept = [replace(c, after=c.before, reason=c.reason or f"the model needs them ({why})") for c in counts]
    return copied(model), tuple(kept), True


def _start(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")[:160]


def as_arguments(example_inputs: Any) -> Arguments:
    """Positional and keyword arguments of a forward pass."""
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, (tuple, list)) and not hasattr(example_inputs, "_fields"):
        return tuple(example_inputs), {}
    return (example_inputs,), {}


def checked(model: Any) -> Module:
    """The model out of its compiled wrapper, if its parameters are here and have values."""
    if not isinstance(model, Module):
        raise TypeError(f"compact takes a torch.nn.Module, compact(model, example_inputs), got {type(model).__name__}.")
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    for name, tensor in held_tensors(model).items():
        if isinstance(tensor, UninitializedParameter) or tensor.is_meta:
            raise ValueError(f"{name!r} has no values yet; load the weights or run one batch, then compact.")
        if is_cut(tensor):
            raise ValueError(f"{name!r} is cut over processes; gather the model (full_tensor), then compact.")
    return model


def _smaller(
    model: Module, graph: UnitGraph, trial: Trial
) -> tuple[Module, KeptClasses | None, list[str], tuple[str, ...]]:
    """The smallest model that passes the trial; where named sizes are in the way, their units stay."""
    solution = graph.classes.solve()
    found, why, names = _cut(model, graph, solution, trial)
    if found is not None:
        return found, solution, [], names
    places = _pin_sizes(model, graph, solution, trial)
    named = ", ".join(repr(place) if place else "the model" for place in places[:4]) + ", ..." * (len(places) > 4)
    left = [f"units whose number the code of {named} names ({why})"]
    solution = graph.classes.solve()
    found, why, names = _cut(model, graph, solution, trial)
    if found is not None:
        return found, solution, left, names
    return copied(model), None, [f"all, since the smaller model fails its check: {why}"], ()


def _pin_sizes(model: Module, graph: UnitGraph, solution: KeptClasses, trial: Trial) -> list[str]:
    """Keep the units whose numbers the code names where they cannot change; the names of those modules."""
    classes, places = graph.classes, list(changed_sizes(graph, solution))
    groups, failing = connected(places, graph, solution), set[str]()

    def keep(names: set[str]) -> None:
        for path, units, words in graph.edits:
            if path in names:
                classes.pin(units, f"is one of a number that the code names ({words})")

    for group in groups if 1 < len(groups) <= _MOST_GROUPS else []:
        before = dict(classes.pinned)
        keep(set(places) - group)
        if _cut(model, graph, classes.solve(), trial)[0] is None:
            failing |= group
        classes.pinned = before
    keep(failing or set(places))
    return [place for place in places if place in failing or not failing]


def _cut(
    model: Module, graph: UnitGraph, solution: KeptClasses, trial: Trial
) -> tuple[Module | None, str, tuple[str, ...]]:
    """A copy without the units that go, if it computes the same, else why not; and the attributes that changed."""
    sizes, smaller = changed_sizes(graph, solution), copied(model)
    folded = remove_units(smaller, graph, solution)
    names = NamedSizes(smaller, sizes)
    why = names.fit(lambda: _failure(smaller, trial, folded))
    if not why:
        return smaller, "", names.changed
    traced = with_literals(_unnamed(model, graph, solution), sizes) if sizes else None
    if traced is not None and not _failure(traced, trial, folded):
        return traced, "", ()
    return None, why, ()


def _unnamed(model: Module, graph: UnitGraph, solution: KeptClasses) -> Module:
    smaller = copied(model)
    remove_units(smaller, graph, solution)
    return smaller


def _failure(smaller: Module, trial: Trial, folded: bool) -> str:
    why = trial.differs(copied(smaller).eval(), folded=folded)
    if why:
        return why
    trained = trial.trains_otherwise(smaller, wide=False)
    return trained if trained.startswith("it returns") else ""
