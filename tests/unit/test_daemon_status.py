"""What the status and the page show."""

import itertools
import json
import random
import re
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml

from fixtures.daemon.operations import ask
from fixtures.daemon.pages import page, text
from fixtures.feedback.traffic import START, feedback, interactions, store
from fixtures.kafka.brokers import free_port, until
from fixtures.releases.schemas import value
from retuned.consumers.warehouse.connection import Warehouse, insert
from retuned.daemon.cli.command import Common
from retuned.daemon.cli.main import main
from retuned.daemon.cli.summary import details
from retuned.daemon.jsontext import as_json
from retuned.daemon.operations.local import Local, opened
from retuned.daemon.settings import load
from retuned.daemon.status import status
from retuned.monitors.quality.measure import measure
from retuned.retrain.scoring.label import as_figures

SUPPORT = "/workloads/support"


def test_a_run_shows_the_scores_of_all_that_it_compared(tmp_path: Path) -> None:
    file = tmp_path / "retuned.yaml"
    folders = {"warehouse": {"path": str(tmp_path / "w.duckdb")}, "models": {"directory": str(tmp_path / "models")}}
    file.write_text(yaml.safe_dump(folders))
    scores = {"base": 0.0, "logged": 0.25, "candidate": 0.875}
    with opened(load(file)) as local:
        jobs = local.jobs
        interactions(jobs.context.warehouse, ["Where is my parcel?"], random.Random(0), start=START)
        jobs.context.now = lambda: START
        for id, detail in (("r1", {"scores": scores}), ("r2", None)):
            jobs.context.warehouse.insert(
                "runs",
                id=id,
                workload="support",
                reasons='["by hand"]',
                state="running",
                started_at=START,
                detail=json.dumps(detail) if detail else None,
            )
        told = json.loads(as_json(status(jobs, None, None)))
        found = page(local, SUPPORT)
    shown = {run["id"]: run["scores"] for run in told["workloads"]["support"]["runs"]}
    assert shown == {"r1": scores, "r2": None}
    assert "base 0.000, logged 0.250, candidate 0.875" in found


def told(local: Local) -> dict[str, Any]:
    return json.loads(as_json(status(local.jobs, None, None)))


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Local]:
    file = tmp_path / "retuned.yaml"
    folders = {"warehouse": {"path": str(tmp_path / "w.duckdb")}, "models": {"directory": str(tmp_path / "models")}}
    file.write_text(yaml.safe_dump(folders))
    with opened(load(file)) as service:
        service.jobs.context.now = lambda: START
        yield service


def test_a_workload_has_its_objective_and_its_base_model(tmp_path: Path) -> None:
    file = tmp_path / "retuned.yaml"
    entry = {"objective": "Answers <customers>.", "base": "/models/large"}
    folders = {"warehouse": {"path": str(tmp_path / "w.duckdb")}, "models": {"directory": str(tmp_path / "models")}}
    file.write_text(yaml.safe_dump({**folders, "workloads": {"support.*": entry}}))
    with opened(load(file)) as local:
        local.jobs.context.now = lambda: START
        for number, name in enumerate(("support.a", "tickets")):
            interactions(local.warehouse, ["Hi?"], random.Random(0), start=START, offset=number, workload=name)
        shown = told(local)
        pages = [page(local, f"/workloads/{name}") for name in ("support.a", "tickets")]
    workloads = shown["workloads"]
    assert (workloads["support.a"]["objective"], workloads["support.a"]["base_model"]) == tuple(entry.values())
    assert (workloads["tickets"]["objective"], workloads["tickets"]["base_model"]) == ("", None)
    assert "Answers &lt;customers&gt;." in pages[0]
    assert 'base model <code class="long">/models/large</code>' in pages[0]
    assert "no base model is configured, so no model is trained" in pages[1]


def test_a_workload_with_versions_and_no_base_model_is_trained_no_further(local: Local) -> None:
    interactions(local.warehouse, ["Hi?"], random.Random(0), start=START, workload="tickets")
    local.warehouse.insert(
        "runs", id="r", workload="tickets", reasons="[]", state="succeeded", started_at=START, version="3f2a91c0"
    )
    shown = page(local, "/workloads/tickets")
    assert "no base model is configured now, so no further version is trained" in shown
    assert "no model is trained" not in shown


