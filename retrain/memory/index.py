"""Finds the entry for a question: the same question by its key, a related one by its vector."""

from dataclasses import dataclass
from datetime import datetime
from operator import attrgetter
from typing import TYPE_CHECKING, Literal

from retuned.consumers.privacy.placeholders import PSEUDONYM
from retuned.retrain.data.question import SCOPE_BYTES
from retuned.retrain.memory.embed import LONGEST

if TYPE_CHECKING:
    from retuned.retrain.memory.embed import Embedding

Match = Literal["same", "related"]
_since = attrgetter("since")


@dataclass(frozen=True)
class Entry:
    """An approved answer.

    Attributes:
        key: the question's (see `question.Question`).
        question: its last user message, redacted.
        since: the time of the statement, UTC without a zone.
        threshold: the least similarity of a related question; None: the entry is for the same question only.
    """

    id: str
    key: bytes
    question: str
    answer: str
    since: datetime
    threshold: float | None = None


@dataclass(frozen=True)
class Found:
    """The entry for a question.

    Attributes:
        similarity: the cosine of the two questions' vectors; 1 for the same question.
    """

    entry: Entry
    match: Match
    similarity: float


class Index:
    """The entries of a workload. For one thread."""

    def __init__(self, embedding: "Embedding | None" = None) -> None:
        """
        Args:
            embedding: None: related questions are not found.
        """
        self._entries: dict[str, Entry] = {}
        self._by_key: dict[bytes, dict[str, Entry]] = {}
        self._vectors = None
        if embedding is not None:
            from retuned.retrain.memory.vectors import Vectors

            self._vectors = Vectors(embedding)

    def __len__(self) -> int:
        """The number of entries."""
        return len(self._entries)

    def add(self, *entries: Entry) -> None:
        """Adds entries; many at once take less time. An entry replaces the one with its id. One whose answer has a
        pseudonym is left out: what it stands for is in no request."""
        self.remove(*(entry.id for entry in entries))
        entries = tuple(entry for entry in entries if not PSEUDONYM.search(entry.answer))
        for entry in entries:
            self._entries[entry.id] = entry
            self._by_key.setdefault(entry.key, {})[entry.id] = entry
        if self._vectors and (short := [entry for entry in entries if len(entry.question) <= LONGEST]):
            self._vectors.add(
                [entry.id for entry in short],
                [_scope(entry.key) for entry in short],
                [entry.question for entry in short],
            )

    def remove(self, *ids: str) -> None:
        """Removes entries; safe to repeat."""
        for id in ids:
            if entry := self._entries.pop(id, None):
                del self._by_key[entry.key][id]
                if not self._by_key[entry.key]:
                    del self._by_key[entry.key]
                if self._vectors:
                    self._vectors.remove(id)

    def find(self, key: bytes, text: str | None = None) -> Found | None:
        """Returns the entry for a question; of several for the same question, the newest.

        Among related questions, the newest entry on the subject of the nearest one counts, because it may have made
        the others outdated. The subject is what the threshold of the nearest entry covers. None if it is not certain
        that the entry answers the question.

        Args:
            text: the last user message; None: only the same question is looked for.
        """
        if same := self._by_key.get(key):
            return Found(max(same.values(), key=_since), "same", 1.0)
        if self._vectors is None or text is None or len(text) > LONGEST:
            return None
        near = self._vectors.near(_scope(key), text)
        covered = self._entries[near[0].id].threshold if near else None
        if covered is None:
            return None
        subject = [near[0], *(other for other in near[1:] if other.to_nearest >= covered)]
        entry, similarity = max(((self._entries[id], found) for id, found, _ in subject), key=lambda one: one[0].since)
        if entry.threshold is None or similarity < entry.threshold:
            return None
        return Found(entry, "related", similarity)


def _scope(key: bytes) -> int:
    return int.from_bytes(key[:SCOPE_BYTES], "big") or 1
