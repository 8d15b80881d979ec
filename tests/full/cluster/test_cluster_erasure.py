"""Erasure in a cluster: from segments, from the control tables and from the warehouses of all daemons."""

import json
import re
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fixtures.feedback.erasing import ANN, LETTER, MINE, SECRET, THEIRS, now, shop_events, traces
from fixtures.kafka.ingestion import feedback, interaction

pytest.importorskip("obstore", reason="the extra cluster is not installed")
pytest.importorskip("moto", reason="the extra test is not installed")

from fixtures.cluster.doubles import Cluster, drain
from fixtures.feedback.cluster_erasing import Daemon
from retuned.consumers.cluster import erasing
from retuned.consumers.cluster.conversations import keys_of
from retuned.consumers.cluster.database import Database
from retuned.consumers.cluster.postgres import Postgres
from retuned.consumers.cluster.sweep import sweep
from retuned.consumers.errors import Busy, LeadershipLost, RetunedError, StandsBy
from retuned.consumers.kafka.contract import Identity
from retuned.consumers.settings import RetentionSettings
from retuned.consumers.warehouse.archive import Kept, archive
from retuned.consumers.warehouse.expiry import expire
from retuned.consumers.warehouse.selection import Request
from retuned.daemon import artifacts
from retuned.daemon.erasure import applied, receipt
from retuned.daemon.erasure import erasure as module
from retuned.daemon.erasure.applied import AppliedErasures
from retuned.retrain.data import label_requests


def test_rows_leave_segments_and_the_warehouses_of_all_daemons(cluster: Cluster, tmp_path: Path) -> None:
    ingester = cluster.ingester()
    cluster.send(*shop_events())
    drain(ingester)
    leader = Daemon(cluster, tmp_path / "a", leads=True)
    other = Daemon(cluster, tmp_path / "b", leads=False)
    for daemon in (leader, other):
        daemon.follow()
        assert len(daemon.ids("interactions")) == 3
    leader.warehouse.insert(
        "label_requests", id="r", created_at=now(), workload="support.refunds", interaction_id="ann-1", reason="poor",
        detail=SECRET, announced=True,
    )  # fmt: skip
    other.follow()
    asked = Request(user_id="ann@shop").selection(leader.erasures.keys)
    id = leader.erasures.request(asked, "dpo", None)
    leader.erasures.run()
    done = leader.erasures.of(id)
    assert done is not None
    assert done["receipt"]["segments"]
    assert traces(leader.folder, SECRET, MINE, LETTER, *ANN) == {}
    assert traces(cluster.folder, SECRET, MINE, LETTER, *ANN) == {}
    assert cluster.query("SELECT row FROM retuned.control WHERE row LIKE '%" + SECRET + "%'") == []
    assert [row["id"] for row in cluster.stored()] == ["bob-1"]

    other.applied.apply()  # it does not know yet
    assert len(other.ids("interactions")) == 3
    other.follow()
    assert (list(leader.erasures.waiting()), list(other.erasures.waiting())) == ([], ["applying"])
    other.applied.apply()
    assert other.erasures.waiting() == {}
    assert traces(other.folder, SECRET, MINE, LETTER, *ANN) == {}
    assert other.ids("interactions") == ["bob-1"]
    assert list(traces(other.folder, THEIRS)) == [THEIRS]

    # Late copies are not even written into segments, and a new daemon gets none.
    cluster.send(*shop_events(), feedback("late", "ann-1", value=f"{SECRET}?", name="correction"))
    drain(ingester)
    assert traces(cluster.folder, SECRET, MINE, LETTER) == {}
    new = Daemon(cluster, tmp_path / "c", leads=False)
    new.follow()
    assert new.ids("interactions") == ["bob-1"]
    assert new.ids("feedback") == ["f-bob-on-bob"]
    for daemon in (leader, other, new):
        daemon.close()


