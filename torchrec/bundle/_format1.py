"""Bundles of format 1: what to build stood in their experiment file alone."""

from __future__ import annotations

from pathlib import Path

import yaml

from torchrec.files import DamagedError
from torchrec.models.registry import upgraded_section

_EXPERIMENT = "experiment.yaml"
_OPTIMIZER = {
    "optimizer": "embedding_optimizer",
    "lr": "embedding_learning_rate",
    "weight_decay": "embedding_weight_decay",
}


def facts_of_format_1(folder: Path) -> dict[str, object]:
    """Return what a bundle of format 1 does not say in its index.

    Its experiment file is a text to this package, of which it reads two sections. Scalars stay text,
    whatever YAML's versions make of them: their types are those of the sections.

    Args:
        folder: of the bundle, whose files have been checked.

    Raises:
        DamagedError: there is no experiment file, or it has no such sections.
    """
    path = folder / _EXPERIMENT
    if not path.is_file():
        raise DamagedError(path, "it is missing")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
        section = upgraded_section(values["model"])
        training = values["training"]
        rate = training["embedding_learning_rate"]
        found = {name: training[key] for name, key in _OPTIMIZER.items()}
        if rate == "null":
            found["lr"] = training["learning_rate"]
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, KeyError) as error:
        raise DamagedError(path, f"no model can be read from it ({error!r})") from None
    return {
        "section": section,
        "optimizer": found,
        "weights": [{"file": "weights.safetensors"}],
        "documents": [_EXPERIMENT],
    }
