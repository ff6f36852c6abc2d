"""Versions on disk and in memory: the newest that is whole answers, and nothing is ever a mixture."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from starlette.testclient import TestClient

from tests.serve import clicks
from torchrec.inference import Predictor, load
from torchrec.serve import Limits, application
from torchrec.serve import models as module
from torchrec.serve.meters import Meters
from torchrec.serve.models import Models, Threads
from torchrec.serve.versions import find_versions

pytestmark = pytest.mark.once

ROWS = clicks.rows(2)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three models that predict different things."""
    folder = tmp_path_factory.mktemp("saved")
    return [clicks.save(folder / str(seed), seed) for seed in range(3)]


@pytest.fixture
def threads() -> Iterator[Threads]:
    with ThreadPoolExecutor(1) as few, ThreadPoolExecutor(1) as many, ThreadPoolExecutor(1) as load:
        yield Threads(few, many, load)


def served(
    path: Path, threads: Threads, keep: int = 1, patience: float = 0.0
) -> tuple[Models, Meters]:
    meters = Meters()
    models = Models({"clicks": path}, Limits(), threads, meters, keep=keep, patience=patience)
    models.load()
    return models, meters


def look(models: Models) -> None:
    """Look as often as takes for a version: it should stay as it is from one look to the next."""
    for _ in range(2):
        asyncio.run(models.refresh())


def failures(meters: Meters) -> float:
    name = 'torchrec_version_failures_total{model="clicks"} '
    (line,) = (one for one in meters.text().decode().splitlines() if one.startswith(name))
    return float(line.removeprefix(name))


def scores(models: Models, version: str | None = None) -> list[float]:
    return models.version("clicks", version).scores(ROWS)["labels"]


def expected(saved: Path) -> list[float]:
    return load(saved).predict(ROWS).tolist()


def test_versions_are_found(saved: list[Path], tmp_path: Path) -> None:
    for name in ("9", "10", "x", "\uff12"):
        shutil.copytree(saved[0], tmp_path / name / "model")
    (tmp_path / "11").mkdir()
    assert [one.name for one in find_versions(tmp_path)] == ["10", "9"]
    (single,) = find_versions(tmp_path / "9")
    assert (single.name, single.folder) == (None, tmp_path / "9" / "model")
    for wrong in (tmp_path / "11", tmp_path / "12"):
        with pytest.raises(
            FileNotFoundError, match="should be a run, a bundle, or a folder of such"
        ):
            find_versions(wrong)


