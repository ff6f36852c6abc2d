"""What is measured while a model learns, and how good it is in the end."""

from torchrec.metrics.binary import BinaryMetrics, ScoreCurves
from torchrec.metrics.regression import RegressionMetrics
from torchrec.metrics.report import Metrics, Report

__all__ = ["BinaryMetrics", "Metrics", "RegressionMetrics", "Report", "ScoreCurves"]
