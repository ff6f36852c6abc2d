"""The page in a browser: its form is made of the features, and what it shows is the prediction."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import urlencode

import pytest

from tests.serve import clicks
from tests.serve.process import serving
from torchrec.inference import load

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.once,
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="needs a browser"),
]


def seen(url: str, profile: Path) -> str:
    """Return what a browser has made of a page, once nothing is under way any more."""
    assert BROWSER is not None
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
    command = [BROWSER, *options, "--virtual-time-budget=10000", "--dump-dom", url]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout


def cells(page: str) -> dict[str, str]:
    """Return the rows of the result."""
    return dict(re.findall(r"<tr><th>(.*?)</th><td>(.*?)</td></tr>", page))


def test_a_link_fills_the_form_and_asks(tmp_path: Path) -> None:
    one = clicks.save(tmp_path / "clicks" / "model")
    clicks.save(tmp_path / "tasks" / "model", tasks=True)
    with serving(str(tmp_path / "clicks"), str(tmp_path / "tasks"), log=tmp_path / "log") as (
        url,
        _,
    ):
        values = {"user": "user-3", "shop": "7", "price": "2.5", "tags": "tag-1, tag-2"}
        page = seen(f"{url}/#{urlencode({'model': 'clicks', **values})}", tmp_path / "profile")
        assert re.findall(r'<input id="column (\w+)"', page) == list(values)
        row = {"user": "user-3", "shop": 7, "price": 2.5, "tags": ["tag-1", "tag-2"]}
        expected = float(load(one).predict([row])[0])
        assert float(cells(page)["probability"]) == pytest.approx(expected, rel=1e-5)
        assert "curl " in page
        assert '"tags": ["tag-1", "tag-2"]' in html.unescape(page)

        page = seen(f"{url}/#model=tasks&user=&shop=3", tmp_path / "profile")
        assert list(cells(page)) == ["click", "stars 0", "stars 1", "stars 2", "version", "request"]

        page = seen(f"{url}/#model=clicks&shop=99", tmp_path / "profile")
        error = re.findall(r'<p id="error" role="alert">(.*?)</p>', page)
        assert "Ids of feature 'shop' should be in [0, 20)" in html.unescape(error[0])
        assert cells(page) == {}
