"""What a search may vary: ranges and lists of values, by the keys of the experiment file."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TypeAlias

from pydantic import BaseModel

from torchrec.checks import did_you_mean
from torchrec.datasets.features import VectorFeature
from torchrec.datasets.initial_weights import Pretrained
from torchrec.experiment.files import experiment_with
from torchrec.experiment.schema import Experiment, TrainingSection
from torchrec.models.registry import find

Value: TypeAlias = bool | int | float | str | list[int] | None
Values: TypeAlias = Mapping[str, Value]

_DIGITS = 4  # of a number that is tried: more only make files harder to read
_RANGE_KEYS = ("low", "high", "log", "step")
# What no metric of a trial depends on, which is one training without files.
_WITHOUT_EFFECT = {
    f"training.{name}"
    for name in (
        "baselines",
        "checkpoint_every",
        "ensemble",
        "keep_checkpoints",
        "log_every",
        "seeds",
        "tensorboard",
        "threads",
    )
}


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``.

    Attributes:
        low: the least.
        high: the largest.
        log: whether to draw the logarithm evenly, so that 0.001 to 0.01 is as likely as 0.01 to 0.1.
        step: between the numbers; None: any.
        whole: whether they are integers.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None
    whole: bool = False

    def rounded(self, value: float) -> Value:
        """Return a number of the range as it is written to a file.

        Example:
            >>> Range(1e-5, 1e-1, log=True).rounded(0.00123456)
            0.001235
        """
        if self.whole:
            return round(value)
        return min(max(float(f"{value:.{_DIGITS}g}"), self.low), self.high)

    def nearest(self, value: Value) -> Value:
        """Return the number of the range that is nearest to a value; None for what is no number."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        clipped = min(max(value, self.low), self.high)
        if self.step is not None:
            clipped = self.low + round((clipped - self.low) / self.step) * self.step
        return round(clipped) if self.whole else float(clipped)

    def to_json(self) -> dict[str, object]:
        """Return it as a file has it."""
        found: dict[str, object] = {"low": self.low, "high": self.high}
        return (
            found | ({"log": True} if self.log else {}) | ({"step": self.step} if self.step else {})
        )


@dataclass(frozen=True)
class Choice:
    """Some values.

    Attributes:
        values: each as JSON has it; different ones.
    """

    values: tuple[Value, ...]


SearchSpace: TypeAlias = Mapping[str, Range | Choice]
"""Ranges and choices by the keys of the experiment file, as ``training.learning_rate``."""


def space_to_json(space: SearchSpace) -> dict[str, object]:
    """Return a search space as JSON, which `space_from_json` reads."""
    return {
        key: list(one.values) if isinstance(one, Choice) else asdict(one)
        for key, one in space.items()
    }


def space_from_json(content: Mapping[str, Any]) -> SearchSpace:
    """Return what `space_to_json` wrote."""
    return {
        key: Choice(tuple(one)) if isinstance(one, list) else Range(**one)
        for key, one in content.items()
    }


def parse_space(given: Mapping[str, object], experiment: Experiment, name: str) -> SearchSpace:
    """Return the search space that a file describes.

    Args:
        given: by key of the experiment file a list of values, or a section with ``low`` and ``high``, and
            maybe ``log`` and ``step``.
        experiment: what the space is for; each of its values is checked there.
        name: of the file, for messages.

    Raises:
        ValueError: there is nothing to vary, a key is none of model and training, or one that no metric of a
            trial depends on, or a value is not what it should be; names it, and the nearest there is.

    Example:
        >>> experiment = Experiment.model_validate({"data": {"train": "/a.csv", "label": "y"}})
        >>> space = parse_space({"model.dim": [8, 16]}, experiment, "experiment.yaml")
        >>> space["model.dim"].values
        (8, 16)
    """
    if not given:
        raise ValueError(f"{name}: `tune` should vary one key or more. Received none.")
    keys = _keys_of(experiment)
    space: dict[str, Range | Choice] = {}
    for key, spec in given.items():
        if key not in keys:
            near = did_you_mean(key, keys, quote="`") or "."
            raise ValueError(
                f"{name}: `tune` should have keys of `model` and `training`. Received `{key}`{near}"
            )
        if key in _WITHOUT_EFFECT:
            raise ValueError(
                f"{name}: `tune` should vary what the metrics of a trial depend on. Received `{key}`, on "
                "which none does."
            )
        place = f"{name}, `tune`"
        if isinstance(spec, list):
            space[key] = _choice(key, spec, place)
        elif isinstance(spec, Mapping):
            space[key] = _range(key, spec, place, partial(_takes, experiment, key))
        else:
            raise ValueError(
                f"{place}: `{key}` should be a list of values, or a section with `low` and `high`. "
                f"Received {spec!r}."
            )
        for value in _extremes(space[key]):
            experiment_with(experiment, {key: value}, place)
    return space