def test_workloads_with_figures_come_before_those_without(local: Local) -> None:
    warehouse = local.warehouse
    for name in ("a-model", "b-model"):
        warehouse.insert("aliases", workload=name, alias="champion", version="3f2a91c0", created_at=START)
    for number, name in enumerate(("z-busy", "b-model")):
        figure = {"created_at": START, "workload": name, "model": "*", "metric": "helpful_rate", "source": "user"}
        warehouse.insert("quality", **figure, value=0.5, low=0.25 * number, high=0.5, n=4)
    interactions(warehouse, ["Where is my parcel?"], random.Random(0), start=START, workload="z-busy")
    shown = told(local)
    assert list(shown["workloads"]) == ["b-model", "z-busy", "a-model"]
    found = text(page(local))
    assert "b-model 50% 25%–50% of 4" in found
    assert "3f2a91c0" in found


def test_the_page_shows_the_latest_dead_letters_with_reason_and_link(local: Local) -> None:
    assert "Latest dead letters" not in page(local, "/system")
    for number in range(7):
        letter = {"topic": "interactions", "partition": 0, "offset": number, "reason": "not_json & <b>", "payload": "{"}
        at = START + timedelta(minutes=number)
        local.warehouse.insert("dead_letters", **letter, detail=f"malformed {number}", received_at=at)
    found = page(local, "/system")
    assert '<a href="/api/v1/dead-letters?reason=not_json%20%26%20%3Cb%3E">not_json &amp; &lt;b&gt;</a>' in found
    assert re.findall("malformed (.)", found) == ["6", "5", "4", "3", "2"]


def test_without_a_daemon_the_status_names_who_was_set_aside_when_it_stopped(local: Local) -> None:
    long_ago = START - timedelta(days=30)
    local.warehouse.execute("INSERT INTO offsets (topic, partition, next_offset) VALUES ('interactions', 0, 1500)")
    local.warehouse.execute(
        """
        INSERT INTO dead_letters (topic, partition, "offset", reason, detail, received_at)
        SELECT 'interactions', 0, n, 'not_json', 'malformed', $at FROM range(1500) AS numbers(n)
        """,
        {"at": long_ago},
    )
    (found,) = ask(local, "ingestion")["set_aside"]
    assert (found["topic"], found["workload"], found["dead"]) == ("interactions", None, 1000)
    assert "not_json" in found["example"]
    assert told(local)["ingestion"]["set_aside"]


def test_the_page_has_no_negative_zero_and_no_interval_between_equals(local: Local) -> None:
    interactions(local.warehouse, ["Where is my parcel?"], random.Random(0), start=START)
    figure = {"created_at": START, "workload": "support", "model": "*", "source": "features"}
    local.warehouse.insert("quality", **figure, metric="answers", value=20, low=20, high=20, n=20)
    local.warehouse.insert("quality", **figure, metric="length", value=20, low=19, high=21, n=20)
    amounts = [("gain", "a", 0.001), ("gain", "b", -0.001), ("gain", "c", 2), ("gain", "d", -2), ("cost", "e", 3)]
    for kind, item, amount in amounts:
        local.warehouse.insert(
            "ledger", id=item, created_at=START, workload="support", kind=kind, item=item, quantity=1.0, unit="answer",
            rate=1.0, amount=amount, reference="r",
        )  # fmt: skip
    found = text(page(local, SUPPORT))
    for item, shown in zip("abcde", ("0.00", "0.00", "2.00", "-2.00", "-3.00"), strict=True):
        assert f"{item} 1 answer {shown} " in found
    assert "-0.00" not in found
    assert "answers features 20 20" in found
    assert "length features 20 19 to 21" in found


