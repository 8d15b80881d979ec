"""Drift checks with the real child process and Evidently; features on a real warehouse."""

import json
import os
import random
import threading
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from prometheus_client import CollectorRegistry

from fixtures.feedback.traffic import MINUTE, START, answered, feedback, interactions, prompts, store
from fixtures.models.static import static_model
from retuned.consumers.errors import Cancelled, ChildFailed
from retuned.consumers.warehouse.connection import Warehouse
from retuned.monitors.drift.check import (
    DriftCheck,
    check,
    forget_ahead,
    latest,
    sentence,
    sweep,
    verdict,
    write_features,
)
from retuned.monitors.drift.columns import COLUMNS, NUMBERS, SATISFACTION, read
from retuned.monitors.drift.comparison import Feature, compare, differ, judge
from retuned.monitors.drift.report import CHI_SQUARE, Verdict, write
from retuned.monitors.drift.windows import windows
from retuned.monitors.metrics import Metrics
from retuned.monitors.settings import DriftSettings, Settings, WindowsSettings
from retuned.monitors.statistics import repeated_looks
from retuned.monitors.windows import DAY, Season

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


def features(
    warehouse: Warehouse,
    folder: Path,
    workload: str = "support",
    settings: Settings = SETTINGS,
    now: datetime = NOW,
    sample: str = "answers",
) -> tuple[pd.DataFrame, pd.DataFrame]:
    found = windows(warehouse, settings.windows, workload, now)
    assert found is not None
    write_features(warehouse, settings, found, now, folder / "rows.parquet")
    table = pd.read_parquet(folder / "rows.parquet")
    table = table[table["sample"] == sample]
    return table[table["window"] == "reference"].copy(), table[table["window"] == "current"].copy()


def moved(warehouse: Warehouse, folder: Path, *about: Any) -> list[str]:
    """What a check flags, without Evidently around the tests. The arguments are those of `features`."""
    features(warehouse, folder, *about)
    columns = read(folder / "rows.parquet", 12, [])
    verdicts = judge(columns, differ(columns)[0], 0.05, 0.05, 1)
    return [name for name, verdict in verdicts.items() if verdict.drifted]


def job(folder: Path) -> dict[str, Any]:
    """For the child: the features that `features` wrote there."""
    return {
        "rows": str(folder / "rows.parquet"),
        "report": str(folder / "a.json"),
        "title": "Drift of <b>support</b>",
        "false_alarm_rate": 0.05,
        "minimum_distance": 0.05,
        "segments": [],
        "embedding_model": None,
        "topics": 8,
        "moving_windows": 1,
    }


def flagged(outcome: DriftCheck) -> list[str]:
    return [feature.feature for feature in outcome.features if feature.drifted]


def test_a_quiet_window_is_quiet_and_its_report_is_kept(warehouse: Warehouse, tmp_path: Path) -> None:
    traffic(warehouse)
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "killed.parquet").write_text("what a killed check left")
    outcome = check(warehouse, SETTINGS, "support", NOW, tmp_path / "reports")
    assert (outcome.drifted, outcome.severity) == (False, 0.0)
    left_out = {"context_length", "helpful", "refusal", SATISFACTION}
    assert {feature.feature for feature in outcome.features} == set(COLUMNS) - left_out | {"answer"}
    assert outcome.detail == (
        "0 of 10 features moved. Not compared: context_length (constant), helpful (no values), refusal (constant), "
        "satisfaction (no values)."
    )
    assert {feature.threshold for feature in outcome.features} == {repeated_looks(0.05 / 10, moving=1)}
    assert outcome.report is not None
    assert outcome.page is not None
    assert len(json.loads(outcome.report.read_text())["tests"]) == 10
    assert outcome.page.stat().st_size > 1_000_000
    assert not list((tmp_path / "reports").glob("*.parquet"))
    assert latest(warehouse, "support") == outcome


def test_a_reference_that_still_grows_moves_too(warehouse: Warehouse, tmp_path: Path) -> None:
    """Two windows that move are more looks than one: the threshold is lower."""
    traffic(warehouse)
    growing = Settings(windows=WindowsSettings(reference_seconds=2 * 60 * ROWS, current_seconds=60 * ROWS))
    outcome = check(warehouse, growing, "support", NOW, tmp_path / "reports")
    assert outcome.drifted is False
    assert {feature.threshold for feature in outcome.features} == {repeated_looks(0.05 / 10, moving=2)}


