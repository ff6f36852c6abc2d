"""The report of a run: one HTML file that shows how it learned, without a network or a server."""

from torchrec.report.page import write_report

__all__ = ["write_report"]
