"""What is known of the deployment beside its configuration: by the daemon that runs on it, else by its warehouse."""

from contextlib import closing
from typing import Any

from retuned.consumers.errors import RetunedError
from retuned.consumers.warehouse import schema
from retuned.consumers.warehouse.connection import utc_now
from retuned.consumers.warehouse.opening import attach
from retuned.daemon import overrides, workloads
from retuned.daemon.client import Client
from retuned.daemon.operations import diagnosis, state
from retuned.daemon.operations.diagnosis import Diagnosed
from retuned.daemon.operations.fields import Nothing
from retuned.daemon.settings import Settings


def running(settings: Settings) -> dict[str, Any] | None:
    """The status of the daemon that has the configured warehouse open; None: none answers on `http.port`.

    Raises:
        RetunedError: what answers there is no such daemon, or does not take the token.
    """
    client = Client(settings)
    if not client.is_up():
        return None
    answer = client.ask(state.status, Nothing())
    status: dict[str, Any] = {**answer}
    own = str(settings.warehouse.path.resolve())
    other = (status.get("storage") or {}).get("path")
    if other != own:
        raise RetunedError(
            f"http.port: the retuned that answers on {settings.http.port} has the warehouse {other or 'of another'} "
            f"open, and this configuration names {own}; give one of them another port"
        )
    return status


def known_workloads(settings: Settings) -> list[str] | None:
    """The workloads that have events or a model; None where that is not to be told."""
    try:
        status = running(settings)
        if status is not None:
            shown = sorted(status["workloads"])
            return shown if len(shown) < workloads.MOST else None  # of so many a status shows the busiest
        if not settings.warehouse.path.exists():
            return None
        with closing(attach(settings.warehouse, create=False)) as warehouse:
            return None if schema.pending(warehouse) else workloads.known(warehouse)
    except RetunedError:
        return None


def replaced_arguments(settings: Settings) -> Diagnosed | None:
    """What the stored events show of arguments that were replaced by pseudonyms; None: nothing, or it cannot be
    told."""
    try:
        if running(settings) is not None:
            found = Client(settings).ask(diagnosis.diagnosis, Nothing())
        elif settings.warehouse.path.exists():
            with closing(attach(settings.warehouse, create=False)) as warehouse:
                found = [] if schema.pending(warehouse) else [*diagnosis.replaced_arguments(warehouse, utc_now())]
        else:
            return None
    except RetunedError:
        return None
    return next((one for one in found if one["name"] == diagnosis.ARGUMENTS), None)


def unknown(settings: Settings, workload: str) -> str | None:
    """That no event, no model and no entry of `workloads` has this name, and which are near; None: one has, or it
    cannot be told."""
    known = known_workloads(settings)
    if not known or workload in known or overrides.matching(settings.workloads, workload):
        return None
    return f"workload {workload}: no event and no entry of workloads has this name{overrides.near(workload, known)}"
