"""The console in a real browser."""

import re
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, cast, get_args

import pytest
from playwright.sync_api import Browser, Dialog, Page, expect

from fixtures.daemon.daemons import App, running, settings_for
from fixtures.daemon.doors import FakeDaemon
from fixtures.feedback.teaching import Teacher
from fixtures.kafka.brokers import Broker
from fixtures.models.tiny import tiny_llama
from fixtures.worlds.fleet import fill
from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.consumers.warehouse.connection import utc_now
from retuned.daemon.operations.local import opened
from retuned.daemon.roles import Role
from retuned.daemon.settings import Settings
from retuned.daemon.web.principals import add
from retuned.daemon.web.routes import application
from retuned.daemon.web.server import Server
from retuned.retrain.release import approve, registry


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
        body.to_contain_text("A better version waits for approval")
        page.click("text=Review")
        expect(page).to_have_title(f"Approval of support@{version} · retuned")
        body.to_contain_text("The candidate scores 0.912.")
        page.click("text=Put it into service")  # the browser asks for the reason
        assert daemon.workload()["champion"] is None
        page.fill("textarea", "the answers on parcels are right")
        page.click("text=Put it into service")
        body.to_contain_text("Approved by an operator")
        body.to_contain_text("the answers on parcels are right")
        assert daemon.workload()["champion"] == version
        page.goto(f"{daemon.url}/workloads/support")
        body.not_to_contain_text("waits for approval")
        body.to_contain_text("by approver")
        assert daemon.metric("retuned_approvals_waiting", workload="support") == 0
        daemon.stop(signal.SIGKILL)
        daemon.start()
        assert daemon.workload()["champion"] == version
        (change,) = daemon.workload()["promotions"]
        assert change["actor"] == "approver"
    assert problems == []


def test_the_console_follows_what_the_daemon_knows(tansu: Broker, tmp_path: Path, page: Page) -> None:
    settings = settings_for(tansu, tmp_path, windows={"minimum_rows": 40, "current_events": 60})
    settings["schedule"]["drift_seconds"] = 1.0
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    with running(tmp_path, settings) as daemon:
        page.goto(daemon.url)
        body = expect(page.locator("body"))
        body.to_contain_text("No event has arrived yet")
        app = App(settings)
        name = "shop & <b>more</b>"
        for number in range(160):
            # A name that would be a script, were it not escaped.
            asked = f"Is <script>document.title='owned'</script> number {number} in stock?"
            interaction = app.answered(asked, "It is in stock.", workload=name)
            app.said(interaction, "helpful", number % 4 != 0)
        app.flush()
        app.close()
        # The page follows by itself, without a reload.
        body.to_contain_text(name, timeout=60_000)
        daemon.until(lambda: [c for c in daemon.workload(name)["drift"] if c["report"]], "drift report", 60)
        page.click(f"text={name} >> nth=0")
        expect(page).to_have_title(f"{name} · retuned")
        for text in (f"{name}@base", "helpful rate", "Quality", "Money"):
            body.to_contain_text(text, timeout=30_000)
        asked_for: list[str] = []
        page.on("request", lambda request: asked_for.append(request.url))
        page.goto(f"{daemon.url}/answers?text=number+77")
        body.to_contain_text("number 77 in stock?")
        page.goto(f"{daemon.url}/system")
        expect(page.locator("tr", has_text="interactions")).to_contain_text("160")
        assert all(url.startswith((daemon.url, "data:", "blob:")) for url in asked_for)
    assert problems == []


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """The URL of a console of ten workloads with weeks of history, and the token of each role."""
    folder = tmp_path_factory.mktemp("fleet")
    file = folder / "principals.yaml"
    roles: dict[str, Role] = {role: role for role in get_args(Role)} | dict.fromkeys(("ada", "ben", "cleo"), "labeller")
    tokens = {name: add(file, name, role, None, datetime.now(UTC)) for name, role in roles.items()}
    settings = Settings(
        warehouse={"path": folder / "w.duckdb"},
        http={"port": 0, "principals_file": file},
        workloads={"support.*": {"objective": "Answers customers.", "labels": {"opinions": 2}}},
        kafka={"expert_topic": "experts"},
    )
    with opened(settings) as local:
        local.jobs.context.publisher = MemoryPublisher()
        fill(local.warehouse, utc_now(), workloads=10, events=2_000)
        server = Server(application(local, cast(Any, FakeDaemon()), settings), settings.http)
        server.start()
        yield server.url, tokens
        server.stop()


