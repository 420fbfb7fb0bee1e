"""Losses of one's own: what a user may write, with less than the built-in ones know of themselves."""

from torchreg.linear.datafits import Datafit


class Counts(Datafit):
    """Poisson's loss without its conjugate, and below zero."""

    def value(self, eta, y):
        return eta.exp() - y * eta - 5.0

    def grad(self, eta, y):
        return eta.exp() - y

    def hessian(self, eta, y):
        return eta.exp()
