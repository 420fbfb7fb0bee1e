"""What an optimizer around another shares with it, as torch's schedulers, trainers and scalers expect."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from torchreg.training.clipping import forget_clipping


class OfBase:
    """An attribute that lives on the wrapped optimizer: read, set and deleted there.

    Callbacks that assign ``param_groups`` or ``state`` reach the optimizer that uses them. So does GradScaler, which
    lends ``grad_scale`` and ``found_inf`` to the optimizer that it is given.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, wrapper: Any, owner: type) -> Any:
        return self if wrapper is None else getattr(wrapper.base, self._name)

    def __set__(self, wrapper: Any, value: Any) -> None:
        setattr(wrapper.base, self._name, value)

    def __delete__(self, wrapper: Any) -> None:
        delattr(wrapper.base, self._name)


class AroundBase(Optimizer):
    """An optimizer around another: the groups, the state and the defaults are the very same objects. Abstract."""

    base: Optimizer
    param_groups = OfBase()
    state = OfBase()
    defaults = OfBase()
    grad_scale = OfBase()
    found_inf = OfBase()

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether GradScaler leaves unscaling and skipping to the base, as to torch's fused optimizers."""
        return getattr(self.base, "_step_supports_amp_scaling", False)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """The base's `zero_grad`."""
        self.base.zero_grad(set_to_none)
        forget_clipping(self.base)
