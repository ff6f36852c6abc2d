"""``torchrec plan``: what it prints and writes of an experiment, for ranks that are not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rowwise import cli
from tests.distributed.planner.test_calibrate import RATES
from torchrec.distributed.planner.types import Calibration
from torchrec.distributed.sharding_plan import plan_digest, plan_from_json

pytestmark = pytest.mark.once


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    rows = "".join(f"{i % 50},{i % 7},{i % 2}\n" for i in range(400))
    (tmp_path / "clicks.csv").write_text(f"user,item,click\n{rows}")
    path = tmp_path / "small.yaml"
    path.write_text(
        "data: {train: clicks.csv, label: click}\n"
        "features: {user: {type: sparse}, item: {type: sparse}}\n"
        "model: {name: dlrm, dim: 16}\n"
        "training: {batch_size: 64}\n"
    )
    return path


def test_it_says_where_tables_would_be(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, page = tmp_path / "plan.json", tmp_path / "plan.html"
    arguments = [
        "plan",
        str(experiment),
        "--world-size",
        "3",
        "-o",
        str(output),
        "--html",
        str(page),
    ]
    assert cli.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("3 ranks, cpu, 22 samples each: a step takes")
    assert "for tables, 0.4 ms of it messages (rates from" in lines[0]
    assert {line.split()[0] for line in lines if line.split()[1:3] == ["50", "16"]} == set()
    tables = {line.split()[0] for line in lines if "table_wise" in line or "row_wise" in line}
    assert tables == {"user", "item"}
    plan = plan_from_json(output.read_text())
    assert json.loads(output.read_text())["digest"] == plan_digest(plan)
    assert "<h1>small</h1>" in page.read_text("utf-8")


def test_rates_devices_and_keys_count(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = tmp_path / "rates.json"
    rates.write_text(RATES.to_json())
    assert cli.main(["plan", str(experiment), "training.batch_size=32", "--rates", str(rates)]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("2 ranks, cpu, 16 samples each")
    assert "(measured rates)" in first
    arguments = ["plan", str(experiment), "--device", "h100", "--world-size", "16"]
    assert cli.main([*arguments, "--ranks-a-host", "4"]) == 0
    assert capsys.readouterr().out.startswith("16 ranks, cuda")


def test_keys_of_the_section_count(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rates.json").write_text(RATES.to_json())
    with experiment.open("a") as file:
        file.write("distributed: {rates: rates.json, plan: plan.json}\n")  # beside the file
    assert cli.main(["plan", str(experiment)]) == 0
    lines = capsys.readouterr().out.splitlines()
    plan = tmp_path / "plan.json"
    assert lines[0] == f"What `distributed.plan` auto finds, not the plan of {plan}:"
    assert "(measured rates)" in lines[1]
    assert cli.main(["plan", str(experiment), "--rates", str(experiment)]) == 2  # which comes first
    assert cli.main(["plan", str(experiment), "--device", "h100", "-o", str(plan)]) == 0
    assert plan_from_json(plan.read_text()).world_size == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "tpu"], "`device` should be one of cpu, v100"),
        (["--device", "h100", "--rates", "RATES"], "`rates` should be measured on the device"),
        (["--rates", "EXPERIMENT"], "small.yaml': A calibration should be JSON"),
        (["--processor-time"], "`--processor-time` should be given to `torchrec plan calibrate`"),
        (["--memory", "inf"], "Invalid value for '--memory'"),
        (["--memory", "nan"], "Invalid value for '--memory'"),
        (["-o", "EXPERIMENT"], "`--output` should be a file of its own. Received"),
        (["-o", "DATA"], "clicks.csv', a file that is read."),
        (["--html", "RATES", "--rates", "RATES"], "rates.json', a file that is read."),
        (["-o", "x.out", "--html", "./x.out"], "Received 'x.out', that of `--output`."),
        (["-o", "DATA/plan.json"], "plan.json"),
        (["--html", "."], "'.': Is a directory."),
        (["--memory", "0.001", "model.dim=4096"], "Rank 0 should have memory left for tables"),
    ],
    ids=[
        *("device", "rates", "file", "clock", "infinite", "no number"),
        *("experiment", "data", "read", "same", "no folder", "folder", "memory"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str],
    message: str,
    experiment: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rates = tmp_path / "rates.json"
    rates.write_text(RATES.to_json())
    data = experiment.with_name("clicks.csv")
    places = {"RATES": str(rates), "EXPERIMENT": str(experiment), "DATA": str(data)}
    given = [
        "/".join([places.get(first, first), *rest])
        for first, *rest in (argument.split("/") for argument in arguments)
    ]
    assert cli.main(["plan", str(experiment), *given]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"clicks.csv", "rates.json", "small.yaml"}
    assert rates.read_text() == RATES.to_json()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["foo=3", "--device", "h100"], "Received KEY=VALUE foo=3, --device h100."),
        (["--html", "x", "--rates", "r"], "Received --rates r, --html x."),
        (["--memory", "2", "--ranks-a-host", "4"], "Received --ranks-a-host 4, --memory 2.0."),
        (["--world-size", "1"], "`--world-size` should be 2 or more for `torchrec plan calibrate`"),
        (["-o", "."], "'.': Is a directory."),
        (["-o", "/dev/null/rates.json"], "'/dev/null/rates.json': "),
    ],
    ids=["keys", "page", "memory", "ranks", "folder", "no folder"],
)
def test_a_calibration_that_cannot_be_does_not_begin(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("torchrec.distributed.planner.calibrate.calibrate", None)
    assert cli.main(["plan", "calibrate", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_clock_of_a_calibration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[tuple[list[int], bool]] = []

    def calibrate(sizes: list[int], processor_time: bool) -> Calibration:
        given.append((sizes, processor_time))
        return RATES

    monkeypatch.setattr("torchrec.distributed.planner.calibrate.calibrate", calibrate)
    arguments = ["plan", "calibrate", "--world-size", "4", "-o", str(tmp_path / "rates.json")]
    assert cli.main([*arguments, "--processor-time"]) == 0
    assert Calibration.from_json((tmp_path / "rates.json").read_text()) == RATES
    assert cli.main(arguments) == 0
    assert given == [([2, 4], True), ([2, 4], False)]
    assert "a test: the rates are in" in capsys.readouterr().out
