"""Rollouts: puts versions into service and takes them back."""

import logging
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, Literal

from retuned.consumers.common.lead import Lead, alone
from retuned.consumers.common.times import shown
from retuned.consumers.errors import RetunedError, StoreUnavailable
from retuned.consumers.kafka.contract import Publisher
from retuned.consumers.warehouse.audit import Entry, by_request, by_rule
from retuned.consumers.warehouse.connection import Warehouse, insert
from retuned.retrain import versions
from retuned.retrain.release import approvals, registry
from retuned.retrain.release.announce import announce
from retuned.retrain.release.approvals import Approval, Verdict
from retuned.retrain.release.deployments import deploy
from retuned.retrain.release.exclusive import lock, one_at_a_time, without_the_lock
from retuned.retrain.release.routes import Experiment, State, in_part, under_way
from retuned.retrain.settings import Settings
from retuned.retrain.versions import BASE, CANARY, CHAMPION, PREVIOUS, QUERIES

log = logging.getLogger(__name__)

Event = Literal["canary", "promoted", "completed", "rolled_back", "canary_rolled_back"]
Actor = Literal["gate", "approver", "operator", "watch", "rollout", "erasure"]
"""The cause of a change: the gate, a person's approval, an operator's command, the watch, a step of a rollout, or the
erasure of rows that a version learned."""


@dataclass(frozen=True)
class Change:
    """A row of `promotions`: `version` now answers a share of the traffic, and `previous_version` the rest.

    With `rolled_back` and `canary_rolled_back`, `version` answers all traffic again, and `previous_version` was taken
    back.
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
    """Changes which versions serve.

    Attributes:
        topic: the topic of messages about changes.
        show: updates the metrics of a workload.
        reconcile: makes the targets follow, without waiting for them.
        lead: see `common.lead`; for requests that runs send.
    """

    warehouse: Warehouse
    settings: Settings
    publisher: Publisher
    topic: str
    show: Callable[[str], None] = lambda _: None
    reconcile: Callable[[], None] = lambda: None
    lead: Lead = alone

    def promote(self, workload: str, version: str, actor: Actor, reason: str, now: datetime) -> str | None:
        """Makes a version the champion for all traffic; `base` restores the base model.

        Returns the version that serves now, None for the base model. See `set_champion` and `follow_up`.

        Raises:
            RetunedError: there is no such version, or it is the champion already.
        """
        serving = self.set_champion(workload, version, actor, reason, now)
        self.follow_up_or_log(workload)
        return serving

    def rollback(self, workload: str, actor: Actor, reason: str, now: datetime, of: str | None = None) -> str | None:
        """Takes back the canary or, if there is none, the champion. The version before it answers all traffic again.

        Returns the version that serves now, None for the base model. The version taken back does not become the
        previous one, and the gate never promotes it again.

        Args:
            of: take back this version only, not another one that has come into service meanwhile.

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
        """Stores a change of champion. `follow_up` completes it.

        It ends a rollout in progress. If the version is the champion with a holdback, only the holdback ends. Raises as
        `promote` does.
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
        """Starts the rollout of a version by the workload's `rollout` settings. `follow_up` completes it.

        Args:
            verdict: the approval that causes it, stored in the same transaction.

        Returns its share of the traffic: 1.0 as the champion, less as a canary, 0.0 in shadow.

        Raises:
            RetunedError: there is no such version, it is the champion, or a rollout is in progress.
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
        experiment = Experiment(uuid.uuid4().hex, workload, version, before, now, 0.0, now, "canary")
        return self._take_step(experiment, share, aliases, actor, reason, now, verdict)

    def advance(self, workload: str, experiment: str, share: float, reason: str, now: datetime) -> float:
        """Takes the step of a rollout that follows a share. Returns the new share of the version.

        Raises:
            RetunedError: the rollout has ended or changed since that was decided.
        """
        with lock:
            running = under_way(self.warehouse, workload)
            if running is None or (running.id, running.share, running.state) != (experiment, share, "canary"):
                raise RetunedError(f"workload {workload}: no step is taken: the rollout was changed meanwhile")
            aliases = versions.aliases(self.warehouse, workload)
            step = self.settings.for_workload(workload).rollout.after(running.share)
            reached = self._take_step(running, step, aliases, "rollout", reason, now)
        self.follow_up_or_log(workload)
        return reached

    def complete(self, workload: str, reason: str, now: datetime) -> bool:
        """Ends the holdback of a workload, so that its champion answers all traffic. Returns whether there was one."""
        with lock:
            running = under_way(self.warehouse, workload)
            if running is None or running.state != "holdback":
                return False
            self._complete(running, "rollout", reason, now)
        self.follow_up_or_log(workload)
        return True

    def drop_previous(self, workload: str) -> None:
        """Drops the alias of the previous champion, so that no rollback returns to it."""
        with lock:
            self.warehouse.execute(QUERIES["drop_alias"], {"workload": workload, "alias": PREVIOUS})
        self.follow_up_or_log(workload)

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
            raise RetunedError(
                f"workload {workload}: there is no previous champion to go back to; `retuned promote` puts one of "
                f"{names} into service"
            )
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
            if (known_version := versions.find(self.warehouse, workload, version)) and known_version.removed_at:
                why = f"version {version} was removed on {known_version.removed_at:%Y-%m-%d}"
            elif version in versions.erased_since(self.warehouse, workload):
                why = f"version {version} learned rows that were erased"
            raise RetunedError(f"workload {workload}: {why}; known are {', '.join(known)}")
        if found := versions.find(self.warehouse, workload, version):
            versions.check_intact(found)

    def _promotable(self, workload: str) -> list[str]:
        """Returns the available versions, oldest first, and the base model."""
        known, erased = versions.versions_of(self.warehouse, workload), versions.erased_since(self.warehouse, workload)
        return [*(one.version for one in known if one.removed_at is None and one.version not in erased), BASE]

    def changed(self) -> list[str]:
        """Returns the workloads whose champion ever changed, for which `follow_up` may have work."""
        return [row["workload"] for row in self.warehouse.rows(QUERIES["changed"])]

    @without_the_lock
    def follow_up(self, workload: str) -> int:
        """Completes a change of a workload: links, model cards, messages and metrics. Returns how many messages it
        published.

        All parts are attempted, and remain pending until they succeed: this is called after each change and then
        repeatedly. Workloads do not wait for each other.

        Raises:
            OSError, StoreUnavailable: a link or a card cannot be written.
            RetunedError: the files of a version to link were changed.
            BrokerUnavailable, BrokerRefused: the remaining messages stay pending.
        """
        unwritten, requests = list[Exception](), list[Approval]()
        try:
            with lock:
                registry.relink(self.warehouse, self.settings, workload)
        except (OSError, RetunedError) as error:
            unwritten.append(error)  # servers that load versions by path need no link
        for request in approvals.unannounced(self.warehouse, workload):
            try:
                self._complete_card(request)
                requests.append(request)
            except (OSError, StoreUnavailable) as error:
                unwritten.append(error)  # the request is announced once its card is complete
        self.reconcile()  # before the messages, because the broker may be unavailable
        try:
            published = announce(self.warehouse, self.settings, self.publisher, self.topic, workload, requests)
        finally:
            self.show(workload)
        if unwritten:
            raise unwritten[0]
        return published

    def _complete_card(self, approval: Approval) -> None:
        """Adds who approved or refused a version to its card."""
        if approval.actor is None:
            return
        version = versions.find(self.warehouse, approval.workload, approval.version)
        if version is not None and version.removed_at is None:
            registry.renew_card(self.warehouse, version)

    @without_the_lock
    def follow_up_or_log(self, workload: str) -> None:
        """Completes a change, and only logs failures: the change is committed, and the rest is attempted again."""
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
        """Stores a change, the aliases after it, its rollout and the approval that caused it, in one transaction.

        It supersedes a request for approval that waits, because that version was not compared with the one that comes
        into service. Where an erasure takes the champion out of service, the comparison with it still holds.
        """
        before = versions.aliases(self.warehouse, change.workload)
        with self.warehouse.transaction() as cursor:
            if verdict is not None:
                approvals.settle(cursor, verdict, now)
            if change.event in ("canary", "promoted", "rolled_back"):
                name = versions.model_name(change.workload, change.version)
                reason = f"{name} came into service ({change.actor}): {change.reason}"
                kind: approvals.Kind | None = "dataset" if change.actor == "erasure" else None
                approvals.supersede(cursor, change.workload, reason, now, kind)
            for alias in (CHAMPION, PREVIOUS, CANARY):
                if alias in before and alias in after and before[alias] == after[alias]:
                    continue  # keep the time since when the alias names this version
                cursor.execute(QUERIES["drop_alias"], {"workload": change.workload, "alias": alias})
                if alias in after:
                    row = {"workload": change.workload, "alias": alias, "version": after[alias]}
                    insert(cursor, "aliases", **row, created_at=now)
            if experiment is not None:
                cursor.execute(QUERIES["drop_rollout"], {"id": experiment.id})
                insert(cursor, "rollouts", **asdict(experiment))
            deploy(cursor, change.workload, _shares(experiment, after), now)
            cursor.execute(QUERIES["order_changes"], {"workload": change.workload, "now": now})
            insert(cursor, "promotions", id=uuid.uuid4().hex, created_at=now, **asdict(change), announced=False)
            self.warehouse.trail.note(cursor, _entry(change))


