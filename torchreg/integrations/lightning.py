"""Lightning: callbacks that log and keep zeros, a hook that clips; training needs nothing but `ProxOptimizer`."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from torchreg.integrations.terms import terms_of
from torchreg.training import Term, clip_grad_norm_
from torchreg.training.logging import penalty_metrics

_AVERAGES = (StochasticWeightAveraging, WeightAveraging)  # EMAWeightAveraging is one of the latter


class PenaltyLogger(Callback):
    """Logs what `penalty_metrics` tells: the penalty's value, its strength, the shares of zeros.

    ``configure_optimizers`` returns a `ProxOptimizer` as it would any optimizer. With automatic and manual
    optimisation, accumulation, clipping and checkpoints the weights are those of the plain loop; strengths and
    the count of a `PenaltyScheduler` are in Lightning's checkpoints with the optimizer's state. Lightning steps an
    optimizer also where ``training_step`` returns None, and that counts.

    An entry goes to the trainer's loggers at the step at which it was measured, whatever ``log_every_n_steps`` is,
    and to ``trainer.callback_metrics``, which `ModelCheckpoint` and early stopping monitor. These are measured again
    after each validation and at the end of each epoch, where something has been stepped since.

    Args:
        terms: those to log; none for the terms of the trainer's optimizers. Terms that are added to the loss,
            or were given to `attach_to`, have to be named.
        every_n_steps: from one entry to the next, as Lightning counts them: with several optimizers each step of
            each. An entry waits for the device.
        prefix: before each name.

    Raises:
        ValueError: if ``every_n_steps`` is below 1; when training starts, if there are no terms.

    Warns:
        UserWarning: when training starts, if a callback averages weights and none keeps their zeros (`CopyZeros`).
    """

    def __init__(self, *terms: Term, every_n_steps: int = 50, prefix: str = "penalty/") -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}; 50 logs every 50th step.")
        self.given, self.every_n_steps, self.prefix = terms, every_n_steps, prefix
        self.terms: list[Term] = []
        self._last = self._axis = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the terms of this run."""
        self.terms = list(self.given) or terms_of(trainer.optimizers)
        self._last = trainer.global_step
        _warn_of_averages(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Log, if the batch ended a step whose turn it is."""
        self._axis = trainer.fit_loop.epoch_loop._batches_that_stepped  # where Lightning's own entries of now stand
        if trainer.global_step // self.every_n_steps != self._last // self.every_n_steps:
            self._log(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure what is monitored."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._log(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure what is monitored, and what training ends with."""
        self._log(trainer)

    def _log(self, trainer: Trainer) -> None:
        """Measure, unless nothing was stepped since; Lightning's own log_dict would repeat it until the next."""
        if trainer.global_step == self._last:
            return
        self._last = trainer.global_step
        found = {f"{self.prefix}{name}": value for name, value in penalty_metrics(*self.terms).items()}
        for logger in trainer.loggers:
            logger.log_metrics(found, step=self._axis)
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in found.items()})


class CopyZeros(Callback):
    """Keeps the zeros of the last iterate in averaged weights: `copy_zeros` for Lightning's averaging callbacks.

    `EMAWeightAveraging`, `WeightAveraging` and `StochasticWeightAveraging` put an average of the iterates into the
    model when training ends, and the first two into checkpoints; an average has a zero only where every iterate
    had one. With this callback the weights that were zero after the last step are zero there too.

    Put it after them in the list of callbacks.

    Args:
        terms: whose weights to follow; none for the terms of the trainer's optimizers.

    Raises:
        ValueError: when training starts, if there are no terms or an averaging callback comes after this one.
    """

    def __init__(self, *terms: Term) -> None:
        self.given = terms
        self._stepped = 0
        self._zeros: list[tuple[Tensor, Tensor]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the terms of this run."""
        self.terms = list(self.given) or terms_of(trainer.optimizers)
        self._stepped = trainer.global_step
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        if any(isinstance(callback, _AVERAGES) for callback in callbacks[callbacks.index(self) :]):
            raise ValueError(
                "CopyZeros has to come after the callback that averages weights: callbacks=[average, zeros]."
            )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the zeros, if there were steps; in its last epoch StochasticWeightAveraging makes none."""
        if trainer.global_step != self._stepped:
            self._stepped, self._zeros = trainer.global_step, self._present()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Copy the zeros of the weights as they are into an average that is saved in their place."""
        if trainer.state.fn != TrainerFn.FITTING or "current_model_state" not in checkpoint:
            return
        names = {id(p): name for name, p in pl_module.named_parameters()}
        saved = checkpoint["state_dict"] = dict(checkpoint["state_dict"])
        for p, zero in self._present():
            saved[names[id(p)]] = saved[names[id(p)]].masked_fill(zero.to(saved[names[id(p)]].device), 0.0)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the noted zeros into the average, which is the model by now."""
        with torch.no_grad():
            for p, zero in self._zeros:
                p.masked_fill_(zero, 0.0)
        self._zeros = []

    def _present(self) -> list[tuple[Tensor, Tensor]]:
        return [(p, p.detach() == 0) for term in self.terms for p in term.parameters.values()]


def _warn_of_averages(trainer: Trainer) -> None:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    averages = [type(callback).__name__ for callback in callbacks if isinstance(callback, _AVERAGES)]
    if averages and not any(isinstance(callback, CopyZeros) for callback in callbacks):
        warnings.warn(
            f"{averages[0]} puts an average of the weights into the model when training ends, in which the zeros of "
            f"the proximal step are lost; add CopyZeros() of {__name__} after it.",
            stacklevel=2,
        )


def configure_gradient_clipping(
    self: LightningModule,
    optimizer: Any,
    gradient_clip_val: float | None = None,
    gradient_clip_algorithm: str | None = None,
) -> None:
    """Lightning's hook with `clip_grad_norm_`, so that ``Trainer(gradient_clip_val=...)`` leaves the minimiser.

    Write ``configure_gradient_clipping = configure_gradient_clipping`` in the body of your LightningModule, after
    ``from torchreg.integrations.lightning import configure_gradient_clipping``. Clipping by value is Lightning's own.
    """
    if not gradient_clip_val:
        return
    if str(getattr(gradient_clip_algorithm, "value", gradient_clip_algorithm) or "norm") == "norm":
        clip_grad_norm_(optimizer, gradient_clip_val)
    else:
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
