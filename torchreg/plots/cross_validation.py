"""The held-out loss of a cross-validation against the penalty's strength."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from torchreg.plots.alpha_axis import as_array, check_alphas, count_axis, limit, scale_alpha
from torchreg.plots.inputs import check_cv_path, cv_path_of
from torchreg.plots.style import FAINT, INK, PALETTE, Array, axes_or_new, figure_of, finite, many_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from torchreg.linear.cv import CVPath


_CROP = 2.5  # the y axis ends so many times as high above the least mean as the null model's loss, or 4 standard errors


class CVDisplay:
    """The mean held-out loss with its standard error against log alpha, and the alphas that rules choose.

    The 1-SE rule takes the largest alpha whose mean loss is within one standard error of the least:
    its model has fewer coefficients and a loss that the folds cannot tell from the best. Losses that
    explode where alpha is small leave the picture at its top, so that the least mean can be seen.

    Args:
        alphas: strengths, ascending, >= 0, shape (n,).
        mean: held-out loss at each, over the folds, shape (n,).
        se: its standard error, shape (n,).
        nonzeros: features with a non-zero coefficient at each alpha, fitted to all data, shape (n,).
        alpha_min: where the mean is least.
        alpha_1se: what the 1-SE rule chooses.
        losses: of each fold, shape (folds, n); None where they are not to be drawn.
        loss: what the y axis calls it.
        error: the standard error as a ``"band"``, or as ``"bars"`` like glmnet's.

    Attributes:
        ax_, figure_: where it was drawn.
        line_: the mean. error_: the band, or the bars. folds_: the folds' curves as one collection, or
        None. alpha_min_, alpha_1se_: the vertical lines. points_: the mean at the two alphas.
        legend_: names them. top_: the axis of the counts.

    Raises:
        ValueError: if ``error`` is neither of the two, or an alpha is negative.

    Source:
        Breiman et al., Classification and Regression Trees, 1984, section 3.4.3 (the 1-SE rule); Hastie, Tibshirani and
        Friedman, The Elements of Statistical Learning, 2009, section 7.10.

    Example:
        >>> from torchreg.plots import panels
        >>> display = CVDisplay(
        ...     alphas=np.array([0.1, 1.0]), mean=np.array([2.0, 3.0]), se=np.array([0.5, 0.5]),
        ...     nonzeros=np.array([4, 0]), alpha_min=0.1, alpha_1se=0.1,
        ... )
        >>> display.plot(panels()[1][0]).ax_.get_xscale()
        'log'
    """

    def __init__(
        self, *, alphas: Array, mean: Array, se: Array, nonzeros: Array, alpha_min: float, alpha_1se: float,
        losses: Array | None = None, loss: str = "held-out loss", error: Literal["band", "bars"] = "band",
    ) -> None:  # fmt: skip
        if error not in ("band", "bars"):
            raise ValueError(f"CVDisplay draws error='band' or error='bars', got {error!r}.")
        check_alphas("CVDisplay", alphas)
        self.alphas, self.mean, self.se, self.nonzeros = alphas, mean, se, nonzeros
        self.alpha_min, self.alpha_1se = alpha_min, alpha_1se
        self.losses, self.loss, self.error = losses, loss, error

    @classmethod
    def from_path(
        cls, path: CVPath, *, folds: bool = False, loss: str = "held-out loss",
        error: Literal["band", "bars"] = "band", ax: Axes | None = None, **style: Any,
    ) -> Self:  # fmt: skip
        """Draw what `torchreg.linear.fit_cv` returns.

        Args:
            path: its attributes ``path`` (of all data), ``losses, mean, se, alpha_min, alpha_1se``.
            folds: draw each fold's curve too.
            loss: what the y axis calls the loss.
            error: ``"band"`` or ``"bars"``.
            ax: axes to draw on; None makes a figure.
            style: for the mean, `matplotlib.axes.Axes.plot`.

        Raises:
            TypeError: if it is no cross-validation.
        """
        check_cv_path(path)
        alphas = as_array(path.path.alphas)
        order = np.argsort(alphas, kind="stable")
        mean, se, losses = (as_array(values)[..., order] for values in (path.mean, path.se, path.losses))
        display = cls(
            alphas=alphas[order], mean=mean, se=se, nonzeros=as_array(path.path.n_nonzero).astype(int)[order],
            alpha_min=float(path.alpha_min), alpha_1se=float(path.alpha_1se),
            losses=losses if folds else None, loss=loss, error=error,
        )  # fmt: skip
        return display.plot(ax, **style)

    @classmethod
    def from_estimator(cls, estimator: Any, **options: Any) -> Self:
        """Draw the cross-validation of a fitted estimator of `torchreg.linear`, such as ``LassoCV``.

        Args:
            estimator: fitted with cross-validation.
            options: as for `from_path`.

        Raises:
            ValueError: if it holds no cross-validation.
        """
        return cls.from_path(cv_path_of(estimator), **options)

    def plot(self, ax: Axes | None = None, **style: Any) -> Self:
        """Draw on ``ax``, or on a new figure; ``style`` goes to the mean."""
        self.ax_ = ax = axes_or_new(ax)
        self.figure_ = figure_of(ax)
        scale_alpha(ax, self.alphas)
        look = {"color": PALETTE[0], "linewidth": 1.8, "label": "mean", **style}
        self.folds_ = None if self.losses is None else self._folds(self.losses)
        self.line_ = ax.plot(self.alphas, finite(self.mean), **look)[0]
        self.error_ = self._band(look["color"]) if self.error == "band" else self._bars(look["color"])
        self.alpha_min_ = self._rule(self.alpha_min, "least mean", "-")
        self.alpha_1se_ = self._rule(self.alpha_1se, "1-SE rule", (0, (5, 2)))
        self.points_ = self._points(look["color"])
        ax.set(xlabel="alpha", ylabel=self.loss)
        limit(ax, self.alphas)
        self._crop(ax)
        shown = [self.line_, self.error_, *([] if self.folds_ is None else [self.folds_])]
        shown += [self.alpha_min_, self.alpha_1se_]
        self.legend_ = ax.legend(handles=shown, fontsize=8, frameon=True, framealpha=0.9, edgecolor="none")
        self.top_ = count_axis(ax, self.alphas, self.nonzeros, "non-zero features")
        return self

    def _crop(self, ax: Axes) -> None:
        best = int(np.nanargmin(finite(self.mean)))
        reach = np.nanmax([self.mean[-1] - self.mean[best], 4.0 * self.se[best]])
        top = self.mean[best] + _CROP * reach
        if reach > 0 and ax.get_ylim()[1] > top:
            drawn = [self.mean - self.se, *([] if self.losses is None else self.losses)]
            least = min(float(np.nanmin(finite(values))) for values in drawn)
            ax.set_ylim(least - 0.05 * (top - least), top)

    def _folds(self, losses: Array) -> Any:
        curves = np.stack(np.broadcast_arrays(self.alphas, finite(losses)), axis=2)
        return many_lines(self.ax_, curves, colors=FAINT, linewidths=0.8, zorder=1, label=f"{len(losses)} folds")

    def _band(self, colour: Any) -> Any:
        low, high = finite(self.mean - self.se), finite(self.mean + self.se)
        look = {"color": colour, "alpha": 0.2, "linewidth": 0, "label": "± 1 standard error"}
        return self.ax_.fill_between(self.alphas, low, high, **look)

    def _bars(self, colour: Any) -> Any:
        look = {"fmt": "none", "ecolor": colour, "elinewidth": 0.8, "capsize": 1.8, "label": "± 1 standard error"}
        return self.ax_.errorbar(self.alphas, finite(self.mean), yerr=finite(self.se), **look)

    def _rule(self, alpha: float, name: str, dashes: Any) -> Any:
        label = f"{name}: alpha = {alpha:.3g}"
        return self.ax_.axvline(alpha, color=INK, linewidth=1.1, linestyle=dashes, zorder=1.5, label=label)

    def _points(self, colour: Any) -> Any:
        chosen = np.array([self.alpha_min, self.alpha_1se])
        heights = np.interp(chosen, self.alphas, self.mean)
        return self.ax_.scatter(chosen, heights, s=26, color=colour, edgecolors="white", linewidths=0.8, zorder=3)
