"""A Linear layer that stores the non-zero entries of its weight alone, for inference."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Module
from torch.sparse import to_sparse_semi_structured

_INT32 = 2**31 - 1


class SparseLinear(Module):
    """A Linear layer for inference that computes with the stored entries of a sparse weight.

    Its state_dict holds the dense weight, so that it is exchanged with that of the Linear layer.

    Args:
        layer: the Linear layer; its bias is copied.
        layout: "CSR" or "2:4".

    Raises:
        ValueError: if the weight does not have the pattern 2:4, when it is built and when a weight is loaded.
    """

    row_starts: Tensor
    columns: Tensor
    values: Tensor
    packed: Tensor

    def __init__(self, layer: nn.Linear, layout: str = "CSR") -> None:
        super().__init__()
        _first_csr()
        self.in_features, self.out_features, self.layout = layer.in_features, layer.out_features, layout
        bias = layer.bias
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
        self._store(layer.weight.detach())

    @property
    def weight(self) -> Tensor:
        """The weight as a dense tensor, made anew each time."""
        return (self._csr() if self.layout == "CSR" else self.packed).to_dense()

    @property
    def stored(self) -> int:
        """How many entries of the weight are stored."""
        return self.values.numel() if self.layout == "CSR" else self.out_features * self.in_features // 2

    def forward(self, input: Tensor) -> Tensor:
        """What the Linear layer gives, up to the order of summation."""
        if self.layout == "2:4":
            return nn.functional.linear(input, self.packed, self.bias)
        if input.shape[-1:] != (self.in_features,):
            raise ValueError(f"Inputs need {self.in_features} features last, got shape {tuple(input.shape)}.")
        kind = input.device.type
        if not torch.is_autocast_enabled(kind):
            return self._product(input)
        with torch.autocast(kind, enabled=False):  # no half precision for CSR on every device
            return self._product(input.to(self.values.dtype)).to(torch.get_autocast_dtype(kind))

    def _product(self, input: Tensor) -> Tensor:
        output = (self._csr() @ input.reshape(-1, self.in_features).T).T.contiguous()
        if self.bias is not None:
            output = output + self.bias if torch.is_grad_enabled() else output.add_(self.bias)
        return output.view(*input.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """Sizes, bias and layout."""
        bias = self.bias is not None
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={bias}, layout={self.layout!r}"

    def _csr(self) -> Tensor:
        size = (self.out_features, self.in_features)
        return torch.sparse_csr_tensor(self.row_starts, self.columns, self.values, size, check_invariants=False)

    def _store(self, weight: Tensor) -> None:
        if self.layout == "2:4":
            if not is_two_of_four(weight):
                raise ValueError(
                    "A weight stored as 2:4 needs at most two entries that are not zero in each four neighbours of a "
                    "row; build the layer anew with to_sparse."
                )
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*SparseSemiStructuredTensor is in prototype stage")
                packed = to_sparse_semi_structured(weight)
            self.register_buffer("packed", packed, persistent=False)
            return
        csr = weight.to_sparse_csr()
        small = max(csr.values().numel(), self.in_features) <= _INT32  # else torch converts them at every call
        parts = {"row_starts": csr.crow_indices(), "columns": csr.col_indices(), "values": csr.values()}
        for name, part in parts.items():
            self.register_buffer(name, part.int() if small and name != "values" else part, persistent=False)

    def __setstate__(self, state: dict[str, Any]) -> None:
        _first_csr()
        super().__setstate__(state)  # type: ignore[no-untyped-call]

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = self.weight

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *further: Any) -> None:
        _, _, missing, _, errors = further
        key, size = prefix + "weight", (self.out_features, self.in_features)
        rest = {name: value for name, value in state_dict.items() if name != key}
        super()._load_from_state_dict(rest, prefix, *further)
        if key not in state_dict:
            missing.append(key)
        elif tuple(state_dict[key].shape) != size:
            errors.append(f"size mismatch for {key}: got {tuple(state_dict[key].shape)}, the layer has {size}.")
        else:
            like = self.values if self.layout == "CSR" else self.packed
            self._store(state_dict[key].detach().to(like.device, like.dtype))


@functools.cache
def _first_csr() -> None:
    """Have torch say once in this process that CSR is in beta state, here, where nobody hears it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state", category=UserWarning)
        torch.zeros(1, 1).to_sparse_csr()


def is_two_of_four(weight: Tensor) -> bool:
    """Whether each four neighbours of a row have at most two entries that are not zero."""
    if weight.shape[1] % 4:
        return False
    return bool(((weight.detach().reshape(-1, 4) != 0).sum(1) <= 2).all())
