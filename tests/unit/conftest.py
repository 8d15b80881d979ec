"""No unit test waits for a broker that is not there."""

import pytest

from retuned.consumers.kafka import connection


@pytest.fixture(autouse=True)
def _no_broker_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CONNECT_SECONDS", 0.2)
