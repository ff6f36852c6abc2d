"""What a run learned of its data before it trained: the transform, and what else to read them by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torchrec.files import DamagedError, Json, check_files, read_index, write_folder

if TYPE_CHECKING:
    from torchrec.datasets.features import TextType
    from torchrec.datasets.transform import FeatureTransform

_FORMAT = 2  # 1: without an index
_TYPES: dict[str, TextType] = {"integer": "integer", "number": "number", "string": "string"}


@dataclass(frozen=True)
class Fitted:
    """What a run learned of its data.

    Attributes:
        transform: fitted to the training data.
        types: of columns of text files.
        rows: of the training data; None if nothing has counted them.
    """

    transform: FeatureTransform
    types: Mapping[str, TextType]
    rows: int | None


def write_fitted(folder: Path, fitted: Fitted) -> None:
    """Write what was learned, whole.

    Args:
        folder: new, or what is to be replaced.
        fitted: what was learned.
    """
    types: dict[str, Json] = dict(fitted.types)
    facts: dict[str, Json] = {"rows": fitted.rows, "types": types}
    with write_folder(folder, format=_FORMAT, facts=facts, what="The transform") as beside:
        fitted.transform.save(beside)


def read_fitted(folder: Path) -> Fitted:
    """Return what an earlier process learned.

    Args:
        folder: as `write_fitted` wrote it.

    Raises:
        ValueError: it is not there, damaged, or of another version.
    """
    from torchrec.datasets.transform import FeatureTransform

    try:
        index = read_index(folder)
        check_files(folder, index)
    except FileNotFoundError:
        raise ValueError(
            f"'{folder}' should hold the transform of a run, of format {_FORMAT}. Received none, or one "
            "of format 1, which earlier builds of rowwise 0.1.0 wrote: go on with the version that "
            "wrote it, or start a new run."
        ) from None
    except DamagedError as error:
        raise ValueError(
            f"Transform file {error} Checkpoints cannot be gone on from without it: start a new run."
        ) from None
    rows, types = index.facts.get("rows"), index.facts.get("types")
    if index.format != _FORMAT or not isinstance(rows, int | None) or not isinstance(types, dict):
        raise ValueError(
            f"'{folder}' should hold the transform of a run, of format {_FORMAT}. Received format "
            f"{index.format}, which {index.written_by} wrote: go on with the version that wrote it, or "
            "start a new run."
        )
    read = {column: _TYPES[str(type)] for column, type in types.items()}
    return Fitted(FeatureTransform.load(folder), read, rows)
