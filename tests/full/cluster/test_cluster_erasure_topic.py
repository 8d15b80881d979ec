"""A message on the erasure topic of a cluster, and a leader that is killed while it erases."""

import json
import signal
import time
from pathlib import Path

import pytest
from kafka import KafkaProducer

from fixtures.kafka.brokers import Broker

pytest.importorskip("obstore", reason="the extra cluster is not installed")

from fixtures.cluster.servers import run_postgres
from fixtures.faults.leaders import Daemons, leads, no_disks
from fixtures.feedback.erasing import traces
from fixtures.kafka.brokers import until
from fixtures.kafka.ingestion import interaction
from fixtures.models.served import WORKLOAD, Adapters

pytestmark = pytest.mark.skipif(no_disks() is not None, reason=str(no_disks()))

SECRET = "qzx7marbledhyena"


@pytest.mark.timeout(600)
def test_it_is_carried_out_once_although_the_leader_is_killed(tansu: Broker, tmp_path: Path) -> None:
    with run_postgres() as postgres:
        topic = {"erasure_topic": "erase-in-a-cluster"}
        cluster = Daemons(tmp_path, tansu, postgres, Adapters(tmp_path / "adapters"), kafka=topic)
        try:
            cluster.start()
            leader, other = cluster.leader_and_standby()
            producer = KafkaProducer(bootstrap_servers=tansu.bootstrap_servers)
            turns = [{"role": "user", "content": f"My {SECRET} is broken."}]
            for number in range(200):
                event = interaction(f"ann-{number}", workload=WORKLOAD, user_id="ann@shop", messages=turns)
                producer.send(cluster.kafka["interactions_topic"], json.dumps(event).encode())
            producer.flush()
            for daemon in cluster.daemons:
                daemon.until(lambda daemon=daemon: daemon.status()["ingestion"]["interactions"] == 201, "Ann's events")
            producer.send(cluster.kafka["erasure_topic"], b'{"user_id": "ann@shop", "reason": "by mail"}')
            producer.close()
            until(lambda: [one for one in cluster.rows("erasures") if one["state"] != "requested"], 60)
            leader.stop(signal.SIGKILL)
            (at_kill,) = cluster.rows("erasures")
            began = time.monotonic()
            other.until(lambda: leads(other), "the other one to lead")
            (done,) = other.until(
                lambda: [one for one in cluster.rows("erasures") if one["state"] == "done"], "its end", 120
            )
            print(f"killed in the state {at_kill['state']}; erased {time.monotonic() - began:.1f} s after the kill")
            assert (done["requested_by"], done["reason"]) == (f"kafka {cluster.kafka['erasure_topic']}", "by mail")
            leader.launch()
            leader.until(lambda: SECRET not in str(traces(cluster.disk(leader), SECRET)), "its own files", 120)
            assert len(cluster.rows("erasures")) == 1
            for daemon in cluster.daemons:
                assert daemon.status()["ingestion"]["interactions"] == 1
            for folder in (cluster.disk(other), cluster.folder / "objects"):
                assert traces(folder, SECRET) == {}
        finally:
            cluster.end()
