"""Models of one structure trained together: their tensors stacked along a new first dimension, one launch for all.

1. Each model and its optimizer are made as for a run alone; then their parameters and buffers are stacked.
2. The losses of all are `torch.func.functional_call` under `torch.vmap`; their sum has each model's own gradients.
3. One optimizer for each kind of penalty steps the stacks (`ProxOptimizer.stacked`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import Module
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from torchreg.ablation.plan import CellSpec
from torchreg.ablation.refused import BatchingError, explained, refuse_other_structure
from torchreg.functional.torch_private import tree_flatten, tree_map, tree_unflatten
from torchreg.penalties import Penalty

Randomness = Literal["error", "same", "different"]


@dataclass(frozen=True)
class Recipe:
    """How one model is made, trained and fed; the arguments of `ablate_batched`.

    Attributes:
        loss_fn: (model, batch) -> loss.
        model_fn: seed -> model.
        optimizer_fn: (model, penalty) -> `ProxOptimizer`.
        batch_fn: step -> batch, or (step, seed) -> batch.
        schedule_fn: optimizer -> learning rate schedule, or None.
        steps: how many.
        randomness: of `torch.vmap`.
        by_seed: whether ``batch_fn`` takes the seed.
    """

    loss_fn: Callable[[Any, Any], Tensor]
    model_fn: Callable[[int], Module]
    optimizer_fn: Callable[[Module, Penalty], Any]
    batch_fn: Callable[..., Any]
    schedule_fn: Callable[[Any], Any] | None
    steps: int
    randomness: Randomness
    by_seed: bool

    def make(self, penalty: Penalty, seed: int) -> tuple[Module, Any]:
        """A new model and its optimizer.

        Raises:
            TypeError: if they are none.
        """
        model = self.model_fn(seed)
        if not isinstance(model, Module):
            raise TypeError(f"model_fn(seed) must return a torch.nn.Module, got {type(model).__name__}.")
        optimizer = self.optimizer_fn(model, penalty)
        if not hasattr(optimizer, "stacked"):
            raise TypeError(
                f"optimizer_fn(model, penalty) must return a ProxOptimizer, got {type(optimizer).__name__}; wrap it: "
                "ProxOptimizer(torch.optim.AdamW(model.parameters()), attach(penalty, model))."
            )
        return model, optimizer

    def loss(self, model: Module, batch: Any) -> Tensor:
        """The loss of a model.

        Raises:
            TypeError: if it is no tensor.
            ValueError: if that has dimensions.
        """
        found = self.loss_fn(model, batch)
        if not isinstance(found, Tensor):
            raise TypeError(f"loss_fn must return a 0-d tensor, got {type(found).__name__}.")
        if found.dim():
            raise ValueError(f"loss_fn must return a 0-d tensor, got one of shape {tuple(found.shape)}; use mean().")
        return found

    def batch(self, step: int, seed: int) -> Any:
        """What a model with this seed is trained on at a step."""
        return self.batch_fn(step, seed=seed) if self.by_seed else self.batch_fn(step)

    def schedules(self, optimizers: Sequence[Any]) -> list[Any]:
        """A schedule for each optimizer.

        Raises:
            TypeError: if it is none, or follows the loss.
        """
        found = [] if self.schedule_fn is None else [self.schedule_fn(optimizer) for optimizer in optimizers]
        if odd := [s for s in found if not isinstance(s, LRScheduler) or isinstance(s, ReduceLROnPlateau)]:
            raise TypeError(
                "schedule_fn(optimizer) must return a learning rate schedule of the step alone, one for all models: a "
                f"torch.optim.lr_scheduler.LRScheduler such as LambdaLR, got {type(odd[0]).__name__}; for others run "
                "these models one by one by ablate."
            )
        return found


class StackedModels:
    """Models at several strengths and seeds, trained together.

    Args:
        recipe: how each would be made and trained alone.
        cells: their penalties, at their strengths, and seeds; those of one penalty share an optimizer.
        evaluation: whether the models stay in evaluation mode while they are trained.
    """

    def __init__(self, recipe: Recipe, cells: Sequence[CellSpec], *, evaluation: bool = False) -> None:
        self._recipe = recipe
        kinds = [[cell for cell in cells if cell.name == name] for name in dict.fromkeys(cell.name for cell in cells)]
        self._places = {(c.penalty, c.seed): (k, i) for k, kind in enumerate(kinds) for i, c in enumerate(kind)}
        self._seeds = [seed for _, seed in self._places]
        made = [[recipe.make(cell.penalty, cell.seed) for cell in kind] for kind in kinds]
        models = [model for kind in made for model, _ in kind]
        refuse_other_structure(models, self._seeds)
        if len({id(model) for model in models}) < len(models):
            raise ValueError("model_fn must make a new model each time it is called; it gave one twice.")
        self._optimizers = [kind[0][1].stacked([optimizer for _, optimizer in kind[1:]]) for kind in made]
        self._parts: dict[str, list[Tensor]] = {}  # of each parameter the stack of each kind
        for name, _ in models[0].named_parameters():
            self._parts[name] = [_stack(kind, name, opt) for kind, opt in zip(made, self._optimizers, strict=True)]
        if not any(part.requires_grad for parts in self._parts.values() for part in parts):
            raise ValueError("optimizer_fn(model, penalty) must step parameters of its model; it steps none of them.")
        buffers = [dict(model.named_buffers()) for model in models]
        self._buffers = {name: torch.stack([named[name].detach() for named in buffers]) for name in buffers[0]}
        self._frame = _Loss(models[0].eval() if evaluation else models[0], recipe)
        self._schedules = recipe.schedules([optimizer.base for optimizer in self._optimizers])

    def train(self, steps: int) -> Iterator[int]:
        """Train step by step; yields the number of each step that was made.

        Raises:
            BatchingError: if the loss cannot be mapped over models.
        """
        for k in range(steps):
            self._step(k)
            yield k

    def _step(self, k: int) -> None:
        for optimizer in self._optimizers:
            optimizer.base.zero_grad()
        batch, dims = self._batch(k)
        with explained("The loss"):
            self._losses(batch, dims).sum().backward()
        with explained("A penalty's proximal map"):
            for optimizer in self._optimizers:
                optimizer.step()
        for schedule in self._schedules:
            schedule.step()

    def _losses(self, batch: Any, dims: Any) -> Tensor:
        def loss(tensors: dict[str, Tensor], batch: Any) -> Any:
            return functional_call(self._frame, {f"model.{name}": x for name, x in tensors.items()}, (batch,))

        parameters = {name: torch.cat(parts) if len(parts) > 1 else parts[0] for name, parts in self._parts.items()}
        mapped = torch.vmap(loss, in_dims=(0, dims), randomness=self._recipe.randomness)
        with sdpa_kernel(SDPBackend.MATH):  # the other kernels have no rule for vmap
            losses, buffers = mapped(parameters | self._buffers, batch)
        self._buffers = {name: x.contiguous() for name, x in buffers.items()}  # one value for all is not yet a stack
        return cast(Tensor, losses)

    def _batch(self, k: int) -> tuple[Any, Any]:
        """What the models are trained on, and the dimension that numbers them in each of its tensors."""
        if not self._recipe.by_seed:
            return self._recipe.batch(k, 0), None
        each = {seed: self._recipe.batch(k, seed) for seed in dict.fromkeys(self._seeds)}
        flat = {seed: tree_flatten(batch) for seed, batch in each.items()}
        first, shape = flat[self._seeds[0]]
        if odd := [seed for seed, (_, other) in flat.items() if other != shape]:
            raise BatchingError(f"batch_fn gives seed {odd[0]} a batch of another structure at step {k}; give all one.")
        leaves = []
        for i in range(len(first)):
            others = [flat[seed][0][i] for seed in self._seeds]
            leaves.append(_stacked_leaf(others, k, self._seeds))
        batch = tree_unflatten(leaves, shape)
        return batch, tree_map(lambda leaf: 0 if isinstance(leaf, Tensor) else None, batch)

    def state(self, penalty: Penalty, seed: int) -> dict[str, Tensor]:
        """Parameters and buffers of one model by name."""
        kind, index = self._places[penalty, seed]
        found = {name: parts[kind][index].detach() for name, parts in self._parts.items()}
        before = sum(k < kind for k, _ in self._places.values())
        return found | {name: stack[before + index] for name, stack in self._buffers.items()}

    @torch.no_grad()
    def model(self, penalty: Penalty, seed: int) -> Module:
        """A model of its own, as trained so far."""
        model, state = self._recipe.model_fn(seed), self.state(penalty, seed)
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):  # a state dict lacks some buffers
            tensor.copy_(state[name])
        return model


class _Loss(Module):
    """A model and its loss as one module, so that ``loss_fn`` is given the model itself."""

    def __init__(self, model: Module, recipe: Recipe) -> None:
        super().__init__()
        self.model, self._recipe = model, recipe

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of the model on a batch, and the buffers that it leaves, some in place of others."""
        loss = self._recipe.loss(self.model, batch)
        return loss, {name: x.detach() for name, x in self.model.named_buffers()}


