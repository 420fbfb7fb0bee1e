"""Every parameter of a model, with the layer's weight that it is or makes, and why a penalty leaves it out."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor
from torch.nn import Module, Parameter
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrize import ParametrizationList

from torchreg.selection.effective_weights import hooked, raw_reason, used
from torchreg.selection.weight_rules import EMBEDDED, NORM, Classes

_COMPILED = re.compile(r"(?:^|(?<=\.))_orig_mod\.")  # what torch.compile puts before a module's names


@dataclass(frozen=True)
class Found:
    """A parameter of a model.

    Attributes:
        name: its first name, without the prefixes of wrappers.
        p: the parameter.
        module: the layer.
        tensor: name in the layer of the weight that the parameter is or makes.
        layer: name of that weight in the model.
        layer_reason: why it is no weight, "" if it is.
        raw_reason: why the parameter is not to be penalised although it makes a weight, or "".
    """

    name: str
    p: Parameter
    module: Module
    tensor: str
    layer: str
    layer_reason: str
    raw_reason: str

    @property
    def reason(self) -> str:
        """Why the parameter is not penalised, "" if it is."""
        return self.layer_reason or self.raw_reason


def survey(model: Module) -> list[Found]:
    """Every parameter once, in the model's order; where several modules share one, embeddings and norms decide."""
    modules, classes, clean = dict(model.named_modules(remove_duplicate=False)), Classes(model), cleaner(model)
    found: dict[int, Found] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        if isinstance(p, UninitializedParameter):
            raise ValueError(
                f"{clean(name)!r} belongs to a lazy module and has no shape yet; run one batch through the model first."
            )
        path, _, local = name.rpartition(".")
        module, made = modules[path], None
        if isinstance(module, ParametrizationList):
            made, (path, _, tensor) = module, path.rpartition(".")
            path = path.rpartition(".")[0]
            module, why = modules[path], ""
            like = list(made.parameters(recurse=False))[-1]
        else:
            tensor, why = hooked(module, local)
            like = getattr(module, f"{tensor}_v", p) if tensor != local else p
        layer_reason = classes.reason(module, tensor, like)
        if made is not None and not layer_reason:
            why = raw_reason(made, local)
        layer = clean(f"{path}.{tensor}" if path else tensor)
        new = Found(clean(name), p, module, tensor, layer, layer_reason, why)
        old = found.setdefault(id(p), new)
        if old.layer_reason not in ("", EMBEDDED, NORM) or (not old.layer_reason and layer_reason in (EMBEDDED, NORM)):
            found[id(p)] = replace(new, name=old.name)
    return list(found.values())


def layer_weights(model: Module) -> dict[str, Tensor]:
    """The weights as the layers use them, frozen ones too: masked, and computed where they are parametrized."""
    return {f.layer: used(f.module, f.tensor) for f in survey(model) if not f.layer_reason}


def cleaner(model: Module) -> Callable[[str], str]:
    """The function that takes the prefixes of wrappers off a model's names."""
    names = [_COMPILED.sub("", name) for name, _ in model.named_parameters(remove_duplicate=False)]
    prefix = ""
    while names and all(name.startswith(f"{prefix}module.") for name in names):  # an average of a wrapped one has two
        prefix += "module."

    def clean(name: str) -> str:
        return _COMPILED.sub("", name).removeprefix(prefix)

    return clean
