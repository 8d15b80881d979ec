"""Putting a version into service, taking it back, and telling the world."""

import logging
import threading
import uuid
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

from retuned.consumers.common.lead import Lead, alone
from retuned.consumers.errors import RetunedError, StoreUnavailable
from retuned.consumers.kafka.contract import Publisher
from retuned.consumers.warehouse.connection import Warehouse, insert
from retuned.retrain import versions
from retuned.retrain.release import approvals, registry
from retuned.retrain.release.approvals import Approval, Verdict
from retuned.retrain.release.deployments import deploy
from retuned.retrain.release.routes import Experiment, State, in_part, under_way
from retuned.retrain.settings import Base, ProviderModel, Settings
from retuned.retrain.versions import CANARY, CHAMPION, PREVIOUS, QUERIES

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

BASE = "base"

_lock = threading.RLock()
_publishing: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)  # by workload


def one_at_a_time(work: Callable[P, R]) -> Callable[P, R]:
    """The gate, an operator and the watch work in threads of their own, on the same rows and links.

    What looks at the champion before it changes it is decorated too, so that the champion is still the one it saw.
    """

    @wraps(work)
    def alone(*args: P.args, **kwargs: P.kwargs) -> R:
        with _lock:
            return work(*args, **kwargs)

    return alone


Event = Literal["canary", "promoted", "completed", "rolled_back", "canary_rolled_back"]
Actor = Literal["gate", "approver", "operator", "watch", "rollout"]
"""Who makes a change: the gate, a person who approved what it passed, a person by hand, the watch, a rollout's step."""


@dataclass(frozen=True)
class Change:
    """What a row of `promotions` says: which version answers a share of the traffic from now on, and what the rest.

    `rolled_back` and `canary_rolled_back`: `version` answers all again, and `previous_version` was taken back.
    """

    workload: str
    event: Event
    version: str | None
    previous_version: str | None
    actor: Actor
    reason: str
    share: float = 1.0
    experiment: str | None = None