def _entry(change: Change) -> Entry:
    """Returns the audit's entry of a change. A person's reason is in the entry of the request."""
    names = (change.version, change.previous_version)
    subject, before = (versions.model_name(change.workload, name) for name in names)
    about: dict[str, Any] = {"workload": change.workload, "subject": subject}
    details = {"before": before, "share": change.share}
    if change.actor in ("operator", "approver"):
        return by_request(change.actor, change.event, **about, details=details)
    return by_rule(change.actor, change.event, **about, reason=change.reason, details=details)


def _shares(experiment: Experiment | None, after: dict[str, str | None]) -> dict[str | None, float]:
    """Returns the share of new conversations of each version, None for the base model."""
    if experiment is None or experiment.ended_at is not None:
        return {after.get(CHAMPION): 1.0}
    return {experiment.version: experiment.share, experiment.previous_version: round(1 - experiment.share, 4)}


def in_words(running: Experiment) -> str:
    """Describes a rollout in progress, and how to end it."""
    name = versions.model_name(running.workload, running.version)
    before = versions.model_name(running.workload, running.previous_version)
    return (
        f"{name} is being rolled out: it {in_part(running.share)} since "
        f"{shown(running.step_since)}, and {before} the rest; `retuned promote {running.workload} "
        f"{running.version}` gives it all, `retuned rollback {running.workload}` takes it back"
    )
