"""Lightning: a callback that logs penalties; training itself needs nothing but `ProxOptimizer`."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from torchreg.integrations.terms import terms_of
from torchreg.training import Term, clip_grad_norm_
from torchreg.training.metrics import penalty_metrics


class PenaltyLogger(Callback):
    """Logs what `penalty_metrics` tells: the penalty's value, its strength, the shares of zeros.

    ``configure_optimizers`` returns a `ProxOptimizer` as it would any optimizer. With automatic and manual
    optimisation, accumulation, clipping and checkpoints the weights are those of the plain loop; strengths and
    the count of a `PenaltyScheduler` are in Lightning's checkpoints with the optimizer's state. Lightning steps an
    optimizer also where ``training_step`` returns None, and that counts.

    Args:
        terms: those to log; none for the terms of the trainer's optimizers. Terms that are added to the loss,
            or were given to `attach_to`, have to be named.
        every_n_steps: from one entry to the next, as Lightning counts them: with several optimizers each step of
            each. An entry waits for the device.
        prefix: before each name.

    Raises:
        ValueError: if ``every_n_steps`` is below 1; when training starts, if there are no terms.
    """

    def __init__(self, *terms: Term, every_n_steps: int = 50, prefix: str = "penalty/") -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}; 50 logs every 50th step.")
        self.given, self.every_n_steps, self.prefix = terms, every_n_steps, prefix
        self.terms: list[Term] = []
        self._last = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the terms of this run."""
        self.terms = list(self.given) or terms_of(trainer.optimizers)
        self._last = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Log, if the batch ended a step whose turn it is."""
        step = trainer.global_step
        if step == self._last or step % self.every_n_steps:
            return
        self._last = step
        pl_module.log_dict({f"{self.prefix}{name}": value for name, value in penalty_metrics(*self.terms).items()})


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
