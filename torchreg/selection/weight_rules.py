"""Whether a parameter multiplies activations, told by the class of its module and its own name.

1. A class given to `register_weights`: the parameters named there, no others.
2. Norms and embeddings: none.
3. Linear, Bilinear, convolutions, recurrent nets, MultiheadAttention and their subclasses: what a name calls a weight.
4. Any other class: what a name calls a weight, unless its shape is that of a vector that is broadcast.
5. What else a module holds itself (class tokens, position tables, state-space matrices): no.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from contextlib import suppress
from fnmatch import fnmatchcase
from typing import TypeVar, overload

from torch import Tensor, nn
from torch.nn import Module

from torchreg.functional.torch_private import NormBase

Kind = TypeVar("Kind", bound=type[Module])
NORMS = (NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_OTHERS = (nn.Linear, nn.Bilinear, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED, *_OTHERS)
_WEIGHT = re.compile(r"(weights?|kernels?|proj|projection|matrix|w[hikoqvx]{0,2})\d*")
_OTHER = re.compile(r"(bias(es)?|emb\w*|pos(ition\w*)?|tokens?|tables?|scales?|norm|gamma|beta|log)\d*")
_NORM_NAME, _EMBEDDING_NAME = re.compile(r"Norm(\dd)?$"), re.compile(r"Embed")
_registered: dict[type[Module], tuple[str, ...]] = {}

EMBEDDED, NORM = "belongs to an embedding", "belongs to a norm"
SMALL, BROADCAST = "has fewer than two dimensions", "is a vector that is broadcast"
ORDINARY = (EMBEDDED, NORM, SMALL, BROADCAST)  # not worth a word where a term is printed
UNKNOWN = "is of a module and under a name that are not known for weights"


@overload
def register_weights(module_type: Kind, *names: str) -> Kind: ...
@overload
def register_weights(module_type: str, *names: str) -> Callable[[Kind], Kind]: ...


def register_weights(module_type: Kind | str, *names: str) -> Kind | Callable[[Kind], Kind]:
    """Tell `weights` which parameters of a module class of your own multiply activations.

    Those named are penalised by default, whatever their shape, and no others that the class holds itself; it counts
    for subclasses too. A call, or a decorator that takes the names alone.

    Args:
        module_type: the class.
        names: names of its parameters, as shell patterns; none to leave all of them out.

    Raises:
        TypeError: if ``module_type`` is no module class, or a name is no str.

    Example:
        >>> import torch
        >>> from torchreg import register_weights, weights
        >>> @register_weights("core")
        ... class Mixing(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.core, self.start = (torch.nn.Parameter(torch.zeros(3, 3)) for _ in range(2))
        >>> list(weights(Mixing()))
        ['core']
    """
    if isinstance(module_type, str):
        return lambda decorated: register_weights(decorated, module_type, *names)
    if not (isinstance(module_type, type) and issubclass(module_type, Module)) or not all(
        isinstance(name, str) for name in names
    ):
        raise TypeError(
            f'register_weights takes a module class and names of its parameters, register_weights(Mixing, "core"), '
            f"got {(module_type, *names)!r}."
        )
    _registered[module_type] = names
    return module_type


class Classes:
    """The classes of a model's modules, those of scripted, traced and exported ones as they were before.

    Args:
        model: the model.
    """

    def __init__(self, model: Module) -> None:
        fx = sys.modules.get("torch.fx")
        self._graphs = [m for m in model.modules() if fx is not None and isinstance(m, fx.GraphModule)]
        self._before: dict[int, str] = {}
        for graph in self._graphs:
            for node in graph.graph.nodes:
                for path, kind in node.meta.get("nn_module_stack", {}).values():
                    self._note(graph, path, kind if isinstance(kind, str) else kind.__qualname__)

    def _note(self, graph: Module, path: str, kind: str) -> None:
        with suppress(AttributeError):  # a module that holds nothing is not kept
            self._before[id(graph.get_submodule(path))] = kind

    def name(self, module: Module) -> str | None:
        """The name of a module's class, None where it is lost."""
        name = getattr(module, "original_name", None)  # scripted and traced
        if type(module).__module__ == "torch.export.unflatten":
            name = module.type_name()  # type: ignore[operator]
        if not isinstance(name, str):
            name = self._before.get(id(module))
        if not isinstance(name, str) and self._graphs and (type(module) is Module or module in self._graphs):
            return None
        return name.rsplit(".", 1)[-1] if isinstance(name, str) else type(module).__name__

    def of(self, module: Module) -> type[Module]:
        """A module's class; for one that came out of a compiler the class of that name in torch.nn or registered."""
        name = self.name(module)
        if name is None or name == type(module).__name__:
            return type(module)
        own = {kind.__name__: kind for kind in _registered}
        found = own.get(name, getattr(nn, name, None))
        return found if isinstance(found, type) and issubclass(found, Module) else type(module)

    def reason(self, module: Module, name: str, p: Tensor) -> str:
        """Why a parameter of a module is no weight, "" if it is one.

        Raises:
            ValueError: if the module's class was lost in an export and the shape alone does not tell.
        """
        kind, called = self.of(module), self.name(module)
        named = next((_registered[base] for base in kind.__mro__ if base in _registered), None)
        if named is not None:
            known = any(fnmatchcase(name, pattern) for pattern in named)
            return "" if known else f"is not registered as a weight of {called}"
        if issubclass(kind, NORMS):
            return NORM
        if issubclass(kind, EMBEDDINGS):
            return EMBEDDED
        why = _by_name(called or "", issubclass(kind, _LAYERS), name, p)
        if called is None and why in ("", UNKNOWN):
            raise ValueError(
                f"{name!r} of shape {tuple(p.shape)} lies in a traced or exported module, whose class is lost; "
                "choose by the names of the model before that: {n: exported.get_parameter(n) for n in weights(model)}."
            )
        return why


def _by_name(called: str, layer: bool, name: str, p: Tensor) -> str:
    words = [word for word in name.lower().split("_") if word]
    other = any(_OTHER.fullmatch(word) for word in words)
    weight = not other and any(_WEIGHT.fullmatch(word) for word in words)
    if layer and weight:
        return ""
    if p.dim() < 2:
        return SMALL
    if not layer and _NORM_NAME.search(called):
        return NORM
    if not layer and _EMBEDDING_NAME.search(called):
        return EMBEDDED
    if sum(n > 1 for n in p.shape) < 2 and not (weight and p.dim() == 2):
        return BROADCAST
    if weight:
        return ""
    return "is by its name no weight" if other else UNKNOWN
