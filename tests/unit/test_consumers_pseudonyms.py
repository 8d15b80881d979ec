"""Pseudonyms of users, their keys and the rotation of those."""

import json
import stat
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from fixtures.kafka.ingestion import Rig, feedback, interaction, settings_for
from retuned.consumers.errors import ConfigurationError
from retuned.consumers.formats.users import names_user
from retuned.consumers.kafka.memory import MemoryLog
from retuned.consumers.privacy.pseudonyms import UserKeys, load_user_keys
from retuned.consumers.settings import PrivacySettings
from retuned.consumers.warehouse.connection import Warehouse
from retuned.consumers.warehouse.dead_letters import dead_letters
from retuned.daemon.cli import main as cli


def test_a_user_is_a_keyed_hash_that_names_its_key() -> None:
    one, other = UserKeys([b"k"]), UserKeys([b"other"])
    assert one.pseudonym("u1") == UserKeys([b"k"]).pseudonym("u1")
    assert len({one.pseudonym("u1"), other.pseudonym("u1"), one.pseudonym("u2")}) == 3
    name, _, digest = one.pseudonym("ü").partition(":")
    assert (len(name), len(digest)) == (4, 32)
    assert one.pseudonym("u1").startswith(f"{name}:")
    assert not other.pseudonym("u1").startswith(f"{name}:")


def test_after_a_rotation_only_who_holds_both_keys_links_a_user(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("old key of 16 characters\n")
    settings = PrivacySettings(user_key_file=file)
    before = load_user_keys(settings, tmp_path / "w").pseudonym("anna")
    file.write_text("new key of 16 characters\n\n old key of 16 characters \n")
    both = load_user_keys(settings, tmp_path / "w")
    assert both.pseudonym("anna") != before
    assert both.pseudonyms("anna") == [both.pseudonym("anna"), before]
    file.write_text("new key of 16 characters\n")
    assert load_user_keys(settings, tmp_path / "w").pseudonyms("anna") == [both.pseudonym("anna")]


def test_keys_do_not_show() -> None:
    keys = UserKeys([b"first secret", b"second secret"])
    assert "secret" not in repr(keys)
    assert "secret" not in str(keys)
    assert "given" not in repr(PrivacySettings(user_key=SecretStr("given")))


def test_a_key_is_made_once_beside_the_warehouse_for_its_owner_alone(tmp_path: Path) -> None:
    warehouse = tmp_path / "new" / "w.duckdb"
    user = load_user_keys(PrivacySettings(), warehouse).pseudonym("u")
    assert load_user_keys(PrivacySettings(), warehouse).pseudonym("u") == user
    assert stat.S_IMODE((tmp_path / "new" / "w.duckdb.key").stat().st_mode) == 0o600
    assert len((tmp_path / "new" / "w.duckdb.key").read_bytes().strip()) == 64


def test_a_key_comes_from_the_settings(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("a key from a file\n")
    loaded = load_user_keys(PrivacySettings(user_key_file=file), tmp_path / "w")
    assert loaded.pseudonym("u") == UserKeys([b"a key from a file"]).pseudonym("u")
    both = PrivacySettings(user_key=SecretStr("a key that is given\nolder"), user_key_file=file)
    assert load_user_keys(both, tmp_path / "w").pseudonyms("u") == UserKeys(
        [b"a key that is given", b"older"]
    ).pseudonyms("u")
    assert not (tmp_path / "w.key").exists()


def test_a_key_that_is_missing_or_empty_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"user_key_file .*nowhere"):
        load_user_keys(PrivacySettings(user_key_file=tmp_path / "nowhere"), tmp_path / "w")
    (tmp_path / "empty").write_text(" \n\n")
    with pytest.raises(ConfigurationError, match="empty"):
        load_user_keys(PrivacySettings(user_key_file=tmp_path / "empty"), tmp_path / "w")


@pytest.mark.parametrize("key", ["k", "k" * 15, "short\na second key that is long enough"])
def test_a_key_that_can_be_guessed_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigurationError, match=r"privacy\.user_key: the key has \d+ characters; expected 16 or more"):
        load_user_keys(PrivacySettings(user_key=SecretStr(key)), tmp_path / "w")


