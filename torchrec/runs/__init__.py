"""The folder of a run: what its files are called, what is in them, and who may write them."""

from torchrec.runs.contents import Run, read_run
from torchrec.runs.fitted import Fitted
from torchrec.runs.folder import RunFolder
from torchrec.runs.lock import lock
from torchrec.runs.metrics import MetricsFile, MetricsLine
from torchrec.runs.outcome import SPLITS, RunReport, RunResult, Scores, TableFacts, numbers_of

__all__ = [
    "SPLITS",
    "Fitted",
    "MetricsFile",
    "MetricsLine",
    "Run",
    "RunFolder",
    "RunReport",
    "RunResult",
    "Scores",
    "TableFacts",
    "lock",
    "numbers_of",
    "read_run",
]
