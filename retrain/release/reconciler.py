"""Makes the targets have what the deployments say, again and again: loads, probes, and unloads what was drained.

Each replica is looked at by a thread of its own, with bounded waits: one that is dead or slow holds up no other. What
it has is asked anew each time, so nothing is remembered that a restart, of a server or of the daemon, would make wrong.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import duckdb

from retuned.consumers.common.lead import Lead, alone
from retuned.consumers.errors import RetunedError, StandsBy, WarehouseError
from retuned.consumers.warehouse.connection import Warehouse
from retuned.retrain.openai_api import NoAnswer, Refused
from retuned.retrain.release.deployments import QUERIES, Deployment, Wanted, deployments, drain, named, wanted
from retuned.retrain.release.replicas import Model, Replica, Service, State, service
from retuned.retrain.release.rollout import one_at_a_time
from retuned.retrain.release.targets.build import Place, build, places, places_in
from retuned.retrain.release.targets.target import Target, WrongModel
from retuned.retrain.serving_settings import FolderTarget, MlflowTarget, TargetSettings, WebhookTarget
from retuned.retrain.settings import Settings
from retuned.retrain.versions import CANARY

log = logging.getLogger(__name__)

EVERY_SECONDS = 2.0
"""A replica that restarts, or is added, is seen after so long at most."""
PROBE_AGAIN = timedelta(minutes=5)
"""A server that restarts between two looks may come up with an adapter of its own configuration."""
_LONGEST_PAUSE = 60.0
_CLOSE_SECONDS = 5.0


class Reconciler:
    """The replicas of all targets."""

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
            show: gets each replica when it was looked at.
            show_served: gets a workload, and the seconds from the change of a share until the version was served.
            show_enough: gets a workload, and of each version with a share whether enough replicas answer with it, where
                that is known.
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

    def tick(self) -> None:
        """Look at each replica, in a thread of its own; at one that is being looked at, once more afterwards.

        Raises:
            WarehouseError: a thread could not write.
        """
        if self._fatal is not None:
            raise self._fatal
        with self._lock:
            if self._closed.is_set():
                return
            found = one_at_a_time(drain)(self._warehouse, self._settings, deployments(self._warehouse), self._now())
            for place in self._places(found):
                running = self._threads.get(place.key)
                if running is not None and running.is_alive():
                    self._once_more.add(place.key)
                    continue
                thread = threading.Thread(target=self._look, args=(place.key,), name="reconcile", daemon=True)
                self._threads[place.key] = thread
                thread.start()

    def run(self) -> None:
        """Look at each replica once, and wait until that is done."""
        self.tick()
        for thread in list(self._threads.values()):
            thread.join()
        if self._fatal is not None:
            raise self._fatal

    def close(self) -> None:
        """Wait for the threads, a little: what a killed one leaves undone is done after the next start."""
        self._closed.set()
        for thread in list(self._threads.values()):
            thread.join(_CLOSE_SECONDS / max(1, len(self._threads)))

    def replicas(self, workload: str) -> list[Replica]:
        """Those that get a workload's versions."""
        return [replica for replica in list(self._replicas.values()) if workload in replica.workloads]

    def withheld(self) -> dict[str, list[str]]:
        """By the address of a model server, the versions that it may list and nobody should ask it for: what the probe
        found wrong there, and what is not in service yet. A version comes into service on all servers at once, and that
        is kept: else its conversations would go back to another one where a server, or the daemon, restarts."""
        found, withheld = deployments(self._warehouse), dict[str, list[str]]()
        for place in self._places(found):
            if not place.is_server:
                continue
            replica = self._replicas.get(place.key)
            names = {one.name for one in found if one.version and not one.served_at and one.workload in place.workloads}
            if replica is not None:
                names |= {model.name for model in list(replica.models.values()) if model.state == "wrong"}
            if names:
                withheld[place.replica] = sorted(names)
        return withheld

    def service(self, one: Deployment) -> Service:
        """Whether enough replicas answer with a version, by `serving.replica_share` of its workload."""
        settings = self._settings.for_workload(one.workload)
        known = [
            [self._replicas.get(place.key) or Replica(*place.key) for place in target]
            for target in places_in(settings)
            if _takes(target[0].settings, provided=one.provided)
        ]
        return service(known, settings.serving.replica_share, one.name, one.replaces, self._now())

    def step_waits_for(self, workload: str) -> str:
        """What keeps the rollout of a workload from its next step; empty: enough replicas answer with the canary."""
        canary = (one for one in deployments(self._warehouse) if one.workload == workload and CANARY in one.aliases)
        return next((found.lacking for one in canary if not (found := self.service(one)).enough), "")

    # Inside

    def _places(self, found: Sequence[Deployment]) -> list[Place]:
        return places(self._settings, list(dict.fromkeys(one.workload for one in found)))

    def _look(self, key: tuple[str, str]) -> None:
        again = True
        while again and not self._closed.is_set():
            try:
                # The links change with the aliases, and must not be set back to those before.
                (one_at_a_time(self._follow) if key[0] == "folder" else self._follow)(key)
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

    def _follow(self, key: tuple[str, str]) -> None:
        """Make one replica have what it should have."""
        found = deployments(self._warehouse)
        place = next((place for place in self._places(found) if place.key == key), None)
        if place is None:
            return
        replica = self._replicas.setdefault(place.key, Replica(place.settings.kind, place.replica))
        replica.workloads, replica.looked_at, listed = place.workloads, self._now(), False
        due = {
            name: one
            for name, one in self._due(place).items()
            if _takes(place.settings, provided=one.version.provider_model is not None)
        }
        try:
            target = build(place, self._settings, self._warehouse, self._now, self._lead)
            there = target.listed()
            replica.up = listed = True
            for name in replica.models.keys() - due.keys():
                del replica.models[name]
            for name, one in due.items():
                model = replica.models.setdefault(name, Model(one.version.workload, name))
                self._bring(target, one, there, model)
            self._unload(target, there.keys() - due.keys(), place.workloads)
            self._problem(replica, "")
        except NoAnswer as error:
            replica.up = False
            replica.models.clear()  # when it is back it is a new one
            self._problem(replica, str(error))
        except (WarehouseError, duckdb.Error):
            raise
        except RetunedError as error:
            replica.up = isinstance(error, Refused) or replica.up
            if not listed:
                replica.models.clear()  # what it has is not known
            self._problem(replica, str(error))
        self._show(replica)
        one_at_a_time(self._note_served)(place.workloads)

    def _due(self, place: Place) -> dict[str, Wanted]:
        """What a target should have: links and registries what has an alias, the others what serves or is drained."""
        of = named if isinstance(place.settings, FolderTarget | MlflowTarget) else wanted
        return of(self._warehouse, place.workloads)

    def _bring(self, target: Target, one: Wanted, there: dict[str, frozenset[str]], model: Model) -> None:
        """Load a version where it is not there yet, and see whether the target answers with it."""
        now = self._now()
        if one.name not in there or (target.follows_aliases and there[one.name] != one.aliases):
            if model.next_try is not None and now < model.next_try:
                return
            model.probed_at, model.matches, model.tried_at = None, None, now
            try:
                if one.name not in there:
                    target.check(one.version)
                target.load(one)
            except (WarehouseError, StandsBy):
                raise
            except RetunedError as error:
                model.tries += 1
                model.next_try = now + timedelta(seconds=min(_LONGEST_PAUSE, EVERY_SECONDS * 2**model.tries))
                # It has just listed what it has: it is slow, or the next look finds it away.
                self._turn(target, model, "loading" if isinstance(error, NoAnswer) else "failed", str(error))
                return
            log.info("%s: %s %s has it", one.name, target.kind, target.replica)
        model.tries, model.next_try = 0, None
        if model.probed_at is None or model.state == "wrong" or now - model.probed_at >= PROBE_AGAIN:
            self._verify(target, one, model)

    def _verify(self, target: Target, one: Wanted, model: Model) -> None:
        model.tried_at = self._now()
        try:
            model.matches = target.verify(one.version)
            self._turn(target, model, "serving", "")
        except (WarehouseError, StandsBy):
            raise
        except WrongModel as error:
            model.matches = False
            self._turn(target, model, "wrong", str(error))
        except RetunedError as error:
            if isinstance(error, NoAnswer) or (isinstance(error, Refused) and error.may_pass):
                # It has just listed what it has, and is busy, or fails at this one.
                before: State = "loading" if model.probed_at is None else model.state
                self._turn(target, model, before, f"it is not probed yet: {error}")
                return
            # It serves, as far as is known.
            model.matches = None
            self._turn(target, model, "serving", f"it cannot be probed: {error}")
        model.probed_at = self._now()

    def _turn(self, target: Target, model: Model, state: State, detail: str) -> None:
        """A model's new state; what is wrong is logged once."""
        if detail and detail != model.detail:
            log.warning("%s: %s %s: %s: %s", model.name, target.kind, target.replica, state, detail)
        elif model.state == "wrong" and state == "serving":
            log.info("%s: %s %s answers with it", model.name, target.kind, target.replica)
        model.state, model.detail = state, detail

    def _unload(self, target: Target, names: set[str], workloads: Sequence[str]) -> None:
        """Take away what was drained: versions of these workloads, and nothing that somebody else loaded."""
        if not names:
            return
        for workload in workloads:
            known = {row["name"] for row in self._warehouse.rows(QUERIES["known_names"], {"workload": workload})}
            for name in sorted(names & known):
                target.unload(name)
                log.info("%s: %s %s has unloaded it", name, target.kind, target.replica)

    def _problem(self, replica: Replica, problem: str) -> None:
        if problem and problem != replica.problem:
            log.warning("target %s %s: %s", replica.kind, replica.address, problem)
        elif replica.problem and not problem:
            log.info("target %s %s is as it should be again", replica.kind, replica.address)
        replica.problem = problem

    def _note_served(self, workloads: Sequence[str]) -> None:
        """Keep when each version came into service: once enough replicas of each target answer with it. That is kept
        when some are lost later, which is shown."""
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
            if one.since < self._started_at:  # when it was served first is not known: before an update, say
                continue
            seconds = (now - one.since).total_seconds()
            self._show_served(one.workload, seconds)
            log.info("%s is served, %.1f s after the decision", one.name, seconds)
        for workload, enough_of in shown.items():
            self._show_enough(workload, enough_of)


def _takes(target: TargetSettings, *, provided: bool) -> bool:
    """Where a provider keeps the weights there is nothing to load."""
    return not provided or isinstance(target, FolderTarget | WebhookTarget)
