"""What is measured while a model learns, and how good it is in the end."""

from torchrec.metrics.binary import BinaryMetrics
from torchrec.metrics.binary_report import BinaryReport, ScoreCurves

__all__ = ["BinaryMetrics", "BinaryReport", "ScoreCurves"]
