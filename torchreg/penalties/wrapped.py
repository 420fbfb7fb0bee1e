"""What penalties around a penalty share: alpha is the inner one's."""

from __future__ import annotations

from typing import Self

from torchreg.functional.groups import Groups
from torchreg.functional.shrinkage import Scalar
from torchreg.penalties.base import Penalty


class Wrapped(Penalty):
    """A penalty around another: alpha is the inner one's."""

    penalty: Penalty

    @property
    def alpha(self) -> Scalar:  # type: ignore[override]
        return self.penalty.alpha

    def with_alpha(self, alpha: Scalar) -> Self:
        return self.replaced(penalty=self.penalty.with_alpha(alpha))

    @property
    def convex(self) -> bool:
        return self.penalty.convex

    @property
    def several(self) -> tuple[Penalty, ...]:
        return self.penalty.several

    @property
    def groups(self) -> Groups | None:
        return self.penalty.groups
