"""The trained model that a run goes on from: its transform, its weights, its lineage."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from torchrec.bundle import Ancestor, is_bundle, lineage, load_bundle
from torchrec.datasets.initial_weights import Pretrained
from torchrec.models.registry import ModelSection
from torchrec.runs import RunFolder

_TABLE = re.compile(r"(?:.*\.)?embedding(?:_bag)?s\.(.+)\.weight")


def bundle_of(path: str | os.PathLike[str]) -> Path:
    """Return the bundle that is meant by a run, or by its own folder.

    Args:
        path: a run folder, or a bundle.

    Raises:
        FileNotFoundError: there is no trained model.
    """
    folder = Path(path) if is_bundle(path) else RunFolder(path).model
    if not is_bundle(folder):
        raise FileNotFoundError(
            f"`continue_from` should be a run that has ended, or its model. Received '{path}', "
            "which has none."
        )
    return folder


class ContinuedModel:
    """What training goes on from.

    Args:
        path: a run folder, or a bundle.

    Attributes:
        lineage: the bundle, and what it was itself trained on from.

    Raises:
        FileNotFoundError: there is no trained model.
        ValueError: it is damaged, or several models.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        folder = bundle_of(path)
        self._path = str(path)
        self.lineage: list[Ancestor] = lineage(folder)
        bundle = load_bundle(folder)
        self._transform = bundle.transform
        self._section = bundle.section
        self._weights = bundle.model.state_dict()

    def load_into(self, model: nn.Module, section: ModelSection) -> None:
        """Give a model the weights; rows of new ids begin as that of unknown ones, if there is one.

        Where a table began with vectors of another model, rows of new ids do as well.

        Args:
            model: built for a transform that was grown from that of this one.
            section: that it was built by.

        Raises:
            ValueError: it is another model.
        """
        if self._section is None or type(section) is not type(self._section):
            raise ValueError(
                f"`model.name` should be that of the model in '{self._path}', "
                f"'{getattr(self._section, 'name', None)}'. Received '{section.name}'."
            )
        state, sizes = model.state_dict(), self._vocabulary_sizes()
        missing = [name for name in {**state, **self._weights} if name not in self._weights]
        unused = [name for name in self._weights if name not in state]
        if missing or unused:
            raise self._other_model((missing or unused)[0])
        parameters = dict(model.named_parameters(remove_duplicate=False))
        loaded: dict[str, Tensor] = {}
        for name, value in state.items():
            old, table = self._weights[name], _TABLE.fullmatch(name)
            fresh = isinstance(value, Tensor) and isinstance(old, Tensor)
            if (
                fresh
                and table is not None
                and len(old) < len(value)
                and old[0].shape == value[0].shape
            ):
                known = sizes.get(table[1].removesuffix("_linear"), sizes.get(table[1]))
                loaded[name] = _grown(value, old, known, table[1] in self._pretrained())
            elif name in parameters and value.shape != old.shape:
                raise self._other_model(f"{name} of {tuple(value.shape)}, not {tuple(old.shape)}")
            else:
                loaded[name] = old
        model.load_state_dict(loaded)

    def _vocabulary_sizes(self) -> Mapping[str, int]:
        """Return how many ids the tables with a vocabulary have known."""
        return {
            spec.name: spec.rows - 1
            for spec in self._transform.tables
            if spec.ids == "vocabulary" and spec.rows is not None
        }

    def _pretrained(self) -> set[str]:
        """Return the tables that began with vectors of another model."""
        return {s.name for s in self._transform.tables if isinstance(s.init, Pretrained)}

    def _other_model(self, what: str) -> ValueError:
        return ValueError(
            f"`model` and `tasks` should be those of the model in '{self._path}', whose weights "
            f"training begins with. Received other ones: {what}."
        )


def continued_model(path: str | None) -> ContinuedModel | None:
    """Return what training goes on from; None for none.

    Args:
        path: a run folder, or a bundle.

    Raises:
        FileNotFoundError: there is no trained model.
        ValueError: it is damaged.
    """
    return None if path is None else ContinuedModel(path)


@torch.no_grad()
def _grown(fresh: Tensor, old: Tensor, known: int | None, is_pretrained: bool) -> Tensor:
    """Return a table with further rows; with a vocabulary the last stands for unknown ids."""
    grown = fresh.detach().clone()
    if known is None:
        grown[: len(old)] = old
    else:
        grown[:known] = old[:known]
        grown[-1 if is_pretrained else known :] = old[known]
    return grown