def test_numbers_of_placeholders_go_with_their_conversation(cluster: Cluster, tmp_path: Path) -> None:
    ingester = cluster.ingester()
    mail = [{"role": "user", "content": "I am ann@example.org"}]
    cluster.send(
        interaction("i1", messages=mail, user_id="ann@shop", conversation_id="c1"),
        interaction("i2", messages=mail, user_id="ann@shop"),
        interaction("i3", messages=mail, user_id="bob", conversation_id="c3"),
    )
    drain(ingester)
    before = cluster.query("SELECT DISTINCT scope FROM retuned.placeholders")
    assert len(before) == 3
    leader = Daemon(cluster, tmp_path / "a", leads=True)
    leader.follow()
    leader.erasures.request(Request(user_id="ann@shop").selection(leader.erasures.keys), "dpo", None)
    leader.erasures.run()
    (left,) = cluster.query("SELECT DISTINCT scope FROM retuned.placeholders")
    assert bytes(left[0]) in keys_of(leader.erasures.keys, [], ["c3"])
    events = {bytes(event) for (event,) in cluster.query("SELECT event FROM retuned.numbered_events")}
    assert events == set(keys_of(leader.erasures.keys, ["i3"], []))
    leader.close()


def test_a_daemon_that_takes_over_continues(cluster: Cluster, tmp_path: Path) -> None:
    ingester = cluster.ingester()
    cluster.send(*shop_events())
    drain(ingester)
    leader = Daemon(cluster, tmp_path / "a", leads=True)
    leader.follow()
    other = Daemon(cluster, tmp_path / "b", leads=False)
    other.follow()
    asked = Request(user_id="ann@shop").selection(leader.erasures.keys)
    leader.erasures.request(asked, "dpo", None)

    def lost(*_: Any) -> Any:
        raise ConnectionError("the leader is gone")

    leader.erasures.segments = lost
    with pytest.raises(ConnectionError):
        leader.erasures.run()
    leader.close()
    other.control.follow()
    [(epoch,)] = other.postgres.rows("lead", {"instance": "other", "seconds": 0.0})
    other.control.epoch = epoch
    other.erasures.run()
    assert traces(other.folder, SECRET, MINE, LETTER, *ANN) == {}
    assert traces(cluster.folder, SECRET, MINE, LETTER, *ANN) == {}
    other.close()


@pytest.mark.parametrize("until", ["rows", "files"])
def test_a_daemon_that_takes_over_after_the_swap_erases_its_own_files(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, until: str
) -> None:
    """It has erased only its rows before, or its files but for the warehouse."""
    cluster.send(*shop_events())
    drain(cluster.ingester())
    leader, other = Daemon(cluster, tmp_path / "a", leads=True), Daemon(cluster, tmp_path / "b", leads=False)
    for daemon in (leader, other):
        daemon.follow()
        daemon.warehouse.checkpoint()
    cached = other.settings.models.directory / "support.refunds" / "answers.jsonl"
    cached.parent.mkdir(parents=True)
    cached.write_text(SECRET)

    def killed(*_: Any) -> Any:
        raise ConnectionError("killed")

    def busy(*_: Any) -> Any:
        raise Busy("a backup runs")

    id = leader.erasures.request(Request(user_id="ann@shop").selection(leader.erasures.keys), "dpo", None)
    with monkeypatch.context() as patch:
        patch.setattr(receipt, "signed", killed)
        patch.setattr(applied, "swap", busy)
        with pytest.raises(ConnectionError):
            leader.erasures.run()
        other.follow()
        if until == "rows":
            other.applied.delete()
        else:
            with pytest.raises(Busy):
                other.applied.apply()
    other.warehouse.checkpoint()
    assert other.ids("interactions") == ["bob-1"]
    assert traces(leader.folder, SECRET, MINE) == {}
    assert ("w.duckdb" in traces(other.folder, SECRET)[SECRET], cached.exists()) == (True, until == "rows")
    leader.close()
    [(epoch,)] = other.postgres.rows("lead", {"instance": "other", "seconds": 0.0})
    other.control.epoch = epoch
    other.applied.delete()
    other.erasures.run()
    done = other.erasures.of(id)
    assert done is not None
    assert (done["state"], other.erasures.waiting()) == ("done", {})
    assert traces(other.folder, SECRET, MINE, LETTER, *ANN) == {}
    assert other.warehouse.rows("SELECT * FROM erasures_applied") == [{"erasure_id": id}]
    other.close()


