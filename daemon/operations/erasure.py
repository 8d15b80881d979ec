"""Operations on erasures: what a person takes back leaves retuned."""

from typing import TYPE_CHECKING, Annotated, Any, cast

from pydantic import Field

from retuned.daemon.operations.answers import Erased, Erasure, Found
from retuned.daemon.operations.fields import Named, Nothing, User
from retuned.daemon.operations.operation import LONG_SECONDS, Caller, Content, NotFound, Placeholder, Request, operation

if TYPE_CHECKING:
    from retuned.consumers.warehouse.selection import Selection
    from retuned.daemon.operations.local import Local

Time = Placeholder("TIME")
FIELDS = {
    "user_id": "User, by id or pseudonym",
    "conversation_id": "Conversation, by id",
    "interaction_id": "Interaction or feedback, by id",
    "reason": "Reason, kept with the receipt",
}
"""The fields of the console's form."""


class Events(Request):
    user_id: Annotated[str | None, Field(description="all events of this user, by id or pseudonym"), Content()] = None
    interaction_id: Annotated[
        str | None, Field(description="this interaction with its feedback, or this feedback, by id"), Content()
    ] = None
    conversation_id: Annotated[str | None, Field(description="all events of this conversation, by id"), Content()] = (
        None
    )
    workload: Annotated[str | None, Field(description="interactions of this workload")] = None
    after: Annotated[str | None, Field(description="interactions from this time on, ISO 8601"), Time] = None
    before: Annotated[str | None, Field(description="interactions before this time"), Time] = None
    attribute: Annotated[
        list[str],
        Field(default_factory=list, description="interactions with these attributes, each as name=value"),
        Content(),
    ]


class Forget(Events):
    reason: Annotated[str | None, Field(description="the reason, kept with the receipt")] = None
    user: User = None


@operation("POST", "/erasures/preview", least="admin", by_leader=True, seconds=LONG_SECONDS, bound="never")
def preview_erasure(local: "Local", request: Events, caller: Caller) -> Found:
    """Find what an erasure would remove, and change nothing.

    With several of workload, after, before and attribute, interactions match all of them. Later turns of the
    conversation of an erased interaction repeat it, and go with it; so does all feedback on it.
    """
    return cast("Found", local.jobs.erasures.preview(_selection(local, request)))


@operation("POST", "/erasures", least="admin", by_leader=True, seconds=LONG_SECONDS, bound="never")
def forget(local: "Local", request: Forget, caller: Caller) -> Erased:
    """Erase events, and everything that was made of them, for good.

    The daemon begins at once and continues after a restart; GET /erasures/{id} shows its state, and its receipt in the
    end.
    """
    id = local.jobs.erase(_selection(local, request), local.actor(caller, request.user), request.reason)
    return Erased(id=id)


@operation("GET", "/erasures", least="admin", bound="never")
def erasures(local: "Local", request: Nothing, caller: Caller) -> list[Erasure]:
    """The latest erasures, newest first, at most 100."""
    return cast("list[Erasure]", local.jobs.erasures.latest(100))


@operation("GET", "/erasures/{id}", least="admin", bound="never")
def erasure(local: "Local", request: Named, caller: Caller) -> Erasure:
    """An erasure, with its receipt once it is done."""
    row = local.jobs.erasures.of(request.id)
    if row is None:
        raise NotFound("no such erasure; GET /api/v1/erasures lists them")
    return cast("Erasure", row)


def summary(found: dict[str, Any]) -> list[str]:
    """Returns what a dry run found, in lines."""
    lines = [f"{rows:,} rows of {table}" for table, rows in found["tables"].items()]
    for place in (file for file in found["files"] if file["path"] not in found["left"]):
        rows = f"{place['rows']:,} rows of " if place["rows"] else ""
        lines.append(f"{place['action']} {rows}{place['path']}")
    for path, problem in found["left"].items():
        lines.append(f"{path} cannot be read ({problem}); restore it from a backup, or delete it")
    for one in found["versions"]:
        taught = f"{one['rows']:,} of these rows" if one["rows"] else "an ancestor that was trained on these rows"
        lines.append(f"{one['workload']}@{one['version']} was trained on {taught}; retrain it")
    lines += [f"it waits for {hold}" for hold in found["holds"]]
    return lines or ["nothing is found; copies that arrive later are kept out"]


def _selection(local: "Local", request: Events) -> "Selection":
    from retuned.consumers.warehouse.selection import Request as Asked

    fields: dict[str, Any] = request.model_dump(include=set(Events.model_fields))
    return Asked(**fields).selection(local.jobs.erasures.keys)
