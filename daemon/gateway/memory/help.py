"""What the memory does for a request."""

from dataclasses import dataclass
from typing import Any, Literal

from retuned.retrain.memory.index import Found


@dataclass(frozen=True)
class Help:
    """What the memory does for a request.

    Attributes:
        found: the entry for the question.
        is_held_out: whether the request is in the held-out share, and is not helped.
        mode: context: a message is added; answer: the gateway answers.
        message: the message that is added; None: none.
        place: where it is added among the messages.
    """

    found: Found
    is_held_out: bool
    mode: Literal["context", "answer"] = "context"
    message: dict[str, Any] | None = None
    place: int = 0

    @property
    def entries(self) -> list[str]:
        """The ids of the entries that help the request."""
        return [] if self.is_held_out else [self.found.entry.id]

    def as_attribute(self) -> dict[str, Any]:
        """Returns the attribute `memory` of the interaction."""
        return {
            "entries": self.entries,
            "held_out": [self.found.entry.id] if self.is_held_out else [],
            "mode": self.mode,
            "match": self.found.match,
            "similarity": round(self.found.similarity, 4),
        }
