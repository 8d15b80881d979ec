"""Rates, latency and tokens of the current window."""

import json
import logging
import math
import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from fixtures.feedback.traffic import MINUTE, START, feedback, interactions, new_warehouse, prompts
from fixtures.servers.judges import serving
from retuned.consumers.common.tool_calls import written
from retuned.consumers.errors import ChildFailed
from retuned.consumers.warehouse import judgements
from retuned.consumers.warehouse.connection import Warehouse
from retuned.monitors.blindness import blind
from retuned.monitors.hallucination import detector, grounding
from retuned.monitors.hallucination.opinions import Opinions
from retuned.monitors.hallucination.scorer import Abstention, Answer, Judgement
from retuned.monitors.hallucination.values import judged
from retuned.monitors.metrics import Metrics
from retuned.monitors.quality import measure as quality
from retuned.monitors.quality.consistency import claims, contradict
from retuned.monitors.quality.figure import Figure
from retuned.monitors.quality.measure import judge, measure
from retuned.monitors.quality.readings import latest_approved
from retuned.monitors.settings import QualitySettings, Settings, WindowsSettings
from retuned.monitors.statistics import wilson
from retuned.retrain.data import overrides

SETTINGS = Settings(windows=WindowsSettings(reference_seconds=3_600, current_seconds=3_600))
NOW = START + timedelta(hours=2)
FIGURE = {
    "workload": "support",
    "model": "*",
    "metric": "helpful_rate",
    "source": "user",
    "value": 0.5,
    "low": 0.4,
    "high": 0.6,
    "n": 90,
}
GROUNDED = {"context": json.dumps(["Parcels take two days."]), "response": "Parcels take 2 days."}
INVENTED = {"context": json.dumps(["Parcels take two days."]), "response": "Parcels take 9 days."}


@pytest.fixture
def warehouse(tmp_path: Path) -> Iterator[Warehouse]:
    opened = new_warehouse(tmp_path)
    # Before the current window: nothing of this may be in a figure.
    old = answers(opened, 60, start=START, model="old", latency_seconds=99.0, **INVENTED)
    feedback(opened, old, "helpful", False, when=START, offset=10_000)
    yield opened
    opened.close()


def requested(warehouse: Warehouse, ids: Sequence[str], now: datetime, *, alarm: bool | None) -> None:
    """Requests to label answers, drawn from the alarms or from the others; None: as older versions drew them."""
    warehouse.execute(
        "INSERT INTO label_requests BY NAME SELECT 'request ' || id AS id, $now AS created_at, 'support' AS workload, "
        "id AS interaction_id, 'calibration' AS reason, '' AS detail, true AS announced, $alarm::BOOLEAN AS alarm "
        "FROM (SELECT unnest($ids::VARCHAR[]) AS id)",
        {"ids": list(ids), "now": now, "alarm": alarm},
    )


def labelled(
    warehouse: Warehouse,
    ids: Sequence[str],
    invented: int,
    now: datetime,
    *,
    alarm: bool,
    offset: int = 10_000,
    user_id: str | None = None,
) -> None:
    """Requests that an expert answered: the first so many answers are invented."""
    requested(warehouse, ids, now, alarm=alarm)
    for about, value, first in ((ids[:invented], True, offset), (ids[invented:], False, offset + 1_000)):
        if about:
            feedback(warehouse, about, "hallucination", value, source="expert", when=now, offset=first, user_id=user_id)


def answers(warehouse: Warehouse, count: int, **columns: object) -> list[str]:
    offset = int(columns.pop("offset", 0))  # type: ignore[call-overload]
    start = columns.pop("start", START + timedelta(hours=1))
    rng = random.Random(6)
    return interactions(
        warehouse,
        prompts(count, rng),
        rng,
        start=start,
        step=MINUTE / 10,
        offset=offset,
        **({"context": None} | columns),
    )


def found(figures: list[Figure], metric: str, source: str, model: str = "*") -> Figure:
    (figure,) = [f for f in figures if (f.metric, f.source, f.model) == (metric, source, model)]
    return figure


