"""Hidden units of recurrent layers that are zero whatever the input, and layers without them.

A unit of an LSTM is ``c = f c + i g, h = o tanh(c)``. Where its candidate is ``g = tanh(0) = 0``, a state that starts
at zero stays zero: no input weight, no recurrent weight from a unit that is not itself such, and biases that cancel.
A unit of a GRU is ``h = (1 - z) n + z h`` with ``n = tanh(W x + b + r (U h + c))``: both biases have to be zero, since
the gate r moves. A unit of nn.RNN is ``h = tanh(W x + b + U h + c)``, or relu, where a sum of biases <= 0 suffices.
Zero rows with a bias do not make a unit constant: its state still moves in time, so it stays.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Module
from torch.nn.utils.rnn import PackedSequence

from torchreg.functional.torch_private import assert_without_waiting

Recurrent = nn.LSTM | nn.GRU | nn.RNN
_GATES = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}
_CANDIDATE = {nn.LSTM: 2, nn.GRU: 2, nn.RNN: 0}  # which of them proposes the new state
_STATE = (
    "A state that is not zero was given for hidden units that were removed since they stay zero from a start at zero; "
    "start at zero, or keep the module as it was."
)
_TENSORS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")


def evened(keep: Tensor, least: int) -> Tensor:
    """A choice that keeps as many in each row as in the row that keeps most, and at least some number."""
    count = min(max(int(keep.sum(1).max()), least), keep.shape[1])
    order = keep.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    return torch.zeros_like(keep).scatter(1, order[:, :count], True)


def zero_units(module: Recurrent) -> Tensor:
    """The units whose state stays zero from a start at zero, (layers * directions, hidden size)."""
    found, silent = [], _none(module.input_size, module)
    for layer in range(module.num_layers):
        masks = [_zero_in(module, layer, direction, silent) for direction in range(_directions(module))]
        found += masks
        silent = torch.cat([_zero_outputs(module, layer, d, mask) for d, mask in enumerate(masks)])
    return torch.stack(found)


class ReducedRecurrent(Module):
    """A recurrent module with fewer units in each layer behind the interface of the module that it replaces.

    Outputs and states have the sizes of before, with zeros where units were removed; each layer has a size of its own.
    A state that is given must have zeros there too, as every state has that this module returned.

    Args:
        module: LSTM, GRU or RNN.
        keep: (layers * directions, hidden size), the units that stay, as many in both directions of a layer.

    Raises:
        ValueError: in ``forward``, if a given state has another shape, or is not zero where units were removed; for
            that, compiled code raises RuntimeError.
    """

    def __init__(self, module: Recurrent, keep: Tensor) -> None:
        super().__init__()
        self.input_size, self.hidden_size, self.proj_size = module.input_size, module.hidden_size, module.proj_size
        self.num_layers, self.bidirectional, self.mode = module.num_layers, module.bidirectional, module.mode
        self.bias, self.batch_first, self.dropout = module.bias, module.batch_first, module.dropout
        directions, layers = _directions(module), []
        for k, rows in enumerate(keep.split(directions)):
            self.register_buffer(f"units_{k}", torch.stack([row.nonzero()[:, 0] for row in rows]))
            before = (
                0 if not k else directions * module.proj_size or int(keep[(k - 1) * directions :][:directions].sum())
            )
            layers.append(_made(module, before or module.input_size, int(rows[0].sum())))
            _fill(layers[-1], module, k, keep)
        self.layers = nn.ModuleList(layers)
        self.training = module.training

    def forward(self, input: Any, hx: Any = None) -> tuple[Any, Any]:
        """Outputs and last states, as the module that was replaced gives them."""
        cells, output, ends = self.mode == "LSTM", input, []
        states = [None] * len(self.layers) if hx is None else self._narrow(hx if cells else (hx,))
        for k, (layer, state) in enumerate(zip(self.layers, states, strict=True)):
            if k and self.dropout:
                output = _with_data(output, lambda x: nn.functional.dropout(x, self.dropout, self.training))
            output, end = layer(output, state if cells or state is None else state[0])
            ends.append(end if cells else (end,))
        wide = tuple(self._wide_states(part, of_cells=bool(j)) for j, part in enumerate(zip(*ends, strict=True)))
        return _with_data(output, self._wide_output), wide if cells else wide[0]

    def _units(self, k: int, like: Tensor) -> Tensor:
        """The places of a layer's units, for gather and scatter of states (directions, [batch,] units)."""
        units: Tensor = getattr(self, f"units_{k}")
        return (units[:, None] if like.dim() == 3 else units).expand(*like.shape[:-1], units.shape[1])

    def _narrow(self, given: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
        directions, layers = 2 if self.bidirectional else 1, []
        for j, state in enumerate(given):
            size = self.proj_size if self.proj_size and not j else self.hidden_size
            if state.dim() not in (2, 3) or state.shape[0] != self.num_layers * directions or state.shape[-1] != size:
                wanted = f"({self.num_layers * directions}, [batch,] {size})"
                raise ValueError(f"The state needs shape {wanted}, got {tuple(state.shape)}.")
        for k in range(self.num_layers):
            rows = [state[k * directions : (k + 1) * directions] for state in given]
            kept = [self._taken(k, x) if j or not self.proj_size else x for j, x in enumerate(rows)]
            layers.append(tuple(kept))
        return layers

    def _taken(self, k: int, state: Tensor) -> Tensor:
        units = self._units(k, state)
        kept = state.gather(-1, units)
        zero = (state.scatter(-1, units, 0.0) == 0).all()
        if torch.compiler.is_compiling():
            assert_without_waiting(zero, _STATE)
        elif not zero:
            raise ValueError(_STATE)
        return kept

    def _wide_states(self, ends: tuple[Tensor, ...], *, of_cells: bool) -> Tensor:
        if self.proj_size and not of_cells:
            return torch.cat(ends)
        wide = [
            end.new_zeros(*end.shape[:-1], self.hidden_size).scatter(-1, self._units(k, end), end)
            for k, end in enumerate(ends)
        ]
        return torch.cat(wide)

    def _wide_output(self, output: Tensor) -> Tensor:
        if self.proj_size:
            return output
        units: Tensor = getattr(self, f"units_{self.num_layers - 1}")
        places = (units + self.hidden_size * torch.arange(len(units), device=units.device)[:, None]).reshape(-1)
        return output.new_zeros(*output.shape[:-1], len(units) * self.hidden_size).index_copy(-1, places, output)


def _with_data(x: Any, change: Any) -> Any:
    return x._replace(data=change(x.data)) if isinstance(x, PackedSequence) else change(x)


def _directions(module: Recurrent) -> int:
    return 2 if module.bidirectional else 1


def _none(size: int, module: Recurrent) -> Tensor:
    return torch.zeros(size, dtype=torch.bool, device=_tensor(module, "weight_ih", 0, 0).device)


def _tensor(module: Recurrent, name: str, layer: int, direction: int) -> Any:
    return getattr(module, f"{name}_l{layer}{'_reverse' if direction else ''}", None)


def _zero_in(module: Recurrent, layer: int, direction: int, silent: Tensor) -> Tensor:
    """The units of one layer and direction that stay zero, given inputs that are always zero."""
    size, gate = module.hidden_size, _CANDIDATE[type(module)]
    rows = slice(gate * size, (gate + 1) * size)
    from_input, from_state, *biases = (_tensor(module, name, layer, direction) for name in _TENSORS[:4])
    alone = (from_input[rows][:, ~silent] == 0).all(1)
    if module.bias:
        one, other = (b[rows] for b in biases)
        total = one + other
        quiet = (one == 0) & (other == 0) if isinstance(module, nn.GRU) else total == 0
        alone = alone & (quiet | (total < 0) if module.mode == "RNN_RELU" else quiet)
    zero = alone
    while True:  # the largest set of units none of which reads a unit outside
        silent_units = _zero_outputs(module, layer, direction, zero)
        fewer = alone & (from_state[rows][:, ~silent_units] == 0).all(1)
        if torch.equal(fewer, zero):
            return zero
        zero = fewer & zero


def _zero_outputs(module: Recurrent, layer: int, direction: int, zero: Tensor) -> Tensor:
    """Which outputs of a layer are always zero, given the units that are: with a projection, its rows decide."""
    if not module.proj_size:
        return zero
    return (_tensor(module, "weight_hr", layer, direction)[:, ~zero] == 0).all(1)


def _made(module: Recurrent, inputs: int, hidden: int) -> Any:
    """One layer of a module's type and options, with other sizes and no values yet."""
    options: dict[str, Any] = {name: getattr(module, name) for name in ("bias", "batch_first", "bidirectional")}
    if isinstance(module, nn.RNN):
        options["nonlinearity"] = module.nonlinearity
    if module.proj_size:
        options["proj_size"] = module.proj_size
    like = _tensor(module, "weight_ih", 0, 0)
    made = type(module)(inputs, hidden, dtype=like.dtype, device="meta", **options)  # draws no random numbers
    return made.to_empty(device=like.device).train(module.training)


@torch.no_grad()
def _fill(made: Any, module: Recurrent, layer: int, keep: Tensor) -> None:
    """Write the kept rows and columns of one layer of a module into a smaller layer."""
    directions, gates = _directions(module), _GATES[type(module)]
    read = torch.ones(_tensor(module, "weight_ih", layer, 0).shape[1], dtype=torch.bool, device=keep.device)
    if layer and not module.proj_size:
        read = keep[(layer - 1) * directions : layer * directions].reshape(-1)
    for d in range(directions):
        kept = keep[layer * directions + d]
        for name in _TENSORS:
            old, new = _tensor(module, name, layer, d), _tensor(made, name, 0, d)
            if old is None:
                continue
            cut = old[:, kept] if name == "weight_hr" else old[kept.repeat(gates)]
            if name == "weight_ih":
                cut = cut[:, read]
            if name == "weight_hh" and not module.proj_size:
                cut = cut[:, kept]
            new.copy_(cut)
            new.requires_grad_(old.requires_grad)
