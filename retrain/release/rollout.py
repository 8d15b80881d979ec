"""Putting a version into service, taking it back, and telling the world."""

import logging
import threading
import uuid
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

from retuned.consumers.errors import RetunedError
from retuned.consumers.kafka.contract import Publisher
from retuned.consumers.warehouse.connection import Warehouse, insert
from retuned.retrain import versions
from retuned.retrain.release import approvals, registry
from retuned.retrain.release.approvals import Approval, Verdict
from retuned.retrain.settings import Base, ProviderModel, Settings
from retuned.retrain.versions import CHAMPION, PREVIOUS, QUERIES

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

BASE = "base"

Actor = Literal["gate", "approver", "operator", "watch"]
"""Who changes a champion: the gate, a person who approved what the gate passed, a person by hand, the watch."""

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


@dataclass(frozen=True)
class Rollout:
    """Changes of champions: what they are written to, and where they are announced.

    Attributes:
        topic: of the messages that announce a change.
        show: brings the metrics of a workload up to date.
    """

    warehouse: Warehouse
    settings: Settings
    publisher: Publisher
    topic: str
    show: Callable[[str], None] = lambda _: None

    def promote(self, workload: str, version: str, actor: Actor, reason: str, now: datetime) -> str | None:
        """Make a version the champion; `base` puts the base model back into service.

        Returns what serves now: the version, or None for the base model. See `set_champion` and `follow_up`.

        Raises:
            RetunedError: there is no such version, or it is the champion already.
        """
        serving = self.set_champion(workload, version, actor, reason, now)
        self.follow_up_or_log(workload)
        return serving

    def rollback(
        self,
        workload: str,
        actor: Actor,
        reason: str,
        now: datetime,
        of: str | None = None,
    ) -> str | None:
        """Put the previous champion back into service and return it, None for the base model.

        What is rolled back from is not kept as previous, and the gate never promotes it again.

        Args:
            of: take back this version, and no other that has become the champion meanwhile.

        Raises:
            RetunedError: there is no previous champion, or `of` is not the champion.
        """
        serving = self._restore_previous(workload, actor, reason, now, of)
        self.follow_up_or_log(workload)
        return serving

    @one_at_a_time
    def set_champion(
        self,
        workload: str,
        version: str,
        actor: Actor,
        reason: str,
        now: datetime,
        verdict: Verdict | None = None,
    ) -> str | None:
        """The first half of `promote`: the change is a fact once its rows are written. `follow_up` does what is left.

        Args:
            verdict: the approval that it follows from, written with it.

        Raises as `promote` does.
        """
        known = self._promotable(workload)
        if version not in known:
            why = f"no version {version}"
            if (found := versions.find(self.warehouse, workload, version)) and found.removed_at:
                why = f"version {version} was removed by retention on {found.removed_at:%Y-%m-%d}"
            raise RetunedError(f"workload {workload}: {why}; known are {', '.join(known)}")
        aliases = versions.aliases(self.warehouse, workload)
        target = None if version == BASE else version
        before = aliases.get(CHAMPION)
        if before == target:
            name = versions.model_name(workload, target)
            serves = f"{name} is the champion" if target else f"{name}, the base model, serves"
            raise RetunedError(f"workload {workload}: {serves} already")
        self._write(workload, "promoted", {CHAMPION: target, PREVIOUS: before}, before, actor, reason, now, verdict)
        return target

    @one_at_a_time
    def _restore_previous(self, workload: str, actor: Actor, reason: str, now: datetime, of: str | None) -> str | None:
        aliases = versions.aliases(self.warehouse, workload)
        if of is not None and aliases.get(CHAMPION) != of:
            raise RetunedError(
                f"workload {workload}: {versions.model_name(workload, of)} is not taken back: it no longer serves"
            )
        if PREVIOUS not in aliases:
            names = ", ".join(self._promotable(workload))
            raise RetunedError(f"workload {workload}: no previous champion to go back to; promote one of {names}")
        target = aliases[PREVIOUS]
        self._write(workload, "rolled_back", {CHAMPION: target}, aliases.get(CHAMPION), actor, reason, now)
        return target

    def _promotable(self, workload: str) -> list[str]:
        """The versions that are there, oldest first, and the base model."""
        known = versions.versions_of(self.warehouse, workload)
        return [*(version.version for version in known if version.removed_at is None), BASE]

    def changed(self) -> list[str]:
        """The workloads whose champion was ever changed, or where a version waited for approval: those that `follow_up`
        may have something to do for."""
        return [row["workload"] for row in self.warehouse.rows(QUERIES["changed"])]

    def follow_up(self, workload: str) -> int:
        """What follows a change of a workload's champion: links, the messages that were not published yet, metrics.

        All are tried, oldest message first, and stay to be done until they are: this is called after each change and
        then again and again. A crash between a message and its mark publishes it twice, with one id. No other
        workload waits for it.

        Returns:
            How many messages were published.

        Raises:
            OSError: a link cannot be made.
            BrokerUnavailable, BrokerRefused: the rest of the messages stays.
        """
        unlinked: OSError | None = None
        try:
            with _lock:
                registry.relink(self.warehouse, self.settings, workload)
        except OSError as error:
            unlinked = error  # who is served by name and path needs no link
        try:
            with _publishing[workload]:
                rows = self.warehouse.rows(QUERIES["changes"], {"workload": workload, "announced": False})
                for row in rows:
                    self.publisher.publish(self.topic, workload, _message(row, self._base(row)))
                    self.warehouse.execute(QUERIES["announced"], {"id": row["id"]})
                requests = approvals.unannounced(self.warehouse, workload)
                for request in requests:
                    self.publisher.publish(self.topic, workload, self._request(request))
                    self._announced(request)
        finally:
            self.show(workload)
        if unlinked is not None:
            raise unlinked
        return len(rows) + len(requests)

    def _request(self, approval: Approval) -> dict[str, Any]:
        """The message of a request: what serves, as the latest change announced it, and what waits beside it. A reader
        that only asks what serves, and a compacted topic, lose nothing by it."""
        changes = self.warehouse.rows(QUERIES["changes"], {"workload": approval.workload, "announced": True})
        serving = changes[-1] if changes else self._base_row(approval.workload)
        told = {"id": approval.id, "created_at": approval.requested_at, "event": "approval_requested"}
        waiting = {"version": approval.version, "model": approval.name, "expires_at": _timestamp(approval.expires_at)}
        return _message(serving, self._base(serving), **told, reason=str(approval)) | {"approval": waiting}

    def _base_row(self, workload: str) -> dict[str, Any]:
        """In the form of a change of champion: the base model has served since ever."""
        base = self.settings.for_workload(workload).base
        known = str(base) if isinstance(base, ProviderModel) else None
        unset = dict.fromkeys(("version", "previous_version", "path", "base_model"))
        return {"workload": workload, "provider_model": known, **unset}

    @one_at_a_time
    def _announced(self, approval: Approval) -> None:
        """One at a time: DuckDB refuses to change a row that is being settled."""
        self.warehouse.execute(approvals.QUERIES["announced"], {"id": approval.id})

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
            log.warning("%s: the champion is changed; its links or its announcement follow later: %s", workload, error)

    def _write(
        self,
        workload: str,
        event: Literal["promoted", "rolled_back"],
        aliases: dict[str, str | None],
        before: str | None,
        actor: Actor,
        reason: str,
        now: datetime,
        verdict: Verdict | None = None,
    ) -> None:
        """The aliases, the change as a row, and what it makes of the request for approval that waits, in one
        transaction: with another champion its version was not compared."""
        changed = f"{versions.model_name(workload, aliases[CHAMPION])} was put into service by the {actor}: {reason}"
        with self.warehouse.transaction() as cursor:
            if verdict is not None:
                approvals.settle(cursor, verdict, now)
            approvals.supersede(cursor, workload, changed, now)
            for alias in (CHAMPION, PREVIOUS):
                cursor.execute(QUERIES["drop_alias"], {"workload": workload, "alias": alias})
            for alias, version in aliases.items():
                insert(cursor, "aliases", workload=workload, alias=alias, version=version, created_at=now)
            insert(
                cursor,
                "promotions",
                id=uuid.uuid4().hex,
                created_at=now,
                workload=workload,
                event=event,
                version=aliases[CHAMPION],
                previous_version=before,
                actor=actor,
                reason=reason,
                announced=False,
            )


def _is_at(base: Base, known: str | None) -> bool:
    """Whether a base model is the one of this name or folder."""
    if isinstance(base, ProviderModel):
        return base.name == known
    return base.resolve() == Path(known or "").resolve()


def _message(serving: dict[str, Any], base: str | None, **change: Any) -> dict[str, Any]:
    """What serves, by its row in `promotions`, and the change that says so: by default that row itself."""
    told = {name: serving.get(name) for name in ("id", "created_at", "event", "reason")} | change
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
        "share": 1.0,
        "reason": told["reason"],
    }


def _timestamp(time: datetime) -> str:
    return time.isoformat(timespec="milliseconds") + "Z"
