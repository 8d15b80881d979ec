"""Months and quarters, and what a report says in words."""

import json
import random
from collections import defaultdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fixtures.feedback.traffic import START, feedback, interactions
from retuned.consumers.warehouse.connection import Warehouse
from retuned.daemon.jsontext import as_json
from retuned.daemon.reports.page import comparison, draw, sentences
from retuned.daemon.reports.reports import Kind, Period, gather, period_before, report_id, reports
from retuned.daemon.settings import Settings
from retuned.monitors.money.ledger import book
from retuned.monitors.money.roll_up import roll_up
from retuned.monitors.quality.measure import measure
from retuned.monitors.settings import RoiSettings
from retuned.monitors.settings import Settings as MoneySettings

PLOT = 'class="plotly-graph-div"'


@pytest.mark.parametrize(
    ("time", "month", "quarter"),
    [
        (datetime(2026, 1, 1), ("2026-01", "2025-12"), ("2026-Q1", "2025-Q4")),
        (datetime(2026, 12, 31, 23, 59), ("2026-12", "2026-11"), ("2026-Q4", "2026-Q3")),
        (datetime(2024, 2, 29), ("2024-02", "2024-01"), ("2024-Q1", "2023-Q4")),
    ],
)
def test_periods(time: datetime, month: tuple[str, str], quarter: tuple[str, str]) -> None:
    for kind, names in (("month", month), ("quarter", quarter)):
        period = Period.of(kind, time)  # type: ignore[arg-type]
        assert (period.name, period.before.name) == names
        assert period.start <= time < period.end
        assert period.before.end == period.start


def test_each_workload_has_its_own_reports(tmp_path: Path) -> None:
    month, quarter = Period.of("month", datetime(2026, 3, 5)), Period.of("quarter", datetime(2026, 3, 5))
    for workload, period in (("a.b", month), ("a.b", month.before), ("a.b", quarter), ("a-b", month), ("../x", month)):
        name = report_id(workload, period)
        assert name.replace("-", "").isalnum()
        (tmp_path / f"{name}.html").touch()
    assert [name[:7] for name in reports(tmp_path, "a.b")] == ["2026-Q1", "2026-03", "2026-02"]
    assert reports(tmp_path, "a-b") == [report_id("a-b", month)]
    assert reports(tmp_path, "b") == []


def period(**changes: Any) -> dict[str, Any]:
    nothing: dict[str, Any] = {
        "answers": [], "figures": [], "rates": [], "money": [], "promotions": [], "runs": [], "drift": [],
        "corrections": 0, "some_archived": False, "cost_per_resolved": None, "resolved": None,
    }  # fmt: skip
    return nothing | changes


def figure(day: str, value: float, n: int, metric: str = "helpful_rate", source: str = "user") -> dict[str, Any]:
    return {"day": day, "metric": metric, "source": source, "value": value, "low": value, "high": value, "n": n}


def rate(value: float, n: int, source: str = "user") -> dict[str, Any]:
    row = figure("", value, n, source=source)
    return row | {"day": None, "low": value - 0.05, "high": value + 0.05}


def amount(day: str, kind: str, item: str, amount: float) -> dict[str, Any]:
    return {"day": day, "kind": kind, "item": item, "amount": amount}


