"""What ranks that torchrun has started print, and which commands they may run."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import TCPStore

from rowwise import cli
from rowwise.cli import ranks

pytestmark = pytest.mark.once


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> TCPStore:
    """As torchrun starts the second of two ranks."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = {
        "RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port),
        "TORCHELASTIC_RUN_ID": "job", "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "3",
    }  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return store


def _failing(capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(["evaluate", "nosuch-run", "nosuch.csv"]) == cli.MISTAKE
    return capsys.readouterr().err


def test_what_the_first_rank_says_is_said_once(
    started: TCPStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ranks, "_PATIENCE", 0.0)
    alone = _failing(capsys)  # the first has said nothing
    assert alone.startswith("torchrec, rank 1: ")
    monkeypatch.setenv("RANK", "0")
    assert _failing(capsys) == alone.replace(", rank 1", "")
    monkeypatch.setattr(ranks, "_PATIENCE", 5.0)
    monkeypatch.setenv("RANK", "1")
    assert _failing(capsys) == ""
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "4")  # what was said before counts for nothing
    monkeypatch.setattr(ranks, "_PATIENCE", 0.0)
    assert _failing(capsys) == alone


def test_a_rank_waits_for_the_first(started: TCPStore) -> None:
    with ThreadPoolExecutor(1) as pool:
        same = pool.submit(ranks.says_first_rank, "a line")
        started.set("rowwise/said/3", "a line")
        assert same.result()
    assert not ranks.says_first_rank("another line")


def test_ranks_without_a_store_speak_for_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert not ranks.says_first_rank("a line")
    monkeypatch.setenv("RANK", "0")
    assert ranks.says_first_rank("a line")


def test_commands_of_one_process_are_refused(
    started: TCPStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "0")
    assert cli.main(["tune", "experiment.yaml"]) == cli.MISTAKE
    said = capsys.readouterr().err
    assert said == (
        "torchrec: `torchrec tune` should be started without torchrun: it runs in one process. Received 2.\n"
    )
    assert cli.main(["info"]) == 0
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")  # other launchers set the size for whole machines
    assert cli.main(["tune", "nosuch.yaml"]) == cli.MISTAKE
    assert "without torchrun" not in capsys.readouterr().err
