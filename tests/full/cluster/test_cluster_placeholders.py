"""Numbers of placeholders in a cluster: in a conversation a value has one number, whoever reads it, whatever fails."""

import json
import random
import re
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from fixtures.kafka.brokers import until
from fixtures.kafka.ingestion import feedback, interaction

pytest.importorskip("obstore", reason="the extra cluster is not installed")
pytest.importorskip("moto", reason="the extra test is not installed")

from fixtures.cluster.doubles import KEY, Cluster, drain
from retuned.consumers.cluster import database as limits
from retuned.consumers.cluster.database import Database, Wanted
from retuned.consumers.cluster.ingester import Ingester
from retuned.consumers.cluster.objects import Objects
from retuned.consumers.errors import Reassigned, StoreUnavailable
from retuned.consumers.formats.events import SHADOW_ANSWER
from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.consumers.metrics import Metrics
from retuned.consumers.settings import PrivacySettings, Settings
from retuned.consumers.warehouse.connection import Warehouse
from retuned.daemon.cluster import Cluster as Daemon
from retuned.daemon.settings import Settings as DaemonSettings

NEWER = "a newer key of sixteen characters"
TABLES = ("placeholders", "numbered_events")


def said(id: str, conversation: str | None, *people: str, **fields: Any) -> dict[str, Any]:
    """An answer that names these people."""
    return interaction(id, response=" ".join(map(mail, people)), conversation_id=conversation, **fields)


def mail(person: str) -> str:
    return f"{person}@example.com"


def answers(cluster: Cluster) -> dict[str, str]:
    return {row["id"]: row["response"] for row in cluster.stored()}


def with_keys(cluster: Cluster, *keys: str) -> Settings:
    return cluster.settings.model_copy(update={"privacy": PrivacySettings(user_key="\n".join(keys))})  # type: ignore[arg-type]


def rows(cluster: Cluster) -> dict[str, int]:
    return {table: cluster.query(f"SELECT count(*) FROM retuned.{table}")[0][0] for table in TABLES}


def test_numbers_go_on_where_another_ingester_has_the_conversation(cluster: Cluster) -> None:
    first, second = cluster.ingester(), cluster.ingester()
    cluster.send(said("1", "c", "anna", "bert"))
    drain(first)
    cluster.send(said("2", "c", "bert", "carl"), said("3", "other", "bert"))
    drain(second)
    cluster.send(said("4", "c", "dora", "anna"))
    drain(first)
    assert answers(cluster) == {
        "1": "<EMAIL_1> <EMAIL_2>",
        "2": "<EMAIL_2> <EMAIL_3>",
        "3": "<EMAIL_1>",
        "4": "<EMAIL_4> <EMAIL_1>",
    }


def test_numbers_that_an_app_has_given_are_not_given_by_another_ingester(cluster: Cluster) -> None:
    cluster.send(interaction("1", response="as <EMAIL_7> said", conversation_id="c"))
    drain(cluster.ingester())
    cluster.send(said("2", "c", "anna"), interaction("3", response="<EMAIL_9>, <PHONE_2>", conversation_id="c"))
    drain(cluster.ingester())
    assert answers(cluster) == {"1": "as <EMAIL_7> said", "2": "<EMAIL_10>", "3": "<EMAIL_9>, <PHONE_2>"}


def test_json_and_names_of_fields_have_numbers_too(cluster: Cluster) -> None:
    arguments = json.dumps({"card": 4111111111111111, "to": mail("bert")})
    cluster.send(
        interaction(
            "1",
            messages=[{"role": "user", "content": mail("anna"), "note": {mail("bert"): arguments}}],
            response=f'{{"to": "{mail("bert")}"}} <EMAIL_00> <EMAIL_08> <CARD_00>',
        )
    )
    drain(cluster.ingester())
    (row,) = cluster.stored()
    note = {"<EMAIL_2>": '{"card": "<CARD_1>", "to": "<EMAIL_2>"}'}
    assert json.loads(row["messages"]) == [{"role": "user", "content": "<EMAIL_1>", "note": note}]
    # What an app writes in the form of one that waits for its number is at most one of its own event.
    assert row["response"] == '{"to": "<EMAIL_2>"} <EMAIL_1> <EMAIL_08> <CARD_00>'


@pytest.mark.parametrize("conversation", ["c", None])
def test_feedback_of_later_has_the_numbers_of_what_it_is_on(cluster: Cluster, conversation: str | None) -> None:
    """By an ingester that has never seen the answer."""
    cluster.send(said("1", conversation, "anna", "bert"))
    drain(cluster.ingester())
    cluster.send(feedback("f", "1", name="correction", value=f"{mail('bert')} and {mail('carl')}"))
    drain(cluster.ingester())
    (row,) = cluster.stored("feedback")
    assert row["value"] == '"<EMAIL_2> and <EMAIL_3>"'
    cluster.send(said("2", conversation, "dora"))
    drain(cluster.ingester())
    assert answers(cluster)["2"] == ("<EMAIL_4>" if conversation else "<EMAIL_1>")


