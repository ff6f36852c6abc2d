"""The models that an experiment can name: a file each in this folder.

A file declares, as ``MODEL``, the section of the experiment file with the model's options, how the
model looks features up, and the function that builds it; its name is that of the model. To add a
model, add a file like `deepfm.py`: experiment files, their errors and their reference know it then.
A model that is not part of this library lies in a folder of its own, see `add_folder`.

Needs pydantic; the models themselves (`torchrec.models.dlrm` and its kin) do not.

Example:
    >>> names()
    ['deepfm', 'dlrm', 'dlrm_dcn', 'esmm', 'fm', 'lr', 'mmoe', 'ple', 'shared_bottom']
    >>> find("dlrm_dcn").lookups
    'pooled'
    >>> ModelSection(name="dlrm_dcn", cross_layers=2).model_dump()["cross_layers"]
    2
"""

from torchrec.models.registry._build import TableOptimizer, TableRule, build_model
from torchrec.models.registry._formats import completed_section, upgraded_section
from torchrec.models.registry._registry import (
    DEFAULT,
    UNKNOWN_OPTION,
    ModelInputs,
    ModelSection,
    RegisteredModel,
    add_folder,
    find,
    names,
)

__all__ = [
    "DEFAULT",
    "UNKNOWN_OPTION",
    "ModelInputs",
    "ModelSection",
    "RegisteredModel",
    "TableOptimizer",
    "TableRule",
    "add_folder",
    "build_model",
    "completed_section",
    "find",
    "names",
    "upgraded_section",
]
