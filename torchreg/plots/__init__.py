"""Pictures in scikit-learn's Display protocol; they need matplotlib, the extra ``plot``."""

from torchreg.plots.boundary import BoundaryDisplay
from torchreg.plots.canvas import panels
from torchreg.plots.cross_validation import CVDisplay
from torchreg.plots.geometry import GeometryDisplay
from torchreg.plots.histogram import WeightHistogramDisplay
from torchreg.plots.path import PathDisplay

__all__ = ["BoundaryDisplay", "CVDisplay", "GeometryDisplay", "PathDisplay", "WeightHistogramDisplay", "panels"]
