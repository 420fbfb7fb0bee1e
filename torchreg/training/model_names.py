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
        """The model's tensors, that known before where the name is gone; one that was tied to another only once."""
        ids, found = {id(p) for p in known.values()}, {}
        for name, p in known.items():
            now = self.tensor(name)
            if now is None or now is p or id(now) not in ids:
                found[name] = p if now is None else now
        return found

    def refuse_lost(self, known: Mapping[str, Tensor]) -> None:
        """Raise RuntimeError where the model has neither a name nor the tensor that was known before."""
        model = self._model()
        gone = [name for name in known if self.tensor(name) is None]
        if model is None or not gone:
            return
        there = {id(p) for p in model.parameters()}
        lost = [name for name in gone if id(known[name]) not in there]
        if lost:
            raise RuntimeError(
                f"{type(model).__name__}, to which a term was attached, has no {lost[:3]} any more ({len(lost)} lost), "
                "neither the names nor the tensors; attach again to what is there, attach(penalty, model)."
            )
