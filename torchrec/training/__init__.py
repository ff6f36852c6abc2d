"""Training: the loop, its checkpoints, and the run of an experiment."""

from torchrec.training.checkpoint import Checkpoints
from torchrec.training.fit_state import FitResult
from torchrec.training.observers import MetricsLog, Observer, Plan, Record, TensorBoard
from torchrec.training.trainer import Trainer

__all__ = [
    "Checkpoints",
    "FitResult",
    "MetricsLog",
    "Observer",
    "Plan",
    "Record",
    "TensorBoard",
    "Trainer",
]