def test_sources_are_never_mixed(warehouse: Warehouse) -> None:
    ids = answers(warehouse, 100, offset=100)
    feedback(warehouse, ids[:10], "helpful", True, when=NOW, offset=0)
    feedback(warehouse, ids[10:20], "helpful", False, when=NOW, offset=10)
    feedback(warehouse, ids[:4], "helpful", False, source="judge", when=NOW, offset=20)
    feedback(warehouse, ids[:8], "hallucination", True, source="expert", when=NOW, offset=30)
    feedback(warehouse, ids[8:10], "hallucination", False, source="expert", when=NOW, offset=40)
    figures = measure(warehouse, SETTINGS, "support", NOW)
    assert (found(figures, "helpful_rate", "user").value, found(figures, "helpful_rate", "user").n) == (0.5, 20)
    assert (found(figures, "helpful_rate", "judge").value, found(figures, "helpful_rate", "judge").n) == (0.0, 4)
    expert = found(figures, "hallucination_rate", "expert")
    assert (expert.value, expert.n) == (0.8, 10)
    assert (expert.low, expert.high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert {f.source for f in figures if f.metric.endswith("_rate")} == {"user", "judge", "expert"}
    # Experts were asked about likely wrong answers: what they reply is no sample of all answers.
    for number, interaction in enumerate(ids[:8]):
        warehouse.insert(
            "label_requests", id=str(number), created_at=NOW, workload="support", interaction_id=interaction,
            reason="uncertain", detail="", announced=True,
        )  # fmt: skip
    asked_for = found(measure(warehouse, SETTINGS, "support", NOW), "hallucination_rate", "expert")
    assert (asked_for.value, asked_for.n) == (0.0, 2)


def test_figures_are_told_by_model(warehouse: Warehouse) -> None:
    first = answers(warehouse, 20, offset=100, model="support@1")
    second = answers(warehouse, 30, offset=200, model="support@2")
    feedback(warehouse, first, "helpful", False, when=NOW, offset=0)
    feedback(warehouse, second, "helpful", True, when=NOW, offset=50)
    figures = measure(warehouse, SETTINGS, "support", NOW)
    assert found(figures, "helpful_rate", "user", "support@1").value == 0.0
    assert found(figures, "helpful_rate", "user", "support@2").value == 1.0
    assert found(figures, "helpful_rate", "user").value == 0.6
    assert "old" not in {f.model for f in figures}


def test_one_person_changing_their_mind_has_one_vote(warehouse: Warehouse) -> None:
    (answer,) = answers(warehouse, 1, offset=100)
    feedback(warehouse, [answer], "helpful", True, when=NOW - 2 * MINUTE, offset=0)
    feedback(warehouse, [answer], "helpful", False, when=NOW - MINUTE, offset=1)
    figure = found(measure(warehouse, SETTINGS, "support", NOW), "helpful_rate", "user")
    assert (figure.value, figure.n) == (0.0, 1)


def test_each_vote_of_an_account_counts_and_they_are_not_independent(warehouse: Warehouse) -> None:
    for account in range(20):
        ids = answers(warehouse, 6, offset=100 + 10 * account, user_id=f"account {account}")
        feedback(warehouse, ids, "helpful", account < 15, when=NOW, offset=10 * account)
    figure = found(measure(warehouse, SETTINGS, "support", NOW), "helpful_rate", "user")
    assert (figure.value, figure.n) == (0.75, 20 * 6)
    assert (figure.value, figure.low, figure.high) == pytest.approx(wilson(15, 20), abs=0.02)


def test_who_corrects_an_answer_found_it_unhelpful_unless_that_account_says_otherwise(warehouse: Warehouse) -> None:
    ids = answers(warehouse, 100, offset=100)
    feedback(warehouse, ids[:25], "helpful", True, when=NOW - MINUTE, offset=0)
    feedback(warehouse, ids[25:], "correction", "No: 9 days.", when=NOW - MINUTE, offset=200)
    feedback(warehouse, ids[:10], "correction", "2 days, not two.", when=NOW, offset=400)  # the same, nameless, account
    figure = found(measure(warehouse, SETTINGS, "support", NOW), "helpful_rate", "user")
    assert (figure.value, figure.n) == (0.25, 100)
    # Now ten others correct what the first called helpful, and an expert corrects one.
    warehouse.execute(  # as if they came with the expert's
        "UPDATE feedback SET user_id = id, batch = (SELECT last + 1 FROM batches) "
        "WHERE id IN (SELECT 'feedback-' || n FROM range(400, 410) t(n))"
    )
    feedback(warehouse, ids[:1], "correction", "No: 9 days.", source="expert", when=NOW, offset=500)
    figures = measure(warehouse, SETTINGS, "support", NOW)
    assert (found(figures, "helpful_rate", "user").value, found(figures, "helpful_rate", "user").n) == (0.15, 100)
    assert (found(figures, "helpful_rate", "expert").value, found(figures, "helpful_rate", "expert").n) == (0.0, 1)


def test_absurd_numbers_leave_every_figure_finite(warehouse: Warehouse) -> None:
    answers(warehouse, 20, offset=100)
    most = {"input_tokens": 2**63 - 1, "output_tokens": 2**63 - 1, "latency_seconds": 1e308, "cost": 1e308}
    answers(warehouse, 20, offset=200, **most)
    figures = measure(warehouse, SETTINGS, "support", NOW)
    assert {"input_tokens", "output_tokens", "latency_p99_seconds"} <= {figure.metric for figure in figures}
    assert all(math.isfinite(value) for f in figures for value in (f.value, f.low, f.high))


@pytest.mark.processes
def test_grounding_judges_the_answers_that_had_context(warehouse: Warehouse) -> None:
    answers(warehouse, 30, offset=100, **GROUNDED)
    answers(warehouse, 10, offset=200, **INVENTED)
    answers(warehouse, 50, offset=300)
    figures = measure(warehouse, SETTINGS, "support", NOW)
    figure = found(figures, "alarm_rate", "grounding")
    assert (figure.value, figure.n) == (0.25, 40)
    # Without labels nobody knows how many alarms are right.
    assert not [f for f in figures if f.metric == "hallucination_rate"]


@pytest.mark.processes
def test_what_grounding_cannot_judge_is_counted_and_no_alarm(warehouse: Warehouse) -> None:
    polish = {"context": json.dumps(["Przesyłka krajowa dociera w dwa dni robocze."])}
    answers(warehouse, 30, offset=100, **GROUNDED)
    answers(warehouse, 10, offset=200, response="Paczka dotrze do Pana w ciągu dwóch dni.", **polish)
    figures = measure(warehouse, SETTINGS, "support", NOW)
    alarmed, abstained = (found(figures, metric, "grounding") for metric in ("alarm_rate", "abstention_rate"))
    assert (alarmed.value, alarmed.n) == (0.0, 30)
    assert (abstained.value, abstained.n) == (0.25, 40)
    registry = CollectorRegistry()
    Metrics(registry).quality("support", figures)
    labels = {"workload": "support", "model_name": "*"}
    assert registry.get_sample_value("retuned_grounding_alarm_ratio", labels) == 0.0
    counts = [
        registry.get_sample_value("retuned_grounding_answers", labels | {"outcome": outcome})
        for outcome in ("judged", "abstained")
    ]
    assert counts == [30, 10]


@pytest.mark.processes
def test_labels_are_weighed_by_alarm(warehouse: Warehouse) -> None:
    """Of 10 labelled alarms of 40 half are right, of 40 other answers of 360 one is invented."""
    alarmed = answers(warehouse, 40, offset=100, **INVENTED)
    others = answers(warehouse, 360, offset=200, **GROUNDED)
    labelled(warehouse, alarmed[:10], 5, NOW, alarm=True)
    labelled(warehouse, others[:40], 1, NOW, alarm=False, offset=20_000)
    rate = found(measure(warehouse, SETTINGS, "support", NOW), "hallucination_rate", "grounding_calibrated")
    assert (rate.value, rate.n) == (pytest.approx(0.1 * 0.5 + 0.9 * 0.025), 400)
    assert rate.low < 0.05
    assert rate.high < 0.2
    assert not [one for one in blind(warehouse, "support") if one.monitor == "hallucination"]


@pytest.mark.processes
def test_labels_of_a_banned_account_calibrate_nothing(warehouse: Warehouse) -> None:
    others = answers(warehouse, 100, offset=100, **GROUNDED)
    labelled(warehouse, others[:40], 10, NOW, alarm=False)
    labelled(warehouse, others[40:60], 20, NOW, alarm=False, offset=20_000, user_id="vandal")
    source = "grounding_calibrated"
    figures = measure(warehouse, SETTINGS, "support", NOW)
    assert found(figures, "hallucination_rate", source).value == pytest.approx(0.5)
    overrides.decide_account(warehouse, "ban", "vandal", None, "all is invented to it", "anna", NOW)
    figures = measure(warehouse, SETTINGS, "support", NOW + MINUTE)
    assert found(figures, "hallucination_rate", source).value == pytest.approx(0.25)


@pytest.mark.processes
def test_until_there_are_enough_labels_the_rate_is_absent_and_their_number_is_stated(warehouse: Warehouse) -> None:
    alarmed = answers(warehouse, 40, offset=100, **INVENTED)
    others = answers(warehouse, 60, offset=200, **GROUNDED)
    labelled(warehouse, alarmed[:9], 9, NOW, alarm=True)
    labelled(warehouse, others[:25], 0, NOW, alarm=False, offset=20_000)
    figures = measure(warehouse, SETTINGS, "support", NOW)
    assert "grounding_calibrated" not in {f.source for f in figures}
    (lacking,) = [one for one in blind(warehouse, "support") if one.monitor == "hallucination"]
    assert (lacking.found, lacking.needed) == (34, 40)
    assert "not calibrated: 6 more labels" in str(lacking)
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.quality("support", figures)
    metrics.blindness("support", blind(warehouse, "support"))
    of = {"workload": "support", "monitor": "hallucination"}
    assert registry.get_sample_value("retuned_monitor_missing_rows", of) == 6
    ratio = {"workload": "support", "model_name": "*", "source": "grounding_calibrated"}
    assert registry.get_sample_value("retuned_hallucination_ratio", ratio) is None


@pytest.mark.processes
def test_answers_that_nothing_judges_are_a_part_of_the_rate(warehouse: Warehouse) -> None:
    prose = {"context": json.dumps(["Our lamps are made of glass."]), "response": "They are made of crystal."}
    ids = answers(warehouse, 100, offset=100, **prose)
    labelled(warehouse, ids[:40], 10, NOW, alarm=False)
    figures = measure(warehouse, SETTINGS, "support", NOW)
    rate = found(figures, "hallucination_rate", "grounding_calibrated")
    assert (rate.value, rate.n) == (0.25, 100)
    assert found(figures, "abstention_rate", "grounding").value == 1.0


@pytest.mark.processes
def test_labels_that_were_not_drawn_at_random_calibrate_nothing(warehouse: Warehouse) -> None:
    """Volunteers label what caught their eye, and older versions drew by other rules."""
    alarmed = answers(warehouse, 40, offset=100, **INVENTED)
    others = answers(warehouse, 360, offset=200, **GROUNDED)
    feedback(warehouse, alarmed + others[:60], "hallucination", True, source="expert", when=NOW, offset=1_000)
    requested(warehouse, alarmed[:20] + others[:40], NOW, alarm=None)
    sources = {f.source for f in measure(warehouse, SETTINGS, "support", NOW) if f.metric == "hallucination_rate"}
    assert sources == {"expert"}


@pytest.mark.processes
def test_a_models_own_labels_make_its_rate(warehouse: Warehouse) -> None:
    for offset, name, invented in ((100, "support@1", 3), (300, "support@2", 12)):
        ids = answers(warehouse, 60, offset=offset, model=name, **GROUNDED)
        labelled(warehouse, ids[:30], invented, NOW, alarm=False, offset=100 * offset)
    figures = measure(warehouse, SETTINGS, "support", NOW)
    rates = {
        name: found(figures, "hallucination_rate", "grounding_calibrated", name).value
        for name in ("support@1", "support@2", "*")
    }
    assert rates == {"support@1": pytest.approx(0.1), "support@2": pytest.approx(0.4), "*": pytest.approx(0.25)}


def test_no_answer_is_grounded_twice(warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def count(answer: Answer) -> Judgement | Abstention:
        seen.append(answer.id)
        return judged(answer)

    monkeypatch.setattr(grounding, "judged", count)
    first = answers(warehouse, 6, offset=100, **GROUNDED)
    measure(warehouse, SETTINGS, "support", NOW)
    assert sorted(seen) == first
    second = answers(warehouse, 3, offset=200, **INVENTED)
    measure(warehouse, SETTINGS, "support", NOW)
    figures = measure(warehouse, SETTINGS, "support", NOW)
    assert sorted(seen) == first + second
    assert (found(figures, "alarm_rate", "grounding").value, found(figures, "alarm_rate", "grounding").n) == (3 / 9, 9)


@pytest.mark.processes
def test_what_older_rules_found_is_looked_at_anew(warehouse: Warehouse) -> None:
    ids = answers(warehouse, 20, offset=100, **GROUNDED)
    for one in ids:
        warehouse.execute(
            "INSERT INTO groundings VALUES ($id, 'support', $now, 0.01, true, NULL, NULL)", {"id": one, "now": NOW}
        )
    figures = measure(warehouse, SETTINGS, "support", NOW)
    assert (found(figures, "alarm_rate", "grounding").value, found(figures, "alarm_rate", "grounding").n) == (0.0, 20)
    assert len(warehouse.rows("FROM groundings")) == 20


def test_groundings_of_labelled_answers_are_kept_longer(warehouse: Warehouse) -> None:
    kept, gone = answers(warehouse, 2, offset=100, **GROUNDED)
    feedback(warehouse, [kept], "hallucination", False, source="expert", when=NOW)
    measure(warehouse, SETTINGS, "support", NOW)
    later = NOW + timedelta(days=quality.GROUNDINGS_DAYS)
    quality.thin(warehouse, ["support"], later, later, timedelta(days=1))
    assert {row["interaction_id"] for row in warehouse.rows("FROM groundings")} == {kept, gone}
    quality.thin(warehouse, ["support"], later, later + MINUTE, timedelta(days=20))
    assert {row["interaction_id"] for row in warehouse.rows("FROM groundings")} == {kept, gone}, "still in the window"
    quality.thin(warehouse, ["support"], later, later + MINUTE, timedelta(days=1))
    assert [row["interaction_id"] for row in warehouse.rows("FROM groundings")] == [kept]


@pytest.mark.processes
def test_labels_of_another_model_do_not_calibrate(warehouse: Warehouse) -> None:
    gone = {"start": START, "model": "old"}
    for offset, alarm, texts in ((1_000, True, INVENTED), (2_000, False, GROUNDED)):
        ids = answers(warehouse, 40, offset=offset, **gone, **texts)
        labelled(warehouse, ids, 40 * alarm, NOW, alarm=alarm, offset=10 * offset)
    answers(warehouse, 30, offset=100, **GROUNDED)
    answers(warehouse, 10, offset=200, **INVENTED)
    assert not [f for f in measure(warehouse, SETTINGS, "support", NOW) if f.metric == "hallucination_rate"]


def test_latency_quantiles_stand_inside_their_intervals(warehouse: Warehouse) -> None:
    for number in range(100):
        answers(warehouse, 1, offset=100 + number, latency_seconds=float(number + 1))
    figures = measure(warehouse, SETTINGS, "support", NOW)
    assert found(figures, "latency_p50_seconds", "app").value == 50.0
    assert found(figures, "latency_p95_seconds", "app").value == 95.0
    assert found(figures, "latency_p99_seconds", "app").value == 99.0
    median = found(figures, "latency_p50_seconds", "app")
    assert (median.low, median.high, median.n) == (40.0, 60.0, 100)


def test_the_latency_of_an_answer_may_come_beside_it(warehouse: Warehouse) -> None:
    """Content in a log record of OpenTelemetry, times in the span: whichever comes first."""
    ids = answers(warehouse, 100, offset=100, latency_seconds=None)
    feedback(warehouse, ids, "latency_seconds", 0.83, source="app", when=NOW - MINUTE, offset=20_000)
    feedback(warehouse, ids, "latency_seconds", 70.0, source="user", when=NOW - MINUTE, offset=30_000)
    answers(warehouse, 300, offset=300, latency_seconds=0.5)
    figures = measure(warehouse, SETTINGS, "support", NOW)
    assert found(figures, "latency_p50_seconds", "app").value == 0.5
    assert found(figures, "latency_p95_seconds", "app").value == 0.83
    assert found(figures, "latency_p99_seconds", "app").n == 400


def test_tokens_are_means_of_an_interaction(warehouse: Warehouse) -> None:
    answers(warehouse, 1, offset=100, input_tokens=10)
    answers(warehouse, 1, offset=101, input_tokens=20)
    figures = measure(warehouse, SETTINGS, "support", NOW)
    tokens = found(figures, "input_tokens", "app")
    assert (tokens.value, tokens.n) == (15.0, 2)
    assert tokens.low < 15.0 < tokens.high


def test_no_figure_is_nan_whatever_is_missing(warehouse: Warehouse) -> None:
    columns = {"latency_seconds": None, "input_tokens": None, "output_tokens": None, "response": ""}
    answers(warehouse, 3, offset=100, **columns)
    answers(warehouse, 1, offset=110, latency_seconds=math.nan, input_tokens=5)
    answers(warehouse, 1, offset=120, latency_seconds=math.inf)
    (answer,) = answers(warehouse, 1, offset=130, context="[]")
    feedback(warehouse, [answer], "helpful", "perhaps", when=NOW)
    figures = measure(warehouse, SETTINGS, "support", NOW)
    assert figures
    assert all(math.isfinite(value) for f in figures for value in (f.value, f.low, f.high))
    assert all(f.low <= f.value <= f.high and f.n > 0 for f in figures)
    assert not [f for f in figures if f.metric == "helpful_rate"]


def test_an_empty_window_has_no_figures(warehouse: Warehouse) -> None:
    assert measure(warehouse, SETTINGS, "support", NOW) == []
    assert measure(warehouse, SETTINGS, "unheard_of", NOW) == []


def test_figures_are_kept_and_the_latest_are_found_again(warehouse: Warehouse) -> None:
    ids = answers(warehouse, 20, offset=100)
    measure(warehouse, SETTINGS, "support", NOW - MINUTE)
    feedback(warehouse, ids, "helpful", True, when=NOW)
    figures = measure(warehouse, SETTINGS, "support", NOW)
    latest = quality.latest(warehouse, ["support", "unheard_of"])
    assert kept_as(latest["support"]) == set(figures)
    assert {row["created_at"] for row in latest["support"]} == {NOW}
    assert latest["unheard_of"] == []
    (kept,) = warehouse.rows("SELECT count(DISTINCT created_at) AS times FROM quality")
    assert kept["times"] == 2


def test_what_was_measured_while_the_clock_was_ahead_is_forgotten(warehouse: Warehouse) -> None:
    row = {"workload": "support", "model": "*", "metric": "helpful_rate", "source": "user", "value": 0.2, "n": 10}
    for workload in ("support", "sales"):
        warehouse.insert(
            "quality", **row | {"created_at": NOW + timedelta(days=300), "workload": workload, "low": 0.1, "high": 0.3}
        )
    feedback(warehouse, answers(warehouse, 20, offset=100), "helpful", True, when=NOW)
    figures = measure(warehouse, SETTINGS, "support", NOW)
    latest = quality.latest(warehouse, ["support", "sales"])
    assert kept_as(latest["support"]) == set(figures)
    (one,) = latest["sales"]
    assert one["since"] is None, "an older release kept no window"


def test_figures_count_the_answers_of_one_window_by_model(warehouse: Warehouse) -> None:
    answers(warehouse, 30, offset=100)
    answers(warehouse, 12, offset=200, model="small")
    measure(warehouse, SETTINGS, "support", NOW)
    found = quality.latest(warehouse, ["support"])["support"]
    assert {row["model"]: row["n"] for row in found if row["metric"] == "window_seconds"} == {
        "*": 42, "base": 30, "small": 12
    }  # fmt: skip
    assert {row["since"] for row in found} == {START + timedelta(hours=1)}


def test_figures_of_before_a_promotion_are_not_those_of_the_champion(warehouse: Warehouse) -> None:
    ids = answers(warehouse, 30, offset=100)
    feedback(warehouse, ids, "helpful", True, when=NOW)
    measure(warehouse, SETTINGS, "support", NOW)
    warehouse.insert("aliases", workload="support", alias="previous", version=None, created_at=NOW + MINUTE)
    assert quality.latest(warehouse, ["support"])["support"]
    warehouse.insert("aliases", workload="support", alias="champion", version="v", created_at=NOW + MINUTE)
    assert quality.latest(warehouse, ["support"])["support"] == []
    answers(warehouse, 4, start=NOW + MINUTE, offset=300)
    figures = measure(warehouse, SETTINGS, "support", NOW + timedelta(hours=1))
    assert kept_as(quality.latest(warehouse, ["support"])["support"]) == set(figures)
    assert {figure.n for figure in figures if figure.metric == "window_seconds"} == {4}


def kept_as(rows: list[dict[str, Any]]) -> set[Figure]:
    ends = {"created_at", "since"}
    return {Figure("support", **{name: row[name] for name in row.keys() - ends}) for row in rows}


def test_metrics_show_the_figures_and_forget_what_is_gone(warehouse: Warehouse) -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    ids = answers(warehouse, 20, offset=100, model="support@1", latency_seconds=0.5)
    feedback(warehouse, ids, "helpful", True, when=NOW)
    metrics.quality("support", measure(warehouse, SETTINGS, "support", NOW))
    labels = {"workload": "support", "model_name": "support@1", "source": "user"}
    assert registry.get_sample_value("retuned_helpful_ratio", labels) == 1.0
    assert registry.get_sample_value("retuned_judged_answers", labels | {"rate": "helpful"}) == 20
    interval = {"workload": "support", "rate": "helpful", "source": "user"}
    low, high = (
        registry.get_sample_value("retuned_rate_interval_ratio", interval | {"end": end}) for end in ("low", "high")
    )
    assert low is not None
    assert 0.7 < low < 1.0 == high
    latency = {"workload": "support", "model_name": "*", "quantile": "0.95"}
    assert registry.get_sample_value("retuned_answer_latency_seconds", latency) == 0.5
    tokens = {"workload": "support", "model_name": "*", "kind": "input"}
    assert registry.get_sample_value("retuned_answer_tokens", tokens) == 20.0

    metrics.quality("another", [])
    assert registry.get_sample_value("retuned_helpful_ratio", labels) == 1.0
    metrics.quality("support", [])
    assert registry.get_sample_value("retuned_helpful_ratio", labels) is None
    assert registry.get_sample_value("retuned_rate_interval_ratio", interval | {"end": "low"}) is None
    assert registry.get_sample_value("retuned_answer_latency_seconds", latency) is None


@pytest.mark.processes
def test_a_producer_that_makes_up_models_makes_no_more_series_than_others(warehouse: Warehouse) -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    ids = answers(warehouse, 40, offset=100, model="support@1", **GROUNDED)
    ids += answers(warehouse, 30, offset=200, model="support@2", **INVENTED)
    for number in range(60):
        ids += answers(warehouse, 1, offset=300 + number, model=f"made-up-{number}", **INVENTED)
    ids += answers(warehouse, 5, offset=400, model="*")
    feedback(warehouse, ids, "helpful", True, when=NOW)
    feedback(warehouse, ids, "hallucination", False, source="expert", when=NOW, offset=1_000)
    requested(warehouse, ids[:40], NOW, alarm=False)
    requested(warehouse, ids[40:130], NOW, alarm=True)
    figures = measure(warehouse, SETTINGS, "support", NOW)
    metrics.quality("support", figures)
    models = {figure.model for figure in figures} - {"*", "other"}
    assert {"support@1", "support@2"} < models
    assert len(models) == quality.MOST_MODELS
    for metric, source, n in (
        ("helpful_rate", "user", 135), ("alarm_rate", "grounding", 130), ("latency_p50_seconds", "app", 135),
        ("input_tokens", "app", 135), ("hallucination_rate", "grounding_calibrated", 130),
    ):  # fmt: skip
        counts = {f.model: f.n for f in figures if (f.metric, f.source) == (metric, source)}
        assert counts.pop("*") == n
        if source != "grounding_calibrated":  # which needs labels of either kind
            assert sum(counts.values()) == n
    assert found(figures, "alarm_rate", "grounding", "support@1").value == 0.0
    assert found(figures, "alarm_rate", "grounding", "other").value == 1.0
    labels = {"workload": "support", "rate": "helpful", "source": "user"}
    shown = {
        sample.labels["model_name"]: sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "retuned_judged_answers" and labels.items() <= sample.labels.items()
    }
    assert shown.pop("*") == sum(shown.values()) == 135
    assert registry.get_sample_value("retuned_workload_judged_answers", labels) == 135
    outcome = {"workload": "support", "outcome": "judged"}
    assert registry.get_sample_value("retuned_workload_grounding_answers", outcome) == 130


@pytest.mark.full
def test_old_measurements_are_thinned_out_to_the_last_of_each_hour_and_day(warehouse: Warehouse) -> None:
    answers(warehouse, 10, offset=100)
    now = NOW + timedelta(days=200)
    for when in (now - timedelta(minutes=n * 20) for n in range(8 * 24 * 3)):  # the last eight days
        warehouse.insert("quality", created_at=when, **FIGURE)
    for when in (now - timedelta(days=100, hours=n) for n in range(72)):  # three days, long ago
        for workload in ("support", "sales"):
            warehouse.insert("quality", created_at=when, **FIGURE | {"workload": workload})
    measure(warehouse, SETTINGS, "support", now)
    newest = warehouse.rows("SELECT * FROM quality WHERE created_at >= ?", [now - timedelta(days=2)])
    for _ in range(2):
        quality.thin(warehouse, ["sales", "support"], now - timedelta(days=2), now, timedelta(days=1))
        kept = warehouse.rows("SELECT workload, created_at FROM quality ORDER BY ALL")
        recent, old = (
            [row for row in kept if low < now - row["created_at"] <= high]
            for low, high in ((timedelta(days=2), timedelta(days=50)), (timedelta(days=50), timedelta(days=300)))
        )
        assert warehouse.rows("SELECT * FROM quality WHERE created_at >= ?", [now - timedelta(days=2)]) == newest
        hours = [row["created_at"].replace(minute=0) for row in recent]
        assert len(hours) == len(set(hours)) == 6 * 24
        # The last of its hour, but for that in which the two days end.
        assert {row["created_at"].minute for row in recent[:-1]} == {40}
        assert len(old) == 2 * len({row["created_at"].date() for row in old}) == 2 * 4


def test_answers_to_the_same_question_are_compared(warehouse: Warehouse) -> None:
    same = json.dumps([{"role": "user", "content": "How long do parcels take?"}])
    spelled = json.dumps([{"role": "user", "content": "how long do parcels take"}])
    other = json.dumps([{"role": "user", "content": "How long does it take abroad?"}])
    answers(warehouse, 1, offset=100, messages=same, response="Two days.")
    answers(warehouse, 1, offset=101, messages=spelled, response="It takes 2 days.")
    answers(warehouse, 2, offset=102, messages=same, response="They take 9 days.")
    answers(warehouse, 1, offset=104, messages=other, response="Ten days.")
    answers(warehouse, 1, offset=105, messages=same, context=json.dumps(["It changed."]), response="Five days.")
    answers(warehouse, 1, offset=106, messages=same, response="Two days.", model="another")
    answers(warehouse, 1, offset=107, messages=same, response="Four days.", model="another")
    parts = [{"type": "text", "text": "How long do parcels take?"}]
    answers(warehouse, 1, offset=108, messages=json.dumps([{"role": "user", "content": parts}]), response="Two days.")
    answers(warehouse, 1, offset=109, messages=same, response="It takes 2 days.")
    seen = json.dumps([{"role": "user", "content": [*parts, {"type": "image_url", "image_url": {"url": "…"}}]}])
    answers(warehouse, 2, offset=110, messages=seen, response="Seven days.")  # what they show may differ
    figures = measure(warehouse, SETTINGS, "support", NOW)
    assert (found(figures, "contradiction_rate", "grounding", "base").n) == 3
    assert (found(figures, "contradiction_rate", "grounding", "another").value) == 1.0
    assert (found(figures, "contradiction_rate", "grounding").n) == 4


def test_tone_is_held_against_corrections_and_earlier_answers_that_people_liked(warehouse: Warehouse) -> None:
    liked = answers(warehouse, 12, start=START, offset=1_000, response="You can return it within 30 days.")
    corrected = answers(warehouse, 8, start=START, offset=1_100, response="Hey!!! 🙂")
    disliked = answers(warehouse, 30, start=START, offset=1_200, response="Hey!!! 🙂")
    feedback(warehouse, liked, "helpful", True, when=NOW - MINUTE)
    feedback(warehouse, corrected, "correction", "You can send it back within 30 days.", when=NOW - MINUTE, offset=100)
    feedback(warehouse, disliked, "helpful", False, when=NOW - MINUTE, offset=200)
    answers(warehouse, 30, offset=300, response="We refund it in 5 days.")
    casual = answers(warehouse, 30, offset=400, response="Hey! It takes 5 days 🙂", model="another")
    feedback(warehouse, casual, "helpful", True, when=NOW, offset=400)  # of this window: no measure of itself
    figures = measure(warehouse, SETTINGS, "support", NOW)
    base, another = (found(figures, "tone_likeness", "features", model) for model in ("base", "another"))
    assert (base.value, base.n) == (pytest.approx(0.9), 30)  # it says we, and else sounds the same
    assert (another.value, another.n) == (pytest.approx(0.6), 30)
    whole = found(figures, "tone_likeness", "features")
    assert (whole.value, whole.n) == (pytest.approx(0.75), 60)
    assert whole.low < 0.75 < whole.high


def test_the_tone_that_a_banned_account_likes_is_no_measure(warehouse: Warehouse) -> None:
    liked = answers(warehouse, 24, start=START, offset=1_000, response="You can return it within 30 days.")
    feedback(warehouse, liked, "helpful", True, when=NOW - MINUTE)
    shouted = answers(warehouse, 40, start=START, offset=1_100, response="Hey!!! 🙂", user_id="asker")
    feedback(warehouse, shouted, "helpful", True, when=NOW - MINUTE / 2, offset=100)
    answers(warehouse, 30, offset=300, response="You can refund it in 5 days.")
    before = found(measure(warehouse, SETTINGS, "support", NOW), "tone_likeness", "features").value
    overrides.decide_account(warehouse, "ban", "asker", "support", "a bot", "anna", NOW)
    after = found(measure(warehouse, SETTINGS, "support", NOW + MINUTE), "tone_likeness", "features").value
    assert before < 1.0
    assert after == 1.0


def test_approved_answers_are_the_latest_whatever_else_was_said(warehouse: Warehouse) -> None:
    """Against the definition, row by row: 90 answers of two workloads, each with some feedback of any kind."""
    rng, start = random.Random(4), START + timedelta(minutes=170)
    said: dict[str, list[tuple[timedelta, str, object]]] = {}
    for number in range(90):
        workload = rng.choice(["support", "sales"])
        when = START + timedelta(minutes=2 * number)
        (answer,) = interactions(
            warehouse, ["how?"], rng, start=when, workload=workload, offset=5_000 + number, response=f"answer {number}",
            model="demonstration" if rng.random() < 0.1 else "m",
        )  # fmt: skip
        for _ in range(rng.randint(0, 3)):
            name = rng.choice(["correction", "helpful", "helpful", "rating"])
            value = f"corrected {number}" if name == "correction" else rng.random() < 0.8
            later = timedelta(minutes=rng.randint(1, 400), seconds=number)
            source = rng.choice(["user", "expert", "judge"])
            offset = 20_000 + sum(map(len, said.values()))
            feedback(warehouse, [answer], name, value, source=source, when=when + later, offset=offset)
            said.setdefault(answer, []).append((later, name, value if source != "judge" else None))
    rows = warehouse.rows("SELECT * FROM interactions WHERE workload = 'support' AND model <> 'demonstration'")
    expected = []
    for row in rows:
        words = [word for word in said.get(row["id"], []) if word[1] != "rating" and word[2] is not None]
        corrections = [word for word in words if word[1] == "correction"]
        helpful = [word[2] for word in words if word[1] == "helpful"]
        if corrections or (helpful and all(helpful) and row["timestamp"] < start):
            text = max(corrections, key=lambda word: word[0])[2] if corrections else row["response"]
            expected.append((row["timestamp"] + max(words)[0], text))
    judgements.follow(warehouse)
    responses = {(row["id"], row["timestamp"]): row["response"] for row in rows}
    corrections = {row["id"]: json.loads(row["value"]) for row in warehouse.rows("FROM feedback")}
    in_order = [text for _, text in sorted(expected, key=lambda pair: pair[0], reverse=True)]
    for most in (1, 6, len(expected), 300):
        with warehouse.cursor() as cursor:
            latest = latest_approved(cursor, "support", START, start, most)
        texts = [
            responses[identity, when] if correction is None else corrections[correction]
            for identity, when, correction in latest
        ]
        assert texts == in_order[:most]
    assert len(expected) > 6


def after_judging(warehouse: Warehouse, settings: Settings) -> list[Figure]:
    """The figures after a daemon started and the configured judge and detector were asked once."""
    opinions = Opinions(settings.quality, threading.Event())
    judge(warehouse, settings, "support", NOW, opinions)
    return measure(warehouse, settings, "support", NOW, opinions)


def test_a_judge_that_had_nothing_to_judge_is_asked_as_soon_as_there_is_something(warehouse: Warehouse) -> None:
    opinions = Opinions(QualitySettings(judge_url="http://127.0.0.1:9/v1", judge_model="wise"), threading.Event())
    judge(warehouse, SETTINGS, "support", NOW, opinions)
    assert len(list(opinions.due("support", NOW + MINUTE))) == 1


def of_texts(warehouse: Warehouse, thought: str, *, calling: bool) -> tuple[list[Figure], str]:
    """Figures of texts, and what a judge was shown: of the same answers each time, after some reasoning; and beside
    them, where `calling`, answers that only call tools."""
    same = json.dumps([{"role": "user", "content": "How long do parcels take?"}])
    passage = {"messages": same, "context": GROUNDED["context"]}
    liked = answers(warehouse, 24, start=START, offset=1_000, response=f"{thought}You can return it within 30 days.")
    feedback(warehouse, liked, "helpful", True, when=NOW - MINUTE)
    for number, said in enumerate(("Parcels take 2 days.", "Parcels take two days.", "Parcels take 9 days.") * 4):
        when = START + timedelta(hours=1, minutes=number)
        answers(warehouse, 1, start=when, offset=2_000 + number, response=f"{thought}{said}", **passage)
    if calling:
        call = written("", [{"name": "track", "arguments": {"number": 44}}])
        right = [{"name": "track", "arguments": {"number": 44}}]
        for number, said in enumerate(("", call, f"{thought}{call}") * 4):
            when = START + timedelta(hours=1, minutes=20 + number)
            asked = answers(warehouse, 1, start=when, offset=3_000 + number, response=said, **passage)
            feedback(warehouse, asked, "correction", right, when=NOW - MINUTE, offset=3_000 + number)
    with serving() as server:
        server.reply = lambda _: "yes"
        settings = Settings(windows=SETTINGS.windows, quality=QualitySettings(judge_url=server.url, judge_model="wise"))
        figures = after_judging(warehouse, settings)
        shown = " ".join(str(question["messages"]) for question in server.asked)
    kinds = {"alarm_rate", "abstention_rate", "contradiction_rate", "tone_likeness", "hallucination_rate"}
    return [figure for figure in figures if figure.metric in kinds and figure.source != "user"], shown


@pytest.mark.processes
def test_reasoning_is_no_part_of_an_answer_and_who_only_calls_tools_says_nothing(tmp_path: Path) -> None:
    thought = "<think>\n- Hey! 77 days 🙂, or 88 euros?\n</think>\n\n"
    found = {}
    for name, before, calling in (("plain", "", False), ("thinking", thought, True)):
        folder = tmp_path / name
        folder.mkdir()
        with closing(new_warehouse(folder)) as warehouse:
            found[name], shown = of_texts(warehouse, before, calling=calling)
        assert "Parcels take 9 days." in shown
        assert "77" not in shown
        assert "track" not in shown
    assert found["plain"] == found["thinking"]
    assert {figure.metric for figure in found["plain"]} == {
        "alarm_rate", "abstention_rate", "contradiction_rate", "tone_likeness",
    }  # fmt: skip


def test_few_approved_answers_are_no_measure(warehouse: Warehouse) -> None:
    liked = answers(warehouse, 19, start=START, offset=1_000)
    feedback(warehouse, liked, "helpful", True, when=NOW - MINUTE)
    answers(warehouse, 30, offset=100)
    assert not [f for f in measure(warehouse, SETTINGS, "support", NOW) if f.metric == "tone_likeness"]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("It costs 5 euros.", "The price is €5.", False),
        ("It costs 5 euros.", "The price is €6.", True),
        ("It costs 5 euros.", "It takes two days.", False),
        ("It costs 5 euros.", "It costs 5 euros, or 8 euros on Sunday.", False),
        ("Yes, you can.", "No, you cannot.", True),
        ("We open at 9:00.", "We open at 9 am.", False),
        ("We open at 9:00.", "We open at 10:00.", True),
        ("Es kostet 5 Euro.", "Der Preis beträgt 6 €.", True),
        ("Es kostet 5 Euro.", "Der Preis beträgt 5 €.", False),
        ("You need two documents.", "There are three steps.", False),
    ],
)
def test_what_contradicts(one: str, other: str, expected: bool) -> None:
    assert contradict(claims(one), claims(other)) is expected
    assert contradict(claims(other), claims(one)) is expected


