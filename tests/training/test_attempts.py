"""A job that torchrun starts again goes on with the run that it has begun, and with no other."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch.distributed import TCPStore

from tests.training.test_run import experiment, run
from torchrec.training.attempts import Attempts, Opened
from torchrec.training.run import run_experiment

pytestmark = pytest.mark.once


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> TCPStore:
    """As torchrun starts the only rank of a job."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = {
        "RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port),
        "TORCHELASTIC_RUN_ID": "job", "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return store


def test_a_refused_folder_is_refused_after_a_restart(
    clicks: Path, tmp_path: Path, job: TCPStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as by_hand:
        by_hand.delenv("TORCHELASTIC_USE_AGENT_STORE")
        ended = run(experiment(clicks), folder)
    for count in ("0", "1"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", count)
        with pytest.raises(ValueError, match="The folder of a run should be new"):
            run(experiment(clicks), folder)
    (folder / "result.json").unlink()  # nor is one that has not ended trained further
    with pytest.raises(ValueError, match="The folder of a run should be new"):
        run(experiment(clicks), folder)
    assert run(experiment(clicks), folder, resume=True).test == ended.test
    assert Attempts(folder).before() is Opened.THERE
    assert run(experiment(clicks), folder).test == ended.test  # its own by now


@pytest.mark.usefixtures("job")
def test_what_the_job_has_begun_goes_on_after_a_restart(clicks: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ended = run(experiment(clicks), folder)
    (folder / "result.json").unlink()
    assert run(experiment(clicks), folder).test == ended.test
    with pytest.raises(ValueError, match="as when the run in"):
        run(experiment(clicks, model={"dim": 8}), folder)


@pytest.mark.usefixtures("job")
def test_what_an_attempt_of_the_job_has_left_is_removed(clicks: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(ValueError, match="nosuch"):
        run(experiment(clicks, data={"label": "nosuch"}), folder)
    assert not folder.exists()
    (folder / "seed-0").mkdir(parents=True)  # as where it was ended while it removed them
    (folder / "metrics.jsonl").touch()
    run(experiment(clicks), folder)
    assert not (folder / "seed-0").exists()


@pytest.mark.usefixtures("job")
def test_what_others_have_left_is_not(clicks: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "mine.txt").touch()
    for _ in range(2):
        with pytest.raises(ValueError, match="The folder of a run should be new"):
            run_experiment(experiment(clicks), folder, observers=[])
    assert (folder / "mine.txt").exists()
