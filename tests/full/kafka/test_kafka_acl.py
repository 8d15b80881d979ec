"""A broker on which the daemon may not write to a topic, until somebody gives it the right."""

from datetime import timedelta
from pathlib import Path

import pytest
from kafka import KafkaConsumer
from kafka.admin import ACL, ACLOperation, ACLPermissionType, KafkaAdminClient, ResourcePattern, ResourceType

from fixtures.feedback.teaching import START
from fixtures.kafka.brokers import no_apache_kafka, run_apache_kafka, until
from retuned.consumers.errors import BrokerRefused
from retuned.consumers.kafka.publisher import KafkaPublisher
from retuned.consumers.settings import KafkaSettings
from retuned.consumers.warehouse.connection import Warehouse
from retuned.retrain import versions
from retuned.retrain.release.rollout import Rollout
from retuned.retrain.settings import ModelsSettings, Settings

EVENTS, LETTERS = "retuned.model-events", "retuned.dead-letters"


@pytest.mark.skipif(no_apache_kafka() is not None, reason=str(no_apache_kafka()))
def test_a_promotion_that_may_not_be_announced_is_done_and_is_announced_once_it_may(
    warehouse: Warehouse, tmp_path: Path
) -> None:
    settings = Settings(models=ModelsSettings(directory=tmp_path / "models"))
    row = {"path": "/x", "base_model": "b", "base_hash": "h", "dataset_version": "d", "run_id": "r", "manifest": "{}"}
    warehouse.insert("models", version="aaaaaaaa", workload="support", created_at=START, **row)
    with run_apache_kafka(tmp_path / "kafka", authorizer=True) as broker:
        broker.create_topics(EVENTS, LETTERS)
        admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
        denied = ACL(
            "User:*", "*", ACLOperation.WRITE, ACLPermissionType.DENY, ResourcePattern(ResourceType.TOPIC, EVENTS)
        )
        admin.create_acls([denied])
        publisher = KafkaPublisher(KafkaSettings(bootstrap_servers=broker.bootstrap_servers))
        rollout = Rollout(warehouse, settings, publisher, EVENTS)
        assert rollout.promote("support", "aaaaaaaa", "operator", "by hand", START) == "aaaaaaaa"
        assert versions.aliases(warehouse, "support")["champion"] == "aaaaaaaa"
        with pytest.raises(BrokerRefused, match=EVENTS):
            rollout.follow_up("support")
        assert rollout.rollback("support", "watch", "it is worse", START + timedelta(minutes=1)) is None
        assert "champion" not in {link.name for link in (tmp_path / "models" / "support").iterdir()}
        publisher.publish(LETTERS, "k", {"other": "topics are open"})
        admin.delete_acls([denied])

        def announced() -> bool:
            try:
                return rollout.follow_up("support") == 2
            except BrokerRefused:  # the broker has not heard of it yet
                return False

        until(announced)
        consumer = KafkaConsumer(
            EVENTS, bootstrap_servers=broker.bootstrap_servers, auto_offset_reset="earliest", consumer_timeout_ms=5_000
        )
        assert b'"version":"aaaaaaaa"' in next(consumer).value
        assert b'"event":"rolled_back"' in next(consumer).value
        consumer.close()
        publisher.close()
        admin.close()
