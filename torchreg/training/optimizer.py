"""ProxOptimizer: any torch optimizer, followed by the exact proximal step in its own metric."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from torchreg.penalties import Penalty
from torchreg.training.amp import OfBase, unless_skipped
from torchreg.training.by_name import matched
from torchreg.training.checkpoint import KEY, restore, saved_parts
from torchreg.training.clipping import as_clipped, forget_clipping
from torchreg.training.effective_step import Metric, check_metric, rule_for
from torchreg.training.gradients import Skipped, not_finite, warn_of_skips
from torchreg.training.masters import Masters, warn_of_half
from torchreg.training.proximal_step import prox_step
from torchreg.training.refusals import refuse_base, refuse_group, refuse_sparse
from torchreg.training.slots import Slot, joined_terms, matrices, renew_parts, slots_of
from torchreg.training.term import Term, attach
from torchreg.training.watch import Watch

_FIELDS = ("base", "terms", "metric", "foreach", "masters", "skip_nonfinite", "skipped")


class ProxOptimizer(Optimizer):
    """A torch optimizer followed by a proximal step, which sets weights to exactly zero.

    After ``base.step()``, each penalised parameter takes ``p = prox(p, t)``, where ``t`` is the
    base's effective step: ``lr / (1 - momentum)`` for SGD, ``lr / (sqrt(v) + eps)`` entry by entry
    for Adam. In this metric the fixed point is the minimiser of loss + penalty; a plain threshold
    ``lr * alpha`` after Adam or after SGD with momentum solves another problem.

    It is an `Optimizer`: schedulers, hooks, closures, accumulation and checkpoints work as with
    the base, whose ``param_groups`` and ``state`` it shares. Checkpoints of the bare base and of
    the wrapped one load each other. Nothing is written before the base's step, and it adds no
    buffer of the parameters' size.

    Args:
        base: the optimizer to wrap.
        terms: what `attach` made, or bare penalties. A bare penalty knows no modules: it takes
            every parameter of the base with two or more dimensions, embeddings included.
        metric: "auto" for the base's own metric; "decoupled" for the threshold ``lr * alpha``
            (the L1 analogue of AdamW's decay, for Muon, Lion and third-party optimizers); or a
            function (group, state, parameter) -> step; with a bound: `at_most`.
        foreach: True steps many tensors per launch, False one by one, None chooses.
        masters: True steps float32 copies of all parameters of the base that are bfloat16 or float16, which
            then are their rounding; the base's state is float32 too. Else an update below half the
            distance to the next number is lost, the base's and the prox's: a warning tells. The copy of
            each parameter, 4 bytes an entry, lies in its state under "master" and travels with it; for
            the time of a step the gradients are copied too. An entry that anyone else has changed
            starts anew from its value. The base's own step hooks see the copies. torch refuses to unscale
            float16 gradients: under GradScaler such parameters need a fused base.
        skip_nonfinite: True skips a step whose gradients hold NaN or inf: weights, state and schedules
            stay, a warning tells of the first, ``opt.skipped`` counts steps and parameters. It reads all
            gradients once and waits for the device at each step, and cannot be compiled or captured. A
            closure is called once and before the base's step, which then gets none. False, the default,
            steps as the base does, and waits for nothing.

    Raises:
        TypeError: if ``base`` is no optimizer, or a term neither a Term nor a Penalty.
        ValueError: if the base is not supported, a parameter is not the base's or is penalised
            twice, or a term belongs to another optimizer. Nothing has changed then.

    Notes:
        A parameter without a gradient is not stepped by the base and not shrunk. An entry that has met
        no gradient but zeros has no metric yet: its step is ``lr``. With mini-batch noise, exact zeros
        settle as the learning rate falls: use a schedule.

    Source:
        Yun, Lozano and Yang, NeurIPS 2021 (ProxGen); Duchi and Singer, JMLR 10, 2009.

    Example:
        >>> import torch
        >>> from torchreg import L1, ProxOptimizer, attach
        >>> model = torch.nn.Linear(3, 1)
        >>> opt = ProxOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), attach(L1(100.0), model))
        >>> model(torch.ones(1, 3)).sum().backward()
        >>> opt.step()
        >>> model.weight
        Parameter containing:
        tensor([[0., 0., 0.]], requires_grad=True)
    """

    grad_scale = OfBase()
    found_inf = OfBase()

    def __init__(
        self,
        base: Optimizer,
        *terms: Term | Penalty,
        metric: Metric = "auto",
        foreach: bool | None = None,
        masters: bool = False,
        skip_nonfinite: bool = False,
    ) -> None:
        refuse_base(base, ProxOptimizer, terms=terms)
        joined, bare = joined_terms(base, terms)
        slots = slots_of(base, joined)
        check_metric(base, metric)
        if not masters:
            warn_of_half(joined)
        for term in joined:
            if term.owner is not None:
                term.own(self)
        self._restore(
            {
                "base": base,
                "terms": joined,
                "bare": bare,
                "slots": slots,
                "metric": metric,
                "foreach": foreach,
                "masters": masters,
                "skip_nonfinite": skip_nonfinite,
                "skipped": Skipped(),
            }
        )

    def _restore(self, fields: dict[str, Any]) -> None:
        """Set every field; torch's own `__setstate__` then makes the hook registries."""
        self.base: Optimizer = fields["base"]
        self.terms: list[Term] = fields["terms"]
        self.metric: Metric = fields["metric"]
        self.foreach: bool | None = fields["foreach"]
        self.masters: bool = fields["masters"]
        self.skip_nonfinite: bool = fields["skip_nonfinite"]
        self.skipped: Skipped = fields["skipped"]
        self._bare: list[bool] = fields["bare"]
        self._slots: list[Slot] = fields["slots"]
        self._masters = Masters(self.base)
        self._watch = Watch()
        super().__setstate__({})
        for term in self.terms:
            term.own(self)

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The base's parameter groups, the very same list."""
        return self.base.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The base's state, the very same mapping."""
        return self.base.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """The base's defaults."""
        return self.base.defaults

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether GradScaler leaves unscaling and skipping to the base, as to torch's fused optimizers."""
        return getattr(self.base, "_step_supports_amp_scaling", False)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """The base's step, then the proximal step; returns what the base's step returns.

        Raises:
            RuntimeError: if a penalised parameter has a sparse gradient but its term is not lazy, or
                ``skip_nonfinite`` is asked for within a compiled or captured step.
        """
        if self.skip_nonfinite:
            return self._step_if_finite(closure)
        return self._step(closure)

    def _step_if_finite(self, closure: Callable[[], Any] | None) -> Any:
        with torch.enable_grad():
            loss = None if closure is None else closure()
        self._refuse_sparse()
        names = not_finite(self.base, self.terms)
        if names:
            self.skipped = self.skipped.plus(names)
            if self.skipped.steps == 1:
                warn_of_skips(names)
        else:
            self._step(None)
        return loss

    def _step(self, closure: Callable[[], Any] | None) -> Any:
        self._watch.before(self._slots, self.base)
        if self.masters:
            with self._masters.lent():
                loss = self._both(self._masters.within(closure))
                self._masters.round()
        else:
            loss = self._both(closure)
        self._watch.after(self._slots, self.base)
        for term in self.terms:
            term.stepped(self)
        return loss

    def _both(self, closure: Callable[[], Any] | None) -> Any:
        """The base's step and the proximal one; nothing is written before the first."""
        if closure is None:
            self._refuse_sparse()
            loss = self.base.step()
        else:
            loss = self.base.step(closure)
            self._refuse_sparse()
        self.prox()
        return loss

    def prox(self) -> None:
        """The proximal half of `step`, for the parameters that the base has just stepped.

        ``opt.prox = torch.compile(opt.prox)`` fuses it into one pass over each parameter.
        """
        rule = as_clipped(rule_for(self.base, self.metric), self.base, self.metric)
        prox_step(self.base, self._slots, unless_skipped(rule, self.base), self.foreach)

    def renew_parts(self) -> None:
        """Give each term's parts the tensors that stand in the base now, as some trainers exchange them."""
        renew_parts(self._slots, self.base)

    def _refuse_sparse(self) -> None:
        for slot in self._slots:
            refuse_sparse([] if slot.part.lazy else slot.parameters(self.base))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """The base's `zero_grad`."""
        self.base.zero_grad(set_to_none)
        forget_clipping(self.base)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base; bare penalties take its parameters with two or more dimensions."""
        params = param_group["params"]
        if isinstance(params, (set, frozenset)):
            raise TypeError("add_param_group needs parameters in a fixed order, got a set; use a list.")
        param_group = {**param_group, "params": [params] if isinstance(params, Tensor) else list(params)}
        refuse_group({**self.base.defaults, **param_group})
        plain = [p[1] if isinstance(p, tuple) else p for p in param_group["params"]]
        found = matrices({"params": plain}, len(self.base.param_groups))
        parts = [term.parts[0] for term, bare in zip(self.terms, self._bare, strict=True) if bare and found]
        for part in parts:
            attach(part.penalty, found)  # raises where the penalty does not fit
        self.base.add_param_group(param_group)
        for part in parts:
            part.parameters.update(found)
        self._slots = slots_of(self.base, self.terms)

    def state_dict(self) -> dict[str, Any]:
        """The base's state dict, with the penalties' strengths under the key "torchreg"."""
        for hook in self._optimizer_state_dict_pre_hooks.values():
            hook(self)
        state = {**self.base.state_dict(), KEY: saved_parts(self.terms)}
        for post_hook in self._optimizer_state_dict_post_hooks.values():
            changed = post_hook(self, state)
            state = state if changed is None else changed
        return state

    def load_state_dict(self, state_dict: dict[str, Any], *, strict: bool = True) -> None:
        """Load the state of a wrapped or of a bare optimizer.

        A wrapped one restores the strengths and the schedules' counts too; a warning says where that
        changes a strength. Assign ``term.alpha`` afterwards to use another.

        Args:
            state_dict: from `state_dict` of this class or of the base's.
            strict: False takes what fits, by the parameters' names, and warns of the rest: a strength
                where the checkpoint penalises the same parameter by the same kind of penalty; the
                base's state where both optimizers know names (``Adam(model.named_parameters())``).

        Raises:
            ValueError: if the checkpoint penalises other parameters or by other penalties; nothing has
                changed then.
        """
        state_dict = dict(state_dict)
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            changed = hook(self, state_dict)
            state_dict = dict(state_dict if changed is None else changed)
        parts = state_dict.pop(KEY, {"parts": []})["parts"]
        state_dict, renewed, told = matched(self.base, self.terms, state_dict, parts, strict=strict)
        wide = self._masters.lent(untouched=True) if self.masters else nullcontext()
        with wide:  # torch casts a state to its parameter's dtype
            self.base.load_state_dict(state_dict)
        restore(renewed, told)
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def __getstate__(self) -> dict[str, Any]:
        fields = {name: getattr(self, name) for name in _FIELDS}
        return {**fields, "bare": self._bare, "slots": self._slots}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._restore(state)

    def __repr__(self) -> str:
        listed = "\n".join(repr(term) for term in self.terms)
        return f"ProxOptimizer(metric={self.metric!r}) of {self.base!r}\npenalised:\n{listed}"
