"""What is measured while a model learns, how good it is in the end, and how sure that is."""

from torchrec.metrics.binary import BinaryMetrics, ScoreCurves
from torchrec.metrics.bootstrap import bootstrap_interval
from torchrec.metrics.delong import auc_estimate
from torchrec.metrics.estimate import Estimate, MetricDifference, contrast, mean_estimate
from torchrec.metrics.grouped import GroupedMetrics
from torchrec.metrics.interval import Interval
from torchrec.metrics.multiclass import MulticlassMetrics
from torchrec.metrics.regression import RegressionMetrics
from torchrec.metrics.report import Metrics, Report, combine_reports

__all__ = [
    "BinaryMetrics",
    "Estimate",
    "GroupedMetrics",
    "Interval",
    "MetricDifference",
    "Metrics",
    "MulticlassMetrics",
    "RegressionMetrics",
    "Report",
    "ScoreCurves",
    "auc_estimate",
    "bootstrap_interval",
    "combine_reports",
    "contrast",
    "mean_estimate",
]
