"""What a model costs to run before and after a change: parameters, operations, time and memory."""

from __future__ import annotations

import math
import statistics
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from torchreg.functional.torch_private import TorchDispatchMode, tree_leaves, tree_map_only, without_libraries
from torchreg.text_table import text_table
from torchreg.training.alpha_max import restored
from torchreg.training.compaction.sparse_linear import SparseLinear

_LEAST = 5e-4  # seconds that one measurement lasts: a shorter call is repeated within it
_MOST_CALLS = 50  # in one measurement
_WARM = 3  # calls before measuring


@dataclass(frozen=True)
class Cost:
    """What two models cost at the same inputs, each pair (before, after); prints as a table.

    Attributes:
        parameters: entries of the parameters, shared ones once; of a sparse weight the entries that it stores.
        flops: floating-point operations of one forward pass in matrix products, convolutions and attention; a sparse
            weight counts as a dense one.
        seconds: medians of a forward pass, the two models taking turns.
        memory: bytes of parameters and buffers, and of what a forward pass has alive beside them and its inputs, at
            the peak. On an accelerator as its allocator counts; on the CPU the tensors that operators return, fused
            layers taken apart.
        repeats: measurements of each model.
        device: where they ran.
    """

    parameters: tuple[int, int]
    flops: tuple[int, int]
    seconds: tuple[float, float]
    memory: tuple[int, int]
    repeats: int
    device: str

    @property
    def speedup(self) -> float:
        """How many times faster the second model is."""
        return self.seconds[0] / self.seconds[1]

    def __repr__(self) -> str:
        times = tuple(f"{t * 1e3:.4g} ms" for t in self.seconds)
        sizes = tuple(f"{b / 2**20:.4g} MiB" for b in self.memory)
        rows = [
            ("parameters", *(f"{n:,}" for n in self.parameters), _ratio(*self.parameters)),
            ("FLOPs", *(f"{n:,}" for n in self.flops), _ratio(*self.flops)),
            ("latency", *times, _ratio(*self.seconds)),
            ("peak memory", *sizes, _ratio(*self.memory)),
        ]
        head = (f"median of {self.repeats}, {self.device}", "before", "after", "before / after")
        return text_table(head, rows)


def measure_pair(before: Module, after: Module, example_inputs: Any, *, repeats: int = 20) -> Cost:
    """Parameters, operations, latency and peak memory of two models that take the same inputs.

    Both run in eval mode without gradients, in turns within one run, so that what else the machine does meets both.
    Modes, buffers, gradients and the random state are afterwards as they were; an accelerator's statistics of peak
    memory are reset.

    Args:
        before: a model.
        after: the model to compare with it.
        example_inputs: a tensor, a tuple or list of positional arguments, or a mapping of keyword arguments, on the
            models' device.
        repeats: measurements of each model, at least 1; the median is robust from 20.

    Returns:
        A `Cost`.

    Raises:
        TypeError: if a model is no module.
        ValueError: if ``repeats`` is no whole number >= 1.

    Example:
        >>> from torch import nn
        >>> x = torch.ones(8, 4)
        >>> cost = measure_pair(nn.Linear(4, 6), nn.Linear(4, 3), x, repeats=3)
        >>> cost.parameters, cost.flops
        ((30, 15), (384, 192))
    """
    for name, model in (("before", before), ("after", after)):
        if not isinstance(model, Module):
            raise TypeError(f"measure_pair needs a torch.nn.Module as {name!r}, got {type(model).__name__}.")
    if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 1:
        raise ValueError(f"measure_pair needs repeats >= 1, a whole number, got {repeats!r}.")
    models = (before, after)
    device = device_of(example_inputs, *models)
    with as_they_were(*models):
        run = [caller(model, example_inputs) for model in models]
        seconds = medians_in_turns(run, repeats, device)
        found = [counted(caller(getattr(model, "_orig_mod", model), example_inputs)) for model in models]
        flops, live = zip(*found, strict=True)
        peaks = [_peak(call, device) or least for call, least in zip(run, live, strict=True)]
    sizes = [(_entries(model), _bytes(model)) for model in models]
    return Cost(
        (sizes[0][0], sizes[1][0]),
        (flops[0], flops[1]),
        (seconds[0], seconds[1]),
        (sizes[0][1] + peaks[0], sizes[1][1] + peaks[1]),
        repeats,
        str(device),
    )


