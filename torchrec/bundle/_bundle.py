"""Save a trained model as a folder, and load it from there."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn

from torchrec.bundle._index import (
    FORMAT,
    INDEX,
    README,
    TRANSFORM,
    WEIGHTS,
    Ancestor,
    Facts,
    QuantizedType,
    WeightFile,
    read_facts,
)
from torchrec.bundle._quantized import table_types, with_tables
from torchrec.bundle._readme import bundle_readme
from torchrec.bundle._weights import difference, load_weights, weights_of
from torchrec.datasets.transform import FeatureTransform
from torchrec.files import DamagedError, write_folder, write_tensors
from torchrec.models.ensemble import Ensemble
from torchrec.models.registry import ModelSection, TableOptimizer, build_model

Builder: TypeAlias = Callable[[FeatureTransform], nn.Module]
"""Makes a model of one's own for the features of a transform, with weights of any values."""


@dataclass(frozen=True)
class Bundle:
    """What a bundle holds.

    Attributes:
        transform: from columns to the model's inputs.
        model: from these to logits.
        section: of the model in the registry; None: it is one of the caller's own.
        documents: texts that were kept with the model, by name.
        ancestors: the bundles that it was trained on from, the nearest first.
    """

    transform: FeatureTransform
    model: nn.Module
    section: ModelSection | None
    documents: Mapping[str, str]
    ancestors: Sequence[Ancestor] = ()


def save_bundle(
    folder: str | os.PathLike[str],
    model: nn.Module,
    transform: FeatureTransform,
    section: ModelSection | None = None,
    optimizer: TableOptimizer | None = None,
    documents: Mapping[str, str] | None = None,
    ancestors: Sequence[Ancestor] = (),
) -> None:
    """Write a bundle.

    It is written beside and renamed when it is whole, so a bundle that is there already stays as it
    is until then.

    Args:
        folder: new, or a bundle that is to be replaced.
        model: its ``state_dict`` is saved.
        transform: makes its inputs; fitted.
        section: what `torchrec.models.registry.build_model` made the model of, or each member of an
            `torchrec.models.ensemble.Ensemble`. Default none: it is a model of the caller's own, and
            whoever loads the bundle has to pass a builder.
        optimizer: that the tables had then, to be trained on.
        documents: further texts to keep, by the names of their files. Default: none.
        ancestors: what it was trained on from: `lineage` of that bundle. Default: nothing.

    Raises:
        FileExistsError: the folder is there and holds something else.
        OSError: it cannot be written, as on a full disk.
        TypeError: the model has state that is no tensor.
        ValueError: a document has the name of another file, the transform is not fitted, or the
            section is not that of the model.

    Example:
        >>> import tempfile
        >>> import pyarrow as pa
        >>> from torchrec.datasets.features import DenseFeature
        >>> clicks = pa.table({"price": [1.0, 3.0], "click": [0, 1]})
        >>> transform = FeatureTransform({"price": DenseFeature()}, "click").fit([clicks])
        >>> class Linear(nn.Linear):
        ...     def forward(self, dense_features, sparse_features):
        ...         return super().forward(dense_features)
        >>> model = Linear(1, 1)
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     save_bundle(f"{parent}/model", model, transform)
        ...     bundle = load_bundle(f"{parent}/model", builder=lambda transform: Linear(1, 1))
        >>> torch.equal(bundle.model.weight, model.weight)
        True
    """
    folder, documents = Path(folder), dict(documents or {})
    taken = folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))
    if taken and not (folder / INDEX).is_file():
        raise FileExistsError(
            f"The folder of a bundle should be new, or hold one. Received '{folder}', which holds "
            "something else."
        )
    if transform.needs_fit:
        raise ValueError(
            "`transform` should be fitted to the training data first: `fit`. Received one that lacks "
            "statistics."
        )
    for name in documents:
        if not name or name in (INDEX, README, TRANSFORM, WEIGHTS, "..") or Path(name).name != name:
            raise ValueError(
                f"`documents` should have names of files that a bundle does not have. Received "
                f"'{name}'."
            )
    members = len(model.members) if isinstance(model, Ensemble) else None
    tables = table_types(model)
    facts = Facts(
        library_version=library_version(),
        torch_version=torch.__version__,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        section=section,
        members=members,
        optimizer=optimizer,
        weights=[WeightFile(file=WEIGHTS, layout="whole" if tables is None else "rows")],
        tables=tables,
        documents=list(documents),
        ancestors=list(ancestors),
    )
    weights = weights_of(model)
    if section is not None:
        _check_section(section, members, transform, weights, tables)
    with write_folder(
        folder,
        format=FORMAT,
        facts=facts.model_dump(mode="json"),
        index=INDEX,
        unlisted=[README],
        what="The bundle",
    ) as beside:
        transform.save(beside / TRANSFORM)
        write_tensors(beside / WEIGHTS, weights)
        for name, text in documents.items():
            (beside / name).write_text(text, encoding="utf-8")
        readme = bundle_readme(transform, section, members, list(documents), library_version())
        (beside / README).write_text(readme, encoding="utf-8")


