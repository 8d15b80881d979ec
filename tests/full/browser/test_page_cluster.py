"""Open pages of a cluster behind a load balancer, while the daemon that leads is killed."""

import signal
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fixtures.kafka.brokers import Broker, Proxy

pytest.importorskip("obstore", reason="the extra cluster is not installed")

from playwright.sync_api import Browser, Page, Response, expect

from fixtures.cluster.servers import Postgres
from fixtures.faults.leaders import Daemons, leads, no_disks
from fixtures.kafka.brokers import until
from fixtures.models.served import WORKLOAD, Adapters
from retuned.daemon.web import principals

pytestmark = pytest.mark.skipif(no_disks() is not None, reason=str(no_disks()))
REASON = "Customers complain."


@pytest.mark.timeout(600)
def test_pages_follow_the_next_leader_and_nobody_is_signed_out(
    tansu: Broker, own_postgres: Postgres, tmp_path: Path, browser: Browser
) -> None:
    file, now = tmp_path / "principals.json", datetime.now(UTC)
    token = principals.add(file, "ada", "operator", None, now)
    http = {"principals_file": str(file), "session_key": "a-key-of-both-daemons"}
    with ExitStack() as stack:
        cluster = Daemons(tmp_path, tansu, own_postgres, Adapters(tmp_path / "adapters"), http=http)
        stack.callback(cluster.end)
        for daemon in cluster.daemons:
            daemon.token = token
        cluster.start()
        leader, other = cluster.leader_and_standby()
        for version in cluster.versions:
            cluster.promote(version, "A test.", [leader])
        old, new = (version[:8] for version in cluster.versions)
        other.until(lambda: other.workload(WORKLOAD)["champion"] == new, "the new version at the standby")

        balancer = stack.enter_context(closing(Proxy(leader.port)))
        url = f"http://127.0.0.1:{balancer.port}"
        context = browser.new_context()
        stack.callback(context.close)
        overview, workload = context.new_page(), context.new_page()
        refused: list[Response] = []
        context.on("response", lambda answer: refused.append(answer) if answer.status in (401, 403) else None)
        overview.goto(f"{url}/sign-in?next=/#{token}")
        overview.wait_for_selector("#live")
        workload.goto(f"{url}/workloads/{WORKLOAD}")
        fill_in(workload)

        balancer.target = other.port
        leader.stop(signal.SIGKILL)
        balancer.cut()
        for page in (overview, workload):
            expect(page.locator("[data-lost]")).to_be_hidden(timeout=30_000)
        until(lambda: leads(other), 60)
        workload.get_by_role("button", name="Roll back").click()
        expect(workload.locator("#changes ~ .card").first).to_contain_text(f"{REASON} (asked for by ada)")
        expect(workload.locator("#live")).to_contain_text(f"in service: {WORKLOAD}@{old}")

        # The one that was killed stands by; what it is asked to change, the leader changes.
        leader.start()
        cluster.promote(cluster.versions[1], "Again.", [other])
        leader.until(lambda: leader.workload(WORKLOAD)["champion"] == new, "the new version at the standby")
        balancer.target = leader.port
        balancer.cut()
        workload.goto(f"{url}/workloads/{WORKLOAD}")
        fill_in(workload)
        workload.get_by_role("button", name="Roll back").click()
        expect(workload.locator("#live")).to_contain_text(f"in service: {WORKLOAD}@{old}")
        expect(overview.locator("[data-lost]")).to_be_hidden(timeout=30_000)
        assert [answer.url for answer in refused] == []


def fill_in(page: Page) -> None:
    """The form of a rollback, which nobody sends yet."""
    page.get_by_text("Roll back", exact=True).first.click()
    page.get_by_label("Reason, kept with the change").fill(REASON)