def test_a_judge_that_is_asked_is_not_mixed_with_feedback(warehouse: Warehouse) -> None:
    ids = answers(warehouse, 8, offset=100, **GROUNDED) + answers(warehouse, 2, offset=200, **INVENTED)
    feedback(warehouse, ids[:4], "hallucination", True, source="judge", when=NOW)
    with serving() as server:
        server.reply = lambda shown: json.dumps({"supported": "no" if "9 days" in shown else "yes"})
        settings = Settings(windows=SETTINGS.windows, quality=QualitySettings(judge_url=server.url, judge_model="wise"))
        figures = after_judging(warehouse, settings)
    asked, told = found(figures, "alarm_rate", "llm"), found(figures, "hallucination_rate", "judge")
    assert ((asked.value, asked.n), (told.value, told.n)) == ((pytest.approx(0.2), 10), (1.0, 4))
    assert found(figures, "alarm_rate", "grounding").value == 0.2
    assert {f.source for f in figures if f.metric == "hallucination_rate"} == {"judge"}
    registry = CollectorRegistry()
    Metrics(registry).quality("support", figures)
    of = {"workload": "support", "source": "llm"}
    assert registry.get_sample_value("retuned_detector_alarm_ratio", of) == pytest.approx(0.2)


@pytest.mark.processes
def test_what_a_judge_found_is_kept_and_makes_alarms(warehouse: Warehouse) -> None:
    """It sees inventions that are no values; after a restart it is asked about none of them again."""
    prose = {"context": json.dumps(["Our lamps are made of glass."])}
    right = answers(warehouse, 36, offset=100, response="They are made of glass.", **prose)
    wrong = answers(warehouse, 4, offset=200, response="They are made of crystal.", **prose)
    with serving() as server:
        server.reply = lambda shown: json.dumps({"supported": "no" if "crystal" in shown else "yes"})
        settings = Settings(windows=SETTINGS.windows, quality=QualitySettings(judge_url=server.url, judge_model="wise"))
        for _ in range(2):
            figures = after_judging(warehouse, settings)
            assert len(server.asked) == 40
        labelled(warehouse, wrong, 4, NOW, alarm=True)
        labelled(warehouse, right[:30], 0, NOW, alarm=False, offset=20_000)
        figures = after_judging(warehouse, settings)
        rate = found(figures, "hallucination_rate", "grounding_calibrated")
        assert (rate.value, rate.n) == (pytest.approx(0.1), 40)
        # Another model is asked anew.
        other = settings.quality.model_copy(update={"judge_model": "wiser"})
        after_judging(warehouse, settings.model_copy(update={"quality": other}))
        assert len(server.asked) == 80
        assert warehouse.rows("SELECT count(*) AS n FROM detections") == [{"n": 40}]


