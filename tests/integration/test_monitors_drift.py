"""Drift checks with the real child process and Evidently; features on a real warehouse."""

import json
import os
import random
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from prometheus_client import CollectorRegistry
from traffic import MINUTE, START, feedback, interactions, prompts

from retuned.consumers.errors import Cancelled, ChildFailed
from retuned.consumers.warehouse import Warehouse
from retuned.monitors import drift
from retuned.monitors.drift import CATEGORIES, NUMBERS, DriftCheck, check, compare, latest, sentence, unusable, verdict
from retuned.monitors.metrics import Metrics
from retuned.monitors.settings import DriftSettings, Settings, WindowsSettings
from retuned.monitors.statistics import two_sample_chi_square, two_sample_ks
from retuned.monitors.windows import sample, windows

ROWS = 300
NOW = START + 2 * ROWS * MINUTE
SETTINGS = Settings(windows=WindowsSettings(reference_seconds=60 * ROWS, current_seconds=60 * ROWS))
USUAL = (3, 3, 2, 2, 1)


def traffic(
    warehouse: Warehouse,
    seed: int = 1,
    *,
    workload: str = "support",
    rows: int = ROWS,
    weights: tuple[int, ...] = USUAL,
    before: dict[str, Any] | None = None,
    **after: Any,
) -> None:
    """A reference of usual traffic, and current traffic with what is passed."""
    rng = random.Random(seed)
    asked = after.pop("asked", None)
    interactions(warehouse, prompts(rows, rng), rng, workload=workload, **(before or {}))
    asked = asked or prompts(rows, rng, weights)
    interactions(warehouse, asked, rng, workload=workload, start=START + rows * MINUTE, offset=rows, **after)


def features(warehouse: Warehouse, workload: str = "support") -> tuple[pd.DataFrame, pd.DataFrame]:
    found = windows(warehouse, SETTINGS.windows, workload, NOW)
    assert found is not None
    with warehouse.cursor() as cursor:
        sample(cursor, "reference_rows", workload, found.reference, 1_000, "1")
        sample(cursor, "current_rows", workload, found.current, 1_000, "1")
        cursor.execute(drift.QUERIES["sampled"])
        table = cursor.sql(drift.QUERIES["features"]).df()
    return table[table["window"] == "reference"].copy(), table[table["window"] == "current"].copy()


def moved(warehouse: Warehouse, workload: str) -> list[str]:
    """What a check flags, without Evidently around the tests."""
    reference, current = features(warehouse, workload)
    drift.add_topics(reference, current, 8)
    columns = [name for name in NUMBERS + CATEGORIES if unusable(reference[name], current[name]) is None]
    values = {
        name: two_sample_ks(reference[name].dropna(), current[name].dropna())
        if name in NUMBERS
        else two_sample_chi_square(list(reference[name].dropna()), list(current[name].dropna()))
        for name in columns
    }
    return [name for name, value in values.items() if value < 0.05 / len(columns)]


def flagged(outcome: DriftCheck) -> list[str]:
    return [feature.feature for feature in outcome.features if feature.drifted]


def test_a_quiet_window_is_quiet_and_its_report_is_kept(warehouse: Warehouse, tmp_path: Path) -> None:
    traffic(warehouse)
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "killed.parquet").write_text("what a killed check left")
    outcome = check(warehouse, SETTINGS, "support", NOW, tmp_path / "reports")
    assert (outcome.drifted, outcome.severity) == (False, 0.0)
    assert {feature.feature for feature in outcome.features} == set(NUMBERS + CATEGORIES) - {"helpful", "refusal"}
    assert outcome.detail.startswith("0 of 9 features moved. Not compared: helpful (no values), refusal (constant)")
    assert {feature.threshold for feature in outcome.features} == {0.05 / 9}
    assert outcome.report is not None
    assert outcome.page is not None
    assert len(json.loads(outcome.report.read_text())["tests"]) == 9
    assert outcome.page.stat().st_size > 1_000_000
    assert not list((tmp_path / "reports").glob("*.parquet"))
    assert latest(warehouse, "support") == outcome


