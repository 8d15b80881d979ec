"""The JSON results of operations, as types from which the OpenAPI document and the reference are generated.

Answers are not validated against them, and may have further, undocumented fields.
"""

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

State = Literal["taught", "held_out", "waiting", "set_aside", "overruled"]
Arm = Literal["champion", "canary", "holdback"]
Kind = Literal["retrain", "rebase"]
Unit = Literal["conversation", "account"]


def about(description: str) -> Any:
    """Describes a field."""
    return Field(description=description)


class Done(TypedDict):
    workload: Annotated[str | None, about("null: all workloads")]
    done: Annotated[str, about("what was done, in words")]
    reasons: NotRequired[Annotated[list[str], about("for retrain: the reasons of the decision")]]
    run: NotRequired[Annotated[str | None, about("for retrain: the id of the run")]]
    outcome: NotRequired[Annotated[str | bool | None, about("for evaluate: what the gate would decide")]]


class FoundFile(TypedDict):
    path: str
    action: Annotated[Literal["rewrite", "delete"], about("rewrite: its other rows stay; delete: it is derived")]
    rows: Annotated[int | None, about("erased rows; null: unknown")]
    sha256: Annotated[str | None, about("of the file; null: a folder")]


class TaughtVersion(TypedDict):
    workload: str
    version: str
    dataset_version: str
    rows: Annotated[int, about("erased rows of its own dataset; 0: an ancestor was trained on erased rows")]


class Found(TypedDict):
    holds: Annotated[list[str], about("legal holds that the erasure would wait for")]
    workloads: list[str]
    tables: Annotated[dict[str, int], about("rows by table")]
    files: list[FoundFile]
    left: Annotated[dict[str, str], about("files that cannot be read, each with the reason")]
    versions: Annotated[list[TaughtVersion], about("models that were trained on the rows")]


class Erased(TypedDict):
    id: Annotated[str, about("the id of the erasure")]


class Erasure(TypedDict):
    id: str
    requested_at: str
    requested_by: str | None
    reason: str | None
    state: Literal["requested", "deleting", "rewriting", "swapping", "done"]
    error: Annotated[str | None, about("why it waits; null: it does not")]
    done_at: str | None
    receipt: NotRequired[
        Annotated[dict[str, Any] | None, about("of one erasure; done_at is null while files are left")]
    ]
    envelope: NotRequired[
        Annotated[
            dict[str, Any] | None, about("the receipt, signed, as a DSSE envelope; null: audit.key_file is not set")
        ]
    ]


class Resumed(TypedDict):
    done: Annotated[str, about("what was done, in words")]


class Served(TypedDict):
    model: Annotated[str, about("the name under which its answers are stored, for example support@3f2a91c0")]
    name: Annotated[str | None, about("its name on the servers; null: their base model")]


class ServedArm(Served):
    arm: Arm
    share: Annotated[float, Field(ge=0, le=1, description="share of the conversations")]


class Route(TypedDict):
    experiment: Annotated[str | None, about("the salt of the assignment; null: there is one arm")]
    arms: Annotated[list[ServedArm], about("arms in the order of their buckets; the one whose share grows comes first")]
    base: Annotated[Served, about("the base model")]
    previous: Annotated[
        Served | None,
        about(
            "the previous champion, which answers until servers have the new one; null: there was none, or it was "
            "rolled back"
        ),
    ]
    shadow: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="share of the conversations, by the first buckets, that are also sent to the canary, whose "
            "share is 0; no user sees its answers",
        ),
    ]
    unit: Annotated[Unit, about("what is assigned to arms: conversations, or accounts where requests name one")]
    confident: Annotated[
        dict[str, float],
        about(
            "by model, the least mean log-probability of the tokens of an answer; the incumbent replaces others "
            "(cascade.helpful_rate)"
        ),
    ]
    labels: Annotated[
        dict[str, list[str]],
        about("by model, all labels that it may answer, if its answers are labels; another model replaces others"),
    ]


