"""The reference of experiment files, written from what checks them.

    python -m torchrec.experiment._reference docs/experiment.md

replaces the part of the page between the marks; a test says when that is due.
"""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path

from torchrec.datasets.features import (
    DenseFeature,
    IdFeature,
    MultiHotFeature,
    SequenceFeature,
    SparseFeature,
    VectorFeature,
)
from torchrec.experiment import rows, schema
from torchrec.experiment._keys import Node, expected, keys_of, members_of, node_at, root
from torchrec.experiment.distributed import DistributedSection
from torchrec.experiment.tasks import TaskSection
from torchrec.models.registry import DEFAULT, find

_BEGIN = (
    "<!-- The rest is written by: python -m torchrec.experiment._reference docs/experiment.md -->"
)
_FEATURES = (DenseFeature, VectorFeature, SparseFeature, MultiHotFeature, SequenceFeature)
_SECTIONS = (
    ("data", schema.DataSection),
    ("data.split", rows.SplitSection),
    ("data.histories.NAME", rows.HistorySection),
    ("data.sampled_negatives", rows.SampledNegativesSection),
    ("tasks.NAME", TaskSection),
    ("data.tables.any", rows.TableSection),
    ("training", schema.TrainingSection),
    ("training.schedule", schema.ScheduleSection),
    ("training.average", schema.AverageSection),
    ("training.early_stopping", schema.EarlyStoppingSection),
    ("distributed", DistributedSection),
)


def reference() -> str:
    """Return the reference as Markdown: each section, its keys, what they should be, defaults."""
    lines = [_BEGIN, "", "## All keys", ""]
    keys = keys_of(root())
    lines += _table({name: keys[name] for name in ("metrics", "output")})
    for name, section in _SECTIONS:
        if name == "training":
            lines += _models()
        node, _ = node_at(name.split("."))
        assert node is not None
        lines += ["", f"### {name}", "", _text(section), "", *_table(keys_of(node))]
    lines += ["", "Of a table in `constraints`:", ""]
    placement, _ = node_at(["distributed", "constraints", "any"])
    assert placement is not None
    lines += _table(keys_of(placement))
    lines += [
        "",
        "### features",
        "",
        "A section for each feature, by its name. The key `type` says which.",
    ]
    features, _ = node_at(["features", "any"])
    assert features is not None
    shared = [*IdFeature.model_fields]
    for feature, (tag, node) in zip(_FEATURES, members_of(features).items(), strict=True):
        lines += ["", f"#### {tag}", "", _text(feature)]
        keys = keys_of(node)
        if feature is SparseFeature:
            lines += ["", _text(IdFeature)]
        elif issubclass(feature, IdFeature):
            keys = {key: value for key, value in keys.items() if key not in shared}
            lines += ["", "Besides all keys of `sparse`:"]
        lines += ["", *_table(keys)]
    return "\n".join(lines) + "\n"


def _models() -> list[str]:
    """Return the sections of the models: what all have, and what each has besides."""
    node, _ = node_at(["model"])
    name, _ = node_at(["model", "name"])
    assert node is not None
    assert name is not None
    keys = {model: keys_of(member) for model, member in members_of(node).items()}
    shared = dict.fromkeys(key for key in keys[DEFAULT] if all(key in own for own in keys.values()))
    table: dict[str, Node] = {key: keys[DEFAULT][key] for key in shared}
    table["name"] = {**name, "default": DEFAULT}
    lines = ["", "### model", "", "Which model, and its options. All models have these:", ""]
    lines += _table(table)
    for model, own in keys.items():
        lines += ["", f"#### {model}", "", _text(find(model).section)]
        rest = {key: value for key, value in own.items() if key not in shared}
        if rest:
            lines += ["", "Besides:", "", *_table(rest)]
    return lines


def page(text: str) -> str:
    """Return a page with its reference brought up to date."""
    return text.partition(_BEGIN)[0] + reference()


def _text(documented: type) -> str:
    text = inspect.cleandoc(documented.__doc__ or "")
    return text.replace("``", "`").replace("`MultiHotFeature`", "`multi_hot`")


def _table(keys: dict[str, Node]) -> list[str]:
    described = any("description" in node for node in keys.values())
    head = ["key", "should be", "default", *(["what it is"] if described else [])]
    rows = [head, ["---"] * len(head)]
    for key, node in keys.items():
        if key == "type":
            continue
        row = [f"`{key}`", _plain(expected(node)), _default(node)]
        rows.append([*row, str(node["description"])] if described else row)
    return [f"| {' | '.join(row)} |" for row in rows]


def _plain(text: str) -> str:
    """Return a description of values as short as a cell wants it."""
    return "a section" if text.startswith("a section") else text.replace("'", "`")


def _default(node: Node) -> str:
    if "default" not in node:
        return "(to be given)"
    value = node["default"]
    if isinstance(value, dict):
        return ""
    if value is None:
        return "none"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(page(path.read_text(encoding="utf-8")), encoding="utf-8")
