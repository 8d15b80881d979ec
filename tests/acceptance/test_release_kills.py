"""A short form of `make chaos RELEASES=200`: a daemon that is killed at each step of a release."""

from contextlib import ExitStack
from pathlib import Path

import pytest
from brokers import Broker
from model_servers import serving
from release_kills import ZERO, Releases
from served import Adapters

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.timeout(300)
def test_whatever_a_kill_in_a_release_leaves_is_made_good(apache_kafka: Broker, tmp_path: Path) -> None:
    adapters = Adapters(tmp_path / "adapters")
    with ExitStack() as stack:
        urls = [stack.enter_context(serving(adapters.base)).url for _ in range(2)]
        (tmp_path / "daemon").mkdir()
        row = Releases(stack, apache_kafka, tmp_path / "daemon", urls, adapters).through(5)
    assert row["times"] == 5
    assert {name: row[name] for name in ZERO} == dict.fromkeys(ZERO, 0)