class Routes(TypedDict):
    workloads: Annotated[dict[str, Route], about("routes of workloads that had a champion or are configured")]
    withheld: Annotated[
        dict[str, list[str]],
        about(
            "by the address of a model server, versions that must not be requested from it; the effect probe found "
            "that it answers with another model, or they are not in service yet; *: versions that must not be "
            "requested from any server"
        ),
    ]
    memory: Annotated[bool, about("whether any workload uses the memory of corrections")]


class RouteOfConversation(Served):
    workload: str
    experiment: Annotated[str | None, about("the salt of the assignment; null: there is one arm")]
    unit: Annotated[Unit, about("what was assigned if a user was given; otherwise the conversation was")]
    arm: Arm
    instead: Annotated[list[Served], about("the fallbacks if the model is on no server, in order")]


class SetAsideProducer(TypedDict):
    topic: Annotated[str, about("the topic of its messages")]
    workload: Annotated[str | None, about("the workload that its messages name; null: they name none")]
    dead: Annotated[int, about("dead letters among its last messages")]
    messages: Annotated[int, about("the number of last messages that are counted")]
    since: Annotated[str, about("when it was set aside")]
    last_at: Annotated[str, about("when the last dead letter arrived")]
    example: Annotated[str, about("the last dead letter: its position, reason and detail")]


class PassedOver(TypedDict):
    reason: Annotated[str, about("a reason code; the page on events lists them")]
    count: Annotated[int, about("the number since the daemon's start")]
    explanation: Annotated[str, about("the reason in words")]


class Ingestion(TypedDict):
    source: Annotated[Literal["kafka", "segments"], about("the source of events; segments: of a cluster")]
    broker_up: Annotated[bool | None, about("whether the broker answers; null: no daemon is running")]
    lag_events: Annotated[int | None, about("events that wait on the broker; null: no daemon is running")]
    lag_seconds: Annotated[
        dict[str, float],
        about("by topic, an upper bound of the time that its oldest unread event has waited; absent where unknown"),
    ]
    last_event_at: Annotated[str | None, about("when the last event was stored; null: none since the daemon's start")]
    set_aside: Annotated[
        list[SetAsideProducer],
        about("producers (a workload on a topic, or messages without a workload) that send mostly dead letters"),
    ]
    passed_over: Annotated[list[PassedOver], about("messages, and parts of them, that are known not to be events")]


class DeadLetter(TypedDict):
    topic: Annotated[str, about("Kafka topic; `import:` and a hash for a file")]
    partition: Annotated[int, about("partition of the topic")]
    offset: Annotated[int, about("offset in the partition")]
    reason: Annotated[str, about("a reason code; the page Operate lists them")]
    detail: Annotated[str, about("what is wrong, in words")]
    payload: Annotated[str | None, about("the message, redacted; null: it was empty, or could not be redacted")]
    received_at: Annotated[str, about("when it was stored")]


class Replayed(TypedDict):
    tried: Annotated[int, about("the number of dead letters that were decoded again")]
    replayed: Annotated[int, about("the number of them that are events now")]
    stored: Annotated[int, about("the number of events that were stored")]


class Approval(TypedDict):
    id: Annotated[str, about("unique")]
    workload: Annotated[str, about("the kind of request")]
    kind: Annotated[
        Literal["version", "dataset"],
        about("what waits for approval: a version to be put into service, or a dataset to be trained on"),
    ]
    version: Annotated[str, about("the version that the gate passed, or that of the dataset")]
    champion: Annotated[str | None, about("the version it was compared with; null: the base model")]
    run_id: Annotated[str, about("the run that made it")]
    requested_at: Annotated[str, about("when the approval was requested")]
    expires_at: Annotated[str, about("when the request expires")]
    state: Annotated[
        Literal["waiting", "approved", "refused", "expired", "superseded"], about("waiting, or how it was settled")
    ]
    decided_at: Annotated[str | None, about("when it was settled; null: it is waiting")]
    actor: Annotated[str | None, about("who approved or refused it; null: nobody did")]
    reason: Annotated[str | None, about("why it was approved, refused or superseded")]
    gate_reasons: Annotated[list[str] | None, about("the reasons of the gate")]
    scores: Annotated[
        dict[str, float] | None,
        about(
            "mean scores on the holdout: of base, champion and candidate, and of logged, the answers of production; "
            "null until the run has ended"
        ),
    ]
    gain: Annotated[float | None, about("mean score of the candidate minus that of the compared version")]
    gain_low: Annotated[float | None, about("lower end of the gain's interval")]
    gain_high: Annotated[float | None, about("upper end of the gain's interval")]
    counts: Annotated[dict[str, Any] | None, about("for a dataset: the number of rows by state and reason")]


