"""A publisher that threads share: what fails for one of them is no failure of the others."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from kafka import errors as kafka_errors

from fixtures.kafka.brokers import until
from retuned.consumers.errors import BrokerRefused, BrokerUnavailable
from retuned.consumers.kafka import publisher
from retuned.consumers.kafka.publisher import KafkaPublisher
from retuned.consumers.settings import KafkaSettings


class Producer:
    """As kafka-python's: topic `refused` may not be written to, topic `slow` answers when it is allowed to."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.waiting, self.answer = threading.Event(), threading.Event()
        self.closed = False

    def send(self, topic: str, **_: Any) -> "Producer":
        if self.closed:
            raise kafka_errors.IllegalStateError("KafkaProducer already closed!")
        self.sent.append(topic)
        return self

    def get(self, timeout: float) -> None:
        if self.sent[-1] == "refused":
            raise kafka_errors.TopicAuthorizationFailedError("refused")
        if self.sent[-1] == "slow":
            self.waiting.set()
            assert self.answer.wait(timeout)
            if self.closed:
                raise kafka_errors.IllegalStateError("KafkaProducer already closed!")

    def close(self, timeout: float | None = None) -> None:  # noqa: ARG002
        self.closed = True


@pytest.fixture
def producers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Producer]]:
    made: list[Producer] = []

    def connect(*_: Any) -> Producer:
        made.append(Producer())
        return made[-1]

    monkeypatch.setattr(publisher, "connect", connect)
    yield made
    for producer in made:
        producer.answer.set()


def test_a_failure_closes_no_producer_that_another_thread_uses(producers: list[Producer]) -> None:
    publisher, errors = KafkaPublisher(KafkaSettings()), []

    def announce() -> None:
        try:
            publisher.publish("slow", "k", {})
        except Exception as error:  # noqa: BLE001  (a thread's error would be lost)
            errors.append(error)

    thread = threading.Thread(target=announce)
    thread.start()
    until(lambda: producers)
    first = producers[0]
    assert first.waiting.wait(10)
    with pytest.raises(BrokerRefused):
        publisher.publish("refused", "k", {})
    publisher.publish("fine", "k", {})  # by another producer: the first may answer with that failure for ever
    assert [producer.sent for producer in producers] == [["slow", "refused"], ["fine"]]
    first.sent.append("slow")
    first.answer.set()
    thread.join(10)
    assert errors == []
    assert [producer.closed for producer in producers] == [True, False]
    publisher.close()
    publisher.close()
    assert all(producer.closed for producer in producers)


def test_a_producer_that_is_closed_is_worth_another_try(producers: list[Producer]) -> None:
    publisher = KafkaPublisher(KafkaSettings())
    publisher.publish("fine", "k", {})
    producers[0].close()
    with pytest.raises(BrokerUnavailable):
        publisher.publish("fine", "k", {})
    publisher.publish("fine", "k", {})
