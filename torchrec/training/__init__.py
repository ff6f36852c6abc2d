"""Training: the loop, its checkpoints, and the run of an experiment."""

from torchrec.training.checkpoint import Checkpoints
from torchrec.training.fit_state import FitResult
from torchrec.training.observers import Extent, MetricsLog, Observer, Record, TensorBoard
from torchrec.training.optimizers import dense_optimizer
from torchrec.training.options import (
    AverageOptions,
    EarlyStoppingOptions,
    FitOptions,
    ScheduleOptions,
)
from torchrec.training.state_store import StateStore
from torchrec.training.task import Task
from torchrec.training.trainer import Trainer

__all__ = [
    "AverageOptions",
    "Checkpoints",
    "EarlyStoppingOptions",
    "Extent",
    "FitOptions",
    "FitResult",
    "MetricsLog",
    "Observer",
    "Record",
    "ScheduleOptions",
    "StateStore",
    "Task",
    "TensorBoard",
    "Trainer",
    "dense_optimizer",
]