class Run(TypedDict):
    id: Annotated[str, about("unique")]
    workload: Annotated[str, about("that is retrained")]
    kind: Kind
    state: Annotated[str, about("running, waiting, interrupted, succeeded, refused, failed or cancelled")]
    reasons: Annotated[list[str], about("why it was begun")]
    started_at: Annotated[str, about("when it began or was put in line")]
    finished_at: Annotated[str | None, about("null: it has not ended")]
    version: Annotated[str | None, about("that it made; null: none")]
    train_seconds: Annotated[float | None, about("time of the training itself")]
    scores: Annotated[
        dict[str, float] | None,
        about("mean score on the holdout of base, champion and candidate, and of logged, what production had answered"),
    ]
    error: Annotated[str | None, about("why it made nothing")]
    progress: Annotated[
        dict[str, Any] | None, about("what a run under way last reported, as under_way of the status; null: it is not")
    ]
    waits_for: Annotated[str | None, about("what keeps a run in line from starting, in words; null: it is not in line")]


class ModelVersion(TypedDict):
    workload: Annotated[str, about("whose version it is")]
    version: Annotated[str, about("for example 3f2a91c0")]
    created_at: Annotated[str, about("when it was trained")]
    base_model: Annotated[str, about("folder of the base model")]
    parent_version: Annotated[str | None, about("the version that its training began from; null: the base model")]
    dataset_version: Annotated[str, about("the dataset that it learned from")]
    examples: Annotated[int | None, about("of the dataset that are taught; null: the dataset is unknown")]
    run_id: Annotated[str, about("the run that made it")]
    scores: Annotated[dict[str, float] | None, about("as of the run")]
    passed: Annotated[bool | None, about("whether the gate passed it; null: the gate has not decided")]
    aliases: Annotated[list[str], about("champion, previous or canary")]
    share: Annotated[float, about("of new conversations that it answers")]
    removed_at: Annotated[str | None, about("when retention removed its files; null: they are kept")]


class DriftExample(TypedDict):
    feature: Annotated[str, about("what moved, for example topic")]
    example: Annotated[str, about("a current prompt of a kind that became more frequent, redacted as it is stored")]


class Decided(TypedDict):
    workload: str
    state: Literal["approved", "refused"]
    done: Annotated[str, about("what was done, in words")]


class LabelRequest(TypedDict):
    """A label request, as it is published on the topic of label requests."""

    id: Annotated[str, about("unique")]
    timestamp: Annotated[str, about("when it was requested")]
    workload: Annotated[str, about("the kind of request")]
    interaction_id: Annotated[str, about("the interaction that the expert's feedback must name")]
    model: Annotated[str, about("the model that answered, as it is served")]
    messages: Annotated[list[dict[str, Any]], about("the prompt")]
    question: Annotated[str | None, about("the last message of the user")]
    answer: Annotated[str, about("the model's answer, with its tool calls")]
    answers: Annotated[list[str] | None, about("for a conflict: the two answers that differ")]
    tools: Annotated[list[dict[str, Any]], about("the tools that the model was offered, as in OpenAI's chat API")]
    context: Annotated[list[str] | None, about("the passages that the model was given; null: none")]
    reason: Annotated[
        str,
        about(
            "the main reason: `uncertain`, `unreadable`, `ungrounded`, `new_topic` or `disagreeing`; or `calibration`; "
            "or `conflict`"
        ),
    ]
    detail: Annotated[str, about("the evidence for the reason")]
    score: Annotated[
        float | None,
        about("probability that the answer is wrong; null for calibration, drawn at random, and for a conflict"),
    ]


