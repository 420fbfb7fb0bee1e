"""Pictures in scikit-learn's Display protocol; they need matplotlib, the extra ``plot``."""

from torchreg.plots.ablation_data import Curve
from torchreg.plots.boundary import BoundaryDisplay
from torchreg.plots.cross_validation import CVDisplay
from torchreg.plots.geometry import GeometryDisplay
from torchreg.plots.histogram import WeightHistogramDisplay
from torchreg.plots.layers import LayerSparsityDisplay
from torchreg.plots.learning_curves import CurvesDisplay
from torchreg.plots.metric import MetricDisplay
from torchreg.plots.path import PathDisplay
from torchreg.plots.style import panels, svg
from torchreg.plots.tradeoff import TradeoffDisplay

__all__ = [
    "BoundaryDisplay",
    "CVDisplay",
    "Curve",
    "CurvesDisplay",
    "GeometryDisplay",
    "LayerSparsityDisplay",
    "MetricDisplay",
    "PathDisplay",
    "TradeoffDisplay",
    "WeightHistogramDisplay",
    "panels",
    "svg",
]
