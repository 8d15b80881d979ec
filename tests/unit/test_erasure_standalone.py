"""What a person takes back is gone: from rows, from files and from every byte, and no copy of it is stored again."""

import base64
import json
import re
import threading
import time
from collections.abc import Iterator
from datetime import UTC, timedelta
from pathlib import Path
from typing import Any

import pytest

from fixtures.feedback.erasing import LETTER, MINE, SECRET, THEIRS, Shop, now, traces
from fixtures.kafka.ingestion import feedback, interaction
from retuned.consumers.common.signing import make_key
from retuned.consumers.decoding import Decoder
from retuned.consumers.errors import Busy, RetunedError
from retuned.consumers.kafka.contract import Batch, Identity
from retuned.consumers.kafka.records import FetchedRecord
from retuned.consumers.privacy.pseudonyms import UserKeys
from retuned.consumers.privacy.redactor import Redactor
from retuned.consumers.settings import AuditSettings, RetentionSettings, Settings
from retuned.consumers.warehouse import holds
from retuned.consumers.warehouse.archive import Kept, archive
from retuned.consumers.warehouse.selection import Request
from retuned.consumers.warehouse.tombstones import Tombstones
from retuned.daemon.cli.main import main

KEYS = UserKeys([b"a key of pseudonyms"])
REASON = "… asked, by <EMAIL_1>"


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(tmp_path)
    shop.rig.send(*shop.events())
    shop.rig.drain()
    yield shop
    shop.warehouse.close()


def test_a_user_is_gone_from_rows_and_from_every_byte(shop: Shop, tmp_path: Path) -> None:
    shop.warehouse.checkpoint()
    gone = (SECRET, LETTER, MINE, "ann-1", "ann-2", "f-ann-on-bob")
    assert traces(tmp_path, *gone).keys() == set(gone)  # the search finds them
    shop.erasures().request(shop.ann(), "dpo", "asked by mail")
    shop.erasures().run()
    assert shop.ids("interactions") == ["bob-1"]
    assert shop.ids("feedback") == ["f-bob-on-bob"]
    assert shop.warehouse.rows("SELECT * FROM dead_letters") == []
    assert traces(tmp_path, *gone) == {}
    shop.warehouse.checkpoint()
    assert traces(tmp_path, *gone) == {}
    assert list(traces(tmp_path, THEIRS)) == [THEIRS]


def test_tombstones_that_replace_as_many_others_are_used(shop: Shop) -> None:
    with shop.warehouse.cursor() as cursor:
        tombstones = Tombstones.stored(KEYS, cursor)
        for id in ("a", "b"):
            cursor.execute("DELETE FROM tombstones")
            ((kind, key_id, digest, *_),) = tombstones.rows([("interaction", id, None, None)])
            cursor.execute(
                "INSERT INTO tombstones BY NAME SELECT ? AS erasure_id, ? AS kind, ? AS key_id, ? AS hash",
                [id, kind, key_id, digest],
            )
            tombstones.refresh(cursor)
            assert tombstones.matching("interaction", ["a", "b"]).keys() == {id}


def test_deleting_alone_would_leave_the_bytes(shop: Shop, tmp_path: Path) -> None:
    shop.warehouse.execute("DELETE FROM interactions WHERE id LIKE 'ann%'")
    shop.warehouse.checkpoint()
    assert list(traces(tmp_path, SECRET)) == [SECRET]


def test_no_copy_is_stored_again(shop: Shop, tmp_path: Path) -> None:
    shop.erasures().request(shop.ann(), "dpo", None)
    shop.erasures().run()
    shop.rig.send(*shop.events(), feedback("late", "ann-1", value=f"{SECRET}?", name="correction"))
    shop.rig.send(f'{{"user_id": "nobody", "interaction_id": "ann-2", "broken": "{LETTER}"}}'.encode())
    shop.rig.drain()
    assert shop.ids("interactions") == ["bob-1"]
    assert shop.ids("feedback") == ["f-bob-on-bob"]
    assert traces(tmp_path, SECRET, LETTER, MINE) == {}
    assert shop.rig.count("retuned_events_erased_total") == 7.0
    coming = now() + timedelta(minutes=1)
    shop.rig.send(interaction("ann-3", user_id="ann@shop", timestamp=f"{coming.isoformat()}Z"))
    shop.rig.drain()
    assert shop.ids("interactions") == ["ann-3", "bob-1"]  # she is a customer again


