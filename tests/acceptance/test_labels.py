"""Requests for labels as an expert's tool sees them: a topic, a command, and an answer that comes back as feedback."""

import json
from contextlib import closing
from pathlib import Path

import pytest
from kafka import KafkaConsumer

from fixtures.daemon.daemons import App, running, settings_for
from fixtures.kafka.brokers import Broker
from fixtures.models.tiny import tiny_llama
from retuned.daemon.cli.main import main


def test_an_expert_is_asked_over_kafka_and_answers(
    tansu: Broker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_for(
        tansu,
        tmp_path,
        models={"base": str(tiny_llama(tmp_path / "base")), "directory": str(tmp_path / "models")},
        policy={"enabled": False},
        labels={"file": str(tmp_path / "requests.jsonl")},
    )
    settings["schedule"]["labels_seconds"] = 0.5
    with closing(App(settings)) as app, running(tmp_path, settings) as daemon:
        answered = app.answered("May I return a tent? I am jo@example.org", "Certainly.")
        app.said(answered, "helpful", False)
        app.flush()
        daemon.until(lambda: daemon.metric("retuned_label_requests_open", workload="support") == 1, "request")

        kafka = settings["kafka"]
        consumer = KafkaConsumer(
            kafka["label_requests_topic"],
            bootstrap_servers=kafka["bootstrap_servers"],
            auto_offset_reset="earliest",
            consumer_timeout_ms=20_000,
        )
        with closing(consumer):
            message = json.loads(next(consumer).value)
        assert message["interaction_id"] == answered
        assert message["question"] == "May I return a tent? I am <EMAIL_1>"
        assert json.loads((tmp_path / "requests.jsonl").read_text()) == message
        daemon.described("/api/v1/labels", "labels")
        assert main(["labels", "--json", "--config", str(daemon.config)]) == 0
        assert json.loads(capsys.readouterr().out) == [message]

        app.said(answered, "correction", "Within 30 days.", "expert")
        app.flush()
        daemon.until(lambda: daemon.metric("retuned_label_requests_answered_total", workload="support") == 1, "answer")
        assert daemon.metric("retuned_label_requests_open", workload="support") == 0
        assert daemon.workload()["labels"] == {"open": 0, "answered": 1}
        assert daemon.stop() == 0
