"""How far training has come, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass

from torchrec.metrics import Report


@dataclass
class Progress:
    """How far training has come.

    Attributes:
        step: updates made.
        epoch: passes over the data that are done.
        batch: batches of this pass that are done.
        samples: training samples seen.
        seconds: spent, with evaluations and checkpoints.
        step_seconds: spent on steps, with reading.
        recorded: step of the last record of training.
        recorded_seconds: ``step_seconds`` then.
        recorded_samples: ``samples`` then.
        learning_rate: of the dense parameters in the last step; None before the first.
        evaluated: step of the last evaluation.
        saved: step of the last checkpoint.
        over: whether there is nothing left to do.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    samples: int = 0
    seconds: float = 0.0
    step_seconds: float = 0.0
    recorded: int = 0
    recorded_seconds: float = 0.0
    recorded_samples: int = 0
    learning_rate: float | None = None
    evaluated: int | None = None
    saved: int | None = None
    over: bool = False


@dataclass(frozen=True)
class FitResult:
    """What came of training.

    Attributes:
        steps: updates made.
        epochs: passes over the data that were completed.
        samples: training samples seen.
        seconds: spent, with evaluations and checkpoints.
        samples_per_second: of training steps, with reading.
        train: metrics of the last pass, each sample predicted before it was learned from.
        valid: metrics of the validation data with the weights that the model has now; None without.
        test: likewise, of the test data.
        best_step: the step whose weights the model has, if early stopping chose it.
        best_epoch: the epoch, from 1, of the best evaluation: by the metrics of early stopping, or by
            the loss; None without any.
        notes: what a person should know of it, a sentence each: that validation loss was rising, that
            always predicting the mean would be better.
    """

    steps: int
    epochs: int
    samples: int
    seconds: float
    samples_per_second: float
    train: Report
    valid: Report | None
    test: Report | None
    best_step: int | None
    best_epoch: int | None = None
    notes: tuple[str, ...] = ()