@pytest.mark.parametrize(
    ("run", "shown"),
    [
        (
            {"state": "refused", "error": "workload support: 40 new examples"},
            "refused: workload support: 40 new examples",
        ),
        ({"state": "failed", "error": "train: out of memory"}, "failed: train: out of memory"),
        (
            {"state": "succeeded", "version": "3f2a91c0", "detail": '{"scores": {"base": 0, "candidate": 0.8125}}'},
            "succeeded: support@3f2a91c0, holdout score: candidate 0.812, base 0.000",
        ),
        ({"state": "interrupted"}, "interrupted: it resumes from its checkpoint when its turn comes"),
    ],
)
def test_the_text_says_what_became_of_the_latest_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], run: dict[str, str], shown: str
) -> None:
    file = tmp_path / "retuned.yaml"
    folders = {"warehouse": {"path": str(tmp_path / "w.duckdb")}, "models": {"directory": str(tmp_path / "models")}}
    file.write_text(yaml.safe_dump({**folders, "http": {"port": free_port()}}))
    with opened(load(file)) as local:
        interactions(local.warehouse, ["Where is my parcel?"], random.Random(0), start=START)
        local.warehouse.insert("runs", id="r", workload="support", reasons="[]", started_at=START, **run)
    assert main(["status", "support", "--config", str(file)]) == 0
    assert re.search(rf"^run +{re.escape(shown)}$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize(
    ("reasons", "shown"),
    [
        (
            ["Refused by gain, because it is small; it would take 40 more.", "A gain of +0.05."],
            "Refused by gain, because",
        ),
        (
            ["A gain of +0.05.", "Refused by: gain. It takes 40 more.", "facts may decide."],
            "Refused by: gain. It takes",
        ),
    ],
)
def test_a_refusal_is_what_a_person_sees_first_also_one_of_an_earlier_version(
    local: Local, reasons: list[str], shown: str
) -> None:
    interactions(local.warehouse, ["Hi?"], random.Random(0), start=START)
    of = {"workload": "support", "reasons": json.dumps(reasons)}
    local.warehouse.insert(
        "runs", id="r", state="succeeded", version="v2", started_at=START, finished_at=START, **of
    )  # fmt: skip
    local.warehouse.insert(
        "decisions", id="r-gate", created_at=START, kind="gate", outcome=False, figures="{}", run_id="r", **of
    )  # fmt: skip
    policy = {"kind": "retrain", "outcome": False, "workload": "support", "reasons": '["cool-down"]', "figures": "{}"}
    local.warehouse.insert("decisions", id="p", created_at=START + timedelta(minutes=1), **policy)
    found = told(local)["workloads"]["support"]["attention"]
    assert (found["level"], found["sentence"]) == ("warn", "The gate refused v2")
    assert found["evidence"].startswith(shown)
    assert shown in text(page(local, "/"))


def test_a_decision_on_labels_shows_the_worst_of_them(local: Local) -> None:
    interactions(local.warehouse, ["Hi?"], random.Random(0), start=START)
    table = {f"label_{n:02}": Counter({f"label_{n:02}": n, "other": 12 - n}) for n in range(13)}
    figures = {"macro_f1_champion": 0.25, "macro_f1_candidate": 0.5, "score_candidate": 0.5} | as_figures(table)
    for id, kind, found in (("g", "gate", figures), ("h", "gate", {"score_candidate": 0.5}), ("p", "policy", {})):
        local.warehouse.insert(
            "decisions", id=id, created_at=START, workload="support", kind=kind, outcome=True, reasons='["Yes."]',
            figures=json.dumps(found), run_id=id,
        )  # fmt: skip
    shown = told(local)
    decisions = {row["run_id"]: row for row in shown["workloads"]["support"]["decisions"]}
    assert {id: "labels" in row for id, row in decisions.items()} == {"g": True, "h": False, "p": False}
    assert all("figures" not in row for row in decisions.values())
    labels = decisions["g"]["labels"]
    assert (labels["known"], labels["macro_f1"]) == (13, {"champion": 0.25, "candidate": 0.5})
    assert [one["label"] for one in labels["mistaken"]] == [f"label_{n:02}" for n in range(10)]
    assert labels["mistaken"][1] == {"label": "label_01", "questions": 12, "right": 1, "taken_for": "11 other"}
    assert labels["more"] == 2  # of twelve that are mistaken; the thirteenth is always right
    found = text(page(local, SUPPORT))
    assert "Macro-F1 0.500 over 13 labels, before 0.250. Most mistaken: label_00" in found
    assert "label_04 4 of 12 right (8 other); and 7 more" in found
    assert "label_05" not in found