def _keys_of(experiment: Experiment) -> list[str]:
    """Return what can be varied: the keys of model and training, and those in their sections."""
    found = []
    for section, fields in (
        ("model", type(experiment.model).model_fields),
        ("training", TrainingSection.model_fields),
    ):
        for name, field in fields.items():
            found.append(f"{section}.{name}")
            kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
            for kind in kinds:
                if isinstance(kind, type) and issubclass(kind, BaseModel):
                    found += [f"{section}.{name}.{inner}" for inner in kind.model_fields]
    return found


def _choice(key: str, values: list[object], place: str) -> Choice:
    texts = [json.dumps(value) for value in values]
    if not values or len(set(texts)) < len(texts):
        raise ValueError(
            f"{place}: `{key}` should list one value or more, each once. Received {values}."
        )
    return Choice(tuple(json.loads(text) for text in texts))


def _range(
    key: str, spec: Mapping[str, object], place: str, takes: Callable[[float], bool]
) -> Range:
    for name in spec:
        if name not in _RANGE_KEYS:
            near = did_you_mean(str(name), _RANGE_KEYS, quote="`") or "."
            raise ValueError(
                f"{place}: `{key}` should have the keys {', '.join(_RANGE_KEYS)}. Received `{name}`{near}"
            )
    low, high = (_number(spec.get(name), f"{place}: `{key}.{name}`") for name in ("low", "high"))
    log, step = spec.get("log", False), spec.get("step")
    if not isinstance(log, bool):
        raise ValueError(f"{place}: `{key}.log` should be true or false. Received {log!r}.")
    if not low < high:
        raise ValueError(
            f"{place}: `{key}.low` should be below `{key}.high`. Received {low} and {high}."
        )
    if log and low <= 0:
        raise ValueError(
            f"{place}: `{key}.low` should be above 0, as the scale is logarithmic. Received {low}."
        )
    if step is not None:
        step = _number(step, f"{place}: `{key}.step`")
        if log or not 0 < step <= high - low:
            raise ValueError(
                f"{place}: `{key}.step` should be above 0, at most `high` - `low`, and left out on a "
                f"logarithmic scale. Received {step}{' with `log`' if log else ''}."
            )
    whole = isinstance(low, int) and isinstance(high, int) and not takes(low + 0.5)
    return Range(low, high, log, step, whole)


