"""What was made of erased rows: datasets and their models, caches, reports, texts that quote, and every table."""

import json
import tempfile
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fixtures.feedback.erasing import now, traces
from fixtures.feedback.teaching import Teacher
from fixtures.models.datasets import build_dataset, promote, rows, teach, with_dataset
from retuned.consumers.errors import RetunedError
from retuned.consumers.privacy.pseudonyms import load_user_keys
from retuned.consumers.settings import WarehouseSettings
from retuned.consumers.warehouse.connection import Warehouse
from retuned.consumers.warehouse.erasing import ErasedRows, Letters
from retuned.consumers.warehouse.opening import open_warehouse
from retuned.consumers.warehouse.selection import Selection
from retuned.consumers.warehouse.tombstones import Tombstones
from retuned.daemon.erasure import erasure as module
from retuned.daemon.erasure.erasure import Erasures
from retuned.daemon.settings import Settings
from retuned.retrain import versions
from retuned.retrain.data import build
from retuned.retrain.data.dataset import SPLITS, Dataset, load
from retuned.retrain.data.topics import Topics
from retuned.retrain.settings import ModelsSettings

WORD, SECRET = "qzxcobaltheron", "qzxmarblehyena"


class School:
    """A workload with a dataset that contains a word of one person, and models that were trained on it."""

    def __init__(self, folder: Path) -> None:
        self.settings = with_dataset(
            Settings(
                warehouse=WarehouseSettings(path=folder / "w.duckdb"), models=ModelsSettings(directory=folder / "m")
            )
        )
        self.warehouse: Warehouse = open_warehouse(self.settings.warehouse)
        self.teacher = teacher = Teacher(self.warehouse)
        teach(teacher, range(40))
        self.corrections = [
            teacher.correct(f"May I return my {WORD} number {n}, please?", "No.", f"The {WORD} takes {n} days.")
            for n in range(8)
        ]
        self.dataset: Dataset = build_dataset(self.warehouse, self.settings, "support", teacher.now)
        promote(self.warehouse, self.dataset, "v1")
        self.warehouse.insert(
            "models", version="v2", workload="support", created_at=now(), path="/nowhere", base_model="/base",
            base_hash="x", parent_version="v1", dataset_version="other", run_id="r", manifest="{}",
        )  # fmt: skip
        self.warehouse.insert(
            "models", version="v3", workload="support", created_at=now(), path="/nowhere", base_model="/base",
            base_hash="x", dataset_version="other", run_id="r", manifest="{}",
        )  # fmt: skip

    def build(self, **about: Any) -> Dataset:
        """Builds the next dataset; start: as if this version were the champion."""
        with tempfile.TemporaryDirectory() as folder:
            job = build.prepare(self.warehouse, self.settings, "support", Path(folder), threading.Event()) | about
            return build.registered(self.warehouse, "support", build.work(job, print), self.teacher.now)

    def erase(self, **selection: Any) -> dict[str, Any]:
        erasures = Erasures(self.warehouse, self.settings, threading.Event(), now, lambda *_: None)
        id = erasures.request(Selection(**selection), "dpo", None)
        erasures.run()
        found = erasures.of(id)
        assert found is not None
        assert found["state"] == "done"
        receipt: dict[str, Any] = found["receipt"]
        return receipt

    def answers(self) -> list[str]:
        """The ids of the interactions with the word."""
        found = self.warehouse.rows("SELECT id FROM interactions WHERE contains(messages::VARCHAR, $1)", [WORD])
        return [row["id"] for row in found]


@pytest.fixture
def school(tmp_path: Path) -> Iterator[School]:
    school = School(tmp_path)
    yield school
    school.warehouse.close()


def test_rows_leave_datasets_and_the_models_that_learned_them_are_named(school: School, tmp_path: Path) -> None:
    before = {row["row_id"] for row in rows(school.dataset)}
    mine = {row["row_id"] for row in rows(school.dataset) if WORD in row["completion"]}
    learned = {row["row_id"] for row in rows(school.dataset, "train") if WORD in row["completion"]}
    assert mine > learned > set()
    receipt = school.erase(interactions=school.answers())
    dataset = load(school.warehouse, "support", school.dataset.version)
    assert dataset is not None
    assert {row["row_id"] for row in rows(dataset)} == before - mine
    assert traces(tmp_path, WORD) == {}
    taught = school.warehouse.rows("SELECT * EXCLUDE erasure_id FROM erasure_versions ORDER BY version")
    assert [(row["version"], row["rows"]) for row in taught] == [("v1", len(learned)), ("v2", 0)]
    assert receipt["versions"] == taught
    assert "support@v1, support@v2" in receipt["operator"][-1]


