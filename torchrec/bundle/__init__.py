"""The bundle: a trained model as a folder that can be copied, checked and loaded anywhere.

What to build, the feature transform and the weights, each in a plain format (JSON, Arrow,
safetensors), with digests of all. Nothing in it is executed: a model of the registry is built by the
code of this library, one of your own by the builder that you pass.
"""

from torchrec.bundle._bundle import (
    Builder,
    Bundle,
    is_bundle,
    lineage,
    load_bundle,
    load_transform,
    save_bundle,
)
from torchrec.bundle._index import FORMAT, INDEX, Ancestor

__all__ = [
    "FORMAT",
    "INDEX",
    "Ancestor",
    "Builder",
    "Bundle",
    "is_bundle",
    "lineage",
    "load_bundle",
    "load_transform",
    "save_bundle",
]
