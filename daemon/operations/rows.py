"""Operations on the rows that are taught: previews, decisions about rows and accounts, lineage."""

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast, get_args

from pydantic import Field

from retuned.consumers.errors import RetunedError
from retuned.daemon.jsontext import plain
from retuned.daemon.operations.answers import (
    AccountDecision,
    ComparedDatasets,
    DatasetListed,
    DecidedAccount,
    DecidedRows,
    Lineage,
    Preview,
    Row,
    State,
)
from retuned.daemon.operations.fields import OfWorkload, Reason, User, Workload
from retuned.daemon.operations.operation import STREAM_SECONDS, Caller, Content, Person, Request, operation

if TYPE_CHECKING:
    from retuned.consumers.privacy.redactor import Redactor
    from retuned.daemon.operations.local import Local

log = logging.getLogger(__name__)

NEXT = "The next dataset will follow; see `retuned dataset preview {}`."
RowAction = Literal["keep", "drop", "pin", "edit", "release"]
AccountAction = Literal["ban", "trust", "release"]
ROW_ACTIONS: tuple[RowAction, ...] = get_args(RowAction)
MEANINGS: dict[RowAction, str] = {
    "keep": "taught although a rule sets it aside",
    "drop": "never taught",
    "pin": "kept, and rehearsed in every dataset",
    "edit": "another answer is taught instead",
    "release": "the rules decide again",
}
DECIDED: dict[RowAction, str] = {
    "release": "Released",
    "keep": "Kept",
    "drop": "Dropped",
    "pin": "Pinned",
    "edit": "Edited",
}
ACCOUNT_ACTIONS: tuple[AccountAction, ...] = get_args(AccountAction)


class DatasetsOf(Request):
    workload: Workload


class PreviewDataset(Request):
    workload: Workload
    limit: Annotated[
        int | None, Field(ge=0, le=99_999, description="the most rows of each state and reason; default: all")
    ] = None


@operation(
    "GET",
    "/workloads/{workload}/dataset/preview",
    least="operator",
    seconds=STREAM_SECONDS,
    shape=Preview,
    reads="conversations",
)
def preview_dataset(local: "Local", request: PreviewDataset, caller: Caller) -> Iterable[bytes]:
    """Preview the next dataset: the rows that it would teach, hold out and set aside, with reasons.

    It is built as it would be now, even if it would be refused. Nothing is written.
    """
    from retuned.retrain.data.preview import preview

    settings = local.settings.for_workload(local.known(request.workload, caller))
    pieces = preview(local.warehouse, settings, request.workload, local.jobs.context.stop, request.limit)
    return (piece.encode() for piece in pieces)


@operation("GET", "/workloads/{workload}/datasets", least="operator", refused=404)
def datasets(local: "Local", request: DatasetsOf, caller: Caller) -> list[DatasetListed]:
    """List the datasets of a workload, newest first."""
    from retuned.retrain.data import compared

    return cast("list[DatasetListed]", plain(compared.listed(local.warehouse, local.known(request.workload, caller))))


class CompareDatasets(Request):
    before: Annotated[str, Field(description="version of the first dataset")]
    after: Annotated[str, Field(description="version of the second one, of the same workload")]
    limit: Annotated[
        int | None, Field(ge=0, le=99_999, description="the most examples of each change; default: all")
    ] = None


@operation(
    "GET", "/datasets/{before}/{after}", least="operator", seconds=60, refused=404, bound="own", reads="conversations"
)
def compare_datasets(local: "Local", request: CompareDatasets, caller: Caller) -> ComparedDatasets:
    """Compare two datasets: the questions that were added, removed, answered anew or moved to another split."""
    from retuned.retrain.data import compared

    caller.check(compared.workload_of(local.warehouse, request.before, request.after))
    found = compared.compare(local.warehouse, request.before, request.after, request.limit)
    return cast("ComparedDatasets", found)


class Rows(Request):
    workload: Workload
    state: Annotated[State | None, Field(description="only rows in this state")] = None
    reason: Annotated[str | None, Field(description="only rows with this reason, for example outvoted")] = None
    limit: Annotated[int | None, Field(ge=1, le=10_000, description="the most rows; default: all")] = None
    page: Annotated[
        int, Field(ge=0, le=1_000_000, description="so many pages of `limit` rows are passed over; without it, none")
    ] = 0


@operation(
    "GET",
    "/workloads/{workload}/rows",
    least="operator",
    seconds=STREAM_SECONDS,
    refused=404,
    reads="conversations",
)
def rows(local: "Local", request: Rows, caller: Caller) -> Iterable[Row]:
    """List the rows with the last dataset's decision on each, and the rows that wait for the next one.

    They are ordered by state and reason, newest first.
    """
    from retuned.retrain.data import states

    workload, limit = local.known(request.workload, caller), request.limit or states.MOST
    skipped = request.page * limit if request.limit else 0
    found = states.listed(local.warehouse, workload, request.state, request.reason, limit=limit, skipped=skipped)
    return cast("Iterable[Row]", found)


class DecideRows(Request):
    action: Annotated[
        RowAction,
        Field(description="; ".join(f"{action}: {meaning}" for action, meaning in MEANINGS.items())),
    ]
    ids: Annotated[list[str], Field(min_length=1, description="ids of the rows' feedback; exactly one for edit")]
    reason: Reason
    answer: Annotated[
        str | None,
        Field(description="for edit: the answer to teach instead; it must not hold personal data"),
        Content(),
    ] = None
    user: User = None


