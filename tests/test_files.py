"""Files and folders that are whole or not there."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import torchrec
from torchrec.files import (
    DamagedError,
    Json,
    check_files,
    clear_remains,
    json_with_checksum,
    open_to_others,
    parse_json,
    read_index,
    read_json,
    remove_folder,
    write_file,
    write_folder,
    write_tensors,
)

pytestmark = pytest.mark.once


def _full(*args: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_text_is_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    path = tmp_path / "new" / "result.json"
    write_file(path, "one", durable=True)
    monkeypatch.setattr(os, fails, _full)
    with pytest.raises(OSError, match=r"No space left.*new/result.json'"):
        write_file(path, "two", durable=True)
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
    write_file(tmp_path / "report.html", "text", durable=durable)
    assert done == (["fsync", "replace", "fsync"] if durable else ["replace"])


def test_files_that_are_opened_to_others_follow_the_umask(tmp_path: Path) -> None:
    private, ordinary = tmp_path / "private", tmp_path / "ordinary"
    private.touch(0o600)
    ordinary.touch()
    open_to_others(private)
    assert private.stat().st_mode == ordinary.stat().st_mode


def _write(folder: Path, text: str, **facts: int) -> None:
    with write_folder(folder, format=2, facts=facts, unlisted=["README"], what="The bundle") as to:
        (to / "weights").write_text(text)
        (to / "README").write_text("for people")
        (to / "maps").mkdir()
        (to / "maps" / "user").write_text(text * 2)


def _content(folder: Path) -> str:
    check_files(folder, read_index(folder))
    return (folder / "weights").read_text()


def test_a_folder_is_written_and_replaced_whole(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "model"
    _write(folder, "one", step=1)
    _write(folder, "two", step=2)
    index = read_index(folder)
    assert (index.format, index.facts, list(index.files)) == (
        2,
        {"step": 2},
        ["maps/user", "weights"],
    )
    assert index.written_by == f"rowwise {torchrec.__version__}"
    assert _content(folder) == "two"
    assert sorted(path.name for path in folder.iterdir()) == [
        "README", "index.json", "maps", "weights"
    ]  # fmt: skip
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("call", [0, 1], ids=["former aside", "new to its name"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()], ids=repr)
def test_an_error_leaves_the_former_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int, error: BaseException
) -> None:
    folder = tmp_path / "model"
    _write(folder, "one")
    rename, calls = Path.rename, iter(range(10))

    def failing(self: Path, target: Path) -> Path:
        if next(calls) == call:
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(type(error)) as caught:
        _write(folder, "two")
    if isinstance(error, OSError):
        assert str(caught.value).endswith(
            f"The bundle should be written to '{folder}'. Received: full. What was there before is whole"
        )
        assert caught.value.args[0] == errno.ENOSPC
    assert _content(folder) == "one"
    assert list(tmp_path.iterdir()) == [folder]


def test_an_error_of_the_writer_passes_and_leaves_nothing(tmp_path: Path) -> None:
    def write() -> None:
        with write_folder(tmp_path / "model", format=1) as beside:
            (beside / "weights").write_text("half")
            raise KeyError("user")

    with pytest.raises(KeyError, match="user"):
        write()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("there", ["folder", "nothing"])
@pytest.mark.parametrize("of", ["the folder", "one above it"])
def test_a_link_stays_one_and_leads_to_what_is_written(tmp_path: Path, there: str, of: str) -> None:
    real = tmp_path / "disk" / "model"
    (tmp_path / "runs").mkdir()
    if there == "folder":
        _write(real, "zero")
    link = tmp_path / "runs" / "latest"
    link.symlink_to(real if of == "the folder" else real.parent)
    folder = link if of == "the folder" else link / "model"
    real.parent.mkdir(exist_ok=True)
    for text in ("one", "two", "three"):
        _write(folder, text)
        assert _content(folder) == _content(real) == text
        assert link.is_symlink()
        assert not real.is_symlink()
        assert list(real.parent.iterdir()) == [real]
        assert list(link.parent.iterdir()) == [link]


@pytest.mark.parametrize("kind", ["writing", "former", "removed"])
@pytest.mark.parametrize("left", ["link", "dangling link", "file", "folder"])
def test_whatever_lies_in_the_way_is_cleared(tmp_path: Path, kind: str, left: str) -> None:
    other, path = tmp_path / "other", tmp_path / "runs" / f".model.{kind}"
    _write(other, "precious")
    path.parent.mkdir()
    if left == "file":
        path.write_text("")
    elif left == "folder":
        (path / "inner").mkdir(parents=True)
    else:
        path.symlink_to(other if left == "link" else tmp_path / "nowhere")
    for text in ("one", "two"):
        _write(tmp_path / "runs" / "model", text)
        assert _content(tmp_path / "runs" / "model") == text
        assert [path.name for path in (tmp_path / "runs").iterdir()] == ["model"]
    assert _content(other) == "precious"


@pytest.mark.parametrize("folder", [".", "..", "../work", "/"])
def test_the_folder_in_which_one_works_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with pytest.raises(
        ValueError, match=r"The bundle should be written to a folder in which this process does not"
    ):
        _write(Path(folder), "one")
    assert [path.name for path in tmp_path.rglob("*")] == ["work"]
    _write(Path("model"), "one")
    assert _content(tmp_path / "work" / "model") == "one"


def test_one_may_work_in_a_folder_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    (tmp_path / "work").rmdir()
    _write(tmp_path / "model", "one")
    assert _content(tmp_path / "model") == "one"


def test_a_name_that_the_system_does_not_take(tmp_path: Path) -> None:
    with pytest.raises(
        OSError, match=r"The bundle should be written to .* Received: File name too"
    ):
        _write(tmp_path / ("n" * 250), "one")
    assert list(tmp_path.iterdir()) == []


def test_an_error_about_another_file_is_not_one_of_writing(tmp_path: Path) -> None:
    def write(name: Path) -> None:
        with write_folder(tmp_path / "model", format=1) as beside:
            (beside / name).read_text()

    with pytest.raises(FileNotFoundError) as caught:
        write(tmp_path / "clicks.csv")
    assert caught.value.filename == str(tmp_path / "clicks.csv")
    with pytest.raises(
        OSError, match=r"The folder should be written to '.*/model'\. Received: No su"
    ):
        write(Path("weights"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["format", "written_by", "files", "checksum"])
def test_facts_have_names_of_their_own(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        ValueError, match=rf"`facts` should have other names .* Received '{name}'\."
    ):
        _write_facts(tmp_path / "model", {name: 3})
    assert list(tmp_path.iterdir()) == []


def _write_facts(folder: Path, facts: dict[str, Json]) -> None:
    with write_folder(folder, format=1, facts=facts):
        pass


def _killed_at(point: str, folder: Path) -> None:
    """Write in a process that ends at the first call of `fsync`, or the first or second renaming."""
    calls = iter(range(2))
    rename = Path.rename

    def fsync(_: object) -> None:
        os._exit(9)

    def dying_rename(self: Path, target: Path) -> Path:
        if next(calls) == (point == "second rename"):
            os._exit(9)
        return rename(self, target)

    with pytest.MonkeyPatch.context() as patch:
        if point == "fsync":
            patch.setattr(os, "fsync", fsync)
        else:
            patch.setattr(Path, "rename", dying_rename)
        _write(folder, "two")


@pytest.mark.parametrize("point", ["fsync", "first rename", "second rename"])
@pytest.mark.parametrize("after", ["writing", pytest.param("clearing", marks=pytest.mark.slow)])
def test_what_a_killed_process_leaves_is_cleared(tmp_path: Path, point: str, after: str) -> None:
    folder = tmp_path / "model"
    _write(folder, "one")
    process = multiprocessing.get_context("spawn").Process(target=_killed_at, args=(point, folder))
    process.start()
    process.join()
    assert process.exitcode == 9
    assert len(list(tmp_path.iterdir())) == 2
    if after == "writing":
        _write(folder, "three")
    else:
        clear_remains(tmp_path)
    assert _content(folder) == ("three" if after == "writing" else "one")
    assert list(tmp_path.iterdir()) == [folder]


def test_every_flipped_bit_of_a_folder_is_noticed_or_harmless(tmp_path: Path) -> None:
    """Harmless is a bit of the layout of the index, or of a file that has no digest."""
    folder = tmp_path / "model"
    _write(folder, "one", step=1)
    before = read_index(folder)
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        whole = path.read_bytes()
        for bit in range(8 * len(whole)):
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            try:
                index = read_index(folder)
                check_files(folder, index)
                unnoticed = path.name != "README" and index != before
            except DamagedError as error:
                unnoticed = error.path != path
            assert not unnoticed, (path, bit)
        path.write_bytes(whole)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.unlink(), "it is missing"),
        (lambda path: path.write_text("on"), "it has 2 bytes instead of 3"),
        (lambda path: path.write_text("owe"), "it has other contents than when it was written"),
    ],
    ids=["missing", "shorter", "other"],
)
def test_damage_names_file_and_reason(
    tmp_path: Path, damage: Callable[[Path], object], reason: str
) -> None:
    _write(tmp_path / "model", "one")
    damage(tmp_path / "model" / "weights")
    with pytest.raises(
        DamagedError, match=f"weights' should be as it was written. It is damaged: {reason}"
    ):
        _content(tmp_path / "model")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[]", "it should be a JSON object, and is list"),
        ("{", "Expecting property name"),
        ("[" * 100_000, "it should be nested at most 100 deep"),
        ('{"format": true, "files": {}}', "it should say its format and list the files"),
        ('{"format": 2}', "it should say its format and list the files"),
        ('{"format": 2, "files": {}}', "it has no checksum"),
        (
            '{"format": 1, "files": {"../x": {"bytes": 1, "sha256": ""}}}',
            "size and digest of '../x'",
        ),
        ('{"format": 1, "files": {"x": {"bytes": 1}}}', "size and digest of 'x'"),
    ],
)
def test_an_index_that_is_none_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(DamagedError, match=reason):
        read_index(tmp_path, unchecked_format=1)


def test_an_index_of_before_there_were_checksums_is_read(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text('{"format": 1, "library": "x", "files": {}}')
    index = read_index(tmp_path, unchecked_format=1)
    assert (index.format, index.written_by) == (1, "")
    assert (index.facts, index.files) == ({"library": "x"}, {})


def test_a_folder_is_removed_name_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path / "model", "one")
    rmtree = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", lambda path, **_: None)
    remove_folder(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == [".model.removed"]
    monkeypatch.setattr(shutil, "rmtree", rmtree)
    clear_remains(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_checksum_is_of_values_not_of_their_layout() -> None:
    content: dict[str, Json] = {"b": 1.5, "a": [None, True, "ä"], "c": {"z": 1, "y": 2}}
    for indent in (None, 1):
        assert parse_json(json_with_checksum(content, indent)) == content
    assert parse_json(json_with_checksum(content).replace(", ", ",\n")) == content
    assert parse_json('{"a": 1}') == {"a": 1}
    with pytest.raises(ValueError, match=r"its content has checksum crc32:.* instead of crc32:"):
        parse_json(json_with_checksum(content).replace("1.5", "1.25"))


def test_tensors_that_do_not_fit_are_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        write_tensors(tmp_path / "missing" / "weights", {"w": torch.ones(2)})


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a": ' * 100_000, "[" * 101 + "]" * 101, '{"a": ' * 101 + "1" + "}" * 101],
    ids=["lists", "objects", "closed lists", "closed objects"],
)
def test_json_without_end(text: str) -> None:
    for read in (read_json, parse_json):
        began = time.process_time()
        with pytest.raises(ValueError, match=r"it should be nested at most 100 deep"):
            read(text)
        assert time.process_time() - began < 3


def test_json_of_large_numbers() -> None:
    assert read_json("[" + "9" * 4000 + "]") == [int("9" * 4000)]
    with pytest.raises(ValueError, match="it should have no number of thousands of digits"):
        parse_json('{"a": ' + "9" * 5000 + "}")


def test_json_of_some_depth() -> None:
    assert read_json("[" * 100 + "]" * 100) == json.loads("[" * 100 + "]" * 100)
    assert read_json(b'{"a": [{"b": 1.5}]}') == {"a": [{"b": 1.5}]}
