"""The data of all trials: looked at once, and never the test."""

from __future__ import annotations

from collections.abc import Callable

import torch

from torchrec.datasets.loader import Loader
from torchrec.datasets.source import TableSource
from torchrec.experiment.build import build_model
from torchrec.experiment.files import experiment_with
from torchrec.experiment.schema import Experiment
from torchrec.training.fit_state import FitResult
from torchrec.training.id_counts import IdCounts, UnknownIds
from torchrec.training.observers import Observer
from torchrec.training.optimizers import dense_optimizer
from torchrec.training.run_data import RunData, evaluation_batch_size
from torchrec.training.run_tasks import tasks_of
from torchrec.training.run_threads import run_threads, thread_chooser
from torchrec.training.single_run import fit_options
from torchrec.training.trainer import Trainer
from torchrec.tuning.space import Values


class TuningData:
    """What all trials read.

    Args:
        experiment: as it is.
        say: is given what a person should know.

    Attributes:
        experiment: with what was inferred: features, and types of columns of text.
        transform: fitted to the training data.
        rows: of the training data.

    Raises:
        ValueError: there are no validation data to search by.
    """

    def __init__(self, experiment: Experiment, say: Callable[[str], None]) -> None:
        data = RunData(without_test(experiment), with_test=False)
        for notice in data.notices:
            say(notice)
        if data.valid is None:
            raise ValueError(
                "A search should have validation data to go by: `data.valid`, or `data.split.valid` above 0. "
                "Received none."
            )
        self.transform, self._evaluated = data.transform, data.evaluated
        self._say, self._is_judged = say, False
        self._train = data.train.source
        self._valid = data.valid.source
        rows = data.fitted.rows
        self.rows = rows if rows is not None else _count(data.train.source)
        found = data.experiment.data.model_copy(
            update={"test": experiment.data.test, "split": experiment.data.split}
        )
        self.experiment = data.experiment.model_copy(update={"data": found})

    def with_values(self, values: Values) -> Experiment:
        """Return the experiment with other values.

        Raises:
            ValueError: they do not go together.
        """
        return (
            experiment_with(self.experiment, values, "The experiment")
            if values
            else self.experiment
        )

    def fit(self, experiment: Experiment, observer: Observer) -> FitResult:
        """Train as a run does, without its files and without the test.

        Args:
            experiment: `experiment` with other values of model and training.
            observer: is told how it goes.
        """
        with run_threads(experiment.training.threads):
            return self._fit(experiment, observer)

    def _fit(self, experiment: Experiment, observer: Observer) -> FitResult:
        options, data = experiment.training, experiment.data
        torch.manual_seed(options.seed)
        model = build_model(experiment.model, options, self.transform)
        train = Loader(
            self._train,
            self.transform,
            options.batch_size,
            shuffle_window=data.shuffle_window,
            seed=options.seed,
            workers=data.workers,
        )
        size = evaluation_batch_size(options)
        valid = Loader(self._valid, self._evaluated, size, shuffle_window=0, workers=data.workers)
        unsaved = options.model_copy(update={"checkpoint_every": None})
        id_counts = IdCounts(self.transform, self._evaluated, model)
        observers = [observer]
        if not self._is_judged:  # of unknown ids once: all trials are judged by the same rows
            observers, self._is_judged = [UnknownIds(id_counts, self._say), observer], True
        trainer = Trainer(
            model,
            dense_optimizer(model, options.optimizer, options.learning_rate, options.weight_decay),
            tasks=tasks_of(experiment),
            options=fit_options(unsaved, evaluates=True),
            observers=observers,
            id_counts=id_counts,
            threads=thread_chooser(options, model, (options.batch_size, size), lambda _: None),
        )
        return trainer.fit(train, valid, batches=-(-self.rows // options.batch_size))


def without_test(experiment: Experiment) -> Experiment:
    """Return an experiment with the same rows for training and validation, that names no rows for the test."""
    data = experiment.data
    if not data.test:
        return experiment  # the rows of the test are a part of the file that nobody asks for
    split = data.split.model_copy(update={"test": 0.0})
    return experiment.model_copy(
        update={"data": data.model_copy(update={"test": [], "split": split})}
    )


def _count(source: TableSource) -> int:
    return sum(table.num_rows for table in source.scan(source.schema.names[:1]))
