"""A judge for tests: a real HTTP server that answers chat completions as it is told."""

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from http_doubles import Quiet, listening

from retuned.monitors.hallucination.opinions import Detection, Opinions
from retuned.monitors.hallucination.scorer import Answer
from retuned.retrain.settings import EvaluateSettings

Reply = Callable[[str], Any]


@dataclass
class Server:
    """Chat completions. `reply` gets what the judge is shown and returns its text, a status, or None for nonsense.

    `accepts`: whether it takes a request with such a body; else the status is 400.
    `odds`: of yes against no, in nats; they are given as log-probabilities where the request asks for these.
    """

    reply: Reply = lambda _: "Verdict: tie"
    accepts: Callable[[dict[str, Any]], bool] = lambda _: True
    odds: Callable[[str], float] | None = None
    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)

    def settings(self, **more: Any) -> EvaluateSettings:
        return EvaluateSettings(judge_url=self.url, judge_model="wise", judge_timeout_seconds=10, **more)


@contextmanager
def serving() -> Iterator[Server]:
    """A server on a free port of this machine."""
    state, over = Server(), threading.Event()

    class Handler(Quiet):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.asked.append({"path": self.path, **body})
            state.keys.append(self.headers["Authorization"])
            said = state.reply(body["messages"][-1]["content"]) if state.accepts(body) else 400
            if said == "hang":
                over.wait(30)
                return
            status = said if isinstance(said, int) else 200
            choice: dict[str, Any] = {"message": {"role": "assistant", "content": said}}
            if state.odds is not None and body.get("logprobs"):
                odds = state.odds(body["messages"][-1]["content"])
                both = [{"token": "Yes", "logprob": odds - 9}, {"token": " no", "logprob": -9}]
                token = both[0] if said == "yes" else both[1]
                choice["logprobs"] = {"content": [{**token, "top_logprobs": both}]}
            answer = {"choices": [choice]} if said is not None else []
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

    with listening(Handler) as address:
        state.url = f"{address}/v1/"
        try:
            yield state
        finally:
            over.set()


def answers(shown: str) -> tuple[str, str]:
    """Answers A and B of what a judge is shown."""
    one, other = (shown.split(f"<answer {name}>\n")[1].split("\n</answer")[0] for name in "AB")
    return one, other


def prefers(good: str) -> Reply:
    """An honest judge: of two answers the one that holds a text, wherever it stands."""

    def reply(shown: str) -> str:
        one, other = (good in answer for answer in answers(shown))
        return "They differ.\n**Verdict: " + ("tie" if one == other else "A" if one else "B") + "**"

    return reply


def asked(opinions: Opinions, answers: Sequence[Answer], now: datetime) -> list[Detection]:
    """What the opinions that are due find in answers of the workload `support`."""
    return [found for opinion in opinions.due("support", now) for found in opinions.ask(opinion, answers)]