def test_an_expert_comes_by_a_link_and_sees_what_concerns_experts(
    fleet: tuple[str, dict[str, str]], page: Page
) -> None:
    url, tokens = fleet
    asked_for: list[str] = []
    page.on("request", lambda request: asked_for.append(request.url))
    page.goto(f"{url}/sign-in?next=/teach#{tokens['labeller']}")
    expect(page.locator("form[data-teach]")).to_be_visible()
    assert page.url == f"{url}/teach"
    assert not [one for one in asked_for if tokens["labeller"] in one]
    expect(page.locator("header nav a")).to_have_text(["Overview", re.compile("Teach"), "System"])
    page.goto(f"{url}/answers")
    expect(page.locator("h1")).to_have_text("Not allowed")
    expect(page.locator("body")).to_contain_text("This is for the role operator")
    expect(page.locator("header nav a")).to_have_text(["Overview", "Teach", "System"])
    page.goto(url)
    page.click("text=Sign out")
    expect(page).to_have_title("Sign in · retuned")
    page.goto(f"{url}/teach")
    expect(page).to_have_title("Sign in · retuned")


def test_a_chart_is_read_at_the_pointer(fleet: tuple[str, dict[str, str]], page: Page) -> None:
    url, tokens = fleet
    page.goto(f"{url}/sign-in?next=/workloads/hr.payroll-3#{tokens['viewer']}")
    expect(page).to_have_title("hr.payroll-3 · retuned")
    moments = page.locator(".chart .moment")
    box = moments.nth(20).locator("rect").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 10)
    shown = moments.nth(20).locator("text")
    expect(shown).to_be_visible()
    expect(shown).to_have_text(re.compile(r"^\d+ \w+ \d\d:\d\d UTC · helpful \d+% \(.* of 43\) · invented 4% "))
    expect(moments.nth(19).locator("text")).to_be_hidden()


def test_a_correction_is_not_lost_and_keys_go_where_a_person_types(
    fleet: tuple[str, dict[str, str]], page: Page
) -> None:
    url, tokens = fleet
    dialogs: list[str] = []

    def stay(dialog: Dialog) -> None:
        dialogs.append(dialog.type)
        dialog.dismiss()

    page.goto(f"{url}/sign-in?next=/workloads/hr.payroll-3/teach#{tokens['labeller']}")
    text, form = page.locator("textarea"), page.locator("form[data-teach]")
    expect(form).to_be_visible()
    asked = form.get_attribute("action")
    page.once("dialog", stay)
    page.keyboard.press("2")
    page.keyboard.type("Within 14 days, and never later.")
    page.keyboard.press("Escape")
    page.keyboard.press("s")
    page.wait_for_timeout(300)
    assert dialogs == ["beforeunload"]
    expect(form).to_have_attribute("action", str(asked))
    expect(text).to_have_value("Within 14 days, and never later.")
    text.fill(str(text.get_attribute("data-original")))
    page.keyboard.press("Control+Enter")
    expect(page.locator("[role=alert]:visible")).to_contain_text("change the text")
    expect(text).to_be_focused()
    page.keyboard.type("1s2")
    expect(text).to_have_value("1s2")
    page.once("dialog", lambda dialog: dialog.accept())
    page.keyboard.press("Escape")
    page.keyboard.press("Shift+S")
    expect(page.locator("[role=status]")).to_contain_text("Skipped.")


