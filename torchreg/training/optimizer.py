"""ProxOptimizer: any torch optimizer, followed by the exact proximal step in its own metric."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from torchreg.penalties import Penalty
from torchreg.training.around_base import AroundBase
from torchreg.training.bare_terms import added_group, joined_terms
from torchreg.training.checkpoint import restore, tell
from torchreg.training.clipping import forget_clipping
from torchreg.training.common_step import Copies, copies_for
from torchreg.training.control import Mode, around, base_then_prox, check_controls, proximal_half
from torchreg.training.effective_step import Metric, check_metric, rule_for
from torchreg.training.fused.fused_halves import FusedHalves
from torchreg.training.gradients import Skipped, not_finite, warn_of_skips
from torchreg.training.hooks import read, through, written
from torchreg.training.lazy_rows import all_lazy
from torchreg.training.master_weights import Masters, warn_of_half
from torchreg.training.param_positions import ParamPositions
from torchreg.training.rollback import Rollback
from torchreg.training.stacked import StackedOptimizer
from torchreg.training.term import Term
from torchreg.training.validation import refuse_base
from torchreg.training.zero_watch import Watch

_FIELDS = ("base", "terms", "metric", "foreach", "masters", "skip_nonfinite", "skipped", "mode", "fused")


class ProxOptimizer(AroundBase):
    """A torch optimizer followed by a proximal step, which sets weights to exactly zero.

    After ``base.step()``, each penalised parameter takes ``p = prox(p, t)``, where ``t`` is the base's effective
    step: ``lr / (1 - momentum)`` for SGD, ``lr / (sqrt(v) + eps)`` entry by entry for Adam. In this metric the fixed
    point is the minimiser of loss + penalty; a plain threshold ``lr * alpha`` after Adam or after SGD with momentum
    solves another problem.

    It is an `Optimizer`: schedulers, hooks, closures, accumulation and checkpoints work as with the base, whose
    ``param_groups``, ``state`` and ``defaults`` it shares. Checkpoints of the bare base and of the wrapped one load
    each other. Nothing is written before the base's step, and mode "prox" adds no buffer of the parameters' size.

    Args:
        base: the optimizer to wrap.
        terms: what `attach` made, or bare penalties. A bare penalty knows no modules: it takes every parameter of
            the base with two or more dimensions, embeddings included.
        metric: "auto" for the base's own metric; "decoupled" for the threshold ``lr * alpha`` (the L1 analogue of
            AdamW's decay, for Muon, Lion and third-party optimizers); or a function (group, state, parameter) -> step;
            with a bound: `at_most`.
        foreach: True steps many tensors per launch, False one by one, None chooses.
        masters: True steps float32 copies of all parameters of the base that are bfloat16 or float16, which then are
            their rounding; the base's state is float32 too. Else an update below half the distance to the next number
            is lost, the base's and the prox's: a warning tells. The copy of each parameter, 4 bytes an entry, lies in
            its state under "master" and travels with it; for the time of a step the gradients are copied too. An entry
            that anyone else has changed starts anew from its value. The base's own step hooks see the copies. torch
            refuses to unscale float16 gradients: under GradScaler such parameters need a fused base.
        skip_nonfinite: True skips a step whose gradients hold NaN or inf: weights, state and schedules stay, a warning
            tells of the first, ``opt.skipped`` counts steps and parameters. It reads all gradients once and waits for
            the device at each step, and cannot be compiled or captured. A closure is called once and before the
            base's step, which then gets none. False, the default, steps as the base does, and waits for nothing.
        mode: "prox" lets one gradient take a weight from zero; "dual_averaging" only the mean of all so far, late ones
            counting more: under mini-batches zeros stay zero, and are those of the minimiser (L1, elastic net, their
            weights, Group(L1)). In the state: "dual", 4 bytes an entry, and "threshold", as many or, with SGD, one
            number. Checkpoints of both modes load each other; sums that are missing start anew.
        fused: True takes both steps in one compiled pass over each large parameter (`torchreg.training.fused`): SGD,
            Adam, AdamW, NAdam, RAdam, RMSprop, Adagrad, Adamax, Adadelta; penalties of entries, convex ones of rows;
            float32, float64. The second step compiles, some seconds for each kind; the state is the base's own. All
            else is stepped as with False, and a warning tells once what and why, but for parameters too small to gain.
            None, the default, is False: results of both ways differ by roundings, and no run should change unasked.

    Raises:
        TypeError: if ``base`` is no optimizer, or a term neither a Term nor a Penalty.
        ValueError: if the base is not supported, or a parameter is not the base's or is penalised twice. Nothing has
            changed then.

    Notes:
        A parameter without a gradient is not stepped by the base and not shrunk. A frozen one is not shrunk either;
        where a gradient is left on it, torch's optimizers go on moving it. An entry that has met no gradient but
        zeros has no metric yet: its step is ``lr``, in a group that of the others. With mini-batch noise zeros
        flicker: use "dual_averaging", or let a schedule end at 1 % of the rate, not at 0, where the threshold is 0 too.

        ``param_groups`` may be edited: a parameter is known by its tensor, not by its place. One that is trained and
        no longer there is refused at the next step. Of optimizers made for one term the last takes it over.

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

    terms: list[Term]
    metric: Metric
    foreach: bool | None
    masters: bool
    skip_nonfinite: bool
    skipped: Skipped
    mode: Mode = "prox"  # of what was pickled without it, as is the next
    fused: bool | None = None

    def __init__(
        self,
        base: Optimizer,
        *terms: Term | Penalty,
        metric: Metric = "auto",
        foreach: bool | None = None,
        masters: bool = False,
        skip_nonfinite: bool = False,
        mode: Mode = "prox",
        fused: bool | None = None,
    ) -> None:
        refuse_base(base, ProxOptimizer, lazy=all_lazy(terms))
        joined = joined_terms(base, terms)
        check_metric(base, metric)
        check_controls(joined, mode, masters=masters)
        if not masters:
            warn_of_half(joined)
        fields = base, joined, metric, foreach, masters, skip_nonfinite, Skipped(), mode, fused
        self._restore(dict(zip(_FIELDS, fields, strict=True)))

    def _restore(self, fields: dict[str, Any]) -> None:
        """Set every field; torch's own `__setstate__` then makes the hook registries."""
        vars(self).update(fields)
        self.terms = list(self.terms)
        self.positions = ParamPositions(self.base, self.terms)
        self._masters = Masters(self.base)
        self._fusing = FusedHalves()
        self._before: Copies = []  # weights from before a step, where a penalty needs them
        self._watch = Watch(self.positions.slots, self.base)
        super().__setstate__({})
        for term in self.terms:
            term.own(self)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """The base's step, then the proximal step; returns what the base's step returns.

        Raises:
            RuntimeError: if a penalised parameter has a sparse gradient but its term is not lazy, another optimizer
                steps one of the terms, or ``skip_nonfinite`` is asked for within a compiled or captured step.
            ValueError: if ``param_groups`` were edited and have lost a penalised parameter that is trained, or
                options, shapes or tensor strengths were changed to what `__init__` and `attach` refuse; nothing has
                moved then.
        """
        if self.skip_nonfinite:
            return self._step_if_finite(closure)
        self.positions.ready(self)
        return self._step(closure)

    def _step_if_finite(self, closure: Callable[[], Any] | None) -> Any:
        with torch.enable_grad():
            loss = None if closure is None else closure()
        names = not_finite(self.base, self.terms)
        self.positions.ready(self)
        self.positions.refuse_sparse()
        if not names:
            self._step(None)
            return loss
        if not self.skipped.steps:
            warn_of_skips(names)
        self.skipped = self.skipped.plus(names)
        forget_clipping(self.base)
        return loss

    def _step(self, closure: Callable[[], Any] | None) -> Any:
        self._watch.before(self.positions.slots, self.base)
        loss = self._masters.step(self._both, closure) if self.masters else self._both(closure)
        self._watch.after(self.positions.slots, self.base)
        for term in self.terms:
            term.stepped(self)
        return loss

    def _both(self, closure: Callable[[], Any] | None) -> Any:
        return around(self, self._halves, closure)

    def _halves(self, closure: Callable[[], Any] | None) -> Any:
        """The base's step and the proximal one; nothing is written before the first."""
        self._before = copies_for(self.positions.slots, self.base, rule_for(self.base, self.metric))
        fused = self.fused and self._fusing.may(self)
        return self._fusing.step(self, closure) if fused else base_then_prox(self, closure)

    def prox(self) -> None:
        """The proximal half of `step`, for the parameters that the base has just stepped.

        ``opt.prox = torch.compile(opt.prox)`` fuses it into one pass over each parameter.
        """
        proximal_half(self)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base; bare penalties take its parameters with two or more dimensions."""
        self.base.add_param_group(added_group(self.base, self.terms, param_group))

    def add_term(self, term: Term | Penalty) -> Term:
        """Penalise more from the next step on, as for a layer that has come; its parameters must be the base's.

        A term of another optimizer is taken over, or taken back; a bare penalty is given back as a term. Checkpoints
        hold the strengths of the terms that there are, in their order.

        Raises:
            TypeError: if it is neither a Term nor a Penalty.
            ValueError: if a parameter is none of the base's or is penalised already. Nothing has changed then.

        Example:
            >>> from torchreg import L1, attach
            >>> trunk, head = torch.nn.Linear(3, 2), torch.nn.Linear(2, 1)
            >>> opt = ProxOptimizer(torch.optim.SGD(trunk.parameters(), lr=0.1), attach(L1(0.1), trunk))
            >>> opt.add_param_group({"params": head.parameters()})
            >>> added = opt.add_term(attach(L1(0.2), head))
            >>> opt.remove_term(added)
            >>> len(opt.terms)
            1
        """
        (joined,) = joined_terms(self.base, [term])
        check_controls([joined], self.mode, masters=self.masters)
        terms = [*(t for t in self.terms if t is not joined), joined]
        self.positions, self.terms = self.positions.of(terms), terms
        joined.own(self)
        return joined

    def remove_term(self, term: Term) -> None:
        """Stop penalising what a term penalises, as for a layer that has gone; its weights stay as they are.

        Raises:
            ValueError: if it is none of this optimizer's terms.
        """
        if all(t is not term for t in self.terms):
            raise ValueError(f"remove_term needs one of opt.terms, got {term!r}; it has {len(self.terms)} of them.")
        self.terms = [t for t in self.terms if t is not term]
        self.positions = self.positions.of(self.terms)
        term.disown(self)

    def stacked(self, others: Sequence[ProxOptimizer]) -> StackedOptimizer:
        """One optimizer for this model and others of its structure, over parameters stacked by `torch.stack`.

        Raises:
            ValueError: if they are not alike but for the strengths, or their step is not one of each entry.
        """
        return StackedOptimizer([self, *others])

    def state_dict(self) -> dict[str, Any]:
        """The base's state dict, with the penalties' strengths under the key "torchreg"."""
        for hook in self._optimizer_state_dict_pre_hooks.values():
            hook(self)
        state = written(self.base, self.terms, self.base.state_dict())
        return through(self._optimizer_state_dict_post_hooks, self, state)

    def load_state_dict(self, state_dict: dict[str, Any], *, strict: bool = True) -> None:
        """Load the state of a wrapped or of a bare optimizer.

        A wrapped one restores the strengths and the schedules' counts too; a warning says where that changes a
        strength. Assign ``term.alpha`` afterwards to use another.

        Args:
            state_dict: from `state_dict` of this class or of the base's.
            strict: False takes what fits, by the parameters' names, and warns of the rest: a strength where the
                checkpoint penalises the same parameter by the same kind of penalty; the base's state where both
                optimizers know names (``Adam(model.named_parameters())``).

        Raises:
            ValueError: if the checkpoint penalises other parameters or by other penalties, has options that are
                refused of any optimizer, or states of other shapes. Whatever raises, nothing has changed then.
        """
        state_dict = through(self._optimizer_load_state_dict_pre_hooks, self, dict(state_dict))
        state_dict, renewed, told = read(self.base, self.terms, state_dict, strict=strict)
        with Rollback(self.base, self.terms):
            if self.masters:  # torch casts a state to its parameter's dtype
                self._masters.during(lambda: self.base.load_state_dict(state_dict), untouched=True)
            else:
                self.base.load_state_dict(state_dict)
            differences = restore(renewed, told)
            for post_hook in self._optimizer_load_state_dict_post_hooks.values():
                post_hook(self)
        tell(differences)

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _FIELDS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._restore(state)

    def __repr__(self) -> str:
        listed = "\n".join(repr(term) for term in self.terms)
        return f"ProxOptimizer(metric={self.metric!r}) of {self.base!r}\npenalised:\n{listed}"
