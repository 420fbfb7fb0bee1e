"""Whether two models compute the same function, tried on inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, functional
from torch.overrides import TorchFunctionMode

from torchreg.functional.torch_private import tree_leaves, tree_map
from torchreg.training.compaction.modules import copied

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
_DROPOUTS = (
    *(functional.dropout, functional.dropout1d, functional.dropout2d, functional.dropout3d),
    *(functional.alpha_dropout, functional.feature_alpha_dropout),
)


class _NoDropout(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _DROPOUTS:
            return args[0] if args else kwargs["input"]
        if func is functional.scaled_dot_product_attention:
            args = (*args[:4], 0.0, *args[5:]) if len(args) > 4 else args
            kwargs.update({"dropout_p": 0.0} if "dropout_p" in kwargs else {})
        return func(*args, **kwargs)


class Trial:
    """A model's outputs on its example, on two disturbed ones and on longer ones, in float64 too, to compare with.

    Args:
        model: a copy, in evaluation mode; other inputs than the example count where it takes them.
        arguments: the example.
    """

    def __init__(self, model: Module, arguments: Arguments) -> None:
        self.model = model
        self.inputs, self.outputs = [arguments], [outputs(model, arguments)]
        for given in (disturbed(arguments, 1), disturbed(arguments, 2), *longer(disturbed(arguments, 3))):
            try:
                made = outputs(model, given)
            except Exception:  # it asks for more of its inputs than their shapes
                continue
            self.inputs.append(given)
            self.outputs.append(made)
        self.wide = self._wide(model)

    def _wide(self, model: Module) -> list[list[Any]] | None:
        """Outputs in float64, None where the model cannot be run so."""
        try:
            double = copied(model).double()
            return [outputs(double, _double(given)) for given in self.inputs]
        except Exception:  # a model may name its dtype
            return None

    def differs(self, other: Module, *, folded: bool) -> str:
        """How another model differs, "" if it does not.

        Args:
            other: the model, in evaluation mode.
            folded: whether biases were rounded to the model's own precision.
        """
        try:
            found = [outputs(other, given) for given in self.inputs]
        except Exception as error:
            return f"its code does not run with the new sizes ({_first_line(error)})"
        why = _difference(self.outputs, found, _as_it_is(other))
        wide = None if why or self.wide is None else self._wide(other)
        if self.wide is None or wide is None:
            return why
        return _difference(self.wide, wide, _rounded(other) if folded else 1e-10)

    def trains_otherwise(self, other: Module, *, wide: bool = True) -> str:
        """How another model differs in training mode without dropout, "" if it does not.

        Args:
            other: the model.
            wide: whether to compare in float64 where the model can be run so.
        """
        wide = wide and self.wide is not None
        given = _double(self.inputs[0]) if wide else self.inputs[0]
        mine, its = (
            _trained(copied(model).double() if wide else copied(model), given) for model in (self.model, other)
        )
        return _difference(mine, its, _rounded(other) if wide else _as_it_is(other))


def _as_it_is(model: Module) -> float:
    """What sums in another order may change in a model's own precision, relative to its outputs."""
    return min(max(1e-10, 1000 * _coarsest(model)), 0.1)


def _rounded(model: Module) -> float:
    """What biases may change that are rounded to a model's own precision, in float64 otherwise."""
    return max(1e-10, 8 * _coarsest(model))


def _coarsest(model: Module) -> float:
    return max((_eps(p.dtype) for p in model.parameters()), default=0.0)


def _trained(model: Module, given: Arguments) -> list[list[Any]]:
    try:
        with _NoDropout():
            return [outputs(model.train(), given)]
    except Exception as error:  # a model may be one for evaluation alone
        return [[_first_line(error)]]


def outputs(model: Module, arguments: Arguments) -> list[Any]:
    """Tensors and other leaves that a model returns; the global random state stays as it is."""
    with torch.no_grad(), seeded():
        made = model(*tree_map(_fresh, arguments[0]), **tree_map(_fresh, arguments[1]))
    return [leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in tree_leaves(made)]


