"""The report of a run: one HTML file that shows how it learned, without a network or a server."""

from torchrec.report.page import write_report
from torchrec.report.watch import watch_report

__all__ = ["watch_report", "write_report"]
