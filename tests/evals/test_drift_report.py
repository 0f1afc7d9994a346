"""The HTML report of a look, opened in a browser: it shows itself, and asks nobody for anything."""

from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from evals.drift import look
from evals.drift_plan import DriftPlan
from tests.evals.drift_log import DriftHome, Made

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


@pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="chromium is not installed")
@pytest.mark.slow
def test_a_browser_shows_what_was_found(tmp_path: Path):
    home = DriftHome(tmp_path / "home", plan=DriftPlan(least_rows=200, hours=24 * 30))
    home.add(400)
    home.pin()
    home.add(250, Made(refused=0.4))
    verdict = look(home.watch, home.traffic)
    home.database.close()
    asked: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.goto(Path(verdict.evidence["report"]).as_uri())
        page.get_by_text("Tests", exact=True).first.click()
        page.get_by_text("Value drift for answer_refused: Less or Equal").first.wait_for()
        text = page.inner_text("body")
        browser.close()
    failed = sum(metric.passed is False for metric in verdict.metrics)
    assert "drift:assistant: alert" in text
    assert "answer_refused: share 0." in text
    assert f"{failed}\n\nFAIL" in text or f"{failed}\nFAIL" in text
    assert not [url for url in asked if not url.startswith(("file:", "data:", "blob:"))]
