"""The experiment of a run as keys and values, and which of them are not the defaults."""

from __future__ import annotations

import json

from torchrec.experiment.files import check_experiment, parse_experiment_yaml
from torchrec.experiment.schema import Experiment


def read_configuration(text: str, name: str) -> Experiment | None:
    """Return the experiment that a run was trained by; None where its file says none that reads.

    Args:
        text: of the file.
        name: for messages.
    """
    try:
        return check_experiment(parse_experiment_yaml(text, name), name)
    except ValueError:
        return None


def keys_of(experiment: Experiment, *, changed: bool = False) -> dict[str, str]:
    """Return the values by key, as they can be given to ``torchrec train``.

    Args:
        experiment: what to show.
        changed: only those that differ from the defaults, and which model it is. Default: all.

    Example:
        >>> values = {"data": {"train": "/a.csv", "label": "y"}, "training": {"epochs": 3}}
        >>> found = keys_of(Experiment.model_validate(values), changed=True)
        >>> found.pop("model.name") in ("dlrm", "dlrm_dcn", "deepfm"), found
        (True, {'data.train': '["/a.csv"]', 'data.label': 'y', 'training.epochs': '3'})
    """
    values = experiment.model_dump(mode="json", exclude_defaults=changed)
    model = values.pop("model", {})
    return _flat({"model": {"name": str(experiment.model.name), **model}, **values}, "")


def _flat(value: object, key: str) -> dict[str, str]:
    if isinstance(value, dict) and value:
        found: dict[str, str] = {}
        for name, inner in value.items():
            found |= _flat(inner, f"{key}.{name}" if key else str(name))
        return found
    plain = isinstance(value, str) and value.strip() and value.isprintable()  # a tab is not seen
    return {key: str(value) if plain else json.dumps(value, ensure_ascii=False)}