@pytest.fixture
def job(tmp_path: Path) -> dict[str, Any]:
    return {
        "workload": "support <b>", "objective": "Answers <i>customers</i>.",
        "period": "2026-03", "kind": "month", "currency": "EUR",
        "now": period(
            answers=[{"day": "2026-03-01", "answers": 1_000}, {"day": "2026-03-02", "answers": 500}],
            figures=[
                figure("2026-03-01", 0.9, 100), figure("2026-03-02", 0.6, 300),
                figure("2026-03-02", 0.5, 10, source="expert"),
                figure("2026-03-02", 0.8, 50, "latency_p50_seconds", "app"),
                figure("2026-03-01", 0.1, 500, "hallucination_rate", "nli"),
                figure("2026-03-02", 0.2, 900, "hallucination_rate", "nli"),
            ],
            rates=[rate(0.675, 400), rate(0.5, 10, source="expert")],
            money=[
                amount("2026-03-01", "gain", "time_saved", 90.0), amount("2026-03-02", "gain", "time_saved", 30.0),
                amount("2026-03-02", "cost", "training", 20.0),
            ],
            promotions=[
                {"created_at": "2026-03-02 10:00:00", "event": "promoted", "version": "3f2a91c0",
                 "previous_version": None, "actor": "gate", "reason": "better"},
            ],
            runs=[{"state": "succeeded", "runs": 1, "seconds": 20.0}, {"state": "refused", "runs": 1, "seconds": 20.0}],
            drift=[{"day": "2026-03-02", "severity": 0.4, "checks": 96, "drifted": 4}],
            corrections=1, cost_per_resolved=0.8, resolved=25,
        ),
        "before": period(answers=[{"day": "2026-02-01", "answers": 700}], rates=[rate(0.5, 40)]),
        "benchmark": {
            "champion": "support@3f2a91c0",
            "scores": [
                {"split": "holdout", "model": model, "score": score, "low": score - 0.1, "high": score + 0.1,
                 "hallucination": None, "n": 40}
                for model, score in (("base", 0.2), ("logged", 0.4), ("champion", 0.8))
            ],
            "metric": "1 for the right label, else 0",
            "labels": [("refund", 4, 1, "3 <shipping>")],
        },
        "earlier": [{"period": "2026-02", "score": 0.7, "low": 0.6, "high": 0.8}],
        "page": str(tmp_path / "page.html"),
    }  # fmt: skip


def test_a_month_in_words(job: dict[str, Any]) -> None:
    assert sentences(job) == [
        "The model answered 1,500 times, after 700 in the period before.",
        "Users called 68% of the 400 answers that they rated helpful (95%: 62% to 73%), "
        "after 50% in the period before.",
        "It earned 120.00 EUR and cost 20.00 EUR, a return of 5.0 on the costs.",
        "A resolved conversation cost 0.8 EUR (25 were resolved).",
        "It was retrained twice. 1 new model went into service, no models were taken back. People corrected 1 answer.",
        "In 4 of 96 hours a drift check found that questions or answers had changed.",
    ]


def test_figures_beside_those_of_the_period_before(job: dict[str, Any]) -> None:
    assert comparison(job) == [
        ("helpful answers", "expert", "50.0% (45.0% to 55.0%, n=10)", "–"),
        ("helpful answers", "user", "67.5% (62.5% to 72.5%, n=400)", "50.0% (45.0% to 55.0%, n=40)"),
        ("invented answers", "nli", "15.0%", "–"),
        ("median latency", "app", "0.80 s", "–"),
        ("gains: time saved", "", "120.00 EUR", "0.00 EUR"),
        ("costs: training", "", "20.00 EUR", "0.00 EUR"),
        ("cost of a resolved conversation", "", "0.8 EUR", "–"),
    ]
    job["before"]["cost_per_resolved"] = 1_234.5678
    assert comparison(job)[-1][2:] == ("0.8 EUR", "1,235 EUR")


def test_a_page_with_plots_that_asks_nobody_for_anything(job: dict[str, Any]) -> None:
    draw(job, lambda _: None)
    page = Path(job["page"]).read_text()
    assert page.count(PLOT) == 7
    assert "support &lt;b&gt;" in page
    assert "<p>Objective: Answers &lt;i&gt;customers&lt;/i&gt;.</p>" in page
    assert "<b>" not in page.split("</script>", 1)[1].split("<section>")[0]
    assert '"name":"logged"' in page
    assert "The score of an answer is 1 for the right label, else 0." in page
    assert "<td>3 &lt;shipping&gt;</td>" in page
    assert "http" not in page.split("</script>", 1)[1]
    assert "nan" not in "".join(sentences(job)).lower()


