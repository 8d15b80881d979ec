"""Operations on legal holds."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, cast

from pydantic import Field

from retuned.daemon.operations.answers import Done
from retuned.daemon.operations.answers import Hold as AHold
from retuned.daemon.operations.fields import Nothing, Text
from retuned.daemon.operations.operation import Caller, Content, Placeholder, Request, operation

if TYPE_CHECKING:
    from retuned.daemon.operations.local import Local

Because = Annotated[Text, Field(description="the reason, kept with the hold"), Placeholder("TEXT")]


@operation("GET", "/holds", least="operator", bound="never")
def holds(local: "Local", request: Nothing, caller: Caller) -> list[AHold]:
    """List all legal holds: those in force first, then the latest."""
    from retuned.consumers.warehouse.holds import listed

    return cast("list[AHold]", [asdict(one) for one in listed(local.warehouse)])


class PlaceHold(Request):
    workload: Annotated[str | None, Field(description="the workload that it covers; default: all")] = None
    account: Annotated[
        str | None,
        Field(description="the user whose data it covers, by id or pseudonym; default: all users"),
        Content(),
    ] = None
    reason: Because


@operation("POST", "/holds", least="admin", by_leader=True, command="hold place")
def place_hold(local: "Local", request: PlaceHold, caller: Caller) -> Done:
    """Place a legal hold: what it covers is neither deleted by retention nor erased, until it is released."""
    from retuned.consumers.warehouse.holds import place
    from retuned.consumers.warehouse.selection import pseudonyms

    workload = local.known(request.workload, caller, *local.configured()) if request.workload is not None else None
    by, now = local.actor(caller), local.jobs.context.now()
    users = [None] if request.account is None else pseudonyms(local.jobs.erasures.keys, request.account)
    placed = place(local.warehouse, workload, users, request.reason, by, now)
    return Done(
        workload=workload,
        done="; ".join(f"hold {hold.id} is in force until `retuned hold release {hold.id}`" for hold in placed),
    )


class ReleaseHold(Request):
    id: Annotated[str, Field(description="the id of the hold")]
    reason: Because


@operation("POST", "/holds/{id}/release", least="admin", by_leader=True, bound="never", command="hold release")
def release_hold(local: "Local", request: ReleaseHold, caller: Caller) -> Done:
    """Release a legal hold: retention and erasures that waited for it go on."""
    from retuned.consumers.warehouse.holds import release

    hold = release(local.warehouse, request.id, request.reason, local.actor(caller), local.jobs.context.now())
    return Done(workload=hold.workload, done=f"hold {hold.id} is released")