def _number(value: object, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        received = "none" if value is None else repr(value)
        raise ValueError(f"{what} should be a number. Received {received}.")
    return value


def _takes(experiment: Experiment, key: str, value: float) -> bool:
    try:
        experiment_with(experiment, {key: value}, "")
    except ValueError:
        return False
    return True


def _extremes(dimension: Range | Choice) -> Sequence[Value]:
    return dimension.values if isinstance(dimension, Choice) else (dimension.low, dimension.high)


_LAYERS = ([64], [128, 64], [256, 128], [400, 400, 400], [512, 256, 128])
_RANGES = {
    "training.learning_rate": Range(1e-4, 1e-2, log=True),
    "training.embedding_learning_rate": Range(1e-4, 3e-2, log=True),
    "training.weight_decay": Range(1e-8, 1e-2, log=True),
    "training.embedding_weight_decay": Range(1e-8, 1e-1, log=True),
    "model.dropout": Range(0.0, 0.5, step=0.1),
    "model.embedding_dropout": Range(0.0, 0.3, step=0.1),
    "model.cross_layers": Range(1, 4, whole=True),
}
_CHOICES: dict[str, tuple[Value, ...]] = {
    "model.dim": (8, 16, 32, 64),
    "model.layers": _LAYERS,
    "model.batch_norm": (False, True),
}
_FEWEST_STEPS = 20  # of an epoch


def default_space(experiment: Experiment, rows: int | None = None) -> SearchSpace:
    """Return what is worth varying in an experiment: rates, decays, dropout, widths, the size of a batch.

    It holds what the experiment says, so that the search can stay there.

    Args:
        experiment: its model and training.
        rows: of the training data, where known: larger batches than leave 20 steps an epoch are left out.

    Example:
        >>> experiment = Experiment.model_validate({"data": {"train": "/a.csv", "label": "y"}})
        >>> default_space(experiment)["training.learning_rate"]
        Range(low=0.0001, high=0.01, log=True, step=None, whole=False)
    """
    keys = _keys_of(experiment)
    base = base_values(experiment, keys)
    space: dict[str, Range | Choice] = {}
    for key, bounds in _RANGES.items():
        if key in keys:
            space[key] = _widened(bounds, base[key])
    for key, values in _CHOICES.items():
        if key in keys and not (key == "model.dim" and _has_other_dims(experiment)):
            space[key] = Choice(values if base[key] in values else (base[key], *values))
    size = experiment.training.batch_size
    sizes = [size * factor for factor in (0.25, 0.5, 1, 2, 4)]
    most = math.inf if rows is None else max(rows / _FEWEST_STEPS, size)
    space["training.batch_size"] = Choice(
        tuple(int(one) for one in sizes if 64 <= one <= most or one == size)
    )
    return space


def _has_other_dims(experiment: Experiment) -> bool:
    """Return whether tables have dimensions other than `model.dim`, or their vectors have one.

    Features may say their own, or begin with vectors of another model; weights alone have dimension 1.
    """
    terms = find(experiment.model.name).terms(experiment.model)
    return terms == "weights" or any(
        not isinstance(one, VectorFeature) and (one.dim or isinstance(one.init, Pretrained))
        for one in (experiment.features or {}).values()
    )


def _widened(bounds: Range, value: Value) -> Range:
    if isinstance(value, bool) or not isinstance(value, int | float) or (bounds.log and value <= 0):
        return bounds
    if bounds.low <= value <= bounds.high:
        return bounds
    low, high = min(bounds.low, value), max(bounds.high, value)
    return Range(low, high, bounds.log, None, bounds.whole)


def base_values(experiment: Experiment, keys: Sequence[str]) -> dict[str, Value]:
    """Return what an experiment has for keys; tables without a learning rate have that of all."""
    dumped = experiment.model_dump(mode="json")
    found: dict[str, Value] = {}
    for key in keys:
        at: object = dumped
        for step in key.split("."):
            at = at.get(step) if isinstance(at, dict) else None
        found[key] = at  # type: ignore[assignment]
    if found.get("training.embedding_learning_rate", 0) is None:
        found["training.embedding_learning_rate"] = experiment.training.learning_rate
    return found


def nearest_values(space: SearchSpace, base: Values) -> dict[str, Value] | None:
    """Return the place in a space that is nearest to some values; None where one has no place in it."""
    found: dict[str, Value] = {}
    for key, dimension in space.items():
        if isinstance(dimension, Choice):
            if base[key] not in dimension.values:
                return None
            found[key] = base[key]
        else:
            found[key] = dimension.nearest(base[key])
            if found[key] is None:
                return None
    return found


def name_of(key: str) -> str:
    """Return a key without its section, as a person says it.

    Example:
        >>> name_of("training.embedding_learning_rate")
        'embedding learning rate'
    """
    return key.partition(".")[2].replace("_", " ")


def text_of(value: Value) -> str:
    """Return a value as a file has it.

    Example:
        >>> text_of([64, 32]), text_of(None), text_of(0.001)
        ('[64, 32]', 'null', '0.001')
    """
    return json.dumps(value)