def test_planted_shifts_are_found_and_named(warehouse: Warehouse, tmp_path: Path) -> None:
    traffic(warehouse, weights=(1, 1, 1, 1, 9), answer_length=1.6)
    outcome = check(warehouse, SETTINGS, "support", NOW, tmp_path / "reports")
    assert outcome.drifted is True
    assert {"topic", "response_length"} <= set(flagged(outcome))
    assert (outcome.drifted, outcome.severity) == verdict(outcome.features)
    assert outcome.severity == len(flagged(outcome)) / (len(outcome.features) - 1)  # latency counts in neither
    assert "broken" in outcome.detail
    assert "response length from a mean of" in outcome.detail


def test_new_words_are_named(warehouse: Warehouse, tmp_path: Path) -> None:
    rng = random.Random(9)
    asked = [text + rng.choice(("", "", " does the subscription cover the hoverboard")) for text in prompts(ROWS, rng)]
    traffic(warehouse, asked=asked)
    outcome = check(warehouse, SETTINGS, "support", NOW, tmp_path / "reports")
    assert "new_words" in flagged(outcome)
    assert "new words: " in outcome.detail
    assert "hoverboard" in outcome.detail


def test_quiet_traffic_alarms_no_more_often_than_promised(warehouse: Warehouse) -> None:
    """At most 1 check in 20 may; 4 or more of 20 would happen by chance 2 times in 100."""
    alarms = []
    for seed in range(20):
        traffic(warehouse, seed, workload=f"quiet-{seed}", rows=ROWS)
        if names := moved(warehouse, f"quiet-{seed}"):
            alarms.append(names)
    assert len(alarms) <= 3, alarms


def test_shifts_are_found_each_time(warehouse: Warehouse) -> None:
    for seed in range(4):
        traffic(warehouse, seed, workload=f"topics-{seed}", weights=(2, 2, 2, 2, 7))
        assert "topic" in moved(warehouse, f"topics-{seed}")
        traffic(warehouse, seed, workload=f"length-{seed}", answer_length=1.5)
        assert "response_length" in moved(warehouse, f"length-{seed}")


def test_features_say_what_their_names_say(warehouse: Warehouse) -> None:
    asked = [
        "Where is order 1234??",
        "wo ist mein Paket und wie kann ich das ändern",
        "где моя посылка",
        "où est le colis",
    ]
    rng = random.Random(2)
    interactions(warehouse, asked, rng, context='["a"]', response="I’m sorry, I can’t help with that.")
    ids = interactions(warehouse, asked, rng, start=NOW - 100 * MINUTE, offset=10, context="[]", response="Sure.")
    feedback(warehouse, ids[:1], "helpful", True, when=START, offset=0)
    feedback(warehouse, ids[:1], "helpful", False, when=START + MINUTE, offset=1)
    feedback(warehouse, ids[1:2], "helpful", True, source="judge", when=START, offset=2)
    reference, current = features(warehouse)
    by_prompt = reference.set_index("prompt")
    assert list(by_prompt.loc[asked, "language"]) == ["english", "german", "cyrillic", "french"]
    first = by_prompt.loc[asked[0]]
    assert (first["prompt_length"], first["question_marks"], first["digit_share"]) == (21, 2, 4 / 21)
    assert set(reference["refusal"]) == {"yes"}
    assert set(current["refusal"]) == {"no"}
    assert set(reference["has_context"]) == {"yes"}
    assert set(current["has_context"]) == {"no"}
    assert list(current.set_index("prompt").loc[asked, "helpful"].fillna("-")) == ["no", "-", "-", "-"]


def test_the_reference_has_new_words_of_its_own(warehouse: Warehouse) -> None:
    """Each of its rows is held against the others, as each current row is."""
    traffic(warehouse)
    reference, current = features(warehouse)
    assert reference["new_words"].mean() == pytest.approx(current["new_words"].mean(), rel=0.25)
    assert reference["new_words"].mean() > 0.01


