"""Experiment files: read with overrides, checked, written back.

A mistake is one line that names the key, what it should be and the nearest that exists.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from torchrec.checks import did_you_mean
from torchrec.experiment._messages import first_mistake
from torchrec.experiment._overrides import apply_overrides
from torchrec.experiment._yaml import parse_yaml, write_yaml
from torchrec.experiment.schema import Experiment
from torchrec.models.registry import upgraded_section

if TYPE_CHECKING:
    pass

FILE_NAME = "experiment.yaml"
"""What an experiment file is called where this library writes it beside what came of it."""

_PATHS = ("train", "valid", "test")
_LATER = ("distributed", "tasks", "continue_from", "metrics")  # than the first format


def load_experiment(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment file.

    Paths of data in the file are relative to its folder, those in overrides to the working
    directory; all are absolute in what is returned. `output` is relative to the working directory,
    and `runs/` with the name of the file if it is not given.

    Args:
        path: a YAML file.
        overrides: further values, as in ``"training.batch_size=2048"``; the value is YAML too, so
            lists and whole sections are possible. They replace what the file says. null stands for
            the default, where it has no meaning of its own, and removes a feature.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not YAML, or a key or value is not what it should be: one line that names
            the nearest valid key.

    Example:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> path = Path(folder.name, "clicks.yaml")
        >>> _ = path.write_text("data: {train: clicks.parquet, label: clicked}")
        >>> experiment = load_experiment(path, ["training.epochs=3"])
        >>> experiment.data.label, experiment.training.epochs, experiment.output
        ('clicked', 3, 'runs/clicks')
        >>> load_experiment(path, ["training.epoch=3"])
        Traceback (most recent call last):
        ValueError: override 'training.epoch=3': `training.epoch` is not a key of `training`; ...
        >>> folder.cleanup()
    """
    path = Path(path)
    values = _sections(parse_experiment_yaml(_read(path), path.name), path.name)
    values.setdefault("output", f"runs/{path.stem}")
    _make_absolute(values, path.parent)
    changed = apply_overrides(values, overrides, path.name)
    values.setdefault("output", f"runs/{path.stem}")  # `output=null`
    _make_absolute(values, Path.cwd())
    return check_experiment(values, path.name, changed)


def dump_experiment(experiment: Experiment) -> str:
    """Return an experiment as the text of a file, every key written out.

    `load_experiment` reads it back as an equal experiment.

    Example:
        >>> experiment = Experiment.model_validate({"data": {"train": "/a.csv", "label": "y"}})
        >>> print(dump_experiment(experiment))  # doctest: +ELLIPSIS
        data:
          train: [/a.csv]
          valid: []
          ...
    """
    return write_yaml(experiment.model_dump(mode="json"))


def parse_experiment_yaml(text: str, name: str) -> object:
    """Return what the text of an experiment file says, unchecked.

    What this library wrote in an earlier format is brought to that of today.

    Raises:
        ValueError: it is not YAML; the message gives ``name`` and the line.
    """
    try:
        values = parse_yaml(text)
    except ValueError as error:
        raise ValueError(f"{name}, {error}.") from None
    # What `dump_experiment` wrote has all sections, in their order, but those that came later.
    fields = Experiment.model_fields.items()
    first = [name for name, field in fields if not field.exclude and name not in _LATER]
    if isinstance(values, dict) and [name for name in values if name not in _LATER] == first:
        model = values["model"]
        if isinstance(model, dict):
            values["model"] = upgraded_section(model)
    return values


def check_experiment(
    values: object, name: str, overrides: Mapping[str, str] | None = None
) -> Experiment:
    """Return the experiment that plain values describe.

    Args:
        values: as read from YAML.
        name: of the file, for messages.
        overrides: the overrides among the values, by key, for messages. Default none.

    Raises:
        ValueError: a key or value is not what it should be.
    """
    values = _sections(values, name)
    _fill_empty_sections(values)
    try:
        # Strict, and as JSON: `true` is no number and "3" none either, but a word chooses from an
        # enumeration.
        return Experiment.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        mistake = first_mistake(error.errors(include_url=False))
    source, remedy = name, ""
    for key, text in (overrides or {}).items():
        if f"{mistake.key}.".startswith(f"{key}.") or key.startswith(f"{mistake.key}."):
            source, remedy = f"override {text!r}", ""
            break
        # What another kind of feature has no use for stands in the file: nobody drops it silently.
        section = mistake.key.rpartition(".")[0]
        if mistake.is_misplaced and key in [f"{section}.{one}" for one in ("type", "ids", "name")]:
            source, remedy = f"override {text!r}", f" Leave it out with {mistake.key}=null."
    raise ValueError(f"{source}: {mistake.message}{remedy}")