def test_the_command_line_shows_what_a_user_is_stored_as(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RETUNED__PRIVACY__USER_KEY", "a new key, long enough\nold key")
    assert cli.main(["pseudonym", "anna"]) == 0
    assert capsys.readouterr().out.split() == UserKeys([b"a new key, long enough", b"old key"]).pseudonyms("anna")


SCHEMA = {"type": "object", "properties": {"user": {"type": "object", "properties": {"id": {"type": "integer"}}},
          "user_id": {"type": "string", "description": "of the customer"}}, "required": ["user_id"]}  # fmt: skip


@pytest.mark.parametrize(
    ("deep", "expected"),
    [
        ({"order": {"user_id": "u-17"}}, {"order": {"user_id": "<u-17>"}}),
        ({"a": [{"b": [{"userId": " u-17 ", "n": 1.5}]}]}, {"a": [{"b": [{"userId": "<u-17>", "n": 1.5}]}]}),
        ({"order": {"user": {"id": 17, "plan": "gold"}}}, {"order": {"user": {"id": "<17>", "plan": "gold"}}}),
        ({"x": {"user": ["u-17", {"user_email": "a@b.de"}]}}, {"x": {"user": ["<u-17>", {"user_email": "<a@b.de>"}]}}),
        ({"x": {"safety_identifier": "u-17"}}, {"x": {"safety_identifier": "<u-17>"}}),
        ({"metadata": {"trace": {"user.id": "u-17"}}}, {"metadata": {"trace": {"user.id": "<u-17>"}}}),
        ({"x": {"user": None, "users": 3, "user_name": ""}}, {"x": {"user": None, "users": 3, "user_name": ""}}),
        ({"tools": [{"function": {"name": "find", "parameters": SCHEMA}}]},) * 2,
    ],
)  # fmt: skip
def test_a_user_at_any_depth_of_the_attributes_is_stored_as_a_pseudonym(
    tmp_path: Path, warehouse: Warehouse, deep: dict[str, Any], expected: dict[str, Any]
) -> None:
    rig = Rig(settings_for(tmp_path), warehouse, MemoryLog())
    escaped = json.dumps(interaction("b", attributes={"channel": "web", **deep})).replace("ser", "\\u0073er")
    rig.send(interaction("a", attributes={"channel": "web", **deep}), escaped.encode(), interaction("c"))
    rig.drain()
    for user in ("u-17", "17", "a@b.de"):
        expected = json.loads(json.dumps(expected).replace(f"<{user}>", rig.ingest.writer.pseudonym(user)))
    stored = rig.warehouse.rows("SELECT attributes FROM interactions ORDER BY id")
    assert [json.loads(row["attributes"] or "null") for row in stored[:2]] == [{"channel": "web", **expected}] * 2


# What names nobody: roles, types, templates, sentences, descriptions.
NOBODY = {
    "user": "admin", "user_id": "{user_id}", "userId": "string", "username": "<name>", "users": 3, "user_count": 2,
    "messages": [{"role": "user", "name": "customer"}, {"role": "tool", "name": "find_order"}],
    "shots": [{"user": "Where is my parcel?", "assistant": "On its way."}],
    "tool": {"parameters": SCHEMA}, "user_agent": "curl", "is_user": True, "order": {"id": "o-17"},
}  # fmt: skip


def test_a_user_is_the_same_pseudonym_wherever_an_event_names_him(tmp_path: Path, warehouse: Warehouse) -> None:
    rig = Rig(settings_for(tmp_path), warehouse, MemoryLog())
    named = {
        "user": "u-17", "userId": "u-17", "customer_id": "u-17", "account-id": "u-17", "endUser": " u-17 ",
        "customer": {"id": "u-17", "plan": "gold"}, "users": [{"id": "u-17"}], "requestUserID": {"value": "u-17"},
        "list": [{"key": "user.id", "value": {"stringValue": "u-17"}}], "benutzername": "u-17",
    }  # fmt: skip
    arguments = json.dumps({"x": json.dumps(named)})
    call = {"id": "call_1", "type": "function", "function": {"name": "find", "arguments": arguments}}
    said = {"role": "user", "content": json.dumps(named), "user_id": "u-17", "name": "u-17"}
    rig.send(
        interaction("a", user_id=" u-17 ", attributes={"deep": named}),
        interaction("b", messages=[said, {"role": "assistant", "content": None, "tool_calls": [call]}]),
        interaction("c", response=json.dumps(named), context=[json.dumps(named)]),
        feedback("f", "a", name="correction", value=named, user_id="u-17"),
        feedback("g", "a", name="correction", value=json.dumps(named)),
    )
    rig.drain()
    rows = rig.warehouse.rows("SELECT * FROM interactions") + rig.warehouse.rows("SELECT * FROM feedback")
    assert len(rows) == 5
    assert "u-17" not in str(rows)
    pseudonym = rig.ingest.writer.pseudonym("u-17")
    assert str(rows).count(pseudonym) == len(named) * 7 + 4
    (correction,) = [json.loads(row["value"]) for row in rows if row["id"] == "f"]
    assert correction["customer"] == {"id": pseudonym, "plan": "gold"}


def test_the_values_of_keys_that_are_kept_stay_wherever_they_stand(tmp_path: Path, warehouse: Warehouse) -> None:
    settings = settings_for(tmp_path)
    privacy = settings.privacy.model_copy(update={"keep_keys": ("Account_Id", "card.id")})
    rig = Rig(settings.model_copy(update={"privacy": privacy}), warehouse, MemoryLog())
    number, card = "6923 7659 9887", "4111 1111 1111 1111"
    arguments = {"account_id": number, "customer_id": "u-17", "card": {"id": card}, "note": card, "account": {"id": 17}}
    call = {"id": "call_1", "type": "function", "function": {"name": "update", "arguments": json.dumps(arguments)}}
    rig.send(
        interaction("a", response="", attributes={"tool_calls": [call]}),
        interaction("b", response=json.dumps(arguments)),
        feedback("f", "a", name="correction", value={"tool_calls": [call]}),
    )
    rig.drain()
    for row in (*rig.warehouse.rows("SELECT * FROM interactions"), *rig.warehouse.rows("SELECT * FROM feedback")):
        told = str(row)
        assert (told.count(number), told.count(card)) == (1, 1), told
        assert "u-17" not in told


def test_a_number_names_the_same_user_however_it_is_written(tmp_path: Path, warehouse: Warehouse) -> None:
    """pandas writes 4711.0 where the column has a gap."""
    rig = Rig(settings_for(tmp_path), warehouse, MemoryLog())
    rig.send(
        interaction("a", attributes={"deep": {"user_id": 4711}}),
        interaction("b", attributes={"deep": {"user_id": 4711.0}}, response='{"customer": {"id": 4711.0}}'),
        interaction("c", attributes={"user_id": 4711.0}),
    )
    rig.drain()
    rows = rig.warehouse.rows("SELECT user_id, response, attributes FROM interactions")
    assert "4711" not in str(rows)
    assert str(rows).count(rig.ingest.writer.pseudonym("4711")) == 4


def test_long_keys_do_not_stay_in_memory() -> None:
    tracemalloc.start()
    try:
        for number in range(50):
            assert names_user(f"{number} " + "abc " * 10_000 + "user_id", "of " * 10_000)
        assert tracemalloc.get_traced_memory()[0] < 400_000
    finally:
        tracemalloc.stop()


def test_what_names_nobody_stays(tmp_path: Path, warehouse: Warehouse) -> None:
    rig = Rig(settings_for(tmp_path), warehouse, MemoryLog())
    text = json.dumps(NOBODY)
    rig.send(interaction("a", attributes={"deep": NOBODY}, messages=[{"role": "user", "content": text}], response=text))
    rig.drain()
    (row,) = rig.warehouse.rows("SELECT messages, response, attributes FROM interactions")
    assert json.loads(row["attributes"]) == {"deep": NOBODY}
    assert json.loads(row["messages"]) == [{"role": "user", "content": text}]
    assert row["response"] == text


def test_users_are_pseudonyms_where_nothing_is_redacted(tmp_path: Path, warehouse: Warehouse) -> None:
    off = settings_for(tmp_path).model_copy(update={"privacy": PrivacySettings(redact=False)})
    rig = Rig(off, warehouse, MemoryLog())
    rig.send(interaction("a", attributes={"deep": {"user_id": "u-17", "mail": "anna@example.com"}}))
    rig.drain()
    (row,) = rig.warehouse.rows("SELECT attributes FROM interactions")
    pseudonym = rig.ingest.writer.pseudonym("u-17")
    assert json.loads(row["attributes"]) == {"deep": {"user_id": pseudonym, "mail": "anna@example.com"}}


def test_attributes_with_a_user_and_a_number_that_cannot_be_read_are_a_dead_letter(
    tmp_path: Path, warehouse: Warehouse
) -> None:
    rig = Rig(settings_for(tmp_path), warehouse, MemoryLog())
    event = json.dumps(interaction("a", attributes={"a": {"user_id": "u-17", "n": "N"}})).replace('"N"', "1e999")
    rig.send(event.encode(), interaction("b"))
    rig.drain()
    (letter,) = dead_letters(rig.warehouse, 10)
    assert letter["reason"] == "bad_value"
    assert "u-17" not in f"{letter['payload']} {letter['detail']}"
    assert rig.warehouse.rows("SELECT id FROM interactions") == [{"id": "b"}]
