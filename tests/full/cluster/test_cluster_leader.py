"""A short form of the chaos of leaders: two daemons, each fault once, while versions are promoted."""

import signal
from pathlib import Path

import pytest

from fixtures.kafka.brokers import Broker

pytest.importorskip("obstore", reason="the extra cluster is not installed")

from fixtures.cluster.servers import Postgres
from fixtures.daemon.daemons import App
from fixtures.faults.leaders import FAULTS, ZERO, Daemons, leads, no_disks, survive
from fixtures.feedback.teaching import GOODS, questions
from fixtures.models.served import WORKLOAD, Adapters

pytestmark = pytest.mark.skipif(no_disks() is not None, reason=str(no_disks()))


@pytest.mark.timeout(600)
def test_nothing_is_lost_or_done_twice(tansu: Broker, own_postgres: Postgres, tmp_path: Path) -> None:
    row = survive(list(FAULTS), tansu, own_postgres, Adapters(tmp_path / "adapters"), tmp_path, len(FAULTS))
    assert {name: row[name] for name in ZERO} == dict.fromkeys(ZERO, 0)
    assert all(row[name] == 1 for name in FAULTS)


@pytest.mark.timeout(900)
def test_a_training_goes_on_at_the_daemon_that_leads_next(
    tansu: Broker, own_postgres: Postgres, tmp_path: Path
) -> None:
    """From its dataset, which the other daemon made."""
    train = {"threads": 1, "epochs": 3, "dtype": "float32", "checkpoint_steps": 5}
    evaluate = {"maximum_examples": 2, "max_new_tokens": 2, "general_examples": 1}
    sections = {"train": train, "evaluate": evaluate, "gate": {"fold_rows": 0}}
    cluster = Daemons(tmp_path, tansu, own_postgres, Adapters(tmp_path / "adapters"), **sections)
    try:
        cluster.start()
        app = App(cluster.settings)
        for question, right in questions(GOODS, slice(5)):
            app.said(app.answered(question, "I cannot say.", workload=WORKLOAD), "correction", right, "expert")
        app.flush()
        app.close()
        leader, other = cluster.leader_and_standby()
        for daemon in cluster.daemons:
            daemon.until(
                lambda daemon=daemon: daemon.status()["ingestion"]["feedback"] == app.sent["feedback"], "the feedback"
            )
        assert other.post(f"/api/v1/workloads/{WORKLOAD}/retrain").status_code == 200
        (run,) = leader.until(
            lambda: [one for one in cluster.rows("runs") if one["dataset_version"]], "a run with its dataset"
        )
        leader.stop(signal.SIGKILL)
        other.until(lambda: leads(other), "the other one to lead")
        (taken,) = other.until(
            lambda: [one for one in other.status()["under_way"] if one.get("stage") in ("train", "evaluate")],
            "its training",
        )
        assert taken["run_id"] == run["id"]
        (goes_on,) = cluster.rows("runs")
        assert (goes_on["state"], goes_on["dataset_version"]) == ("running", run["dataset_version"])
        dataset = cluster.disk(other) / "models" / WORKLOAD / "datasets" / run["dataset_version"]
        assert dataset.is_dir(), "the other one made it"
        (ended,) = other.until(lambda: [one for one in cluster.rows("runs") if one["finished_at"]], "its end", 600)
        assert (ended["id"], ended["dataset_version"]) == (run["id"], run["dataset_version"])
        assert ended["state"] in ("succeeded", "refused"), ended
        leader.start()
        leader.until(lambda: leader.workload(WORKLOAD)["runs"][0]["state"] == ended["state"], "the same")
        for daemon in cluster.daemons:
            place = cluster.disk(daemon) / "models" / WORKLOAD / ended["version"] / "adapter_model.safetensors"
            daemon.until(place.is_file, "its version")
    finally:
        cluster.end()
