"""Sign-in at an OpenID Connect provider, in a real browser: NanoIDP, which demands PKCE."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any, cast

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from fixtures.daemon.doors import FakeDaemon
from fixtures.kafka.brokers import free_port
from fixtures.worlds.fleet import fill
from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.consumers.warehouse.connection import utc_now
from retuned.daemon.operations.local import opened
from retuned.daemon.settings import Settings
from retuned.daemon.web.routes import application
from retuned.daemon.web.server import Server
from retuned.daemon.web.sessions import COOKIE

pytest.importorskip("nanoidp", reason="NanoIDP is not installed")
USERS = {"anna": (["ml-ops"], "*"), "ben": (["experts", "staff"], "support.*"), "eve": (["sales"], "*")}
SECRET = "between-the-two"


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a console whose provider knows `USERS`, and which is of another site than its provider."""
    folder = tmp_path_factory.mktemp("sign-in")
    at, provider = free_port(), free_port()
    url, issuer = f"http://127.0.0.1:{at}", f"http://localhost:{provider}"
    client = {"client_id": "retuned", "client_secret": SECRET, "redirect_uris": [f"{url}/sign-in/oidc/callback"]}
    users = {
        name: {"password": "pass-of-" + name, "email": f"{name}@example.com", "groups": groups, "tenant": workloads}
        for name, (groups, workloads) in USERS.items()
    }
    config = folder / "provider"
    config.mkdir()
    oauth = {"issuer": issuer, "clients": [client], "require_pkce": True}
    (config / "settings.yaml").write_text(json.dumps({"oauth": oauth, "jwt": {"keys_dir": str(folder / "keys")}}))
    (config / "users.yaml").write_text(json.dumps({"users": users}))
    (folder / "secret").write_text(SECRET + "\n")
    oidc = {
        "issuer": issuer,
        "client_id": "retuned",
        "client_secret_file": folder / "secret",
        "roles": {"ml-ops": "operator", "experts": "labeller", "staff": "viewer"},
        "workloads_claim": "tenant",
    }
    settings = Settings(
        warehouse={"path": folder / "w.duckdb"},
        http={"port": at, "oidc": oidc, "operator_token": "the-token-of-an-operator"},
        kafka={"expert_topic": "experts"},
    )
    command = [sys.executable, "-m", "nanoidp", "--config", str(config), "--port", str(provider)]
    with opened(settings) as local, (folder / "provider.log").open("w") as log:
        idp = subprocess.Popen([*command, "--host", "127.0.0.1"], cwd=folder, stdout=log, stderr=log)
        try:
            until_it_answers(f"{issuer}/.well-known/openid-configuration", idp)
            local.jobs.context.publisher = MemoryPublisher()
            fill(local.warehouse, utc_now(), workloads=10, events=1_000)
            server = Server(application(local, cast(Any, FakeDaemon()), settings), settings.http)
            server.start()
            yield url
            server.stop()
        finally:
            idp.terminate()
            idp.wait(10)


def until_it_answers(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        assert process.poll() is None, "the provider ended"
        try:
            httpx.get(url).raise_for_status()
        except httpx.HTTPError:
            time.sleep(0.2)
        else:
            return
    raise AssertionError(f"{url} does not answer")


def sign_in(page: Page, url: str, name: str) -> None:
    page.goto(url)
    page.click("text=Sign in with localhost")
    page.fill("[name=username]", name)
    page.fill("[name=password]", f"pass-of-{name}")
    page.click("button[type=submit]")


@pytest.mark.parametrize("with_script", [True, False])
def test_who_the_provider_knows_has_the_role_of_their_group(console: str, browser: Browser, with_script: bool) -> None:
    with browser.new_page(java_script_enabled=with_script) as page:
        sign_in(page, f"{console}/answers?text=refund", "anna")
        expect(page).to_have_title("Answers · retuned")
        assert page.url == f"{console}/answers?text=refund", "the page that was asked for"
        expect(page.locator("header")).to_contain_text("anna@example.com")
        (cookie,) = [one for one in page.context.cookies() if one["name"] == COOKIE]
        assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
        page.click("text=Sign out")
        if with_script:
            axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed").Axe()
            assert axe.run(page).response["violations"] == []
        page.click("text=Sign out of localhost")
        page.goto(f"{console}/answers")
        expect(page).to_have_title("Sign in · retuned")
        page.click("text=Sign in with localhost")
        expect(page.locator("[name=password]")).to_be_visible()


def test_the_claim_of_workloads_binds(console: str, page: Page) -> None:
    sign_in(page, console, "ben")
    expect(page.locator("tbody th[scope=row]").first).to_be_visible()
    shown = page.locator("tbody th[scope=row]").all_inner_texts()
    assert shown
    assert all(one.startswith("support.") for one in shown)
    expect(page.locator("header nav a")).to_have_text(["Overview", re.compile("Teach")])  # of two groups the higher


def test_an_unknown_group_has_no_access(console: str, page: Page) -> None:
    sign_in(page, console, "eve")
    expect(page.locator("[role=alert]:not([hidden])")).to_contain_text("no value of the claim 'groups' has a role here")
    page.goto(console)
    expect(page).to_have_title("Sign in · retuned")


def test_tokens_are_accepted_beside_it(console: str, page: Page) -> None:
    page.goto(console)
    page.fill("[name=token]", "the-token-of-an-operator")
    page.click("button:text('Sign in')")
    expect(page).to_have_title("Overview · retuned")
    page.click("text=Sign out")
    expect(page.locator("body")).not_to_contain_text("Sign out of localhost")


def test_the_answer_of_a_sign_in_serves_its_own_browser_once(console: str, browser: Browser) -> None:
    with browser.new_page() as page, browser.new_page() as other:
        came: list[str] = []
        page.on("request", lambda request: came.append(request.url) if "/callback" in request.url else None)
        sign_in(page, console, "anna")
        expect(page).to_have_title("Overview · retuned")
        for one in (page, other):
            one.goto(came[0])
            expect(one.locator("[role=alert]:not([hidden])")).to_contain_text(
                "This sign-in was begun in another browser"
            )
        other.goto(console)
        expect(other).to_have_title("Sign in · retuned")