@dataclass(frozen=True)
class Rollout:
    """Changes of what serves: what they are written to, and where they are announced.

    Attributes:
        topic: of the messages that announce a change.
        show: brings the metrics of a workload up to date.
        reconcile: has the targets follow, without waiting for them.
        lead: see `common.lead`; for what runs ask of others.
    """

    warehouse: Warehouse
    settings: Settings
    publisher: Publisher
    topic: str
    show: Callable[[str], None] = lambda _: None
    reconcile: Callable[[], None] = lambda: None
    lead: Lead = alone

    def promote(self, workload: str, version: str, actor: Actor, reason: str, now: datetime) -> str | None:
        """Make a version the champion at once; `base` puts the base model back into service.

        Returns what serves now: the version, or None for the base model. See `set_champion` and `follow_up`.

        Raises:
            RetunedError: there is no such version, or it is the champion already.
        """
        serving = self.set_champion(workload, version, actor, reason, now)
        self.follow_up_or_log(workload)
        return serving

    def rollback(self, workload: str, actor: Actor, reason: str, now: datetime, of: str | None = None) -> str | None:
        """Take back the canary or, where there is none, the champion: what was before it answers all again.

        Returns what serves now, None for the base model. What is taken back is not kept as previous, and the gate never
        promotes it again.

        Args:
            of: take back this version, and no other that has come into service meanwhile.

        Raises:
            RetunedError: there is no previous champion, or `of` does not serve.
        """
        serving = self._take_back(workload, actor, reason, now, of)
        self.follow_up_or_log(workload)
        return serving

    @one_at_a_time
    def set_champion(
        self, workload: str, version: str, actor: Actor, reason: str, now: datetime, verdict: Verdict | None = None
    ) -> str | None:
        """The first half of `promote`: the change is a fact once its rows are written. `follow_up` does what is left.

        A rollout that is under way ends with it; of a champion with a holdback that alone ends. Raises as `promote`
        does.
        """
        self._check_promotable(workload, version)
        aliases = versions.aliases(self.warehouse, workload)
        target = None if version == BASE else version
        before, running = aliases.get(CHAMPION), under_way(self.warehouse, workload)
        if before == target:
            if running is not None and running.state == "holdback":
                self._complete(running, actor, reason, now)
                return target
            name = versions.model_name(workload, target)
            serves = f"{name} is the champion" if target else f"{name}, the base model, serves"
            raise RetunedError(f"workload {workload}: {serves} already")
        change = Change(workload, "promoted", target, before, actor, reason)
        state: State = "done" if running and running.version == target else "replaced"
        ended = running and replace(running, state=state, ended_at=now)
        self._write(change, {CHAMPION: target, PREVIOUS: before}, ended, now, verdict)
        return target

    @one_at_a_time
    def begin(
        self, workload: str, version: str, actor: Actor, reason: str, now: datetime, verdict: Verdict | None = None
    ) -> float:
        """Put a version into service as `rollout` of the workload says; `follow_up` does what is left.

        Args:
            verdict: the approval that it follows from, which is written with it.

        Returns its share of the traffic: 1.0 as the champion, less as a canary, 0.0 where it is asked in shadow first.

        Raises:
            RetunedError: there is no such version, it is the champion, or a rollout is under way.
        """
        settings = self.settings.for_workload(workload).rollout
        share = 0.0 if settings.shadow else settings.after(0.0)
        running = under_way(self.warehouse, workload)
        if running is not None:
            raise RetunedError(f"workload {workload}: {in_words(running)}")
        if share == 1.0 and not settings.holdback:
            self.set_champion(workload, version, actor, reason, now, verdict)
            return share
        self._check_promotable(workload, version)
        aliases = versions.aliases(self.warehouse, workload)
        before = aliases.get(CHAMPION)
        if before == version:
            raise RetunedError(f"workload {workload}: {versions.model_name(workload, version)} is the champion already")
        made = Experiment(uuid.uuid4().hex, workload, version, before, now, 0.0, now, "canary")
        return self._take_step(made, share, aliases, actor, reason, now, verdict)

    def advance(self, workload: str, experiment: str, share: float, reason: str, now: datetime) -> float:
        """Take the step that follows a share, as was decided of a rollout. Returns the new share of the version.

        Raises:
            RetunedError: the rollout ended, or was moved on, since that was decided.
        """
        with _lock:
            running = under_way(self.warehouse, workload)
            if running is None or (running.id, running.share, running.state) != (experiment, share, "canary"):
                raise RetunedError(f"workload {workload}: no step is taken: the rollout was changed meanwhile")
            aliases = versions.aliases(self.warehouse, workload)
            step = self.settings.for_workload(workload).rollout.after(running.share)
            reached = self._take_step(running, step, aliases, "rollout", reason, now)
        self.follow_up_or_log(workload)
        return reached

    def complete(self, workload: str, reason: str, now: datetime) -> bool:
        """End the holdback of a workload: its champion answers all. Returns whether there was one."""
        with _lock:
            running = under_way(self.warehouse, workload)
            if running is None or running.state != "holdback":
                return False
            self._complete(running, "rollout", reason, now)
        self.follow_up_or_log(workload)
        return True

    def _complete(self, running: Experiment, actor: Actor, reason: str, now: datetime) -> None:
        workload, version, before = running.workload, running.version, running.previous_version
        change = Change(workload, "completed", version, before, actor, reason, 1.0, running.id)
        ended = replace(running, share=1.0, step_since=now, state="done", ended_at=now)
        self._write(change, versions.aliases(self.warehouse, workload), ended, now)

    def _take_step(
        self,
        running: Experiment,
        share: float,
        aliases: dict[str, str | None],
        actor: Actor,
        reason: str,
        now: datetime,
        verdict: Verdict | None = None,
    ) -> float:
        settings = self.settings.for_workload(running.workload).rollout
        after = replace(running, share=share, step_since=now)
        if share < 1.0:
            event: Event = "canary"
            aliases = aliases | {CANARY: running.version}
        else:
            event = "promoted"
            share = round(1.0 - settings.holdback, 4)  # in whole buckets
            after = replace(after, share=share, state="holdback")
            if not settings.holdback:
                after = replace(after, state="done", ended_at=now)
            aliases = {CHAMPION: running.version, PREVIOUS: running.previous_version}
        change = Change(
            running.workload, event, running.version, running.previous_version, actor, reason, share, running.id
        )
        self._write(change, aliases, after, now, verdict)
        return share

    @one_at_a_time
    def _take_back(self, workload: str, actor: Actor, reason: str, now: datetime, of: str | None) -> str | None:
        aliases = versions.aliases(self.warehouse, workload)
        champion, running = aliases.get(CHAMPION), under_way(self.warehouse, workload)
        if running is not None and running.state == "canary" and of in (None, running.version):
            del aliases[CANARY]
            ended = replace(running, state="rolled_back", ended_at=now)
            change = Change(
                workload, "canary_rolled_back", champion, running.version, actor, reason, experiment=running.id
            )
            self._write(change, aliases, ended, now)
            return champion
        if of is not None and champion != of:
            raise RetunedError(
                f"workload {workload}: {versions.model_name(workload, of)} is not taken back: it no longer serves"
            )
        if PREVIOUS not in aliases:
            names = ", ".join(self._promotable(workload))
            raise RetunedError(f"workload {workload}: no previous champion to go back to; promote one of {names}")
        target = aliases[PREVIOUS]
        change = Change(
            workload, "rolled_back", target, champion, actor, reason, experiment=running.id if running else None
        )
        state: State = "rolled_back" if running and running.version == champion else "replaced"
        self._write(change, {CHAMPION: target}, running and replace(running, state=state, ended_at=now), now)
        return target

    def _check_promotable(self, workload: str, version: str) -> None:
        known = self._promotable(workload)
        if version not in known:
            why = f"no version {version}"
            if (found := versions.find(self.warehouse, workload, version)) and found.removed_at:
                why = f"version {version} was removed by retention on {found.removed_at:%Y-%m-%d}"
            raise RetunedError(f"workload {workload}: {why}; known are {', '.join(known)}")

    def _promotable(self, workload: str) -> list[str]:
        """The versions that are there, oldest first, and the base model."""
        known = versions.versions_of(self.warehouse, workload)
        return [*(version.version for version in known if version.removed_at is None), BASE]

    def changed(self) -> list[str]:
        """The workloads with any change of what serves: those that `follow_up` may have something to do for."""
        return [row["workload"] for row in self.warehouse.rows(QUERIES["changed"])]

    def follow_up(self, workload: str) -> int:
        """What follows a change of a workload's champion, or of a request for approval: links, what a person decided in
        the model card, the messages that were not published yet, metrics.

        All are tried, oldest message first, and stay to be done until they are: this is called after each change and
        then again and again. A crash between a message and its mark publishes it twice, with one id. No other
        workload waits for it.

        Returns:
            How many messages were published.

        Raises:
            OSError, StoreUnavailable: a link or a card cannot be written.
            BrokerUnavailable, BrokerRefused: the rest of the messages stays.
        """
        unwritten, requests, published = list[Exception](), list[Approval](), 0
        try:
            with _lock:
                registry.relink(self.warehouse, self.settings, workload)
        except OSError as error:
            unwritten.append(error)  # who is served by name and path needs no link
        for request in approvals.unannounced(self.warehouse, workload):
            try:
                self._complete_card(request)
                requests.append(request)
            except (OSError, StoreUnavailable) as error:
                unwritten.append(error)  # it is announced once its card is complete
        self.reconcile()  # not after the broker, which may be away
        try:
            with _publishing[workload]:
                rows = self.warehouse.rows(QUERIES["changes"], {"workload": workload, "announced": False})
                told: list[tuple[datetime, dict[str, Any] | Approval]] = [(row["created_at"], row) for row in rows]
                told += [(request.state_since, request) for request in requests]
                for _, one in sorted(told, key=lambda pair: pair[0]):
                    if isinstance(one, Approval):
                        published += self._announce_request(one)
                    else:
                        self.publisher.publish(self.topic, workload, _message(one, self._base(one)))
                        self.warehouse.execute(QUERIES["announced"], {"id": one["id"]})
                        published += 1
        finally:
            self.show(workload)
        if unwritten:
            raise unwritten[0]
        return published

    def _complete_card(self, approval: Approval) -> None:
        """Have the card of its version name who approved or refused it."""
        if approval.actor is None:
            return
        version = versions.find(self.warehouse, approval.workload, approval.version)
        if version is not None and version.removed_at is None:
            registry.renew_card(self.warehouse, version)

    def _announce_request(self, approval: Approval) -> int:
        """Returns how many messages that takes: none where it was approved, for a change follows from that."""
        published = 0
        if approval.state != "approved":
            self.publisher.publish(self.topic, approval.workload, self._request(approval))
            published = 1
        self._announced(approval)
        return published

    def _request(self, approval: Approval) -> dict[str, Any]:
        """The message of a request that waits, was refused or has expired: what served then, as the change before it
        announced that, and the request beside it. A reader that only asks what serves, and a compacted topic, lose
        nothing by it."""
        rows = self.warehouse.rows(QUERIES["changes"], {"workload": approval.workload, "announced": True})
        changes = [row for row in rows if row["created_at"] <= approval.state_since]
        serving = changes[-1] if changes else self._unchanged(approval.workload)
        told = {"id": approval.id, "created_at": approval.state_since, "event": "approval_requested"}
        if approval.state != "waiting":
            told |= {"id": f"{approval.id}-{approval.state}", "event": f"approval_{approval.state}"}
        request = {
            "id": approval.id,
            "version": approval.version,
            "model": approval.name,
            "expires_at": _timestamp(approval.expires_at),
            "actor": approval.actor,
            "reason": approval.reason,
        }
        return _message(serving, self._base(serving), **told, reason=str(approval)) | {"approval": request}

    def _unchanged(self, workload: str) -> dict[str, Any]:
        """In the form of a row of `promotions`: the base model has served since ever."""
        base = self.settings.for_workload(workload).base
        known = str(base) if isinstance(base, ProviderModel) else None
        unset = dict.fromkeys(("version", "previous_version", "path", "base_model", "share", "experiment"))
        return {"workload": workload, "provider_model": known, **unset}

    @one_at_a_time
    def _announced(self, approval: Approval) -> None:
        """One at a time: DuckDB refuses to change a row that is being settled."""
        self.warehouse.execute(approvals.QUERIES["announced"], {"id": approval.id, "state": approval.state})

    def _base(self, row: dict[str, Any]) -> str | None:
        """The base model of what serves since a change: as the configuration names it, where it is that one, else the
        folder that the version names. Without a version it is what the next training begins from."""
        configured, known = self.settings.for_workload(row["workload"]).base, row["base_model"]
        if configured is None or (row["version"] is not None and not _is_at(configured, known)):
            return None if known is None else str(known)
        return str(configured)

    def follow_up_or_log(self, workload: str) -> None:
        """The change is committed: nothing that fails from here on makes it undone, or may be taken for its failure."""
        try:
            self.follow_up(workload)
        except Exception as error:  # noqa: BLE001
            log.warning("%s: changed; links, model card or announcement follow later: %s", workload, error)

    def _write(
        self,
        change: Change,
        after: dict[str, str | None],
        experiment: Experiment | None,
        now: datetime,
        verdict: Verdict | None = None,
    ) -> None:
        """The change as a row, the aliases after it, the rollout that it is about and what a person approved, in one
        transaction.

        A request for approval that waits gives way to any other version that comes into service: with that its version
        was not compared.
        """
        before = versions.aliases(self.warehouse, change.workload)
        with self.warehouse.transaction() as cursor:
            if verdict is not None:
                approvals.settle(cursor, verdict, now)
            if change.event in ("canary", "promoted", "rolled_back"):
                name = versions.model_name(change.workload, change.version)
                approvals.supersede(
                    cursor, change.workload, f"{name} came into service ({change.actor}): {change.reason}", now
                )
            for alias in (CHAMPION, PREVIOUS, CANARY):
                if alias in before and alias in after and before[alias] == after[alias]:
                    continue  # it names that version since when it did
                cursor.execute(QUERIES["drop_alias"], {"workload": change.workload, "alias": alias})
                if alias in after:
                    row = {"workload": change.workload, "alias": alias, "version": after[alias]}
                    insert(cursor, "aliases", **row, created_at=now)
            if experiment is not None:
                cursor.execute(QUERIES["drop_rollout"], {"id": experiment.id})
                insert(cursor, "rollouts", **asdict(experiment))
            deploy(cursor, change.workload, _shares(experiment, after), now)
            insert(cursor, "promotions", id=uuid.uuid4().hex, created_at=now, **asdict(change), announced=False)


