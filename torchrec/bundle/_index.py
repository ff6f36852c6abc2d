"""What `bundle.json` says: what to build, where the weights are, and digests of all files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, PositiveInt, ValidationError

from torchrec.bundle._format1 import facts_of_format_1
from torchrec.files import DamagedError, FolderIndex, check_files, read_index
from torchrec.models.registry import ModelSection, TableOptimizer, completed_section, names

FORMAT = 2
"""The format that is written, and the newest that is read."""

INDEX = "bundle.json"
README = "README.txt"  # for people, who may write into it: nothing reads it, so it has no digest
TRANSFORM = "transform"
_TRANSFORM_FILES = (f"{TRANSFORM}/transform.json", f"{TRANSFORM}/transform.arrow")
WEIGHTS = "weights.safetensors"


QuantizedType = Literal["INT8", "INT4", "INT2", "FP16", "BF16", "FP32"]
_LAYOUTS = ("whole", "rows")


class WeightFile(BaseModel):
    """A file of weights.

    Attributes:
        file: its name.
        layout: how tensors lie in it: ``"whole"``, each as the model has it; ``"rows"``, the same of a model whose
            tables are quantised, see `Facts.tables`. Parts of tensors will be further layouts.
    """

    file: str
    layout: str = "whole"


class Ancestor(BaseModel):
    """A bundle that another was trained on from.

    Attributes:
        folder: where it was then.
        created: when it was written.
        sha256: of its index, which has the digests of all its files.
    """

    folder: str
    created: str
    sha256: str


class Facts(BaseModel):
    """What the index says beside format and files; whatever else a later version adds is ignored.

    Attributes:
        library: that wrote the bundle.
        library_version: of it.
        torch_version: of PyTorch then.
        created: when.
        section: of the model in the registry; None: of the caller's own, who has to pass a builder.
        members: how many models of the section the bundle holds, whose logits are averaged; None: one.
        optimizer: how its tables were trained; None: like all other parameters.
        weights: files of weights.
        tables: what the numbers of the tables are (INT8...), by name, if these are quantised. Default: as trained.
        documents: names of texts that are kept with the model.
        ancestors: what it was trained on from, the nearest first.
    """

    library: str = "rowwise"
    library_version: str
    torch_version: str
    created: str
    section: ModelSection | None = None
    members: PositiveInt | None = None
    optimizer: TableOptimizer | None = None
    weights: list[WeightFile]
    tables: dict[str, QuantizedType] | None = None
    documents: list[str] = []
    ancestors: list[Ancestor] = []


def read_facts(folder: Path, version: str) -> Facts:
    """Check that a bundle is whole, and return what its index says.

    Args:
        folder: of the bundle.
        version: of this library, for messages.

    Raises:
        DamagedError: it is not as it was written.
        FileNotFoundError: there is no bundle.
        ValueError: it is of a newer format, or of a model that this version does not have.
    """
    try:
        # Format 1 had no checksum of the index itself.
        index = read_index(folder, index=INDEX, unchecked_format=1)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        what = "has none" if folder.exists() else "does not exist"
        raise FileNotFoundError(
            f"A bundle should be a folder with {INDEX}. Received '{folder}', which {what}."
        ) from None
    if not 1 <= index.format <= FORMAT:
        raise _newer(folder, f"format {index.format}", index, version)
    index = dataclasses.replace(  # the first bundles of format 1 list it
        index, files={name: digest for name, digest in index.files.items() if name != README}
    )
    check_files(folder, index)
    facts: dict[str, object] = dict(index.facts)
    if index.format == 1:
        facts |= facts_of_format_1(folder)
    section = facts.get("section")
    name = None
    if isinstance(section, dict):
        name = section.get("name")
        facts["section"] = completed_section(section)
    if name is not None and name not in names():
        raise ValueError(
            f"The model of bundle '{folder}' should be one of {', '.join(names())}. Received '{name}', "
            f"written by {_writer(index)}: add the folder of its file, with "
            "torchrec.models.registry.add_folder, or use the version that has it."
        )
    try:
        found = Facts.model_validate(facts)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(
            f"Bundle '{folder}' should describe a model that rowwise {version} builds. It was written "
            f"by {_writer(index)}. Received `{place}`: {first['msg']}."
        ) from None
    for file in found.weights:
        if file.layout not in _LAYOUTS:
            raise _newer(folder, f"weights of layout '{file.layout}'", index, version)
    for name in [*(file.file for file in found.weights), *_TRANSFORM_FILES, *found.documents]:
        if name not in index.files:
            raise DamagedError(folder / INDEX, f"it does not list {name}")
    return found


def _newer(folder: Path, what: str, index: FolderIndex, version: str) -> ValueError:
    name, written = (index.facts.get(key) for key in ("library", "library_version"))
    remedy = "use the build that wrote it"
    if name and written and written != version:
        remedy = f"pip install --upgrade '{name}>={written}'"
    return ValueError(
        f"Bundle '{folder}' should be of format 1 to {FORMAT}, as rowwise {version} reads. Received "
        f"{what}, written by {_writer(index)}: {remedy}."
    )


def _writer(index: FolderIndex) -> str:
    library, version = (index.facts.get(key) for key in ("library", "library_version"))
    return f"{library or 'rowwise'} {version or '(of an unknown version)'}"
