"""What no column names: entries of the memory, late versions and ids in sentences; and a receipt without its key."""

import json
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fixtures.feedback.erasing import LETTER, MINE, SECRET, Shop, now, traces
from fixtures.kafka.ingestion import feedback, interaction
from retuned.consumers.common.signing import make_key
from retuned.consumers.errors import RetunedError
from retuned.consumers.privacy.pseudonyms import load_user_keys
from retuned.consumers.settings import AuditSettings, RetentionSettings
from retuned.consumers.warehouse.archive import Kept, archive
from retuned.consumers.warehouse.selection import Selection
from retuned.daemon.erasure import erasure as module

WORKLOAD = "support.refunds"


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(tmp_path)
    yield shop
    shop.warehouse.close()


def erase(shop: Shop, selection: Selection) -> dict[str, Any]:
    erasures = shop.erasures()
    id = erasures.request(selection, "dpo", None)
    erasures.run()
    found = erasures.of(id)
    assert found is not None
    assert found["state"] == "done"
    receipt: dict[str, Any] = found["receipt"]
    return receipt


def entry(shop: Shop, id: str, author: str | None, *feedback_ids: str) -> None:
    shop.warehouse.insert(
        "memory_entries", id=id, workload=WORKLOAD, question_key=id, messages="[]", question=SECRET, answer=MINE,
        source="users", author=author, feedback_ids=json.dumps(feedback_ids), since=now() - timedelta(days=1),
        added_at=now(), state="active", reason="", changed_at=now(), sequence=int(id),
    )  # fmt: skip


def test_an_entry_of_the_memory_goes_that_rests_on_archived_feedback_or_has_the_wording_of_the_person(
    shop: Shop,
) -> None:
    shop.rig.send(*shop.events())
    at = {"timestamp": f"{now().isoformat()}Z"}
    shop.rig.send(interaction("new", **at), feedback("f-new", "new", **at))  # old events leave beside new ones
    shop.rig.drain()
    settings = shop.settings.model_copy(update={"retention": RetentionSettings(keep_days=1)})
    archive(shop.warehouse, settings, Kept(), now() + timedelta(days=3), threading.Event())
    assert shop.ids("feedback") == ["f-new"]
    entry(shop, "1", None, "f-ann-on-bob")
    entry(shop, "2", shop.ann().users[0], "deleted-long-ago")
    entry(shop, "3", "someone", "f-bob-on-bob")
    quoting = f"contradicted: f-ann-on-bob: {LETTER}"
    shop.warehouse.execute("UPDATE memory_entries SET reason = $1 WHERE id = '3'", [quoting])
    shop.warehouse.insert(
        "row_states", workload=WORKLOAD, feedback_id="f-bob-on-bob", interaction_id="bob-1", state="set_aside",
        reason="superseded", detail=quoting, quarantined=False, dataset_version="d", decided_at=now(),
    )  # fmt: skip
    receipt = erase(shop, shop.ann())
    assert receipt["rows"]["memory_entries"] == 2
    assert shop.warehouse.rows("SELECT reason, detail FROM row_states") == [
        {"reason": "superseded", "detail": "<ERASED>"}
    ]
    assert shop.warehouse.rows("SELECT reason FROM memory_entries WHERE id = '3'") == [{"reason": "<ERASED>"}]
    entries = shop.warehouse.rows("SELECT id, answer, state, author FROM memory_entries ORDER BY id")
    assert [tuple(row.values()) for row in entries] == [
        ("1", "", "removed", None), ("2", "", "removed", None), ("3", MINE, "active", "someone")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("selection", "left"),
    [
        ({"interactions": ["bob-1"]}, [("bob-2", "ann@shop", "ann wrote this")]),
        ({"users": "ann@shop"}, [("bob-1", "bob", "see bob")]),
        ({"interactions": ["c-ann"]}, [("bob-1", "bob", "see bob"), ("bob-2", "ann@shop", "ann wrote this")]),
    ],
    ids=["the answer", "the expert", "the comment"],
)
def test_a_comment_that_an_expert_wrote_with_an_answer_goes(
    shop: Shop, tmp_path: Path, selection: dict[str, Any], left: list[tuple[str, str, str]]
) -> None:
    """One was published, as an event of its own; another waits for what other experts answer."""
    comment = feedback("c-ann", "bob-1", user_id="ann@shop", name="comment", value=f"{MINE}!", source="expert")
    shop.rig.send(*(interaction(id) for id in ("bob-1", "bob-2")), comment)
    shop.rig.drain()
    for request, expert, text in (
        ("bob-1", "ann@shop", f"{MINE}!"), ("bob-1", "bob", "see bob"), ("bob-2", "ann@shop", "ann wrote this"),
    ):  # fmt: skip
        shop.warehouse.insert(
            "label_work", request_id=request, expert=expert, state="answered", since=now(), name="helpful",
            value="true", comment=text,
        )  # fmt: skip
    for id in ("bob-1", "bob-2"):
        shop.warehouse.insert(
            "label_requests", id=id, created_at=now(), workload=WORKLOAD, interaction_id=id, reason="uncertain",
            detail="", announced=True,
        )  # fmt: skip
    if "users" in selection:
        selection = {"users": load_user_keys(shop.settings.privacy, shop.warehouse.path).pseudonyms("ann@shop")}
    erase(shop, Selection(**selection))
    rows = shop.warehouse.rows("SELECT request_id, expert, comment FROM label_work ORDER BY ALL")
    assert [tuple(row.values()) for row in rows] == left
    assert traces(tmp_path, MINE) == {}


