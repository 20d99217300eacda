"""Pages as a browser shows them: on a narrow screen, stale or not, with hostile words in them. Needs Chromium."""

import html
import json
import re
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from loralight.reports.live import FILE, LivePage

from .kept import compared, make_run, page_of
from .test_live import Clock, trained

EVIL = "<img src=x onerror=\"parent.document.title='run'\"><script>parent.document.title='run'</script>"
NARROW = 360  # pixels of a phone
LOOK = """
<script>addEventListener("load", () => {
  const found = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument, stale = page.getElementById("stale");
    return {
      wide: page.documentElement.scrollWidth, text: page.body.innerText, stale: stale && !stale.hidden,
      pictures: page.querySelectorAll("svg").length,
    };
  });
  const told = document.createElement("pre");
  told.id = "found";
  told.textContent = JSON.stringify({title: document.title, found});
  document.body.append(told);
})</script>
"""


@pytest.fixture(scope="module")
def browser() -> str:
    """Chromium, or a browser of its family."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"none of {', '.join(names)} is installed")
    return found


@pytest.fixture
def seen(browser: str, run_command: Callable[..., CompletedProcess[str]], tmp_path: Path) -> Callable[..., Any]:
    """What a browser has of pages after it has loaded them, each on a narrow screen."""

    def look(*pages: str) -> Any:
        frames = "".join(
            f'<iframe width="{NARROW}" height="700" srcdoc="{html.escape(page)}"></iframe>' for page in pages
        )
        file = tmp_path / "frames.html"
        file.write_text(
            f"<!doctype html><meta charset=utf-8><title>quiet</title><body>{frames}{LOOK}", encoding="utf-8"
        )
        flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        done = run_command([browser, *flags, "--virtual-time-budget=1000", "--dump-dom", file.as_uri()], timeout=120)
        told = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
        assert told is not None, done.stderr[-2000:]
        return json.loads(html.unescape(told[1]))

    return look


def test_pages_fit_a_phone_run_nothing_of_a_stranger_s_and_say_when_they_are_stale(
    seen: Callable[..., Any], tmp_path: Path
) -> None:
    words = f"{EVIL} {'long' * 200}"
    given, right = ["good", "bad", words], ["good", "good", "good"]
    inputs = [f"{words} {row}" for row in range(3)]
    labels = ["bad", "good", words]
    for name, adapter, answers in (("a", "lora", right), ("b", "full", given)):
        make_run(tmp_path / name, answers, right, adapter=adapter, labels=labels, inputs=inputs, accuracy=len(name))
    report = page_of(compared(tmp_path / "a", tmp_path / "b"), tmp_path / "report")
    clock = Clock()
    live = LivePage(tmp_path, title=words, metric="validation/accuracy", clock=clock)
    trained(live, clock, steps=50, seconds=10.0)
    fresh = (tmp_path / FILE).read_text(encoding="utf-8")
    old = (datetime.now(UTC) - timedelta(hours=1)).isoformat(timespec="seconds")
    stale = re.sub(r'datetime="[^"]+"', f'datetime="{old}"', fresh)
    with live:
        pass
    finished = re.sub(r'datetime="[^"]+"', f'datetime="{old}"', (tmp_path / FILE).read_text(encoding="utf-8"))
    told = seen(report, fresh, stale, finished)
    assert told["title"] == "quiet"  # no word of a stranger's was run
    assert [page["stale"] for page in told["found"]] == [None, False, True, False]
    assert all(page["wide"] <= NARROW for page in told["found"]), [page["wide"] for page in told["found"]]
    assert all(EVIL in page["text"] for page in told["found"])
    assert all(page["pictures"] for page in told["found"])
