"""What a bundle says about itself to somebody who finds it."""

from __future__ import annotations

from collections.abc import Sequence

from torchrec.datasets.transform import FeatureTransform
from torchrec.models.registry import ModelSection

_TEXT = """\
A recommendation model, written by rowwise {version} (pip install 'rowwise[train]').
It gives the probability that `{label}` is 1.

{use}
bundle.json          what to build, format, versions, and digests of the files below
transform/           from columns to numbers and ids: statistics and vocabularies of the training data
weights.safetensors  the weights of {model}, https://github.com/huggingface/safetensors
{documents}
Columns that it reads:

{columns}
"""
_USE = """\
    import torchrec.inference
    predictor = torchrec.inference.load("path/of/this/folder")
    predictor.predict(table)  # a dict of columns, a DataFrame, or an Arrow table

or, from files to a file:  torchrec predict path/of/this/folder DATA -o predictions.parquet
"""
_USE_OF_OWN = """\
    import torchrec.inference
    predictor = torchrec.inference.load("path/of/this/folder", builder=...)
    predictor.predict(table)  # a dict of columns, a DataFrame, or an Arrow table

where `builder` is a function that makes the model, whose code is not part of this folder.
"""


def bundle_readme(
    transform: FeatureTransform,
    section: ModelSection | None,
    members: int | None,
    documents: Sequence[str],
    version: str,
) -> str:
    """Return the text of ``README.txt``.

    Args:
        transform: its features and its label.
        section: of the model in the registry; None: of somebody's own.
        members: how many such models are averaged; None: there is one.
        documents: names of the texts beside it.
        version: of this library.
    """
    columns = [
        f"    {name if feature.column is None else feature.column}: {_kind(feature.type)}"
        for name, feature in transform.features.items()
    ]
    return _TEXT.format(
        version=version,
        label="the label" if transform.label is None else transform.label,
        use=_USE_OF_OWN if section is None else _USE,
        model=_model(section, members),
        documents="".join(f"{name:<20} kept with the model\n" for name in documents),
        columns="\n".join(columns),
    )


def _model(section: ModelSection | None, members: int | None) -> str:
    if section is None:
        return "a model of its author's own"
    many = "" if members is None else f"{members} models, whose logits are averaged, each of "
    return f"{many}model `{section.name}`"


def _kind(type: str) -> str:
    kinds = {
        "dense": "a number",
        "vector": "numbers",
        "sparse": "an id",
        "multi_hot": "ids",
        "sequence": "ids in order",
    }
    return kinds[type]