def test_a_daemon_that_led_before_erases_from_its_file_of_label_requests(cluster: Cluster, tmp_path: Path) -> None:
    cluster.send(*shop_events())
    drain(cluster.ingester())
    former, leader = Daemon(cluster, tmp_path / "a", leads=True), Daemon(cluster, tmp_path / "b", leads=False)
    never = Daemon(cluster, tmp_path / "c", leads=False)
    for daemon in (former, leader, never):
        labels = {"workloads": {"support.refunds": {"labels": {"file": str(daemon.folder / "labels.jsonl")}}}}
        daemon.settings = daemon.settings.model_copy(update=labels)
        daemon.applied = AppliedErasures(daemon.warehouse, daemon.settings, threading.Event())
        daemon.follow()
    former.warehouse.insert(
        "label_requests", id="r", created_at=now(), workload="support.refunds", interaction_id="ann-1", reason="poor",
        detail="", announced=True,
    )  # fmt: skip
    label_requests.write_files(former.warehouse, former.settings)
    file = former.folder / "labels.jsonl"
    assert SECRET in file.read_text()
    leader.follow()
    [(epoch,)] = leader.postgres.rows("lead", {"instance": "other", "seconds": 0.0})
    leader.control.epoch, former.control.epoch = epoch, None
    erase_ann(leader)
    for daemon in (former, never):
        daemon.follow()
        daemon.applied.apply()
    assert (former.erasures.waiting(), file.read_text()) == ({}, "")
    assert traces(former.folder, SECRET, MINE) == {}
    assert not (never.folder / "labels.jsonl").exists()
    for daemon in (former, leader, never):
        daemon.close()


def test_object_storage_has_no_erased_row_of_a_dataset_once_an_erasure_is_done(
    cluster: Cluster, tmp_path: Path
) -> None:
    cluster.send(*shop_events())
    drain(cluster.ingester())
    leader = Daemon(cluster, tmp_path / "a", leads=True)
    leader.follow()
    artifacts.keep(leader.warehouse, leader.settings)
    path = leader.settings.models.directory / "support.refunds" / "datasets" / "abcdef012345"
    path.mkdir(parents=True)
    table = {"question": [SECRET, THEIRS], "interaction_id": ["ann-1", "bob-1"], "feedback_id": ["f-1", "f-2"]}
    pq.write_table(pa.table(table), path / "train.parquet")
    leader.warehouse.insert(
        "datasets", version=path.name, workload="support.refunds", created_at=now(), path=str(path.resolve()), train=2,
        holdout=0, replay=0, card="{}", decisions="",
    )  # fmt: skip
    report = leader.folder / "reports" / "d1.json"
    report.parent.mkdir()
    report.write_text(SECRET)
    report.with_suffix(".html").write_text(SECRET)
    leader.warehouse.insert(
        "drift_checks", id="d1", created_at=now(), workload="support.refunds", features="[]", reference_rows=0,
        current_rows=0, report=str(report), detail="",
    )  # fmt: skip
    artifacts.settle(leader.warehouse, leader.settings)
    stored = cluster.folder / "artifacts"
    assert len(traces(stored, SECRET)[SECRET]) >= 2
    erase_ann(leader)
    assert traces(stored, SECRET) == traces(leader.folder, SECRET) == {}
    assert traces(stored, THEIRS) != {}
    leader.close()


def with_erasure_topic(cluster: Cluster) -> None:
    kafka = cluster.settings.kafka.model_copy(update={"erasure_topic": "erase"})
    cluster.settings = cluster.settings.model_copy(update={"kafka": kafka})