def test_a_dry_run_changes_nothing_and_finds_the_same(shop: Shop) -> None:
    found = shop.erasures().preview(shop.ann())
    assert found["tables"] == {"interactions": 2, "feedback": 2, "dead_letters": 1}
    assert shop.ids("interactions") == ["ann-1", "ann-2", "bob-1"]
    assert shop.warehouse.rows("SELECT * FROM tombstones") == []


def test_archived_rows_go(shop: Shop, tmp_path: Path) -> None:
    at = {"timestamp": f"{now().isoformat()}Z"}  # old enough are events before the newest ones
    shop.rig.send(interaction("new", **at), feedback("f-new", "new", **at))
    shop.rig.drain()
    settings = shop.settings.model_copy(update={"retention": RetentionSettings(keep_days=1)})
    archive(shop.warehouse, settings, Kept(), now() + timedelta(days=3), threading.Event())
    assert "ann-1" not in shop.ids("interactions")
    assert traces(tmp_path / "archive", SECRET, MINE, LETTER).keys() == {SECRET, MINE, LETTER}
    shop.erasures().request(shop.ann(), "dpo", None)
    shop.erasures().run()
    assert traces(tmp_path, SECRET, MINE, LETTER, "ann-1") == {}
    files = shop.warehouse.rows("SELECT table_name, rows, sha256 FROM archives ORDER BY table_name")
    assert [(row["table_name"], row["rows"]) for row in files] == [("feedback", 1), ("interactions", 1)]
    (receipt,) = shop.warehouse.rows("SELECT receipt FROM erasures")
    rewritten = {Path(file["path"]).parts[-3]: file for file in json.loads(receipt["receipt"])["files"]}
    assert rewritten["dead_letters"]["sha256_after"] is None
    assert rewritten["interactions"]["sha256_after"] == files[1]["sha256"] != rewritten["interactions"]["sha256_before"]


