"""The audit of real daemons of a cluster: commands and answers at either one form one chain, which both have."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from fixtures.kafka.brokers import Broker

pytest.importorskip("obstore", reason="the extra cluster is not installed")

from fixtures.cluster.servers import Postgres
from fixtures.faults.leaders import Daemons, no_disks
from fixtures.models.served import WORKLOAD, Adapters
from retuned.consumers.warehouse.checkpoints import check

pytestmark = pytest.mark.skipif(no_disks() is not None, reason=str(no_disks()))


@pytest.mark.timeout(400)
def test_what_either_daemon_does_is_in_one_chain(tansu: Broker, own_postgres: Postgres, tmp_path: Path) -> None:
    cluster = Daemons(tmp_path, tansu, own_postgres, Adapters(tmp_path / "adapters"))
    try:
        cluster.start()
        leader, standby = cluster.leader_and_standby()

        def rows(daemon: Any) -> list[dict[str, Any]]:
            answer = httpx.get(f"{daemon.url}/api/v1/audit/log", timeout=20)
            return [json.loads(line) for line in answer.text.splitlines()]

        def asked(path: str, daemon: Any) -> str:
            answer = httpx.get(f"{daemon.url}/api/v1/{path}", timeout=20)
            assert answer.status_code == 200, answer.text
            return answer.headers["X-Request-Id"]

        ids = [asked("exports/interactions", standby)]
        paused = standby.post(f"/api/v1/workloads/{WORKLOAD}/pause")
        assert paused.status_code == 200, paused.text
        ids.append(asked("answers", leader))

        def found(daemon: Any) -> bool:
            return set(ids) | {None} <= {row["request_id"] for row in rows(daemon)}

        for daemon in cluster.daemons:
            daemon.until(lambda daemon=daemon: found(daemon), "the rows of both daemons")
        assert rows(leader) == rows(standby)
        assert check(rows(leader)).problems == []
        actions = [row["action"] for row in rows(leader)]
        assert [actions.count(one) for one in ("export", "pause", "answers")] == [1, 1, 1]
    finally:
        cluster.end()