def test_a_message_on_the_erasure_topic_is_carried_out_once_by_the_leader(cluster: Cluster, tmp_path: Path) -> None:
    with_erasure_topic(cluster)
    ingester = cluster.ingester()
    cluster.send(*shop_events())
    cluster.log.append("erase", b'{"user_id": "ann@shop", "reason": "by mail"}')
    cluster.log.append("erase", b'{"usr": "qzxann@shop"}')
    cluster.log.append("erase", b'{"workload": "support.refunds"}')
    drain(ingester)
    leader, other = Daemon(cluster, tmp_path / "a", leads=True), Daemon(cluster, tmp_path / "b", leads=False)
    for daemon in (leader, other):
        daemon.follow()
    with pytest.raises(StandsBy):
        erasing.take_requests(other.postgres, other.warehouse)
    assert erasing.take_requests(leader.postgres, leader.warehouse) == 1
    assert erasing.take_requests(leader.postgres, leader.warehouse) == 0
    (row,) = leader.warehouse.rows("SELECT id, state, requested_by, reason FROM erasures")
    assert re.fullmatch("erase-0-0-erase 0-[0-9a-f]{16}", row.pop("id"))
    assert row == {"state": "requested", "requested_by": "kafka erase", "reason": "by mail"}
    refused = leader.warehouse.rows("SELECT payload FROM dead_letters WHERE reason = 'bad_erasure'")
    assert refused == [{"payload": None}] * 2
    leader.erasures.run()
    other.follow()
    other.applied.apply()
    for daemon in (leader, other):
        assert daemon.ids("interactions") == ["bob-1"]
        assert traces(daemon.folder, SECRET, MINE, LETTER, "qzxann") == {}
    assert cluster.query("SELECT count(*) FROM retuned.erasure_requests") == [(0,)]
    assert traces(cluster.folder, SECRET, "qzxann") == {}
    for daemon in (leader, other):
        daemon.close()