class Counted(Database):
    """Counts what it is asked for numbers, and fails once where it is to."""

    def __init__(self, cluster: Cluster, *, fails: bool = False) -> None:
        super().__init__(cluster.settings.store)
        cluster.opened.append(self)
        self.asked, self.fails = 0, fails

    def placeholder_numbers(self, wanted: Sequence[Wanted], events: Mapping[bytes, bytes]) -> list[int]:
        self.asked += 1
        numbers = super().placeholder_numbers(wanted, events)
        if self.fails:
            self.fails = False
            raise StoreUnavailable("the answer of the database is lost")
        return numbers

    def numbered_scopes(self, ids: Sequence[bytes]) -> dict[bytes, bytes]:
        self.asked += 1
        return super().numbered_scopes(ids)


def test_the_database_is_asked_once_for_a_batch_and_not_without_personal_data(cluster: Cluster) -> None:
    database = Counted(cluster)
    ingester = cluster.ingester(database=database)
    cluster.send(interaction("1", response="order 1000234567"), feedback("f1", "1", name="comment", value="thanks"))
    drain(ingester)
    assert (database.asked, rows(cluster)) == (0, {"placeholders": 0, "numbered_events": 0})
    cluster.send(
        said("2", "c", "anna"),
        said("3", None, "anna"),
        feedback("f2", "2", name="comment", value=mail("bert")),
        feedback("s", "2", name=SHADOW_ANSWER, source="app", value={"model": "m", "response": mail("anna")}),
    )
    assert ingester.step() == 4
    assert database.asked == 1
    assert cluster.stored("feedback")[-1]["value"] == '"<EMAIL_2>"'
    assert json.loads(cluster.stored("shadow_answers")[0]["value"])["response"] == "<EMAIL_1>"


def test_a_batch_whose_numbers_do_not_come_is_read_again(cluster: Cluster) -> None:
    ingester = cluster.ingester(database=Counted(cluster, fails=True))
    cluster.send(said("1", "c", "anna", "bert"))
    with pytest.raises(StoreUnavailable):
        ingester.step()
    assert cluster.files() == set()
    drain(ingester)
    assert answers(cluster) == {"1": "<EMAIL_1> <EMAIL_2>"}
    assert cluster.query("SELECT counts -> 'redactions' FROM retuned.segments") == [({"EMAIL": 2},)]


def test_a_batch_that_is_given_up_leaves_numbers_that_nobody_else_gets(cluster: Cluster) -> None:
    """Frozen between its numbers and its statement, while another one reads the partition, and more."""
    other = cluster.ingester()

    class Frozen(Objects):
        def put(self, key: str, content: bytes) -> None:
            super().put(key, content)
            cluster.send(said("2", "c", "carl", "anna"), partition=1)
            drain(other)

    frozen = cluster.ingester(objects=Frozen(cluster.settings.store))
    cluster.send(said("1", "c", "anna", "bert"))
    with pytest.raises(Reassigned):
        frozen.step()
    frozen._objects = cluster.objects
    cluster.send(said("3", "c", "dora", "bert"))
    drain(frozen)
    assert answers(cluster) == {"1": "<EMAIL_1> <EMAIL_2>", "2": "<EMAIL_3> <EMAIL_1>", "3": "<EMAIL_4> <EMAIL_2>"}


@pytest.mark.parametrize("seed", range(3))
def test_one_value_has_one_number_and_no_two_share_one(cluster: Cluster, seed: int) -> None:
    """Conversations over two partitions, which go from one ingester to another at any time; some begin anew."""
    rng = random.Random(seed)
    ingesters = [cluster.ingester() for _ in range(3)]
    sent: dict[str, tuple[str, list[str]]] = {}
    for turn in range(120):
        conversation, people = f"c{rng.randrange(5)}", [f"p{rng.randrange(12)}" for _ in range(rng.randrange(1, 4))]
        cluster.send(said(f"{turn}", conversation, *people), partition=rng.randrange(2))
        sent[f"{turn}"] = conversation, people
        if rng.random() < 0.4:
            on, people = rng.randrange(turn + 1), [f"p{rng.randrange(12)}", f"p{rng.randrange(12)}"]
            sent[f"f{turn}"] = sent[f"{on}"][0], people
            text = " ".join(map(mail, people))
            cluster.send(feedback(f"f{turn}", f"{on}", name="comment", value=text), partition=rng.randrange(2))
        if rng.random() < 0.2:
            ingesters[rng.randrange(3)] = cluster.ingester()
        if rng.random() < 0.5:
            step(ingesters[rng.randrange(3)])
    drain(ingesters[0])
    stored = answers(cluster) | {row["id"]: row["value"] for row in cluster.stored("feedback")}
    assert stored.keys() == sent.keys()
    numbers: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for id, (conversation, people) in sent.items():
        numbers[conversation] |= set(zip(people, re.findall(r"<EMAIL_([0-9]+)>", stored[id]), strict=True))
    for pairs in numbers.values():
        assert len(pairs) == len({person for person, _ in pairs}) == len({number for _, number in pairs})


