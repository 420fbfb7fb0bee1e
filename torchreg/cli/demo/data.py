"""The data sets of the demo, all from scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from torchreg.cli.demo.choices import Options
from torchreg.cli.demo.linear import LinearProblem


@dataclass(frozen=True)
class DemoData:
    """A training and a test set; y holds classes (n,), or numbers (n, 1) for a regression."""

    X: Tensor
    y: Tensor
    X_test: Tensor
    y_test: Tensor

    @property
    def regression(self) -> bool:
        """Whether y holds numbers."""
        return self.y.is_floating_point()

    @property
    def outputs(self) -> int:
        """Outputs that a network needs."""
        return 1 if self.regression else int(self.y.max()) + 1

    @property
    def measure(self) -> str:
        """What `score` is called."""
        return "R^2" if self.regression else "accuracy"

    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        """The mean squared error, or the mean cross entropy."""
        return functional.mse_loss(output, y) if self.regression else functional.cross_entropy(output, y)

    def score(self, output: Tensor, y: Tensor) -> float:
        """R^2, or the share of right classes."""
        if self.regression:
            return 1.0 - float((y - output).square().sum() / (y - y.mean()).square().sum())
        return float((output.argmax(1) == y).double().mean())


def load(options: Options) -> DemoData:
    """The data set, a quarter of it for the test."""
    X, y = getattr(_sklearn(), f"load_{options.data}")(return_X_y=True)  # noqa: N806
    return split(torch.as_tensor(X), torch.as_tensor(y), len(X) // 4, options)


def split(X: Tensor, y: Tensor, tests: int, options: Options) -> DemoData:  # noqa: N803
    """Some rows for the test; columns standardised by the rest, those that are constant there left out."""
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(options.seed))
    test, fit = order[:tests], order[tests:]
    varied = X[fit].std(0) > 0
    X = standard(X[:, varied], fit)  # noqa: N806
    y = standard(y[:, None], fit) if y.is_floating_point() else y
    return DemoData(*(part.to(options.device) for part in (X[fit], y[fit], X[test], y[test])))


def standard(X: Tensor, fit: Tensor | slice = slice(None)) -> Tensor:  # noqa: N803
    """Columns with mean 0 and variance 1 over the rows ``fit``, in float32."""
    return ((X - X[fit].mean(0)) / X[fit].std(0, correction=0)).float()


def moons(options: Options) -> DemoData:
    """Two noisy half moons, few points for a network of this size and many for the test: data to draw."""
    X, y = _sklearn().make_moons(2000, noise=0.35, random_state=options.seed)  # noqa: N806
    return split(torch.as_tensor(X), torch.as_tensor(y), 1850, options)


def diabetes() -> LinearProblem:
    """scikit-learn's diabetes data, all of it."""
    bunch = _sklearn().load_diabetes()
    X, y = torch.as_tensor(bunch.data), torch.as_tensor(bunch.target)  # noqa: N806
    return LinearProblem(standard(X), standard(y[:, None])[:, 0], tuple(bunch.feature_names))


def _sklearn() -> Any:
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError(
            f"torchreg demo takes its data from scikit-learn ({error}); pip install scikit-learn."
        ) from error
    return datasets
