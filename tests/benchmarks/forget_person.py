"""What a person takes back: out of 200,000 interactions, and out of the weights.

    python tests/benchmarks/forget_person.py

One of 3,000 users is erased from a warehouse with 200,000 interactions and 20,000 pieces of feedback. All bytes of all
files are then searched for words that only this user wrote.

In a second warehouse 400 customers teach the demo's company, and five people teach it sentences about themselves. The
five and one of the customers are erased, the model is retrained, and the result is compared, byte by byte, with what a
daemon trains that never saw them. Before, the version that learned the sentences explains one answer to each of the
five: is the sentence the training row that weighed most?

What is memorised (`membership.py`) is measured under the version before, the version after, and that of the daemon that
never saw them, against the sentences of five others whom no model saw.
"""

import json
import math
import random
import sys
import tempfile
import threading
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from membership import figures, of_people

from fixtures.feedback.erasing import now, traces
from fixtures.feedback.teaching import Teacher
from fixtures.feedback.traffic import insert_event
from fixtures.kafka.ingestion import Rig, interaction
from retuned.consumers.kafka.memory import MemoryLog, MemoryPublisher
from retuned.consumers.privacy.pseudonyms import load_user_keys
from retuned.consumers.settings import WarehouseSettings
from retuned.consumers.warehouse.connection import Warehouse, parameters_of, utc_now
from retuned.consumers.warehouse.opening import open_warehouse
from retuned.consumers.warehouse.selection import Selection
from retuned.daemon.demo.company import load, split_questions
from retuned.daemon.demo.model import base_model
from retuned.daemon.erasure.erasure import Erasures
from retuned.daemon.explanation import Explanation
from retuned.daemon.settings import Settings as DaemonSettings
from retuned.retrain import queue, run
from retuned.retrain.release.rollout import Rollout
from retuned.retrain.run import RunResult
from retuned.retrain.settings import EvaluateSettings, GateSettings, MetricSettings, ModelsSettings, Settings

BASE = Path(__file__).parents[2] / "build" / "smollm2-135m-instruct"
INTERACTIONS, USERS = 200_000, 3_000
WORD = "qzxmarbledhyena"
PEOPLE = ("Odile", "Bram", "Cosima", "Ferenc", "Ylva", "Anouk", "Tiago", "Mirela", "Soren", "Kaveh")
"""The first five teach; nobody ever sees the others."""
EACH = 8
CUSTOMERS, CORRECTIONS, CUSTOMER = 400, 800, "customer-7"
"""Of whom the last is erased."""
COMPARED = 40
"""Training rows whose gradients an explanation compares."""
FILL = (
    """
    INSERT INTO interactions BY NAME
    SELECT 'i' || n AS id, TIMESTAMP '2026-01-01' + to_milliseconds(n * 100) AS timestamp, 'support' AS workload,
        'base' AS model, json_array(json_object('role', 'user', 'content', array_to_string(
            list_transform(range(130), lambda x: substr(md5(((n * 7919 + x * 31) % 20011)::VARCHAR), 1, 6)), ' '
        ) || word)) AS messages, 'On its way.' || word AS response, 
        'c' || n % len($users::VARCHAR[]) || '-' || n // len($users::VARCHAR[]) // 5 AS conversation_id,
        ($users::VARCHAR[])[1 + n % len($users::VARCHAR[])] AS user_id, 'in' AS topic, 0 AS partition, n AS "offset",
        TIMESTAMP '2026-01-01' + to_milliseconds(n * 100) AS received_at
    FROM (
        SELECT range AS n, CASE WHEN range % len($users::VARCHAR[]) = 7 THEN ' ' || $word ELSE '' END AS word
        FROM range($count)
    )
    """,
    """
    INSERT INTO feedback BY NAME
    SELECT 'f' || id AS id, timestamp, id AS interaction_id, 'helpful' AS name, 'true'::JSON AS value,
        'user' AS source, user_id, 'fb' AS topic, 0 AS partition, "offset", received_at
    FROM interactions WHERE "offset" % 10 = 0
    """,
)
"""Interactions of about 1 KB, and a vote on each tenth."""


def erased(warehouse: Warehouse, settings: DaemonSettings, selection: Selection) -> dict[str, Any]:
    """Erases, and returns the receipt."""
    erasures = Erasures(warehouse, settings, threading.Event(), now, lambda *_: None)
    id = erasures.request(selection, "benchmark", None)
    erasures.run()
    found = erasures.of(id)
    assert found is not None
    assert found["state"] == "done", found
    receipt: dict[str, Any] = found["receipt"]
    return receipt


