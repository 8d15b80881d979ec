"""Reconciles targets with the deployments, repeatedly: loads and probes versions, and unloads drained ones.

A thread per replica, with bounded waits, ensures that a dead or slow one delays no other. Each reconciliation lists the
versions of the replica, so no state is kept that a restart of a server or of the daemon would invalidate.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import duckdb

from retuned.consumers.common.lead import Lead, alone
from retuned.consumers.errors import RetunedError, StandsBy, WarehouseError
from retuned.consumers.warehouse.connection import Warehouse
from retuned.retrain.openai_api import NoAnswer, Refused
from retuned.retrain.release.assignment import EVERYWHERE
from retuned.retrain.release.deployments import QUERIES, Deployment, Wanted, deployments, drain, named, wanted
from retuned.retrain.release.exclusive import one_at_a_time, without_the_lock
from retuned.retrain.release.replicas import Model, Replica, Service, State, service
from retuned.retrain.release.targets.build import Place, build, places, places_in
from retuned.retrain.release.targets.target import Target, WrongModel
from retuned.retrain.serving_settings import FolderTarget, MlflowTarget
from retuned.retrain.settings import Settings
from retuned.retrain.versions import CANARY, check_intact

log = logging.getLogger(__name__)

EVERY_SECONDS = 2.0
"""The interval of reconciliations, in which a restarted or added replica is detected."""
PROBE_AGAIN = timedelta(minutes=5)
"""The interval of probes. A server that restarts unnoticed may load an adapter of its own configuration."""
_LONGEST_PAUSE = 60.0
_MOST_DOUBLINGS = 10
"""More make any pause longer than the longest one, and their product too large for a number."""
_CLOSE_SECONDS = 5.0


class Reconciler:
    """Reconciles the replicas of all targets."""

    def __init__(
        self,
        warehouse: Warehouse,
        settings: Settings,
        now: Callable[[], datetime],
        show: Callable[[Replica], None] = lambda _: None,
        show_served: Callable[[str, float], None] = lambda *_: None,
        show_enough: Callable[[str, dict[str, bool]], None] = lambda *_: None,
        lead: Lead = alone,
    ) -> None:
        """
        Args:
            show: receives each replica after its reconciliation.
            show_served: receives a workload, and the seconds from a change of shares until the version was in service.
            show_enough: receives a workload and, for each version with a share, whether enough replicas answer with it,
                if known.
            lead: see `common.lead`.
        """
        self._warehouse, self._settings, self._now = warehouse, settings, now
        self._started_at = now()
        self._show, self._show_served, self._show_enough, self._lead = show, show_served, show_enough, lead
        self._replicas: dict[tuple[str, str], Replica] = {}
        self._threads: dict[tuple[str, str], threading.Thread] = {}
        self._once_more = set[tuple[str, str]]()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._fatal: BaseException | None = None

    @without_the_lock
    def tick(self) -> None:
        """Reconciles each replica in a thread of its own. One that is being reconciled is reconciled again afterwards.

        Raises:
            WarehouseError: a thread could not write.
        """
        if self._fatal is not None:
            raise self._fatal
        with self._lock:
            if self._closed.is_set():
                return
            desired = one_at_a_time(drain)(self._warehouse, self._settings, deployments(self._warehouse), self._now())
            for place in self._places(desired):
                running = self._threads.get(place.key)
                if running is not None and running.is_alive():
                    self._once_more.add(place.key)
                    continue
                thread = threading.Thread(target=self._run, args=(place.key,), name="reconcile", daemon=True)
                self._threads[place.key] = thread
                thread.start()

    def run(self) -> None:
        """Reconciles each replica once, and waits until that is done."""
        self.tick()
        for thread in list(self._threads.values()):
            thread.join()
        if self._fatal is not None:
            raise self._fatal

    def close(self) -> None:
        """Stops, and waits briefly for the threads. Unfinished work is done after the next start."""
        self._closed.set()
        for thread in list(self._threads.values()):
            thread.join(_CLOSE_SECONDS / max(1, len(self._threads)))

    def replicas(self, workload: str) -> list[Replica]:
        """Returns the replicas of a workload."""
        return [replica for replica in list(self._replicas.values()) if workload in replica.workloads]

    def withheld(self) -> dict[str, list[str]]:
        """Returns, by address of a model server, the versions that clients should not request there.

        These are versions that failed the probe there and versions that are not in service yet. The latter stand under
        `EVERYWHERE`, too, for servers that the client knows by another address. A version comes into service on all
        servers at once, and stays so, because conversations would otherwise switch versions when a server or the daemon
        restarts.
        """
        desired, withheld = deployments(self._warehouse), dict[str, set[str]]()
        for place in self._places(desired):
            if not place.is_server:
                continue
            replica = self._replicas.get(place.key)
            not_served = {
                one.name for one in desired if one.version and not one.served_at and one.workload in place.workloads
            }
            models = list(replica.models.values()) if replica else []
            withheld[place.replica] = not_served | {model.name for model in models if model.state == "wrong"}
            withheld[EVERYWHERE] = withheld.get(EVERYWHERE, set()) | not_served
        return {address: sorted(names) for address, names in withheld.items() if names}

    def service(self, deployment: Deployment) -> Service:
        """Returns whether enough replicas answer with a version, by `serving.replica_share` of its workload."""
        settings = self._settings.for_workload(deployment.workload)
        known = [
            [self._replicas.get(place.key) or Replica(*place.key) for place in target] for target in places_in(settings)
        ]
        return service(known, settings.serving.replica_share, deployment.name, deployment.replaces, self._now())

    def step_waits_for(self, workload: str) -> str:
        """Returns what prevents the next step of a rollout; empty if enough replicas answer with the canary."""
        canary = (one for one in deployments(self._warehouse) if one.workload == workload and CANARY in one.aliases)
        return next((status.lacking for one in canary if not (status := self.service(one)).enough), "")

    def _places(self, desired: Sequence[Deployment]) -> list[Place]:
        return places(self._settings, list(dict.fromkeys(one.workload for one in desired)))

    def _run(self, key: tuple[str, str]) -> None:
        """Reconciles a replica until no more is requested. Runs in a thread."""
        again = True
        while again and not self._closed.is_set():
            try:
                # Links change with the aliases under the lock, and must not be reset to earlier ones.
                (one_at_a_time(self._reconcile) if key[0] == "folder" else self._reconcile)(key)
            except (WarehouseError, duckdb.Error) as error:
                self._fatal = error
                return
            except Exception as error:
                log.exception("target %s %s: %s", *key, error)
                if key in self._replicas:
                    self._replicas[key].problem = f"{type(error).__name__}: {error}"
                return
            with self._lock:
                again = key in self._once_more
                self._once_more.discard(key)

    def _reconcile(self, key: tuple[str, str]) -> None:
        """Makes a replica have the versions that it should have, and records its state."""
        place = next((place for place in self._places(deployments(self._warehouse)) if place.key == key), None)
        if place is None:
            return
        replica = self._replicas.setdefault(place.key, Replica(place.settings.kind, place.replica))
        replica.workloads, replica.looked_at = place.workloads, self._now()
        try:
            self._apply(place, replica)
            problem = ""
        except (WarehouseError, duckdb.Error):
            raise
        except RetunedError as error:
            problem = str(error)
            if isinstance(error, NoAnswer):
                replica.up = False
                replica.models.clear()  # it may be another process when it answers again
            elif isinstance(error, Refused):
                replica.up = True
        self._problem(replica, problem)
        self._show(replica)
        one_at_a_time(self._note_served)(place.workloads)

    def _apply(self, place: Place, replica: Replica) -> None:
        """Loads, probes and unloads the versions of a replica."""
        # Links and registries get the versions with an alias, servers those that serve or are drained.
        query = named if isinstance(place.settings, FolderTarget | MlflowTarget) else wanted
        desired = query(self._warehouse, place.workloads)
        try:
            target = build(place, self._settings, self._warehouse, self._now, self._lead)
            listed = target.listed()
        except RetunedError:
            replica.models.clear()  # its versions are unknown
            raise
        replica.up = True
        for name in replica.models.keys() - desired.keys():
            del replica.models[name]
        for name, version in desired.items():
            model = replica.models.setdefault(name, Model(version.version.workload, name))
            try:
                aliases = version.aliases | _kept(name, listed, desired)
                self._load(target, replace(version, aliases=aliases), listed, model)
            except (RetunedError, duckdb.Error):
                raise  # it concerns all versions
            except Exception as error:
                detail = f"{type(error).__name__}: {error}"
                if detail != model.detail:
                    log.exception("%s: %s %s", name, target.kind, target.replica)
                self._failed(target, model, "wrong" if model.state == "wrong" else "failed", detail)
        drained = {name for name in listed.keys() - desired.keys() if not _kept(name, listed, desired)}
        self._unload(target, drained, place.workloads)

    def _load(self, target: Target, version: Wanted, listed: dict[str, frozenset[str]], model: Model) -> None:
        """Loads a version that the target lacks, and probes it."""
        now = self._now()
        if version.name not in listed or (target.follows_aliases and listed[version.name] != version.aliases):
            if model.next_try is not None and now < model.next_try:
                return
            model.probed_at, model.matches, model.tried_at = None, None, now
            try:
                check_intact(version.version)
                if version.name not in listed:
                    target.check(version.version)
                target.load(version)
            except (WarehouseError, StandsBy):
                raise
            except RetunedError as error:
                # The target has just listed its versions, so without an answer it is slow.
                self._failed(target, model, "loading" if isinstance(error, NoAnswer) else "failed", str(error))
                return
            listed[version.name] = version.aliases
            log.info("%s: loaded on %s %s", version.name, target.kind, target.replica)
        model.tries, model.next_try = 0, None
        if model.probed_at is None or model.state == "wrong" or now - model.probed_at >= PROBE_AGAIN:
            self._verify(target, version, model)

    def _verify(self, target: Target, version: Wanted, model: Model) -> None:
        """Probes a version."""
        model.tried_at = self._now()
        try:
            model.matches = target.verify(version.version)
            self._set_state(target, model, "serving", "")
        except (WarehouseError, StandsBy):
            raise
        except WrongModel as error:
            model.matches = False
            self._set_state(target, model, "wrong", str(error))
        except RetunedError as error:
            if isinstance(error, NoAnswer) or (isinstance(error, Refused) and error.may_pass):
                # The target has just listed its versions, so it is busy or this request failed: probe again.
                before: State = "loading" if model.probed_at is None else model.state
                self._set_state(target, model, before, f"it is not probed yet: {error}")
                return
            if isinstance(error, Refused) and error.status == 404 and model.name in str(error):
                # As behind a proxy of servers of which some lack it: probe again.
                model.matches = model.probed_at = None
                self._set_state(target, model, "failed", f"it is listed, but not found by requests: {error}")
                return
            # Nothing is known to be wrong, so the version counts as serving.
            model.matches = None
            self._set_state(target, model, "serving", f"it cannot be probed: {error}")
        model.probed_at = self._now()

    def _failed(self, target: Target, model: Model, state: State, detail: str) -> None:
        """Sets the state of a model that could not be loaded, and when to try again."""
        model.tries += 1
        pause = min(_LONGEST_PAUSE, EVERY_SECONDS * 2 ** min(model.tries, _MOST_DOUBLINGS))
        model.next_try = (model.tried_at or self._now()) + timedelta(seconds=pause)
        self._set_state(target, model, state, detail)

    def _set_state(self, target: Target, model: Model, state: State, detail: str) -> None:
        """Sets the state of a model. Logs a problem once."""
        if detail and detail != model.detail:
            log.warning("%s: %s %s: %s: %s", model.name, target.kind, target.replica, state, detail)
        elif model.state == "wrong" and state == "serving":
            log.info("%s: %s %s answers with it", model.name, target.kind, target.replica)
        model.state, model.detail = state, detail

    def _unload(self, target: Target, names: set[str], workloads: Sequence[str]) -> None:
        """Unloads drained versions of these workloads. Models that others have loaded stay."""
        if not names:
            return
        for workload in workloads:
            known = {row["name"] for row in self._warehouse.rows(QUERIES["known_names"], {"workload": workload})}
            for name in sorted(names & known):
                target.unload(name)
                log.info("%s: unloaded from %s %s", name, target.kind, target.replica)

    def _problem(self, replica: Replica, problem: str) -> None:
        if problem and problem != replica.problem:
            log.warning("target %s %s: %s", replica.kind, replica.address, problem)
        elif replica.problem and not problem:
            log.info("target %s %s has recovered", replica.kind, replica.address)
        replica.problem = problem

    def _note_served(self, workloads: Sequence[str]) -> None:
        """Stores when each version came into service: when enough replicas of each target answered with it.

        The time is kept if replicas fail later, which `show_enough` reports.
        """
        shown = {workload: dict[str, bool]() for workload in workloads}
        for one in deployments(self._warehouse):
            if one.workload not in shown or one.version is None or not one.serves:
                continue
            if (enough := self.service(one).enough) is None:
                continue
            shown[one.workload][one.name] = enough
            if one.served_at is not None or not enough:
                continue
            now = self._now()
            given = {"workload": one.workload, "version": one.version, "since": one.since, "now": now}
            self._warehouse.execute(QUERIES["served"], given)
            if one.since < self._started_at:  # it may have been in service before the daemon started
                continue
            seconds = (now - one.since).total_seconds()
            self._show_served(one.workload, seconds)
            log.info("%s is in service, %.1f s after the decision", one.name, seconds)
        for workload, enough_of in shown.items():
            self._show_enough(workload, enough_of)


def _kept(name: str, listed: Mapping[str, frozenset[str]], desired: Mapping[str, Wanted]) -> frozenset[str]:
    """Returns the aliases that a version keeps at a target, because the version that should have them lacks them."""
    workload, none = name.rpartition("@")[0], frozenset[str]()
    lacking = (one.aliases - listed.get(one.name, none) for one in desired.values() if one.version.workload == workload)
    return listed.get(name, none) & none.union(*lacking)