def load_bundle(
    folder: str | os.PathLike[str], *, builder: Builder | None = None, trainable: bool = False
) -> Bundle:
    """Read a bundle, after checking that it is whole.

    A model of the registry is built without weights, which are read into its memory, once.

    Args:
        folder: of the bundle.
        builder: makes the model, of the shapes that were saved: for one of your own. Default: the
            registry makes it.
        trainable: make the model as for training, with the optimizers of its tables and their
            (fresh) state. Default False: for predicting, in evaluation mode.

    Raises:
        FileNotFoundError: there is no bundle.
        TypeError: ``builder`` returns something else than a module.
        ValueError: it is of a newer format, damaged, or its parts do not go together; or the model
            is none of the registry, and there is no ``builder``.
    """
    folder = Path(folder)
    try:
        return _load(folder, builder, trainable)
    except DamagedError as error:
        name = error.path.relative_to(folder).as_posix()
        raise ValueError(
            f"Bundle '{folder}' should be whole. Received a damaged {name}: {error.reason}."
        ) from None


def _load(folder: Path, builder: Builder | None, trainable: bool) -> Bundle:
    facts = read_facts(folder, library_version())
    transform = FeatureTransform.load(folder / TRANSFORM)
    if builder is not None:
        model = builder(transform)
        if not isinstance(model, nn.Module):
            raise TypeError(f"`builder` should return an nn.Module. Received {model!r}.")
    elif facts.section is None:
        raise ValueError(
            f"`builder` should be given for bundle '{folder}', as in load_bundle(folder, "
            "builder=...): a function from its transform to the model, which is none of the registry "
            "and of which a bundle holds only the weights. Received None."
        )
    else:
        optimizer = facts.optimizer if trainable else None
        model = _built(facts.section, facts.members, transform, optimizer)
    if facts.tables is not None and trainable:
        raise ValueError(
            f"The tables of bundle '{folder}' should be floats to be trained on. Received quantised ones: train on "
            "the bundle that they were made of."
        )
    model = with_tables(model, facts.tables)
    load_weights(model, folder, [file.file for file in facts.weights])
    if not trainable:
        model.eval().requires_grad_(False)
    texts = {name: _text(folder / name) for name in facts.documents}
    return Bundle(transform, model, facts.section, texts, tuple(facts.ancestors))


def load_transform(folder: str | os.PathLike[str]) -> FeatureTransform:
    """Read the transform of a bundle alone, after checking that the bundle is whole.

    Args:
        folder: of the bundle.

    Raises:
        FileNotFoundError: there is no bundle.
        ValueError: it is damaged, or of a newer format.
    """
    read_facts(Path(folder), library_version())
    return FeatureTransform.load(Path(folder) / TRANSFORM)


def lineage(folder: str | os.PathLike[str]) -> list[Ancestor]:
    """Return a bundle, as an ancestor of what is trained on from it, and its own ancestors after it.

    Args:
        folder: of the bundle.

    Raises:
        FileNotFoundError: there is no bundle.
        ValueError: it is damaged, or of a newer format.
    """
    path = Path(folder).resolve()
    facts = read_facts(path, library_version())
    digest = hashlib.sha256((path / INDEX).read_bytes()).hexdigest()
    mine = Ancestor(folder=str(path), created=facts.created, sha256=digest)
    return [mine, *facts.ancestors]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DamagedError(path, f"it is no UTF-8 text ({error.reason})") from None


def _built(
    section: ModelSection,
    members: int | None,
    transform: FeatureTransform,
    optimizer: TableOptimizer | None = None,
) -> nn.Module:
    """Return the model of a bundle without weights, or as many as are one."""
    models = [
        build_model(section, transform, optimizer, device="meta") for _ in range(members or 1)
    ]
    return models[0] if members is None else Ensemble(models)


def _check_section(
    section: ModelSection,
    members: int | None,
    transform: FeatureTransform,
    weights: Mapping[str, Tensor],
    tables: Mapping[str, QuantizedType] | None,
) -> None:
    """Refuse a section of another model: nobody could load what is saved with it."""
    model = with_tables(_built(section, members, transform), tables)
    if different := difference(model, weights):
        raise ValueError(
            f"`section` should be of the model that is saved. Received that of model '{section.name}' "
            f"with {different[0]}, where the one that is saved has {different[1]}."
        )


def is_bundle(folder: str | os.PathLike[str]) -> bool:
    """Return whether a folder looks like a bundle, be it damaged.

    Args:
        folder: any, which need not exist.
    """
    return any((Path(folder) / name).is_file() for name in (INDEX, WEIGHTS))


def library_version() -> str:
    """Return the version of this library."""
    return str(vars(sys.modules["torchrec"])["__version__"])