def test_a_page_that_follows_leaves_an_open_form_as_it_is(fleet: tuple[str, dict[str, str]], page: Page) -> None:
    url, tokens = fleet
    page.goto(f"{url}/sign-in?next=/workloads/hr.payroll-3#{tokens['operator']}")
    expect(page).to_have_title("hr.payroll-3 · retuned")
    form = (
        "document.querySelector('#live').insertAdjacentHTML('beforeend', "
        "'<details><summary>Cancel it</summary><form><input name=reason></form></details>')"
    )
    live = "htmx.ajax('GET', location.pathname, {target: '#live', select: '#live', swap: 'outerHTML'})"
    with page.expect_response(lambda response: response.url.endswith("/workloads/hr.payroll-3")):
        page.evaluate(f"{{ {form}; {live}; document.querySelector('#live details').open = true; }}")  # opened meanwhile
    page.wait_for_timeout(500)
    page.fill("#live [name=reason]", "the rows are wrong")
    page.click("h2 >> nth=0")
    stale = "new BroadcastChannel('retuned').postMessage('now')"
    page.evaluate(stale)
    page.wait_for_timeout(500)
    expect(page.locator("#live [name=reason]")).to_have_value("the rows are wrong")
    page.evaluate(f"document.querySelector('#live details').open = false; {stale}")
    expect(page.locator("#live [name=reason]")).to_have_count(0)


def test_a_narrow_chart_shows_its_shares(fleet: tuple[str, dict[str, str]], browser: Browser) -> None:
    url, tokens = fleet
    page = browser.new_page(viewport={"width": 400, "height": 900})
    page.goto(f"{url}/sign-in?next=/workloads/hr.payroll-3#{tokens['viewer']}")
    expect(page).to_have_title("hr.payroll-3 · retuned")
    page.locator(".chart").scroll_into_view_if_needed()
    boxes = [label.bounding_box() for label in page.locator(".chart > text:text-is('50%')").all()]
    assert any(box is not None and 0 < box["x"] < 400 - box["width"] for box in boxes)
    page.close()


