"""Which daemon of a cluster leads: one at a time, and another one soon after it was killed or stopped.

Leading is a lease. Each daemon reports to PostgreSQL twice a second that it runs. Whoever is the leader there stays it
until LEASE_SECONDS have passed since its last report, by PostgreSQL's clock, or until it leaves; only then another one
can become it, under a higher epoch. The leader counts by its own clock from before it sent the report, and stops
MARGIN_SECONDS earlier: so two never lead at once, whichever of them is frozen, cut off or killed.

The epoch is checked in every change of the control tables, and goes with every act outside: of a leader that wakes up
nothing counts any more. It ends itself once it sees that.
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
"""A leader without a report for so long leads no more."""
SILENT_SECONDS = 5.0
MARGIN_SECONDS = 1.5
"""The leader itself stops so much earlier: its clock and PostgreSQL's run apart, and a request takes a while."""
ANSWER_SECONDS = 5
"""PostgreSQL's connection is given up after so long."""


@dataclass(frozen=True)
class Member:
    """A daemon of the cluster.

    Attributes:
        seconds: since its last report.
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
    """This daemon's part in it. `run` is for a thread of its own; other threads may ask the rest.

    Attributes:
        leader_url: where the leader is reached, as long as that is another daemon and known.
        members: the daemons that reported in the last minute, at the last look; empty while PostgreSQL does not answer.
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
        on_hold: Callable[[int, float], None] = lambda *_: None,
    ) -> None:
        """
        Args:
            postgres: a connection of its own: a report must not wait for anything.
            name: of this daemon, for people.
            url: where other daemons reach it; `*` in it: the address that PostgreSQL sees.
            followed: the number of the last segment that the warehouse has.
            on_lead: called when it leads, once, with the warehouse as the leader before left it.
            on_change: called when there is another leader than before.
            on_hold: gets the epoch under which it leads, and until when by the monotonic clock, each time.
        """
        self._postgres, self._control, self._name, self._url = postgres, control, name, url
        self._followed, self._on_lead, self._on_change, self._on_hold = followed, on_lead, on_change, on_hold
        self._instance = uuid.uuid4().hex
        self._epoch: int | None = None  # under which it is the leader there
        self._until = self._led_at = 0.0
        self._answered_at = time.monotonic()
        self._begun = False
        self._problem = "store.postgres_url: PostgreSQL was not asked yet"
        self.leader_url: str | None = None
        self.members: list[Member] = []

    @property
    def leads(self) -> bool:
        """Whether it leads now, and no other one can yet."""
        return self._begun and time.monotonic() < self._until

    @property
    def problem(self) -> str:
        """Why PostgreSQL was asked in vain; empty: it was not."""
        silent = time.monotonic() - self._answered_at
        if not self._problem and silent > LEASE_SECONDS:
            return f"store.postgres_url: the database has not answered for {silent:.0f} s"
        return self._problem

    def check(self) -> int:
        """To be called before anything is done outside of the warehouse; returns the epoch, which goes with it.

        Raises:
            StandsBy: this daemon does not lead, or is not sure that it does.
        """
        epoch = self._epoch
        if epoch is None or not self._begun:
            raise StandsBy(f"this daemon stands by and changes nothing: {self._control.leader}")
        if not self.leads:
            raise StandsBy(
                f"store.postgres_url: no answer for {LEASE_SECONDS - MARGIN_SECONDS:g} s: another daemon may lead by "
                "now, and this one waits until it knows"
            )
        return epoch

    def run(self, stop: threading.Event) -> None:
        """Stand by, lead when nobody else does, until asked to stop.

        Raises:
            LeadershipLost: another one leads instead.
            RetunedError: the database refuses, or the warehouse cannot be written.
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
        """Why PostgreSQL was asked in vain."""
        if not self._problem:
            log.warning("%s; trying again until it answers", error)
        self._problem, self.members = str(error), []

    def close(self) -> None:
        """Leave: another daemon leads at once."""
        self._hold(0.0)
        with suppress(RetunedError):
            if not self.problem:
                self._postgres.rows("leave", {"instance": self._instance})
        self._postgres.close()

    # Inside

    def _look(self, stop: threading.Event) -> None:
        sent = self._report()
        self.members = members(self._postgres, self._instance)
        if self._epoch is None:
            self._follow()
            sent = time.monotonic()
            # One that cannot read the segments, or is far behind, leaves it to others.
            if self._lacks() or not self._lead():
                return
        self._hold(sent + LEASE_SECONDS - MARGIN_SECONDS)
        if not self._begun:
            self._begin(stop)

    def _hold(self, until: float) -> None:
        self._until = until
        if self._begun and self._epoch is not None:
            self._on_hold(self._epoch, until)

    def _report(self) -> float:
        """That this daemon runs. Returns when it was sent."""
        sent = time.monotonic()
        [(epoch, leader)] = self._postgres.rows(
            "report", {"instance": self._instance, "name": self._name, "url": self._url}
        )
        self._answered_at = time.monotonic()
        if self._epoch is not None and (epoch, leader) != (self._epoch, self._instance):
            self._note_leader()
            raise LeadershipLost(
                f"another daemon leads the cluster by now ({self._control.leader}): this one did not report for too "
                "long; start it again, and it stands by"
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
        """What the leader before did is taken over, and nobody changes it any more; then this one leads."""
        self._control.follow()
        if (lacks := self._lacks()) > 0:
            if time.monotonic() - self._led_at < LEASE_SECONDS:
                return
            log.warning("%d segments are not read here: another daemon may lead", lacks)
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
        """How many segments the warehouse has not read yet."""
        [(last,)] = self._postgres.rows("last_segment")
        return max(0, int(last) - self._followed())

    def _follow(self) -> None:
        self._note_leader()
        self._control.follow()

    def _note_leader(self) -> None:
        found = self._postgres.rows("leader")
        name, url = found[0] if found else (None, None)
        self._control.leader = f"{name} leads" if name else "no daemon leads yet"
        self._set_leader_url(url)

    def _set_leader_url(self, url: str | None) -> None:
        before, self.leader_url = self.leader_url, url
        if before != url:
            self._on_change()


def members(postgres: Postgres, instance: str = "") -> list[Member]:
    """The daemons of a cluster that reported in the last minute; raises StoreUnavailable.

    Args:
        instance: of the daemon that asks.
    """
    return [Member(*row) for row in postgres.rows("daemons", {"instance": instance})]


def hand_over(postgres: Postgres, warehouse: Warehouse) -> None:
    """Give a cluster the control tables of a warehouse, before any daemon of it runs.

    Raises:
        ConfigurationError: a daemon of the cluster runs, or the cluster has control tables.
        StoreUnavailable: the database does not answer.
    """
    [(number, *_)] = postgres.rows("last_change")
    [(epoch,)] = postgres.rows("lead", {"instance": "retuned migrate", "seconds": LEASE_SECONDS})
    if number or epoch is None:
        raise ConfigurationError(
            "store.postgres_url: daemons have used this database already; use another one for this warehouse"
        )
    control = Control(postgres, warehouse)
    control.epoch = epoch
    try:
        control.publish_all()
    finally:
        warehouse.journal = None
