"""What a bundle says about itself to somebody who finds it."""

from __future__ import annotations

from torchrec.datasets.transform import FeatureTransform
from torchrec.experiment.schema import Experiment

_TEXT = """\
A recommendation model, written by rowwise {version} (pip install 'rowwise[train]').
It gives the probability that `{label}` is 1.

    import torchrec.inference
    predictor = torchrec.inference.load("path/of/this/folder")
    predictor.predict(table)  # a dict of columns, a DataFrame, or an Arrow table

or, from files to a file:  torchrec predict path/of/this/folder DATA -o predictions.parquet

bundle.json          format, versions, and the SHA-256 digests of the files below
experiment.yaml      what was trained, and how
transform/           from columns to numbers and ids: statistics and vocabularies of the training data
weights.safetensors  the weights of model `{model}`, https://github.com/huggingface/safetensors

Columns that it reads:

{columns}
"""


def bundle_readme(experiment: Experiment, transform: FeatureTransform, version: str) -> str:
    """Return the text of ``README.txt``.

    Args:
        experiment: what was trained.
        transform: its features.
        version: of this library.
    """
    columns = [
        f"    {name if feature.column is None else feature.column}: {_kind(feature.type)}"
        for name, feature in transform.features.items()
    ]
    return _TEXT.format(
        version=version,
        label=experiment.data.label,
        model=experiment.model.name,
        columns="\n".join(columns),
    )


def _kind(type: str) -> str:
    kinds = {"dense": "a number", "sparse": "an id", "multi_hot": "ids", "sequence": "ids in order"}
    return kinds[type]