@pytest.mark.parametrize(
    "messages", ["[]", '{"a": 1}', '[{"role": "user", "content": null}]', '[{"role": "user"}]', "3"]
)
def test_unusual_messages_are_prompts_without_words(warehouse: Warehouse, messages: str) -> None:
    traffic(warehouse, rows=40, messages=messages)
    _, current = features(warehouse)
    assert set(current["prompt_length"]) <= {0.0, float(len("Be brief."))}


def test_one_bad_column_costs_that_column_alone(tmp_path: Path) -> None:
    rng = random.Random(3)
    columns: dict[str, Any] = {
        "prompt": prompts(200, rng),
        "prompt_length": [rng.gauss(50, 9) for _ in range(200)],
        "response_length": [rng.gauss(50, 9) for _ in range(200)],
        "digit_share": [None] * 200,
        "question_marks": [1.0] * 200,
        "new_words": [0.5] * 150 + [float(number) for number in range(50)],
        "latency_seconds": [rng.choice(("slow", "fast")) for _ in range(200)],  # no numbers: Evidently raises
        "language": ["english"] * 200,
        "refusal": [rng.choice(("yes", "no")) for _ in range(200)],
        "has_context": [rng.choice(("yes", "no")) for _ in range(200)],
        "helpful": [None] * 195 + ["yes"] * 5,
    }
    rows = pd.concat([pd.DataFrame(columns | {"window": window}) for window in ("reference", "current")])
    rows.to_parquet(tmp_path / "rows.parquet")
    job = {
        "rows": str(tmp_path / "rows.parquet"),
        "report": str(tmp_path / "a.json"),
        "false_alarm_rate": 0.05,
        "topics": 8,
    }
    result = compare(job, lambda _: None)
    assert {"prompt_length", "response_length", "refusal", "has_context", "topic"} <= {
        f["feature"] for f in result["features"]
    }
    assert result["left_out"]["digit_share"] == "no values"
    assert result["left_out"]["question_marks"] == "constant"
    assert result["left_out"]["language"] == "constant"
    assert result["left_out"]["helpful"] == "too few values"
    assert result["left_out"]["latency_seconds"].startswith("Evidently: ")
    assert len({f["threshold"] for f in result["features"]}) == 1
    assert result["features"][0]["threshold"] == 0.05 / len(result["features"])
    assert (tmp_path / "a.html").exists()


def test_where_nothing_can_be_compared_nothing_drifted(tmp_path: Path) -> None:
    same = {name: [1.0] * 50 for name in NUMBERS} | {name: ["no"] * 50 for name in CATEGORIES if name != "topic"}
    rows = pd.concat([pd.DataFrame(same | {"prompt": "", "window": window}) for window in ("reference", "current")])
    rows.to_parquet(tmp_path / "rows.parquet")
    job = {
        "rows": str(tmp_path / "rows.parquet"),
        "report": str(tmp_path / "a.json"),
        "false_alarm_rate": 0.05,
        "topics": 8,
    }
    result = compare(job, lambda _: None)
    assert result["features"] == []
    assert set(result["left_out"]) == set(NUMBERS + CATEGORIES)


def test_too_few_rows_are_said_and_stored_without_a_child(warehouse: Warehouse, tmp_path: Path) -> None:
    traffic(warehouse, rows=ROWS)
    early = START + (ROWS + 60) * MINUTE
    settings = Settings(windows=WindowsSettings(reference_seconds=60 * ROWS, current_seconds=3_600))
    outcome = check(warehouse, settings, "support", early, tmp_path / "reports")
    assert (outcome.drifted, outcome.severity, outcome.features, outcome.report) == (None, None, [], None)
    assert outcome.detail == (
        "Nothing can be said: 300 events in the reference window and 60 in the current one; 100 are needed in each."
    )
    assert latest(warehouse, "support") == outcome
    assert latest(warehouse, "support", decided=True) is None
    assert not (tmp_path / "reports").exists()
    assert check(warehouse, settings, "unheard_of", early, tmp_path).detail == "Nothing can be said: no event yet."