class Answered(TypedDict):
    interaction_id: str
    done: Annotated[str, about("what was done, in words")]


class Row(TypedDict):
    state: Annotated[State, about("the decision about the row")]
    reason: Annotated[str, about("the rule that sets it aside, or a person's decision; empty: no rule applies")]
    detail: Annotated[str, about("the reason in words")]
    question: Annotated[str | None, about("the last message of the user; null: it is in the archive")]
    answer: Annotated[str | None, about("the correction or the accepted answer")]
    source: Annotated[str | None, about("user, expert, judge or app")]
    account: Annotated[str | None, about("the pseudonym of the feedback's author")]
    feedback_id: Annotated[str, about("the id by which decisions name the row")]
    interaction_id: Annotated[str, about("the answer that the feedback is about")]
    timestamp: Annotated[str | None, about("when the feedback was given")]
    dataset_version: Annotated[str | None, about("the dataset that decided; null: the row waits for the next one")]
    decision: Annotated[
        dict[str, Any] | None,
        about(
            "a person's decision: action, answer, reason, author, decided_at, and whether the last dataset followed it"
        ),
    ]


class RowCount(TypedDict):
    rows: int
    new: int
    changed: int


class Preview(TypedDict):
    workload: str
    against: Annotated[str | None, about("the last dataset, with which this is compared; null: there is none")]
    refused: Annotated[str | None, about("the reason why no dataset would be made; null: it would be made")]
    counts: Annotated[
        dict[str, dict[str, RowCount]],
        about("by state and reason: the number of rows, and of those new or changed since the last dataset"),
    ]
    rows: Annotated[
        list[dict[str, Any]],
        about(
            "by state and reason, newest first: the fields of a Row without the last two, and change (new, same, or "
            "was and the previous state)"
        ),
    ]


class DatasetListed(TypedDict):
    version: str
    created_at: str
    train: Annotated[int, about("rows of this split")]
    holdout: int
    replay: Annotated[int, about("rows of train that repeat an older dataset")]
    removed_at: Annotated[str | None, about("when retention deleted its rows; null: they are there")]
    models: Annotated[list[str] | None, about("the versions that learned from it")]


class ChangedRow(TypedDict):
    change: Annotated[Literal["added", "removed", "answer", "split"], about("what differs")]
    question: str
    answer_before: Annotated[str | None, about("null: the first dataset does not have the question")]
    answer_after: Annotated[str | None, about("null: the second dataset does not have the question")]
    split_before: str | None
    split_after: str | None
    source: str
    why: Annotated[str | None, about("why the second dataset set the question aside; null: no rule did")]
    feedback_id: str
    interaction_id: str


class ComparedDatasets(TypedDict):
    workload: str
    before: str
    after: str
    splits: Annotated[list[str], about("the splits that are compared: not all where retention reduced a dataset")]
    counts: Annotated[dict[str, int], about("questions by change, and same; one may be in answer and in split")]
    rows: list[ChangedRow]


class RowDecision(TypedDict):
    workload: str
    feedback_id: str
    action: str
    before: Annotated[str | None, about("the action in force before; null: the rules decided")]


class DecidedRows(TypedDict):
    rows: list[RowDecision]
    done: Annotated[str, about("what was done, in words")]


class AccountDecision(TypedDict):
    account: Annotated[str, about("the pseudonym of a user")]
    workload: Annotated[str | None, about("null: all workloads")]
    action: Literal["ban", "trust"]
    reason: Annotated[str, about("the reason, redacted")]
    author: Annotated[str, about("who decided")]
    decided_at: Annotated[str, about("when it was decided")]


class DecidedAccount(TypedDict):
    account: str
    workload: str | None
    action: str
    before: Annotated[str | None, about("the action in force before; null: the rules decided")]
    done: Annotated[str, about("what was done, in words")]