def test_the_receipt_is_signed_and_verified_without_a_daemon(
    shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    public = make_key(tmp_path / "key.pem")
    shop.settings = shop.settings.model_copy(update={"audit": AuditSettings(key_file=tmp_path / "key.pem")})
    id = shop.erasures().request(shop.ann(), "dpo", "asked by mail")
    shop.erasures().run()
    done = shop.erasures().of(id)
    assert done is not None
    file = tmp_path / "receipt.json"
    file.write_text(json.dumps(done["envelope"]))
    assert main(["audit", "verify-receipt", str(file), "--key", str(public)]) == 0
    assert json.loads(capsys.readouterr().out) == done["receipt"]
    receipt = done["receipt"]
    assert (receipt["requested_by"], receipt["reason"]) == ("dpo", "asked by mail")
    assert receipt["rows"] == {"interactions": 2, "feedback": 2, "dead_letters": 1}
    assert receipt["warehouse"]["sha256_before"] != receipt["warehouse"]["sha256_after"]
    assert not [one for one in ("ann", *shop.ann().users, SECRET) if one in file.read_text() + json.dumps(receipt)]
    file.write_text(json.dumps(done["envelope"] | {"payload": base64.b64encode(b"{}").decode()}))
    assert main(["audit", "verify-receipt", str(file), "--key", str(public)]) == 1


def test_an_erasure_waits_for_a_legal_hold(shop: Shop, tmp_path: Path) -> None:
    (held,) = holds.place(shop.warehouse, None, shop.ann().users, "a lawsuit", "counsel", now())
    assert shop.erasures().preview(shop.ann())["holds"] == [str(held)]
    id = shop.erasures().request(shop.ann(), "dpo", None)
    with pytest.raises(Busy, match="a lawsuit"):
        shop.erasures().run()
    waiting = shop.erasures().of(id)
    assert waiting is not None
    assert "a lawsuit" in waiting["error"]
    assert shop.ids("interactions") == ["ann-1", "ann-2", "bob-1"]
    holds.release(shop.warehouse, held.id, "settled", "counsel", now())
    shop.erasures().run()
    assert traces(tmp_path, SECRET) == {}


def test_a_message_on_the_erasure_topic_asks_once_and_names_no_user(tmp_path: Path) -> None:
    shop = Shop(tmp_path, erasure_topic="erase")
    shop.rig.send(*shop.events())
    shop.log.append("erase", b'{"user_id": "ann@shop", "reason": "ann@shop asked, by ann@other.example"}')
    shop.log.append("erase", b'{"usr": "qzxann@shop"}')
    shop.log.append("erase", b'{"workload": "support.refunds"}')
    shop.rig.drain()
    (row,) = shop.warehouse.rows("SELECT id, state, requested_by, reason FROM erasures")
    assert re.fullmatch("erase-0-0-erase 0-[0-9a-f]{16}", row.pop("id"))
    assert row == {"state": "requested", "requested_by": "kafka erase", "reason": REASON}
    assert "ann@shop" not in traces(tmp_path, "ann@shop")
    refused = shop.warehouse.rows("SELECT payload, detail FROM dead_letters WHERE reason = 'bad_erasure' ORDER BY ALL")
    assert [one["payload"] for one in refused] == [None, None]
    assert "add after, before or attribute" in refused[0]["detail"] + refused[1]["detail"]
    assert traces(tmp_path, "qzxann") == {}
    shop.erasures().run()
    assert traces(tmp_path, SECRET, MINE, LETTER) == {}
    assert shop.ids("interactions") == ["bob-1"]
    shop.warehouse.close()


@pytest.mark.parametrize(
    ("request_", "left"),
    [
        ({"interaction_id": "ann-2"}, ["ann-1", "bob-1"]),
        ({"interaction_id": "ann-1"}, ["bob-1"]),  # the later turn repeats it
        ({"conversation_id": "c-bob"}, ["ann-1", "ann-2"]),
        ({"workload": "support.refunds", "before": "2026-11-24T09:35"}, []),
        ({"workload": "support.refunds", "after": "2026-11-24T09:35"}, ["ann-1", "bob-1"]),
        ({"workload": "other", "before": "2027-01-01"}, ["ann-1", "ann-2", "bob-1"]),
        ({"attribute": ["channel=app"]}, ["ann-1", "ann-2"]),
        ({"attribute": ["channel=mail"]}, ["ann-1", "ann-2", "bob-1"]),
    ],
)
def test_what_a_request_selects(tmp_path: Path, request_: dict[str, Any], left: list[str]) -> None:
    shop = Shop(tmp_path)
    shop.rig.send(*(event for event in shop.events() if isinstance(event, dict)))
    shop.rig.drain()
    shop.erasures().request(Request(**request_).selection(shop.erasures().keys), "dpo", None)
    shop.erasures().run()
    assert shop.ids("interactions") == left
    about = {row["interaction_id"] for row in shop.warehouse.rows("SELECT interaction_id FROM feedback")}
    assert about == {id for id in left if id != "ann-2"}
    shop.warehouse.close()


@pytest.mark.parametrize(
    "request_",
    [{}, {"user_id": "a", "interaction_id": "b"}, {"user_id": "a", "before": "2026-01-01"}, {"workload": "w"},
     {"attribute": ["channel"]}, {"attribute": ['a"b=1']}, {"attribute": ["a\\=1"]}, {"before": "yesterday"}],
)  # fmt: skip
def test_a_request_that_is_not_clear_is_refused(shop: Shop, request_: dict[str, Any]) -> None:
    with pytest.raises(RetunedError, match=r"^erasure: "):
        Request(**request_).selection(shop.erasures().keys)


def test_tombstones_match_under_each_key_of_the_file() -> None:
    old, new = UserKeys([b"the old key of users"]), UserKeys([b"the new key of users", b"the old key of users"])
    made = Tombstones(old).rows([("interaction", "i1", None, None)])
    for keys, found in ((old, {"i1"}), (new, {"i1"}), (UserKeys([b"the new key of users"]), set())):
        tombstones = Tombstones(keys)
        tombstones.use(made)
        assert set(tombstones.matching("interaction", ["i1", "i2"])) == found
        assert not tombstones.matching("feedback", ["i1"])
    assert "i1" not in str(made)


@pytest.mark.parametrize("id", ["i-1", "order 17 (b)", "Slack thread C1, 99", 'say "hi"'])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_letter_quotes_an_id_whatever_its_signs(id: str, wrapped: bool) -> None:
    tombstones = Tombstones(KEYS)
    tombstones.use(tombstones.rows([("interaction", id, None, None)]))
    text = json.dumps({"interaction_id": id})
    assert tombstones.quoted(json.dumps({"body": text}) if wrapped else text, now())
    assert not tombstones.quoted(json.dumps({"interaction_id": f"{id}x"}), now())


@pytest.mark.parametrize(("hours", "kept"), [(-1, False), (1, True), (None, False)])
def test_a_letter_is_judged_by_when_its_message_was_written(hours: float | None, kept: bool) -> None:
    """A topic that is read again brings messages from before the erasure."""
    tombstones = Tombstones(KEYS)
    tombstones.use(tombstones.rows([("user", KEYS.pseudonym("ann"), None, now())]))
    written = None if hours is None else (now() + timedelta(hours=hours)).replace(tzinfo=UTC).timestamp()
    record = FetchedRecord("interactions", 0, 0, b'{"id": "x", "user_id": "ann"}', timestamp=written)
    batch = Batch([record], {}, {("interactions", 0): 1})
    rows = Decoder(Settings(), lambda: None).rows(batch, 3_600, KEYS.pseudonym)
    rows.redact(Redactor(), KEYS.pseudonym_or_stored)
    assert KEYS.pseudonym("ann") in str(rows.dead[0].payload)
    tombstones.take_out(rows)
    assert (rows.dead[0].payload is not None) is kept


def test_ids_of_archived_events_are_forgotten_in_a_cluster(shop: Shop) -> None:
    shop.warehouse.execute("INSERT INTO archived_ids SELECT 'interactions', md5_number_lower(id) FROM interactions")
    cluster = shop.settings.model_copy(update={"retention": RetentionSettings(keep_days=1)})
    archive(shop.warehouse, cluster, Kept(), now() + timedelta(days=9), threading.Event())
    at = {"timestamp": f"{now().isoformat()}Z"}
    shop.rig.send(interaction("new", **at), feedback("f-new", "new", **at))
    shop.rig.drain()
    archive(shop.warehouse, cluster, Kept(), now() + timedelta(days=9), threading.Event())
    assert "ann-1" not in shop.ids("interactions")
    shop.erasures().request(shop.ann(), "dpo", None)
    shop.erasures().run()
    left = shop.warehouse.rows("SELECT hash FROM archived_ids")
    assert left == shop.warehouse.rows("SELECT md5_number_lower('bob-1') AS hash")


def test_a_topic_that_is_made_anew_asks_again_at_the_same_offset(tmp_path: Path) -> None:
    shop = Shop(tmp_path, erasure_topic="erase")
    for user in ("ann@shop", "bob"):
        shop.log.append("erase", json.dumps({"user_id": user}).encode())
        shop.rig.drain()
        shop.erasures().run()
        shop.log.remake("erase")
    asked = [row["state"] for row in shop.warehouse.rows("SELECT state FROM erasures")]
    assert asked == ["done", "done"]
    shop.warehouse.close()


@pytest.mark.parametrize("user", ["ann@shop", "bob"])  # Ann asks again, in the same words
@pytest.mark.parametrize("loss", ["recreated", "truncated"])
def test_a_message_at_the_offset_of_another_one_asks_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: str, user: str
) -> None:
    """A topic is recreated on a broker without ids of topics, or its log loses its end in an unclean election."""
    shop = Shop(tmp_path, erasure_topic="erase")
    if loss == "recreated":
        monkeypatch.setattr(shop.log, "identity", lambda _: Identity("memory", None))
    for earlier in ("ann@shop", "carl"):
        shop.log.append("erase", json.dumps({"user_id": earlier}).encode())
    shop.rig.drain()
    first = {row["id"] for row in shop.warehouse.rows("SELECT id FROM erasures")}
    if loss == "recreated":
        shop.log.remake("erase")
    else:
        shop.log.truncate("erase", 1)
        shop.rig.drain()  # reads the first one again
    shop.log.append("erase", json.dumps({"user_id": user}).encode())
    shop.rig.send(interaction("new"))
    shop.rig.drain()
    asked = shop.warehouse.rows("SELECT id, selection FROM erasures")
    (added,) = (row for row in asked if row["id"] not in first)
    assert json.loads(added["selection"])["users"] == shop.erasures().keys.pseudonyms(user)
    assert len(asked) == 3
    assert shop.ids("interactions") == ["new"]
    shop.warehouse.close()


