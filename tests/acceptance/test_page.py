"""The status page in a real browser."""

import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from brokers import Broker
from daemons import App, running, settings_for
from models import tiny_llama
from playwright.sync_api import Page, expect, sync_playwright
from teaching import Teacher

from retuned.consumers.warehouse.connection import utc_now
from retuned.daemon.service import opened
from retuned.daemon.settings import Settings
from retuned.retrain.release import approve, registry

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture
def page() -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=quiet)
        yield browser.new_page(viewport={"width": 1200, "height": 1000})
        browser.close()


def test_a_person_approves_on_the_page_what_the_gate_passed(tansu: Broker, tmp_path: Path, page: Page) -> None:
    settings = settings_for(tansu, tmp_path)
    with opened(Settings.model_validate(settings)) as local:
        Teacher(local.warehouse).ask("where is my parcel", "here")
        models = local.settings.models.directory
        for name, text in (("adapter_config.json", "{}"), ("adapter_model.safetensors", "weights")):
            (tmp_path / "adapter").mkdir(exist_ok=True)
            (tmp_path / "adapter" / name).write_text(text)
        version = registry.register(
            local.warehouse, models, "support", tmp_path / "adapter", base_model=tiny_llama(tmp_path / "base"),
            parent_version=None, dataset_version="d", run_id="r", details={}, now=utc_now(),
        ).version  # fmt: skip
        approve.request(local.jobs.context.rollout, "support", version, None, "r", utc_now())
        local.warehouse.insert(
            "decisions", id="r-gate", created_at=utc_now(), workload="support", kind="gate", outcome=True,
            reasons='["The candidate scores 0.912."]', figures="{}", run_id="r",
        )  # fmt: skip
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    with running(tmp_path, settings) as daemon:
        page.goto(daemon.url)
        body = expect(page.locator("body"))
        body.to_contain_text(f"support@{version} waits for approval")
        body.to_contain_text("The candidate scores 0.912.")
        page.click("text=Approve…")
        page.click("text=Decide later")
        page.click("text=Approve…")
        expect(page).to_have_title(f"Approval of support@{version}")
        page.click("button")  # the browser asks for the reason
        assert daemon.workload()["champion"] is None
        page.fill("textarea", "the answers on parcels are right")
        page.click(f"text=Approve support@{version}")
        body.to_contain_text("Approved by an operator")
        body.to_contain_text("the answers on parcels are right")
        assert daemon.workload()["champion"] == version
        page.goto(daemon.url)
        body.to_contain_text("approved by an operator")
        body.not_to_contain_text("waits for approval")
        body.to_contain_text("by approver")
        assert daemon.metric("retuned_approvals_waiting", workload="support") == 0
        daemon.stop(signal.SIGKILL)
        daemon.start()
        assert daemon.workload()["champion"] == version
        (change,) = daemon.workload()["promotions"]
        assert change["actor"] == "approver"
    assert problems == []


def test_the_page_tells_what_the_daemon_knows(tansu: Broker, tmp_path: Path, page: Page) -> None:
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
        # The page loads itself anew every few seconds. Each line below waits and tries again, since a load of its own
        # may come between any two of them.
        body = expect(page.locator("body"))
        for text in (name, f"{name}@base", "160 interactions", "helpful rate", "no reason to retrain"):
            body.to_contain_text(text, timeout=30_000)
        expect(page).to_have_title("retuned")
        # The report opens from the page, whole, and asks nobody else for anything.
        asked_for: list[str] = []
        page.on("request", lambda request: asked_for.append(request.url))
        page.click("text=report >> nth=0")
        expect(page).to_have_url(re.compile("/reports/"), timeout=30_000)
        page.wait_for_load_state("load")
        expect(page).to_have_title(re.compile(r"^Drift of shop & <b>more</b>, checked 20\d\d-"))
        expect(page.locator("body")).to_contain_text("Drift of shop & <b>more</b>")
        page.click("text=retuned >> nth=0")
        expect(page).to_have_title("retuned", timeout=30_000)
        assert all(url.startswith((daemon.url, "data:", "blob:")) for url in asked_for)
    assert problems == []
