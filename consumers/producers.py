"""Which producers send messages that are no events, and when so many do that ingestion must stop.

A producer is a workload on a topic; messages that name none (feedback, and what cannot be decoded) are one producer of
their topic. One that sends mostly dead letters is set aside: it is shown and alerted, and its dead letters no longer
stop anybody else. What it sends is treated as before: events are stored, the rest are dead letters.

What was counted is read back from the warehouse at each start. Where it says that ingestion had to stop, the next
batches are on trial: one that is mostly dead letters is not stored, so that starts again and again throw nothing away.
An operator may have ingestion go on: then nothing stops it until everything that waits has been read.
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
MOST_BATCHES = 100_000
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
    catching_up: bool = False
    """An operator had ingestion go on, and what waited then is not read yet."""
    on_trial: bool = False
    """Ingestion had to stop before this start."""

    def __post_init__(self) -> None:
        self._share, self._size = self.settings.dead_letter_share_limit, self.settings.dead_letter_window
        self._all = _Window(self._size)

    @classmethod
    def known(cls, settings: IngestSettings, warehouse: Warehouse) -> "Producers":
        """With what was stored within a day before the last message: who is quiet is no worse for it."""
        reach = warehouse.row(QUERIES["reach_producers"])
        assert reach is not None
        made = cls(settings, catching_up=reach["catching_up"])
        if reach["since"] is not None:
            of = {"since": reach["since"], "forgiven_at": reach["forgiven_at"]}
            limits = {"window": settings.dead_letter_window, "most": MOST_BATCHES}
            for row in reversed(warehouse.rows(QUERIES["known_producers"], of | limits)):
                producer, now = (row["topic"], row["workload"]), row["received_at"]
                made._note(producer, row["events"], row["dead"], row["example"], now)
                made.states[producer].proven |= row["proven"]
                made._all.add(row["events"], row["dead"])
                made._forget()
        made.on_trial = made._too_many() is not None and not made.catching_up
        return made

    def add(self, events: Counter[Producer], dead: Iterable[DeadLetter], now: datetime) -> list[SetAside]:
        """Count a batch: its events by producer, and its dead letters. Returns the producers newly set aside.

        Raises:
            TooManyDeadLetters: more than the configured share of all messages are no events, and either more than that
                share of the producers that ever sent events are set aside, or there is no such producer. Not while on
                trial or catching up.
        """
        letters: dict[Producer, list[DeadLetter]] = {}
        for letter in dead:
            letters.setdefault((letter.topic, letter.workload), []).append(letter)
        new = []
        for producer in events.keys() | letters.keys():
            found = letters.get(producer, [])
            example = f"{found[-1].key}, {found[-1].reason}, {found[-1].detail}" if found else None
            if self._note(producer, events[producer], len(found), example, now):
                new.append(self._described(producer, self.states[producer]))
        self._all.add(events.total(), sum(map(len, letters.values())))
        self._forget()
        last = self._too_many()
        if last is None:
            self.on_trial = False
        elif not self.on_trial and not self.catching_up:
            raise TooManyDeadLetters(
                f"{round(self._all.dead)} of the last {self._all.messages} messages are no events "
                f"(ingest.dead_letter_share_limit {self._share:g}), and too few producers still send events; they are "
                "in dead_letters; correct the producers and start again (what they have sent already is taken in by: "
                f"retuned dead-letters resume); the last one: {last.example}"
            )
        return new

    def try_batch(self, good: int, dead: int, example: str) -> None:
        """Look at a batch before it is stored: how many events and dead letters it has, and what is wrong with one.

        Raises:
            TooManyDeadLetters: ingestion had to stop before this start, and it is no better.
        """
        if self.on_trial and dead > self._share * (good + dead):
            raise TooManyDeadLetters(
                f"ingestion stopped because most messages were no events, and {dead} of the next {good + dead} are "
                "none either; nothing of them was stored, they wait in Kafka; correct the producers, then have what "
                "waits taken in as it is, dead letters and all, by: retuned dead-letters resume; the last one: "
                f"{example}"
            )

    def forgive(self) -> None:
        """Everything that waited was read: count dead letters from now on."""
        self.catching_up = False
        self._all = _Window(self._size)
        for state in self.states.values():
            state.window, state.set_aside_at = _Window(self._size), None

    def set_aside(self, now: datetime | None = None) -> list[SetAside]:
        """The producers that are set aside now, the latest first; without a time, however long they have been quiet."""
        found = [
            self._described(producer, state)
            for producer, state in list(self.states.items())
            if state.set_aside_at is not None
            and state.dead_at is not None
            and (now is None or now - state.dead_at < QUIET)
        ]
        return sorted(found, key=lambda one: one.last_at, reverse=True)

    def _note(self, producer: Producer, good: int, dead: int, example: str | None, now: datetime) -> bool:
        """Count what one sent. Returns whether it is newly set aside."""
        state = self.states.setdefault(producer, _State(_Window(self._size)))
        state.window.add(good, dead)
        state.proven = state.proven or good > 0
        state.seen_at = now
        if dead:
            state.dead_at, state.example = now, example or ""
        if not state.window.is_broken(self._share):
            state.set_aside_at = None
        elif state.set_aside_at is None:
            state.set_aside_at = now
            return True
        return False

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

    def _too_many(self) -> _State | None:
        """The producer of the last dead letter, where there are too many to go on; else None."""
        proven = [state for state in self.states.values() if state.proven]
        broken = [state for state in proven if state.set_aside_at is not None]
        if not self._all.is_broken(self._share) or (proven and len(broken) <= self._share * len(proven)):
            return None
        return max(self.states.values(), key=lambda state: (state.dead_at is not None, state.dead_at or state.seen_at))