def test_old_reports_are_deleted_by_workload(warehouse: Warehouse, tmp_path: Path) -> None:
    traffic(warehouse)
    files = []
    for number in range(4):
        report = tmp_path / f"{number}.json"
        report.write_text("{}")
        report.with_suffix(".html").write_text("")
        files.append(report)
        warehouse.insert(
            "drift_checks",
            id=str(number),
            created_at=START + number * MINUTE,
            workload="other" if number == 0 else "support",
            drifted=False,
            severity=0.0,
            features="[]",
            reference_rows=100,
            current_rows=100,
            report=str(report),
            detail="",
        )
    settings = Settings(drift=DriftSettings(keep_reports=1), windows=WindowsSettings(minimum_rows=10_000))
    check(warehouse, settings, "support", NOW, tmp_path)
    assert [report.exists() for report in files] == [True, False, False, True]
    assert [report.with_suffix(".html").exists() for report in files] == [True, False, False, True]
    kept = warehouse.rows("SELECT id FROM drift_checks WHERE report IS NOT NULL ORDER BY id")
    assert [row["id"] for row in kept] == ["0", "3"]


def test_a_child_that_dies_is_told_and_leaves_nothing(
    warehouse: Warehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traffic(warehouse)
    broken = tmp_path / "broken" / "pandas"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    path = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", f"{broken.parent}{os.pathsep}{path}")
    with pytest.raises(ChildFailed, match=r"drift: .*killed by SIGKILL.*drift\.log"):
        check(warehouse, SETTINGS, "support", NOW, tmp_path / "reports")
    assert latest(warehouse, "support") is None
    assert {file.name for file in (tmp_path / "reports").iterdir()} == {"drift.job.json", "drift.log"}


def test_a_check_that_takes_too_long_is_ended(warehouse: Warehouse, tmp_path: Path) -> None:
    traffic(warehouse)
    settings = SETTINGS.model_copy(update={"drift": DriftSettings(timeout_seconds=0.2)})
    with pytest.raises(ChildFailed, match=r"longer than 0.2 s"):
        check(warehouse, settings, "support", NOW, tmp_path / "reports")


def test_a_check_can_be_stopped(warehouse: Warehouse, tmp_path: Path) -> None:
    traffic(warehouse)
    stop = threading.Event()
    stop.set()
    with pytest.raises(Cancelled):
        check(warehouse, SETTINGS, "support", NOW, tmp_path / "reports", stop)
    assert latest(warehouse, "support") is None


def test_the_sentence_names_the_strongest_first() -> None:
    weak = drift.Feature("prompt_length", "two_sample_ks", 0.01, 0.009, True, "a mean of 10", "12")
    strong = drift.Feature("topic", "two_sample_chi_square", 0.01, 0.0001, True, "'1 refund' 10%", "'1 refund' 40%")
    still = drift.Feature("language", "two_sample_chi_square", 0.01, 0.5, False, "'english' 90%", "'english' 91%")
    assert sentence([weak, strong, still], ["hoverboard"], {"helpful": "no values"}) == (
        "2 of 3 features moved: topic from '1 refund' 10% to '1 refund' 40%; prompt length from a mean of 10 to 12; "
        "new words: hoverboard. Not compared: helpful (no values)."
    )
    assert sentence([still], ["hoverboard"], {}) == "0 of 1 features moved."


def test_metrics_keep_the_last_verdict() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)

    def made(drifted: bool | None, severity: float | None) -> DriftCheck:
        return DriftCheck("1", START + timedelta(days=1), "support", drifted, severity, [], 9, 9, None, "")

    labels = {"workload": "support"}
    metrics.drift(made(True, 0.5))
    metrics.drift(made(None, None))
    assert registry.get_sample_value("retuned_drift_detected", labels) == 1
    assert registry.get_sample_value("retuned_drift_severity_ratio", labels) == 0.5
    assert registry.get_sample_value("retuned_drift_check_timestamp_seconds", labels) == 1772528400
    metrics.drift(made(False, 0.0), counted=False)
    assert registry.get_sample_value("retuned_drift_detected", labels) == 0
    counts = {
        outcome: registry.get_sample_value("retuned_drift_checks_total", labels | {"outcome": outcome})
        for outcome in ("drifted", "too_few_rows", "quiet")
    }
    assert counts == {"drifted": 1, "too_few_rows": 1, "quiet": None}
