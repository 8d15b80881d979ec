"""Ejects model servers that keep failing: outlier detection like Envoy's, in pure functions of the time.

A server that fails `FAILURES` times in a row is ejected: for `BASE_SECONDS` the first time, and `BASE_SECONDS` longer
each further time, up to `LONGEST_SECONDS`. Then one trial request decides: an answer returns the server to service, a
failure ejects it again. Each `BASE_SECONDS` of service cancels one ejection.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

FAILURES = 3
BASE_SECONDS, LONGEST_SECONDS = 10.0, 300.0
MOST_EJECTED = 2 / 3
"""The largest share of servers that may be ejected, as the others carry all traffic."""
BUSY_SECONDS = 1.0
"""The time for which a server that answered 429 is tried after the others."""


class Outcome(Enum):
    """The result of a request, as evidence of the server's health."""

    WORKS = "works"
    FAILS = "fails"
    BUSY = "busy"
    UNKNOWN = "unknown"  # the app disconnected first


class State(Enum):
    """Whether a server receives requests."""

    IN_SERVICE = "in service"
    EJECTED = "ejected"
    ON_TRIAL = "on trial"


def outcome_of(status: int) -> Outcome:
    """Returns the outcome of an answer's status; after an error of the app (4xx), the server works."""
    if status in (500, 502, 503, 504, 529):  # 529: Anthropic's API is overloaded
        return Outcome.FAILS
    return Outcome.BUSY if status == 429 else Outcome.WORKS


@dataclass
class Health:
    """The health of a server, from the outcomes of its requests. Times are seconds of a monotonic clock.

    Attributes:
        failures: the number of consecutive failures.
        ejections: the number of ejections that no time in service has cancelled.
        ejected_until: None: the server is in service.
        returned_at: when the server returned to service.
        trying: whether the trial request is in progress.
        busy_until: the time until which other servers come first, after an answer 429.
    """

    failures: int = 0
    ejections: int = 0
    ejected_until: float | None = None
    returned_at: float = 0.0
    trying: bool = False
    busy_until: float = 0.0

    def state(self, now: float) -> State:
        """Returns whether the server receives requests."""
        if self.ejected_until is None:
            return State.IN_SERVICE
        return State.EJECTED if now < self.ejected_until else State.ON_TRIAL

    def rank(self, now: float) -> int:
        """Returns the server's rank: 0 first, 1 after those, 2 only if no other server has the model."""
        state = self.state(now)
        if state is State.EJECTED or (state is State.ON_TRIAL and self.trying):
            return 2
        return 1 if now < self.busy_until else 0

    def is_out(self, now: float) -> bool:
        """Whether the server counts as ejected; not if the ejection is long over without a trial request."""
        return self.ejected_until is not None and now < self.ejected_until + LONGEST_SECONDS

    def begin(self, now: float) -> bool:
        """Notes that a request is sent. Returns whether it is the trial request."""
        if self.state(now) is not State.ON_TRIAL or self.trying:
            return False
        self.trying = True
        return True

    def end(self, outcome: Outcome, now: float, others: Iterable["Health"], *, trial: bool) -> bool:
        """Notes the end of a request. Returns whether it ejects the server.

        Args:
            others: the other servers, of which enough must stay in service.
            trial: the return value of `begin`.
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
                cancelled = 0 if state is State.ON_TRIAL else int((now - self.returned_at) // BASE_SECONDS)
                self.ejections = max(0, self.ejections - cancelled) + 1
                self.ejected_until = now + min(BASE_SECONDS * self.ejections, LONGEST_SECONDS)
                self.failures = 0
                return True
        return False


def _may_eject(others: Iterable[Health]) -> bool:
    ejected = [health.ejected_until is not None for health in others]
    return sum(ejected) + 1 <= MOST_EJECTED * (len(ejected) + 1)