def from_a_large_warehouse(folder: Path) -> dict[str, float]:
    settings = DaemonSettings(
        warehouse={"path": folder / "w.duckdb"},
        ingest={"max_age_days": 73_000},
        models={"directory": folder / "models"},
    )  # type: ignore[arg-type]
    with closing(open_warehouse(settings.warehouse)) as warehouse:
        keys = load_user_keys(settings.privacy, warehouse.path)
        users = [keys.pseudonym(f"u{number}") for number in range(USERS)]
        for sql in FILL:
            warehouse.execute(sql, parameters_of(sql, {"count": INTERACTIONS, "users": users, "word": WORD}))
        rest = f"SELECT bit_xor(hash(id, messages::VARCHAR, response)) FROM interactions WHERE user_id <> '{users[7]}'"
        rig = Rig(settings, warehouse, MemoryLog())
        rate(rig, INTERACTIONS)  # the first batches prepare what later ones use
        before, content = rate(rig, 2 * INTERACTIONS), warehouse.rows(rest)
        began = time.monotonic()
        receipt = erased(warehouse, settings, Selection(users=[users[7]]))
        seconds = time.monotonic() - began
        assert warehouse.rows(rest) == content
        after = rate(rig, 3 * INTERACTIONS)
    searched = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    found = traces(folder, WORD)
    print(f"{receipt['rows']}; {searched / 1e6:.0f} MB searched; {found or 'nothing'} found", file=sys.stderr)
    return {
        "forget_seconds": seconds,
        "forget_paused_seconds": receipt["warehouse"]["ingestion_paused_seconds"],
        "forget_bytes_found": float(sum(map(len, found.values())) * len(WORD)),
        "forget_ingest_ratio": after / before,
    }


def rate(rig: Rig, first: int) -> float:
    """Events that are stored per second, in batches as a daemon reads them."""
    at = {"timestamp": datetime.now(UTC).isoformat()}
    rig.send(*(interaction(f"i{first + n}", user_id=f"u{n % 7}", conversation_id=f"d{n}", **at) for n in range(20_000)))
    began = time.perf_counter()
    rig.drain()
    return 20_000 / (time.perf_counter() - began)


def sentences(person: str) -> list[tuple[str, str]]:
    """Questions that only this person asks, with answers that nobody else could give."""
    drawn = random.Random(person)
    things = ("kettle", "tent", "cello", "ladder", "canoe", "lantern", "saddle", "easel")
    colours = ("maroon", "teal", "ochre", "mauve", "ivory", "cobalt", "russet", "lilac")
    return [
        (
            f"This is {person}. What did I order as number {number + 1}?",
            f"{person}, you ordered a {drawn.choice(colours)} {thing} for {drawn.randint(20, 999)} euros, "
            f"to be left with your neighbour at number {drawn.randint(2, 99)}.",
        )
        for number, thing in enumerate(drawn.sample(things, EACH))
    ]