def _shares(experiment: Experiment | None, after: dict[str, str | None]) -> dict[str | None, float]:
    """Of the versions, None for the base model, of all new conversations."""
    if experiment is None or experiment.ended_at is not None:
        return {after.get(CHAMPION): 1.0}
    return {experiment.version: experiment.share, experiment.previous_version: round(1 - experiment.share, 4)}


def in_words(running: Experiment) -> str:
    """A rollout under way, and how a person ends it."""
    name = versions.model_name(running.workload, running.version)
    before = versions.model_name(running.workload, running.previous_version)
    return (
        f"{name} is being rolled out: it {in_part(running.share)} since "
        f"{running.step_since:%Y-%m-%d %H:%M}, and {before} the rest; `retuned promote {running.workload} "
        f"{running.version}` gives it all, `retuned rollback {running.workload}` takes it back"
    )


def _is_at(base: Base, known: str | None) -> bool:
    """Whether a base model is the one of this name or folder."""
    if isinstance(base, ProviderModel):
        return base.name == known
    return base.resolve() == Path(known or "").resolve()


def _message(serving: dict[str, Any], base: str | None, **change: Any) -> dict[str, Any]:
    """What serves, by its row in `promotions`, and the change that says so: by default that row itself."""
    told: dict[str, Any] = {name: serving.get(name) for name in ("id", "created_at", "event", "reason")} | change
    return {
        "id": told["id"],
        "timestamp": _timestamp(told["created_at"]),
        "event": told["event"],
        "workload": serving["workload"],
        "model": versions.model_name(serving["workload"], serving["version"]),
        "version": serving["version"],
        "previous_version": serving["previous_version"],
        "path": serving["path"] and str(Path(serving["path"]).resolve()),
        "base_model": base,
        "provider_model": serving["provider_model"],
        "share": 1.0 if serving["share"] is None else serving["share"],
        "experiment": serving["experiment"],
        "reason": told["reason"],
    }


def _timestamp(time: datetime) -> str:
    return time.isoformat(timespec="milliseconds") + "Z"
