"""Which producers send messages that are no events, and when so many do that ingestion must stop.

A producer is a workload on a topic; messages that name none (feedback, and what cannot be decoded) are one producer of
their topic. One that sends mostly dead letters is set aside: it is shown and alerted, and its dead letters no longer
stop anybody else. What it sends is treated as before: events are stored, the rest are dead letters.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from retuned.consumers.errors import TooManyDeadLetters
from retuned.consumers.settings import IngestSettings
from retuned.consumers.warehouse.connection import Warehouse, named_queries
from retuned.consumers.warehouse.dead_letters import DeadLetter

QUERIES = named_queries("retuned.consumers.warehouse", "ingest.sql")

MOST_PRODUCERS = 200
"""Names come from producers, who may send a new one each time: beyond so many, the one that is worth least goes."""
KNOWN = timedelta(days=1)
QUIET = timedelta(hours=1)
"""One that is set aside and has sent no dead letter for so long is not shown any more."""

Producer = tuple[str, str | None]


@dataclass(frozen=True)
class SetAside:
    """A producer most of whose messages are dead letters.

    Attributes:
        dead, messages: among its last messages.
        example: the last dead letter: where it lies, the reason, the detail.
    """

    topic: str
    workload: str | None
    dead: int
    messages: int
    since: datetime
    last_at: datetime
    example: str

    def __str__(self) -> str:
        who = f"workload {self.workload}" if self.workload else "messages without a workload"
        return (
            f"{self.topic}, {who}: {self.dead} of the last {self.messages} are no events; the last one: {self.example}"
        )


@dataclass
class _Window:
    """About the last `size` messages, without their order."""

    size: int
    good: float = 0.0
    dead: float = 0.0

    def add(self, good: int, dead: int) -> None:
        before, now = self.good + self.dead, good + dead
        kept = min(1.0, max(self.size - now, 0) / before) if before else 0.0
        taken = min(1.0, self.size / now) if now else 0.0
        self.good, self.dead = self.good * kept + good * taken, self.dead * kept + dead * taken

    @property
    def messages(self) -> int:
        return round(self.good + self.dead)

    def is_broken(self, share: float) -> bool:
        """Whether the window is full and more than this share of it dead letters."""
        return self.messages >= self.size and self.dead > share * (self.good + self.dead)


@dataclass
class _State:
    window: _Window
    proven: bool = False
    """Whether it has sent an event, ever."""
    seen_at: datetime = datetime.min  # noqa: DTZ901  (no zone)
    set_aside_at: datetime | None = None
    dead_at: datetime | None = None
    example: str = ""


@dataclass
class Producers:
    """Counts batches. For one thread; `set_aside` may be read by others."""

    settings: IngestSettings
    states: dict[Producer, _State] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._share, self._size = self.settings.dead_letter_share_limit, self.settings.dead_letter_window
        self._all = _Window(self._size)

    @classmethod
    def known(cls, settings: IngestSettings, warehouse: Warehouse, now: datetime) -> "Producers":
        """With those whose events of the last day are in the warehouse: one that is quiet is no worse for it."""
        made = cls(settings)
        for row in warehouse.rows(QUERIES["known_producers"], {"since": now - KNOWN, "most": MOST_PRODUCERS}):
            made._count((row["topic"], row["workload"]), min(row["events"], settings.dead_letter_window), 0, now)
        return made

    def add(self, events: Counter[Producer], dead: Iterable[DeadLetter], now: datetime) -> list[SetAside]:
        """Count a batch: its events by producer, and its dead letters. Returns the producers newly set aside.

        Raises:
            TooManyDeadLetters: more than the configured share of all messages are no events, and either more than that
                share of the producers that ever sent events are set aside, or there is no such producer.
        """
        letters: dict[Producer, list[DeadLetter]] = {}
        for letter in dead:
            letters.setdefault((letter.topic, letter.workload), []).append(letter)
        new = []
        for producer in events.keys() | letters.keys():
            state = self._count(producer, events[producer], len(letters.get(producer, ())), now)
            if found := letters.get(producer):
                state.dead_at, last = now, found[-1]
                state.example = f"{last.key}, {last.reason}, {last.detail}"
            if not state.window.is_broken(self._share):
                state.set_aside_at = None
            elif state.set_aside_at is None:
                state.set_aside_at = now
                new.append(self._described(producer, state))
        self._all.add(events.total(), sum(map(len, letters.values())))
        self._forget()
        self._check()
        return new

    def set_aside(self, now: datetime) -> list[SetAside]:
        """The producers that are set aside now, the latest first."""
        found = [
            self._described(producer, state)
            for producer, state in list(self.states.items())
            if state.set_aside_at is not None and state.dead_at is not None and now - state.dead_at < QUIET
        ]
        return sorted(found, key=lambda one: one.last_at, reverse=True)

    def _count(self, producer: Producer, good: int, dead: int, now: datetime) -> _State:
        state = self.states.setdefault(producer, _State(_Window(self._size)))
        state.window.add(good, dead)
        state.proven = state.proven or good > 0
        state.seen_at = now
        return state

    def _described(self, producer: Producer, state: _State) -> SetAside:
        assert state.set_aside_at is not None
        return SetAside(
            *producer,
            dead=round(state.window.dead),
            messages=state.window.messages,
            since=state.set_aside_at,
            last_at=state.dead_at or state.set_aside_at,
            example=state.example,
        )

    def _forget(self) -> None:
        while len(self.states) > MOST_PRODUCERS:
            del self.states[min(self.states, key=lambda one: (self.states[one].proven, self.states[one].seen_at))]

    def _check(self) -> None:
        proven = [state for state in self.states.values() if state.proven]
        broken = [state for state in proven if state.set_aside_at is not None]
        if not self._all.is_broken(self._share) or (proven and len(broken) <= self._share * len(proven)):
            return
        last = max(self.states.values(), key=lambda state: (state.dead_at is not None, state.dead_at or state.seen_at))
        raise TooManyDeadLetters(
            f"{round(self._all.dead)} of the last {self._all.messages} messages are no events "
            f"(ingest.dead_letter_share_limit {self._share:g}), and too few producers still send events; they are in "
            f"dead_letters; correct the producers and start again; the last one: {last.example}"
        )