def test_a_version_that_is_removed_while_it_is_looked_at(
    saved: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("1", "2"):
        shutil.copytree(saved[0], tmp_path / name)
    scandir = os.scandir

    def removing(path: str) -> object:
        if Path(path) == tmp_path / "2" / "transform":
            monkeypatch.undo()
            shutil.rmtree(tmp_path / "2")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", removing)
    assert find_versions(tmp_path)[-1].name == "1"
    assert [one.name for one in find_versions(tmp_path)] == ["1"]


def test_a_new_version_takes_over_and_goes_back(
    saved: list[Path], tmp_path: Path, threads: Threads
) -> None:
    shutil.copytree(saved[0], tmp_path / "1")
    models, _ = served(tmp_path, threads)
    former = models.version("clicks")
    look(models)
    assert models.version("clicks") is former  # nothing has changed
    shutil.copytree(saved[1], tmp_path / "2")
    look(models)
    assert (models.version("clicks").name, scores(models)) == ("2", expected(saved[1]))
    assert former.scores(ROWS)["labels"] == expected(saved[0])  # for who still holds it
    shutil.rmtree(tmp_path / "2")
    look(models)
    assert (models.version("clicks").name, scores(models)) == ("1", expected(saved[0]))


def test_several_versions_stay(saved: list[Path], tmp_path: Path, threads: Threads) -> None:
    for number in (1, 2):
        shutil.copytree(saved[number], tmp_path / str(number))
    models, _ = served(tmp_path, threads, keep=2)
    second = models.version("clicks")
    shutil.copytree(saved[0], tmp_path / "3")
    look(models)
    assert [one.name for one in models.versions("clicks")] == ["3", "2"]
    assert models.version("clicks", "2") is second  # not read again
    assert [scores(models, name) for name in ("3", "2")] == [expected(saved[0]), expected(saved[2])]


def test_a_version_that_is_not_whole_waits(
    saved: list[Path], tmp_path: Path, threads: Threads
) -> None:
    shutil.copytree(saved[0], tmp_path / "1")
    models, meters = served(tmp_path, threads)
    shutil.copytree(saved[1], tmp_path / "2")
    weights = tmp_path / "2" / "weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])  # as a copy that is under way
    for _ in range(2):
        look(models)
        assert (models.version("clicks").name, failures(meters)) == ("1", 1)
    weights.write_bytes(whole)
    look(models)
    assert (models.version("clicks").name, failures(meters)) == ("2", 1)


def test_a_copy_that_stands_still_for_a_while_is_no_failure(
    saved: list[Path], tmp_path: Path, threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(saved[0], tmp_path / "1")
    models, meters = served(tmp_path, threads, patience=10.0)
    tried: list[Path] = []
    monkeypatch.setattr(module, "load", lambda folder: tried.append(folder) or load(folder))
    now = 100.0
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now))
    shutil.copytree(saved[1], tmp_path / "2")
    index = tmp_path / "2" / "bundle.json"
    whole = index.read_text()
    index.write_text(whole[:100])
    look(models)
    now = 109.0
    look(models)
    assert (len(tried), failures(meters)) == (1, 0)
    index.write_text(whole[:200])  # goes on, and stands still again
    look(models)
    now = 118.0
    look(models)
    assert (len(tried), failures(meters)) == (2, 0)
    now = 119.0
    for _ in range(2):
        look(models)
        assert (len(tried), failures(meters)) == (2, 1)  # nobody copies it any more: said once
    index.write_text(whole)
    look(models)
    assert (models.version("clicks").name, failures(meters)) == ("2", 1)


