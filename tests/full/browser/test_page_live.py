"""Open pages while the daemon, its broker or the connection is away."""

from contextlib import closing
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, expect

from fixtures.daemon.daemons import App, running, settings_for
from fixtures.kafka.brokers import Proxy, run_tansu


def test_open_pages_show_what_is_away_and_recover(tmp_path: Path, browser: Browser) -> None:
    way = Proxy()
    with closing(way), run_tansu(tmp_path, behind=way) as tansu:
        settings = settings_for(tansu, tmp_path)
        settings["kafka"]["bootstrap_servers"] = f"127.0.0.1:{way.port}"
        follow(tmp_path, settings, way, browser)


def follow(folder: Path, settings: dict[str, Any], way: Proxy, browser: Browser) -> None:
    with running(folder, settings) as daemon:
        app = App(settings)
        app.said(app.answered("When?", "At 8 am."), "helpful", True)
        app.flush()
        app.close()
        daemon.until(lambda: "support" in daemon.status()["workloads"], "the workload")
        context = browser.new_context()
        overview, workload = context.new_page(), context.new_page()
        overview.goto(daemon.url)
        workload.goto(f"{daemon.url}/workloads/support")
        pages = (overview, workload)
        for page in pages:
            expect(page.locator("[data-lost]")).to_be_hidden()
        way.refuses = True
        way.cut()
        for page in pages:
            expect(page.locator("#live")).to_contain_text("Events stopped: the broker does not answer", timeout=60_000)
        way.refuses = False
        for page in pages:
            expect(page.locator("#live")).not_to_contain_text("Events stopped", timeout=60_000)
        daemon.stop()
        for page in pages:
            expect(page.locator("[data-lost]")).to_be_visible(timeout=20_000)
        daemon.start()
        for page in pages:
            expect(page.locator("[data-lost]")).to_be_hidden(timeout=20_000)
        context.close()