def test_an_answer_at_which_the_detector_stops_keeps_it_from_no_other(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An answer that is only interrupted has another turn, after all others."""
    answers(warehouse, 60, offset=100, **GROUNDED)
    (slow,) = answers(warehouse, 1, offset=200, **GROUNDED | {"response": "slow"})
    turns = list[list[str]]()

    def judges_thirty(_: str, job: dict[str, Any], *__: Any, on_progress: Any, **___: Any) -> None:
        turns.append([shown["response"] for shown in job["answers"]])
        on_progress({"loaded": True})
        for number, shown in enumerate(job["answers"]):
            if number == 30 or shown["response"] == "slow":
                raise ChildFailed("detector: took longer than 60 s")
            on_progress({"judged": [0.9, []]})

    monkeypatch.setattr(detector, "run_child", judges_thirty)
    settings = Settings(windows=SETTINGS.windows, quality=QualitySettings(detector=Path("/model")))
    with caplog.at_level(logging.WARNING):
        for _ in range(8):
            figures = after_judging(warehouse, settings)
    (kept,) = warehouse.rows("FROM detections WHERE abstained IS NOT NULL")
    assert (kept["interaction_id"], kept["abstained"], kept["score"], kept["alarm"]) == (slow, "failed", None, None)
    assert warehouse.rows("SELECT count(*) AS n FROM detections WHERE alarm = false") == [{"n": 60}]
    assert len(turns) < 8
    (logged,) = caplog.records
    assert f"nli cannot judge answer {slow}" in logged.getMessage()
    alarms = found(figures, "alarm_rate", "nli")
    assert (alarms.value, alarms.n) == (0.0, 60)
