"""Pages of the daemon's feed of the memory."""

from datetime import UTC, datetime
from typing import Annotated, Literal

import msgspec

from retuned.retrain.data.question import Rules, Wording
from retuned.retrain.memory.index import Entry

ACTIVE = "active"


class Mode(msgspec.Struct, frozen=True):
    """How the memory helps a workload.

    Attributes:
        salt: of the assignment to the held-out share.
        max_prompt_bytes: of the longest prompt that is looked up.
        ignores_case, ignores_end, harmless_instructions: what makes no difference in questions (`question.Rules`).
        seal_key: of redacted instructions, in hexadecimal.
    """

    mode: Literal["context", "answer", "off"]
    holdout_share: float = 0.0
    salt: str = ""
    similar: bool = False
    max_prompt_bytes: int = 64 * 2**10
    ignores_case: bool = False
    ignores_end: bool = False
    harmless_instructions: tuple[str, ...] = ()
    seal_key: str = ""

    @property
    def rules(self) -> Rules:
        """What makes no difference in questions."""
        return Rules(Wording(self.ignores_case, self.ignores_end), self.harmless_instructions)


class Change(msgspec.Struct, frozen=True):
    """A new or changed entry.

    Attributes:
        state: any other than `active`: the entry is not used.
        key: in hexadecimal.
    """

    id: str
    workload: str
    sequence: int
    state: str
    key: Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{32})?$")] = ""
    question: str = ""
    answer: str = ""
    since: datetime | None = None
    threshold: float | None = None

    def entry(self) -> Entry | None:
        """Returns the entry; None: it is not used."""
        if self.state != ACTIVE or self.since is None:
            return None
        since = self.since.astimezone(UTC).replace(tzinfo=None) if self.since.tzinfo else self.since
        return Entry(self.id, bytes.fromhex(self.key), self.question, self.answer, since, self.threshold)


class Page(msgspec.Struct, frozen=True):
    """A part of the feed, in the order of changes.

    Attributes:
        epoch: sequences of another epoch cannot be compared.
        sequence: of the last change; the next page begins after it.
        more: whether the next page is ready.
        modes: by workload.
    """

    epoch: str
    entries: list[Change]
    sequence: int
    more: bool
    modes: dict[str, Mode]


decode = msgspec.json.Decoder(Page).decode
encode = msgspec.json.encode