def test_a_version_there_is_no_memory_for_keeps_no_other_model_back(
    saved: list[Path], tmp_path: Path, threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = {"large": tmp_path / "large", "clicks": tmp_path / "clicks"}
    for path in paths.values():
        shutil.copytree(saved[0], path / "1")
    models = Models(paths, Limits(), threads, Meters())
    models.load()

    def loaded(folder: Path) -> Predictor:
        if folder.parent.name == "large":
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return load(folder)

    monkeypatch.setattr(module, "load", loaded)
    for path in paths.values():
        shutil.copytree(saved[1], path / "2")
    look(models)
    assert [models.version(name).name for name in paths] == ["1", "2"]


def test_a_version_that_is_being_copied_is_left_alone(
    saved: list[Path], tmp_path: Path, threads: Threads
) -> None:
    shutil.copytree(saved[0], tmp_path / "1")
    models, meters = served(tmp_path, threads)
    (tmp_path / "2").mkdir()
    for name in ("bundle.json", "README.txt", "transform", "weights.safetensors"):
        copy = shutil.copytree if name == "transform" else shutil.copy
        copy(saved[1] / name, tmp_path / "2" / name)
        asyncio.run(models.refresh())
        assert models.version("clicks").name == "1"
    asyncio.run(models.refresh())
    assert (models.version("clicks").name, failures(meters)) == ("2", 0)


def test_a_start_takes_the_newest_that_is_whole(
    saved: list[Path], tmp_path: Path, threads: Threads
) -> None:
    for number in (1, 2):
        shutil.copytree(saved[number], tmp_path / str(number))
    (tmp_path / "2" / "transform" / "transform.json").write_text("{}")
    models, meters = served(tmp_path, threads)
    assert (models.version("clicks").name, failures(meters)) == ("1", 1)
    shutil.rmtree(tmp_path / "1")
    with pytest.raises(ValueError, match="should be whole"):
        served(tmp_path, threads)


def test_a_run_that_is_trained_anew(saved: list[Path], tmp_path: Path, threads: Threads) -> None:
    clicks.save(tmp_path / "model", seed=0)
    models, meters = served(tmp_path, threads)
    name = models.version("clicks").name
    clicks.save(tmp_path / "model", seed=1)
    look(models)
    assert models.version("clicks").name != name
    assert scores(models) == expected(saved[1])
    (tmp_path / "model" / "bundle.json").write_text("{}")
    look(models)
    shutil.rmtree(tmp_path / "model")
    look(models)
    assert scores(models) == expected(saved[1])  # goes on
    assert failures(meters) == 2


def test_a_bundle_that_is_replaced_while_it_is_read(
    saved: list[Path], tmp_path: Path, threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read again: the version has the name of what it holds."""
    path = tmp_path / "model"
    shutil.copytree(saved[0], path)
    replacements = [1, 2]

    def load_slowly(folder: Path) -> object:
        predictor = load(folder)
        if replacements:
            shutil.rmtree(path)
            shutil.copytree(saved[replacements.pop(0)], path)
        return predictor

    monkeypatch.setattr(module, "load", load_slowly)
    models, _ = served(tmp_path, threads)
    digest = module.digest_of_index(saved[2])
    assert (models.version("clicks").digest, scores(models)) == (digest, expected(saved[2]))
    replacements[:] = [0, 1, 2]
    with pytest.raises(ValueError, match=r"should stay while it is read. It was replaced 3 times"):
        served(tmp_path, threads)


def test_a_request_that_waits_is_answered_by_the_version_it_came_for(
    saved: list[Path], tmp_path: Path, threads: Threads
) -> None:
    shutil.copytree(saved[0], tmp_path / "1")
    models, _ = served(tmp_path, threads)
    gate = threading.Event()

    async def run() -> list[dict[str, list[float]]]:
        threads.few.submit(gate.wait)
        batcher = models.version("clicks").batcher
        waiting = [asyncio.create_task(batcher.scores(ROWS[:1])) for _ in range(2)]
        await asyncio.sleep(0)
        shutil.copytree(saved[1], tmp_path / "2")
        for _ in range(2):
            await models.refresh()
        gate.set()
        return [
            *await asyncio.gather(*waiting),
            await models.version("clicks").batcher.scores(ROWS),
        ]

    *waited, after = asyncio.run(run())
    for one in waited:
        assert one["labels"] == pytest.approx(expected(saved[0])[:1], abs=1e-7)
    assert after["labels"] == pytest.approx(expected(saved[1]), abs=1e-7)


def test_no_request_is_lost_in_a_swap(saved: list[Path], tmp_path: Path) -> None:
    """Each is answered by one version, whole: that of its name."""
    answers = [expected(one) for one in saved]
    shutil.copytree(saved[0], tmp_path / "1")
    found: list[tuple[str, list[float]]] = []
    done = threading.Event()
    with TestClient(application({"clicks": tmp_path}, poll=0.01)) as client:

        def ask() -> None:
            while not done.is_set():
                answer = client.post("/v1/models/clicks:predict", json={"rows": ROWS}).json()
                found.append((answer["version"], answer["predictions"]["labels"]))

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for one in threads:
            one.start()
        for number in (1, 2):
            shutil.copytree(saved[number], tmp_path / str(number + 1))
            while client.get("/v1/models/clicks").json()["version"] != str(number + 1):
                pass
        done.set()
        for one in threads:
            one.join()
    assert {version for version, _ in found} >= {"1", "3"}
    for version, labels in found:
        assert labels == pytest.approx(answers[int(version) - 1], abs=1e-7)
