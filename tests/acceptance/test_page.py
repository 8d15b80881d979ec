"""The status page in a real browser."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from brokers import Broker
from daemons import App, running, settings_for

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture
def page() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    from playwright.sync_api import sync_playwright

    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=quiet)
        yield browser.new_page(viewport={"width": 1200, "height": 1000})
        browser.close()


def test_the_page_tells_what_the_daemon_knows(tansu: Broker, tmp_path: Path, page: Any) -> None:
    settings = settings_for(tansu, tmp_path, windows={"minimum_rows": 40, "current_events": 60})
    settings["schedule"]["drift_seconds"] = 1.0
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    with running(tmp_path, settings) as daemon:
        page.goto(daemon.url)
        assert "No event has arrived yet." in page.inner_text("body")
        app = App(settings)
        for number in range(160):
            # A name that would be a script, were it not escaped.
            asked = f"Is <script>document.title='owned'</script> number {number} in stock?"
            interaction = app.answered(asked, "It is in stock.", workload="shop & <b>more</b>")
            app.said(interaction, "helpful", number % 4 != 0)
        app.flush()
        app.close()
        name = "shop & <b>more</b>"
        daemon.until(lambda: daemon.workload(name) and daemon.workload(name)["quality"], "figures")
        daemon.until(lambda: [c for c in daemon.workload(name)["drift"] if c["report"]], "drift report", 60)
        page.goto(daemon.url)
        text = page.inner_text("body")
        assert name in text
        assert f"{name}@base" in text
        assert "160 interactions" in text
        assert "helpful rate" in text
        assert "no reason to retrain" in text
        assert page.title() == "retuned"
        # The report opens from the page, whole, and asks nobody else for anything.
        asked_for: list[str] = []
        page.on("request", lambda request: asked_for.append(request.url))
        page.click("text=report >> nth=0")
        page.wait_for_load_state("load")
        assert "/reports/" in page.url
        assert all(url.startswith((daemon.url, "data:", "blob:")) for url in asked_for)
    assert problems == []