def test_planted_shifts_are_found_and_named(warehouse: Warehouse, tmp_path: Path) -> None:
    traffic(warehouse, weights=(1, 1, 1, 1, 9), answer_length=1.6)
    outcome = check(warehouse, SETTINGS, "support", NOW, tmp_path / "reports")
    assert outcome.drifted is True
    assert {"topic", "response_length"} <= set(flagged(outcome))
    furthest = verdict(outcome.features)
    assert furthest is not None
    assert (outcome.severity, outcome.severity_low, outcome.severity_high) == (
        furthest.distance, furthest.low, furthest.high,
    )  # fmt: skip
    # Questions about what is broken were 1 of 11, and are 9 of 13.
    assert furthest.low < 9 / 13 - 1 / 11 < furthest.high
    assert furthest.low > 0.5
    assert "response length from a mean of" in outcome.detail
    topic = next(feature for feature in outcome.features if feature.feature == "topic")
    assert "broken" in topic.example
    assert topic.example not in outcome.detail


def test_absurd_latencies_cost_no_check(warehouse: Warehouse, tmp_path: Path) -> None:
    traffic(warehouse, weights=(1, 1, 1, 1, 9))
    warehouse.execute(
        "UPDATE interactions SET latency_seconds = CASE WHEN \"offset\" % 3 = 0 THEN 1e308 ELSE 'inf'::DOUBLE END "
        'WHERE "offset" % 20 = 0'
    )
    outcome = check(warehouse, SETTINGS, "support", NOW, tmp_path / "reports")
    assert "topic" in flagged(outcome)
    assert outcome.drifted


def test_new_words_are_named(warehouse: Warehouse, tmp_path: Path) -> None:
    rng = random.Random(9)
    asked = [text + rng.choice(("", "", " does the subscription cover the hoverboard")) for text in prompts(ROWS, rng)]
    traffic(warehouse, asked=asked)
    outcome = check(warehouse, SETTINGS, "support", NOW, tmp_path / "reports")
    assert "new_words" in flagged(outcome)
    assert "new words: " in outcome.detail
    assert "hoverboard" in outcome.detail


def test_quiet_traffic_alarms_no_more_often_than_promised(warehouse: Warehouse, tmp_path: Path) -> None:
    """At most 1 day of checks in 20 may, and a single check has a tenth of that: two of ten, never."""
    alarms = []
    for seed in range(10):
        traffic(warehouse, seed, workload=f"quiet-{seed}", rows=ROWS)
        if names := moved(warehouse, tmp_path, f"quiet-{seed}"):
            alarms.append(names)
    assert len(alarms) <= 1, alarms


def test_quiet_conversations_alarm_no_more_often_than_promised(warehouse: Warehouse, tmp_path: Path) -> None:
    """Each of six questions on one topic: as independent observations they would flag topics in most looks."""
    turns, alarms = 6, []
    settings = Settings(windows=WindowsSettings(reference_seconds=60 * turns * ROWS, current_seconds=60 * turns * ROWS))
    for seed in range(8):
        rng = random.Random(seed)
        workload, rows = f"quiet-{seed}", []
        for number, topic in enumerate(rng.choices(range(5), USUAL, k=2 * ROWS)):
            weights = tuple(int(topic == other) for other in range(5))
            asked, conversation = prompts(turns, rng, weights), f"c{number}"
            start, offset = START + number * turns * MINUTE, number * turns
            rows += answered(asked, rng, workload=workload, start=start, offset=offset, conversation_id=conversation)
        store(warehouse, "interactions", rows)
        now = START + 2 * turns * ROWS * MINUTE
        if names := moved(warehouse, tmp_path, workload, settings, now):
            alarms.append(names)
    assert len(alarms) <= 1, alarms


def test_shifts_are_found_each_time(warehouse: Warehouse, tmp_path: Path) -> None:
    for seed in range(4):
        traffic(warehouse, seed, workload=f"topics-{seed}", weights=(2, 2, 2, 2, 7))
        assert "topic" in moved(warehouse, tmp_path, f"topics-{seed}")
        traffic(warehouse, seed, workload=f"length-{seed}", answer_length=1.5)
        assert "response_length" in moved(warehouse, tmp_path, f"length-{seed}")


