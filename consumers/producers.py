"""Finds producers that mostly send dead letters, and stops ingestion if too many do.

A producer is a workload on a topic; messages without a workload (feedback, undecodable messages) are one producer of
their topic. A producer of mostly dead letters is set aside: it is shown and alerted, and its dead letters no longer
count towards a stop. Its events are still stored, its other messages are dead letters.

The counts are restored from the warehouse at each start. If ingestion had stopped, the next batches are on trial: a
batch of mostly dead letters is not stored, so repeated restarts do not turn the backlog into dead letters. An operator
can resume ingestion: then dead letters do not stop it until the backlog is read.
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
"""Producers may send a new name each time; beyond this number, the least important one is dropped."""
MOST_BATCHES = 100_000
QUIET = timedelta(hours=1)
"""A producer without dead letters for this long is no longer shown as set aside."""

Producer = tuple[str, str | None]


@dataclass(frozen=True)
class SetAside:
    """A producer that mostly sends dead letters.

    Attributes:
        dead, messages: the dead letters among its last messages, and the number of these.
        example: the place, reason and detail of the last dead letter.
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
            f"{self.topic}, {who}: {self.dead} of the last {self.messages} are not events; the last one: {self.example}"
        )


@dataclass
class _Window:
    """Approximate counts of the last `size` messages."""

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
        """Whether the window is full and has more than this share of dead letters."""
        return self.messages >= self.size and self.dead > share * (self.good + self.dead)


@dataclass
class _State:
    window: _Window
    proven: bool = False
    """Whether it has ever sent an event."""
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
    """Whether an operator resumed ingestion, and the backlog is not read yet."""
    on_trial: bool = False
    """Whether ingestion had stopped before this start."""

    def __post_init__(self) -> None:
        self._share, self._size = self.settings.dead_letter_share_limit, self.settings.dead_letter_window
        self._all = _Window(self._size)

    @classmethod
    def known(cls, settings: IngestSettings, warehouse: Warehouse) -> "Producers":
        """Restores the counts from the day before the last stored message."""
        reach = warehouse.row(QUERIES["reach_producers"])
        assert reach is not None
        producers = cls(settings, catching_up=reach["catching_up"])
        if reach["since"] is not None:
            span = {"since": reach["since"], "forgiven_at": reach["forgiven_at"]}
            limits = {"window": settings.dead_letter_window, "most": MOST_BATCHES}
            for row in reversed(warehouse.rows(QUERIES["known_producers"], span | limits)):
                producer, now = (row["topic"], row["workload"]), row["received_at"]
                producers._note(producer, row["events"], row["dead"], row["example"], now)
                producers.states[producer].proven |= row["proven"]
                producers._all.add(row["events"], row["dead"])
                producers._forget()
        producers.on_trial = producers._too_many() is not None and not producers.catching_up
        return producers

    def add(self, events: Counter[Producer], dead: Iterable[DeadLetter], now: datetime) -> list[SetAside]:
        """Counts a batch: its events by producer, and its dead letters. Returns the producers newly set aside.

        Raises:
            TooManyDeadLetters: more than the configured share of all messages are dead letters, and either more than
                that share of the producers that ever sent events are set aside, or there is no such producer. Not
                raised while on trial or catching up.
        """
        letters: dict[Producer, list[DeadLetter]] = {}
        for letter in dead:
            letters.setdefault((letter.topic, letter.workload), []).append(letter)
        new = []
        for producer in events.keys() | letters.keys():
            own = letters.get(producer, [])
            example = f"{own[-1].key}, {own[-1].reason}, {own[-1].detail}" if own else None
            if self._note(producer, events[producer], len(own), example, now):
                new.append(self._described(producer, self.states[producer]))
        self._all.add(events.total(), sum(map(len, letters.values())))
        self._forget()
        last = self._too_many()
        if last is None:
            self.on_trial = False
        elif not self.on_trial and not self.catching_up:
            raise TooManyDeadLetters(
                f"{round(self._all.dead)} of the last {self._all.messages} messages are not events "
                f"(ingest.dead_letter_share_limit {self._share:g}), and too few producers still send events; they are "
                "in dead_letters; correct the producers and restart (to store what they have already sent, run: "
                f"retuned dead-letters resume); the last one: {last.example}"
            )
        return new

    def try_batch(self, good: int, dead: int, example: str) -> None:
        """Checks the number of events and dead letters of a batch before it is stored.

        Raises:
            TooManyDeadLetters: ingestion had stopped before this start, and messages are still mostly dead letters.
        """
        if self.on_trial and dead > self._share * (good + dead):
            raise TooManyDeadLetters(
                f"ingestion stopped because most messages were not events, and {dead} of the next {good + dead} are "
                "not events either; none of them was stored, they wait in Kafka; correct the producers, then store the "
                "backlog with all its dead letters by: retuned dead-letters resume; the last one: "
                f"{example}"
            )

    def forgive(self) -> None:
        """Starts counting anew, after the backlog was read."""
        self.catching_up = False
        self._all = _Window(self._size)
        for state in self.states.values():
            state.window, state.set_aside_at = _Window(self._size), None

    def set_aside(self, now: datetime | None = None) -> list[SetAside]:
        """Returns the producers that are set aside, the latest first.

        Args:
            now: leaves out producers that have been quiet; None: all.
        """
        producers = [
            self._described(producer, state)
            for producer, state in list(self.states.items())
            if state.set_aside_at is not None
            and state.dead_at is not None
            and (now is None or now - state.dead_at < QUIET)
        ]
        return sorted(producers, key=lambda producer: producer.last_at, reverse=True)

    def _note(self, producer: Producer, good: int, dead: int, example: str | None, now: datetime) -> bool:
        """Counts messages of a producer, and returns whether it is newly set aside."""
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
            del self.states[min(self.states, key=lambda name: (self.states[name].proven, self.states[name].seen_at))]

    def _too_many(self) -> _State | None:
        """Returns the producer of the last dead letter if there are too many to continue; None: there are not."""
        proven = [state for state in self.states.values() if state.proven]
        broken = [state for state in proven if state.set_aside_at is not None]
        if not self._all.is_broken(self._share) or (proven and len(broken) <= self._share * len(proven)):
            return None
        return max(self.states.values(), key=lambda state: (state.dead_at is not None, state.dead_at or state.seen_at))
