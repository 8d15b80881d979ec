"""A daemon's membership in a cluster: it leads, or stands by and forwards commands to the leader."""

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry

from retuned.consumers.cluster import audit_entries, erasing
from retuned.consumers.cluster.control import Control
from retuned.consumers.cluster.conversations import keys_of
from retuned.consumers.cluster.database import NO_KEY, Database
from retuned.consumers.cluster.follower import Follower, followed
from retuned.consumers.cluster.intake import SegmentIntake
from retuned.consumers.cluster.leadership import ANSWER_SECONDS, Leadership, Member
from retuned.consumers.cluster.metrics import DaemonMetrics
from retuned.consumers.cluster.objects import Objects
from retuned.consumers.cluster.postgres import Postgres
from retuned.consumers.cluster.source import SegmentSource
from retuned.consumers.cluster.sweep import expire, sweep
from retuned.consumers.errors import ConfigurationError, RetunedError, StandsBy, StoreUnavailable, WarehouseError
from retuned.consumers.kafka.contract import Publisher
from retuned.consumers.metrics import Metrics
from retuned.consumers.privacy.pseudonyms import load_user_keys
from retuned.consumers.sections import authority
from retuned.consumers.warehouse.connection import Warehouse
from retuned.consumers.warehouse.tombstones import Tombstones
from retuned.daemon import artifacts
from retuned.daemon.settings import Settings
from retuned.daemon.web.pass_on import Answer, Passing

log = logging.getLogger(__name__)

STOP_SECONDS = 5.0
LOOK_SECONDS, SWEEP_SECONDS = 2.0, 3_600.0


