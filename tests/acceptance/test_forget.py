"""`retuned forget` as an operator uses it: on a daemon that reads from a broker, is killed and starts again."""

import json
import signal
from contextlib import closing
from pathlib import Path

import pytest

from fixtures.daemon.daemons import App, running, settings_for
from fixtures.feedback.erasing import traces
from fixtures.kafka.brokers import Broker
from retuned.daemon.cli.main import main

SECRET = "qzxmagentaotter"


@pytest.mark.full
def test_a_user_is_erased_while_events_flow_and_the_daemon_is_killed(
    tansu: Broker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "key.pem"
    assert main(["audit", "keygen", str(key)]) == 0
    settings = settings_for(tansu, tmp_path, policy={"enabled": False}, audit={"key_file": str(key)})
    data = tmp_path / "data"
    with closing(App(settings)) as app, running(tmp_path, settings) as daemon:
        config = ["--config", str(daemon.config)]
        mine = [app.answered(f"My {SECRET} is late.", "Oh.", user_id="ann@shop") for _ in range(20)]
        others = [app.answered("Where is my parcel?", "On its way.", user_id=f"u{n}") for n in range(200)]
        app.said(mine[0], "correction", f"The {SECRET} comes tomorrow.")
        app.flush()
        daemon.until(
            lambda: (daemon.metric("retuned_events_total", topic=app.kafka["interactions_topic"]) or 0) >= 220, "events"
        )
        daemon.until(
            lambda: (daemon.metric("retuned_events_total", topic=app.kafka["feedback_topic"]) or 0) >= 1, "feedback"
        )
        capsys.readouterr()

        assert main(["forget", "--user", "ann@shop", "--json", *config]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["tables"]["interactions"] == 20
        assert list(traces(data, SECRET)) == [SECRET]

        id = daemon.post("/api/v1/erasures", user_id="ann@shop").raise_for_status().json()["id"]
        daemon.stop(signal.SIGKILL)
        daemon.start()
        daemon.until(lambda: daemon.get(f"/api/v1/erasures/{id}").json()["state"] == "done", "erasure")
        assert traces(data, SECRET, *mine) == {}
        assert "ann@shop" not in daemon.log.read_text()

        more = [app.answered("And mine?", "Too.", user_id="bob") for _ in range(50)]
        receipt = tmp_path / "receipt.json"
        assert main(["forget", "--user", "bob", "--yes", "--receipt", str(receipt), *config]) == 0
        app.said(mine[1], "correction", f"Late: {SECRET}.")
        app.flush()
        daemon.until(lambda: (daemon.metric("retuned_events_erased_total") or 0) >= 1, "late feedback")
        assert daemon.stop() == 0
        assert traces(data, SECRET, *mine) == {}
    capsys.readouterr()
    assert main(["audit", "verify-receipt", str(receipt), "--key", f"{key}.pub"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert written["rows"].get("interactions", 0) <= len(more)
    assert written["erasure"] != id
    assert main(["export", "interactions", "-o", str(tmp_path / "left.jsonl"), *config]) == 0
    left = {json.loads(line)["id"] for line in (tmp_path / "left.jsonl").read_text().splitlines()}
    assert set(others) <= left
    assert not left & set(mine)