def test_a_message_whose_time_no_clock_shows_is_stored_beside_an_erasure(shop: Shop) -> None:
    """A producer sets nanoseconds as the time of its messages."""
    shop.erasures().request(shop.ann(), "dpo", None)
    shop.erasures().run()
    shop.log.append("in", b'{"id": "y", "broken', milliseconds=time.time_ns())
    shop.rig.send(interaction("new"))
    shop.rig.drain()
    assert shop.ids("interactions") == ["bob-1", "new"]
    assert shop.warehouse.rows('SELECT payload FROM dead_letters WHERE "offset" = 4') == [{"payload": '{"id": …, …'}]
    shop.log.append("in", b"{", milliseconds=int((time.time() - 7_200) * 1000))
    shop.log.append("in", b"{", milliseconds=time.time_ns())
    shop.rig.source.poll(2, 0.0)
    shop.log.append("in", b"{")
    assert shop.rig.source.lag_seconds(time.time() + 60)["in"] >= 59


ASKED = [
    {"role": "user", "content": f"My {SECRET} is broken."},
    {"role": "assistant", "content": "Oh."},
    {"role": "user", "content": "And now?"},
]


@pytest.mark.parametrize(
    "request_", [{"interaction_id": "ann-1"}, {"user_id": "ann@shop"}, {"conversation_id": "c-ann"}], ids=str
)
@pytest.mark.parametrize("sent", [timedelta(days=-1), timedelta(seconds=5)], ids=["before", "after"])
def test_later_turns_of_an_erased_conversation_stay_out_whenever_they_come(
    shop: Shop, tmp_path: Path, request_: dict[str, Any], sent: timedelta
) -> None:
    shop.erasures().request(Request(**request_).selection(shop.erasures().keys), "dpo", None)
    shop.erasures().run()
    at = {"timestamp": f"{(now() + sent).isoformat()}Z"}
    shop.rig.send(interaction("ann-3", conversation_id="c-ann", messages=ASKED, user_id="ann@shop", **at))
    shop.rig.send(interaction("bob-2", conversation_id="c-bob", user_id="bob", **at))
    if sent > timedelta():  # what she writes later in another conversation is new
        shop.rig.send(interaction("ann-4", conversation_id="c-ann-2", user_id="ann@shop", **at))
    shop.rig.drain()
    assert shop.ids("interactions") == [*(["ann-4"] if sent > timedelta() else []), "bob-1", "bob-2"]
    assert traces(tmp_path, SECRET) == {}


