"""Files that an erasure in a cluster does not find where they should be, or not at once: segments and reports."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from fixtures.feedback.erasing import ANN, LETTER, MINE, SECRET, now, shop_events, traces
from fixtures.kafka.brokers import until

pytest.importorskip("obstore", reason="the extra cluster is not installed")

from fixtures.cluster.doubles import Cluster, drain
from fixtures.feedback.cluster_erasing import Daemon
from retuned.consumers.cluster import erasing
from retuned.consumers.cluster.database import Database, File
from retuned.consumers.errors import RetunedError
from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.consumers.metrics import Metrics
from retuned.consumers.warehouse.selection import Request
from retuned.daemon import artifacts
from retuned.daemon.cluster import Cluster as Membership
from retuned.daemon.reports import reports

MONTH = reports.report_id("support.refunds", reports.Period.of("month", datetime(2026, 11, 1)))
QUARTER = reports.report_id("support.refunds", reports.Period.of("quarter", datetime(2026, 11, 1)))
UNPUBLISHED = {"2020-10-support-refunds-1e5818", "2020-Q4-support-refunds-1e5818"}


def request_ann(leader: Daemon) -> str:
    return leader.erasures.request(Request(user_id="ann@shop").selection(leader.erasures.keys), "dpo", None)


def state(leader: Daemon, id: str) -> str:
    found = leader.erasures.of(id)
    assert found is not None
    return str(found["state"])


@pytest.mark.parametrize("is_empty", [True, False])
@pytest.mark.parametrize("is_restored", [True, False])
def test_an_erasure_waits_for_a_lost_file_of_a_segment(
    cluster: Cluster, tmp_path: Path, is_restored: bool, is_empty: bool
) -> None:
    cluster.send(*shop_events())
    drain(cluster.ingester())
    leader = Daemon(cluster, tmp_path / "a", leads=True)
    leader.follow()
    [(key, sha256)] = cluster.query("SELECT key, sha256 FROM retuned.segment_files WHERE table_name = 'interactions'")
    content = cluster.objects.get(key)
    cluster.objects.delete([key])
    if is_empty:
        cluster.objects.put(key, b"")
    id = request_ann(leader)
    for _ in range(2):
        with pytest.raises(RetunedError, match=f"{key} .*{sha256}"):
            leader.erasures.run()
        waiting = leader.erasures.of(id)
        assert waiting is not None
        assert (waiting["state"], waiting["done_at"]) == ("swapping", None)
        assert key in waiting["receipt"]["operator"][0]
    assert traces(leader.folder, SECRET, MINE, LETTER) == traces(cluster.folder, SECRET, MINE, LETTER) == {}
    if is_restored:
        cluster.objects.put(key, content)
    else:
        cluster.query("SELECT retuned.forget_segment(1, 'lost')")
        cluster.objects.delete([key])
    leader.erasures.run()
    assert state(leader, id) == "done"
    assert traces(cluster.folder, SECRET, MINE, LETTER, *ANN) == {}
    assert [row["id"] for row in cluster.stored()] == (["bob-1"] if is_restored else [])
    leader.close()


def test_a_file_that_is_replaced_before_it_is_read_is_erased_as_well(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a former leader that does not have the latest tombstones."""
    cluster.send(*shop_events())
    drain(cluster.ingester())
    leader, former, replaced = Daemon(cluster, tmp_path / "a", leads=True), cluster.database(), list[str]()
    leader.follow()
    erase, list_files = leader.erasures.segments, Database.files_of_segments
    assert erase is not None

    def replacing(self: Database) -> list[File]:
        files = list_files(self)
        for old in files if not replaced else ():
            new = replace(old, key=old.key.replace(".parquet", "00.parquet"))
            former.announce_file(new.key)
            cluster.objects.put(new.key, cluster.objects.get(old.key))
            assert former.exchange_file(old, new)
        replaced.extend(file.key for file in files)
        erasing.delete_gone(former, cluster.objects)
        return files

    def beside(tombstones: Any) -> Iterator[dict[str, Any]]:
        with monkeypatch.context() as patch:
            patch.setattr(Database, "files_of_segments", replacing)
            yield from erase(tombstones)

    leader.erasures.segments = beside
    id = request_ann(leader)
    leader.erasures.run()
    assert (bool(replaced), state(leader, id)) == (True, "done")
    assert traces(cluster.folder, SECRET, MINE, LETTER, *ANN) == {}
    assert [row["id"] for row in cluster.stored()] == ["bob-1"]
    leader.close()


def write_reports(daemon: Daemon, text: str, *names: str) -> None:
    home = reports.folder_of(daemon.warehouse)
    home.mkdir(exist_ok=True)
    for name in names:
        for suffix in (".html", ".json"):
            (home / f"{name}{suffix}").write_text(text)


def reports_of(daemon: Daemon) -> set[str]:
    return {path.stem for path in reports.folder_of(daemon.warehouse).iterdir()}


@pytest.fixture
def missed(cluster: Cluster, tmp_path: Path) -> Iterator[Daemon]:
    """A daemon that was down while reports were erased, one of which was written again. It has others that it has not
    published yet."""
    cluster.send(*shop_events())
    drain(cluster.ingester())
    leader, other = Daemon(cluster, tmp_path / "a", leads=True), Daemon(cluster, tmp_path / "b", leads=False)
    check = f"{now():%Y%m%dT%H%M%S}-053321eb"
    leader.follow()
    write_reports(leader, SECRET, check, MONTH, QUARTER)
    leader.warehouse.insert(
        "drift_checks", id=check, created_at=now(), workload="support.refunds", features="[]", reference_rows=0,
        current_rows=0, report=str(reports.folder_of(leader.warehouse) / f"{check}.json"), detail="",
    )  # fmt: skip
    for daemon in (leader, other):
        artifacts.keep(daemon.warehouse, daemon.settings)
    artifacts.settle(leader.warehouse, leader.settings)
    other.follow()
    assert artifacts.follow(other.warehouse, other.settings, first=True)
    write_reports(other, "not published yet", *UNPUBLISHED)
    assert reports_of(other) == {check, MONTH, QUARTER, *UNPUBLISHED}
    other.close()
    request_ann(leader)
    leader.erasures.run()
    write_reports(leader, "written again", MONTH)
    artifacts.settle(leader.warehouse, leader.settings)
    leader.close()
    again = Daemon(cluster, tmp_path / "b", leads=False)
    yield again
    again.close()


def test_reports_that_were_erased_while_a_daemon_was_down_go_at_its_start(missed: Daemon) -> None:
    missed.follow()
    artifacts.keep(missed.warehouse, missed.settings)
    assert artifacts.follow(missed.warehouse, missed.settings, first=True)
    assert reports_of(missed) == {MONTH, *UNPUBLISHED}
    assert traces(reports.folder_of(missed.warehouse), SECRET) == {}


def test_reports_that_were_erased_while_a_daemon_was_down_go_before_it_leads(missed: Daemon) -> None:
    """So that it does not publish them again."""
    store = missed.settings.store.model_copy(update={"kind": "cluster"})
    settings, registry = missed.settings.model_copy(update={"store": store}), CollectorRegistry()
    found, failed = list[set[str]](), list[BaseException]()

    def on_lead() -> None:
        found.append(reports_of(missed))

    member = Membership(
        settings, missed.warehouse, registry, Metrics(registry), MemoryPublisher(), on_lead, failed.append
    )
    member.start()
    try:
        until(lambda: found or failed)
    finally:
        member.stop()
        member.source.close()
    assert (found, failed) == ([{MONTH, *UNPUBLISHED}], [])
