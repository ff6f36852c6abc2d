"""What stands beside a result: always predicting the training base rate, and a logistic regression."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import islice

from torchrec.datasets.loader import Loader
from torchrec.datasets.utils import Batch
from torchrec.metrics import Report
from torchrec.models import registry
from torchrec.models.registry import ModelSection, TableOptimizer
from torchrec.runs import Scores
from torchrec.threads import using_threads
from torchrec.training.fit_state import FitResult
from torchrec.training.optimizers import dense_optimizer
from torchrec.training.options import EarlyStoppingOptions, FitOptions
from torchrec.training.run_data import RunData
from torchrec.training.run_tasks import tasks_of
from torchrec.training.trainer import Trainer

LINEAR = "lr"
MOST_ROWS = 5_000_000  # beyond, the regression is trained only if it is asked for
_BATCH, _RATE, _EPOCHS = 256, 0.02, 2
_LEAST_SAMPLES = 50_000  # less than a second

Baseline = Mapping[str, Scores | None]


def constant_baseline(fitted: FitResult, share: float = 1.0) -> Baseline:
    """Return the metrics of always predicting the base rate of training, for validation and test.

    They follow from how many labels are 1: no data are read.

    Args:
        fitted: what came of training; its reports are of one task.
        share: of the negatives that training data have kept. Default 1.
    """
    train = fitted.train
    negatives = (train.weight - train.positives) / share
    rate = train.positives / max(train.positives + negatives, 1e-12)
    return {
        split: None if report is None else _constant(rate, report)
        for split, report in (("valid", fitted.valid), ("test", fitted.test))
    }


def _constant(rate: float, report: Report) -> Scores:
    """Return what a report like this would have for one probability everywhere."""
    found: Scores = {**dict.fromkeys(report), **report.to_json()}
    share = report.positives / max(report.weight, 1e-12)
    logloss, entropy = _cross_entropy(share, rate), _cross_entropy(share, share)
    numbers = {
        "auc": 0.5 if 0 < share < 1 else math.nan,
        "logloss": logloss,
        "ne": logloss / entropy if entropy > 0 else math.nan,
        "calibration": rate / share if share > 0 else math.nan,
    }
    return found | {
        name: value if math.isfinite(value) else None for name, value in numbers.items()
    }


def _cross_entropy(share: float, rate: float) -> float:
    """Return the mean loss of predicting ``rate`` where ``share`` of the labels are 1."""
    loss = 0.0
    for weight, probability in ((share, rate), (1 - share, 1 - rate)):
        if weight > 0:
            loss -= weight * math.log(probability) if probability > 0 else -math.inf
    return loss


def linear_baseline(data: RunData, samples: int, seed: int) -> Baseline:
    """Train a logistic regression on what the model was trained on, and return its metrics.

    It makes at most two passes and sees a tenth of the samples that the model has seen, or 50,000:
    that is what bounds its time, so that its result does not depend on how fast the machine is.

    Args:
        data: what the run reads.
        samples: that its model has seen.
        seed: of its loader.
    """
    section = ModelSection(name=LINEAR)
    optimizer = TableOptimizer(optimizer="adam", lr=_RATE)
    model = registry.build_model(section, data.evaluated, optimizer)
    batches = max(samples // 10, _LEAST_SAMPLES) // (_BATCH * _EPOCHS)
    train = _First(Loader(data.train.source, data.evaluated, _BATCH, seed=seed), batches)
    stopping = EarlyStoppingOptions(metric="logloss", patience=1)
    options = FitOptions(
        epochs=_EPOCHS, seed=seed, early_stopping=None if data.valid is None else stopping
    )
    tasks = tasks_of(data.experiment)
    with using_threads(1):
        trainer = Trainer(
            model, dense_optimizer(model, "adam", _RATE), tasks=tasks, options=options
        )
        fitted = trainer.fit(train, data.valid, data.test)
    return {
        "valid": None if fitted.valid is None else fitted.valid.to_json(),
        "test": None if fitted.test is None else fitted.test.to_json(),
    }


class _First:
    """The first batches of each epoch of a loader.

    Args:
        loader: the loader.
        batches: how many.
    """

    def __init__(self, loader: Loader, batches: int) -> None:
        self._loader, self._batches = loader, batches

    @property
    def epoch(self) -> int:
        """Which order the rows have."""
        return self._loader.epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._loader.epoch = epoch

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self._loader)
        try:
            yield from islice(batches, self._batches)
        finally:
            close = getattr(batches, "close", None)  # which stops the threads that read ahead
            if close is not None:
                close()


def baselines_of(
    wanted: bool | None,
    data: RunData,
    fitted: FitResult,
    seed: int,
    began: Callable[[str], object] = str,
) -> tuple[dict[str, Baseline], str | None]:
    """Return the metrics of the baselines by name, and what a person should know, if anything.

    Args:
        wanted: whether they are; None: the regression only where there are not too many rows.
        data: what the run reads.
        fitted: what came of training.
        seed: of the run.
        began: is told what takes its time.
    """
    if wanted is False or data.experiment.tasks is not None:
        return {}, None
    if fitted.valid is None and fitted.test is None:
        return {}, (
            "No baselines stand beside the result, as there are neither validation nor test data."
            if wanted
            else None
        )
    found = {"constant": constant_baseline(fitted, data.experiment.data.negatives)}
    if LINEAR not in registry.names():
        return found, None
    rows = data.fitted.rows or fitted.samples
    if wanted is None and rows > MOST_ROWS:
        return found, (
            f"No logistic regression stands beside the result, as there are {rows:,} rows: "
            "`training.baselines=true` has one trained."
        )
    began("training the baseline lr")
    found[LINEAR] = linear_baseline(data, fitted.samples, seed)
    return found, _beaten_by(found[LINEAR], fitted)


def _beaten_by(linear: Baseline, fitted: FitResult) -> str | None:
    """Return what to say of a model that a regression is better than."""
    split, report = ("valid", fitted.valid) if fitted.test is None else ("test", fitted.test)
    theirs = (linear.get(split) or {}).get("logloss")
    if report is None or theirs is None or not theirs < report["logloss"]:
        return None
    return (
        f"On {split} a logistic regression is better than the model: log loss {theirs:.4f} against "
        f"{report['logloss']:.4f}."
    )
