"""Values behind the file, as in ``training.epochs=3``: they replace those that it gives."""

from __future__ import annotations

from collections.abc import Container, Sequence

from torchrec.checks import did_you_mean
from torchrec.experiment._keys import node_at, takes_null
from torchrec.experiment._messages import listed, shown
from torchrec.experiment._yaml import parse_yaml
from torchrec.models.registry import DEFAULT, find, names


def apply_overrides(
    values: dict[str, object], overrides: Sequence[str], name: str
) -> dict[str, str]:
    """Write overrides into the values of a file.

    null is what a key has when it is left out, unless null means something to it; a feature, which
    nothing stands for then, is removed.

    Args:
        values: as read from the file. Sections are copied before they are written to, because two
            of them are one object where the file has an alias.
        overrides: as in ``"training.epochs=3"``.
        name: of the file, for messages.

    Returns:
        The overrides by their keys.

    Raises:
        ValueError: one is none, or changes a feature that there is not.
    """
    changed: dict[str, str] = {}
    nulls: dict[str, bool] = {}  # and whether the file has the key
    declared = _names(values.get("features"))
    former = _model_of(values)
    for override in overrides:
        key, value = _parse(override)
        was_there = _put(values, key, value, override)
        changed[key] = override
        if key == "features":
            declared = _names(value)
        if value is None:
            nulls[key] = was_there or nulls.get(key, False)
    for key, override in changed.items():
        section, *steps = key.split(".")
        if section == "features" and steps and steps[0] not in declared:
            _check_new_feature(values, steps[0], declared, override, name)
    if "model.name" in changed:
        _drop_defaults(values, former, changed)
    for key, was_there in nulls.items():
        _take_default(values, key, was_there)
    return changed


def _parse(override: str) -> tuple[str, object]:
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key or "" in key.split("."):
        raise ValueError(
            f"An override should be section.key=value, as training.epochs=3. Received {override!r}."
        )
    bare = text.strip()
    if bare[:1] in tuple("*&!%@`|>,#") or (len(bare) == 1 and bare in "-:?\"'[{"):
        return (
            key,
            bare,
        )  # a pattern, a name or a separator: no YAML, or some that means nothing here
    try:
        return key, parse_yaml(text)
    except ValueError as error:
        raise ValueError(f"override {override!r}: the value is not YAML: {error}.") from None


def _put(values: dict[str, object], key: str, value: object, override: str) -> bool:
    """Write a value, and return whether there was one."""
    *parents, last = key.split(".")
    at = values
    for depth, step in enumerate(parents):
        inner = at.get(step)
        if inner is not None and not isinstance(inner, dict):
            name = ".".join(parents[: depth + 1])
            raise ValueError(
                f"override {override!r}: `{name}` should be a section. Received {shown(inner)}."
            )
        at[step] = inner = dict(inner or {})
        at = inner
    was_there = last in at
    at[last] = value
    return was_there


def _names(features: object) -> list[str]:
    return list(features) if isinstance(features, dict) else []


def _check_new_feature(
    values: dict[str, object], feature: str, declared: list[str], override: str, name: str
) -> None:
    """Refuse a feature that the file does not have and overrides do not declare: a misspelled one."""
    features = values["features"]
    value = features.get(feature) if isinstance(features, dict) else features
    if value is not None and (not isinstance(value, dict) or "type" in value):
        return
    message = f"override {override!r}: `features.{feature}` is not a feature of {name}"
    if not declared:
        raise ValueError(
            f"{message}, which leaves them to be inferred: `torchrec init` writes them to a file."
        )
    near = did_you_mean(feature, declared, quote="`") or "."
    new = "" if value is None else f" A new one needs `features.{feature}.type`."
    raise ValueError(f"{message}{near} Its features: {listed(declared)}.{new}")


def _model_of(values: dict[str, object]) -> object:
    model = values.get("model")
    name = model.get("name") if isinstance(model, dict) else None
    return DEFAULT if name is None else name


def _drop_defaults(values: dict[str, object], former: object, changed: Container[str]) -> None:
    """Drop the options of another model that the file has at their defaults.

    A run writes every option of its model out, as if somebody had chosen it. What has its default
    was as good as left out; anything else was chosen, and is refused as any option that the new
    model does not have.
    """
    model, name = values["model"], _model_of(values)
    if not isinstance(model, dict) or former not in names() or name not in names():
        return  # whoever checks the values says so
    known, fields = find(str(name)).section.model_fields, find(str(former)).section.model_fields
    for option in set(model) & set(fields) - set(known):
        default = fields[option].get_default(call_default_factory=True)
        if f"model.{option}" not in changed and model[option] == default:
            del model[option]


def _take_default(values: dict[str, object], key: str, was_there: bool) -> None:
    """Leave out a key that is null, unless null means something to it or nobody knows it."""
    *parents, last = key.split(".")
    at: object = values
    path: list[str | int] = []
    for depth, step in enumerate(parents):
        at = at.get(step) if isinstance(at, dict) else None
        path.append(step)
        if isinstance(at, dict):  # which member of a union this is
            if depth == 1 and parents[0] == "features":
                path.append(str(at.get("type")))
            elif depth == 0 and step == "model":
                path.append(str(at.get("name", DEFAULT)))
    if not isinstance(at, dict) or at.get(last, at) is not None:
        return
    node, _ = node_at([*path, last])
    if was_there if node is None else not takes_null(node):
        del at[last]
