"""What answers took, as Prometheus gets it."""

from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from retuned.consumers.traffic import IDLE, MOST_SERIES, Traffic

NOW = datetime(2026, 11, 24, 12)
LATENCY = "retuned_interaction_latency_seconds"


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def traffic(registry: CollectorRegistry) -> Traffic:
    return Traffic(registry)


def batch(*rows: dict[str, Any]) -> pa.Table:
    ordinary = {
        "workload": "support",
        "model": "base",
        "latency_seconds": None,
        "time_to_first_token_seconds": None,
        "input_tokens": None,
        "output_tokens": None,
    }
    schema = pa.schema(
        [
            ("workload", pa.string()),
            ("model", pa.string()),
            ("latency_seconds", pa.float64()),
            ("time_to_first_token_seconds", pa.float64()),
            ("input_tokens", pa.int64()),
            ("output_tokens", pa.int64()),
        ]
    )
    return pa.Table.from_pylist([ordinary | row for row in rows], schema=schema)


def value(registry: CollectorRegistry, name: str, workload: str = "support", model: str = "base", **more: str) -> Any:
    return registry.get_sample_value(name, {"workload": workload, "model_name": model, **more})


def test_latencies_fall_into_their_buckets(traffic: Traffic, registry: CollectorRegistry) -> None:
    taken = (0.1, 0.11, 1.0, 40.0, None, float("nan"), -1.0)
    traffic.add(batch(*({"latency_seconds": seconds} for seconds in taken)), NOW)
    traffic.add(batch({"latency_seconds": 0.3}), NOW)
    found = {
        edge: value(registry, f"{LATENCY}_bucket", le=edge) for edge in ("0.1", "0.25", "0.5", "1.0", "32.0", "+Inf")
    }
    assert found == {"0.1": 1, "0.25": 2, "0.5": 3, "1.0": 4, "32.0": 4, "+Inf": 5}
    assert value(registry, f"{LATENCY}_count") == 5
    assert value(registry, f"{LATENCY}_sum") == pytest.approx(41.51)
    assert value(registry, "retuned_interaction_time_to_first_token_seconds_count") is None


def test_models_and_kinds_of_tokens_are_told_apart(traffic: Traffic, registry: CollectorRegistry) -> None:
    traffic.add(
        batch(
            {"model": "support@1", "input_tokens": 100, "output_tokens": 7, "time_to_first_token_seconds": 0.06},
            {"input_tokens": 30},
            {"model": "support@1", "input_tokens": 1},
        ),
        NOW,
    )
    tokens = "retuned_interaction_tokens_total"
    assert value(registry, tokens, model="support@1", kind="input") == 101
    assert value(registry, tokens, model="support@1", kind="output") == 7
    assert value(registry, tokens, kind="input") == 30
    first = "retuned_interaction_time_to_first_token_seconds_bucket"
    assert value(registry, first, model="support@1", le="0.05") == 0
    assert value(registry, first, model="support@1", le="0.1") == 1


def test_names_from_producers_cannot_make_series_without_end(traffic: Traffic, registry: CollectorRegistry) -> None:
    traffic.add(batch({"input_tokens": 1}), NOW)
    traffic.add(batch(*({"workload": f"w{n}", "input_tokens": 1} for n in range(500))), NOW)
    tokens = "retuned_interaction_tokens_total"
    text = generate_latest(registry).decode()
    assert text.count('kind="input"') == MOST_SERIES + 1
    assert value(registry, tokens, "other", "other", kind="input") == 501 - MOST_SERIES
    # One that was there before is still counted, and one that is gone makes room.
    later = NOW + IDLE + timedelta(seconds=1)
    traffic.add(batch({"input_tokens": 1}), later)
    traffic.add(batch({"model": "support@2", "input_tokens": 5}), later)
    assert value(registry, tokens, kind="input") == 2
    assert value(registry, tokens, model="support@2", kind="input") == 5
    assert generate_latest(registry).decode().count('kind="input"') == MOST_SERIES + 1
