"""What the console shows: overview, workloads, answers, versions, and the inbox of experts."""

import json
import re
from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta
from functools import cache
from importlib.metadata import version as version_of
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlencode

from pydantic import AfterValidator, Field, HttpUrl, StringConstraints

from retuned.consumers.errors import RetunedError
from retuned.daemon.operations.fields import Nothing, Workload
from retuned.daemon.operations.labels import answering
from retuned.daemon.operations.operation import Caller, Content, NotFound, Person, Request, operation

if TYPE_CHECKING:
    from retuned.daemon.operations.local import Local

RANGES = {"1d": timedelta(days=1), "7d": timedelta(days=7), "28d": timedelta(days=28), "90d": timedelta(days=90)}


def _day(text: str) -> str:
    if text and not 1970 <= date.fromisoformat(text).year <= 2200:
        raise ValueError("out of range")
    return text


Day = Annotated[
    str, StringConstraints(pattern=r"^(\d{4}-\d\d-\d\d)?$"), AfterValidator(_day), Field(examples=["2027-01-31"])
]


@operation("GET", "/overview", least="viewer", recent_seconds=2.0, bound="own")
def overview(local: "Local", request: Nothing, caller: Caller) -> dict[str, Any]:
    """The state of each workload in words with its figures, the worst first."""
    from retuned.daemon import status
    from retuned.daemon.console import attention, overview

    context = local.jobs.context
    now = context.now()
    found = overview.facts(local.warehouse, context.measured(), now, context.experts_needed)
    return kept_to(
        caller,
        {
            "version": version_of("retuned"),
            "as_of": now,
            "currency": local.settings.roi.currency,
            "workloads": attention.ranked(attention.state_of(one, now) for one in found),
            "problems": [f"Job {job} failed. {problem}" for job, problem in context.failures.items()],
            "ingestion": status.ingestion(local.ingest, local.warehouse, local.settings),
            **local.process_state(),
        },
    )


def kept_to(caller: Caller, found: dict[str, Any]) -> dict[str, Any]:
    """Returns the overview as a caller may see it; one who is bound to workloads sees no problem of the daemon."""
    if caller.workloads is None:
        return found
    nothing: dict[str, Any] = {"problems": [], "warnings": [], "daemons": []}
    events = found["ingestion"] | {"set_aside": [], "passed_over": []}
    states = [one for one in found["workloads"] if caller.may_see(one.facts.workload)]
    return found | nothing | {"ingestion": events, "workloads": states}


class WorkloadPage(Request):
    workload: Workload
    range: Annotated[Literal["1d", "7d", "28d", "90d"], Field(description="the latest of these stretches of time")] = (
        "7d"
    )
    since: Annotated[Day, Field(description="first day, UTC; in the place of range")] = ""
    until: Annotated[Day, Field(description="last day, UTC; in the place of range")] = ""


@operation("GET", "/workloads/{workload}/history", least="viewer", refused=404)
def history(local: "Local", request: WorkloadPage, caller: Caller) -> dict[str, Any]:
    """Quality over time, drift, decisions, runs and changes of one workload."""
    from retuned.daemon.console import attention, overview, workload
    from retuned.monitors.quality.measure import latest

    now = local.jobs.context.now()
    end = datetime.fromisoformat(request.until) + timedelta(days=1) if request.until else now
    if request.workload not in {*local.jobs.context.workloads(), *local.jobs.context.measured()}:
        raise NotFound(f"workload {request.workload}: unknown; GET /api/v1/overview lists those that have events")
    (facts,) = overview.facts(local.warehouse, [request.workload], now, local.jobs.context.experts_needed)
    state = attention.state_of(facts, now)
    figures = latest(local.warehouse, [request.workload])[request.workload]
    if request.since:
        start = datetime.fromisoformat(request.since)
    else:  # a younger workload fills the whole width of its chart
        start = workload.measured_since(local.warehouse, request.workload, end - RANGES[request.range], end)
    own = local.settings.for_workload(request.workload)
    return {
        "as_of": now,
        "state": state,
        "objective": own.objective,
        "base_model": own.models.base and str(own.models.base),
        "settings": workload.chosen(local.settings, request.workload),
        "dashboard": _dashboard(local.settings.http.grafana_url, request.workload, start, end),
        "figures": [one for one in figures if one["model"] == "*"],
        **workload.shown(local.warehouse, request.workload, start, end),
    }


