"""A version that is asked in shadow, by a daemon and a gateway as users start them."""

import random
from pathlib import Path
from typing import Any

import pytest

from fixtures.daemon.daemons import running
from fixtures.daemon.gateways import KEY, gateway, model_server
from fixtures.daemon.rollouts import begun
from fixtures.kafka.brokers import Broker, until

ROLLOUT = {"steps": [0.05, 1.0], "shadow": 1.0, "minimum_seconds": 1.0, "minimum_answers": 60}
LABELS = ("refund", "delivery")
ASKED = 60


def labelled(other: float) -> Any:
    """A model server whose v2 gives another answer than v1 to such a share of the questions."""
    rng = random.Random(1)

    def answer(handler: Any, asked: dict[str, Any]) -> None:
        content = LABELS[asked["model"].endswith("v2") and rng.random() < other]
        choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 9, "completion_tokens": 1}
        handler.json(200, {"id": "c1", "model": asked["model"], "choices": [choice], "usage": usage})

    return answer


@pytest.mark.full
@pytest.mark.parametrize("other", [0.0, 0.6], ids=["as good", "worse"])
def test_what_is_asked_in_shadow_is_judged_and_nobody_sees_it(other: float, tansu: Broker, tmp_path: Path) -> None:
    settings = begun(tmp_path, tansu, ROLLOUT, metric={"name": "label", "labels": LABELS})
    (tmp_path / "keys").write_text(f"{KEY}\n")
    with running(tmp_path, settings) as daemon, model_server("base", "support@v1", "support@v2") as server:
        server.answer = labelled(other)
        own = {"feedback_keys_file": str(tmp_path / "keys"), "daemon_url": daemon.url}
        with gateway(tmp_path, tansu, server, kafka=settings["kafka"], gateway=own) as made:
            until(lambda: made.metric("daemon_up"))
            for number in range(ASKED):
                answer = made.chat(f"question {number}", **{"X-Retuned-Conversation": f"c-{number}"})
                assert (answer.status_code, answer.headers["X-Retuned-Model"]) == (200, "support@v1")
                token = answer.headers["X-Retuned-Feedback-Token"]
                made.post("/v1/feedback", {"token": token, "name": "helpful", "value": True}).raise_for_status()
            daemon.until(lambda: (daemon.workload().get("rollout") or {"share": 1})["share"], "the end of the shadow")
            workload = daemon.workload()

        def stored() -> tuple[int, int]:
            counts = daemon.status()["ingestion"]
            return counts["interactions"], counts["feedback"]

        daemon.until(lambda: stored() >= (ASKED, ASKED), "the rest of the events")  # the verdict may come before
        assert stored() == (ASKED, ASKED)
        assert daemon.status()["ingestion"]["dead_letters"] == 0
        assert {row["model"] for row in workload["quality"]} <= {"*", "support@v1"}
        change = workload["promotions"][0]
        if other:
            assert (change["event"], workload["champion"]) == ("canary_rolled_back", "v1")
            assert change["reason"].startswith("bad by scorers: ")
        else:
            assert (change["event"], change["share"]) == ("canary", 0.05)
            assert change["reason"].startswith("not shown to be worse by more than 5 points; bad by scorers: 0% of ")
