"""Operations on the memory of corrections: its entries, the feed of gateways, look-ups of apps without one."""

import logging
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast, get_args

from pydantic import Field

from retuned.consumers.errors import RetunedError
from retuned.daemon.operations.answers import DecidedMemory, MemoryDetail, MemoryEntry, MemoryFeed, MemoryFound
from retuned.daemon.operations.fields import Reason, Text, User, Workload
from retuned.daemon.operations.operation import Caller, Content, NotFound, Request, operation
from retuned.daemon.operations.rows import without_personal_data

if TYPE_CHECKING:
    from retuned.daemon.operations.local import Local
    from retuned.retrain.memory.feed import Reading

log = logging.getLogger(__name__)

State = Literal["active", "frozen", "superseded", "overruled", "withdrawn", "retired", "expired", "removed"]
Action = Literal["edit", "freeze", "unfreeze", "remove"]
STATES: tuple[State, ...] = get_args(State)
ACTIONS: tuple[Action, ...] = get_args(Action)
UNUSED = {"helped": 0, "held_out": 0, "last_used": None}
Messages = Annotated[
    list[dict[str, Any]],
    Field(min_length=1, description="the conversation, as in requests of OpenAI's chat API"),
    Content(),
]
Context = Annotated[list[str] | None, Field(description="the passages on which the answer is based, if any"), Content()]
Tools = Annotated[
    list[dict[str, Any]] | None, Field(description="the tools that the model is offered, if any"), Content()
]


Documents = Annotated[
    list[dict[str, Any]] | None, Field(description="the field `documents` of the request, if any"), Content()
]
TemplateArguments = Annotated[
    dict[str, Any] | None, Field(description="the field `chat_template_kwargs` of the request, if any"), Content()
]


class Feed(Request):
    after: Annotated[int, Field(ge=0, description="the sequence of the last answer; 0: all entries in force")] = 0
    limit: Annotated[int, Field(ge=1, le=5_000, description="the most entries")] = 5_000


@operation("GET", "/memory/feed", least="gateway", bound="own", reads="conversations")
def memory_feed(local: "Local", request: Feed, caller: Caller) -> MemoryFeed:
    """Get the entries of the memory that changed after a sequence, as gateways use them.

    An entry in any state but active has to be dropped, and is sent without its texts. Another epoch means that
    sequences of before are void: start over with 0.
    """
    from retuned.retrain.memory.feed import feed

    names = {*local.jobs.context.workloads(), *local.configured()}
    warehouse, settings = local.warehouse, local.settings
    found = feed(warehouse, settings, names, request.after, request.limit, caller.workloads, caller.may_see)
    return cast("MemoryFeed", found)


class LookUp(Request):
    workload: Workload
    messages: Messages
    context: Context = None
    tools: Tools = None
    documents: Documents = None
    chat_template_kwargs: TemplateArguments = None
    unit: Annotated[
        str | None,
        Field(description="the conversation's or the user's id, by which some are not helped; null: all are helped"),
        Content(),
    ] = None


@operation("POST", "/memory/lookup", least="gateway", prompts=True, outdates=False, reads="conversations")
def memory_lookup(local: "Local", request: LookUp, caller: Caller) -> MemoryFound:
    """Find the approved answer to a question, for an app that asks a model without the gateway.

    The app adds the message to its request, directly after its leading system messages, and reports `entries` and
    `held_out` in the interaction's attribute `memory`.
    """
    from retuned.retrain.memory.lookup import look_up

    found = look_up(
        local.warehouse,
        local.settings,
        request.workload,
        _reading(request),
        request.unit,
    )
    return cast("MemoryFound", found)


def _reading(request: "LookUp | AddMemory") -> "Reading":
    from retuned.retrain.memory.feed import Reading

    template = {name: value for name in ("documents", "chat_template_kwargs") if (value := getattr(request, name))}
    return Reading(request.messages, request.context, request.tools, template)


class Entries(Request):
    workload: Workload
    state: Annotated[State | None, Field(description="only entries in this state")] = None
    limit: Annotated[int, Field(ge=1, le=10_000, description="the most entries")] = 1_000
    page: Annotated[int, Field(ge=0, le=1_000, description="so many pages of `limit` entries are passed over")] = 0


@operation("GET", "/workloads/{workload}/memory", least="operator", refused=404, reads="conversations")
def memory_entries(local: "Local", request: Entries, caller: Caller) -> list[MemoryEntry]:
    """List the entries of a workload's memory, the latest change first."""
    from retuned.monitors.watch.memory import uses
    from retuned.retrain.memory.feed import listed

    workload, before = local.known(request.workload, caller), request.page * request.limit
    found = listed(local.warehouse, workload, request.state, before + request.limit)[before:]
    used = uses(local.warehouse, request.workload, [row["id"] for row in found])
    return cast("list[MemoryEntry]", [row | used.get(row["id"], UNUSED) for row in found])