def test_an_earlier_turn_than_the_erased_one_is_stored_when_it_comes_late(shop: Shop) -> None:
    shop.erasures().request(Request(interaction_id="ann-2").selection(shop.erasures().keys), "dpo", None)
    shop.erasures().run()
    shop.rig.send(interaction("ann-0", conversation_id="c-ann", timestamp="2026-11-24T09:20:00Z"))
    shop.rig.drain()
    assert shop.ids("interactions") == ["ann-0", "ann-1", "bob-1"]


def test_events_whose_json_names_an_erased_user_stay_out(shop: Shop, tmp_path: Path) -> None:
    shop.erasures().request(shop.ann(), "dpo", None)
    shop.erasures().run()
    about = {"attributes": {"customer": {"user_id": "ann@shop"}}, "response": f"{SECRET}."}
    coming = f"{(now() + timedelta(minutes=1)).isoformat()}Z"
    shop.rig.send(
        interaction("team-1", user_id="team", timestamp="2026-11-24T09:41:00Z", **about),
        feedback("f-team", "bob-1", user_id="team", name="seen", value={"customer": {"user_id": "ann@shop"}}),
        interaction("team-2", user_id="team", attributes={"customer": {"user_id": "ann@shop"}}, timestamp=coming),
        interaction("team-3", user_id="team", attributes={"customer": {"user_id": "bob"}}),
    )
    shop.rig.drain()
    assert shop.ids("interactions") == ["bob-1", "team-2", "team-3"]
    assert shop.ids("feedback") == ["f-bob-on-bob"]
    assert traces(tmp_path, SECRET) == {}


def test_feedback_that_is_erased_by_its_id_before_it_comes_stays_out(shop: Shop) -> None:
    shop.erasures().request(Request(interaction_id="f-late").selection(shop.erasures().keys), "dpo", None)
    shop.erasures().run()
    shop.rig.send(feedback("f-late", "bob-1", user_id="ann@shop"))
    shop.rig.drain()
    assert "f-late" not in shop.ids("feedback")
