"""Two samples of one column: tests, shares that changed, answers that form a closed set, Evidently's report of it."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from retuned.monitors.drift import report
from retuned.monitors.drift.answers import closed_answers
from retuned.monitors.drift.report import CHI_SQUARE, KS, Verdict
from retuned.monitors.drift.two_samples import Difference, Sample, categories, numbers, satisfaction


def sample(values: list[Any], day: int = 0) -> Sample:
    return Sample(np.asarray(values, dtype=None if isinstance(values[0], float) else object), np.full(len(values), day))


def gauss(rng: random.Random, factor: float = 1.0) -> Sample:
    return sample([factor * rng.gauss(100, 30) for _ in range(500)])


def test_numbers_that_grew_are_seen_and_equal_ones_are_not() -> None:
    rng = random.Random(4)
    quiet, grown = numbers(gauss(rng), gauss(rng)), numbers(gauss(rng), gauss(rng, 1.3))
    assert quiet.p_value > 0.01
    assert quiet.low == 0.0
    assert grown.p_value < 1e-6
    assert 0.2 < grown.share < 0.45  # the total variation of the two is 0.35
    assert grown.low > 0.1


def test_numbers_that_spread_to_both_sides_changed_as_much_as_those_that_moved_to_one() -> None:
    """Normal deviates of twice the standard deviation: their total variation is 0.32, and half of it on either side."""
    rng = random.Random(7)
    found = numbers(gauss(rng), sample([rng.gauss(100, 60) for _ in range(500)]))
    assert found.low <= 0.32 <= found.high
    assert found.low > 0.2


def test_chance_alone_adds_nothing_to_the_share_that_changed() -> None:
    """Of 40 categories the plain distance of two quiet samples of 500 is 0.11."""
    rng = random.Random(5)
    found = [
        categories(*(sample([f"label {rng.randrange(40)}" for _ in range(500)]) for _ in range(2))) for _ in range(20)
    ]
    assert np.mean([one.share for one in found]) < 0.03
    assert min(one.p_value for one in found) > 0.0005


def test_a_shift_that_is_spread_over_many_labels_is_found_by_their_values() -> None:
    """A tenth of the answers are five new labels: two in a hundred each."""
    rng = random.Random(6)
    before = sample([f"label {rng.randrange(20)}" for _ in range(1_000)])
    after = sample(
        [f"new {rng.randrange(5)}" if rng.random() < 0.1 else f"label {rng.randrange(20)}" for _ in range(1_000)]
    )
    found = categories(before, after)
    assert found.p_value < 1e-6
    assert found.low <= 0.1 <= found.high
    assert found.low > 0.03


def fallen(rate: float, rows: int, rng: random.Random) -> Difference:
    def rated(rows: int, rate: float) -> Sample:
        return sample([f"topic {rng.randrange(3)}: {'yes' if rng.random() < rate else 'no'}" for _ in range(rows)])

    return satisfaction(rated(1_000, 0.75), rated(rows, rate))


def test_the_fall_of_satisfaction_has_an_interval() -> None:
    found = [fallen(0.55, 300, random.Random(seed)) for seed in range(40)]
    assert sum(one.low <= 0.2 <= one.high for one in found) >= 35
    assert sum(one.p_value < 0.0005 for one in found) >= 38
    risen = fallen(0.95, 300, random.Random(1))
    assert risen.p_value > 0.99
    assert (risen.share, risen.low) == (0.0, 0.0)


def test_answers_that_come_again_are_labels() -> None:
    labels = [f"label {n % 7} " for n in range(100)]
    assert closed_answers(labels) == {"answer": [label.strip() for label in labels]}
    assert closed_answers([f"a text {n}" for n in range(100)]) == {}
    assert closed_answers(["x" * 300] * 100) == {}
    assert closed_answers([None] * 100) == {}
    assert closed_answers([]) == {}


def test_fields_of_json_are_columns() -> None:
    answers: list[str | None] = [
        json.dumps(
            {"team": f"team {n % 3}", "amount": n / 3, "text": f"text {n}", "urgent": True}
            | ({"late": 1} if n % 2 else {})
        )
        for n in range(100)
    ]
    answers[50] = "no JSON"
    found = closed_answers(answers)
    assert set(found) == {"answer.team", "answer.amount", "answer.urgent", "answer.late"}
    assert found["answer.team"][:2] == ["team 0", "team 1"]
    assert found["answer.amount"][3] == 1.0
    assert found["answer.late"][:2] == ["absent", "1"]
    assert all(values[50] is None for values in found.values())
    huge = closed_answers(['{"n": 1' + "0" * 400 + f', "m": {n}}}' for n in range(30)])
    assert huge["answer.m"][2] == 2.0


@pytest.mark.full
def test_evidently_reports_what_our_tests_found(tmp_path: Path) -> None:
    """All that is used of Evidently: tests registered by name get named columns; the report has their verdicts."""
    rng = random.Random(1)
    table = pd.DataFrame(
        {"length": [rng.random() for _ in range(60)], "kind": [rng.choice("ab") for _ in range(60)], "broken": "text"}
    )
    verdicts = {
        # Neither is what a comparison of the p-value with the threshold says.
        "length": Verdict(KS, 0.001, 0.01, drifted=False),
        "kind": Verdict(CHI_SQUARE, 0.9, 0.01, drifted=True),
        "broken": Verdict(KS, 0.5, 0.01, drifted=False),
    }
    path = tmp_path / "a.json"
    refused = report.write(table, table, verdicts, path, "Drift of <b>")
    assert list(refused) == ["broken"]
    assert refused["broken"].startswith("Evidently: ")
    written = json.loads(path.read_text())
    found = {
        metric["config"]["column"]: (metric["config"]["method"], metric["config"]["threshold"], metric["value"])
        for metric in written["metrics"]
    }
    assert found == {"length": (KS, 0.01, 0.001), "kind": (CHI_SQUARE, 0.01, 0.9)}
    statuses = {test["metric_config"]["params"]["column"]: test["status"] for test in written["tests"]}
    assert statuses == {"length": "SUCCESS", "kind": "FAIL"}
    page = path.with_suffix(".html").read_text(encoding="utf-8")
    assert "<title>Drift of &lt;b&gt;</title>" in page
    assert "chi-square" in page