def _dashboard(grafana: HttpUrl | None, workload: str, start: datetime, end: datetime) -> str | None:
    """Returns the URL of Grafana's dashboard of a workload for these days; None: no Grafana is configured."""
    if grafana is None:
        return None
    since, until = (int(one.replace(tzinfo=UTC).timestamp() * 1000) for one in (start, end))
    query = urlencode({"var-workload": workload, "from": since, "to": until})
    return f"{str(grafana).rstrip('/')}/d/retuned-quality?{query}"


class FindAnswers(Request):
    workload: Annotated[str, Field(description="of this workload alone")] = ""
    text: Annotated[
        str, Field(description="a part of the question, an earlier turn or the answer, in any case"), Content()
    ] = ""
    model: Annotated[str, Field(description="the model that answered, as it is served")] = ""
    user: Annotated[str, Field(description="a user, by id or pseudonym"), Person()] = ""
    rating: Annotated[
        Literal["", "helpful", "unhelpful", "invented", "corrected", "unrated", "alarm"],
        Field(description="how people rated it; alarm: a scorer of groundedness alarms"),
    ] = ""
    segment: Annotated[str, Field(description="name=value of an attribute")] = ""
    since: Annotated[Day, Field(description="first day, UTC; default: the last seven days")] = ""
    until: Annotated[Day, Field(description="last day, UTC")] = ""
    page: Annotated[int, Field(ge=0, le=1_000, description="so many pages of 50 are passed over")] = 0


@operation("GET", "/answers", least="operator", refused=400, bound="own", reads="conversations")
def answers(local: "Local", request: FindAnswers, caller: Caller) -> dict[str, Any]:
    """Stored answers that match all filters, the newest first."""
    from retuned.consumers.warehouse import judgements
    from retuned.daemon.console import answers

    judgements.follow(local.warehouse)
    user = request.user and local.pseudonym(request.user)
    search, now = answers.Search(**request.model_dump() | {"user": user}), local.jobs.context.now()
    found = answers.found(local.warehouse, search, now, local.visible(caller))
    return {"answers": found[: answers.PAGE], "more": len(found) > answers.PAGE}


class RowsPage(Request):
    workload: Workload
    state: Annotated[str | None, Field(description="only rows in this state")] = None
    reason: Annotated[str | None, Field(description="only rows with this reason")] = None
    page: Annotated[int, Field(ge=0, le=1_000_000, description="so many pages of 50 rows are passed over")] = 0
    saved: Annotated[str | None, Field(description="a row that was just decided about")] = None


@operation(
    "GET", "/workloads/{workload}/rows/page", least="operator", refused=404, reads="conversations", is_public=False
)
def rows_page(local: "Local", request: RowsPage, caller: Caller) -> dict[str, Any]:
    """A page of rows in `rows`, and in `counts` how many rows are in each state, for each reason.

    `related` has the interaction of each row that a detail names. `saved` is the row that was just decided about.
    """
    from retuned.daemon.console.answers import PAGE
    from retuned.retrain.data import states

    warehouse, workload = local.warehouse, local.known(request.workload, caller)
    state, reason, skipped = request.state, request.reason, request.page * PAGE
    found = [*states.listed(warehouse, workload, state, reason, limit=PAGE, skipped=skipped)]
    named = sorted({word for row in found for word in re.findall(r"[^\s:,]+", row["detail"])})
    saved = [*states.listed(warehouse, workload, ids=[request.saved])] if request.saved else []
    counts = states.counts(warehouse, workload)
    wanted = {"state": state, "reason": reason}.items()
    return {
        "rows": found,
        "counts": counts,
        "total": sum(one["rows"] for one in counts if all(value in (None, one[name]) for name, value in wanted)),
        "more": len(found) == PAGE,
        "related": states.interactions(warehouse, workload, named) if named else {},
        "saved": next(iter(saved), None),
    }


class OneVersion(Request):
    workload: Workload
    version: Annotated[str, Field(description="for example 3f2a91c0")]


