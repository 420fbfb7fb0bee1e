"""The central abstraction: a data term is the loss of one row as a function of its linear predictor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from torchreg.linear.datafits.targets import real_target
from torchreg.penalties import NoConjugate


class NoHessian(ValueError):
    """The second derivative of this datafit is not known in closed form; fits then use first derivatives alone."""


class Datafit(ABC):
    """The loss ``f(eta_i, y_i)`` of each row; a fit minimises its weighted mean plus a penalty.

    A subclass of your own writes two methods, ``value`` and ``grad``, and is fitted by proximal
    gradient; ``hessian`` adds Newton steps, ``conjugate`` the duality gap. The other methods have
    defaults that follow from these. A loss should be convex in ``eta``.

    All tensors are float64. ``y`` is what ``prepare`` returned.

    Shapes:
        eta, u: (n,), or (n, K) for K outputs. The built-in datafits also take leading batch
        dimensions, (..., n) or (..., n, K), which broadcast with ``y``.

    Attributes:
        curvature: an upper bound of the second derivative in ``eta`` (of its largest eigenvalue,
            for K outputs); None if there is none, so that solvers search along the line.
        quadratic: whether the loss is half the squared distance of ``eta`` from ``y``.
        likelihood: whether the loss is a negative log likelihood, but for terms without ``eta``. Information criteria
            ask; least squares, whose variance is unknown, says no and has a formula of its own.
        relative: whether only differences between the outputs of a row matter (softmax).
        classes: whether ``y`` are classes and ``predict`` gives their chances, as classifiers need.

    Raises:
        TypeError: if a subclass that lacks ``value`` or ``grad`` is built.

    Source:
        Fenchel's inequality, from which the gap follows: Rockafellar, Convex Analysis, 1970, theorem 23.5.

    Example:
        >>> import torch
        >>> from torchreg import L1
        >>> from torchreg.linear import Datafit, fit_path
        >>> class LogCosh(Datafit):
        ...     def value(self, eta, y):
        ...         return torch.log(torch.cosh(eta - y))
        ...
        ...     def grad(self, eta, y):
        ...         return torch.tanh(eta - y)
        >>> X = torch.eye(2).repeat(2, 1)
        >>> path = fit_path(X, 2.0 * X[:, 0], L1(1.0), datafit=LogCosh(), alphas=[0.25], fit_intercept=False)
        >>> path.coefs == 0
        tensor([[False,  True]])
        >>> path.dual_gaps, path.converged  # no conjugate, no gap: the violation is what is certified
        (tensor([nan], dtype=torch.float64), tensor([True]))
    """

    curvature: float | None = None
    quadratic: bool = False
    likelihood: bool = False
    relative: bool = False
    classes: bool = False

    @abstractmethod
    def value(self, eta: Tensor, y: Tensor) -> Tensor:
        """The loss of each row, shape (n,)."""

    @abstractmethod
    def grad(self, eta: Tensor, y: Tensor) -> Tensor:
        """The derivative of each row's loss with respect to ``eta``, of its shape."""

    def hessian(self, eta: Tensor, y: Tensor) -> Tensor:
        """The second derivative of each row's loss, of eta's shape: for K outputs, the diagonal.

        Raises:
            NoHessian: where it is not known.
        """
        raise NoHessian(
            f"{type(self).__name__} has no known second derivative; write its method hessian(eta, y) to have "
            "Newton steps."
        )

    def hessian_map(self, eta: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
        """The map ``v -> f''(eta_i) v_i`` of rows of eta's shape: what Newton steps need for K outputs.

        Raises:
            NoHessian: where it is not known; for K outputs, `hessian` is only its diagonal.
        """
        if self.outputs(y) is not None:
            raise NoHessian(
                f"{type(self).__name__} has no known second derivative for {self.outputs(y)} outputs; write its method "
                "hessian_map(eta, y) to have Newton steps."
            )
        second = self.hessian(eta, y)
        return lambda v: second * v

    def conjugate(self, u: Tensor, y: Tensor) -> Tensor:
        """``f*(u_i) = sup_eta <u_i, eta> - f(eta, y_i)`` of each row, shape (n,), inf outside its domain.

        Raises:
            NoConjugate: where it is not known.
        """
        raise NoConjugate(
            f"{type(self).__name__} has no known convex conjugate; write its method conjugate(u, y) to have a duality "
            "gap, or read the fit's violation instead."
        )

    def prepare(self, y: Tensor) -> Tensor:
        """The target in the form that the other methods take, checked once.

        Args:
            y: numbers as the user has them, shape (n,) or (n, K), any dtype.

        Returns:
            A float64 tensor on y's device.

        Raises:
            ValueError: if ``y`` is not of the form that the loss is defined for.
        """
        return real_target(y, most_dims=2)

    def outputs(self, y: Tensor) -> int | None:
        """K, the number of outputs for each row of a prepared ``y``; None if there is one, without a dimension."""
        return y.shape[1] if y.dim() == 2 else None

    def feasible(self, u: Tensor, y: Tensor) -> Tensor:
        """The largest ``s`` in [0, 1] with a finite ``conjugate(s * u)``, a 0-d tensor."""
        del y
        return u.new_ones(())

    def fenchel_gap(self, eta: Tensor, u: Tensor, y: Tensor) -> Tensor:
        """``f(eta_i) + f*(u_i) - <u_i, eta_i>`` of each row, shape (n,): >= 0, and 0 where u is the gradient.

        The built-in datafits compute it without cancellation, so that it is exact to relative
        rounding however small it is.
        """
        inner = u * eta
        inner = inner.sum(-1) if y.dim() == 2 else inner
        return (self.value(eta, y) + self.conjugate(u, y) - inner).clamp(min=0.0)

    def predict(self, eta: Tensor) -> Tensor:
        """The mean response at ``eta``, of its shape; here ``eta`` itself."""
        return eta

    def link(self, mean: Tensor) -> Tensor:
        """The finite ``eta`` at which ``predict`` gives ``mean``, or the nearest: a first guess of intercepts."""
        return mean


def finite_where(inside: Tensor, value: Tensor) -> Tensor:
    """``value`` where ``inside``, else inf: how a conjugate says that it is outside its domain."""
    return torch.where(inside, value, torch.inf)