def test_status_and_page_say_of_when_their_figures_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    file = tmp_path / "retuned.yaml"
    folders = {"warehouse": {"path": str(tmp_path / "w.duckdb")}, "models": {"directory": str(tmp_path / "models")}}
    file.write_text(yaml.safe_dump({**folders, "http": {"port": free_port()}}))
    with opened(load(file)) as local:
        local.jobs.context.now = lambda: START
        interactions(local.warehouse, ["Hi?"], random.Random(0), start=START)
        before = told(local)
        assert (before["as_of"][:19], before["booked_at"]) == ("2026-03-02T09:00:00", None)
        assert "Booked until" not in page(local, SUPPORT)
        assert "measured at" not in page(local, SUPPORT)
        local.warehouse.execute(
            "INSERT INTO quality BY NAME SELECT ? AS created_at, 'support' AS workload, '*' AS model, "
            "'helpful_rate' AS metric, 'user' AS source, 0.5 AS value, 0.4 AS low, 0.6 AS high, 9 AS n",
            [START - timedelta(minutes=1)],
        )
        booked = [START - timedelta(minutes=2)]
        local.warehouse.execute("UPDATE ledger_position SET booked_at = ?", booked)
        for kind, item in (("gain", "time_saved"), ("cost", "training")):
            local.warehouse.insert(
                "ledger", id=item, created_at=booked[0], workload="support", kind=kind, item=item, quantity=1.0,
                unit="h", rate=2.0, amount=2.0, reference="r",
            )  # fmt: skip
        sums = ("interactions", "gain", "cost", "gain_squared", "cost_squared", "gain_cost")
        local.warehouse.insert(
            "ledger_moments", workload="support", version="", promotion="", hour=START, conversations=1,
            **dict.fromkeys(sums, 1.0),
        )  # fmt: skip
        found = text(page(local, SUPPORT))
    assert "as of 2 Mar 09:00 UTC" in found
    assert "measured at 2 Mar 08:59 UTC" in found
    assert "Booked until 2 Mar 08:58 UTC" in found
    assert main(["status", "support", "--config", str(file)]) == 0
    said = capsys.readouterr().out
    assert re.match(r"retuned \S+ is not running; as of 20\S+ \d\d:\d\d UTC\n1 answer, 0 feedback; warehouse", said)
    assert "quality  helpful 50% by users (40% to 60% of 9); measured 2026-03-02 08:59 UTC\n" in said
    assert ", booked until 2026-03-02 08:58 UTC\n" in said


@pytest.mark.full
def test_after_a_promotion_all_count_the_same_answers(tmp_path: Path) -> None:
    """Those since the promotion, whoever gave them: neither the rates nor the number of the answers before it."""
    file = tmp_path / "retuned.yaml"
    folders = {"warehouse": {"path": str(tmp_path / "w.duckdb")}, "models": {"directory": str(tmp_path / "models")}}
    file.write_text(yaml.safe_dump({**folders, "http": {"port": free_port()}}))
    promoted, second = START + timedelta(hours=2), timedelta(seconds=1)
    later = promoted + timedelta(minutes=5)
    with opened(load(file)) as local:
        warehouse, rng = local.warehouse, random.Random(0)
        before = interactions(warehouse, ["Hi?"] * 300, rng, start=START, step=second)
        feedback(warehouse, before[:200], "helpful", True, when=START + timedelta(hours=1))
        feedback(warehouse, before[200:280], "helpful", False, when=START + timedelta(hours=1), offset=200)
        measure(warehouse, local.jobs.context.settings, "support", promoted - second)
        local.jobs.context.now = lambda: promoted - second
        assert "300 answers since 2026-03-02 09:00 UTC (300 of base); helpful 71% by users" in shown_quality(local)
        warehouse.insert("aliases", workload="support", alias="champion", version="3f2a91c0", created_at=promoted)
        local.jobs.context.now = lambda: promoted + second
        assert told(local)["workloads"]["support"]["quality"] == [], "they are of the model before"
        assert "Nothing is measured yet since 2 Mar 11:00" in text(page(local, SUPPORT))
        interactions(warehouse, ["Hi?"] * 20, rng, start=promoted, step=second, offset=300)
        after = interactions(
            warehouse, ["Hi?"] * 40, rng, start=promoted, step=second, offset=320, model="support@3f2a91c0"
        )
        local.jobs.context.now = lambda: later
        measure(warehouse, local.jobs.context.settings, "support", later)
        found = told(local)["workloads"]["support"]
        assert "No answers are rated" not in found["attention"]["sentence"], "votes come later than answers"
        counted = "60 answers since 2026-03-02 11:00 UTC (40 of support@3f2a91c0, 20 of base)"
        assert f"{counted}, none rated; latency" in shown_quality(local)
        feedback(warehouse, after[:1], "helpful", True, source="expert", when=promoted + second, offset=400)
        measure(warehouse, local.jobs.context.settings, "support", later + second)
        assert f"{counted}; helpful 100% by experts" in shown_quality(local)
        assert "60 answers since 2 Mar 11:00 UTC: 40 of support@3f2a91c0, 20 of base" in text(page(local, SUPPORT))
        assert "No answer of the current window is rated" not in page(local, SUPPORT)