def _stack(made: Sequence[tuple[Module, Any]], name: str, optimizer: Any) -> Tensor:
    """A parameter of all models of a kind: what the optimizer steps, or a constant where it steps none."""
    each = [dict(model.named_parameters())[name] for model, _ in made]
    stepped: Tensor | None = optimizer.stacks.get(id(each[0]))
    return torch.stack([p.detach() for p in each]) if stepped is None else stepped


def _stacked_leaf(leaves: Sequence[Any], step: int, seeds: Sequence[int]) -> Any:
    """The tensors of all seeds stacked, or what is the same for all."""
    first = leaves[0]
    if isinstance(first, Tensor):
        odd = next((k for k, leaf in enumerate(leaves) if leaf.shape != first.shape), None)
        if odd is None:
            return torch.stack(list(leaves))
        told = f"shape {tuple(first.shape)} for seed {seeds[0]} and {tuple(leaves[odd].shape)} for seed {seeds[odd]}"
        raise BatchingError(
            f"batch_fn gives a tensor of {told} at step {step}; drop a last batch that is short, or pad."
        )
    if not isinstance(first, (bool, int, float, str, type(None))) or any(leaf != first for leaf in leaves):
        raise BatchingError(
            "A batch of each seed's own is of tensors, in tuples, lists and dicts, and beside them numbers and strings "
            f"that are the same for all; got {first!r:.80} ({type(first).__name__}) at step {step}."
        )
    return first