def rated(warehouse: Warehouse, workload: str, asked: list[str], start: datetime, offset: int, rates: Any) -> None:
    """Traffic in which each answer is rated, the helpful rate by the first word of what the question is about."""
    rng = random.Random(offset)
    ids = interactions(warehouse, asked, rng, workload=workload, start=start, offset=offset)
    rated = {id: rng.random() < rates(text) for id, text in zip(ids, asked, strict=True)}
    for helpful in (True, False):
        those = [id for id, verdict in rated.items() if verdict is helpful]
        feedback(warehouse, those, "helpful", helpful, when=start, offset=2 * offset + ROWS * helpful)


def test_without_votes_the_estimate_states_what_it_lacks(warehouse: Warehouse, tmp_path: Path) -> None:
    rng = random.Random(5)
    for number in range(2):
        start = START + number * ROWS * MINUTE
        interactions(warehouse, prompts(ROWS, rng), rng, start=start, offset=number * ROWS)
    features(warehouse, tmp_path)
    result = compare(job(tmp_path), lambda _: None)
    assert (result["estimate"], result["lacking"]["found"], result["lacking"]["needed"]) == (None, 0, 30)
    assert "in each window of drift" in result["lacking"]["what"]


def test_falling_satisfaction_with_the_same_questions_is_told_from_a_new_mix(
    warehouse: Warehouse, tmp_path: Path
) -> None:
    def usual(text: str) -> float:
        return 0.4 if "broken" in text else 0.9

    rng = random.Random(4)
    middle = START + ROWS * MINUTE
    rated(warehouse, "mix", prompts(ROWS, rng), START, 0, usual)
    rated(warehouse, "mix", prompts(ROWS, rng, (1, 1, 1, 1, 9)), middle, ROWS, usual)
    found = moved(warehouse, tmp_path, "mix")
    assert "helpful" in found
    assert "topic" in found
    assert SATISFACTION not in found


def test_few_ratings_are_compared_though_the_sample_of_answers_has_next_to_none(
    warehouse: Warehouse, tmp_path: Path
) -> None:
    """Of 3,000 answers in either window one in thirty is rated, and 100 answers are sampled."""
    rows, rng = 3_000, random.Random(7)
    for number, rate in enumerate((0.9, 0.5)):
        asked, start = prompts(rows, rng), START + number * rows * MINUTE
        ids = interactions(warehouse, asked, rng, start=start, offset=number * rows)
        about = rng.sample(ids, 100)
        helpful = round(100 * rate)
        feedback(warehouse, about[:helpful], "helpful", True, when=start, offset=1_000 * number)
        feedback(warehouse, about[helpful:], "helpful", False, when=start, offset=1_000 * number + 500)
    settings = Settings(
        windows=WindowsSettings(reference_seconds=60 * rows, current_seconds=60 * rows, sample_rows=100)
    )
    now = START + 2 * rows * MINUTE
    before, after = features(warehouse, tmp_path, "support", settings, now, "rated")
    assert [list(window["helpful"]).count("yes") for window in (before, after)] == [90, 50]
    assert [len(window) for window in features(warehouse, tmp_path, "support", settings, now)] == [100, 100]
    assert {"helpful", SATISFACTION} <= set(moved(warehouse, tmp_path, "support", settings, now))


