"""An ablation as one self-contained HTML file."""

from torchreg.report.write import write_report

__all__ = ["write_report"]
