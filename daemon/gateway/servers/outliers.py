"""Which model servers are passed over because they keep failing: outlier detection as Envoy has it, without a clock.

A server that fails `FAILURES` times in a row is ejected: for `BASE_SECONDS` the first time, for one `BASE_SECONDS` more
each further time, `LONGEST_SECONDS` at most. Then one request tries it: an answer brings it back, a failure ejects it
again. Each `BASE_SECONDS` that it works makes up for one ejection.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

FAILURES = 3
BASE_SECONDS, LONGEST_SECONDS = 10.0, 300.0
MOST_EJECTED = 2 / 3
"""Share of the servers that may be ejected at a time: the others would have to carry all of the traffic."""
BUSY_SECONDS = 1.0
"""How long a server that answers 429 is asked after the others."""


class Outcome(Enum):
    """What a request shows about the server that it was sent to."""

    WORKS = "works"
    FAILS = "fails"
    BUSY = "busy"
    UNKNOWN = "unknown"  # the app went away before


class State(Enum):
    """Whether a server is asked."""

    IN_SERVICE = "in service"
    EJECTED = "ejected"
    ON_TRIAL = "on trial"


def outcome_of(status: int) -> Outcome:
    """What the status of an answer shows; an error that the app has made is an answer."""
    if status in (500, 502, 503, 504):
        return Outcome.FAILS
    return Outcome.BUSY if status == 429 else Outcome.WORKS


@dataclass
class Health:
    """What the requests sent to a server have shown. Times are in seconds, of any clock that does not go back.

    Attributes:
        failures: in a row.
        ejections: those that it has not made up for.
        ejected_until: None: it is in service.
        returned_at: when it came back into service.
        trying: whether the request that tries it is under way.
        busy_until: it answered 429.
    """

    failures: int = 0
    ejections: int = 0
    ejected_until: float | None = None
    returned_at: float = 0.0
    trying: bool = False
    busy_until: float = 0.0

    def state(self, now: float) -> State:
        """Whether it is asked."""
        if self.ejected_until is None:
            return State.IN_SERVICE
        return State.EJECTED if now < self.ejected_until else State.ON_TRIAL

    def rank(self, now: float) -> int:
        """0: it is asked; 1: after those; 2: only where no other server has the model."""
        state = self.state(now)
        if state is State.EJECTED or (state is State.ON_TRIAL and self.trying):
            return 2
        return 1 if now < self.busy_until else 0

    def is_out(self, now: float) -> bool:
        """Whether it is passed over; unknown, and so not, once nothing has been asked for long after the ejection."""
        return self.ejected_until is not None and now < self.ejected_until + LONGEST_SECONDS

    def begin(self, now: float) -> bool:
        """A request is sent to it; returns whether it is the one that tries it."""
        if self.state(now) is not State.ON_TRIAL or self.trying:
            return False
        self.trying = True
        return True

    def end(self, outcome: Outcome, now: float, others: Iterable["Health"], *, trial: bool) -> bool:
        """A request has ended; returns whether the server is ejected by that.

        Args:
            others: the other servers, of which enough must be left.
            trial: what `begin` returned.
        """
        if trial:
            self.trying = False
        state = self.state(now)
        if outcome is Outcome.BUSY:
            self.busy_until = now + BUSY_SECONDS
        elif outcome is Outcome.WORKS and state is not State.EJECTED:
            self.failures = 0
            if state is State.ON_TRIAL:
                self.ejected_until, self.returned_at = None, now
        elif outcome is Outcome.FAILS and state is not State.EJECTED:
            self.failures += 1
            if state is State.ON_TRIAL or (self.failures >= FAILURES and _may_eject(others)):
                made_up = 0 if state is State.ON_TRIAL else int((now - self.returned_at) // BASE_SECONDS)
                self.ejections = max(0, self.ejections - made_up) + 1
                self.ejected_until = now + min(BASE_SECONDS * self.ejections, LONGEST_SECONDS)
                self.failures = 0
                return True
        return False


def _may_eject(others: Iterable[Health]) -> bool:
    out = [one.ejected_until is not None for one in others]
    return sum(out) + 1 <= MOST_EJECTED * (len(out) + 1)