class Lineage(TypedDict):
    rows: Annotated[list[dict[str, Any]], about("rows of datasets, each with the versions that learned from it")]
    set_aside: Annotated[list[dict[str, Any]], about("rows that datasets left out, each with the reason")]
    quarantine: Annotated[list[dict[str, Any]], about("rows set aside now, each with the reason")]
    removed: Annotated[list[dict[str, Any]], about("datasets and versions that retention removed")]


class AuditRow(TypedDict):
    sequence: Annotated[int, about("the number of the row: 1, 2, 3, without gaps")]
    created_at: Annotated[str, about("when it was written, UTC")]
    actor: Annotated[str, about("the principal, the rule, or the user of the machine")]
    actor_kind: Annotated[Literal["principal", "rule", "local"], about("what the actor is; local: without a token")]
    action: Annotated[str, about("the name of the operation, or of the event")]
    outcome: Annotated[
        Literal["done", "refused", "failed"], about("refused: not allowed; failed: nothing, or not all, was done")
    ]
    workload: Annotated[str | None, about("the workload; null: none, or several")]
    subject: Annotated[str | None, about("what it was done to: a version, an id, a table")]
    request_id: Annotated[str | None, about("shared by all rows of one request; null: a rule acted by itself")]
    reason: Annotated[str | None, about("the reason given, redacted")]
    details: Annotated[str, about("more, as JSON in a text, which the hash covers as it is")]
    previous: Annotated[str, about("the hash of the row before")]
    hash: Annotated[str, about("SHA-256 of this row and the hash before")]


class Hold(TypedDict):
    id: Annotated[str, about("the id of the hold")]
    workload: Annotated[str | None, about("the workload that it covers; null: all")]
    user_id: Annotated[str | None, about("the pseudonym of the user whose data it covers; null: all users")]
    reason: Annotated[str, about("why it was placed")]
    placed_by: Annotated[str, about("who placed it")]
    placed_at: Annotated[str, about("when")]
    released_by: Annotated[str | None, about("who released it; null: it is in force")]
    released_at: Annotated[str | None, about("when; null: it is in force")]
    release_reason: Annotated[str | None, about("why it was released")]


class Backup(TypedDict):
    generation: Annotated[str, about("the folder of the backup")]
    files: Annotated[int, about("the number of files in it")]
    bytes: Annotated[int, about("the bytes in it")]
    copied_files: Annotated[int, about("the number of copied files; others are links to the backup before")]
    copied_bytes: Annotated[int, about("the bytes of the copied files")]
    deleted: Annotated[list[str], about("older backups that were deleted")]


class PlanFigure(TypedDict):
    name: Annotated[str, about("what it is")]
    value: Annotated[float | None, about("null: unknown; the basis names what would make it known")]
    unit: Annotated[str, about("its unit")]
    basis: Annotated[str, about("what it is computed from, and what is assumed")]


class PlanBase(TypedDict):
    name: Annotated[str, about("its repository on Hugging Face, or its folder")]
    parameters: Annotated[int, about("the number of its weights")]
    context: Annotated[int, about("the most tokens of question and answer together")]
    licence: Annotated[str, about("empty: see its folder")]
    fits: Annotated[bool | None, about("whether the longest exchanges fit its context, and the model the GPU")]
    reason: Annotated[str, about("why it does not fit, or what its memory is computed from")]
    gigabytes: Annotated[float | None, about("GPU memory to serve it")]
    training_hours: Annotated[float | None, about("on one GPU")]


class FeedbackCount(TypedDict):
    name: Annotated[str, about("name of the feedback")]
    source: Annotated[str, about("user, expert, judge or app")]
    answers: Annotated[int, about("answers with such feedback")]
    good: Annotated[int, about("of these, answers that it calls good")]
    bad: Annotated[int, about("of these, answers that it calls bad")]