@operation("POST", "/rows", least="operator", by_leader=True, bound="own")
def decide_rows(local: "Local", request: DecideRows, caller: Caller) -> DecidedRows:
    """Keep, drop, pin or edit rows regardless of the rules, or release them to the rules again.

    The decision applies to all of the rows or to none, and takes effect in the next dataset.
    """
    from retuned.retrain.data import overrides

    action, reason, author = request.action, request.reason, local.actor(caller, request.user)
    answer, now = (request.answer or "").strip(), local.jobs.context.now()
    if action == "edit" and (len(request.ids) != 1 or not answer):
        raise RetunedError("rows edit: name one row, and give the answer that is taught instead")
    taught = without_personal_data(answer, local.redactor(), "rows edit") if action == "edit" else None
    decided = overrides.decide_rows(local.warehouse, action, request.ids, reason, author, now, taught, caller.check)
    for row in decided:
        log.info("%s: %s of a row by %s", row["workload"], action, author)
    workloads = sorted({row["workload"] for row in decided})
    for workload in workloads:
        make_anew(local, workload, author)
    count = f"{len(decided)} {'row' if len(decided) == 1 else 'rows'}"
    next_one = NEXT.format(workloads[0] if len(workloads) == 1 else "WORKLOAD")
    done = f"{DECIDED[action]} {count} of {', '.join(workloads)}. {next_one}"
    return cast("DecidedRows", {"rows": decided, "done": done})


@operation("GET", "/accounts", least="operator")
def accounts(local: "Local", request: OfWorkload, caller: Caller) -> list[AccountDecision]:
    """List the decisions in force about accounts, latest first."""
    from retuned.retrain.data import overrides

    workload = local.only(request.workload, caller)
    return cast("list[AccountDecision]", overrides.account_decisions(local.warehouse, workload))


class DecideAccount(Request):
    action: Annotated[
        AccountAction,
        Field(
            description="ban: nothing from it is taught or counted as a vote; trust: it counts as an expert; release: "
            "the rules decide again"
        ),
    ]
    account: Annotated[str, Field(min_length=1, description="a user, by id or pseudonym"), Person()]
    workload: Annotated[str | None, Field(description="the workload to which it applies; null or absent: all")] = None
    reason: Reason
    user: User = None


@operation("POST", "/accounts", least="operator", by_leader=True)
def decide_account(local: "Local", request: DecideAccount, caller: Caller) -> DecidedAccount:
    """Ban or trust an account, or release it to the rules again.

    The decision takes effect in the next dataset.
    """
    from retuned.consumers.warehouse.selection import pseudonyms
    from retuned.retrain.data import overrides

    author, others = local.actor(caller, request.user), pseudonyms(local.jobs.erasures.keys, request.account)
    workload = local.only(request.workload, caller)
    reason, now = request.reason, local.jobs.context.now()
    decided = overrides.decide_account(
        local.warehouse, request.action, request.account, workload, reason, author, now, others
    )
    account = decided["account"]
    where = "all workloads" if workload is None else workload
    log.info("%s: %s of an account by %s", where, request.action, author)
    make_anew(local, workload, author)
    words = {
        "ban": "Banned account {}: nothing from it is taught or counted in {}.",
        "trust": "Trusted account {}: it counts as an expert in {}.",
        "release": "Released account {}: the rules decide again in {}.",
    }
    done = f"{words[request.action].format(account, where)} {NEXT.format(workload or 'WORKLOAD')}"
    return cast("DecidedAccount", decided | {"done": done})


class LineageOf(Request):
    id: Annotated[
        str,
        Field(
            description="the id of an interaction, a feedback, a row, a dataset, or a version as it is served "
            "(support@3f2a91c0)"
        ),
    ]


@operation("GET", "/lineage/{id}", least="operator", refused=404, reads="conversations")
def lineage(local: "Local", request: LineageOf, caller: Caller) -> Lineage:
    """Trace an interaction or feedback to datasets and versions, or a version to the rows that it learned from."""
    from retuned.retrain.data.lineage import lineage

    return cast("Lineage", lineage(local.warehouse, request.id))


class InteractionOf(Request):
    id: Annotated[str, Field(description="the interaction's id")]


@operation("GET", "/interactions/{id}", least="operator", refused=404, bound="own", reads="conversations")
def interaction(local: "Local", request: InteractionOf, caller: Caller) -> dict[str, Any]:
    """Get an interaction as it is stored, redacted, with its feedback, scores and lineage."""
    from retuned.daemon.interaction import interaction

    found = interaction(local.warehouse, request.id)
    caller.check(found["workload"])
    return found


def make_anew(local: "Local", workload: str | None, author: str) -> None:
    """Rebuilds datasets that wait for approval, of a workload or of all, after a decision about their rows."""
    from retuned.retrain.release import approve

    context = local.jobs.context
    approve.make_anew(context.rollout, workload, f"{author} decided about its rows; it is made anew", context.now())
    local.jobs.runs.wake()


def without_personal_data(answer: str, redactor: "Redactor", what: str) -> str:
    """Returns the answer unchanged. Refuses one with personal data, whose placeholder would be taught."""
    from retuned.consumers.privacy.placeholders import stand_ins

    if found := sorted(stand_ins(answer)):
        raise RetunedError(f"{what}: {found[0]} stands for redacted text; write an answer without it")
    redactor.take_counts()
    redactor.text(answer)
    if kinds := redactor.take_counts():
        raise RetunedError(
            f"{what}: the answer holds personal data ({', '.join(sorted(kinds))}), which would be replaced; remove "
            "it, or name in privacy.keep what answers may hold"
        )
    return answer