def shown_quality(local: Local) -> str:
    return dict(details("support", told(local)))["quality"]


def test_a_workload_that_the_base_model_serves_has_no_champion(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    file = tmp_path / "retuned.yaml"
    folders = {"warehouse": {"path": str(tmp_path / "w.duckdb")}, "models": {"directory": str(tmp_path / "models")}}
    file.write_text(yaml.safe_dump({**folders, "http": {"port": free_port()}}))
    with opened(load(file)) as local:
        interactions(local.warehouse, ["Hi?"], random.Random(0), start=START)
    assert main(["status", "support", "--config", str(file)]) == 0
    assert "serves  support@base, the base model: no version is promoted\n" in capsys.readouterr().out


@pytest.mark.full
def test_a_replica_that_is_away_stands_in_status_and_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, url = tmp_path / "retuned.yaml", f"http://127.0.0.1:{free_port()}/v1"
    content = {
        "warehouse": {"path": str(tmp_path / "w.duckdb")},
        "models": {"directory": str(tmp_path / "models")},
        "http": {"port": free_port()},
        "serving": {"targets": [{"kind": "folder"}, {"kind": "vllm", "urls": [url]}]},
    }
    file.write_text(yaml.safe_dump(content))
    with opened(load(file)) as local:
        local.jobs.context.now = lambda: START
        interactions(local.warehouse, ["Hi?"], random.Random(0), start=START)
        row = {"base_model": "b", "base_hash": "h", "dataset_version": "d", "run_id": "r", "manifest": "{}"}
        path = str(tmp_path / "models" / "support" / "aaaaaaaa")
        local.warehouse.insert("models", version="aaaaaaaa", workload="support", created_at=START, path=path, **row)
        local.jobs.context.rollout.promote("support", "aaaaaaaa", "operator", "by hand", START)
        local.jobs.context.reconciler.run()
        shown = told(local)
        found = page(local, SUPPORT)
    serving = shown["workloads"]["support"]["serving"]
    (deployment,) = serving["deployments"]
    assert (deployment["model"], deployment["share"], deployment["aliases"], deployment["served_at"]) == (
        "support@aaaaaaaa", 1.0, ["champion"], None
    )  # fmt: skip
    folder, server = sorted(serving["replicas"], key=lambda replica: replica["target"])
    assert [model["state"] for model in folder["models"]] == ["serving"]
    assert (server["replica"], server["up"], server["models"]) == (url, False, [])
    assert "does not answer" in server["problem"]
    assert url in found
    assert "does not answer" in found
    monkeypatch.setattr(Common, "asking", lambda _: nullcontext(_Shown(shown)))
    assert main(["status", "support", "--verbose", "--config", str(file)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"; vllm {url}: serving.targets (vllm)" in printed
    assert "folder" not in printed


def test_the_status_of_one_workload_is_that_of_no_other(
    local: Local, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    known(local.warehouse, "support", "billing")
    local.warehouse.insert("pauses", workload="billing", created_at=START, actor="anna", reason="a fair")
    local.jobs.context.failures["watch"] = "workload billing: no disk; workload support: no judge"
    monkeypatch.setattr(Common, "asking", lambda _: nullcontext(local))
    config = ["--config", str(local.warehouse.path.with_name("retuned.yaml"))]
    assert main(["status", "support", *config]) == 0
    printed = capsys.readouterr().out
    assert "\nsupport: " in printed
    assert "The job watch failed: workload support: no judge\n" in printed
    assert "billing" not in printed
    of_all = "70% of all answers helpful (60% to 80%, from 90 votes), 80% before, most in topic '2 refund, order'"
    assert f"; {of_all}\n" in printed
    assert main(["status", "billing", "--json", *config]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["workloads"]) == ["billing"]
    assert [{one["workload"] for one in found[name]} for name in ("queue", "pauses")] == [{"billing"}, {"billing"}]
    assert main(["status", "suport", *config]) == 1
    assert "workload suport: unknown; known are billing, support" in capsys.readouterr().err


class _Shown:
    """A service whose status is known."""

    def __init__(self, shown: dict[str, Any]) -> None:
        self.ask = lambda *_: shown


def test_the_page_shows_when_drift_was_checked_and_what_was_accepted(tmp_path: Path) -> None:
    file = tmp_path / "retuned.yaml"
    folders = {"warehouse": {"path": str(tmp_path / "w.duckdb")}, "models": {"directory": str(tmp_path / "models")}}
    file.write_text(yaml.safe_dump({**folders, "http": {"port": free_port()}}))
    with opened(load(file)) as local:
        local.jobs.context.now = lambda: START + timedelta(days=9)
        interactions(local.warehouse, ["Hi?"], random.Random(0), start=START)
        for day, drifted in ((3, True), (5, False)):
            local.warehouse.insert(
                "drift_checks", id=str(day), created_at=START + timedelta(days=day), workload="support",
                drifted=drifted, severity=None, features="[]", reference_rows=1, current_rows=1, report=None,
                detail=f"of day {day}", estimate=json.dumps(ESTIMATE),
            )  # fmt: skip
        before = text(page(local, "/workloads/support?range=28d"))
        local.warehouse.insert(
            "drift_references", workload="support", created_at=START + timedelta(days=4), start=START, actor="anna",
            reason="a <new> product",
        )  # fmt: skip
        after = text(page(local, "/workloads/support?range=28d"))
    estimated = (
        "Estimated helpful rate of all answers, rated or not: 70% 60% to 80%, from 90 votes; 80% in the reference"
    )
    assert f"{estimated}, most changed in topic “2 refund, order”" in before
    assert "None found at 7 Mar 09:00 UTC. Of day 5." in before
    assert "The reference begins" not in before
    assert "Nothing is measured yet" in before
    reference = "The reference begins at 2 Mar 09:00 UTC, as anna accepted at 6 Mar 09:00 UTC: a &lt;new&gt;"
    assert reference in after


def test_the_page_has_the_runs_under_way_and_those_in_line(local: Local) -> None:
    interactions(local.warehouse, ["Where is my parcel?"], random.Random(0), start=START)
    assert "None under way" in page(local, "/system")
    assert "Retraining:" not in page(local, SUPPORT)
    runs = local.jobs.runs
    row = {"id": "r1", "workload": "support", "kind": "retrain", "at_any_hour": True}
    runs._under_way["r1"] = begun = runs._new(row)
    for step, loss, minute in ((1, 0.9, 0), (2, 0.7, 1), (3, 0.51239, 2)):
        begun.report({"stage": "train", "step": step, "steps": 9, "loss": loss}, START + timedelta(minutes=minute))
    found = text(page(local, SUPPORT))
    assert "Retraining: training step 3 of 9 · loss 0.5124 · 6 min left in this stage on this machine" in found
    assert 'aria-label="training loss from 0.9 at step 1 to 0.512 at step 3"' in page(local, SUPPORT)
    assert re.search(r"support 2 Mar 09:00 train", text(page(local, "/system")))
    begun.report({"stage": "evaluate", "evaluated": 3, "rows": 90}, START + timedelta(minutes=3))
    assert begun.as_dict()["seconds_left"] is None, "one report is no speed"


ESTIMATE = {
    "rate": 0.7, "low": 0.6, "high": 0.8, "votes": 90, "before": 0.8, "segments": [],
    "moved": {"name": "topic", "value": "2 refund, order"},
}  # fmt: skip
SHOWN = {
    "aliases": {"alias": ("champion", "previous")},
    "quality": {"metric": ("helpful_rate", "grounding", "tone"), "source": ("user",), "model": ("*", "base")},
    "drift_checks": {"estimate": (json.dumps(ESTIMATE),), "features": ("[]",)},
    "drift_references": {},
    "decisions": {"kind": ("gate", "policy"), "reasons": ('["so"]',), "figures": ('{"gain": 0.1}',)},
    "runs": {"state": ("succeeded", "waiting"), "reasons": ('["so"]',), "detail": ('{"scores": {"base": 0.5}}', None)},
    "approvals": {"state": ("refused", "waiting", "expired"), "kind": ("version", "dataset")},
    "promotions": {"event": ("promoted", "rolled_back", "canary"), "actor": ("gate",)},
    "rollouts": {"state": ("canary",), "ended_at": (None,), "share": (0.1,)},
    "rollout_checks": {"comparisons": ("[]",), "reasons": ('["so"]',), "verdict": ("hold",)},
    "watch_checks": {"comparisons": ("[]",), "reasons": ('["so"]',), "verdict": ("keep",)},
    "row_states": {"state": ("set_aside",), "quarantined": (True,)},
    "ledger": {"kind": ("cost", "gain"), "period_start": (date(2026, 3, 3),)},
    "ledger_moments": {"conversations": (40,), "version": ("version 1", "version 2", "")},
    "ledger_left_out": {},
    "ledger_outcomes": {"outcome": ("resolved", "unresolved", "unknown"), "conversations": (3,)},
    "blindness": {},
    "label_requests": {},
    "deployments": {"share": (1.0,)},
}
"""The tables of which the status shows something of each workload, with values that mean something there."""


def known(warehouse: Warehouse, *workloads: str) -> None:
    """Store seven rows of each workload in each table, other ones of each."""
    columns = warehouse.rows("SELECT table_name, column_name, data_type FROM duckdb_columns() ORDER BY column_index")
    for table, meant in SHOWN.items():
        kinds = {row["column_name"]: row["data_type"] for row in columns if row["table_name"] == table}
        most = {"aliases": 2, "rollouts": 1}.get(table, 7)
        rows = []
        for seed, workload in enumerate(workloads):
            for number in range(1, most + 1):
                row = {column: value(column, kind, number + seed % 3) for column, kind in kinds.items()}
                row |= {column: of[number % len(of)] for column, of in meant.items()} | {"workload": workload}
                own = {"id", "experiment", "promotion", "run_id", "interaction_id", "source_id"} & row.keys()
                row |= dict.fromkeys(own, f"{workload} {number}")
                rows.append(row | ({"experiment": f"{workload} 1"} if table == "rollout_checks" else {}))
        store(warehouse, table, rows)


def shown_with(folder: Path, *workloads: str) -> tuple[dict[str, Any], int]:
    """The status with these workloads, and the queries that it takes."""
    file = folder / f"{len(workloads)}" / "retuned.yaml"
    file.parent.mkdir()
    folders = {"warehouse": {"path": str(file.parent / "w.duckdb")}, "models": {"directory": str(folder / "models")}}
    file.write_text(yaml.safe_dump(folders))
    with opened(load(file)) as local:
        known(local.warehouse, *workloads)
        local.jobs.context.now = lambda: START
        ask(local, "status")  # follows the answers that are new
        queries, cursor = 0, local.warehouse.cursor

        def counted() -> duckdb.DuckDBPyConnection:
            nonlocal queries
            queries += 1
            return cursor()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(local.warehouse, "cursor", counted)
            return told(local), queries


@pytest.mark.full
def test_a_status_takes_as_many_queries_however_many_workloads_there_are(tmp_path: Path) -> None:
    names = [f"workload-{number}" for number in range(45)]
    alone, queries = shown_with(tmp_path, *names[:1])
    for count in (10, 45):
        beside, more = shown_with(tmp_path, *names[:count])
        assert len(beside["workloads"]) == count
        assert more == queries
        assert beside["workloads"]["workload-0"] == alone["workloads"]["workload-0"]
    shown = alone["workloads"]["workload-0"]
    assert [name for name, of in shown.items() if not of] == ["objective", "base_model", "incumbent", "reports"]
    assert shown["rollout"]["check"]
    assert len(beside["workloads"]["workload-7"]["approvals"]) == 5


@pytest.mark.full
def test_a_status_is_of_one_time_whatever_is_written_meanwhile(local: Local) -> None:
    warehouse, over = local.jobs.context.warehouse, threading.Event()
    interactions(warehouse, ["Where is my parcel?"], random.Random(0), start=START)

    def change() -> None:
        for number in itertools.count():
            if over.is_set():
                return
            with warehouse.transaction() as cursor:
                for table in ("promotions", "aliases"):
                    cursor.execute(f"DELETE FROM {table}")
                insert(cursor, "aliases", workload="support", alias="champion", version=f"v{number}", created_at=START)
                insert(
                    cursor, "promotions", id=f"p{number}", workload="support", created_at=START, event="promoted",
                    version=f"v{number}", actor="gate", reason="better", announced=True,
                )  # fmt: skip

    with ThreadPoolExecutor(1) as other:
        changing = other.submit(change)
        try:
            until(lambda: warehouse.rows("FROM aliases"))
            seen = [told(local)["workloads"]["support"] for _ in range(40)]
        finally:
            over.set()
        changing.result()
    assert len({one["champion"] for one in seen}) > 1
    assert [one["champion"] for one in seen] == [one["promotions"][0]["version"] for one in seen]
