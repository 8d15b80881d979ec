"""What answers took, as Prometheus gets it."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics import exposition, parser

from fixtures.kafka.ingestion import Rig, feedback, interaction, settings_for
from retuned.consumers.kafka.memory import MemoryLog
from retuned.consumers.traffic import IDLE, MOST_RESTS, MOST_SERIES, Traffic
from retuned.consumers.warehouse import judgements
from retuned.consumers.warehouse.connection import Warehouse
from retuned.monitors.metrics import Metrics

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
        "id": "one",
        "workload": "support",
        "model": "base",
        "latency_seconds": None,
        "time_to_first_token_seconds": None,
        "input_tokens": None,
        "output_tokens": None,
    }
    schema = pa.schema(
        [
            ("id", pa.string()),
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
    assert text.count('kind="input"') == MOST_SERIES + MOST_RESTS + 1
    assert value(registry, tokens, "other", "other", kind="input") == 501 - MOST_SERIES - MOST_RESTS
    # One that was there before is still counted, and one that is gone makes room.
    later = NOW + IDLE + timedelta(seconds=1)
    traffic.add(batch({"input_tokens": 1}), later)
    traffic.add(batch({"model": "support@2", "input_tokens": 5}), later)
    assert value(registry, tokens, kind="input") == 2
    assert value(registry, tokens, model="support@2", kind="input") == 5
    assert generate_latest(registry).decode().count('kind="input"') == 2


def test_a_new_model_counts_for_its_workload_where_all_series_are_taken(
    traffic: Traffic, registry: CollectorRegistry
) -> None:
    traffic.add(batch(*({"workload": f"w{n}", "input_tokens": 1} for n in range(MOST_SERIES))), NOW)
    for model in ("support@2", "support@3"):
        traffic.add(batch({"workload": "w0", "model": model, "input_tokens": 5}), NOW)
    assert value(registry, "retuned_interaction_tokens_total", "w0", "other", kind="input") == 10
    assert value(registry, "retuned_interactions_total", "other", "other") is None


def exemplars(registry: CollectorRegistry, name: str) -> dict[tuple[str, ...], tuple[str, float, float]]:
    """By the values of a series' labels, the exemplar that is exposed: id, value and Unix time."""
    text = exposition.generate_latest(registry).decode()
    return {
        tuple(sample.labels.values()): (sample.exemplar.labels["interaction_id"], sample.exemplar.value, at)
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and sample.exemplar and (at := float(sample.exemplar.timestamp or 0))
    }


def test_a_bucket_names_the_latest_answer_that_fell_into_it(traffic: Traffic, registry: CollectorRegistry) -> None:
    other = {"model": "support@1"}
    traffic.add(
        batch(
            {"id": "quick", "latency_seconds": 0.2},
            {"id": "slow", "latency_seconds": 50.0},
            {"id": "of another", "latency_seconds": 0.2, **other},
            {"id": "quick too", "latency_seconds": 0.22},
            {"id": "told nothing"},
            {"id": "no time", "latency_seconds": float("nan")},
        ),
        NOW,
    )
    later = NOW + timedelta(minutes=1)
    quicker = {"id": "quicker", "latency_seconds": 0.15, "time_to_first_token_seconds": 0.01}
    traffic.add(batch({"id": "before it", "latency_seconds": 0.2}, quicker), later)
    first, second = (at.replace(tzinfo=UTC).timestamp() for at in (NOW, later))
    assert exemplars(registry, f"{LATENCY}_bucket") == {
        ("0.25", "base", "support"): ("quicker", 0.15, second),
        ("+Inf", "base", "support"): ("slow", 50.0, first),
        ("0.25", "support@1", "support"): ("of another", 0.2, first),
    }
    assert list(exemplars(registry, "retuned_interaction_time_to_first_token_seconds_bucket").values()) == [
        ("quicker", 0.01, second)
    ]


@pytest.mark.parametrize("name", ["x" * 115, "a\0b", "a\nb", "a\u2028b", 'a"b', "a\\b", "a?b", "a#b", "a%20b"])
def test_an_id_that_no_exemplar_can_hold_has_none(traffic: Traffic, registry: CollectorRegistry, name: str) -> None:
    traffic.add(batch({"id": name, "latency_seconds": 0.2}, {"id": "x" * 114, "latency_seconds": 2.0}), NOW)
    assert [found[0] for found in exemplars(registry, f"{LATENCY}_bucket").values()] == ["x" * 114]
    assert value(registry, f"{LATENCY}_count") == 2


def test_feedback_names_the_last_answer_that_somebody_complains_of(tmp_path: Path, warehouse: Warehouse) -> None:
    rig = Rig(settings_for(tmp_path), warehouse, MemoryLog())
    long = "y" * 200
    for name in ("good", "bad", "worse", "sound", "invented", "mended", long):
        rig.send(interaction(name))
    rig.send(
        feedback("f1", "bad", value=False),
        feedback("f3", "good"),
        feedback("f4", "sound", name="hallucination", value=False),
        feedback("f5", "invented", name="hallucination", value=True, source="judge"),
        feedback("f6", "mended", name="correction", value="false", source="expert"),
        feedback("f8", long, value=False, source="judge"),
    )
    rig.drain()
    rig.send(feedback("f2", "worse", value=False))
    rig.drain()
    judgements.follow(warehouse)
    registry = CollectorRegistry()
    workload, totals = "support.refunds", judgements.feedback_totals(warehouse, "support.refunds")
    found = judgements.latest_complaints(warehouse, workload, NOW)
    Metrics(registry).feedback_totals(workload, totals, found)
    assert {
        labels[0::2]: exemplar[0] for labels, exemplar in exemplars(registry, "retuned_feedback_total").items()
    } == {
        ("helpful", workload): "worse",
        ("hallucination", workload): "invented",
        ("correction", workload): "mended",
    }
    (latest,) = {at for name, at in found.values() if name == "worse"}
    assert judgements.latest_complaints(warehouse, workload, latest).keys() == {("helpful", "user")}