class OwnPlan(TypedDict):
    workload: Annotated[str, about("name of the workload")]
    currency: Annotated[str, about("currency of all amounts")]
    figures: Annotated[list[PlanFigure], about("traffic, costs, rows and time")]
    feedback: Annotated[list[FeedbackCount], about("the most frequent first")]
    bases: Annotated[list[PlanBase], about("base models, the configured one first")]
    outcome: Annotated[Literal["pays", "does_not_pay", "not_known"], about("whether it pays, as far as it is known")]
    verdict: Annotated[list[str], about("the outcome in words, with the numbers that would change it")]


MemoryMode = Literal["context", "answer", "off"]
MemoryState = Literal["active", "frozen", "superseded", "overruled", "withdrawn", "retired", "expired", "removed"]


class MemorySettingsInForce(TypedDict):
    mode: MemoryMode
    holdout_share: Annotated[float, about("share of units that an entry does not help")]
    salt: Annotated[str, about("salt of the assignment of units, see `assignment`")]
    similar: Annotated[bool, about("whether related questions may be helped")]
    error_rate: Annotated[float, about("highest share of related questions that get a wrong entry")]
    max_prompt_bytes: Annotated[int, about("longest prompt that is looked up")]
    ignores_case: Annotated[bool, about("whether the capital at the beginning of a word makes no difference")]
    ignores_end: Annotated[bool, about("whether punctuation at the end makes no difference")]
    harmless_instructions: Annotated[
        list[str], about("regular expressions of what makes no difference in system prompts")
    ]
    seal_key: Annotated[str, about("key of the seals of redacted instructions, hex")]


class FedEntry(TypedDict):
    id: str
    workload: str
    key: Annotated[str, about("the identity of the question, hex")]
    question: Annotated[str, about("the last user message; empty if the entry is not active")]
    answer: Annotated[str, about("the approved answer; empty if the entry is not active")]
    since: str
    threshold: Annotated[float | None, about("least similarity of a related question; null: the same question only")]
    sequence: int
    state: MemoryState


class MemoryFeed(TypedDict):
    epoch: Annotated[str, about("sequences are comparable within it; empty: there is no entry yet")]
    entries: list[FedEntry]
    sequence: Annotated[int, about("what to send as `after` next")]
    more: Annotated[bool, about("whether more entries follow at once")]
    modes: Annotated[dict[str, MemorySettingsInForce], about("settings by workload")]


class MemoryMessage(TypedDict):
    role: str
    content: str


class MemoryFound(TypedDict):
    entries: Annotated[list[str], about("ids of the entries that the message gives")]
    held_out: Annotated[list[str], about("ids of entries that do not help this unit")]
    mode: MemoryMode
    match: Annotated[Literal["same", "related"] | None, about("null: there is no entry")]
    similarity: float | None
    message: Annotated[MemoryMessage | None, about("the message to add; null: none")]
    answer: Annotated[str | None, about("the approved answer, if the mode is answer and the question is the same")]


class MemoryEntry(TypedDict):
    id: str
    workload: str
    question: str
    answer: str
    source: Annotated[Literal["expert", "users", "person"], about("person: an operation added it")]
    author: str | None
    since: Annotated[str, about("time of the statement")]
    added_at: str
    state: MemoryState
    reason: Annotated[str, about("of the state; empty: it was added")]
    changed_by: Annotated[str | None, about("null: retuned")]
    changed_at: str
    threshold: Annotated[float | None, about("least similarity of a related question; null: the same question only")]
    retired_by: Annotated[str | None, about("the version that has learned it")]
    helped: Annotated[int, about("answers that it helped")]
    held_out: Annotated[int, about("answers that it did not help, to measure its effect")]
    last_used: Annotated[str | None, about("time of the latest of these answers")]


class MemoryDetail(MemoryEntry):
    messages: list[dict[str, Any]]
    context: list[str] | None
    tools: list[dict[str, Any]] | None
    extras: Annotated[
        dict[str, Any] | None, about("what else the model read: documents, arguments of the template, seal")
    ]
    feedback_ids: list[str]


class DecidedEntry(TypedDict):
    id: str
    workload: str
    state: MemoryState


class DecidedMemory(TypedDict):
    entries: list[DecidedEntry]
    done: Annotated[str, about("what was done, in words")]
