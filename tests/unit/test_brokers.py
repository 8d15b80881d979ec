"""What the tests mend of kafka-python, whose warnings would fail a test that comes later."""

import socket

from kafka.net.transport import KafkaTCPTransport

from fixtures.kafka import brokers


def test_a_client_that_is_closed_with_something_to_send_closes_its_socket() -> None:
    loop = brokers.NetworkSelector()
    here, there = socket.socketpair()
    here.setblocking(False)
    transport = KafkaTCPTransport(loop, here)
    transport.write(b"x" * 10_000_000)  # more than the other side takes
    loop.poll(timeout_ms=10)
    transport.close()
    assert here.fileno() >= 0
    loop.close()
    assert here.fileno() == -1
    there.close()
