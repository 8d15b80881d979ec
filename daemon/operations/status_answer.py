"""The JSON of the status; see `answers`."""

from typing import Annotated, Any, Literal, NotRequired

from typing_extensions import TypedDict

from retuned.daemon.operations.answers import Approval, Ingestion, Kind, MemoryMode, about


class Member(TypedDict):
    name: Annotated[str, about("host and port")]
    leads: Annotated[bool, about("whether it is the leader")]
    seconds: Annotated[float, about("seconds since its last heartbeat")]
    this: Annotated[bool, about("whether it is the daemon that answers")]
    said: Annotated[str, about("its state in words")]


class Storage(TypedDict):
    path: Annotated[str, about("path of the warehouse")]
    file: Annotated[int, about("bytes of the warehouse's file")]
    used: Annotated[int, about("bytes in use in the file")]
    log: Annotated[int, about("bytes of the write-ahead log")]


class JobFailures(TypedDict):
    failures: Annotated[
        dict[str, str],
        about("the last error of each job; by workload if it failed for some of them"),
    ]


class RunUnderWay(TypedDict):
    run_id: Annotated[str, about("the id in the table runs")]
    workload: Annotated[str, about("the workload that is retrained")]
    kind: Kind
    runner: Annotated[Literal["local", "ray"], about("ray: on the cluster at runner.url")]
    since: Annotated[str, about("when this process began or resumed it")]
    stage: Annotated[str, about("the current stage")]
    losses: Annotated[list[tuple[int, float]], about("step and training loss, of the training under way")]
    seconds_left: Annotated[float | None, about("of the stage, at its speed so far; null: unknown")]


class QueuedRun(TypedDict):
    run_id: Annotated[str, about("the id in the table runs")]
    workload: Annotated[str, about("the workload to retrain")]
    kind: Kind
    state: Annotated[str, about("waiting, or interrupted: it resumes from its checkpoint")]
    passed: Annotated[bool | None, about("the gate's decision on the candidate; null: none yet")]
    since: Annotated[str, about("when it was queued or, if interrupted, when it began")]
    waits_for: Annotated[
        Literal["turn", "paused", "review", "rollout", "hours", "memory"], about("what keeps it from starting")
    ]
    reason: Annotated[str, about("the same in words, with the remedy")]


class Pause(TypedDict):
    workload: Annotated[str | None, about("null: all workloads")]
    created_at: Annotated[str, about("when it began")]
    actor: Annotated[str, about("who requested it")]
    reason: Annotated[str, about("the reason")]


class Blindness(TypedDict):
    workload: str
    monitor: Literal["quality", "policy", "drift", "hallucination", "confidence", "estimate"]
    found: Annotated[int, about("the number that there are")]
    needed: Annotated[int, about("the number that the monitor needs")]
    what: Annotated[str, about("what is counted")]
    since: Annotated[str, about("when there were first too few")]


class FinishedRun(TypedDict):
    scores: NotRequired[
        Annotated[
            dict[str, float] | None,
            about(
                "mean scores on the holdout: of base, champion and candidate, and of logged, the answers of production"
            ),
        ]
    ]


class MemoryCounts(TypedDict):
    mode: MemoryMode
    entries: Annotated[dict[str, int], about("entries by state")]
    helped: Annotated[int, about("answers that entries helped")]
    held_out: Annotated[int, about("answers that entries did not help, to measure their effect")]


class LabelCounts(TypedDict):
    open: Annotated[int, about("requests without an answer yet")]
    answered: Annotated[int, about("requests that experts answered")]


class Deployment(TypedDict):
    model: Annotated[str, about("its name on servers")]
    aliases: Annotated[list[str], about("champion, previous or canary")]
    share: Annotated[float, about("share of new conversations; 0: it is drained")]
    since: Annotated[str, about("the time from which targets should have it")]
    served_at: Annotated[
        str | None,
        about("when it came into service, as enough replicas of its targets answered with it; null: not yet"),
    ]
    served: Annotated[
        bool | None,
        about("whether enough replicas answer with it now (serving.replica_share); null: unknown, or it has no share"),
    ]
    lacking: Annotated[str | None, about("the replicas that lack it, with reasons; null: enough have it")]


class ReplicaModel(TypedDict):
    model: Annotated[str, about("its name on the server")]
    state: Literal["loading", "serving", "failed", "wrong"]
    detail: Annotated[str | None, about("what is wrong, in words")]
    probe: Annotated[bool | None, about("whether the effect probe passed; null: unknown")]
    tried_at: Annotated[str | None, about("when it was last loaded or probed; null: not yet")]