def step(ingester: Ingester) -> None:
    with suppress(Reassigned):
        ingester.step()


def test_who_asks_at_the_same_time_gets_no_number_twice(cluster: Cluster) -> None:
    scopes = [bytes([scope]) * 12 for scope in range(5)]
    found: list[dict[tuple[bytes, bytes], int]] = []

    def ask(seed: int, database: Database) -> None:
        rng = random.Random(seed)
        for _ in range(25):
            wanted = list({Wanted(rng.choice(scopes), b"%12d" % rng.randrange(60), "EMAIL"): 0 for _ in range(20)})
            numbers = database.placeholder_numbers(wanted, {one.value: one.scope for one in wanted})
            found.append({(one.scope, one.value): number for one, number in zip(wanted, numbers, strict=True)})

    threads = [threading.Thread(target=ask, args=(seed, cluster.database())) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 100
    pairs = {(*key, number) for numbers in found for key, number in numbers.items()}
    assert len(pairs) == len({pair[:2] for pair in pairs}) == len({pair[::2] for pair in pairs})


def test_numbers_go_on_while_the_key_is_exchanged(cluster: Cluster) -> None:
    cluster.send(said("1", "c", "anna"))
    drain(cluster.ingester())
    cluster.send(said("2", "c", "bert", "anna"), said("3", "new", "anna"))
    drain(cluster.ingester(with_keys(cluster, NEWER, KEY)))
    cluster.send(said("4", "c", "carl", "bert"), feedback("f", "1", name="comment", value=mail("anna")))
    drain(cluster.ingester())  # that was not restarted yet
    cluster.send(said("5", "new", "bert", "anna"), feedback("g", "2", name="comment", value=mail("carl")))
    drain(cluster.ingester(with_keys(cluster, NEWER, KEY)))
    cluster.send(said("6", "new", "carl", "bert"))
    drain(cluster.ingester(with_keys(cluster, NEWER)))
    assert answers(cluster) == {
        "1": "<EMAIL_1>",
        "2": "<EMAIL_2> <EMAIL_1>",
        "3": "<EMAIL_1>",
        "4": "<EMAIL_3> <EMAIL_2>",
        "5": "<EMAIL_2> <EMAIL_1>",
        "6": "<EMAIL_3> <EMAIL_2>",
    }
    assert [row["value"] for row in cluster.stored("feedback")] == ['"<EMAIL_1>"', '"<EMAIL_3>"']


def test_ids_and_values_are_hashed_and_no_conversation_tells_what_another_holds(cluster: Cluster) -> None:
    cluster.send(said("i-1", "c-1", "anna"), said("i-2", "c-2", "anna"))
    drain(cluster.ingester())
    kept = [bytes(value) for (value,) in cluster.query("SELECT value FROM retuned.placeholders WHERE value <> ''")]
    assert len(set(kept)) == 2
    everything = [str(row) for table in TABLES for row in cluster.query(f"SELECT * FROM retuned.{table}")]
    assert len(everything) == 4 + 2
    assert not any(word in row for row in everything for word in ("anna", "example", "i-1", "c-1"))


def test_what_was_not_used_for_days_is_forgotten(cluster: Cluster) -> None:
    database, ingester = cluster.database(), cluster.ingester()
    cluster.send(
        said("1", "old", "anna"), said("2", "used", "anna"), said("3", "used", "bert"), said("4", "so", "anna")
    )
    drain(ingester)
    before = {"placeholders": 2 + 3 + 2, "numbered_events": 4}
    assert (database.forget_placeholders(), rows(cluster)) == (0, before)
    age(cluster, limits.KEEP_DAYS)
    assert (database.forget_placeholders(), rows(cluster)) == (0, before)
    age(cluster, 1)
    cluster.send(said("2", "used", "anna", "carl"), said("4", "so", "anna"))
    drain(ingester)
    assert database.forget_placeholders() == 2 + 1 + 2  # all of the old one, Bert, the events 1 and 3
    assert rows(cluster) == {"placeholders": 3 + 2, "numbered_events": 2}
    cluster.send(said("5", "used", "dora", "bert", "carl", "anna"))
    drain(cluster.ingester())
    assert answers(cluster)["5"] == "<EMAIL_4> <EMAIL_5> <EMAIL_3> <EMAIL_1>", "no number of before is given again"


def age(cluster: Cluster, days: int) -> None:
    for table in TABLES:
        cluster.query(f"UPDATE retuned.{table} SET used_on = used_on - {days} RETURNING 1")


def test_the_daemon_that_leads_forgets_them(cluster: Cluster, warehouse: Warehouse) -> None:
    wanted = [Wanted(b"scope", b"value", "EMAIL")]
    cluster.database().placeholder_numbers(wanted, {b"event": b"scope"})
    age(cluster, limits.KEEP_DAYS + 1)
    store = {"kind": "cluster", "postgres_url": cluster.url, "objects_url": cluster.folder.as_uri()}
    settings = DaemonSettings(privacy={"user_key": KEY}, store=store, warehouse={"path": warehouse.path})
    registry, failed = CollectorRegistry(), list[BaseException]()
    daemon = Daemon(settings, warehouse, registry, Metrics(registry), MemoryPublisher(), lambda: None, failed.append)
    daemon.start()
    try:
        until(lambda: rows(cluster) == {"placeholders": 0, "numbered_events": 0})
    finally:
        daemon.stop()
        daemon.source.close()
    assert failed == []


def test_the_last_number_is_forgotten_after_the_values(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where forgetting ends in the midst: a number that some value has is not given again."""

    class Stops(Database):
        left = 2

        def _forget(self, *arguments: Any) -> int:
            self.left -= 1
            if self.left < 0:
                raise StoreUnavailable("no")
            return super()._forget(*arguments)

    monkeypatch.setattr(limits, "AT_ONCE", 1)
    cluster.send(said("1", "c", "anna", "bert", "carl"))
    drain(cluster.ingester())
    age(cluster, limits.KEEP_DAYS + 1)
    database = Stops(cluster.settings.store)
    cluster.opened.append(database)
    with pytest.raises(StoreUnavailable):
        database.forget_placeholders()
    assert rows(cluster)["placeholders"] == 2
    cluster.send(said("2", "c", "dora"))
    drain(cluster.ingester())
    assert answers(cluster)["2"] == "<EMAIL_4>"


def test_a_conversation_may_have_more_values_than_one_statement_takes(cluster: Cluster) -> None:
    people = [f"p{number}" for number in range(limits.AT_ONCE + 2_000)]
    expected = [f"<EMAIL_{number + 1}>" for number in range(len(people))]
    cluster.send(said("1", "c", *people))
    drain(cluster.ingester())
    cluster.send(said("2", "c", *people[::-1], "another"))
    drain(cluster.ingester())
    assert answers(cluster)["1"].split() == expected
    assert answers(cluster)["2"].split() == [*expected[::-1], f"<EMAIL_{len(people) + 1}>"]


def test_what_stands_in_a_text_is_reserved_before_the_first_number_is_given(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "AT_ONCE", 2)
    cluster.send(said("1", "c", "anna", "bert", "carl"), interaction("2", response="<EMAIL_2>", conversation_id="c"))
    drain(cluster.ingester())
    assert answers(cluster)["1"] == "<EMAIL_3> <EMAIL_4> <EMAIL_5>"


def test_what_is_too_much_of_a_batch_gets_new_numbers_each_time(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MOST_KEPT", 7)
    monkeypatch.setattr(limits, "AT_ONCE", 2)
    people = [f"p{number}" for number in range(6)]
    cluster.send(said("1", "c", *people), said("2", "d", *people), interaction("3", response="4111 1111 1111 1111"))
    drain(cluster.ingester())
    cluster.send(said("4", "d", *people))
    drain(cluster.ingester())
    found = answers(cluster)
    first = [f"<EMAIL_{number}>" for number in range(1, 7)]
    assert (found["1"].split(), found["2"].split(), found["3"]) == (first, first, "<CARD_1>")
    assert found["4"].split() == ["<EMAIL_1>", *(f"<EMAIL_{number}>" for number in range(7, 12))]


@pytest.mark.parametrize("id", ["c\x00d", "\U0001f600" * 100, "' OR 1=1 --", "\\x00", " ", "anna@example.com"])
def test_whatever_an_id_holds(cluster: Cluster, id: str) -> None:
    cluster.send(said("1", id, "anna", "bert"))
    drain(cluster.ingester())
    cluster.send(said("2", id, "bert"))
    drain(cluster.ingester())
    assert list(answers(cluster).values()) == ["<EMAIL_1> <EMAIL_2>", "<EMAIL_2>"]
