"""Takes the pictures of the console: those that the documentation shows, and every page to look at.

    make pictures

Shows what `make demo` left in build/demo, as of its end, and the overview, the inbox and an approval of a company with
many workloads, whose history is written by SQL. The pages to look at are in build/pictures: wide and narrow, light and
dark.
"""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from playwright.sync_api import Browser, Page, sync_playwright

from fixtures.daemon.doors import FakeDaemon
from fixtures.worlds.fleet import fill
from retuned.consumers.warehouse.connection import utc_now
from retuned.daemon.operations.local import Local, opened
from retuned.daemon.settings import Settings, load
from retuned.daemon.web.routes import application
from retuned.daemon.web.server import Server

ROOT = Path(__file__).parents[1]
IMAGES, ALL = ROOT / "docs" / "images", ROOT / "build" / "pictures"
WIDE, NARROW = {"width": 1200, "height": 760}, {"width": 400, "height": 800}
DEMO = {
    "workload": "/workloads/support?range=1d",
    "rows": "/workloads/support/rows",
    "datasets": "/workloads/support/datasets",
    "memory": "/workloads/support/memory",
    "answers": "/answers?workload=support",
    "system": "/system",
    "version": "/workloads/support a[href*='/versions/']",
    "interaction": "/answers a[href*='/interactions/']",
    "mine": "/teach/mine",
    "erasures": "/erasures",
    "missing": "/workloads/nothing",
}
"""Pages of the demo: a path, and the selector of a link on that page where it is the page behind it that is shown."""
COMPANY = {"overview": "/", "teach": "/teach", "approval": "/ .todo a:text('Review')"}
SHOWN = {"workload", *COMPANY}
"""Those in the documentation."""


@contextmanager
def served(settings: Settings, now: datetime | None = None, fills: bool = False) -> Iterator[str]:
    """The URL of the console on a warehouse, at a time; None: that of the last event."""
    with opened(settings) as local:
        local.jobs.context.now = lambda: at
        at = now or last_event(local)
        if fills:
            fill(local.warehouse, at, workloads=12, events=24_000)
        server = Server(application(local, cast(Any, FakeDaemon()), settings), settings.http)
        server.start()
        try:
            yield server.url
        finally:
            server.stop()


def last_event(local: Local) -> datetime:
    ((last,),) = [row.values() for row in local.warehouse.rows("SELECT max(timestamp) AS last FROM interactions")]
    return cast(datetime, last)


def copied(demo: Path, to: Path) -> Settings:
    """The settings of a demo, whose files are copied."""
    shutil.copytree(demo / "data", to / "data")
    found = load(demo / "retuned.yaml")
    base = found.models.base and Path(found.models.base.name)  # a picture shows no path of this machine
    return found.model_copy(
        update={
            "warehouse": found.warehouse.model_copy(update={"path": to / "data" / "retuned.duckdb"}),
            "models": found.models.model_copy(update={"base": base, "directory": to / "data" / "models"}),
            "http": found.http.model_copy(update={"port": 0}),
        }
    )


def take(browser: Browser, url: str, pages: dict[str, str]) -> None:
    """Every page, in every size and colour."""
    for colour in ("light", "dark"):
        for size, viewport in (("wide", WIDE), ("narrow", NARROW)):
            page = browser.new_page(viewport=viewport, color_scheme=colour)  # type: ignore[arg-type]
            page.set_default_timeout(300_000)
            for name, where in pages.items():
                if open_page(page, url, where):
                    if (wide := page.evaluate("document.documentElement.scrollWidth")) > viewport["width"]:
                        print(f"{name}: {wide} pixels wide in a window of {viewport['width']}")
                    page.screenshot(path=ALL / f"{name}-{size}-{colour}.png", full_page=True)
                    if name in SHOWN and (size, colour) == ("wide", "light"):
                        page.screenshot(path=IMAGES / f"{name}.png")
            page.close()


def open_page(page: Page, url: str, where: str) -> bool:
    """Whether there is such a page."""
    path, _, selector = where.partition(" ")
    page.goto(f"{url}{path}")
    if not selector:
        return True
    links = page.locator(selector)
    if not links.count():
        print(f"no {selector} at {page.url}")
        return False
    page.goto(f"{url}{links.first.get_attribute('href')}")
    return True


def main(demo: str = "build/demo") -> None:
    """Writes the pictures."""
    ALL.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        launched = {"executable_path": shutil.which("chromium"), "args": ["--no-sandbox"]}
        browser = stack.enter_context(sync_playwright()).chromium.launch(**cast(Any, launched))
        company = Settings(
            warehouse={"path": folder / "company.duckdb"}, models={"base": "models/smollm2-135m"}, http={"port": 0}
        )
        take(browser, stack.enter_context(served(company, utc_now(), fills=True)), COMPANY)
        if (Path(demo) / "data" / "retuned.duckdb").exists():
            take(browser, stack.enter_context(served(copied(Path(demo), folder))), DEMO)
        else:
            print(f"{demo}: no demo has left anything there; run make demo")
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
