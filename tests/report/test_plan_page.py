"""The page of a plan: one file with everything in it, names as they are, and what it says of ranks and tables."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.distributed.planner.test_changes import model, plan
from torchrec.distributed.planner import ParameterConstraints
from torchrec.distributed.types import ShardingPlan
from torchrec.report.plan_page import render_plan, write_plan

pytestmark = pytest.mark.once

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


def test_the_page_has_all_ranks_and_tables(tmp_path):
    made = plan(model(a=(1000, 64), b=(10, 4)), 3, 10**9)
    path = write_plan(made, tmp_path / "plan.html", "small")
    text = path.read_text("utf-8")
    assert made.report is not None
    assert "<h1>small</h1>" in text
    assert "No plan is better." in text
    assert made.report.made_from[:12] in text
    for rank in range(3):
        assert f"rank {rank}: looks up and updates" in text
    for table in made.report.tables:
        for rank in set(table.ranks):
            assert f"{table.table} on rank {rank}, {table.sharding_type}" in text
    cells = len(re.findall('class="held"', text))
    assert cells == sum(len(set(table.ranks)) for table in made.report.tables)


def test_the_page_needs_no_network():
    text = render_plan(plan(model(a=(1000, 64)), 2, 10**9))
    assert not re.findall(r'(?:src|href)="|@import|url\(|https?://(?!www\.w3\.org)', text)
    assert "prefers-color-scheme: dark" in text


def test_names_are_not_read_as_html():
    wishes = {"<b>a</b>": ParameterConstraints(ranks=[0], sharding_types=["table_wise"])}
    text = render_plan(plan(model(**{"<b>a</b>": (10, 4)}), 2, 10**9, wishes), "<i>")
    assert "<b>a</b>" not in text
    assert "&lt;b&gt;a&lt;/b&gt; on rank 0" in text
    assert "<h1>&lt;i&gt;</h1>" in text


def test_bars_are_shares_of_the_slowest_and_of_the_memory():
    wishes = {"a": ParameterConstraints(sharding_types=["table_wise"], ranks=[0])}
    made = plan(model(a=(1000, 64)), 2, 10**6, wishes)
    assert made.report is not None
    first = made.report.ranks[0]
    text = render_plan(made)
    widths = [float(width) for width in re.findall(r'style="width:([\d.]+)%"', text)]
    assert widths[0] + widths[1] == pytest.approx(100, abs=0.02)
    assert widths[2] == pytest.approx(100 * first.num_bytes / 10**6, abs=0.01)
    second = made.report.ranks[1]  # which has its own batch alone
    assert widths[3:] == [0, 0, round(100 * second.num_bytes / 10**6, 2)]
    assert 0 < widths[5] < 1
    assert f"{first.num_bytes / 10**6:.0%}" in text
    assert "of it messages" in text


def test_a_plan_made_by_hand_has_no_page():
    with pytest.raises(ValueError, match=r"`plan` should be made by a planner. Received one.*hand"):
        render_plan(ShardingPlan({}))


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs a browser")
@pytest.mark.parametrize(("width", "scheme"), [(500, "dark"), (1280, "light")])
def test_a_browser_shows_all_cards_within_its_width(
    tmp_path: Path, width: int, scheme: str
) -> None:
    tables = model(**{f"a_table_of_a_long_name_{t}": (1000 + t, 64) for t in range(8)})
    page = write_plan(plan(tables, 32, 10**9), tmp_path / "plan.html")
    measure = """<script>
      const wide = [...document.querySelectorAll(".card, .tile")].map(
        (one) => one.getBoundingClientRect().right);
      const bars = [...document.querySelectorAll(".bar i")].map((one) => one.getBoundingClientRect().width);
      const ink = getComputedStyle(document.body).color;
      document.title = JSON.stringify([Math.max(...wide), document.body.scrollWidth, Math.max(...bars), ink]);
    </script></body>"""
    page.write_text(page.read_text("utf-8").replace("</body>", measure), "utf-8")
    command = [
        *(str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--window-size={width},1000",
        f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}",
        f"file://{page}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    title = re.search("<title>(.*?)</title>", done.stdout)
    assert title is not None
    right, scrolled, bar, ink = json.loads(title[1])
    assert 0 < right <= width
    assert scrolled <= width
    assert bar > 20
    assert (int(re.findall(r"\d+", ink)[0]) > 128) == (scheme == "dark")
