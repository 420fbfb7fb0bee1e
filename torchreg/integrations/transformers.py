"""Transformers: a factory for Trainer's ``optimizer_cls_and_kwargs``, and a callback that logs penalties."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.nn import Module
from torch.optim import AdamW, Optimizer
from transformers import TrainerCallback

from torchreg.integrations.terms import terms_of
from torchreg.penalties import Penalty
from torchreg.selection.selectors import weights
from torchreg.training import ProxOptimizer, Term, attach, clip_grad_norm_
from torchreg.training.attach import PenaltyFor
from torchreg.training.logging import penalty_metrics


class ProxFactory:
    """Builds a `ProxOptimizer` when Trainer asks for its optimizer, after it has wrapped or sharded the model.

    ``Trainer(..., optimizer_cls_and_kwargs=(ProxFactory, {"penalty": L1(1e-5), "lr": 1e-3}))``. Trainer refuses
    ``optimizers=(opt, None)`` under FSDP; otherwise ``(ProxOptimizer(...), None)`` does as well, and leaves you the
    terms. The arguments' ``learning_rate`` and ``weight_decay`` are not used here: give ``lr`` with the rest.
    Decoupled weight decay is no part of loss + penalty; write it as L2 if it should be.

    Example:
        >>> import torch
        >>> from torchreg import L1
        >>> from torchreg.integrations.transformers import ProxFactory
        >>> model = torch.nn.Linear(3, 1)
        >>> opt = ProxFactory()(model, penalty=L1(0.1), base=torch.optim.SGD, lr=0.5)
        >>> opt.param_groups[0]["lr"], opt.terms[0].alpha
        (0.5, 0.1)
    """

    def __call__(
        self,
        model: Module,
        *,
        penalty: Penalty | PenaltyFor,
        base: type[Optimizer] = AdamW,
        select: Callable[[Module], Mapping[str, Tensor]] = weights,
        metric: Any = "auto",
        masters: bool = False,
        **options: Any,
    ) -> ProxOptimizer:
        """The optimizer of a model's trainable parameters.

        Args:
            model: as Trainer has wrapped it.
            penalty: as of `attach`: a penalty, or a function (name, parameter) -> penalty.
            base: the optimizer's class.
            select: module -> named parameters to penalise.
            metric: as of `ProxOptimizer`.
            masters: as of `ProxOptimizer`.
            options: for ``base``; AdamW gets ``weight_decay=0.0`` unless it is named.
        """
        if issubclass(base, AdamW):
            options = {"weight_decay": 0.0, **options}
        trained = [p for p in model.parameters() if p.requires_grad]
        return ProxOptimizer(base(trained, **options), attach(penalty, select(model)), metric=metric, masters=masters)


class PenaltyLogger(TrainerCallback):
    """Adds what `penalty_metrics` tells to each entry that Trainer logs: value, strength, shares of zeros.

    The entries of ``trainer.state.log_history`` and the progress bar have them. Trackers (``report_to``) are called
    before a callback of yours; put it first for them: ``trainer.callback_handler.callbacks.insert(0, logger)``.

    Args:
        terms: those to log; none for the terms of the trainer's optimizer.
        prefix: before each name.
    """

    def __init__(self, *terms: Term, prefix: str = "penalty/") -> None:
        self.given, self.prefix = terms, prefix
        self.terms = list(terms)

    def on_train_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        """Find the terms of this run."""
        self.terms = list(self.given) or terms_of([optimizer])

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Add the entries; before training there are terms only if they were given."""
        if not self.terms:
            return
        found = {f"{self.prefix}{name}": value for name, value in penalty_metrics(*self.terms).items()}
        logs.update(found)
        state.log_history[-1].update(found)


class ClipGradNorm(TrainerCallback):
    """Clips by `clip_grad_norm_` in place of Trainer, whose ``max_grad_norm``, 1.0 by default, moves the minimiser.

    ``Trainer(args=TrainingArguments(max_grad_norm=0.0, ...), callbacks=[ClipGradNorm(1.0)])``. Trainer has unscaled the
    gradients by then, and logs their norm before clipping.

    Args:
        max_norm: the largest norm, over all parameters of the optimizer together.

    Raises:
        ValueError: when training starts, if Trainer clips too.
    """

    def __init__(self, max_norm: float) -> None:
        self.max_norm = max_norm

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See that Trainer does not clip before."""
        if args.max_grad_norm:
            raise ValueError(
                f"TrainingArguments(max_grad_norm={args.max_grad_norm}) clips before ClipGradNorm can; set it to 0.0."
            )

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        """Clip, and tell the proximal step."""
        clip_grad_norm_(optimizer, self.max_norm)
