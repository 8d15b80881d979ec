"""Elects the leader of a cluster: one daemon at a time, and another one soon after it was killed or stopped.

Leadership is a lease. Each daemon reports to PostgreSQL twice a second. The leader keeps the lease until LEASE_SECONDS
after its last report, by PostgreSQL's clock, or until it leaves; only then can another daemon take it, under a higher
epoch. The leader measures from before it sent the report, by its own clock, and stops MARGIN_SECONDS earlier. So two
daemons never lead at once, even if one is frozen, disconnected or killed.

The epoch is checked by every change of the control tables, and sent with every external request. So a former leader
that wakes up cannot change anything, and it ends once it notices.
"""

import logging
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from retuned.consumers.cluster.control import Control
from retuned.consumers.cluster.postgres import Postgres
from retuned.consumers.errors import ConfigurationError, LeadershipLost, RetunedError, StandsBy, StoreUnavailable
from retuned.consumers.warehouse.connection import Warehouse

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
LEASE_SECONDS = 5.0
"""The lease after each report."""
SILENT_SECONDS = 5.0
MARGIN_SECONDS = 1.5
"""The leader stops this much before the end of its lease, for differences of clocks and the time of requests."""
ANSWER_SECONDS = 5
"""The timeout of PostgreSQL's connection."""


@dataclass(frozen=True)
class Member:
    """A daemon of the cluster.

    Attributes:
        seconds: the time since its last report.
        this: whether it is the current process.
    """

    name: str
    leads: bool
    seconds: float
    this: bool

    def __str__(self) -> str:
        if self.seconds > SILENT_SECONDS:
            return f"{self.name} is silent for {self.seconds:.0f} s"
        return f"{self.name} {'leads' if self.leads else 'stands by'}"


