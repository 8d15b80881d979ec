"""Which daemon of a cluster leads: one at a time, and another one soon after it was killed or stopped.

The leader holds an advisory lock in PostgreSQL, which ends with its connection, and tells every second that it runs.
Where it does not for LEASE_SECONDS, as a process that is frozen, another one ends that connection and takes the lock.
An epoch that rises with each leader is checked in every change of the control tables, so that of one that wakes up
nothing counts any more; it ends itself once it sees that.
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

LOCK = 8_321_002
"""Key of the advisory lock of the leader."""
LOOK_SECONDS = 1.0
LEASE_SECONDS = 8.0
"""Whoever was not heard of for so long leads no more."""
SILENT_SECONDS = 5.0
MARGIN_SECONDS = 2.0
"""The leader itself gives up so much earlier: its clock and PostgreSQL's run apart, and an effect takes a while."""


@dataclass(frozen=True)
class Member:
    """A daemon of the cluster.

    Attributes:
        seconds: since it was last heard of.
        this: whether it is the one that tells.
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
        problem: why PostgreSQL was asked in vain; empty: it was not.
        leader_url: where the leader is reached, as long as that is another daemon and known.
    """

    def __init__(
        self,
        postgres: Postgres,
        control: Control,
        name: str,
        url: str,
        followed: Callable[[], int],
        on_lead: Callable[[], None],
    ) -> None:
        """
        Args:
            postgres: a connection of its own, on which the lock is.
            name: of this daemon, for people.
            url: where other daemons reach it; `*` in it: the address that PostgreSQL sees.
            followed: the number of the last segment that the warehouse has.
            on_lead: called when it leads, once, with the warehouse as the leader before left it.
        """
        self._postgres, self._control, self._name, self._url = postgres, control, name, url
        self._followed, self._on_lead = followed, on_lead
        self._instance = uuid.uuid4().hex
        self._epoch: int | None = None  # that it has the lock with
        self._locked_on: int | None = None
        self._until = self._led_at = 0.0
        self._begun = False
        self.problem = "store.postgres_url: PostgreSQL was not asked yet"
        self.leader_url: str | None = None

    @property
    def leads(self) -> bool:
        """Whether it leads now, and no other one can yet."""
        return self._begun and time.monotonic() < self._until

    def check(self) -> None:
        """To be called before anything is done outside of the warehouse.

        Raises:
            StandsBy: this daemon does not lead, or is not sure that it does.
        """
        if not self._begun:
            raise StandsBy(f"this daemon stands by and changes nothing: {self._control.leader}")
        if not self.leads:
            raise StandsBy(
                f"store.postgres_url: not heard of for {LEASE_SECONDS - MARGIN_SECONDS:g} s: another daemon may lead "
                "by now, and this one waits until it knows"
            )

    def members(self) -> list[Member]:
        """The daemons that were heard of in the last minute; raises StoreUnavailable."""
        return members(self._postgres, self._instance)

    def run(self, stop: threading.Event) -> None:
        """Stand by, lead when nobody else does, until asked to stop.

        Raises:
            LeadershipLost: another one leads instead.
            RetunedError: the database refuses, or the warehouse cannot be written.
        """
        while not stop.is_set():
            try:
                self._look(stop)
                if self.problem:
                    log.info("store: PostgreSQL answers")
                self.problem = ""
            except StoreUnavailable as error:
                if not self.problem:
                    log.warning("%s; trying again until it answers", error)
                self.problem = str(error)
            stop.wait(LOOK_SECONDS)

    def close(self) -> None:
        """End the connection, and with it the lock: another daemon leads at once."""
        self._until = 0.0
        with suppress(RetunedError):
            if self._postgres.connected and not self.problem:
                self._postgres.rows("leave", {"instance": self._instance})
        self._postgres.close()

    # Inside

    def _look(self, stop: threading.Event) -> None:
        sent = self._beat()
        if self._epoch is None or self._locked_on != self._postgres.connected:
            # One that cannot read the segments, or is far behind, leaves it to others.
            if (self._epoch is None and self._lacks()) or not self._lock():
                if self._epoch is None:
                    self._follow()
                return
            sent = time.monotonic()
            self._lead()
        self._until = sent + LEASE_SECONDS - MARGIN_SECONDS
        if not self._begun:
            self._begin(stop)

    def _beat(self) -> float:
        """Returns when it was sent."""
        sent = time.monotonic()
        [(epoch,)] = self._postgres.rows("beat", {"instance": self._instance, "name": self._name, "url": self._url})
        if self._epoch is not None and epoch != self._epoch:
            self._note_leader()
            raise LeadershipLost(
                f"another daemon leads the cluster by now ({self._control.leader}): this one was not heard of for too "
                "long, or PostgreSQL was away and it came second; start it again, and it stands by"
            )
        return sent

    def _lock(self) -> bool:
        for _ in range(2):
            if self._postgres.rows("lock_leader", {"lock": LOCK}) == [(True,)]:
                return True
            if self._postgres.rows("end_frozen", {"lock": LOCK, "seconds": LEASE_SECONDS}) == [(0,)]:
                break
        return False

    def _lead(self) -> None:
        locked_on = self._postgres.connected
        found = self._postgres.rows("lead", {"instance": self._instance, "epoch": self._epoch})
        if not found:
            raise LeadershipLost("another daemon led the cluster meanwhile: start this one again, and it stands by")
        [(self._epoch,)] = found
        self._locked_on, self._led_at = locked_on, time.monotonic()
        if self._begun:
            self._control.epoch = self._epoch
        log.info("leading the cluster, in epoch %d", self._epoch)

    def _begin(self, stop: threading.Event) -> None:
        """What the leader before did is taken over, and nobody changes it any more; then this one leads."""
        self._control.follow()
        if (lacks := self._lacks()) > 0:
            if time.monotonic() - self._led_at < LEASE_SECONDS:
                return
            log.warning("%d segments are not read here: another daemon may lead", lacks)
            self._epoch = None
            self._postgres.rows("unlock_leader", {"lock": LOCK})
            return
        if stop.is_set():
            return
        self._postgres.rows("forget_daemons")
        self._control.epoch, self._control.leader, self.leader_url = self._epoch, "this daemon leads", None
        self._control.publish_all(self._beat)
        self._control.forget_deleted()
        self._begun = True
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
        name, self.leader_url = found[0] if found else (None, None)
        self._control.leader = f"{name} leads" if name else "no daemon leads yet"


def members(postgres: Postgres, instance: str = "") -> list[Member]:
    """The daemons of a cluster that were heard of in the last minute; raises StoreUnavailable.

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
    [(number, _, _)] = postgres.rows("last_change")
    if number or postgres.rows("lock_leader", {"lock": LOCK}) != [(True,)]:
        raise ConfigurationError(
            "store.postgres_url: daemons have used this database already; use another one for this warehouse"
        )
    control = Control(postgres, warehouse)
    [(control.epoch,)] = postgres.rows("lead", {"instance": "retuned migrate", "epoch": None})
    try:
        control.publish_all()
    finally:
        warehouse.journal = None
