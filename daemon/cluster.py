"""A daemon's membership in a cluster: it leads, or stands by and passes on to the leader what that alone can do."""

import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress

from prometheus_client import CollectorRegistry

from retuned.consumers.cluster.control import Control
from retuned.consumers.cluster.database import NO_KEY, Database
from retuned.consumers.cluster.follower import Follower, followed
from retuned.consumers.cluster.intake import SegmentIntake
from retuned.consumers.cluster.leadership import ANSWER_SECONDS, Leadership, Member
from retuned.consumers.cluster.metrics import DaemonMetrics
from retuned.consumers.cluster.objects import Objects
from retuned.consumers.cluster.postgres import Postgres
from retuned.consumers.cluster.source import SegmentSource
from retuned.consumers.cluster.sweep import sweep
from retuned.consumers.common.lead import Lease
from retuned.consumers.errors import ConfigurationError, RetunedError, StandsBy, StoreUnavailable, WarehouseError
from retuned.consumers.kafka.contract import Publisher
from retuned.consumers.metrics import Metrics
from retuned.consumers.privacy.pseudonyms import load_user_keys
from retuned.consumers.settings import authority
from retuned.consumers.warehouse.connection import Warehouse
from retuned.daemon import artifacts
from retuned.daemon.settings import Settings
from retuned.daemon.web.pass_on import Answer, Passing

log = logging.getLogger(__name__)

STOP_SECONDS = 5.0
LOOK_SECONDS, SWEEP_SECONDS = 2.0, 3_600.0


class Cluster:
    """This daemon among the others.

    Attributes:
        source, follower: what follows the segments, for the thread of ingestion.
        intake: of files and replayed dead letters, for any thread.
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
            on_lead: called once, when it leads, in a thread of its own.
            fail: called with an error after which the daemon cannot go on.

        Raises:
            ConfigurationError: a setting of the section `store` is missing or wrong. Nothing is asked yet.
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
        artifacts.keep(warehouse, settings, self.check)
        self._passing, self._lease = Passing(settings.http), Lease()
        self._leadership = Leadership(
            Postgres(settings.store, answer_seconds=ANSWER_SECONDS),
            self._control,
            name,
            str(url),
            lambda: followed(warehouse),
            self._lead,
            self._passing.drop,
            self._lease.hold,
        )
        own.leader.set_function(lambda: self.leads)
        self._deleted = own.deleted
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, name="leadership"),
            threading.Thread(target=self._bring, name="artifacts", daemon=True),
            threading.Thread(target=self._sweep, name="sweep", daemon=True),
        ]

    @property
    def leads(self) -> bool:
        """Whether this daemon leads."""
        return self._leadership.leads

    @property
    def problem(self) -> str:
        """Why nobody knows who leads; empty: it is known."""
        return self._leadership.problem

    def check(self) -> int:
        """The epoch under which this daemon leads; see `common.lead`."""
        return self._leadership.check()

    @property
    def members(self) -> list[Member]:
        """The daemons that reported in the last minute; none while that is not known."""
        return self._leadership.members

    def start(self) -> None:
        """Stand by, until it is time to lead."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Lead no more: another daemon may at once. Safe to repeat."""
        self._stopping.set()
        if self._threads[0].is_alive():
            self._threads[0].join(STOP_SECONDS)
        self._leadership.close()
        self._lease.close()
        self._control_postgres.close()

    def pass_on(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Have the leader answer a request; see `pass_on`. What that changed, this daemon knows afterwards.

        Raises:
            StandsBy: no leader is known, or it does not answer.
        """
        leader = self._leadership.leader_url
        if leader is None:
            raise StandsBy(f"this daemon stands by, and knows no leader: {self.problem or 'try again in some seconds'}")
        answer = self._passing.pass_on(leader, method, path, headers, body)
        if method == "POST":
            with suppress(RetunedError):  # whatever it is, the thread that follows all the time finds it, too
                self._control.follow()
        return answer

    # Inside

    def _run(self) -> None:
        try:
            self._share_keys()
            self._leadership.run(self._stopping)
        except BaseException as error:  # noqa: BLE001  (whatever ends this thread ends the daemon)
            self._fail(error)

    def _share_keys(self) -> None:
        """Once PostgreSQL answers: users have the same pseudonyms everywhere."""
        while not self._stopping.is_set():
            try:
                self._database.share_user_keys(self._keys.ids)
                break
            except StoreUnavailable as error:
                self._leadership.note(error)
                self._stopping.wait(LOOK_SECONDS)

    def _lead(self) -> None:
        """In a thread of its own: while files are fetched, PostgreSQL is told that this daemon runs."""

        def begin() -> None:
            try:
                artifacts.follow(self._warehouse, self._settings)
                self._on_lead()
            except BaseException as error:  # noqa: BLE001  (a leader that does nothing is none)
                self._fail(error)

        threading.Thread(target=begin, name="lead", daemon=True).start()

    def _bring(self) -> None:
        """Bring here, as long as this daemon runs, the files that rows name: versions, datasets, reports of others."""
        first = True
        while not self._stopping.wait(LOOK_SECONDS):
            try:
                artifacts.follow(self._warehouse, self._settings, first=first)
                first = False
            except WarehouseError as error:
                self._fail(error)
                return
            except Exception:
                log.exception("artifacts")

    def _sweep(self) -> None:
        """The leader deletes what nobody needs any more, soon and then every hour: files, numbers of placeholders."""
        with closing(Database(self._settings.store)) as database:  # it lists for long
            objects, swept = Objects(self._settings.store, lead=self.check), -SWEEP_SECONDS
            while not self._stopping.wait(LOOK_SECONDS):
                if not self.leads or time.monotonic() - swept < SWEEP_SECONDS:
                    continue
                swept = time.monotonic()
                try:
                    if (days := self._settings.store.segment_days) is not None:
                        database.expire(days, followed(self._warehouse))
                    self._deleted.inc(sweep(database, objects))
                    database.forget_placeholders()
                    self._control.forget_deleted()
                except RetunedError as error:
                    log.warning("%s; what nobody needs any more is looked for again in an hour", error)
