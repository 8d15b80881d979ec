"""A double of the daemon as gateways see it: its routes, and the feed of its memory of corrections."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from gateways import route
from http_doubles import Quiet, listening

from retuned.retrain.data.question import question

CHAMPION = route("support", ("champion", "1", 1.0))


def question_key(messages: list[dict[str, Any]], **beside: Any) -> bytes:
    """The key of what a conversation asks."""
    asked = question(messages, **beside)
    assert asked
    return asked.key


@dataclass
class MemoryDouble:
    """The daemon's side of the feed.

    Attributes:
        modes: by workload.
        routed: the routes.
        entries: in the order of their changes.
        asked: the sequences after which pages were requested.
    """

    url: str = ""
    epoch: str = "epoch-1"
    modes: dict[str, dict[str, Any]] = field(default_factory=dict)
    routed: dict[str, Any] = field(default_factory=lambda: {"support": CHAMPION})
    entries: list[dict[str, Any]] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)
    is_away: bool = False

    def use(self, mode: str, workload: str = "support", share: float = 0.0, **more: Any) -> None:
        """Sets the mode of a workload."""
        self.modes[workload] = {
            "mode": mode, "holdout_share": share, "salt": "salt", "similar": True, "error_rate": 0.02, **more,
        }  # fmt: skip

    def add(self, question: str, answer: str, id: str = "e-1", **more: Any) -> None:
        """Adds an entry, or changes the one with its id."""
        messages = more.pop("messages", [{"role": "user", "content": question}])
        self._change(
            {
                "id": id,
                "workload": "support",
                "key": question_key(messages, tools=more.pop("tools", None)).hex(),
                "question": question,
                "answer": answer,
                "since": "2026-11-28T09:00:00",
                "threshold": None,
                "state": "active",
                **more,
            }
        )

    def end(self, id: str, state: str = "removed") -> None:
        """Takes an entry out of force."""
        (entry,) = (one for one in self.entries if one["id"] == id)
        self._change(entry | {"state": state, "question": "", "answer": ""})

    def _change(self, entry: dict[str, Any]) -> None:
        sequence = max((one["sequence"] for one in self.entries), default=0) + 1
        others = [one for one in self.entries if one["id"] != entry["id"]]
        self.entries = [*others, entry | {"sequence": sequence}]

    def answer(self, path: str) -> Any:
        """Returns the answer to a request."""
        if path == "/api/v1/routes":
            is_used = any(mode["mode"] != "off" for mode in self.modes.values())
            return {"workloads": self.routed, "withheld": {}, "memory": is_used}
        asked = parse_qs(urlsplit(path).query)
        after, limit = int(asked["after"][0]), int(asked["limit"][0])
        self.asked.append(after)
        later = [entry for entry in self.entries if entry["sequence"] > after]
        last = later[:limit][-1]["sequence"] if later else after
        found = {"entries": later[:limit], "sequence": last, "more": len(later) > limit}
        return {"epoch": self.epoch, "modes": self.modes, **found}


@contextmanager
def memory_double() -> Iterator[MemoryDouble]:
    """A double on a free port, ended whatever happens."""
    double = MemoryDouble()

    class Handler(Quiet):
        def do_GET(self) -> None:
            body = json.dumps(double.answer(self.path), ensure_ascii=False).encode()
            self.send_response(503 if double.is_away else 200)
            self.end_headers()
            self.wfile.write(body)

    with listening(Handler) as double.url:
        yield double