def test_a_version_that_is_registered_after_the_rows_were_deleted_has_learned_them(shop: Shop) -> None:
    shop.rig.send(*shop.events())
    shop.rig.drain()
    warehouse = shop.warehouse
    warehouse.insert("datasets", version="d1", workload=WORKLOAD, created_at=now(), path="/x", card="{}", train=1,
                     holdout=0, replay=0)  # fmt: skip
    warehouse.insert("dataset_rows", dataset_version="d1", row_id="r1", split="train", prompt_hash="h",
                     interaction_id="ann-1", feedback_id="f-bob-on-ann")  # fmt: skip
    erasures = shop.erasures()
    id = erasures.request(shop.ann(), "dpo", None)
    for _ in ("requested", "deleting"):
        erasures._advance(warehouse.rows("FROM erasures")[0])
    assert warehouse.rows("FROM dataset_rows") == []
    for version, parent, dataset in (("v1", None, "d1"), ("v2", "v1", "d2")):
        warehouse.insert("models", version=version, workload=WORKLOAD, path="/x", base_model="b", base_hash="h",
                         parent_version=parent, dataset_version=dataset, created_at=now(), run_id="x",
                         manifest="{}")  # fmt: skip
    erasures.run()
    assert {row["version"] for row in warehouse.rows("FROM erased_versions")} == {"v1", "v2"}
    found = erasures.of(id)
    assert found is not None
    assert [(row["version"], row["rows"]) for row in found["receipt"]["versions"]] == [("v1", 1), ("v2", 0)]


def test_an_id_that_is_a_number_or_a_name_is_blanked_in_sentences_alone(shop: Shop) -> None:
    shop.rig.send(interaction("16"), interaction("champion"), interaction("17"))
    shop.rig.drain()
    warehouse = shop.warehouse
    manifest = '{"settings": {"rank": 16, "seed": 42}, "metrics": {"loss": 1.1613}, "name": "champion"}'
    warehouse.insert("models", version="v1", workload=WORKLOAD, path="/x", base_model="b", base_hash="h",
                     dataset_version="d", created_at=now(), run_id="x", manifest=manifest)  # fmt: skip
    warehouse.insert("aliases", workload=WORKLOAD, alias="champion", version="v1", created_at=now())
    figures = '{"16": 16, "rate": 0.16,  "said": "on 16: \\"16\\""}'
    warehouse.insert("decisions", id="16", workload=WORKLOAD, created_at=now(), kind="retrain", outcome=True,
                     reasons='["Answer 16 was wrong.", "It was 16."]', figures=figures)  # fmt: skip
    reasons = {1: "16 was better (16), said 16.", 2: "accuracy 0.16 of v2026-07-16"}
    for number, reason in reasons.items():
        warehouse.insert("promotions", id=f"p{number}", workload=WORKLOAD, created_at=now(), event="promoted",
                         version="v1", actor="gate", announced=True, reason=reason)  # fmt: skip
    erase(shop, Selection(interactions=["16"]))
    erase(shop, Selection(interactions=["champion"]))
    assert shop.ids("interactions") == ["17"]
    assert warehouse.rows("SELECT manifest FROM models")[0]["manifest"] == manifest
    assert warehouse.rows("SELECT alias FROM aliases") == [{"alias": "champion"}]
    (decision,) = warehouse.rows("SELECT id, reasons, figures FROM decisions")
    assert decision == {
        "id": "16",
        "reasons": '["Answer <ERASED> was wrong.", "It was <ERASED>."]',
        "figures": '{"16": 16, "rate": 0.16,  "said": "on <ERASED>: \\"<ERASED>\\""}',
    }
    shown = [row["reason"] for row in warehouse.rows("SELECT reason FROM promotions ORDER BY id")]
    assert shown == ["<ERASED> was better (<ERASED>), said <ERASED>.", reasons[2]]


