"""Windows by count where time does not fill them, and those that a person accepted."""

import json
import random
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from fixtures.feedback.traffic import MINUTE, START, answered, interactions, prompts, store
from retuned.consumers.warehouse.connection import Warehouse
from retuned.monitors.drift.check import write_features
from retuned.monitors.drift.windows import accept, windows
from retuned.monitors.settings import Settings, WindowsSettings
from retuned.monitors.windows import DAY, Window, Windows

SETTINGS = WindowsSettings(minimum_rows=50)
A_DAY = 5


def small_traffic(warehouse: Warehouse, days: int, start: datetime = START, offset: int = 0) -> datetime:
    """Five questions a day; returns its end."""
    rng = random.Random(1)
    interactions(warehouse, prompts(A_DAY * days, rng), rng, start=start, step=DAY / A_DAY, offset=offset)
    return start + days * DAY


def found(warehouse: Warehouse, now: datetime) -> Windows:
    windows_now = windows(warehouse, SETTINGS, "support", now)
    assert windows_now is not None
    return windows_now


def test_five_a_day_are_compared_by_count(warehouse: Warehouse) -> None:
    now = small_traffic(warehouse, 40)
    compared = found(warehouse, now)
    assert compared.missing(50) == 0
    assert compared.reference.start == START
    assert (compared.reference.conversations, compared.current.conversations) == (50, 50)
    assert compared.current == Window(now - 10 * DAY, now, 50)
    # The reference ends with its fiftieth conversation, and stays the same as time goes on.
    assert compared.reference.end == START + 49 * DAY / A_DAY + timedelta(microseconds=1)
    assert compared.standing
    assert found(warehouse, now - DAY).reference == compared.reference


def test_until_there_are_enough_for_both_the_windows_lack_some(warehouse: Warehouse) -> None:
    compared = found(warehouse, small_traffic(warehouse, 19))
    assert (compared.reference.conversations, compared.current.conversations) == (35, 5)
    assert compared.missing(50) == 60
    assert found(warehouse, START + 19 * DAY).reference.start == START


def test_a_window_that_time_fills_is_left_as_it_is(warehouse: Warehouse) -> None:
    """A week of 100 questions a day, then few: the reference stays, the current window reaches back."""
    rng = random.Random(2)
    interactions(warehouse, prompts(700, rng), rng, step=DAY / 100)
    now = small_traffic(warehouse, 12, START + 7 * DAY, 1_000)
    compared = found(warehouse, now)
    assert compared.reference == Window(START, START + 7 * DAY, 700)
    assert compared.current.start == now - 10 * DAY
    assert compared.current.conversations == 50


def test_a_rush_after_a_quiet_start_leaves_no_conversation_in_both(warehouse: Warehouse) -> None:
    begun = small_traffic(warehouse, 4)
    rng = random.Random(3)
    interactions(warehouse, prompts(500, rng), rng, start=begun, offset=1_000)
    compared = found(warehouse, begun + 500 * MINUTE)
    assert compared.missing(50) == 0
    assert compared.reference.end <= compared.current.start
    assert compared.reference.conversations == 50
    assert compared.current.conversations == 470


def test_the_accepted_window_is_the_reference_and_what_comes_after_it_is_current(warehouse: Warehouse) -> None:
    rng = random.Random(4)
    interactions(warehouse, prompts(1_500, rng), rng, step=DAY / 100)
    now = START + 10 * DAY
    accept(warehouse, "support", found(warehouse, now), "anna", "a new product")
    (row,) = warehouse.rows("SELECT * FROM drift_references")
    assert row == {
        "workload": "support", "created_at": now, "start": now - DAY, "actor": "anna", "reason": "a new product",
    }  # fmt: skip
    at_once = found(warehouse, now)
    assert at_once.reference == Window(now - DAY, now, 100)
    assert at_once.missing(50) == 50
    later = found(warehouse, now + DAY / 2)
    assert later.reference == Window(now - DAY, now, 100)
    assert later.current == Window(now, now + DAY / 2, 50)
    much_later = found(warehouse, now + 5 * DAY)
    assert much_later.reference == Window(now - DAY, now + 4 * DAY, 500)
    # What was so before it is not changed by it, and another workload's is its own.
    assert found(warehouse, now - DAY).reference.start == START
    accept(warehouse, "other", much_later, "anna", "")
    assert found(warehouse, now + DAY / 2) == later


def test_a_promotion_after_it_begins_anew(warehouse: Warehouse) -> None:
    rng = random.Random(5)
    interactions(warehouse, prompts(1_500, rng), rng, step=DAY / 100)
    now = START + 10 * DAY
    accept(warehouse, "support", found(warehouse, now), "anna", "a new product")
    warehouse.insert("aliases", workload="support", alias="champion", version="v1", created_at=now + DAY)
    assert found(warehouse, now + DAY / 2).reference.start == now - DAY
    assert found(warehouse, now + 3 * DAY).reference.start == now + DAY


@pytest.mark.parametrize("days", [0, 3])
def test_a_past_date_is_compared_as_it_was(warehouse: Warehouse, days: int) -> None:
    """Neither what came later nor the champion that came later changes it."""
    rng = random.Random(6)
    interactions(warehouse, prompts(1_000, rng), rng, step=DAY / 100)
    then = START + 9 * DAY
    before = found(warehouse, then)
    interactions(warehouse, prompts(1_000, rng), rng, start=then + days * DAY, step=DAY / 100, offset=5_000)
    warehouse.insert("aliases", workload="support", alias="champion", version="v1", created_at=then + 2 * DAY)
    assert found(warehouse, then) == before


PICTURE = {"type": "image_url", "image_url": {"url": "https://shop.example/7.png"}}


@pytest.mark.parametrize(
    "parts",
    [lambda text: [{"type": "text", "text": text}], lambda text: [{"type": "input_text", "text": text}, PICTURE]],
)
def test_the_text_of_a_prompt_is_the_same_as_a_string_and_as_parts(
    warehouse: Warehouse, tmp_path: Path, parts: Any
) -> None:
    rng = random.Random(4)
    rows = answered(prompts(60, rng), rng, step=DAY / A_DAY)
    store(warehouse, "interactions", rows)
    for row in rows:
        messages = json.loads(row["messages"])
        messages[-1]["content"] = parts(messages[-1]["content"])
        changed = {"workload": "parts", "id": f"parts-{row['id']}", "messages": json.dumps(messages)}
        store(warehouse, "interactions", [row | changed])
    features = []
    for workload in ("support", "parts"):
        compared = Windows(
            workload, Window(START, START + 6 * DAY, 30), Window(START + 6 * DAY, START + 12 * DAY, 30), standing=True
        )
        write_features(warehouse, Settings(), compared, START + 12 * DAY, tmp_path / workload)
        table = pq.read_table(tmp_path / workload).drop_columns(["unit"]).to_pylist()
        features.append(sorted(map(str, table)))
    assert features[0] == features[1]
    assert len(features[0]) >= 60
