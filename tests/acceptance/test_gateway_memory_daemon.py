"""A correction by an expert, from the answer that it corrects to the next one: a daemon and a gateway as processes."""

import json
import time
from datetime import UTC, datetime
from pathlib import Path

from fixtures.daemon.daemons import running, settings_for
from fixtures.daemon.gateways import KEY, Gateway, gateway, model_server
from fixtures.kafka.brokers import Broker, until
from retuned.daemon.web import principals

QUESTION = "How long do I have to return shoes?"
ANSWER, NEWER = "60 days.", "90 days."


def helped(made: Gateway) -> bool:
    """Asks the question; returns whether an entry of the memory helped the answer."""
    return "X-Retuned-Memory" in made.chat(QUESTION).headers


def test_an_experts_correction_is_the_context_of_the_next_same_question_within_seconds(
    apache_kafka: Broker, tmp_path: Path
) -> None:
    (tmp_path / "keys").write_text(f"{KEY}\n")
    experts, now = tmp_path / "experts.yaml", datetime.now(UTC)
    anna = principals.add(experts, "anna", "labeller", None, now)
    own = principals.add(tmp_path / "principals.yaml", "gateway", "gateway", None, now)
    (tmp_path / "token").write_text(own)
    operator = principals.add(tmp_path / "principals.yaml", "olga", "operator", None, now)
    settings = settings_for(
        apache_kafka,
        tmp_path,
        memory={"mode": "context", "holdout_share": 0.0},
        http={"principals_file": str(tmp_path / "principals.yaml"), "client_token": operator},
    )
    apache_kafka.create_topics(*(settings["kafka"][f"{kind}_topic"] for kind in ("interactions", "feedback")))
    with running(tmp_path, settings) as daemon, model_server("base") as server:
        sections = {
            "feedback_keys_file": str(tmp_path / "keys"),
            "principals_file": str(experts),
            "daemon_url": daemon.url,
            "daemon_token_file": str(tmp_path / "token"),
            "workloads": ["support"],
        }
        bearer = {"Authorization": f"Bearer {operator}"}
        with gateway(tmp_path, apache_kafka, server, kafka=settings["kafka"], gateway=sections) as made:

            def correct(token: str, answer: str) -> float:
                """Gives an expert's correction; returns when."""
                body = {"token": token, "name": "correction", "value": answer, "source": "expert"}
                made.post("/v1/feedback", body, Authorization=f"Bearer {anna}").raise_for_status()
                return time.monotonic()

            wrong = made.chat(QUESTION)
            assert "X-Retuned-Memory" not in wrong.headers
            until(lambda: daemon.get("/api/v1/status", bearer).json()["ingestion"]["interactions"] == 1, 60)
            began = correct(wrong.headers["X-Retuned-Feedback-Token"], ANSWER)
            until(lambda: helped(made), 60)
            seconds = time.monotonic() - began
            print(f"seconds from the correction to its use: {seconds:.2f}")
            messages = json.loads(server.requests[-1][2])["messages"]
            assert messages[0]["content"].endswith(f"> {ANSWER}")

            again = made.chat(QUESTION)
            began = correct(again.headers["X-Retuned-Feedback-Token"], NEWER)

            def newer() -> bool:
                made.chat(QUESTION)
                return bool(json.loads(server.requests[-1][2])["messages"][0]["content"].endswith(f"> {NEWER}"))

            until(newer, 60)
            print(f"seconds from the second correction to its use: {time.monotonic() - began:.2f}")
