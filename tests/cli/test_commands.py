"""What scripts of users rely on: names, flags, exit codes, one line for each mistake."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from rowwise import cli
from rowwise.cli.application import application

pytestmark = pytest.mark.once

FROZEN = {
    "init": (
        "data --bad-lines --columns --delimiter --draw-negatives --drop --encoding --exclude --format --label"
        " --output,-o --overwrite --query --quote --table --test --valid",
        "experiment.yaml",
    ),
    "train": ("experiment overrides --from --output,-o --resume", "--resume"),
    "tune": (
        "experiment overrides --metric --output,-o --pruner --resume --seed --space --timeout --trials",
        "--trials 20",
    ),
    "evaluate": ("data run --json --metrics", "test.parquet"),
    "predict": ("data run --keep-columns --name --output,-o", "predictions.parquet"),
    "quantize": ("data run --clip --output,-o --to", "runs/experiment --to int8"),
    "export": ("run --format --output,-o", "--format onnx"),
    "parity": ("data other run --rows --tolerance", "model-int8 test.parquet --tolerance 0.01"),
    "serve": (
        "runs --batch --body --candidates,-c --gather --host --keep --poll --port --queue --quiet --rows"
        " --token-file --wait",
        "--candidates ratings=movies.parquet",
    ),
    "recommend": (
        "run --candidate-key --candidates,-c --output,-o --seen --task --user-key --users,-u -k",
        "--candidates movies.csv",
    ),
    "report": ("run --every --no-predictions --output,-o --watch", "runs/experiment --watch"),
    "compare": ("runs --html --rows", "--html compare.html"),
    "plan": (
        "experiment overrides --device --html --memory --output,-o --processor-time --ranks-a-host --rates "
        "--world-size",
        "--html plan.html",
    ),
    "data synthetic": (
        "--items --output,-o --overwrite --rows --seed --test --users --valid",
        "--rows 1000000",
    ),
    "data movielens": ("folder --drop-neutral --output,-o --overwrite", "ml-1m"),
    "data criteo": ("files --output,-o --overwrite", "train.txt"),
    "demo": ("--epochs --output,-o --rows", "torchrec demo"),
    "info": ("--operators", "torchrec info"),
}


def _commands(group: object, prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        if hasattr(command, "commands"):
            found |= _commands(command, f"{prefix}{name} ")
        else:
            found[prefix + name] = command
    return found


def test_names_and_flags_are_frozen() -> None:
    root = typer.main.get_command(application())
    found = {}
    for name, command in _commands(root).items():
        flags = [
            ",".join(sorted(one.opts)) if one.param_type_name == "option" else one.name
            for one in command.params  # type: ignore[attr-defined]
        ]
        found[name] = " ".join(sorted(flags, key=lambda flag: (flag.startswith("-"), flag)))
    assert found == {name: flags for name, (flags, _) in FROZEN.items()}


@pytest.mark.parametrize("name", FROZEN)
def test_help_teaches(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*name.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert f"$ torchrec {name}" in text
    assert FROZEN[name][1] in " ".join(text.split())


def test_help_of_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["-h"]) == 0
    text = capsys.readouterr().out
    for name in (
        "init",
        "train",
        "evaluate",
        "predict",
        "quantize",
        "export",
        "parity",
        "serve",
        "recommend",
        "report",
        "compare",
        "plan",
        "data",
        "demo",
        "info",
    ):
        assert f" {name} " in text


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["trian"], "No such command 'trian'. Did you mean 'train'? See `torchrec --help`."),
        (
            ["train"],
            "`EXPERIMENT` should be the experiment file, unless with --from. Received none.",
        ),
        (["report", "x", "--foo"], "No such option: --foo. See `torchrec report --help`."),
        (["report", "no/run"], "'no/run' should be the folder of a run. Received no such folder."),
        (["data", "criteo", "no.txt"], "'no.txt' should be a file of the raw Criteo log."),
        (["data", "synthetic", "--rows", "0"], "Invalid value for '--rows'"),
        (["data", "synthetic", "--valid", "0.9", "--test", "0.2"], "sum to less than 1"),
        (["init", "no.parquet", "--label", "click"], "Data file 'no.parquet' should exist."),
        (["train", "no.yaml"], "no.yaml"),
        (["evaluate", "no", "x.parquet"], "no"),
        (
            ["predict", "no", "x.parquet", "-o", "x.txt"],
            "should end in '.parquet', '.csv' or '.tsv'",
        ),
    ],
    ids=lambda value: "-".join(value[:2]) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line(
    arguments: list[str],
    line: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == cli.MISTAKE == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("torchrec: ")
    assert captured.err.count("\n") == 1
    assert line in captured.err
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["--debug", "report", "x"], ["report", "x", "--debug"]])
def test_debug_shows_the_traceback(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == cli.MISTAKE
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1].startswith("ValueError: ")
    assert lines[-1].endswith("Received no such folder.")


@pytest.mark.parametrize(
    "arguments",
    [
        ["synthetic", "-o", "{}", "--rows", "1000"],
        ["synthetic", "-o", "{}/test.parquet", "--rows", "1000"],
        ["movielens", "no", "-o", "{}/test.parquet"],
        ["criteo", "no.txt", "-o", "{}/test.parquet"],
    ],
    ids=lambda arguments: "-".join(arguments[:3]),
)
def test_data_are_not_written_over(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "test.parquet"
    file.write_text("mine")
    command = ["data", *(argument.format(tmp_path) for argument in arguments)]
    assert cli.main(command) == 2
    message = f"`--output` should be new. Received '{file}', which exists: --overwrite replaces it."
    assert capsys.readouterr().err == f"torchrec: {message}\n"
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]
    assert cli.main([*command, "--overwrite"]) == (0 if "synthetic" in command else 2)
    assert (file.read_bytes()[:4] == b"PAR1") == ("synthetic" in command)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("rowwise 0.")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=lambda value: str(value)
)
@pytest.mark.parametrize(
    ("step", "left"),
    [
        (None, "stopped before the first checkpoint; `--resume` begins anew."),
        (1200, "stopped; `--resume` goes on from step 1,200, the last checkpoint."),
    ],
    ids=["no-checkpoint", "checkpoint"],
)
def test_training_says_what_is_left_when_it_is_stopped(
    number: int,
    code: int,
    step: int | None,
    left: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def stop(_: object, folder: Path, **__: object) -> None:
        if step is not None:
            (folder / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
        signal.raise_signal(number)

    monkeypatch.setattr("torchrec.training.run.run_experiment", stop)
    before = [signal.signal(signal.SIGINT, signal.default_int_handler)]
    before.append(signal.getsignal(signal.SIGTERM))
    file, folder = tmp_path / "x.yaml", tmp_path / "run"
    file.write_text("data: {train: clicks.parquet, label: click}")
    try:
        assert cli.main(["train", str(file), "-o", str(folder)]) == code
        assert signal.getsignal(signal.SIGTERM) is before[1]
    finally:
        signal.signal(signal.SIGINT, before[0])
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", f"torchrec: {left}\n")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "stopped."),
        (RuntimeError("odd\nthing"), 1, "RuntimeError: odd thing (run again with --debug"),
        (ValueError(), 2, "ValueError"),
        (MemoryError(), 2, "not enough memory"),
        (OSError(28, "No space left on device", "out"), 2, "'out': No space left on device."),
        (ImportError("No module named 'jinja2'", name="jinja2"), 2, "pip install 'rowwise[train]'"),
        (BrokenPipeError(), 0, ""),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_errors_have_codes(
    error: BaseException,
    code: int,
    line: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("torchrec.report.write_report", fail)
    monkeypatch.setattr("os.dup2", lambda *_: None)
    assert cli.main(["report", "x"]) == code
    captured = capfd.readouterr().err.strip()
    assert line in captured
    assert captured.count("\n") == 0


def test_it_is_a_module_and_leaves_extras_alone_until_needed() -> None:
    code = "import sys, rowwise.cli; print({'typer', 'rich', 'pyarrow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
    done = subprocess.run(
        [sys.executable, "-m", "torchrec", "report", "/nothing"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("torchrec: '/nothing' should be the folder of a run.")


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "--operators"]) == 0
    text = capsys.readouterr().out
    for word in (
        "rowwise",
        "torch",
        "instruction set",
        "threads",
        "devices",
        "cpu",
        "embedding_bag",
    ):
        assert word in text
