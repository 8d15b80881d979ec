"""Rates with dates: which one holds, and what is said of those that cannot be meant."""

from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest

from retuned.consumers.errors import ConfigurationError
from retuned.daemon.settings import Settings, load
from retuned.monitors.money.dated import rate_on
from retuned.monitors.settings import RoiSettings

DATED = [{"from": "2026-01-01", "value": 40}, {"from": date(2026, 7, 1), "value": 42.5}]


def test_a_number_holds_on_every_day() -> None:
    assert rate_on(RoiSettings(hourly_rate=40).hourly_rate, date(1970, 1, 1)) == 40.0
    assert rate_on(RoiSettings().hourly_rate, date(1970, 1, 1)) is None


def test_a_rate_holds_from_its_first_day_on_and_none_before() -> None:
    rates = RoiSettings(hourly_rate=DATED).hourly_rate
    days = {
        date(2025, 12, 31): None,
        date(2026, 1, 1): 40.0,
        date(2026, 6, 30): 40.0,
        date(2026, 7, 1): 42.5,
        date(2030, 1, 1): 42.5,
    }
    assert {day: rate_on(rates, day) for day in days} == days


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([DATED[1], DATED[0]], "2026-01-01 stands after 2026-07-01; put the oldest first"),
        ([DATED[0], DATED[1], DATED[1]], "two rates begin on 2026-07-01"),
        ([], "expected a number, or a list of {from: 2026-01-31, value: 1.5}, not an empty list"),
        ([{"since": "2026-01-01", "value": 1}], "expected {from: 2026-01-31, value: 1.5}, not {'since'"),
        ([{"from": "2026-02-30", "value": 1}], "from: expected a day such as 2026-01-31, not '2026-02-30'"),
        ([{"from": datetime(2026, 1, 1, 12), "value": 1}], "from: expected a day such as 2026-01-31"),
        ([{"from": "2026-01-01", "value": -1}], "expected a number not below 0, not -1"),
        ("dear", "expected a number not below 0, not 'dear'"),
        (True, "expected a number not below 0, not True"),
        (float("nan"), "expected a number not below 0, not nan"),
        (float("inf"), "expected a number not below 0, not inf"),
    ],
)
def test_what_cannot_be_meant_is_told(given: Any, said: str) -> None:
    with pytest.raises(ValueError, match="hourly_rate") as caught:
        RoiSettings(hourly_rate=given)
    assert said in str(caught.value)


def test_a_share_is_at_most_one() -> None:
    with pytest.raises(ValueError, match=r"expected a number from 0 to 1, not 1\.5"):
        RoiSettings(baseline_escalation_rate=[{"from": "2026-01-01", "value": 1.5}])


def test_they_come_from_the_file_and_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "retuned.yaml"
    file.write_text(
        "roi:\n  token_cost: 0.5\n  hourly_rate:\n    - {from: 2026-01-01, value: 40}\n"
        "    - {from: 2026-07-01, value: 42.5}\n"
    )
    loaded = load(file)
    assert loaded.roi == RoiSettings(token_cost=0.5, hourly_rate=DATED)
    assert Settings.model_validate_json(loaded.model_dump_json()) == loaded
    monkeypatch.setenv("RETUNED__ROI__TOKEN_COST", '[{"from": "2026-01-01", "value": 0.25}]')
    assert rate_on(load(file).roi.token_cost, date(2026, 3, 2)) == 0.25
    monkeypatch.setenv("RETUNED__ROI__TOKEN_COST", "-1")
    with pytest.raises(ConfigurationError, match=r"^RETUNED__ROI__TOKEN_COST: roi\.token_cost: expected a number"):
        load(file)
