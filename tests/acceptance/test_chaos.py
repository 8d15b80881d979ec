"""A short form of `make chaos`: the same faults, with few events. All of them take minutes."""

from pathlib import Path

import pytest
from brokers import Broker
from faults import FAULTS, no_small_disk, small_disk, survive


@pytest.mark.parametrize(
    ("name", "events", "seconds"),
    [
        ("second daemon in the group", 1_000, 1.0),
        ("disk full", 3_000, 3.0),
        ("batch broken on the broker", 2_000, 2.0),
        ("transactions, daemon killed", 2_000, 2.0),
    ],
)
def test_nothing_is_lost_or_doubled(
    apache_kafka: Broker, tmp_path: Path, name: str, events: int, seconds: float
) -> None:
    fault = FAULTS[name]
    if fault.place is small_disk and (reason := no_small_disk()):
        pytest.skip(reason)
    row = survive(fault, apache_kafka, tmp_path, events, seconds)
    assert row["times"] > 0
    assert (row["lost"], row["doubled"]) == (0, 0)
    assert row["stored"] + row["told"] == row["sent"] == events