def test_labels_are_compared_by_value_and_what_moved_is_named_with_its_segment(
    warehouse: Warehouse, tmp_path: Path
) -> None:
    """The same questions get another label in the app alone; lengths and prompts are as before."""
    for number in range(2):
        rng = random.Random(number)
        for channel, share in (("app", 0.4 * number), ("web", 0.0)):
            asked = prompts(ROWS // 2, rng)
            start, offset = START + number * ROWS * MINUTE, number * ROWS + (channel == "web") * ROWS // 2
            rows = answered(
                asked, rng, start=start, step=2 * MINUTE, offset=offset, attributes=json.dumps({"channel": channel})
            )
            store(
                warehouse,
                "interactions",
                [row | {"response": "lost" if rng.random() < share else "sent"} for row in rows],
            )
    settings = SETTINGS.model_copy(update={"drift": DriftSettings(segments=("channel", "country"))})
    outcome = check(warehouse, settings, "support", NOW, tmp_path / "reports")
    assert flagged(outcome) == ["answer"]
    assert "answer from 'lost' 0% to 'lost' " in outcome.detail
    assert "most in channel 'app'" in outcome.detail
    assert "attributes.country (no values)" in outcome.detail
    assert outcome.severity == pytest.approx(0.2, abs=0.06)
    # A shift that is smaller than what matters is none, however significant.
    harder = DriftSettings(segments=("channel",), minimum_distance=0.5)
    outcome = check(warehouse, settings.model_copy(update={"drift": harder}), "support", NOW, tmp_path / "reports")
    assert outcome.drifted is False
    assert min(feature.value for feature in outcome.features) < 1e-6


def test_falling_satisfaction_is_named_with_its_topic(warehouse: Warehouse, tmp_path: Path) -> None:
    rng = random.Random(5)
    rated(warehouse, "support", prompts(ROWS, rng), START, 0, lambda _: 0.9)
    rated(
        warehouse, "support", [f"\x1b[2J {text}" for text in prompts(ROWS, rng)], START + ROWS * MINUTE, ROWS,
        lambda text: 0.2 if "parcel" in text or "shipping" in text or "deliver" in text else 0.9,
    )  # fmt: skip
    features(warehouse, tmp_path)
    result = compare(job(tmp_path), lambda _: None)
    found = [Feature(**feature) for feature in result["features"]]
    fell = next(feature for feature in found if feature.feature == SATISFACTION)
    assert (fell.method, fell.drifted) == ("cochran_mantel_haenszel", True)
    assert "topic" not in [feature.feature for feature in found if feature.drifted]
    assert 0.1 < fell.distance < 0.3
    estimated = result["estimate"]
    assert result["lacking"] is None
    assert estimated["before"] == pytest.approx(0.9, abs=0.04)
    assert estimated["low"] < 0.9 - 0.7 * 3 / 11 < estimated["high"] < 0.8  # three of eleven ask about it
    assert estimated["moved"] == estimated["segments"][0]
    assert estimated["moved"]["name"] == "topic"
    assert estimated["moved"]["high"] < estimated["moved"]["before"] - 0.1
    assert "% for the same topics, most in '" in sentence(found, [], {})
    assert any(word in fell.example for word in ("parcel", "shipping", "deliver"))
    assert fell.example.isprintable()  # it goes to logs and terminals
    told = json.loads((tmp_path / "a.json").read_text())
    assert [test["status"] for test in told["tests"] if SATISFACTION in test["name"]] == ["FAIL"]
    page = (tmp_path / "a.html").read_text()
    assert "Cochran-Mantel-Haenszel" in page
    assert "<title>Drift of &lt;b&gt;support&lt;/b&gt;</title>" in page
    assert page.count('<a href="/">') == 1


def test_who_votes_often_counts_as_much_in_a_day_as_in_a_week(warehouse: Warehouse, tmp_path: Path) -> None:
    """120 regulars vote each day and are content, 80 others a day vote once and are not: nothing changes."""
    rng, ids, votes = random.Random(3), list[str](), list[bool]()
    for day in range(8):
        for number in range(200):
            user, content = (f"regular {number}", 0.9) if number < 120 else (f"other {day} {number}", 0.5)
            ids += interactions(
                warehouse, prompts(1, rng), rng, start=START + (day + number / 200) * DAY, offset=len(ids), user_id=user
            )
            votes.append(rng.random() < content)
    for helpful in (True, False):
        those = [id for id, vote in zip(ids, votes, strict=True) if vote is helpful]
        feedback(warehouse, those, "helpful", helpful, when=START + 5 * MINUTE, offset=10_000 * helpful)
    settings = Settings(windows=WindowsSettings(reference_seconds=7 * 86_400, current_seconds=86_400))
    before, after = features(warehouse, tmp_path, "support", settings, START + 8 * DAY, "rated")
    assert len(before) == 1_000
    for window in (before, after):
        assert (window["helpful"] == "yes").mean() == pytest.approx(0.6 * 0.9 + 0.4 * 0.5, abs=0.06)
    assert not {"helpful", SATISFACTION} & set(moved(warehouse, tmp_path, "support", settings, START + 8 * DAY))


def night_and_day(warehouse: Warehouse, workload: str, days: int, rng: random.Random, **last_day: Any) -> datetime:
    """Refunds and deliveries by day, broken things and passwords by night, a question every six minutes."""
    step, a_day = timedelta(minutes=6), 240
    for number in range(days):
        for half, weights in enumerate(((5, 5, 1, 1, 1), (1, 1, 5, 1, 5))):
            at = number * a_day + half * a_day // 2
            shift = last_day if number == days - 1 else {}
            asked = prompts(a_day // 2, rng, shift.get("weights", weights))
            interactions(warehouse, asked, rng, workload=workload, start=START + at * step, step=step, offset=at)
    return START + days * a_day * step


def test_a_daily_pattern_is_no_drift_and_a_shift_in_it_is(warehouse: Warehouse, tmp_path: Path) -> None:
    rng = random.Random(6)
    seasonal = WindowsSettings(reference_seconds=6 * 86_400, current_seconds=43_200, seasonal_rows=300)
    blind = seasonal.model_copy(update={"seasonal_rows": None})
    now = night_and_day(warehouse, "usual", 7, rng)
    assert "topic" in moved(warehouse, tmp_path, "usual", Settings(windows=blind), now)
    reference, current = features(warehouse, tmp_path, "usual", Settings(windows=seasonal), now)
    assert len(reference) == 6 * len(current) == 720
    assert moved(warehouse, tmp_path, "usual", Settings(windows=seasonal), now) == []
    now = night_and_day(warehouse, "shifted", 7, rng, weights=(1, 1, 5, 5, 1))
    assert "topic" in moved(warehouse, tmp_path, "shifted", Settings(windows=seasonal), now)


def test_checks_in_a_row_see_the_same_events_where_their_windows_overlap(warehouse: Warehouse, tmp_path: Path) -> None:
    """What is corrected for repeated looks is that; samples drawn anew would be new trials."""
    traffic(warehouse)
    settings = Settings(windows=SETTINGS.windows.model_copy(update={"sample_rows": 100}))
    first, second = (features(warehouse, tmp_path, settings=settings, now=now) for now in (NOW, NOW + 10 * MINUTE))
    same = [set(one["prompt"]) & set(other["prompt"]) for one, other in zip(first, second, strict=True)]
    assert len(same[0]) >= 99  # a question may be asked twice
    assert len(same[1]) >= 85


def test_one_long_document_does_not_cost_more_than_the_rest(warehouse: Warehouse, tmp_path: Path) -> None:
    asked = prompts(ROWS, random.Random(8))
    asked[0] = "quarterly figures " * 100_000
    traffic(warehouse, asked=asked)
    _, current = features(warehouse, tmp_path)
    assert current["prompt"].str.len().max() == 4_000
    assert current["prompt_length"].max() == len(asked[0])


def test_features_say_what_their_names_say(warehouse: Warehouse, tmp_path: Path) -> None:
    asked = [
        "Where is order 1234??",
        "wo ist mein Paket und wie kann ich das ändern",
        "где моя посылка",
        "où est le colis",
    ]
    rng = random.Random(2)
    interactions(warehouse, asked, rng, context='["a", "two"]', response="I’m sorry, I can’t help with that.")
    ids = interactions(warehouse, asked, rng, start=NOW - 100 * MINUTE, offset=10, context="[]", response="Sure.")
    feedback(warehouse, ids[:1], "helpful", True, when=START, offset=0)
    feedback(warehouse, ids[:1], "helpful", False, when=START + MINUTE, offset=1)
    feedback(warehouse, ids[1:2], "helpful", True, source="judge", when=START, offset=2)
    reference, current = features(warehouse, tmp_path)
    by_prompt = reference.set_index("prompt")
    assert list(by_prompt.loc[asked, "language"]) == ["english", "german", "cyrillic", "french"]
    first = by_prompt.loc[asked[0]]
    assert (first["prompt_length"], first["question_marks"], first["digit_share"]) == (21, 2, 4 / 21)
    assert set(reference["refusal"]) == {"yes"}
    assert set(current["refusal"]) == {"no"}
    assert set(reference["has_context"]) == {"yes"}
    assert set(reference["context_length"]) == {4}
    assert current["context_length"].isna().all()
    assert set(current["has_context"]) == {"no"}
    assert current["helpful"].isna().all()
    # The last vote counts, and only those of users; what is rated is a sample of its own, and so is what has a context.
    reference, current = features(warehouse, tmp_path, sample="rated")
    assert len(reference) == 0
    assert list(current[["prompt", "helpful"]].itertuples(index=False, name=None)) == [(asked[0], "no")]
    reference, current = features(warehouse, tmp_path, sample="context")
    assert (len(reference), len(current)) == (4, 0)


def test_a_word_is_new_that_no_other_row_of_the_reference_has(warehouse: Warehouse, tmp_path: Path) -> None:
    """Each row of the reference is held against the others, as each current row is; what one row alone has is passed
    over."""
    before = ["red apple", "red pear", "red plum"]
    rng = random.Random(2)
    interactions(warehouse, before, rng)
    interactions(
        warehouse, ["red apple", "red kiwi", "red kiwi?", "red grape"], rng, start=NOW - 100 * MINUTE, offset=10
    )
    reference, current = features(warehouse, tmp_path)
    new = [window.set_index("prompt")["new_words"].to_dict() for window in (reference, current)]
    assert new == [
        {"red apple": 0.5, "red pear": 0.0, "red plum": 0.0},
        {"red apple": 0.0, "red kiwi": 0.5, "red kiwi?": 0.5, "red grape": 0.0},
    ]


@pytest.mark.parametrize(
    "messages", ["[]", '{"a": 1}', '[{"role": "user", "content": null}]', '[{"role": "user"}]', "3"]
)
def test_unusual_messages_are_prompts_without_words(warehouse: Warehouse, tmp_path: Path, messages: str) -> None:
    traffic(warehouse, rows=40, messages=messages)
    _, current = features(warehouse, tmp_path)
    assert set(current["prompt_length"]) <= {0.0, float(len("Be brief."))}


def test_one_bad_column_costs_that_column_alone(tmp_path: Path) -> None:
    rng = random.Random(3)
    columns: dict[str, Any] = {
        "prompt": prompts(200, rng),
        "prompt_length": [rng.gauss(50, 9) for _ in range(200)],
        "response_length": [rng.gauss(50, 9) for _ in range(200)],
        "context_length": 80.0,
        "digit_share": [None] * 200,
        "question_marks": [1.0] * 200,
        "new_words": [0.5] * 150 + [float(number) for number in range(50)],
        "latency_seconds": [rng.choice(("slow", "fast")) for _ in range(200)],  # no numbers
        "language": ["english"] * 200,
        "refusal": [rng.choice(("yes", "no")) for _ in range(200)],
        "has_context": [rng.choice(("yes", "no")) for _ in range(200)],
        "helpful": [None] * 195 + ["yes"] * 5,
        "sample": "answers",
        "day": 0,
        "answer": None,
        "segments": [[]] * 200,
    }
    rows = pd.concat([pd.DataFrame(columns | {"window": window}) for window in ("reference", "current")])
    with_context = rows.groupby("window").head(5).assign(sample="context")
    pd.concat([rows, with_context], ignore_index=True).to_parquet(tmp_path / "rows.parquet")
    result = compare(job(tmp_path), lambda _: None)
    assert {"prompt_length", "response_length", "refusal", "has_context", "topic"} <= {
        f["feature"] for f in result["features"]
    }
    assert result["left_out"]["digit_share"] == "no values"
    assert result["left_out"]["question_marks"] == "constant"
    assert result["left_out"]["language"] == "constant"
    assert result["left_out"]["helpful"] == "no values"  # in the sample of rated answers
    assert result["left_out"]["context_length"] == "too few values"
    assert result["left_out"]["latency_seconds"].startswith("its values cannot be compared: could not convert")
    assert {f["threshold"] for f in result["features"]} == {repeated_looks(0.05 / len(result["features"]), moving=1)}
    assert (tmp_path / "a.html").exists()


def test_where_nothing_can_be_compared_nothing_drifted(tmp_path: Path) -> None:
    same = {name: [1.0 if name in NUMBERS else "no"] * 50 for name in COLUMNS if name not in ("topic", SATISFACTION)}
    same |= {"sample": "answers", "day": 0, "answer": None, "segments": [[]] * 50, "prompt": ""}
    rows = pd.concat([pd.DataFrame(same | {"window": window}) for window in ("reference", "current")])
    rows.to_parquet(tmp_path / "rows.parquet")
    result = compare(job(tmp_path), lambda _: None)
    assert result["features"] == []
    assert set(result["left_out"]) == set(COLUMNS)


def test_a_blind_check_says_how_many_conversations_are_missing(warehouse: Warehouse, tmp_path: Path) -> None:
    interactions(warehouse, prompts(130, random.Random(1)), random.Random(2), step=60 * MINUTE)
    now = START + 130 * 60 * MINUTE
    outcome = check(warehouse, Settings(), "support", now, tmp_path / "reports")
    assert (outcome.drifted, outcome.severity, outcome.features, outcome.report) == (None, None, [], None)
    assert outcome.missing == 76
    assert outcome.detail == (
        "Blind: 76 more conversations are needed. There are 106 in the reference and 24 in the current window; each "
        "needs 100 (windows.minimum_rows)."
    )
    assert latest(warehouse, "support") == outcome
    assert not (tmp_path / "reports").exists()
    assert check(warehouse, Settings(), "unheard_of", now, tmp_path).missing == 200


def test_a_value_brings_no_script_into_the_report(tmp_path: Path) -> None:
    values = pd.DataFrame({"label": ["refund", "</script><script>window.owned = 1</script>"] * 20})
    write(values, values, {"label": Verdict(CHI_SQUARE, 0.5, 0.05, False)}, tmp_path / "r.json", "a title")
    page = (tmp_path / "r.html").read_text()
    assert "window.owned" in page
    assert "<script>window.owned" not in page


def test_checks_that_were_made_while_the_clock_was_ahead_are_forgotten(warehouse: Warehouse, tmp_path: Path) -> None:
    interactions(warehouse, prompts(130, random.Random(1)), random.Random(2), step=60 * MINUTE)
    now = START + 130 * 60 * MINUTE
    for workload in ("support", "unheard_of"):
        check(warehouse, Settings(), workload, now + 400 * 24 * 60 * MINUTE, tmp_path)
    outcome = check(warehouse, Settings(), "support", now, tmp_path)
    forget_ahead(warehouse, "support", now)
    assert latest(warehouse, "support") == outcome
    kept = latest(warehouse, "unheard_of")
    assert kept is not None
    assert kept.created_at > now


def test_reports_stay_of_the_latest_check_and_of_the_latest_that_found_drift(
    warehouse: Warehouse, tmp_path: Path
) -> None:
    traffic(warehouse)
    files = []
    for number, (workload, drifted) in enumerate(
        [("other", False), ("support", True), ("support", True), ("support", False), ("support", False)]
    ):
        report = tmp_path / f"{number}.json"
        report.write_text("{}")
        report.with_suffix(".html").write_text("")
        files.append(report)
        warehouse.insert(
            "drift_checks",
            id=str(number),
            created_at=START + number * MINUTE,
            workload=workload,
            drifted=drifted,
            severity=0.0,
            features="[]",
            reference_rows=100,
            current_rows=100,
            report=str(report),
            detail="",
        )
    settings = Settings(drift=DriftSettings(keep_reports=1), windows=WindowsSettings(minimum_rows=10_000))
    check(warehouse, settings, "support", NOW, tmp_path)
    assert [report.exists() for report in files] == [True, False, True, False, True]
    assert [report.with_suffix(".html").exists() for report in files] == [True, False, True, False, True]
    kept = warehouse.rows("SELECT id FROM drift_checks WHERE report IS NOT NULL ORDER BY id")
    assert [row["id"] for row in kept] == ["0", "2", "4"]


def test_reports_that_no_check_names_are_swept_up(warehouse: Warehouse, tmp_path: Path) -> None:
    kept, left, new = (f"{NOW + hours * 60 * MINUTE:%Y%m%dT%H%M%S}-0123abcd" for hours in (0, 1, 3))
    for name in (kept, left, new, "2026-02-support-0123ab"):
        for ending in ("json", "html"):
            (tmp_path / f"{name}.{ending}").write_text("{}")
    warehouse.insert(
        "drift_checks", id=kept, created_at=NOW, workload="support", features="[]", reference_rows=1, current_rows=1,
        report=str(tmp_path / f"{kept}.json"), detail="",
    )  # fmt: skip
    assert sweep(warehouse, tmp_path, NOW + 2 * 60 * MINUTE) == 2
    for ending in ("json", "html"):
        assert {path.stem for path in tmp_path.glob(f"*.{ending}")} == {kept, new, "2026-02-support-0123ab"}


@pytest.mark.usefixtures("real_processes")  # one that is forked has imported pandas
def test_a_child_that_dies_is_told_and_leaves_nothing(
    warehouse: Warehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traffic(warehouse)
    broken = tmp_path / "broken" / "pandas"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    path = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", f"{broken.parent}{os.pathsep}{path}")
    with pytest.raises(ChildFailed, match=r"comparison: .*killed by SIGKILL.*comparison\.log"):
        check(warehouse, SETTINGS, "support", NOW, tmp_path / "reports")
    assert latest(warehouse, "support") is None
    assert {file.name for file in (tmp_path / "reports").iterdir()} == {"comparison.job.json", "comparison.log"}


def test_by_a_static_model_what_is_meant_counts_and_not_the_words(warehouse: Warehouse, tmp_path: Path) -> None:
    """The same questions in other words: by words all of it is new."""
    rng = random.Random(11)
    meanings = {
        name: ["".join(rng.choices("bdfgklmnprst", k=6)) for _ in range(60)] for name in ("parcel", "refund", "login")
    }
    early, late = ({name: words[part] for name, words in meanings.items()} for part in (slice(30), slice(30, 60)))

    def asked(of: dict[str, list[str]]) -> list[str]:
        return [" ".join(rng.choices(of[name], k=6)) for name in rng.choices(list(of), k=ROWS)]

    interactions(warehouse, asked(early), rng)
    interactions(warehouse, asked(late), rng, start=START + ROWS * MINUTE, offset=ROWS)
    by_words = check(warehouse, SETTINGS, "support", NOW, tmp_path / "reports")
    assert "topic" in flagged(by_words)
    model = static_model(tmp_path / "model", meanings, spread=0)
    by_model = SETTINGS.model_copy(update={"drift": DriftSettings(embedding_model=model)})
    found = check(warehouse, by_model, "support", NOW + MINUTE, tmp_path / "reports")
    assert "topic" not in flagged(found)
    assert "topic" in {feature.feature for feature in found.features}
    nowhere = SETTINGS.model_copy(update={"drift": DriftSettings(embedding_model=tmp_path / "nowhere")})
    with pytest.raises(ChildFailed, match=r"drift\.embedding_model: .*nowhere is not the folder of a model2vec model"):
        check(warehouse, nowhere, "support", NOW, tmp_path / "reports")


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
    weak = Feature("prompt_length", "two_sample_ks", 0.01, 0.009, True, "a mean of 10", "12")
    strong = Feature(
        "topic", "two_sample_topics", 0.01, 0.0001, True, "'1 refund' 10%", "'1 refund' 40%", 0.3, "Refund?"
    )
    still = Feature("language", "two_sample_chi_square", 0.01, 0.5, False, "'english' 90%", "'english' 91%")
    assert sentence([weak, strong, still], ["hoverboard"], {"helpful": "no values"}) == (
        "2 of 3 features moved: topic from '1 refund' 10% to '1 refund' 40%; prompt length from "
        "a mean of 10 to 12; new words: hoverboard. Not compared: helpful (no values)."
    )
    assert sentence([still], ["hoverboard"], {}) == "0 of 1 features moved."
    week = Season(timedelta(days=7), START, timedelta(hours=2))
    assert sentence([still], [], {}, week) == "0 of 1 features moved. Compared with the same hours of the week."


def test_metrics_show_no_verdict_where_the_latest_check_has_none() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)

    def made(drifted: bool | None, severity: float | None) -> DriftCheck:
        missing = 12 if drifted is None else None
        return DriftCheck(
            "1",
            START + timedelta(days=1),
            "support",
            drifted,
            severity,
            [],
            9,
            9,
            None,
            "",
            severity,
            severity,
            missing,
            {"rate": 0.7, "low": 0.6, "high": 0.8} if drifted else None,
        )

    labels = {"workload": "support"}
    metrics.drift(made(True, 0.5))
    assert registry.get_sample_value("retuned_drift_detected", labels) == 1
    assert registry.get_sample_value("retuned_drift_severity_ratio", labels) == 0.5
    assert registry.get_sample_value("retuned_drift_severity_interval_ratio", labels | {"end": "low"}) == 0.5
    assert registry.get_sample_value("retuned_drift_missing_conversations", labels) == 0
    assert registry.get_sample_value("retuned_helpful_rate_estimate", labels) == 0.7
    assert registry.get_sample_value("retuned_helpful_rate_estimate_interval", labels | {"end": "high"}) == 0.8
    metrics.drift(made(None, None))
    assert registry.get_sample_value("retuned_drift_detected", labels) is None
    assert registry.get_sample_value("retuned_drift_severity_ratio", labels) is None
    assert registry.get_sample_value("retuned_drift_severity_interval_ratio", labels | {"end": "low"}) is None
    assert registry.get_sample_value("retuned_drift_missing_conversations", labels) == 12
    assert registry.get_sample_value("retuned_helpful_rate_estimate", labels) is None
    assert registry.get_sample_value("retuned_drift_check_timestamp_seconds", labels) == 1772528400
    metrics.drift(made(False, 0.0), counted=False)
    assert registry.get_sample_value("retuned_drift_detected", labels) == 0
    counts = {
        outcome: registry.get_sample_value("retuned_drift_checks_total", labels | {"outcome": outcome})
        for outcome in ("drifted", "too_few_rows", "quiet")
    }
    assert counts == {"drifted": 1, "too_few_rows": 1, "quiet": None}