class Cluster:
    """This daemon's membership.

    Attributes:
        source, follower: follow the segments, in the thread of ingestion.
        intake: writes files and replayed dead letters as segments, in any thread.
    """

    def __init__(
        self,
        settings: Settings,
        warehouse: Warehouse,
        registry: CollectorRegistry,
        metrics: Metrics,
        publisher: Publisher,
        on_lead: Callable[[], None],
        fail: Callable[[BaseException], None],
    ) -> None:
        """
        Args:
            on_lead: called once, in a thread of its own, when this daemon becomes the leader.
            fail: called with an error that the daemon cannot survive.

        Raises:
            ConfigurationError: a setting of the section `store` is missing or wrong. No server is contacted yet.
        """
        if settings.privacy.user_key is None and settings.privacy.user_key_file is None:
            raise ConfigurationError(NO_KEY)
        self._keys = load_user_keys(settings.privacy, settings.warehouse.path)
        self._settings, self._warehouse, self._on_lead, self._fail = settings, warehouse, on_lead, fail
        self._database, self._objects = Database(settings.store), Objects(settings.store)
        self.source = SegmentSource(self._database, self._objects, settings.kafka.topics, lambda: followed(warehouse))
        own = DaemonMetrics(registry)
        self.follower = Follower(self.source, warehouse, settings, metrics, own.store_up)
        self.intake = SegmentIntake(self._database, self._objects, self.follower, settings, metrics, publisher)
        self._control_postgres = Postgres(settings.store)
        name = f"{socket.gethostname()}:{settings.http.port}"
        tls = settings.http.tls_certificate_file is not None
        address = authority(settings.http.address if settings.http.loopback else "*", settings.http.port)
        url = settings.store.advertised_url or f"{'https' if tls else 'http'}://{address}"
        self._control = Control(self._control_postgres, warehouse)
        warehouse.trail.elsewhere = partial(audit_entries.leave, self._control_postgres)
        artifacts.keep(warehouse, settings, self.check)
        self._passing = Passing(settings.http)
        self._leadership = Leadership(
            Postgres(settings.store, answer_seconds=ANSWER_SECONDS),
            self._control,
            name,
            str(url),
            lambda: followed(warehouse),
            self._lead,
            self._passing.drop,
        )
        own.leader.set_function(lambda: self.leads)
        self._deleted = own.deleted
        self._stopping, self._fetching, self._has_fetched = threading.Event(), threading.Lock(), False
        self._threads = [
            threading.Thread(target=self._run, name="leadership"),
            threading.Thread(target=self._follow_artifacts, name="artifacts", daemon=True),
            threading.Thread(target=self._sweep, name="sweep", daemon=True),
            threading.Thread(target=self._take_entries, name="audit", daemon=True),
        ]

    @property
    def leads(self) -> bool:
        """Whether this daemon leads."""
        return self._leadership.leads

    @property
    def problem(self) -> str:
        """Why the leader is unknown; empty: it is known."""
        return self._leadership.problem

    def check(self) -> int:
        """Returns the epoch in which this daemon leads; see `common.lead`."""
        return self._leadership.check()

    @property
    def members(self) -> list[Member]:
        """The daemons that reported in the last minute; empty while they are unknown."""
        return self._leadership.members

    def erase_segments(self, tombstones: Tombstones) -> Iterator[dict[str, Any]]:
        """Remove erased rows from segments, while this daemon leads; see `erasing.erase`. Yields each file, and those
        that cannot be read with their problem."""
        with closing(Database(self._settings.store)) as database:
            objects = Objects(self._settings.store, lead=self.check)
            for file in erasing.erase(database, objects, tombstones):
                if isinstance(file, erasing.Unreadable):
                    yield {"key": file.file.key, "problem": file.problem}
                    continue
                yield {
                    "key_before": file.before.key,
                    "sha256_before": file.before.sha256,
                    "key_after": file.after.key,
                    "sha256_after": file.after.sha256,
                    "rows": file.before.rows - file.after.rows,
                }

    def problem_of_segment(self, key: str) -> str | None:
        """Return why a file of a segment cannot be read; None: it can, or no segment has it any more. Raises
        StoreUnavailable."""
        return erasing.problem_of(self._control_postgres, Objects(self._settings.store), key)

    def erase_numbers(self, interactions: Sequence[str], conversations: Sequence[str]) -> None:
        """Delete the numbers of placeholders of interactions and conversations; raises StoreUnavailable."""
        with closing(Database(self._settings.store)) as database:
            database.erase_placeholders(keys_of(self._keys, interactions, conversations))

    def start(self) -> None:
        """Start to stand by."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Give up the lease, so that another daemon may lead at once. Safe to repeat."""
        self._stopping.set()
        if self._threads[0].is_alive():
            self._threads[0].join(STOP_SECONDS)
        self._leadership.close()
        self._control_postgres.close()

    def pass_on(self, method: str, path: str, headers: Mapping[str, str], body: bytes, seconds: float) -> Answer:
        """Forward a request to the leader. Returns its answer, after this daemon has followed the changes of a command.

        Raises:
            StandsBy: no leader is known, or it does not answer.
        """
        leader = self._leadership.leader_url
        if leader is None:
            raise StandsBy(f"this daemon stands by, and knows no leader: {self.problem or 'try again in some seconds'}")
        answer = self._passing.pass_on(leader, method, path, headers, body, seconds)
        if method == "POST":
            with suppress(RetunedError):  # the thread that follows changes reports it, too
                self._control.follow()
        return answer

    # Inside

    def _run(self) -> None:
        try:
            self._share_keys()
            self._leadership.run(self._stopping)
        except BaseException as error:  # noqa: BLE001  (any error in this thread ends the daemon)
            self._fail(error)

    def _share_keys(self) -> None:
        """Once PostgreSQL answers, verify that all processes have the same keys of pseudonyms."""
        while not self._stopping.is_set():
            try:
                self._database.share_user_keys(self._keys.ids)
                break
            except StoreUnavailable as error:
                self._leadership.note(error)
                self._stopping.wait(LOOK_SECONDS)

    def _lead(self) -> None:
        """Become the leader, in a thread of its own, so that the lease is renewed while files are downloaded."""

        def begin() -> None:
            try:
                self._fetch_artifacts(is_followed=True)  # before jobs of the leader use or publish local files
                self._on_lead()
            except BaseException as error:  # noqa: BLE001  (another daemon has to lead)
                self._fail(error)

        threading.Thread(target=begin, name="lead", daemon=True).start()

    def _follow_artifacts(self) -> None:
        """Download the artifacts of other daemons, until this daemon stops: versions, datasets, reports."""
        while not self._stopping.wait(LOOK_SECONDS):
            try:
                self._fetch_artifacts(is_followed=not self.problem)
            except WarehouseError as error:
                self._fail(error)
                return
            except Exception:
                log.exception("artifacts")

    def _fetch_artifacts(self, *, is_followed: bool) -> None:
        """Make the files here those that the rows name. The first time, also delete what was removed before the start.

        Args:
            is_followed: whether the warehouse has followed PostgreSQL since the start. Before that, its rows still name
                what was removed meanwhile.
        """
        with self._fetching:
            first = is_followed and not self._has_fetched
            artifacts.follow(self._warehouse, self._settings, first=first)
            self._has_fetched = self._has_fetched or first

    def _take_entries(self) -> None:
        """While this daemon leads, append the audit's entries of the others, and take over requests to erase events
        that ingesters read, until this daemon stops."""
        while not self._stopping.wait(LOOK_SECONDS):
            if not self.leads:
                continue
            try:
                audit_entries.take(self._control_postgres, self._warehouse)
                erasing.take_requests(self._control_postgres, self._warehouse)
            except WarehouseError as error:
                self._fail(error)
                return
            except Exception as error:  # noqa: BLE001  (it is tried again)
                log.warning("entries of the audit and requests to erase events wait: %s", error)

    def _sweep(self) -> None:
        """While this daemon leads, delete old segments, unused files, numbers of placeholders and old keys of control
        rows, at the start and every hour."""
        with closing(Database(self._settings.store)) as database:  # listing takes long, so it has its own connection
            objects, swept = Objects(self._settings.store, lead=self.check), -SWEEP_SECONDS
            steps: dict[str, Callable[[], object]] = {
                "old segments": lambda: self._expire(database),
                "unused files": lambda: self._deleted.inc(sweep(database, objects)),
                "numbers of placeholders": database.forget_placeholders,
                "keys of deleted rows": self._control.forget_deleted,
            }
            while not self._stopping.wait(LOOK_SECONDS):
                if not self.leads or time.monotonic() - swept < SWEEP_SECONDS:
                    continue
                swept = time.monotonic()
                for what, remove in steps.items():
                    if self._stopping.is_set():
                        return
                    try:
                        remove()
                    except Exception as error:  # noqa: BLE001  (the others do not depend on it)
                        log.warning("%s; the removal of %s is tried again in an hour", error, what)

    def _expire(self, database: Database) -> None:
        if (days := self._settings.store.segment_days) is not None:
            expire(database, days, followed(self._warehouse))
