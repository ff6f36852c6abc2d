from __future__ import annotations

import importlib.util
import json
import math
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest

from torchrec.experiment.schema import Experiment
from torchrec.report import write_report
from torchrec.report.charts import Axis, Chart, Series, line_chart, stacked_chart, thin
from torchrec.report.configuration import keys_of
from torchrec.report.scale import Scale, duration, extent, memory, short
from torchrec.runs import read_run

pytestmark = pytest.mark.once

# The tests run with importlib, which puts no folder on the path.
_spec = importlib.util.spec_from_file_location("fake_run", Path(__file__).parent / "fake_run.py")
assert _spec is not None
assert _spec.loader is not None
_fake_run = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_fake_run)
write_fake_run = _fake_run.write_fake_run

_VOID = {"meta", "link", "br", "hr", "img", "input"}


class _Page(HTMLParser):
    """Checks that tags nest, and collects the text a person sees."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.titles: list[str] = []
        self.feed(text)
        assert self.open == []
        self.text = " ".join(" ".join(self.seen).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            assert name not in ("src", "href", "onclick"), f"{tag} {name}={value}"
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.seen.append(data)
            if self.open[-1] in ("h2", "h3"):
                self.titles.append(data)


def _page(folder: Path) -> _Page:
    return _Page(write_report(folder).read_text("utf-8"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder: Path = write_fake_run(tmp_path / "my run <1>")
    return folder


def test_page_shows_all_of_a_run(run: Path) -> None:
    page = _page(run)
    assert page.titles == [
        "On the test data",
        "What came of it",
        "Result",
        "How it learned",
        "AUC",
        "Normalised entropy",
        "Loss",
        "What it predicts",
        "Calibration",
        "Scores",
        "How fast it was",
        "Learning rate",
        "Samples per second",
        "Where the time goes",
        "Counted on the way",
        "What it holds",
        "Embedding tables",
        "How it was made",
        "Configuration",
    ]
    for text in (
        "my run <1>",
        "model dlrm_dcn",
        "time 1 min 37 s",
        "AUC 0.8177 train 0.8251 valid 0.8142",
        "optimizer 23%",
        "price: missing 307,200",
        "dead rows",
        "batch_size: 1024",
    ):
        assert text in page.text


def test_page_needs_no_network(run: Path) -> None:
    text = write_report(run).read_text("utf-8")
    assert re.findall(r"https?://|@import|url\(", text) == []


def test_charts_are_well_formed(run: Path) -> None:
    text = write_report(run).read_text("utf-8")
    drawings = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(drawings) == 8
    for drawing in drawings:
        root = ET.fromstring(drawing)
        _, _, width, height = map(float, root.attrib["viewBox"].split())
        for path in root.iter("path"):
            numbers = [float(n) for n in re.findall(r"-?[\d.]+", path.attrib["d"])]
            assert all(-1 <= n <= max(width, height) + 1 for n in numbers)
        points = json.loads(root.attrib["data-hover"])
        assert all(0 <= x <= width and label and rows for x, label, rows in points)


def test_names_are_escaped(run: Path) -> None:
    (run / "experiment.yaml").write_text("# <script>alert(1)</script>")
    assert "<script>alert(1)" not in write_report(run).read_text("utf-8")
    assert "<1>" not in write_report(run).read_text("utf-8")


def test_a_report_elsewhere(run: Path, tmp_path: Path) -> None:
    assert write_report(run, tmp_path / "page.html") == tmp_path / "page.html"
    assert not (run / "report.html").exists()
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_one_line_of_metrics(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 50, "samples": 51200, "loss": 0.5}\n')
    page = _page(tmp_path)
    assert page.titles == ["How it learned", "Loss", "How fast it was", "Counted on the way"]
    assert "This run has not ended" in page.text


def test_nothing_measured_yet(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    assert "Nothing has been measured yet." in _page(tmp_path).text


def test_a_result_alone(run: Path) -> None:
    for name in ("metrics.jsonl", "report.json", "experiment.yaml"):
        (run / name).unlink()
    page = _page(run)
    assert "AUC 0.8177" in page.text
    assert "peak memory 869.8 MiB" in page.text


def test_weights_of_an_earlier_step_are_said(run: Path) -> None:
    assert "weights of step" not in _page(run).text
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps({**result, "best_step": 50}))
    assert "weights of step 50, the best on valid" in _page(run).text


def test_values_that_are_not_numbers(tmp_path: Path) -> None:
    lines = [
        {"step": n, "samples": n, "split": "train", "auc": None, "loss": loss, "ne": math.nan}
        for n, loss in enumerate([0.7, math.nan, math.inf, 0.5, 0.4])
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "result.json").write_text(
        '{"train": {}, "test": {"auc": NaN, "ne": 0.9}, "seconds": 1, "samples_per_second": 2}'
    )
    page = _page(tmp_path)
    assert "Loss" in page.titles
    assert {"AUC", "Normalised entropy"}.isdisjoint(page.titles)
    assert "nan" not in page.text.lower()


def test_five_hundred_tables(tmp_path: Path) -> None:
    page = _page(write_fake_run(tmp_path / "wide", tables=500))
    assert "500 in all" in page.text
    assert "488 more" in page.text
    assert "t499" in page.text


def test_a_run_that_was_cut_off_while_it_wrote(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99999, "spl')
    with pytest.raises(ValueError, match=r"metrics\.jsonl' .* line 127"):
        read_run(run)  # of a run that has ended, no line is still being written
    (run / "result.json").unlink()
    assert read_run(run).lines[-1].step == 6_000


def test_of_repeated_steps_the_last_holds(tmp_path: Path) -> None:
    lines = [{"step": 1, "auc": 0.1}, {"step": 2, "auc": 0.2}, {"step": 1, "auc": 0.3}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_run(tmp_path).series("train", "auc") == ([1.0, 2.0], [0.3, 0.2])


@pytest.mark.parametrize(
    ("file", "text", "match"),
    [
        ("metrics.jsonl", "{\n{}\n", r"metrics\.jsonl' should be .* damaged: line 1: Expecting"),
        ("result.json", "{", r"result\.json' should be as it was written\. It is damaged: Exp"),
        ("result.json", "{}", r"damaged: \['samples_per_second', 'seconds', 'train'\] is missing"),
        (
            "report.json",
            "[]",
            r"report\.json' should be .* it should be a JSON object, and is list",
        ),
    ],
)
def test_damaged_files_are_named(run: Path, file: str, text: str, match: str) -> None:
    (run / file).write_text(text)
    with pytest.raises(ValueError, match=match):
        write_report(run)
    assert not (run / "report.html").exists()


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Received a folder without them"):
        write_report(tmp_path)
    with pytest.raises(ValueError, match="Received no such folder"):
        write_report(tmp_path / "nothing")


def test_lines_have_gaps_where_values_lack() -> None:
    line = Series("a", "train", [0.0, 1.0, 2.0, 3.0], [1.0, 2.0, math.nan, 4.0])
    chart = line_chart("t", "", [line], x=Axis(), y=Axis())
    assert isinstance(chart, Chart)
    assert re.search(r'class="line train" d="M[^ML]*L[^ML]*M[^ML]*"', chart.svg)


def test_nothing_to_draw() -> None:
    nan = Series("a", "train", [0.0], [math.nan])
    assert line_chart("t", "", [nan], x=Axis(), y=Axis()) is None
    assert stacked_chart("t", "", [], x=Axis(), y=Axis()) is None


def test_shares_that_overshoot_stay_inside(tmp_path: Path) -> None:
    time = {"reading": 0.9, "lookup": 0.3}
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"samples": 5, "time": time}) + "\n")
    assert "reading 75%" in _page(tmp_path).text
    assert "lookup 25%" in _page(tmp_path).text


def test_constant_values_are_drawn() -> None:
    line = Series("a", "train", [5.0, 5.0], [0.0, 0.0])
    chart = line_chart("t", "", [line], x=Axis(), y=Axis())
    assert chart is not None
    assert "nan" not in chart.svg


def test_thinning_keeps_means_and_the_end() -> None:
    thinned = thin(Series("a", "train", list(range(10_000)), [float(n) for n in range(10_000)]))
    assert len(thinned.x) <= 300
    assert thinned.x[-1] == 9_999
    assert sum(thinned.y) / len(thinned.y) == pytest.approx(5_000, rel=0.01)


@pytest.mark.parametrize("span", [1e-6, 0.003, 1, 7, 1234.5, 3e9])
def test_ticks_are_few_round_and_inside(span: float) -> None:
    scale = Scale(0.37 * span, 1.37 * span, 0, 1)
    ticks = scale.ticks(5)
    assert 2 <= len(ticks) <= 7
    assert all(scale.low <= tick <= scale.high for tick in ticks)
    assert len({short(tick) for tick in ticks}) == len(ticks)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (short(999_999.0), "1M"),
        (short(12_300.0), "12.3k"),
        (short(-0.25), "-0.25"),
        (short(5e-5), "5e-5"),
        (memory(1 << 40), "1.0 TiB"),
        (duration(59.96), "60.0 s"),
        (duration(3600), "1 h 0 min"),
        (str(extent([2.0, 2.0])), "(1.0, 3.0)"),
    ],
)
def test_numbers_are_short(text: str, expected: str) -> None:
    assert text == expected


@pytest.mark.skipif(not shutil.which("node"), reason="needs node")
def test_script_parses() -> None:
    script = Path(_fake_run.__file__).parents[2] / "torchrec" / "report" / "page.js"
    subprocess.run(["node", "--check", script], check=True)


def test_a_value_that_is_blank_is_written_out() -> None:
    data = {"train": "/a.txt", "label": "y", "delimiter": "\t"}
    found = keys_of(Experiment.model_validate({"data": data}), changed=True)
    assert (found["data.delimiter"], found["data.label"]) == ('"\\t"', "y")
