"""Files that are whole or not there."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from torchrec._files import open_to_others, write_whole


def _full(*args: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_text_is_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    path = tmp_path / "new" / "result.json"
    write_whole(path, "one", durable=True)
    monkeypatch.setattr(os, fails, _full)
    with pytest.raises(OSError, match=r"No space left.*new/result.json'"):
        write_whole(path, "two", durable=True)
    assert path.read_text() == "one"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("durable", [False, True])
def test_the_disk_is_waited_for_if_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    """Content before name: after a loss of power there is the former file or the new one."""
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noted(handle: int) -> None:
        fsync(handle)
        done.append("fsync")

    def renamed(source: Path, target: Path) -> None:
        replace(source, target)
        done.append("replace")

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(os, "replace", renamed)
    write_whole(tmp_path / "report.html", "text", durable=durable)
    assert done == (["fsync", "replace", "fsync"] if durable else ["replace"])


def test_files_that_are_opened_to_others_follow_the_umask(tmp_path: Path) -> None:
    private, ordinary = tmp_path / "private", tmp_path / "ordinary"
    private.touch(0o600)
    ordinary.touch()
    open_to_others(private)
    assert private.stat().st_mode == ordinary.stat().st_mode
