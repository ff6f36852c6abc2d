"""The models that a server has, and how one version takes the place of another."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from torchrec.checks import did_you_mean
from torchrec.inference import Predictor, load
from torchrec.serve.batching import Batcher, Rows, Scores
from torchrec.serve.candidates import Candidates, read_candidates
from torchrec.serve.failures import RefusedError
from torchrec.serve.limits import Limits
from torchrec.serve.meters import Meters
from torchrec.serve.versions import Found, Stamp, digest_of_index, find_versions

_LONGEST = 80  # characters of a name in a message
_ATTEMPTS = 3  # to read a bundle that is replaced meanwhile
_PATIENCE = 10.0  # seconds that a copy may stand still


@dataclass(frozen=True)
class Version:
    """A version of a model that is loaded. It stays as it is until nobody uses it any more.

    Attributes:
        model: name of the model.
        name: of the version.
        digest: of its bundle, by which it is known wherever it lies.
        found: where its bundle lies.
        predictor: the model.
        batcher: asks it for few rows.
        candidates: what it recommends where a request names none.
    """

    model: str
    name: str
    digest: str
    found: Found
    predictor: Predictor
    batcher: Batcher
    candidates: Candidates | None

    def scores(self, data: Rows | pa.Table) -> Scores:
        """Return what is predicted for rows, in this thread."""
        return scores_of(self.predictor, data)


def scores_of(predictor: Predictor, data: Rows | pa.Table) -> Scores:
    """Return what a model predicts of rows, as plain numbers, by task."""
    return {name: scores.tolist() for name, scores in predictor.predict_tasks(data).items()}


@dataclass(frozen=True)
class Threads:
    """Where a server computes, so that it can answer others meanwhile.

    Attributes:
        few: for batches of few rows, one after another.
        many: for whatever takes longer.
        loading: for new versions.
    """

    few: Executor
    many: Executor
    loading: Executor


@dataclass
class _Failure:
    """What could not be loaded, as long as its files stay as they are."""

    stamp: Stamp
    error: Exception
    since: float
    is_said: bool = False


class Models:
    """The models of a server by name, each with its newest versions.

    A version that comes to lie on disk is read beside those that answer once its files have stayed as they are from
    one look to the next, and asked once; if it is whole and works, requests that come from then on go to it, and those
    that are under way end with the version they began with. If it does not, the former goes on answering, and a later
    look tries again once its files have changed; what is wrong is said if they do not.

    Args:
        paths: of each model, see `torchrec.serve.versions.find_versions`.
        limits: for the batches of each.
        threads: where they compute.
        meters: is told of batches and versions.
        candidates: Parquet file of what a model recommends, by its name. Default: requests bring their own.
        keep: how many versions of a model are loaded. Default 1: the newest.
        patience: seconds for which files may stay as they are until a version that fails is no copy under way, and what
            is wrong is said. Default 10. Where nothing answers yet, it is said at once.

    Raises:
        ValueError: there is no model, or candidates of one that there is not.
    """

    def __init__(
        self,
        paths: Mapping[str, str | os.PathLike[str]],
        limits: Limits,
        threads: Threads,
        meters: Meters,
        *,
        candidates: Mapping[str, str | os.PathLike[str]] | None = None,
        keep: int = 1,
        patience: float = _PATIENCE,
    ) -> None:
        self._paths = dict(paths)
        self._candidates = dict(candidates or {})
        if not self._paths:
            raise ValueError("A server should have at least one model. Received none.")
        for name in self._candidates:
            if name not in self._paths:
                raise ValueError(
                    f"Candidates should be of one of the models {', '.join(self._paths)}. Received "
                    f"'{name}'{did_you_mean(name, list(self._paths)) or '.'}"
                )
        if keep < 1:
            raise ValueError(f"`keep` should be at least 1. Received {keep}.")
        self._limits, self._threads, self._meters, self._keep = limits, threads, meters, keep
        self._patience = patience
        self._versions: dict[str, Sequence[Version]] = {}
        self._seen: dict[str, dict[Path, Stamp]] = {
            name: {} for name in self._paths
        }  # by the last look
        self._gone: dict[str, str] = {}  # why the last look found nothing
        # Of what could not be loaded, so that it is tried again only once it has changed.
        self._failed: dict[str, dict[Path, _Failure]] = {name: {} for name in self._paths}

    def names(self) -> list[str]:
        """Return the names of the models."""
        return list(self._paths)

    def versions(self, model: str) -> Sequence[Version]:
        """Return the versions of a model that are loaded, the newest first.

        Raises:
            RefusedError: there is no such model (404).
        """
        found = self._versions.get(model)
        if found is None:
            given = model[:_LONGEST]
            near = did_you_mean(given, self.names()) or "."
            raise RefusedError(
                404,
                f"The model should be one of {', '.join(self.names())}. Received '{given}'{near}",
            )
        return found

    def version(self, model: str, name: str | None = None) -> Version:
        """Return a version of a model.

        Args:
            model: its name.
            name: of the version. Default: the newest.

        Raises:
            RefusedError: there is none (404).
        """
        found = self.versions(model)
        if name is None:
            return found[0]
        for one in found:
            if one.name == name:
                return one
        raise RefusedError(
            404,
            f"The version of model '{model}' should be one of {', '.join(one.name for one in found)}, which are "
            f"loaded. Received '{name[:_LONGEST]}'.",
        )

    def load(self) -> None:
        """Load all models.

        Raises:
            FileNotFoundError: one is not there.
            ValueError: no version of one is whole.
        """
        for name in self._paths:
            found = self._look(name)
            assert found is not None
            self._put(name, found)

    async def refresh(self) -> None:
        """Look for new versions, and let them take over; what is wrong with one is said to the meters."""
        loop = asyncio.get_running_loop()
        for name in self._paths:
            try:
                found = await loop.run_in_executor(self._threads.loading, self._look, name)
            except (ValueError, OSError) as error:  # the folder is gone, or has no version any more
                if self._gone.get(name) != str(error):  # said once, not every two seconds
                    self._gone[name] = str(error)
                    self._meters.failed(name, error)
                continue
            self._gone.pop(name, None)
            if found is not None:
                self._put(name, found)  # here, between two requests

    def _put(self, model: str, versions: Sequence[Version]) -> None:
        self._versions[model] = versions
        self._meters.serves(model, versions[0].name, [one.predictor for one in versions])

    def _look(self, model: str) -> list[Version] | None:
        """Return the versions of a model that should be loaded; None if those are that are loaded.

        A version that cannot be loaded is left out, unless there is no other.
        """
        found = find_versions(self._paths[model])
        seen = self._seen[model]
        self._seen[model] = {one.folder: one.stamp for one in found}
        failed = {
            one.folder: failure
            for one in found
            if (failure := self._failed[model].get(one.folder)) and failure.stamp == one.stamp
        }
        self._failed[model] = failed
        loaded = {one.found.folder: one for one in self._versions.get(model, ())}
        wanted: list[Version] = []
        for one in found:
            if len(wanted) == self._keep:
                break
            former = loaded.get(one.folder)
            is_new = former is None or former.found.stamp != one.stamp
            is_settled = not loaded or seen.get(one.folder) == one.stamp  # else it is being copied
            if is_new and is_settled and one.folder not in failed:
                try:
                    former = self._loaded(model, one)
                except Exception as error:  # PyTorch says by RuntimeError that there is no memory
                    failed[one.folder] = _Failure(one.stamp, error, time.monotonic())
            if former is not None:  # perhaps what lay there before, which goes on
                wanted.append(former)
        if loaded or len(found) > 1:
            self._say(model, failed, self._patience if loaded else 0.0)
        if not wanted and not loaded:
            raise next(iter(failed.values())).error  # of the newest
        return None if wanted in ([], list(self._versions.get(model, ()))) else wanted

    def _say(self, model: str, failed: Mapping[Path, _Failure], patience: float) -> None:
        """Say what could not be loaded and has stayed as it was, once."""
        for one in failed.values():
            if not one.is_said and time.monotonic() - one.since >= patience:
                one.is_said = True
                self._meters.failed(model, one.error)

    def _loaded(self, model: str, found: Found) -> Version:
        digest, predictor = _read(found.folder)
        predictor.predict_tasks([dict.fromkeys(predictor.input_columns)])  # all missing
        predictor.counts(reset=True)
        file = self._candidates.get(model)
        candidates = None if file is None else read_candidates(file)

        def scores(rows: Rows) -> Scores:
            return scores_of(predictor, rows)

        def observe(rows: int, waiting: int) -> None:
            self._meters.batch(model, rows, waiting)

        batcher = Batcher(scores, self._threads.few, self._limits, observe)
        name = found.name or digest[:12]
        return Version(model, name, digest, found, predictor, batcher, candidates)


def _read(folder: Path) -> tuple[str, Predictor]:
    """Return a bundle's digest and what it holds, of one moment, be it replaced meanwhile."""
    for _ in range(_ATTEMPTS):
        digest = digest_of_index(folder)
        try:
            predictor = load(folder)
        except (ValueError, OSError):
            if digest == digest_of_index(folder):
                raise
            continue
        if digest == digest_of_index(folder):
            return digest, predictor
    raise ValueError(
        f"Bundle '{folder}' should stay while it is read. It was replaced {_ATTEMPTS} times meanwhile."
    )


def describe(version: Version) -> dict[str, Any]:
    """Return what a model reads and predicts, as JSON has it."""
    transform = version.predictor.transform
    features = []
    for name, feature in transform.features.items():
        features.append(
            {
                "name": name,
                "column": feature.column or name,
                "type": feature.type,
                "values": transform.kinds.get(name, "nulls"),
                **_options(
                    feature.model_dump(mode="json"),
                    ("size", "separator", "weights", "weight_separator", "max_length"),
                ),
            }
        )
    tasks = [
        {
            "name": name,
            "kind": target.kind,
            **({"classes": target.classes} if target.classes else {}),
        }
        for name, target in version.predictor.targets.items()
    ]
    return {
        "name": version.model,
        "version": version.name,
        "digest": version.digest,
        "columns": version.predictor.input_columns,
        "features": features,
        "tasks": tasks,
        "recommends": version.candidates is not None,
    }


def _options(feature: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: feature[name] for name in names if feature.get(name) is not None}
