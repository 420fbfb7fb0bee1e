"""What torchreg uses of torch that torch keeps to itself, checked with torch 2.13.

All names with an underscore that are imported from torch stand here, but for ``torch._foreach_*``, which torch's
manual describes. Of torch's own objects other rooms read hooks, ``_modules``, ``_parameters`` and ``_version``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_map_only, tree_unflatten

__all__ = ["TorchDispatchMode", "tree_flatten", "tree_leaves", "tree_map", "tree_map_only", "tree_unflatten"]

NormBase, ConvBase, TransposedConvBase = _NormBase, _ConvNd, _ConvTransposeNd  # of which torch's layers are made
softshrink: Any = torch._C._nn.softshrink  # torch.nn.functional's has no out=
without_compiler = _disable_dynamo  # as torch's optimizers use it; torch.compiler.disable loads the compiler


def in_transform() -> bool:
    """Whether a transform of torch.func is at work: vmap, grad, jvp."""
    return torch._C._are_functorch_transforms_active()


def assert_without_waiting(holds: Tensor, says: str) -> None:
    """Raise RuntimeError where a 0-d tensor is false, in compiled code too; a device raises when it gets there."""
    torch._assert_async(holds, says)


def in_backward() -> bool:
    """Whether this runs within a backward pass, as a forward pass does that activation checkpointing repeats.

    `torch.utils.checkpoint` asks the same. Within a graph that is compiled there is none to ask for.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def has_global_step_hooks() -> bool:
    """Whether a hook follows the steps of all optimizers (`torch.optim.optimizer.register_optimizer_step_pre_hook`).

    Where torch keeps them elsewhere they count as there. Checked with torch 2.13.
    """
    kept = [
        getattr(sys.modules[Optimizer.__module__], f"_global_optimizer_{when}_hooks", True) for when in ("pre", "post")
    ]
    return any(bool(hooks) for hooks in kept)


def has_modes() -> bool:
    """Whether each call of torch goes through a mode: a default device, counters of operations, fake tensors.

    Compiled code is compiled anew there, or runs as Python from then on. Where torch cannot tell there is none. Checked
    with torch 2.13.
    """
    return any(getattr(torch._C, f"_len_torch_{kind}_stack", int)() for kind in ("function", "dispatch"))


def is_mapped(x: Tensor) -> bool:
    """Whether `torch.vmap` maps over this tensor; False where torch does not tell. Checked with torch 2.13."""
    told = getattr(torch._C._functorch, "is_batchedtensor", None)
    return bool(told and hasattr(torch._C._functorch, "get_unwrapped") and told(x))


def of_all_mapped(x: Tensor) -> Tensor:
    """The values of a tensor in all that `torch.vmap` maps over, which the host may look at; x itself elsewhere.

    A gradient that is taken between two maps (`torch.func.grad`) wraps it too.
    """
    while is_mapped(x) or torch._C._functorch.is_gradtrackingtensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    return x


@contextmanager
def without_libraries() -> Iterator[None]:
    """Layers as torch's own operators, not as single calls of oneDNN or cuDNN, which hide what they do.

    The public setters refuse once `torch.backends.disable_global_flags` was called, and the public context managers
    warn of TF32 on machines without such a device. Checked with torch 2.13.
    """
    switches = [("_get_mkldnn_enabled", "_set_mkldnn_enabled"), ("_get_cudnn_enabled", "_set_cudnn_enabled")]
    known = [(getattr(torch._C, get)(), getattr(torch._C, put)) for get, put in switches if hasattr(torch._C, put)]
    try:
        for _, put in known:
            put(False)
        yield
    finally:
        for was, put in known:
            put(was)