def test_a_month_with_nothing_but_answers(job: dict[str, Any]) -> None:
    job |= {"now": period(answers=[{"day": "2026-03-01", "answers": 1}]), "before": period(), "earlier": []}
    job["benchmark"] = {"problem": "The base model serves: there is no other to compare it with."}
    assert sentences(job)[0] == "The model answered 1 times."
    draw(job, lambda _: None)
    page = Path(job["page"]).read_text()
    assert page.count(PLOT) == 0
    assert "No benchmark of the models: The base model serves" in page


def test_a_page_says_of_when_its_figures_are(job: dict[str, Any], warehouse: Warehouse) -> None:
    month = Period.of("month", START)
    assert {"measured_at": None, "booked_at": None}.items() <= gather(warehouse, "support", month).items()
    warehouse.execute(
        "INSERT INTO quality BY NAME SELECT unnest(?) AS created_at, 'support' AS workload, '*' AS model, "
        "'helpful_rate' AS metric, 'user' AS source, 0.5 AS value, 0.4 AS low, 0.6 AS high, 9 AS n",
        [[START, START + timedelta(minutes=1), month.end]],
    )
    warehouse.execute("UPDATE ledger_position SET booked_at = ?", [START + timedelta(minutes=2)])
    draw(job | {"now": gather(warehouse, "support", month)}, lambda _: None)
    page = Path(job["page"]).read_text()
    assert "Quality was measured until 2026-03-02 09:01. Money was booked until 2026-03-02 09:02." in page


def test_a_page_says_who_approved_and_refused_what(job: dict[str, Any], warehouse: Warehouse) -> None:
    month = Period.of("month", START)
    for version, state, actor, reason, decided_at in (
        ("v1", "approved", "alice", "fine", START),
        ("v2", "refused", "bob", "it is <rude>", START),
        ("v3", "waiting", None, None, None),
        ("v4", "refused", "carol", "late", month.end),
    ):
        warehouse.insert(
            "approvals", id=version, workload="support", version=version, run_id=version, requested_at=START,
            expires_at=month.end, state=state, decided_at=decided_at, actor=actor, reason=reason, announced=True,
        )  # fmt: skip
    found = gather(warehouse, "support", month)
    assert [(one["version"], one["state"], one["actor"]) for one in found["approvals"]] == [
        ("v1", "approved", "alice"), ("v2", "refused", "bob"),
    ]  # fmt: skip
    draw(job | {"now": json.loads(as_json(found))}, lambda _: None)
    page = Path(job["page"]).read_text()
    assert "<td>refused</td><td>bob</td><td>it is &lt;rude&gt;</td>" in page


@pytest.mark.processes
def test_each_vote_counts_once_whatever_the_window(warehouse: Warehouse) -> None:
    """A window of a week shows a vote in the figures of seven days."""
    month = Period.of("month", START)
    settings = Settings(windows={"current_seconds": 7 * 86_400, "minimum_rows": 1})
    ids = interactions(warehouse, ["where is it"] * 40, random.Random(1), start=START, step=timedelta(0))
    feedback(warehouse, ids[:30], "helpful", True, when=START)
    feedback(warehouse, ids[30:], "helpful", False, when=START, offset=100)
    feedback(warehouse, ids[:10], "helpful", False, when=START + timedelta(days=3), offset=200)
    for day in range(1, 8):
        measure(warehouse, settings, "support", START + timedelta(days=day))
    found = gather(warehouse, "support", month)
    (rated,) = found["rates"]
    assert (rated["metric"], rated["source"], rated["n"], rated["value"]) == ("helpful_rate", "user", 40, 0.5)
    of_days = [row for row in found["figures"] if row["metric"] == "helpful_rate"]
    assert [(row["day"], row["n"]) for row in of_days] == [(str(START.date()), 40)]