@pytest.mark.full
@pytest.mark.parametrize("split", ["train", "holdout", "topics"])
def test_a_file_of_a_dataset_that_cannot_be_read_stops_nothing_else(
    school: School, tmp_path: Path, split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    swaps, real = list[object](), module.swap
    monkeypatch.setattr(module, "swap", lambda *given: swaps.append(real(*given)) or swaps[-1])
    (file,) = school.dataset.path.glob(f"{split}.*")
    content = file.read_bytes()
    file.write_bytes(b"broken")
    erasures = Erasures(school.warehouse, school.settings, threading.Event(), now, lambda *_: None)
    id = erasures.request(Selection(interactions=school.answers()), "dpo", None)
    for _ in range(3):
        with pytest.raises(RetunedError, match="restore each from a backup"):
            erasures.run()
    assert (traces(tmp_path, WORD), len(swaps)) == ({}, 1)
    file.write_bytes(content)
    assert split == "topics" or traces(tmp_path, WORD) != {}
    erasures.run()
    assert ((erasures.of(id) or {})["state"], traces(tmp_path, WORD), len(swaps)) == ("done", {}, 2)


def test_the_next_dataset_is_built_without_them_and_holds_out_the_same(school: School) -> None:
    held = {row["row_id"] for row in rows(school.dataset, "holdout") if WORD not in row["completion"]}
    school.erase(interactions=school.answers())
    teacher = Teacher(school.warehouse)
    teacher.acts = 200
    teach(teacher, range(100, 120))
    built = build_dataset(school.warehouse, school.settings, "support", teacher.now)
    assert built.version != school.dataset.version
    assert not [row for row in rows(built) if WORD in row["completion"] or WORD in row["prompt"]]
    assert not held & {row["row_id"] for row in rows(built, "train")}


@pytest.mark.full
def test_what_others_stated_in_the_same_words_is_another_dataset(school: School) -> None:
    """Otherwise it would count as the erased one, and its files would lack rows."""
    teach(school.teacher, range(50, 58))
    confirmed = teach(school.teacher, range(50, 58))
    before = school.build(start="base")
    learned = {row["row_id"] for row in rows(before)}
    assert set(confirmed) & {row["feedback_id"] for row in rows(before, "train")}
    assert school.build(start="base").version == before.version
    promote(school.warehouse, before, "v4")
    school.erase(interactions=confirmed)
    built = school.build(start="base")
    promote(school.warehouse, built, "v5")
    assert versions.erased_since(school.warehouse, "support").keys() == {"v4"}
    assert {row["row_id"] for row in rows(built)} == learned
    assert {name: len(rows(built, name)) for name in SPLITS} == built.rows
    assert school.build(start="base").version == built.version


def test_a_dataset_shows_what_its_user_wrote_once_retention_has_deleted_the_events(
    school: School, tmp_path: Path
) -> None:
    (ann,) = load_user_keys(school.settings.privacy, school.warehouse.path).pseudonyms("ann@shop")
    for n in range(8):
        school.teacher.correct(f"How long does the {WORD}s case {n} take?", "No.", f"Case {n}: {SECRET}.", user_id=ann)
    dataset = school.build()
    promote(school.warehouse, dataset, "v4")
    mine = {row["row_id"] for row in rows(dataset) if SECRET in row["completion"]}
    learned = {row["row_id"] for row in rows(dataset, "train") if SECRET in row["completion"]}
    assert mine > learned > set()
    for table in ("feedback", "interactions"):
        school.warehouse.execute(f"DELETE FROM {table}")
    erasures = Erasures(school.warehouse, school.settings, threading.Event(), now, lambda *_: None)
    assert [row["version"] for row in erasures.preview(Selection(users=[ann]))["versions"]] == ["v4"]
    receipt = school.erase(users=[ann])
    assert traces(tmp_path, SECRET, ann) == {}
    assert (receipt["workloads"], receipt["rows"]["dataset_rows"]) == (["support"], len(mine))
    (version,) = receipt["versions"]
    assert (version["version"], version["rows"]) == ("v4", len(learned))
    assert versions.erased_since(school.warehouse, "support").keys() == {"v4"}
    lineage = school.warehouse.rows("SELECT row_id FROM dataset_rows WHERE dataset_version = ?", [dataset.version])
    assert not mine & {row["row_id"] for row in lineage}


def test_a_dataset_shows_a_conversation_once_retention_has_deleted_its_events(school: School, tmp_path: Path) -> None:
    asked = school.answers()[:3]
    school.warehouse.execute("UPDATE interactions SET conversation_id = 'c1' WHERE id IN $ids", {"ids": asked})
    dataset = school.build(start="base")
    mine = {row["row_id"] for row in rows(dataset) if row["conversation"] == "c1"}
    assert len(mine) == 3
    for table in ("feedback", "interactions"):
        school.warehouse.execute(f"DELETE FROM {table}")
    school.erase(conversations=["c1"])
    assert not mine & {row["row_id"] for row in [*rows(dataset), *rows(school.dataset)]}
    assert traces(tmp_path, *asked) == {}


def test_a_dataset_that_could_not_be_read_shows_its_users_events_once_it_can(school: School, tmp_path: Path) -> None:
    (ann,) = load_user_keys(school.settings.privacy, school.warehouse.path).pseudonyms("ann@shop")
    for n in range(8):
        school.teacher.correct(f"How long does the {WORD}s case {n} take?", "No.", f"Case {n}: {SECRET}.", user_id=ann)
    dataset = school.build()
    promote(school.warehouse, dataset, "v4")
    for table in ("feedback", "interactions"):
        school.warehouse.execute(f"DELETE FROM {table}")
    files = {file: file.read_bytes() for file in dataset.path.glob("*.parquet")}
    for file in files:
        file.write_bytes(b"broken")
    erasures = Erasures(school.warehouse, school.settings, threading.Event(), now, lambda *_: None)
    id = erasures.request(Selection(users=[ann]), "dpo", None)
    with pytest.raises(RetunedError, match="restore each from a backup"):
        erasures.run()
    for file, content in files.items():
        file.write_bytes(content)
    erasures.run()
    done = erasures.of(id)
    assert done is not None
    assert [row["version"] for row in done["receipt"]["versions"]] == ["v4"]
    assert traces(tmp_path, SECRET, ann) == {}


def test_a_selection_by_time_takes_no_row_of_a_dataset_by_the_time_of_its_feedback(school: School) -> None:
    before = rows(school.dataset)
    last = school.warehouse.rows("SELECT max(timestamp) AS at FROM interactions")[0]["at"]
    late = [row for row in before if row["timestamp"] > last]
    assert late
    school.erase(workload="support", after=last + timedelta(seconds=1))
    assert rows(school.dataset) == before


@pytest.mark.full
def test_after_the_erasure_of_all_rows_the_next_dataset_is_built(school: School) -> None:
    """A word of one person names a topic, and with the last rows the last words go."""
    file = school.dataset.path / "topics.json"
    words = {"ask": {"ask": 0.6, "about": 0.8}, f"{WORD}, may": {WORD: 0.6, "may": 0.8}}
    Topics({"ask": 1.0, "about": 1.0, "may": 1.0, WORD: 2.0}, words).save(school.dataset.path)
    school.erase(interactions=school.answers())
    assert WORD not in file.read_text()
    assert Topics.load(school.dataset.path).centres == {"ask": words["ask"]}
    school.erase(interactions=[row["id"] for row in school.warehouse.rows("SELECT id FROM interactions")])
    assert json.loads(file.read_text()) == {"weights": {}, "centres": {}}
    teacher = Teacher(school.warehouse)
    teacher.acts = 200
    teach(teacher, range(100, 160))
    assert build_dataset(school.warehouse, school.settings, "support", teacher.now).rows["train"] > 0


def test_what_was_derived_goes(school: School, tmp_path: Path) -> None:
    home, reports = tmp_path / "m" / "support", tmp_path / "reports"
    (home / "runs" / "r1").mkdir(parents=True)
    reports.mkdir()
    named = school.answers()[0]
    (reports / "benchmark").mkdir()
    (home / "v1").mkdir()
    (home / "v1" / "weights").write_text("stay")
    (home / "champion").symlink_to("v1")
    for file in (
        home / "answers.jsonl", home / "judged.jsonl", home / "runs" / "r1" / "rows.json",
        reports / "benchmark" / "evaluate.job.json", tmp_path / "w.duckdb.schema-040", reports / "d1.json",
        reports / "d1.html",
    ):  # fmt: skip
        file.write_text(f"a {WORD}")
    feature = {"feature": "prompt", "example": f"my {WORD}", "reference": WORD, "current": WORD, "value": 0.1}
    school.warehouse.insert(
        "drift_checks", id="d1", created_at=now(), workload="support", drifted=True, severity=0.1,
        features=json.dumps([feature]), reference_rows=1, current_rows=1, report=str(reports / "d1.json"),
        detail=f"new words: {WORD}",
    )  # fmt: skip
    school.warehouse.insert(
        "decisions", id="x", created_at=now(), workload="support", kind="retrain", outcome=True,
        reasons=json.dumps([f"Interaction {named} was corrected."]), figures="{}",
    )  # fmt: skip
    row = next(row for row in rows(school.dataset) if WORD not in row["completion"])
    mine = next(row for row in rows(school.dataset) if WORD in row["completion"])
    for row_id, output in ((row["row_id"], "stays"), (mine["row_id"], f"{WORD} 1"), ("gone", f"{WORD} 2")):
        school.warehouse.insert(
            "evaluations", run_id="r", workload="support", dataset_version=school.dataset.version, model="v1",
            split="holdout", row_id=row_id, score=1.0, token_f1=1.0, latency_seconds=0.1,
            output=output,
        )  # fmt: skip
    school.erase(interactions=school.answers())
    assert traces(tmp_path, WORD, named) == {}
    assert (home / "champion" / "weights").read_text() == "stay"
    (check,) = school.warehouse.rows("SELECT report, features FROM drift_checks")
    assert check["report"] is None
    assert json.loads(check["features"])[0]["value"] == 0.1
    assert school.warehouse.rows("SELECT reasons FROM decisions")[0]["reasons"] == (
        '["Interaction <ERASED> was corrected."]'
    )
    outputs = school.warehouse.rows("SELECT row_id, output FROM evaluations ORDER BY output")
    assert [(row["row_id"], row["output"]) for row in outputs] == [("gone", ""), (row["row_id"], "stays")]


def test_feedback_alone_goes_and_its_answer_is_judged_anew(school: School, tmp_path: Path) -> None:
    from retuned.consumers.warehouse import judgements

    judgements.follow(school.warehouse)
    (first, *_) = school.corrections
    answers = school.answers()
    judged = "SELECT DISTINCT feedback_id AS id FROM judgements ORDER BY id"
    before = [row["id"] for row in school.warehouse.rows(judged)]
    school.erase(interactions=[first])
    assert school.answers() == answers
    assert [row["id"] for row in school.warehouse.rows(judged)] == [id for id in before if id != first]
    assert traces(tmp_path, "takes 0 days") == {}


def test_entries_of_the_memory_that_rest_on_erased_feedback_are_emptied(school: School, tmp_path: Path) -> None:
    for number, feedback in enumerate((school.corrections[0], "support-f2"), 1):
        school.warehouse.insert(
            "memory_entries", id=f"e{number}", workload="support", question_key="k", messages="[]", question="q",
            answer=f"{WORD} 1" if number == 1 else "stays", source="expert", feedback_ids=json.dumps([feedback]),
            since=now(), added_at=now(), state="active", reason="", changed_at=now(), sequence=number, threshold=0.9,
        )  # fmt: skip
    school.erase(interactions=school.answers())
    rows = school.warehouse.rows("SELECT id, state, answer, sequence FROM memory_entries ORDER BY id")
    assert [tuple(row.values()) for row in rows] == [("e1", "removed", "", 3), ("e2", "active", "stays", 2)]
    assert traces(tmp_path, WORD) == {}


NO_CONVERSATIONS = {
    "aliases", "answer_minutes", "answer_minutes_position", "approvals", "archived_ids", "archives", "artifacts",
    "audit", "batches", "blindness", "control_positions", "datasets", "decisions", "deployments", "drift_checks",
    "drift_references", "erasure_datasets", "erasure_versions", "erasures", "erasures_applied", "exams",
    "feedback_totals",
    "followed_segments", "holds", "ingest_resumptions", "judgements_position", "ledger", "ledger_left_out",
    "ledger_moments", "ledger_outcomes", "ledger_position", "models", "offsets", "pauses",
    "promotions", "quality", "rating_periods", "rollout_checks", "rollouts", "runs", "schema_migrations", "tombstones",
    "watch_checks", "webhook_models",
    "erased_kept", "memory_entries", "memory_epoch", "memory_positions",
    "memory_totals", "memory_uses_position",
}  # fmt: skip
"""Tables of figures, decisions of rules and names of models. Erased ids in their texts are replaced. Entries
of the memory are emptied, and stay."""


def test_each_table_is_erased_from_or_holds_no_conversations(school: School) -> None:
    with school.warehouse.cursor() as cursor:
        erased = ErasedRows(cursor, Letters(Tombstones(load_user_keys(school.settings.privacy, school.warehouse.path))))
        covered = erased.conditions().keys()
    found = school.warehouse.rows("SELECT table_name FROM duckdb_tables() WHERE database_name = 'retuned'")
    tables = {row["table_name"] for row in found}
    assert tables - covered - NO_CONVERSATIONS == set()
