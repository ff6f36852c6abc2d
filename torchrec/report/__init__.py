"""Runs as pages: one HTML file that shows how a run learned, or several, without a network or a server."""

from torchrec.report.comparison import Comparison, compare_runs
from torchrec.report.comparison_page import write_comparison
from torchrec.report.page import write_report
from torchrec.report.watch import watch_report

__all__ = ["Comparison", "compare_runs", "watch_report", "write_comparison", "write_report"]