def test_a_request_at_the_offset_of_another_one_is_carried_out_as_well(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The topic was recreated on a broker without ids of topics. The leader takes both requests over at once."""
    with_erasure_topic(cluster)
    monkeypatch.setattr(cluster.log, "identity", lambda _: Identity("memory", None))
    ingester, leader = cluster.ingester(), Daemon(cluster, tmp_path / "a", leads=True)
    for users in (["ann@shop", "carl"], ["bob"]):
        for user in users:
            cluster.log.append("erase", json.dumps({"user_id": user}).encode())
        drain(ingester)
        cluster.log.remake("erase")
    assert erasing.take_requests(leader.postgres, leader.warehouse) == 3
    rows = leader.warehouse.rows("SELECT selection FROM erasures")
    asked = sorted(json.loads(row["selection"])["users"] for row in rows)
    assert asked == sorted(map(leader.erasures.keys.pseudonyms, ("ann@shop", "bob", "carl")))
    leader.close()


def test_a_request_holds_whatever_sign_people_write(cluster: Cluster, tmp_path: Path) -> None:
    with_erasure_topic(cluster)
    leader = Daemon(cluster, tmp_path / "a", leads=True)
    cluster.log.append("erase", b'{"conversation_id": "c\\u0000", "reason": "mail\\u0000of 3 May"}')
    cluster.log.append("erase", b'{"conversation_id": "c\\ud800"}')
    cluster.send(shop_events()[0] | {"conversation_id": "c\0"}, *shop_events()[2:])
    drain(cluster.ingester())
    leader.follow()
    assert erasing.take_requests(leader.postgres, leader.warehouse) == 1
    leader.erasures.run()
    (row,) = leader.warehouse.rows("SELECT state, reason FROM erasures")
    assert row == {"state": "done", "reason": "mail\0of 3 May"}
    assert leader.ids("interactions") == ["bob-1"]
    leader.close()


def test_what_an_ingester_of_an_older_version_leaves_is_taken_over(cluster: Cluster, tmp_path: Path) -> None:
    drain(cluster.ingester())
    leader = Daemon(cluster, tmp_path / "a", leads=True)
    selection = msgspec.json.encode(Request(user_id="ann@shop").selection(leader.erasures.keys)).decode()
    row = {"id": "erase-0-0", "requested_at": now().isoformat(), "requested_by": "kafka erase", "reason": None}
    requests = json.dumps([row | {"selection": selection}])
    cluster.query(
        "INSERT INTO retuned.erasure_requests (id, request) SELECT request ->> 'id', request "
        f"FROM jsonb_array_elements($json${requests}$json$::JSONB) AS request RETURNING id"
    )
    assert erasing.take_requests(leader.postgres, leader.warehouse) == 1
    assert leader.warehouse.rows("SELECT id FROM erasures") == [{"id": "erase-0-0"}]
    leader.close()


def test_a_leader_that_is_killed_between_two_databases_asks_once(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_erasure_topic(cluster)
    cluster.log.append("erase", b'{"user_id": "ann@shop"}')
    drain(cluster.ingester())
    leader, other = Daemon(cluster, tmp_path / "a", leads=True), Daemon(cluster, tmp_path / "b", leads=False)
    leader.follow()
    asked = Postgres.rows

    def killed(self: Postgres, name: str, *given: Any) -> Any:
        if name == "take_erasure_requests":
            raise ConnectionError("killed")
        return asked(self, name, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Postgres, "rows", killed)
        with pytest.raises(ConnectionError):
            erasing.take_requests(leader.postgres, leader.warehouse)
    [(epoch,)] = other.postgres.rows("lead", {"instance": "other", "seconds": 0.0})
    other.follow()
    other.control.epoch = epoch
    with pytest.raises(LeadershipLost):  # the one that led before is fenced
        leader.warehouse.insert("erasures", id="late", requested_at=now(), state="requested")
    assert erasing.take_requests(other.postgres, other.warehouse) == 0
    assert len(other.warehouse.rows("SELECT id FROM erasures")) == 1
    assert cluster.query("SELECT count(*) FROM retuned.erasure_requests") == [(0,)]
    other.erasures.run()
    assert erasing.take_requests(other.postgres, other.warehouse) == 0
    for daemon in (leader, other):
        daemon.close()


def erase_ann(leader: Daemon) -> None:
    leader.erasures.request(Request(user_id="ann@shop").selection(leader.erasures.keys), "dpo", None)
    leader.erasures.run()
    assert leader.warehouse.rows("SELECT DISTINCT state FROM erasures") == [{"state": "done"}]


def test_a_daemon_that_was_down_applies_what_it_missed_although_it_leads(cluster: Cluster, tmp_path: Path) -> None:
    cluster.send(*shop_events())
    drain(cluster.ingester())
    leader, other = Daemon(cluster, tmp_path / "a", leads=True), Daemon(cluster, tmp_path / "b", leads=False)
    leader.follow()
    other.follow()
    erase_ann(leader)
    leader.close()
    [(epoch,)] = other.postgres.rows("lead", {"instance": "other", "seconds": 0.0})
    other.follow()
    other.control.epoch = epoch
    assert list(other.erasures.waiting()) == ["applying"]
    other.applied.delete()  # before any job of a leader reads them
    assert other.ids("interactions") == ["bob-1"]
    other.applied.apply()
    assert other.erasures.waiting() == {}
    assert traces(other.folder, SECRET, MINE, LETTER, *ANN) == {}
    other.close()


def test_a_segment_under_way_is_not_recorded_with_erased_events(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leader = Daemon(cluster, tmp_path / "a", leads=True)
    cluster.send(*shop_events())
    drain(cluster.ingester())
    leader.follow()
    record = Database.record

    def erased_meanwhile(self: Database, *given: Any) -> int:
        if not leader.warehouse.rows("SELECT id FROM erasures"):
            erase_ann(leader)
        return record(self, *given)

    monkeypatch.setattr(Database, "record", erased_meanwhile)
    cluster.send(*shop_events(), interaction("bob-2", user_id="bob"))
    ingester = cluster.ingester()
    drain(ingester)
    assert sorted(row["id"] for row in cluster.stored()) == ["bob-1", "bob-1", "bob-2"]
    assert traces(cluster.folder, SECRET, MINE, LETTER, *ANN) == {}
    leader.follow()
    assert leader.ids("interactions") == ["bob-1", "bob-2"]
    leader.close()


def test_events_that_the_leader_has_not_followed_yet_go_as_well(cluster: Cluster, tmp_path: Path) -> None:
    ingester = cluster.ingester()
    cluster.send(*shop_events())
    drain(ingester)
    leader, other = Daemon(cluster, tmp_path / "a", leads=True), Daemon(cluster, tmp_path / "b", leads=False)
    leader.follow()
    about = {"customer": {"user_id": "ann@shop"}}
    cluster.send(
        interaction("ann-3", user_id="ann@shop", response=f"{SECRET}!"),
        interaction("ann-4", conversation_id="c-ann", response=f"{SECRET}!", timestamp="2026-11-24T09:50:00Z"),
        interaction("team-1", user_id="team", attributes=about, response=f"{SECRET}!"),
        feedback("f-ann-new", "bob-1", user_id="ann@shop", name="correction", value=MINE),
    )
    drain(ingester)
    other.follow()
    assert len(other.ids("interactions")) == 6
    erase_ann(leader)
    for daemon in (leader, other):
        daemon.follow()
        daemon.applied.apply()
        assert daemon.ids("interactions") == ["bob-1"]
        assert daemon.ids("feedback") == ["f-bob-on-bob"]
        assert traces(daemon.folder, SECRET, MINE, LETTER, *ANN) == {}
        daemon.close()
    assert traces(cluster.folder, SECRET, MINE, LETTER, *ANN) == {}


def test_daemons_apply_again_what_a_mended_file_of_the_leader_adds(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingester = cluster.ingester()
    app = {"attributes": {"channel": "app"}}
    cluster.send(interaction("qzx-old", response=f"{SECRET}.", **app), interaction("stays"))
    drain(ingester)
    cluster.send(interaction("new", timestamp=f"{now().isoformat()}Z"))
    drain(ingester)
    leader, other = Daemon(cluster, tmp_path / "a", leads=True), Daemon(cluster, tmp_path / "b", leads=False)
    files = []
    for daemon in (leader, other):
        daemon.follow()
        settings = daemon.settings.model_copy(update={"retention": RetentionSettings(keep_days=1)})
        archive(daemon.warehouse, settings, Kept(), now() + timedelta(days=3), threading.Event())
        files += (daemon.folder / "archive").glob("interactions/*/*.parquet")
    assert len(files) == 2
    contents = [file.read_bytes() for file in files]
    cluster.send(interaction("young", response=f"{MINE}.", **app))
    drain(ingester)
    swaps, real = list[object](), module.swap
    for used in (module, applied):
        monkeypatch.setattr(used, "swap", lambda *given: swaps.append(real(*given)) or swaps[-1])
    for daemon, file in zip((leader, other), files, strict=True):
        daemon.follow()
        file.write_bytes(b"broken")
    asked = Request(workload="support.refunds", attribute=["channel=app"]).selection(leader.erasures.keys)
    leader.erasures.request(asked, "dpo", None)
    for _ in range(2):
        for daemon, work in ((leader, leader.erasures.run), (other, other.applied.apply)):
            with pytest.raises(RetunedError, match=str(daemon.folder / "archive")):
                work()
            assert "young" not in daemon.ids("interactions")
            assert traces(daemon.folder, MINE) == {}
            other.follow()
    files[1].write_bytes(contents[1])
    other.applied.apply()  # it waits for the leader, whose file may have what is not known yet
    assert (list(other.erasures.waiting()), len(swaps)) == (["applying"], 2)
    files[0].write_bytes(contents[0])
    leader.erasures.run()
    other.follow()
    other.applied.apply()
    for daemon in (leader, other):
        assert daemon.erasures.waiting() == {}
        assert traces(daemon.folder, SECRET, MINE, "qzx-old") == {}
        daemon.close()
    assert traces(cluster.folder, SECRET, MINE) == {}


@pytest.mark.parametrize("mended", [True, False])
def test_a_file_of_a_segment_that_cannot_be_read_stops_nothing_else(
    cluster: Cluster, tmp_path: Path, mended: bool
) -> None:
    ingester = cluster.ingester()
    cluster.send(*shop_events())
    drain(ingester)
    cluster.send(interaction("ann-3", user_id="ann@shop", response=f"{SECRET}!"))
    drain(ingester)
    leader = Daemon(cluster, tmp_path / "a", leads=True)
    leader.follow()
    [(key,)] = cluster.query("SELECT key FROM retuned.segment_files WHERE number = 1 AND table_name = 'interactions'")
    content = (cluster.folder / key).read_bytes()
    cluster.objects.put(key, b"broken")
    leader.erasures.request(Request(user_id="ann@shop").selection(leader.erasures.keys), "dpo", None)
    for _ in range(2):
        with pytest.raises(RetunedError, match=key):
            leader.erasures.run()
    assert traces(leader.folder, SECRET, MINE, LETTER) == traces(cluster.folder, SECRET, MINE, LETTER) == {}
    if mended:
        cluster.objects.put(key, content)
    else:
        cluster.query("SELECT retuned.forget_segment(1, 'damaged')")
        cluster.objects.delete([key])
    leader.erasures.run()
    assert leader.warehouse.rows("SELECT DISTINCT state FROM erasures") == [{"state": "done"}]
    assert traces(leader.folder, SECRET, MINE, LETTER, *ANN) == traces(cluster.folder, SECRET, MINE, LETTER, *ANN) == {}
    leader.close()


def test_segments_from_before_the_first_interaction_are_written_again(cluster: Cluster, tmp_path: Path) -> None:
    old = "2026-01-05T10:00:00Z"
    ingester = cluster.ingester()
    cluster.send(
        feedback("f-ann-old", "bob-0", user_id="ann@shop", name="correction", value=MINE, timestamp=old),
        f'{{"id": "ann-2", "broken": "{LETTER}"}}'.encode(),
    )
    drain(ingester)
    with psycopg.connect(cluster.url) as connection:
        connection.execute("UPDATE retuned.segments SET received_at = '2026-01-05T10:00:01Z'")
    cluster.send(*shop_events())
    drain(ingester)
    leader = Daemon(cluster, tmp_path / "a", leads=True)
    leader.follow()
    erase_ann(leader)
    assert traces(cluster.folder, SECRET, MINE, LETTER, *ANN) == {}
    assert traces(leader.folder, SECRET, MINE, LETTER, *ANN) == {}
    leader.close()


@pytest.mark.parametrize("asked", [{"user_id": "ann@shop"}, {"workload": "support"}, {"attribute": ["channel=app"]}])
def test_what_only_segments_have_is_chosen_like_all_else(
    cluster: Cluster, tmp_path: Path, asked: dict[str, Any]
) -> None:
    age, word = timedelta(days=100), "qzx1correction"
    old = {"timestamp": f"{(now() - age).isoformat()}Z"}
    cluster.send(
        interaction("ann-1", user_id="ann@shop", workload="support", attributes={"channel": "app"}, **old),
        feedback("f-expert", "ann-1", source="expert", name="correction", value=f"{word}!", **old),
        interaction("new"),
        feedback("f-new", "new"),
    )
    drain(cluster.ingester())
    leader = Daemon(cluster, tmp_path / "a", leads=True)
    leader.follow()
    for table in ("interactions", "feedback"):
        leader.warehouse.execute(f"UPDATE {table} SET received_at = timestamp WHERE id IN ('ann-1', 'f-expert')")
    retention = {"retention": RetentionSettings(keep_days=30, delete_days=60)}
    settings = leader.settings.model_copy(update=retention)
    archive(leader.warehouse, settings, Kept(), now(), threading.Event())
    assert dict(expire(leader.warehouse, settings, now(), is_audited=False)) == {"feedback": 1, "interactions": 1}
    if "user_id" not in asked:
        asked = asked | {"before": (now() - age / 2).isoformat()}
    selection = Request(**asked).selection(leader.erasures.keys)
    previewed = leader.erasures.preview(selection)
    assert (previewed["tables"], previewed["workloads"]) == ({}, ["support"])
    tables = sorted((file["path"].partition("/")[0], file["rows"]) for file in previewed["files"])
    assert tables == [("feedback", 1), ("interactions", 1)]
    leader.erasures.request(selection, "dpo", None)
    leader.erasures.run()
    assert leader.warehouse.rows("SELECT state FROM erasures") == [{"state": "done"}]
    assert traces(cluster.folder, word, "ann-1", "f-expert") == {}
    new = Daemon(cluster, tmp_path / "b", leads=False)
    new.follow()
    assert (new.ids("interactions"), new.ids("feedback")) == (["new"], ["f-new"])
    for daemon in (leader, new):
        daemon.close()


def test_later_turns_and_holds_count_wherever_they_are(cluster: Cluster, tmp_path: Path) -> None:
    about = {"conversation_id": "c-1"}
    cluster.send(
        interaction("first", user_id="ann@shop", timestamp="2026-11-24T09:00:00Z", **about),
        interaction("later", response=f"{SECRET}!", timestamp="2026-11-24T09:10:00Z", **about),
        interaction("before", timestamp="2026-11-24T08:00:00Z", **about),
    )
    drain(cluster.ingester())
    leader = Daemon(cluster, tmp_path / "a", leads=True)
    leader.follow()
    leader.warehouse.execute("DELETE FROM interactions WHERE id = 'first'")
    leader.warehouse.insert(
        "holds", id="h", workload="support.refunds", placed_at=now(), placed_by="counsel", reason="a suit"
    )
    leader.erasures.request(Request(user_id="ann@shop").selection(leader.erasures.keys), "dpo", None)
    with pytest.raises(Busy):
        leader.erasures.run()
    leader.warehouse.execute("DELETE FROM holds")
    leader.erasures.run()
    assert leader.ids("interactions") == [row["id"] for row in cluster.stored()] == ["before"]
    assert traces(cluster.folder, SECRET) == {}
    leader.close()


def test_no_file_of_a_killed_erasure_stays(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.send(*shop_events())
    drain(cluster.ingester())
    leader = Daemon(cluster, tmp_path / "a", leads=True)
    leader.follow()

    def killed(*_: Any) -> bool:
        raise ConnectionError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Database, "exchange_file", killed)
        leader.erasures.request(Request(user_id="ann@shop").selection(leader.erasures.keys), "dpo", None)
        with pytest.raises(ConnectionError):
            leader.erasures.run()
    recorded = {key for (key,) in cluster.query("SELECT key FROM retuned.segment_files")}
    assert len(cluster.files() - recorded) == 1
    leader.erasures.run()
    recorded = {key for (key,) in cluster.query("SELECT key FROM retuned.segment_files")}
    assert cluster.files() == recorded
    assert cluster.query("SELECT key FROM retuned.gone_files") == []
    leader.close()


@pytest.mark.parametrize("when", ["announce_file", "exchange_file"])
def test_a_sweep_beside_an_erasure_deletes_no_file_of_a_segment(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    cluster.send(*shop_events())
    drain(cluster.ingester())
    leader = Daemon(cluster, tmp_path / "a", leads=True)
    leader.follow()
    call, sweeping, swept = getattr(Database, when), cluster.database(), list[int]()

    def swept_meanwhile(self: Database, *given: Any) -> Any:
        if when == "exchange_file" and not swept:
            swept.append(sweep(sweeping, cluster.objects))
        result = call(self, *given)
        if when == "announce_file" and not swept:
            swept.append(sweep(sweeping, cluster.objects))
        return result

    monkeypatch.setattr(Database, when, swept_meanwhile)
    erase_ann(leader)
    assert len(swept) == 1
    recorded = {key for (key,) in cluster.query("SELECT key FROM retuned.segment_files")}
    assert cluster.files() == recorded
    assert [row["id"] for row in cluster.stored()] == ["bob-1"]
    assert traces(cluster.folder, SECRET, MINE, LETTER, *ANN) == {}
    leader.close()