def _fresh(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf


@contextmanager
def seeded() -> Iterator[None]:
    """One random state inside, the caller's outside."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(0)
        yield


def disturbed(arguments: Arguments, seed: int) -> Arguments:
    """Other inputs of the same shapes: noise added to numbers, integers shuffled."""
    generator = torch.Generator().manual_seed(seed)

    def other(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.numel() or leaf.dtype is torch.bool:
            return leaf
        if leaf.is_floating_point():
            noise = torch.randn(leaf.shape, generator=generator, dtype=torch.float64)
            return leaf + (noise * float(leaf.detach().double().std(correction=0) + 0.1)).to(leaf)
        if leaf.is_complex():
            return leaf
        order = torch.randperm(leaf.numel(), generator=generator).to(leaf.device)
        return leaf.reshape(-1)[order].reshape(leaf.shape)

    made: Arguments = tree_map(other, arguments)
    return made


def longer(arguments: Arguments) -> Iterator[Arguments]:
    """Inputs of twice the size along a dimension: in that dimension of each tensor, or wherever they have that size."""
    first = next((leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor) and leaf.dim()), None)
    for dim, size in enumerate(() if first is None else first.shape):

        def same_place(leaf: Any, dim: int = dim, size: int = size) -> Any:
            fits = isinstance(leaf, Tensor) and leaf.dim() > dim and leaf.shape[dim] == size
            return torch.cat([leaf, leaf], dim) if fits else leaf

        def same_size(leaf: Any, size: int = size) -> Any:
            for d in range(leaf.dim() if isinstance(leaf, Tensor) else 0):
                leaf = torch.cat([leaf, leaf], d) if leaf.shape[d] == size else leaf
            return leaf

        for stretched in (same_place, same_size):
            made: Arguments = tree_map(stretched, arguments)
            yield made


def _double(arguments: Arguments) -> Arguments:
    to: Callable[[Any], Any] = lambda a: a.double() if isinstance(a, Tensor) and a.is_floating_point() else a  # noqa: E731
    made: Arguments = tree_map(to, arguments)
    return made


def _difference(ours: list[list[Any]], theirs: list[list[Any]], tolerance: float) -> str:
    for some, others in zip(ours, theirs, strict=True):
        if len(some) != len(others):
            return "it returns another number of outputs"
        for a, b in zip(some, others, strict=True):
            if not isinstance(a, Tensor) or not isinstance(b, Tensor):
                if isinstance(a, Tensor) or isinstance(b, Tensor) or not _equal(a, b):
                    return f"it returns {b!r} in place of {a!r}, or what cannot be compared"
                continue
            if a.shape != b.shape or a.dtype != b.dtype:
                return f"it returns shape {tuple(b.shape)} in place of {tuple(a.shape)}"
            a, b = a.detach().cpu(), b.detach().cpu()
            if not a.is_floating_point():
                if not torch.equal(a, b):
                    return "it returns other integers"
                continue
            scale = float(a[a.isfinite()].abs().max()) if a.isfinite().any() else 1.0
            if not torch.allclose(a.double(), b.double(), rtol=0.0, atol=tolerance * max(scale, 1e-30), equal_nan=True):
                gap = float((a.double() - b.double()).abs().max())
                return f"its outputs differ by {gap:.1e} of {scale:.1e}"
    return ""


def _equal(a: Any, b: Any) -> bool:
    """Whether two outputs that are no tensors are the same; objects that compare by identity are not."""
    try:
        return type(a) is type(b) and (bool(a == b) or (a != a and b != b))
    except Exception:
        return False


def _eps(kind: torch.dtype) -> float:
    return torch.finfo(kind).eps if kind.is_floating_point else 0.0


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:120] if str(error).strip() else ''}".strip(
        ": "
    )