def caller(model: Module, example_inputs: Any) -> Callable[[], Any]:
    """A call of the model at a copy of the inputs, which an in-place layer may overwrite."""
    inputs = tree_map_only(Tensor, lambda x: x.detach().clone(), example_inputs)
    if isinstance(inputs, Mapping):
        return lambda: model(**inputs)
    if isinstance(inputs, (tuple, list)) and not hasattr(inputs, "_fields"):
        return lambda: model(*inputs)
    return lambda: model(inputs)


def device_of(example_inputs: Any, *models: Module) -> torch.device:
    """The accelerator that inputs or parameters lie on, else the CPU."""
    tensors = [x for x in tree_leaves(example_inputs) if isinstance(x, Tensor)]
    tensors += [p for model in models for p in (*model.parameters(), *model.buffers())]
    return next((t.device for t in tensors if t.device.type != "cpu"), torch.device("cpu"))


@contextmanager
def as_they_were(*models: Module) -> Iterator[None]:
    """Models in eval mode without gradients; afterwards all is as it was."""
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(restored(model, []))
        for model in models:
            for module in model.modules():
                module.training = False
        stack.enter_context(torch.no_grad())
        yield


def medians_in_turns(calls: Sequence[Callable[[], Any]], repeats: int, device: torch.device) -> list[float]:
    """Seconds of each call, the median of measurements in which the calls take turns."""
    for call in calls:
        for _ in range(_WARM):
            call()
    shortest = min(_seconds(call, _WARM, device) for call in calls)
    times = min(_MOST_CALLS, max(1, math.ceil(_LEAST / max(shortest, 1e-9))))  # the same for all
    taken: list[list[float]] = [[] for _ in calls]
    for turn in range(repeats):
        for k in range(len(calls)) if turn % 2 else reversed(range(len(calls))):
            taken[k].append(_seconds(calls[k], times, device))
    return [statistics.median(seconds) for seconds in taken]


def _seconds(call: Callable[[], Any], times: int, device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    for _ in range(times):
        call()
        _wait(device)
    return (time.perf_counter() - start) / times


def _wait(device: torch.device) -> None:
    if device.type in ("cpu", "meta"):
        return
    try:
        torch.accelerator.synchronize(device)
    except RuntimeError:  # a backend that cannot wait for all that it does
        torch.zeros((), device=device).item()


def _peak(call: Callable[[], Any], device: torch.device) -> int:
    """Bytes that the device's allocator handed out during a call, at the peak; 0 where it does not count."""
    if device.type in ("cpu", "meta"):
        return 0
    try:
        _wait(device)
        torch.accelerator.reset_peak_memory_stats(device)
        start = torch.accelerator.memory_allocated(device)
        call()
        _wait(device)
        return max(torch.accelerator.max_memory_allocated(device) - start, 0)
    except (RuntimeError, NotImplementedError, AttributeError):  # a device without statistics
        return 0


def counted(call: Callable[[], Any]) -> tuple[int, int]:
    """Operations of a call, and the bytes of the tensors that it makes, at the peak.

    Fused layers (encoder layers, recurrent ones, attention) hide what is in them, so they are taken apart for this.
    """
    live = LiveBytes()
    with _taken_apart(), FlopCounterMode(display=False) as counter, live:
        call()
    return int(counter.get_total_flops()), live.peak


@contextmanager
def _taken_apart() -> Iterator[None]:
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        with without_libraries(), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class LiveBytes(TorchDispatchMode):
    """Bytes of tensors that operators have returned and that are still alive, now and at most."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._note((args, kwargs), counted=False)  # a view of these or an in-place result is nothing new
        out = func(*args, **(kwargs or {}))
        self._note(out, counted=True)
        return out

    def _note(self, tensors: Any, *, counted: bool) -> None:
        for tensor in tree_leaves(tensors):
            if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided:
                continue
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes() if counted else 0
            if key not in self._known:
                self._known.add(key)
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _stored(model: Module) -> list[Tensor]:
    """The strided tensors that a model's parameters and buffers consist of, each once."""
    held = [t for tensor in (*model.parameters(), *model.buffers()) for t in _pieces(tensor)]
    return list({(t.untyped_storage()._cdata, t.storage_offset(), t.shape): t for t in held}.values())


def _pieces(tensor: Tensor) -> list[Tensor]:
    if hasattr(tensor, "__tensor_flatten__"):
        return [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
    return [tensor]


def _bytes(model: Module) -> int:
    return sum(t.numel() * t.element_size() for t in _stored(model))


def _entries(model: Module) -> int:
    sparse = sum(module.stored for module in model.modules() if isinstance(module, SparseLinear))
    return sparse + sum(p.numel() for p in model.parameters())


def _ratio(before: float, after: float) -> str:
    return f"{before / after:.2f}" if after else "-"