@pytest.mark.parametrize("with_script", [True, False])
def test_two_experts_differ_and_a_third_decides(
    fleet: tuple[str, dict[str, str]], browser: Browser, with_script: bool
) -> None:
    url, tokens = fleet
    queue, shown, comments = "nav[aria-label=Queue]", [], []
    for name, answer in (("ada", "Within 20 days."), ("ben", "Within 30 days."), ("cleo", "Within 20 days.")):
        page = browser.new_page(java_script_enabled=with_script)
        page.goto(f"{url}/sign-in")
        page.fill("[name=token]", tokens[name])
        page.click("button:text('Sign in')")
        page.goto(f"{url}/workloads/support.delivery-5/teach")
        # What is disputed comes first, before what nobody has answered.
        page.locator(f"{queue} li a").nth(0 if name == "cleo" else -1).click()
        shown.append(page.locator(f"{queue} [aria-current]").inner_text())
        expect(page.locator("form[data-teach]")).to_contain_text("Several experts must agree")
        comments.append(page.locator("form[data-teach] dt:text('Comment of') + dd").all_inner_texts())
        page.click("text=Wrong, this is right:")
        page.fill("textarea", answer)
        page.fill("[name=comment]", f"{name} is sure")
        page.click("text=Save and next")
        page.goto(f"{url}/teach/mine")
        expect(page.locator("main ins").first).to_have_text(answer.split()[1])
        expect(page.locator("main dl").first).to_contain_text(f"{name} is sure")
        page.close()
    assert ["experts differ" in one for one in shown] == [False, False, True]
    assert comments == [[], [], ["ada is sure", "ben is sure"]]


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_every_page_is_accessible_and_fits_the_window(
    fleet: tuple[str, dict[str, str]], browser: Browser, width: int, scheme: Literal["light", "dark"]
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed").Axe()
    url, tokens = fleet
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.goto(f"{url}/sign-in?next=/#{tokens['admin']}")
    expect(page).to_have_title("Overview · retuned")
    ill = page.locator(".todo b a").first.get_attribute("href")
    approval = page.locator(".todo a:text('Review')").get_attribute("href")
    page.goto(f"{url}{approval}")
    waits = page.locator("h1 a").get_attribute("href")
    paths = [
        "/",
        ill,
        waits,
        f"{waits}/versions/8c01dd2e",
        approval,
        f"{ill}/rows",
        f"{ill}/datasets",
        "/teach",
        "/teach/mine",
    ]
    for path in (*paths, "/answers", "/interactions/i1-0", "/system", "/sign-in"):
        page.goto(f"{url}{path}")
        found = axe.run(page).response["violations"]
        assert [(one["id"], one["nodes"][0]["html"]) for one in found] == [], path
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
    page.close()


@pytest.mark.parametrize("with_script", [True, False])
def test_an_expert_teaches(tansu: Broker, tmp_path: Path, browser: Browser, with_script: bool) -> None:
    """By keyboard alone; and by forms, where a browser runs no scripts."""
    settings = settings_for(tansu, tmp_path)
    asked = [f"Where is parcel {number}?" for number in range(6)]
    with opened(Settings.model_validate(settings)) as local:
        teacher = Teacher(local.warehouse)
        for number, question in enumerate(asked):
            local.warehouse.insert(
                "label_requests", id=str(number), created_at=utc_now(), workload="support", reason="uncertain",
                interaction_id=teacher.ask(question, "In 30 days."), detail="People called it wrong.", announced=True,
            )  # fmt: skip
    with running(tmp_path, settings) as daemon, browser.new_page(java_script_enabled=with_script) as page:
        dialogs: list[Dialog] = []

        def stay(dialog: Dialog) -> None:
            dialogs.append(dialog)
            dialog.dismiss()

        page.on("dialog", stay)
        page.goto(daemon.url)
        page.click("text=Teach")
        for number, question in enumerate(asked):
            expect(page.locator("form[data-teach]")).to_contain_text(question)
            expect(page.locator("nav ol li")).to_have_count(len(asked) - number)
            if number == 1:
                page.keyboard.press("s") if with_script else page.click("button[value=skip]")
                break
            if with_script:
                page.keyboard.press("2")
                page.keyboard.type("In 14 days.")
                expect(page.locator("[data-diff] ins")).to_have_text("14")
                page.keyboard.press("Escape")
                page.keyboard.press("1")  # what was typed goes with the choice, and comes back with it
                expect(page.locator("textarea")).to_have_value("In 30 days.")
                expect(page.locator("[data-diff]")).to_be_empty()
                page.keyboard.press("2")
                expect(page.locator("textarea")).to_have_value("In 14 days.")
                page.locator("nav ol a").nth(2).click()  # the browser asks, and the dialog is dismissed
                expect(page.locator("form[data-teach]")).to_contain_text(question)
                assert [one.type for one in dialogs] == ["beforeunload"]
                page.keyboard.press("Control+Enter")
            else:
                page.click("text=Wrong, this is right:")
                page.fill("textarea", "In 14 days.")
                page.click("text=Save and next")
            expect(page.locator("[role=status]")).to_contain_text("Saved. Where is parcel 0?")
        expect(page.locator("form[data-teach]")).to_contain_text(asked[2])
        expect(page.locator("[role=status]")).to_contain_text("Skipped.")
        daemon.until(lambda: daemon.workload()["labels"] == {"open": 5, "answered": 1}, "the answer")
        page.click("text=My answers")
        expect(page.locator("ins")).to_have_text("14")
        page.click("text=Change it")
        expect(page.locator("textarea")).to_have_value("In 14 days.")
        page.fill("textarea", "In 15 days.")
        page.keyboard.press("Control+Enter") if with_script else page.click("text=Save the change")
        expect(page.locator("h1")).to_have_text("My answers")
        expect(page.locator("[role=status]")).to_have_text("Saved.")
        expect(page.locator("ins")).to_have_text("15")