def test_sentences_of_people_keep_no_id_of_an_erased_person(shop: Shop) -> None:
    """Also where a sentence was written before the person's first event, in a row about another person's answer."""
    user = "u-4711"
    shop.rig.send(
        interaction("own-1", user_id=user, conversation_id="conv-9"), interaction("other-1", user_id="u-47"),
        feedback("f-other", "other-1", user_id="u-47"),
    )  # fmt: skip
    shop.rig.drain()
    keys, warehouse = load_user_keys(shop.settings.privacy, shop.warehouse.path), shop.warehouse
    (other,) = keys.pseudonyms("u-47")
    said = f"see own-1, conv-9, {keys.pseudonym(user)}, user u-4711; user:u-4711. Not u-47, {other} or other-1."
    left = f"see {', '.join(['<ERASED>'] * 3)}, user <ERASED>; user:<ERASED>. Not u-47, {other} or other-1."
    base: dict[str, Any] = {"reason": said}
    at = {"created_at": now()}
    for table, row in {
        "pauses": at | {"actor": "otto"},
        "row_decisions": {"id": "d1", "workload": WORKLOAD, "feedback_id": "f-other", "interaction_id": "other-1",
                          "accepted": False, "action": "drop", "author": "otto", "decided_at": now()},
        "account_decisions": {"id": "d2", "user_id": other, "action": "ban", "author": "otto", "decided_at": now()},
        "erased_kept": at | {"workload": WORKLOAD, "until": now(), "actor": "otto"},
        "promotions": at | {"id": "p", "workload": WORKLOAD, "event": "promoted", "version": "v1", "actor": "gate",
                            "announced": True},
    }.items():  # fmt: skip
        warehouse.insert(table, **base, **row)
    warehouse.insert("label_requests", id="l1", created_at=now(), workload=WORKLOAD, interaction_id="other-1",
                     reason="uncertain", detail=said, announced=True)  # fmt: skip
    warehouse.insert("label_work", request_id="l1", expert="otto", state="answered", since=now(), name="helpful",
                     value="true", comment=said)  # fmt: skip
    erase(shop, Selection(users=keys.pseudonyms(user)))
    for table, column in (
        ("pauses", "reason"), ("row_decisions", "reason"), ("account_decisions", "reason"), ("erased_kept", "reason"),
        ("promotions", "reason"), ("label_requests", "detail"), ("label_work", "comment"),
    ):  # fmt: skip
        (row,) = warehouse.rows(f"SELECT {column} AS text FROM {table}")
        assert row["text"] == left, table


@pytest.mark.parametrize("earlier", [False, True])  # of a version that did not store whose file it was
def test_the_file_is_swapped_once_although_the_receipt_cannot_be_signed(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: bool
) -> None:
    shop.rig.send(*shop.events())
    shop.rig.drain()
    key, swaps, real = tmp_path / "key", list[object](), module.swap
    shop.settings = shop.settings.model_copy(update={"audit": AuditSettings(key_file=key)})
    monkeypatch.setattr(module, "swap", lambda *given: swaps.append(real(*given)) or swaps[-1])
    erasures = shop.erasures()
    id = erasures.request(shop.ann(), "dpo", None)
    for _ in range(2):
        with pytest.raises(RetunedError, match="key"):
            erasures.run()
    assert len(swaps) == 1
    if earlier:
        shop.warehouse.execute("UPDATE erasures SET found = json_merge_patch(found, '{\"mark\": null}')")
    make_key(key)
    shop.erasures().run()
    found = erasures.of(id)
    assert found is not None
    assert (found["state"], found["envelope"] is not None, len(swaps)) == ("done", True, 1 + earlier)