@operation("GET", "/workloads/{workload}/versions/{version}", least="operator", reads="conversations")
def version(local: "Local", request: OneVersion, caller: Caller) -> dict[str, Any]:
    """A version beside the one before it: held-out answers side by side, and what the gate compared."""
    from retuned.daemon.console import version

    found = version.shown(local.warehouse, request.workload, request.version)
    if found is None:
        raise NotFound(f"{request.workload}@{request.version}: no such version; `retuned export models` lists them")
    return found


class Inbox(Request):
    workload: Annotated[str | None, Field(description="requests of this workload alone")] = None
    item: Annotated[
        str | None,
        Field(description="id of the request to show, open or answered by this expert; default: the first that waits"),
    ] = None


@operation("GET", "/inbox", least="labeller", refused=404, bound="own", reads="conversations")
def inbox(local: "Local", request: Inbox, caller: Caller) -> dict[str, Any]:
    """The label requests that this expert may answer, those in progress first, and how far others are.

    The `item` is the request that is asked for, if it waits for an answer or this expert answered it, which is `own`
    then; else the first one that waits. If experts differ on it, `others` has their answers with their comments.
    """
    from retuned.daemon.console import teach
    from retuned.retrain.data import label_requests

    now, expert = local.jobs.context.now(), caller.name or teach.NOBODY
    workloads = local.visible(caller)
    if request.workload:
        caller.check(request.workload)
        workloads = [local.known(request.workload, caller)]

    opinions = cache(local.jobs.context.experts_needed)
    may_answer = teach.about(local.warehouse, request.item, expert) if request.item else []
    wanted = next((one.id for one in may_answer if caller.may_see(one.workload)), None)
    found = asdict(teach.inbox(local.warehouse, workloads, expert, now, opinions, wanted))
    shown = wanted or next((one["request_id"] for one in found["items"]), None)
    item = label_requests.find(local.warehouse, shown) if shown else None
    own = next(iter(teach.mine(local.warehouse, expert, local.visible(caller), wanted)), None) if wanted else None
    needed = opinions(item["workload"]) if item else None
    differ = next((one for one in found["items"] if (one["request_id"], one["status"]) == (shown, "disputed")), None)
    others = [
        {"expert": one["expert"], "name": one["name"], "value": json.loads(one["value"]), "comment": one["comment"]}
        for one in (differ["work"] if differ else ())
        if one["state"] == "answered" and one["expert"] != expert
    ]
    return {"expert": expert, "item": item, "own": own, "others": others, "opinions": needed} | found


class MyAnswers(Request):
    item: Annotated[
        str | None, Field(description="the answer to the request with this id alone; default: the latest")
    ] = None


@operation("GET", "/inbox/mine", least="labeller", bound="own", reads="conversations")
def my_answers(local: "Local", request: MyAnswers, caller: Caller) -> list[dict[str, Any]]:
    """The latest answers of this expert to label requests, and what became of each."""
    from retuned.daemon.console import teach

    return teach.mine(local.warehouse, caller.name or teach.NOBODY, local.visible(caller), request.item)


class WorkOnLabel(Request):
    id: Annotated[str, Field(description="of the request")]
    state: Annotated[Literal["claimed", "skipped"], Field(description="claimed: others leave it for 15 minutes")]


@operation(
    "POST",
    "/labels/{id}/work",
    least="labeller",
    by_leader=True,
    bound="own",
    outdates=False,
    audited=lambda _: False,  # it changes nothing but the order of work
)
def work_on_label(local: "Local", request: WorkOnLabel, caller: Caller) -> dict[str, Any]:
    """Claim a label request, or skip it. An answer of this expert to it stays: the state is `answered` then."""
    from retuned.daemon.console import teach
    from retuned.daemon.console.inbox import CLAIM, Work, is_taken

    who, now = caller.name or teach.NOBODY, local.jobs.context.now()
    with answering:
        found = teach.about(local.warehouse, request.id, who)
        asked = next((one for one in found if one.id == request.id and one.open), None)
        if asked is None:
            raise NotFound(f"labels: no request {request.id} is open; `retuned labels` lists those that are")
        caller.check(asked.workload)
        if request.state == "claimed" and is_taken(asked.work, who, now):
            minutes = CLAIM // timedelta(minutes=1)
            raise RetunedError(f"labels: another expert has claimed this request, for {minutes} minutes")
        work = Work(who, request.state, now)
        is_kept = teach.write(local.warehouse, request.id, work)
    return {"id": request.id, "state": request.state if is_kept else "answered"}
