"""Coefficients against the penalty's strength, or against their own norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from torch import Tensor

from torchreg.plots.alpha_axis import as_array, check_alphas, count_axis, limit, scale_alpha, trim_ticks
from torchreg.plots.curve_names import name_ends, names_that_fit, room_for
from torchreg.plots.inputs import check_path, drawn_coefs, feature_names, path_of
from torchreg.plots.style import FAINT, MUTED, PALETTE, Array, axes_or_new, figure_of, many_lines, mark

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from torchreg.linear.path import Path

_LABELLED = 20  # more curves than this have no room for names
_LARGEST = 10  # of so many curves, these stand out
_COVER = 1.8  # the line at 0 covers the curves that lie on it, whichever was drawn last
_DASHES = ("-", "--", ":")


class PathDisplay:
    """Coefficients against log alpha, with the number of non-zero ones on the top axis.

    Args:
        alphas: strengths, ascending, >= 0, shape (n,). From the least positive one down to 0 the
            axis is linear.
        coefs: coefficients at each alpha, shape (n, features).
        names: of the features; None for no names.
        x: ``"alpha"``, or ``"norm"`` for the sum of the coefficients' absolute values.
        largest: where there are more than 20 curves (fewer on small axes), so many of the largest
            at the chosen alpha, else at the least, keep their colour and name, the rest is thin
            and grey; None: all keep their colour, none its name.
        chosen: an alpha to mark by a vertical line.
        labels: of the y axis and of the top axis.

    Attributes:
        ax_, figure_: where it was drawn.
        lines_: one line per feature, or per one that stands out. rest_: the others as one
            collection of lines, or None. top_: the axis of the counts. labels_: the names.
        chosen_: the vertical line, or None.

    Raises:
        ValueError: if ``x`` is neither of the two.

    Source:
        Efron, Hastie, Johnstone and Tibshirani, Annals of Statistics 32, 2004, figure 1 (against the L1 norm).

    Example:
        >>> from torchreg.plots import PathDisplay, panels
        >>> PathDisplay.from_coefs([0.1, 1.0], np.array([[0.5, -0.2], [0.3, 0.0]]), ax=panels()[1][0]).nonzeros
        array([2, 1])
    """

    def __init__(
        self, *, alphas: Array, coefs: Array, names: Sequence[str] | None = None, x: Literal["alpha", "norm"] = "alpha",
        largest: int | None = None, chosen: float | None = None,
        labels: tuple[str, str] = ("coefficient", "non-zero coefficients"),
    ) -> None:  # fmt: skip
        if x not in ("alpha", "norm"):
            raise ValueError(f"PathDisplay draws against x='alpha' or x='norm', got {x!r}.")
        self.alphas, self.coefs = alphas, coefs
        self.names = None if names is None else tuple(names)
        self.x, self.largest, self.chosen, self.labels = x, largest, chosen, labels

    @property
    def nonzeros(self) -> Array:
        """How many coefficients are not exactly zero, at each alpha."""
        return np.asarray(np.count_nonzero(self.coefs, axis=1))

    @property
    def places(self) -> Array:
        """Where each alpha's coefficients stand on the x axis."""
        return self.alphas if self.x == "alpha" else np.asarray(np.abs(self.coefs).sum(1))

    @classmethod
    def from_coefs(
        cls, alphas: Tensor | Array | Sequence[float], coefs: Tensor | Array, *, names: Sequence[str] | None = None,
        x: Literal["alpha", "norm"] = "alpha", ax: Axes | None = None, **style: Any,
    ) -> Self:  # fmt: skip
        """Sort by alpha and draw.

        Args:
            alphas: strengths >= 0 in any order, shape (n,).
            coefs: coefficients at each alpha, shape (n, features).
            names: of the features.
            x: ``"alpha"`` or ``"norm"``.
            ax: axes to draw on; None makes a figure.
            style: for the curves, `matplotlib.axes.Axes.plot`.

        Raises:
            ValueError: if the shapes or the names do not fit, or an alpha is negative.
        """
        strengths, table = as_array(alphas), as_array(coefs)
        if strengths.ndim != 1 or table.ndim != 2 or len(strengths) != len(table):
            raise ValueError(
                f"PathDisplay needs alphas of shape (n,) and coefs of shape (n, features), got {strengths.shape} and "
                f"{table.shape}; transpose coefs if a row is a feature."
            )
        _check_names(names, table.shape[1])
        check_alphas("PathDisplay", strengths)
        order = np.argsort(strengths, kind="stable")
        return cls(alphas=strengths[order], coefs=table[order], names=names, x=x).plot(ax, **style)

    @classmethod
    def from_path(
        cls, path: Path, *, names: Sequence[str] | None = None, x: Literal["alpha", "norm"] = "alpha",
        output: int | None = None, scale: Tensor | Array | None = None, largest: int | None = _LARGEST,
        chosen: float | None = None, ax: Axes | None = None, **style: Any,
    ) -> Self:  # fmt: skip
        """Draw what `torchreg.linear.fit_path` returns: the curves of features that are ever non-zero.

        Args:
            path: alphas (a,) and coefs (a, p) or, with several outputs, (a, p, K).
            names: of all p features.
            x: ``"alpha"`` or ``"norm"``.
            output: which of K outputs to draw; None draws the norm of each feature's K coefficients.
            scale: factors on the features, shape (p,): their standard deviations draw the
                coefficients of standardised features.
            largest: of more than 20 curves, how many keep their colour and name; None: all keep
                their colour, none its name.
            chosen: an alpha to mark.
            ax: axes to draw on; None makes a figure.
            style: for the curves, `matplotlib.axes.Axes.plot`.

        Raises:
            TypeError: if it is no path.
            ValueError: if names, scale or output do not fit.

        Example:
            >>> import torch
            >>> from types import SimpleNamespace
            >>> from torchreg.plots import panels
            >>> path = SimpleNamespace(alphas=torch.tensor([1.0, 0.1]), coefs=torch.tensor([[0.0, 0.0], [0.0, 2.0]]))
            >>> PathDisplay.from_path(path, names=("a", "b"), ax=panels()[1][0]).names
            ('b',)
        """
        check_path(path)
        table, labels = drawn_coefs(path.coefs, output=output, scale=scale)
        _check_names(names, table.shape[1])
        alphas = as_array(path.alphas)
        check_alphas("PathDisplay", alphas)
        order, ever = np.argsort(alphas, kind="stable"), np.flatnonzero((table != 0).any(0))
        display = cls(
            alphas=alphas[order], coefs=table[order][:, ever], x=x, largest=largest, chosen=chosen, labels=labels,
            names=None if names is None else [str(names[k]) for k in ever.tolist()],
        )  # fmt: skip
        return display.plot(ax, **style)

    @classmethod
    def from_estimator(
        cls, estimator: Any, X: Any = None, y: Any = None, *, names: Sequence[str] | None = None,  # noqa: N803
        chosen: float | None = None, **options: Any,
    ) -> Self:  # fmt: skip
        """Draw the path of an estimator of `torchreg.linear`, and mark the alpha that it has or has chosen.

        Args:
            estimator: fitted with cross-validation, then its `path_` is drawn; or any other, then
                the path of its penalty is fitted to X and y, from `alpha_max_` down; where that is
                infinite, as of ridge, around the estimator's own alpha.
            X: the data, needed where the estimator has no `path_`.
            y: the target of X.
            names: of all features; None takes the estimator's `feature_names_in_` where it has them.
            chosen: an alpha to mark; None takes the estimator's.
            options: as for `from_path`.

        Raises:
            ValueError: if the estimator has no path, and X and y are missing.
        """
        path, strength = path_of(estimator, X, y)
        if names is None:
            names = feature_names(estimator, X)
        return cls.from_path(path, names=names, chosen=strength if chosen is None else chosen, **options)

    def plot(self, ax: Axes | None = None, **style: Any) -> Self:
        """Draw on ``ax``, or on a new figure; ``style`` goes to the curves."""
        self.ax_ = ax = axes_or_new(ax)
        self.figure_ = figure_of(ax)
        if self.x == "alpha":
            scale_alpha(ax, self.alphas)
        ax.hlines(0.0, self.places.min(), self.places.max(), color=MUTED, linewidth=_COVER, zorder=2.5)
        front = self._front()
        self.rest_ = self._rest(front) if len(front) < self.coefs.shape[1] else None
        self.lines_ = [self._line(turn, k, style) for turn, k in enumerate(front)]
        self.labels_ = self._label(front) if self.names is not None and len(front) <= self._room() else []
        ax.set(xlabel="alpha" if self.x == "alpha" else "L1 norm of the coefficients", ylabel=self.labels[0])
        side = "left" if self.x == "alpha" else "right"
        limit(ax, self.places, **({side: room_for(self.labels_, ax)} if self.labels_ else {}))
        if self.labels_:
            trim_ticks(ax, self.places)
        self.chosen_ = None if self.chosen is None else self._mark(self.chosen)
        self.top_ = count_axis(ax, self.places, self.nonzeros, self.labels[1])
        return self

    def _front(self) -> list[int]:
        """Columns of the curves that stand out, in their order."""
        count = self.coefs.shape[1]
        if self.largest is None or count <= self._room():
            return list(range(count))
        ends = np.abs(self.coefs[0])
        near = 0 if self.chosen is None else int(np.abs(self.alphas - self.chosen).argmin())
        by_size = np.lexsort((-ends, -np.abs(self.coefs[near])))
        return sorted(by_size[: min(self.largest, self._room())].tolist())

    def _room(self) -> int:
        """How many curves can be told apart and named."""
        return min(_LABELLED, names_that_fit(self.ax_))

    def _rest(self, front: list[int]) -> Any:
        others = np.delete(self.coefs, front, axis=1).T
        curves = np.stack(np.broadcast_arrays(self.places, others), axis=2)
        return many_lines(self.ax_, curves, colors=FAINT, linewidths=0.6, zorder=1)

    def _line(self, turn: int, k: int, style: dict[str, Any]) -> Any:
        dashes, colour = divmod(turn, len(PALETTE))
        chosen = {"color": PALETTE[colour], "linestyle": _DASHES[dashes % len(_DASHES)], "linewidth": 1.6, **style}
        return self.ax_.plot(self.places, self.coefs[:, k], **chosen)[0]

    def _label(self, front: list[int]) -> list[Any]:
        """Names beside the ends of the curves where alpha is least."""
        names = [(self.names or ())[k] for k in front]
        side: Literal["left", "right"] = "left" if self.x == "alpha" else "right"
        return name_ends(self.ax_, self.places[0], self.coefs[0, front], names, self.lines_, side=side)

    def _mark(self, alpha: float) -> Any:
        place = float(alpha if self.x == "alpha" else np.interp(alpha, self.alphas, self.places))
        return mark(self.ax_, place, f"alpha = {alpha:.3g}")


def _check_names(names: Sequence[str] | None, features: int) -> None:
    if names is not None and len(names) != features:
        raise ValueError(f"PathDisplay needs a name for each of {features} features, got {len(names)}.")