class Leadership:
    """This daemon's part in the election. `run` needs its own thread; all other methods are thread-safe.

    Attributes:
        leader_url: the URL of the leader; None: this daemon leads, or the leader is unknown.
        members: the daemons that reported within the last minute; empty while PostgreSQL does not answer.
    """

    def __init__(
        self,
        postgres: Postgres,
        control: Control,
        name: str,
        url: str,
        followed: Callable[[], int],
        on_lead: Callable[[], None],
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """Creates the part of this daemon.

        Args:
            postgres: a separate connection, so that reports never wait.
            name: of this daemon, for people.
            url: where other daemons reach this one; `*` stands for the address that PostgreSQL sees.
            followed: returns the number of the last segment in the warehouse.
            on_lead: called once when this daemon leads, with the warehouse as the former leader left it.
            on_change: called when the leader changes.
        """
        self._postgres, self._control, self._name, self._url = postgres, control, name, url
        self._followed, self._on_lead, self._on_change = followed, on_lead, on_change
        self._instance = uuid.uuid4().hex
        self._epoch: int | None = None  # of this daemon's lease
        self._until = self._led_at = 0.0
        self._answered_at = time.monotonic()
        self._begun = False
        self._problem = "store.postgres_url: PostgreSQL is not connected yet"
        self.leader_url: str | None = None
        self.members: list[Member] = []

    @property
    def leads(self) -> bool:
        """Whether this daemon leads, so that no other one can."""
        return self._begun and time.monotonic() < self._until

    @property
    def problem(self) -> str:
        """Why PostgreSQL does not answer; empty: it answers."""
        silent = time.monotonic() - self._answered_at
        if not self._problem and silent > LEASE_SECONDS:
            return f"store.postgres_url: the database has not answered for {silent:.0f} s"
        return self._problem

    def check(self) -> int:
        """Returns the epoch for a change outside of the warehouse; call it before each such change.

        Raises:
            StandsBy: this daemon does not lead, or may not lead any more.
        """
        epoch = self._epoch
        if epoch is None or not self._begun:
            raise StandsBy(f"this daemon stands by and changes nothing: {self._control.leader}")
        if not self.leads:
            raise StandsBy(
                f"store.postgres_url: no answer for {LEASE_SECONDS - MARGIN_SECONDS:g} s: another daemon may lead by "
                "now, so this one waits"
            )
        return epoch

    def run(self, stop: threading.Event) -> None:
        """Stands by, and leads when no other daemon does, until `stop` is set.

        Raises:
            LeadershipLost: another daemon leads instead.
            RetunedError: the database rejects a request, or the warehouse cannot be written.
        """
        while not stop.is_set():
            try:
                self._look(stop)
                if self._problem:
                    log.info("store: PostgreSQL answers")
                self._problem = ""
            except StoreUnavailable as error:
                self.note(error)
            stop.wait(LOOK_SECONDS)

    def note(self, error: StoreUnavailable) -> None:
        """Records that PostgreSQL does not answer."""
        if not self._problem:
            log.warning("%s; trying again until it answers", error)
        self._problem, self.members = str(error), []

    def close(self) -> None:
        """Leaves, so that another daemon can lead at once."""
        self._until = 0.0
        with suppress(RetunedError):
            if not self.problem:
                self._postgres.rows("leave", {"instance": self._instance})
        self._postgres.close()

    def _look(self, stop: threading.Event) -> None:
        """Reports, renews or takes the lease, and starts to lead."""
        sent = self._report()
        self.members = members(self._postgres, self._instance)
        if self._epoch is None:
            self._follow()
            sent = time.monotonic()
            # A daemon that lacks segments leaves the lease to others.
            if self._lacks() or not self._lead():
                return
        self._until = sent + LEASE_SECONDS - MARGIN_SECONDS
        if not self._begun:
            self._begin(stop)

    def _report(self) -> float:
        """Reports that this daemon runs, and returns the time of sending."""
        sent = time.monotonic()
        [(epoch, leader)] = self._postgres.rows(
            "report", {"instance": self._instance, "name": self._name, "url": self._url}
        )
        self._answered_at = time.monotonic()
        if self._epoch is not None and (epoch, leader) != (self._epoch, self._instance):
            self._note_leader()
            raise LeadershipLost(
                f"another daemon leads the cluster by now ({self._control.leader}): this one has not reported for too "
                "long; restart it to stand by"
            )
        return sent

    def _lead(self) -> bool:
        [(self._epoch,)] = self._postgres.rows("lead", {"instance": self._instance, "seconds": LEASE_SECONDS})
        if self._epoch is None:
            return False
        self._led_at = time.monotonic()
        log.info("leading the cluster, in epoch %d", self._epoch)
        return True

    def _begin(self, stop: threading.Event) -> None:
        """Starts to lead, once the warehouse has all changes of the former leader, which can no longer change it."""
        self._control.follow()
        if (lacks := self._lacks()) > 0:
            if time.monotonic() - self._led_at < LEASE_SECONDS:
                return
            log.warning("this daemon lacks %d segments: another one may lead", lacks)
            self._postgres.rows("lead_no_more", {"epoch": self._epoch})
            self._epoch = None
            return
        if stop.is_set():
            return
        self._postgres.rows("forget_daemons")
        self._control.epoch, self._control.leader = self._epoch, "this daemon leads"
        self._control.publish_all(self._report)
        self._begun = True
        self._set_leader_url(None)
        self._on_lead()

    def _lacks(self) -> int:
        """Returns the number of segments that the warehouse lacks."""
        [(last,)] = self._postgres.rows("last_segment")
        return max(0, int(last) - self._followed())

    def _follow(self) -> None:
        self._note_leader()
        self._control.follow()

    def _note_leader(self) -> None:
        leader = self._postgres.rows("leader")
        name, url = leader[0] if leader else (None, None)
        self._control.leader = f"{name} leads" if name else "no daemon leads yet"
        self._set_leader_url(url)

    def _set_leader_url(self, url: str | None) -> None:
        before, self.leader_url = self.leader_url, url
        if before != url:
            self._on_change()


def members(postgres: Postgres, instance: str = "") -> list[Member]:
    """Returns the daemons of a cluster that reported within the last minute; raises StoreUnavailable.

    Args:
        instance: of the calling daemon.
    """
    return [Member(*row) for row in postgres.rows("daemons", {"instance": instance})]


def hand_over(postgres: Postgres, warehouse: Warehouse) -> None:
    """Publishes the control tables of a warehouse to a new cluster without daemons.

    Raises:
        ConfigurationError: a daemon of the cluster runs, or the cluster has control rows.
        StoreUnavailable: the database does not answer.
    """
    [(number, *_)] = postgres.rows("last_change")
    [(epoch,)] = postgres.rows("lead", {"instance": "retuned migrate", "seconds": LEASE_SECONDS})
    if number or epoch is None:
        raise ConfigurationError(
            "store.postgres_url: daemons have already used this database; use another one for this warehouse"
        )
    control = Control(postgres, warehouse)
    control.epoch = epoch
    try:
        control.publish_all()
    finally:
        warehouse.journal = None