class EntryOf(Request):
    id: Annotated[str, Field(description="the entry's id")]


@operation("GET", "/memory/entries/{id}", least="operator", refused=404, bound="own", reads="conversations")
def memory_entry(local: "Local", request: EntryOf, caller: Caller) -> MemoryDetail:
    """Get an entry with the conversation that it is about, and the feedback that it rests on."""
    from retuned.monitors.watch.memory import uses
    from retuned.retrain.memory.feed import detail

    found = detail(local.warehouse, request.id)
    if found is None:
        raise NotFound(f"memory: no entry has the id {request.id}; `retuned memory list WORKLOAD` lists the entries")
    caller.check(found["workload"])
    used = uses(local.warehouse, found["workload"], [request.id])
    return cast("MemoryDetail", found | used.get(request.id, UNUSED))


class AddMemory(Request):
    workload: Workload
    messages: Messages
    answer: Annotated[Text, Field(description="the approved answer; it must not hold personal data"), Content()]
    context: Context = None
    tools: Tools = None
    documents: Documents = None
    chat_template_kwargs: TemplateArguments = None
    reason: Reason
    user: User = None


@operation("POST", "/workloads/{workload}/memory", least="operator", prompts=True, by_leader=True)
def add_memory(local: "Local", request: AddMemory, caller: Caller) -> DecidedMemory:
    """Add an approved answer to the memory, in place of the entry of the same question, if there is one.

    It is not feedback: no version learns from it.
    """
    from retuned.retrain.memory import entries
    from retuned.retrain.memory.feed import stated

    redactor, author, workload = local.redactor(), local.actor(caller, request.user), request.workload
    if local.settings.for_workload(workload).memory.mode == "off":
        raise RetunedError(f"memory add: the memory of {workload} is off; set memory.mode to context or answer")
    answer, now = without_personal_data(request.answer, redactor, "memory add"), local.jobs.context.now()
    approved = stated(local.warehouse, local.settings, workload, _reading(request), answer, author, now)
    id = entries.add(local.warehouse, workload, approved, now, author, request.reason)
    log.info("%s: memory entry %s added by %s", workload, id, author)
    entry = {"id": id, "workload": workload, "state": "active"}
    return cast("DecidedMemory", {"entries": [entry], "done": f"Added entry {id} to the memory of {workload}."})


class DecideMemory(Request):
    action: Annotated[
        Action,
        Field(
            description="edit: replace the entry by one with another answer; freeze: stop applying it, whatever "
            "feedback arrives; unfreeze: apply it again, also after it was withdrawn; remove: stop for good"
        ),
    ]
    ids: Annotated[list[str], Field(min_length=1, description="ids of entries; exactly one for edit")]
    reason: Reason
    answer: Annotated[
        str | None, Field(description="for edit: the answer; it must not hold personal data"), Content()
    ] = None
    user: User = None


@operation("POST", "/memory/entries", least="operator", by_leader=True, bound="own")
def decide_memory(local: "Local", request: DecideMemory, caller: Caller) -> DecidedMemory:
    """Edit, freeze, unfreeze or remove entries of the memory.

    The decision applies to all of the entries or to none. Gateways follow within seconds.
    """
    from retuned.retrain.memory import entries

    action, reason, author = request.action, request.reason, local.actor(caller, request.user)
    answer, now = (request.answer or "").strip(), local.jobs.context.now()
    if action == "edit" and (len(request.ids) != 1 or not answer):
        raise RetunedError("memory edit: name one entry, and give its answer")
    text = without_personal_data(answer, local.redactor(), "memory edit") if action == "edit" else None
    ids = list(dict.fromkeys(request.ids))
    decided = entries.decide(local.warehouse, action, ids, reason, author, now, text, caller.check)
    for one in decided:
        log.info("%s: %s of memory entry %s by %s", one["workload"], action, one["id"], author)
    words = {"edit": "Edited", "freeze": "Froze", "unfreeze": "Unfroze", "remove": "Removed"}
    count = f"{len(decided)} {'entry' if len(decided) == 1 else 'entries'}"
    workloads = ", ".join(sorted({one["workload"] for one in decided}))
    return cast("DecidedMemory", {"entries": decided, "done": f"{words[action]} {count} of {workloads}."})
