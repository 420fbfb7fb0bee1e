"""Penalties of what modules put out: sparse codes, small activations."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import Module

from torchreg.functional.shrinkage import Scalar
from torchreg.functional.torch_private import in_backward
from torchreg.penalties import Penalty

_MANY = 1000  # outputs that nobody has asked for

Collected = tuple[Tensor, str, list[tuple[Tensor, int]]]  # a value, its module, the outputs as they were


class ActivityTerm:
    """The penalty of modules' outputs, to add to a loss; made by `attach_activity`.

    ``activity()`` is the sum over all outputs since it was last called, a 0-d tensor with a graph, and 0 where there
    were none. Add it once to the loss of each forward pass, or micro-batch: reading takes it.

    Attributes:
        penalty: the penalty; another may be assigned.
        modules: what is penalised, by name.
        last: the value last read, detached, for logs.
    """

    def __init__(
        self, penalty: Penalty, modules: dict[str, Module], of: Callable[[Any], Any] | None, batch_dim: int
    ) -> None:
        self.penalty, self.modules, self._of, self._dim = penalty, modules, of, batch_dim
        self.last: Tensor | None = None
        self._collected: list[Collected] = []
        self._without_graph: set[str] = set()
        self._names = {id(module): name for name, module in modules.items()}
        self._active = True
        self._handles = [module.register_forward_hook(self._collect) for module in modules.values()]

    @property
    def alpha(self) -> Scalar:
        """The penalty's strength, which can be read and assigned."""
        return self.penalty.alpha

    @alpha.setter
    def alpha(self, alpha: Scalar) -> None:
        self.penalty = self.penalty.with_alpha(alpha)

    def __call__(self) -> Tensor:
        """The penalty of what was put out since the last call.

        Raises:
            RuntimeError: if an output was changed in place since, so that its gradient is lost.
        """
        collected, self._collected = self._collected, []
        for _, name, outputs in collected:
            if any(x._version != version for x, version in outputs):
                raise RuntimeError(
                    f"The output of {name!r} was changed in place after it was penalised, so that its gradient is "
                    "lost; attach to the module that changes it (the ReLU, say), or make that with inplace=False."
                )
        values = [value for value, _, _ in collected]
        total = sum((v.to(values[0].device) for v in values[1:]), values[0]) if values else self._nothing()
        self.last = total.detach()
        return total

    def clear(self) -> None:
        """Forget what was put out since the last call, as of a forward pass that was not for training."""
        self._collected = []

    def remove(self) -> None:
        """Take the hooks off the modules; what was not read is forgotten."""
        for handle in self._handles:
            handle.remove()
        self._active = False
        self.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _nothing(self) -> Tensor:
        first = next((p for module in self.modules.values() for p in module.parameters()), None)
        return torch.zeros((), device=None if first is None else first.device)

    def _collect(self, module: Module, args: Any, output: Any) -> None:
        """The hook: a recomputed forward pass does the same work, which checkpointing counts on, and keeps nothing."""
        if not (self._active and module.training):
            return
        name = self._names.get(id(module), type(module).__name__)  # a shallow copy has the same hook
        again = in_backward()
        if not torch.is_grad_enabled():
            self._without_graph.add(name)
            return
        if again and name in self._without_graph:
            raise RuntimeError(
                f"{name!r} lies in a reentrant checkpoint, whose first forward pass has no graph, so that its activity "
                "cannot be in the loss; use torch.utils.checkpoint.checkpoint(..., use_reentrant=False)."
            )
        chosen = output if self._of is None else self._of(output)
        outputs = list({id(x): x for x in _tensors(chosen) if x.is_floating_point()}.values())
        if not outputs:
            raise TypeError(
                f"attach_activity found no floating-point tensor in the output of {name!r}, got "
                f"{type(chosen).__name__}; give of=..., a function from the output to tensors."
            )
        for x in outputs:
            value = self._mean(x)
            if not again:
                kept = [] if torch.compiler.is_compiling() else [(x, x._version)]
                self._collected.append((value, name, kept))
        if not again:
            self._without_graph.discard(name)
            self._tell()

    def _mean(self, x: Tensor) -> Tensor:
        x = x.movedim(self._dim, 0) if x.dim() else x  # a row is a sample
        with torch.autocast(x.device.type, enabled=False):
            return self.penalty.value(x) / max(x.shape[0] if x.dim() else 1, 1)

    def _tell(self) -> None:
        if len(self._collected) == _MANY:
            warnings.warn(
                f"{_MANY} outputs of {list(self.modules)[:3]} were penalised and not read, and all are kept: add "
                "activity() to the loss after each forward pass, call activity.clear() after one that has none, or "
                "run it under torch.no_grad(). A copied model has its own term: copy.deepcopy((model, activity)).",
                stacklevel=3,
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_collected": [], "_without_graph": set(), "last": None, "_names": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._names = {id(module): name for name, module in self.modules.items()}

    def __repr__(self) -> str:
        return f"{self.penalty} of the output of {', '.join(self.modules)}"


def attach_activity(
    penalty: Penalty,
    modules: Module | Iterable[Module] | Mapping[str, Module],
    *,
    of: Callable[[Any], Any] | None = None,
    batch_dim: int = 0,
) -> ActivityTerm:
    """Penalise what modules put out, as a mean over the batch: Keras's ``activity_regularizer``.

    ``activity() = sum over outputs of penalty(output) / batch size``, in float32 at least, to be added to the loss of
    each forward pass: ``(loss + activity()).backward()``. Outputs are shrunk, and zeros come from the network's own
    (ReLU). A module that is called several times in a pass counts each time, one in eval mode or under ``no_grad`` not
    at all. Each rank of DDP has the mean of its share, so that the averaged gradients are those of the whole batch. A
    forward pass that `torch.utils.checkpoint` repeats does not count again.

    Args:
        penalty: any penalty; of its parts that act on rows, a row is a sample.
        modules: a module, several, or a dict by name.
        of: which outputs, a function from a module's output to a tensor or tensors; None for all floating-point ones in
            tuples, lists, dicts and dataclasses.
        batch_dim: the dimension of an output that counts samples.

    Returns:
        An `ActivityTerm`, with ``remove()``; as a context manager it removes itself.

    Raises:
        TypeError: if something is no penalty or no module, or ``batch_dim`` no int.
        ValueError: if there is no module, or one twice.

    Notes:
        Attach before ``torch.compile(model)``, which looks at hooks when it compiles. Copies and pickles of a module
        carry a term of their own. Keras divides by the batch size too; a ``penalty(model)`` of weights does not.

    Source:
        Olshausen and Field, Nature 381, 1996 (sparse codes); Glorot, Bordes and Bengio, AISTATS 2011.

    Example:
        >>> import torch
        >>> from torchreg import L1, attach_activity
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU())
        >>> activity = attach_activity(L1(0.5), model[1])
        >>> out = model(torch.ones(4, 3))
        >>> bool(activity() == 0.5 * out.abs().sum() / 4)
        True
        >>> activity()  # read once
        tensor(0.)
        >>> activity.remove()
    """
    if not isinstance(penalty, Penalty):
        raise TypeError(f"attach_activity takes the penalty first, got {type(penalty).__name__}; use L1(1e-4), say.")
    named = dict(_named(modules))
    if odd := [type(m).__name__ for m in named.values() if not isinstance(m, Module)]:
        raise TypeError(f"attach_activity acts on modules' outputs, got {odd[0]}; give model.layer, or a list of them.")
    if not named:
        raise ValueError("attach_activity was given no modules; give model.layer, or a list of them.")
    if isinstance(batch_dim, bool) or not isinstance(batch_dim, int):
        raise TypeError(f"attach_activity needs batch_dim as an int, got {batch_dim!r}; 0 where samples come first.")
    if len({id(m) for m in named.values()}) < len(named):
        raise ValueError(f"attach_activity was given a module twice among {list(named)}; give each once.")
    return ActivityTerm(penalty, named, of, batch_dim)


def _named(modules: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(modules, Module):
        modules = [modules]
    if isinstance(modules, Mapping):
        yield from modules.items()
    elif isinstance(modules, Iterable):
        yield from ((f"{type(m).__name__} {k}", m) for k, m in enumerate(modules))
    else:
        yield "", modules


def _tensors(output: Any) -> Iterator[Tensor]:
    """The tensors in nested outputs."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, (tuple, list)):
        for value in output:
            yield from _tensors(value)
    elif hasattr(output, "__dataclass_fields__"):
        for field in output.__dataclass_fields__:
            yield from _tensors(getattr(output, field))
