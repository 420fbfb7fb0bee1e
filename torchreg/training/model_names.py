"""The tensors that a model has now under the names by which a term knows its parameters.

``load_state_dict(assign=True)``, a replaced head and ``fully_shard`` put other tensors under the same names.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping

from torch import Tensor
from torch.nn import Module


class ModelNames:
    """Where named parameters lie in a model, which is not kept alive.

    Args:
        model: the module that has them.
        named: name -> parameter, by names of a selector: those of wrappers left out.
    """

    def __init__(self, model: Module, named: Mapping[str, Tensor]) -> None:
        self._model = weakref.ref(model)
        paths: dict[int, list[str]] = {}
        for path, p in model.named_parameters(remove_duplicate=False):
            paths.setdefault(id(p), path.split("."))
        self._paths = {name: paths[id(p)] for name, p in named.items()}

    def tensor(self, name: str) -> Tensor | None:
        """What the model has under this name, None where it has no such parameter or is gone itself."""
        *modules, leaf = self._paths[name]
        module = self._model()
        for child in modules:
            module = None if module is None else module._modules.get(child)
        return None if module is None else module._parameters.get(leaf)

    def present(self, known: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The model's tensors; that known before where the name is gone."""
        found = {name: self.tensor(name) for name in known}
        return {name: p if (now := found[name]) is None else now for name, p in known.items()}

    def lost(self, known: Mapping[str, Tensor]) -> list[str]:
        """The names of which the model has neither the name nor the tensor that was known before."""
        model = self._model()
        gone = [name for name in known if self.tensor(name) is None]
        if model is None or not gone:
            return []
        there = {id(p) for p in model.parameters()}
        return [name for name in gone if id(known[name]) not in there]
