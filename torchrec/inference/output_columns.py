"""Predictions as columns of a table."""

from __future__ import annotations

import pyarrow as pa

from torchrec.inference.predictor import Predictor


def output_names(predictor: Predictor, name: str = "prediction") -> list[str]:
    """Return the names of the columns that `output_columns` gives.

    Args:
        predictor: a trained model.
        name: of the only column, or what all begin with. Default ``"prediction"``.

    Returns:
        One name a task, as ``"prediction_click"``, or one a class, as ``"prediction_stars_0"``.
    """
    targets = predictor.transform.targets
    found = []
    for task, target in targets.items():
        of_task = name if len(targets) == 1 else f"{name}_{task}"
        classes = range(target.classes or 1)
        found += [of_task] if target.classes is None else [f"{of_task}_{one}" for one in classes]
    return found or [name]


def output_columns(predictor: Predictor, data: object, name: str = "prediction") -> pa.Table:
    """Predict for every row, in order, as columns.

    Args:
        predictor: a trained model.
        data: as `Predictor.predict` takes them.
        name: as for `output_names`.

    Returns:
        A float32 column a task, or one a class.

    Raises:
        TypeError: as `Predictor.predict`.
        ValueError: as `Predictor.predict`.
    """
    predicted = predictor.predict_tasks(data).values()
    columns = [each.unsqueeze(1) if each.dim() == 1 else each for each in predicted]
    arrays = [pa.array(one.numpy()) for each in columns for one in each.unbind(1)]
    return pa.table(arrays, output_names(predictor, name))