def experiment_with(experiment: Experiment, changes: Mapping[str, object], name: str) -> Experiment:
    """Return an experiment with other values, checked as those of a file.

    Args:
        experiment: is left as it is.
        changes: by key, as in ``{"training.epochs": 3}``; each as JSON has it.
        name: where they come from, for messages.

    Raises:
        ValueError: a key or value is not what it should be.

    Example:
        >>> experiment = Experiment.model_validate({"data": {"train": "/a.csv", "label": "y"}})
        >>> experiment_with(experiment, {"training.epochs": 3}, "mine").training.epochs
        3
    """
    values = experiment.model_dump(mode="json")
    apply_overrides(values, [f"{key}={json.dumps(value)}" for key, value in changes.items()], name)
    return check_experiment(values, name)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = did_you_mean(
            path.name, [other.name for other in path.parent.glob("*.y*ml")], quote="`"
        )
        raise FileNotFoundError(
            f"The experiment file should exist. Received '{path}'{near or '.'}"
        ) from None
    except IsADirectoryError:
        raise ValueError(
            f"The experiment file should be a file. Received the folder '{path}'."
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path.name} should be UTF-8 text. Received byte {error.object[error.start]:#x} at "
            f"position {error.start}."
        ) from None


def _sections(values: object, name: str) -> dict[str, object]:
    if not isinstance(values, dict):
        got = {type(None): "nothing", list: "a list"}.get(type(values), f"{values!r}")
        sections = ", ".join(Experiment.model_fields)
        raise ValueError(f"{name} should hold sections ({sections}). Received {got}.")
    return values


def _fill_empty_sections(values: dict[str, object]) -> None:
    """Take a section of which every line is a comment, null to YAML, for one without keys."""
    for name in ("data", "model", "training", "distributed"):
        if name in values and values[name] is None:
            values[name] = {}
    for section, name in (("data", "split"), ("training", "schedule")):
        inner = values.get(section)
        if isinstance(inner, dict) and name in inner and inner[name] is None:
            inner[name] = {}


def _make_absolute(values: dict[str, object], folder: Path) -> None:
    """Join the paths of data, plan and rates with the folder that they are relative to."""
    section = values.get("distributed")
    if isinstance(section, dict):
        paths = {name: section[name] for name in ("plan", "rates") if name in section}
        values["distributed"] = section | {
            name: _absolute(folder, path)
            for name, path in paths.items()
            if isinstance(path, str) and path and (name, path) != ("plan", "auto")
        }
    features = values.get("features")
    if isinstance(features, dict):
        values["features"] = {
            name: _with_absolute_vectors(folder, feature) for name, feature in features.items()
        }
    data = values.get("data")
    if not isinstance(data, dict):
        return
    values["data"] = data = dict(data)
    for name in _PATHS:
        if name in data:
            data[name] = _all_absolute(folder, data[name])
    tables = data.get("tables")
    if isinstance(tables, dict):
        data["tables"] = {
            name: {**one, "files": _all_absolute(folder, one["files"])}
            if isinstance(one, dict) and "files" in one
            else _all_absolute(folder, one)
            for name, one in tables.items()
        }
    join = data.get("join")
    if isinstance(join, dict):  # by the name of a table, or by a file
        named = data["tables"] if isinstance(tables, dict) else {}
        data["join"] = {
            table
            if table in named or not isinstance(table, str)
            else _absolute(folder, table): keys
            for table, keys in join.items()
        }


def _with_absolute_vectors(folder: Path, feature: object) -> object:
    """Return a feature; the file of pretrained vectors, if there is one, joined with a folder."""
    init = feature.get("init") if isinstance(feature, dict) else None
    if not isinstance(init, dict) or not isinstance(init.get("file"), str):
        return feature
    assert isinstance(feature, dict)
    return {**feature, "init": {**init, "file": _absolute(folder, init["file"])}}


def _all_absolute(folder: Path, paths: object) -> object:
    """Join one path or several with a folder; what is something else stays for the check to refuse."""
    given = [paths] if isinstance(paths, str) else paths
    if not isinstance(given, list) or not all(isinstance(path, str) for path in given):
        return paths
    return [_absolute(folder, path) for path in given]


def _absolute(folder: Path, path: str) -> str:
    return os.path.abspath(os.path.join(folder, os.path.expanduser(path)))