def test_a_resolved_conversation_costs_what_was_booked_in_its_month(warehouse: Warehouse) -> None:
    month, later = Period.of("month", START), START + timedelta(days=40)
    for number, when in enumerate((START, START, later)):
        interactions(warehouse, ["where is it"], random.Random(1), start=when, offset=number, cost=2.0)
    assert gather(warehouse, "support", month)["cost_per_resolved"] is None
    feedback(warehouse, ["support-0", "support-2"], "resolved", True, when=later)
    book(warehouse, MoneySettings(), later + timedelta(days=1))
    told = [gather(warehouse, "support", period) for period in (month.before, month, Period.of("month", later))]
    assert [(one["cost_per_resolved"], one["resolved"]) for one in told] == [(None, None), (4.0, 1), (2.0, 1)]


def test_money_counts_in_the_month_of_its_events_whenever_it_is_booked(warehouse: Warehouse) -> None:
    """The daemon was down over the end of the quarter."""
    settings = MoneySettings(roi=RoiSettings(hourly_rate=40.0, fixed_daily_cost=24.0, training_hourly_rate=2.0))
    first, day = datetime(2026, 3, 29), timedelta(days=1)
    ids = interactions(
        warehouse, ["where is it"] * 8, random.Random(1), start=first, step=day / 2, cost=1.0, conversation_id="one"
    )
    feedback(warehouse, ids, "time_saved_seconds", 3_600, source="app", when=first + 4 * day)
    for number, began in enumerate((first, first + 2.9 * day, first + 4 * day)):
        warehouse.insert(
            "runs", id=f"run-{number}", workload="support", reasons="[]", state="failed", started_at=began,
            finished_at=began + day / 2, train_seconds=3_600.0,
        )  # fmt: skip
    warehouse.execute("UPDATE ledger_position SET booked_at = ?", [first])
    book(warehouse, settings, first + 5 * day)

    def money(kind: Kind, month: int) -> dict[str, float]:
        sums = defaultdict[str, float](float)
        for row in gather(warehouse, "support", Period.of(kind, datetime(2026, month, 1)))["money"]:
            sums[row["item"]] += row["amount"]
        return {item: round(amount, 6) for item, amount in sums.items()}

    march, april = money("month", 3), money("month", 4)
    assert march == {"time_saved": 240.0, "inference": 6.0, "training": 4.0, "fixed": 72.0}
    assert april == {"time_saved": 80.0, "inference": 2.0, "training": 2.0, "fixed": 48.0}
    assert (money("quarter", 3), money("quarter", 4)) == (march, april)
    feedback(warehouse, ids[:1], "time_saved_seconds", 1_800, when=first + 9 * day, offset=100)
    book(warehouse, settings, first + 10 * day)  # corrects what was booked of March
    roll_up(warehouse, ["support"], first + 20 * day, day)
    assert money("month", 3) == march | {"time_saved": 220.0}


def test_a_period_whose_votes_are_archived_is_as_its_report_had_it(warehouse: Warehouse, tmp_path: Path) -> None:
    march = Period.of("month", START)
    february = tmp_path / f"{report_id('support', march.before)}.json"
    assert period_before(warehouse, "support", march, tmp_path)["rates"] == []
    february.write_text(json.dumps({"now": {"rates": [rate(0.9, 7)]}}))
    assert period_before(warehouse, "support", march, tmp_path)["rates"] == []  # nothing has left: nobody rated
    warehouse.insert(
        "archives", file="x", table_name="interactions", rows=1, bytes=1, first_received_at=march.before.start,
        last_received_at=march.before.start, sha256="", archived_at=START,
    )  # fmt: skip
    assert period_before(warehouse, "support", march, tmp_path)["rates"] == [rate(0.9, 7)]
    february.write_text(json.dumps({"now": {"figures": []}}))  # of a version that did not know them
    assert period_before(warehouse, "support", march, tmp_path)["rates"] == []