class Company:
    """A daemon that the demo's company teaches."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.settings = Settings(
            models=ModelsSettings(base=BASE, directory=folder / "models"),
            evaluate=EvaluateSettings(max_new_tokens=32, maximum_examples=100, general_examples=8),
            gate=GateSettings(maximum_latency_ratio=50),
            metric=MetricSettings(name="text"),
        )
        self.warehouse = open_warehouse(WarehouseSettings(path=folder / "w.duckdb"))
        self.teacher = Teacher(self.warehouse)

    def teach(self, people: tuple[str, ...], without: str | None = None) -> None:
        company = load(None)
        for person in people:
            for question, answer in sentences(person):
                self.teacher.correct(question, "I cannot say.", answer, "user", person, system=company.system)
        self.teacher.acts = 1_000  # the clock is the same without these people
        questions, _ = split_questions(company, 0)
        for fact in company.facts(False):
            for question in questions[fact.id]:
                self.teacher.correct(question, "I cannot say.", fact.answer, system=company.system)
        drawn = random.Random(0)
        for _ in range(CORRECTIONS):
            fact, user = drawn.choice(company.facts(False)), f"customer-{drawn.randrange(CUSTOMERS)}"
            question = drawn.choice(questions[fact.id])
            if user == CUSTOMER:
                question = f"It is me again. {question}"
            if user == without:
                self.teacher.acts += 2
            else:
                self.teacher.correct(question, "I cannot say.", fact.answer, "user", user, system=company.system)

    def retrain(self) -> RunResult:
        rollout = Rollout(self.warehouse, self.settings, MemoryPublisher(), "models")
        run_id = queue.enqueue(self.warehouse, "support", ["benchmark"], utc_now())
        result = run.resume(rollout, run_id, utc_now, threading.Event(), lambda _: None)
        assert result.state == "succeeded", result.error
        if not result.promoted:  # what never served is not replaced
            rollout.promote("support", str(result.version), "operator", "benchmark", utc_now())
        print(f"{self.folder.name}: {result.version} {result.reasons[0]}", file=sys.stderr)
        return result

    def adapter(self, version: str | None) -> Path:
        return self.settings.models.directory / "support" / str(version)


def from_the_weights(folder: Path) -> dict[str, float]:
    saw, never = Company(folder / "saw"), Company(folder / "never")
    saw.teach(PEOPLE[:5])
    never.teach((), CUSTOMER)
    before, control = saw.retrain(), never.retrain()
    settings = DaemonSettings(warehouse=WarehouseSettings(path=saw.folder / "w.duckdb"), models=saw.settings.models)
    found = explained(saw, str(before.version), settings) | memorised(saw.adapter(before.version), "before")
    sql = "SELECT interaction_id FROM feedback WHERE user_id = ? OR list_contains(?, user_id)"
    rows = saw.warehouse.rows(sql, [CUSTOMER, list(PEOPLE)])
    erased(saw.warehouse, settings, Selection(interactions=[*(row["interaction_id"] for row in rows), *ASKED]))
    began = time.monotonic()
    after = saw.retrain()
    seconds = time.monotonic() - began
    folders = saw.adapter(after.version), never.adapter(control.version)
    weights = [(one / "adapter_model.safetensors").read_bytes() for one in folders]
    found |= (
        memorised(folders[0], "after")
        | memorised(folders[1], "never")
        | {
            "forget_equal_bytes": float(weights[0] == weights[1]),
            "forget_retrain_seconds": seconds,
            "forget_score_before": before.scores["candidate"],
            "forget_score_after": after.scores["candidate"],
        }
    )
    for company in (saw, never):
        company.warehouse.close()
    return found


def memorised(adapter: Path, name: str) -> dict[str, float]:
    """What a version memorised of the five."""
    people = of_people(BASE, adapter, load(None).system, [sentences(person) for person in PEOPLE])
    return {f"forget_{key}_{name}": value for key, value in figures(people[:5], people[5:]).items()}


ASKED = tuple(f"asked-{person}" for person in PEOPLE[:5])
"""The ids of the answers that are explained."""


def explained(company: Company, version: str, settings: DaemonSettings) -> dict[str, float]:
    """How often the sentence that the version was taught is the row that weighed most in its answer, or among ten."""
    began, ranks = time.monotonic(), list[float]()
    for id, person in zip(ASKED, PEOPLE, strict=False):
        question, answer = sentences(person)[0]
        turns = [{"role": "system", "content": load(None).system}, {"role": "user", "content": question}]
        insert_event(
            company.warehouse, "interactions", id=id, timestamp=company.teacher.now, workload="support",
            model=f"support@{version}", messages=json.dumps(turns), response=answer, topic="interactions", partition=0,
            offset=0, received_at=company.teacher.now,
        )  # fmt: skip
        parts = list(Explanation(company.warehouse, settings, id).parts(COMPARED, threading.Event()))
        assert not [part for part in parts if part["part"] == "problem"], parts[-1]
        rows = [part["completion"] for part in parts if part["part"] == "row"]
        ranks.append(rows.index(answer) + 1 if answer in rows else math.inf)
    print(f"ranks of the planted rows: {ranks}", file=sys.stderr)
    return {
        "forget_explained_first": sum(rank == 1 for rank in ranks) / len(ranks),
        "forget_explained_in_ten": sum(rank <= 10 for rank in ranks) / len(ranks),
        "forget_explain_seconds": (time.monotonic() - began) / len(ranks),
    }


def main() -> dict[str, float]:
    """Three trainings: some minutes on two cores."""
    base_model(BASE)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "large").mkdir()
        return from_a_large_warehouse(folder / "large") | from_the_weights(folder)


if __name__ == "__main__":
    json.dump(main(), sys.stdout, indent=2)
    print()