class Replica(TypedDict):
    target: Literal["folder", "vllm", "sglang", "webhook", "mlflow"]
    replica: Annotated[str, about("its address")]
    up: Annotated[bool | None, about("whether it answers; null: unknown")]
    problem: Annotated[str | None, about("the reason why it does not answer, in words")]
    models: list[ReplicaModel]


class Serving(TypedDict):
    deployments: Annotated[list[Deployment], about("the versions that targets should have, largest share first")]
    replicas: Annotated[
        list[Replica], about("the versions that each replica has; replicas that were not checked yet are absent")
    ]


class Attention(TypedDict):
    """What of a workload a person should know first."""

    level: Annotated[
        Literal["bad", "warn", "busy", "quiet"],
        about("bad and warn: it needs a person; busy: a retraining or a rollout is under way"),
    ]
    sentence: Annotated[str, about("the state in words")]
    evidence: Annotated[str, about("what supports it; may be empty")]
    answers: Annotated[int, about("of the last 24 hours")]
    change: Annotated[float | None, about("the helpful rate less that of a week before; null: unknown")]


class Workload(TypedDict):
    attention: Annotated[Attention, about("what a person should know first")]
    objective: Annotated[str, about("the configured objective; may be empty")]
    base_model: Annotated[str | None, about("folder of the base model; null: the workload is never trained")]
    incumbent: Annotated[str | None, about("the model of the incumbent, which serves as base; null: there is none")]
    champion: Annotated[str | None, about("the version of the champion; null: the base model or the incumbent serves")]
    previous: Annotated[str | None, about("the previous champion; null: the base model, or none")]
    quality: Annotated[
        list[dict[str, Any]],
        about(
            "the latest figures since the champion was promoted, all of the answers from since to created_at; n of "
            "window_seconds: the number of those answers, by model"
        ),
    ]
    blind: Annotated[list[Blindness], about("monitors with too few rows for reliable results")]
    drift: Annotated[list[dict[str, Any]], about("the latest checks")]
    drift_reference: NotRequired[
        Annotated[
            dict[str, Any] | None,
            about("the window accepted as the reference of drift checks; null: the default one"),
        ]
    ]
    approvals: Annotated[list[Approval], about("the latest five requests for approval, waiting ones first")]
    runs: NotRequired[Annotated[list[FinishedRun], about("the latest retrainings, with state and error")]]
    labels: Annotated[LabelCounts, about("requests for labels")]
    memory: Annotated[MemoryCounts, about("the memory of corrections")]
    reports: Annotated[list[Any], about("the reports of months and quarters")]
    serving: Annotated[Serving, about("the versions on replicas")]


class Status(TypedDict):
    version: Annotated[str, about("the installed version of retuned")]
    started_at: Annotated[str | None, about("when the daemon started; null: no daemon is running")]
    running: Annotated[bool, about("whether a daemon answers")]
    as_of: Annotated[str, about("when the status was read; it is cached for two seconds")]
    booked_at: Annotated[
        str | None, about("time up to which the ledger, and with it each ROI, is booked; null: nothing is booked yet")
    ]
    warnings: Annotated[
        list[str],
        about(
            "conditions that need attention but stop nothing: a file of principals or a certificate that cannot be "
            "reloaded, a certificate that has expired"
        ),
    ]
    daemons: Annotated[
        list[Member],
        about("the cluster's daemons with a heartbeat in the last minute; empty without a cluster"),
    ]
    ingestion: Annotated[Ingestion, about("the state of ingestion")]
    storage: Annotated[Storage, about("the warehouse's file")]
    jobs: Annotated[JobFailures, about("failures of jobs")]
    training: Annotated[dict[str, Any], about("the first run of under_way; empty if there is none")]
    under_way: Annotated[
        list[RunUnderWay],
        about(
            "the runs under way, oldest first, each with its last progress, such as step, steps, loss, ray_job and "
            "ray_status"
        ),
    ]
    queue: Annotated[list[QueuedRun], about("the queued runs, in order")]
    pauses: Annotated[list[Pause], about("the pauses of retraining in force")]
    currency: Annotated[str, about("the currency of all amounts")]
    by_attention: Annotated[list[str], about("the names of these workloads, the one that needs a person most first")]
    known_workloads: Annotated[int, about("workloads that have events or a model; the busiest of them are shown")]
    workloads: Annotated[dict[str, Workload], about("the workloads by name")]
