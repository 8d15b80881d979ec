"""Settings of getting events in: broker, ingestion, privacy, warehouse."""

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    ValidationInfo,
    model_validator,
)

from retuned.consumers.errors import ConfigurationError

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Region = Annotated[str, Field(pattern="^[A-Z]{2}$")]

_REGIONS = (
    "US", "GB", "DE", "FR", "ES", "IT", "NL", "BE", "AT", "CH", "PL", "PT", "SE", "DK", "NO",
    "FI", "IE", "CZ", "RU", "TR", "IN", "CN", "JP", "KR", "AU", "NZ", "BR", "MX", "AR", "ZA",
)  # fmt: skip


class Section(BaseModel):
    """A part of the configuration: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class WorkloadSettings(Section):
    """What the settings of monitors and of retrain have in common: they may differ from workload to workload.

    Whatever is done for one workload begins with `for_workload`, and hands the result on. These settings are the same
    for all workloads; those of the daemon are not.
    """

    objective: Annotated[str, StringConstraints(strip_whitespace=True, max_length=500)] = Field(
        "",
        description="what a workload is for, in one sentence: it stands on the page, in reports and on model cards, "
        "and judges are shown it",
    )

    def for_workload(self, workload: str) -> Self:  # noqa: ARG002
        """The settings in force for a workload."""
        return self

    def origin(self, workload: str, *key: str) -> str | None:  # noqa: ARG002
        """The name or glob under which a workload's value of a key (section, name) is set; None: it is that of all."""
        return None


def _without_credentials(url: str, info: ValidationInfo) -> str:
    if "@" in url.split("/")[2]:
        key = {"judge_url": "judge_key", "api_url": "api_key"}.get(info.field_name or "", "token")
        raise ValueError(f"credentials in the address are not sent; put a token into {key} or {key}_file")
    return url


def _without_needless_brackets(url: object) -> object:
    """A template that does not know of which family an address is puts brackets around it."""
    return re.sub(r"(?<=//)\[([0-9.]+)\]", r"\1", url) if isinstance(url, str) else url


HttpUrl = Annotated[
    str,
    Field(pattern=r"^https?://[^/\s]+"),
    BeforeValidator(_without_needless_brackets),
    AfterValidator(_without_credentials),
]


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to an address, or a name, that is listened on."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def authority(host: str, port: int) -> str:
    """Host and port as a URL has them: an address of IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def secret(value: SecretStr | None, file: Path | None, key: str) -> str | None:
    """A secret that is set as it is, or by a file whose key this is.

    Raises:
        ConfigurationError: the file cannot be read.
    """
    if value is not None:
        return value.get_secret_value()
    if file is None:
        return None
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigurationError(f"{key}: {file} cannot be read ({error.strerror})") from error


class JudgeSettings(Section):
    """A language model that judges answers, for sections that have one."""

    judge_url: HttpUrl | None = Field(
        None,
        description="a language model that judges answers, by OpenAI's chat completions: http://host:8000/v1; "
        "it is shown questions and answers; null: none",
    )
    judge_model: str | None = Field(None, description="the name under which that server knows the model")
    judge_key: SecretStr | None = Field(
        None, description="bearer token for it; set it by the environment, or by judge_key_file"
    )
    judge_key_file: Path | None = Field(None, description="a file whose content is that token")
    judge_timeout_seconds: PositiveFloat = Field(60.0, description="longest wait for one answer of it")

    def key(self) -> str | None:
        """The judge's bearer token.

        Raises:
            ConfigurationError: its file cannot be read.
        """
        return secret(self.judge_key, self.judge_key_file, "judge_key_file")

    @model_validator(mode="after")
    def _model_of_the_judge(self) -> Self:
        if self.judge_url and not self.judge_model:
            raise ValueError("judge_url is set: name the model with judge_model")
        return self


class KafkaSettings(Section):
    """Where events come from, and where model events go."""

    bootstrap_servers: str = Field("127.0.0.1:9092", description="host:port of one or more brokers, comma-separated")
    cluster_id: str | None = Field(
        None,
        description="id of the Kafka cluster that events come from; null: the one that the warehouse was filled from. "
        "Any other cluster is refused",
    )
    client: Literal["kafka-python", "confluent"] = Field(
        "kafka-python", description="what reads events; confluent (librdkafka) needs pip install 'retuned[confluent]'"
    )
    group_id: str = Field(
        "retuned",
        description="consumer group, one for each daemon; offsets are kept in the warehouse, not in the group",
    )
    interactions_topic: str = Field("interactions", description="what the model was asked and what it answered")
    feedback_topic: str = Field("feedback", description="what people thought of an answer")
    expert_topic: str | None = Field(
        None,
        description="a topic of feedback to which, by the broker's ACLs, only the systems of experts may write: with "
        "it, `source: expert` counts there and in imported files alone, elsewhere as user; null: it counts everywhere",
    )
    model_events_topic: str = Field(
        "retuned.model-events", description="promotions, rollbacks and requests for approval are announced here"
    )
    label_requests_topic: str | None = Field(
        "retuned.label-requests",
        description="answers that experts are asked to judge are announced here; null: on no topic",
    )
    dead_letter_topic: str | None = Field(
        None, description="copies of events that could not be decoded; they are kept in the warehouse in any case"
    )
    start: Literal["earliest", "latest"] = Field(
        "earliest", description="where to begin on a partition that was never read"
    )
    on_lost_offset: Literal["stop", "earliest", "latest"] = Field(
        "earliest",
        description="where to go on when retention has deleted the next event, or the topic was made anew; "
        "what was passed over is counted in retuned_events_lost_total",
    )
    isolation_level: Literal["read_uncommitted", "read_committed"] = Field(
        "read_committed", description="read_committed hides records of aborted transactions"
    )
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field("PLAINTEXT")
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = Field(None)
    sasl_username: str | None = Field(None)
    sasl_password: SecretStr | None = Field(
        None,
        description="better set by RETUNED__KAFKA__SASL_PASSWORD or sasl_password_file than in a shared file",
    )
    sasl_password_file: Path | None = Field(None, description="a file whose content is the password")
    ssl_cafile: Path | None = Field(None, description="certificate authority, PEM")
    ssl_certfile: Path | None = Field(None, description="client certificate, PEM")
    ssl_keyfile: Path | None = Field(None, description="key of the client certificate, PEM")
    session_timeout_seconds: PositiveFloat = Field(
        30.0, description="a consumer that is silent for this long loses its partitions"
    )

    @model_validator(mode="after")
    def _experts_apart(self) -> Self:
        if self.expert_topic in (self.interactions_topic, self.feedback_topic):
            raise ValueError(f"expert_topic: expected a topic of its own, got {self.expert_topic}")
        return self

    @property
    def topics(self) -> tuple[str, ...]:
        """Those that events are read from."""
        experts = () if self.expert_topic is None else (self.expert_topic,)
        return self.interactions_topic, self.feedback_topic, *experts


class IngestSettings(Section):
    """How events are written."""

    batch_events: PositiveInt = Field(
        10_240,
        description="most events written in one transaction; 10240 interactions or more go straight into the file, "
        "past its log",
    )
    batch_seconds: PositiveFloat = Field(0.5, description="longest wait for the first event of a batch")
    deduplicate_seconds: PositiveFloat = Field(
        3_600.0, description="an id is a duplicate when it is stored with a timestamp within this distance"
    )
    dead_letter_share_limit: Share = Field(
        0.5,
        description="a producer (a workload on a topic) with more dead letters among its last dead_letter_window "
        "messages is set aside: shown, alerted, its events still stored; ingestion stops when more of all messages "
        "are dead letters and more of the producers are set aside",
    )
    dead_letter_window: PositiveInt = Field(1_000, description="messages over which those shares are taken")
    max_event_bytes: PositiveInt = Field(5_000_000, description="larger events become dead letters")
    max_age_days: PositiveFloat = Field(
        1_095.0,
        le=365_000,
        description="events with an older timestamp become dead letters; those of files (retuned import) may be of any "
        "year from 1990 on",
    )
    max_ahead_seconds: PositiveFloat = Field(
        600.0, le=1e9, description="events with a timestamp farther in the future become dead letters"
    )
    max_tokens: PositiveInt = Field(
        10_000_000, description="events with more input or output tokens become dead letters", le=2**40
    )
    max_cost: PositiveFloat = Field(10_000.0, description="events that cost more become dead letters", le=1e12)
    max_latency_seconds: PositiveFloat = Field(
        86_400.0, description="events with a longer latency or time to the first token become dead letters", le=1e9
    )
    max_time_saved_seconds: PositiveFloat = Field(
        604_800.0, description="feedback of more saved (or lost) time becomes a dead letter", le=1e9
    )
    max_feedback_value: PositiveFloat = Field(
        1e12, description="feedback of any other name whose number is farther from 0 becomes a dead letter", le=1e15
    )


class PrivacySettings(Section):
    """What is taken out of an event before it is stored."""

    redact: bool = Field(
        True,
        description="replace e-mails, phones, cards, IBANs, ids, IPs, keys, tokens and cookies by <EMAIL_1> and so on",
    )
    phone_regions: tuple[Region, ...] = Field(
        _REGIONS,
        description="countries (ISO 3166) whose phone numbers are known without a + before them",
    )
    names: bool = Field(
        False, description="replace names of people too, in English text; slow, and needs pip install 'retuned[names]'"
    )
    keep: tuple[str, ...] = Field(
        (),
        description="the company's own contacts, which stay as they are: addresses, phone numbers, URLs, names; case "
        "and the way in which a number is grouped make no difference",
    )
    user_key: SecretStr | None = Field(
        None,
        description="key of the hash that replaces user_id, or several, one a line, newest first; "
        "set it by RETUNED__PRIVACY__USER_KEY or user_key_file",
    )
    user_key_file: Path | None = Field(
        None,
        description="a file with that; with neither, a key is made beside the warehouse, readable by its owner",
    )


class RolloutSettings(Section):
    """How a version that passed the gate goes into service: at once, or by steps under measurement."""

    steps: Annotated[tuple[Annotated[float, Field(ge=0.0001, le=1)], ...], Field(min_length=1)] = Field(
        (1.0,),
        description="shares of the conversations that the new version answers, one after the other, the last one 1.0; "
        "[0.05, 0.25, 1.0]: 5% first, then a quarter, then all. A share below 1.0 takes something that routes "
        "conversations by it (see docs/promotion.md)",
    )
    holdback: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        0.0,
        description="after the last step the champion before keeps this share until the watch has ended, so that both "
        "are compared at the same time; 0: none",
    )
    shadow: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0,
        description="before the first step the gateway asks the new version too, for this share of the conversations: "
        "its answers are judged beside the champion's and shown to nobody, and the first step comes when they are not "
        "worse; 0: it is not asked before it answers",
    )
    approve: Literal["none", "required"] = Field(
        "none",
        description="required: it waits until a person approves it, by `retuned approve`, on the status page or with "
        "POST /api/v1/approvals/{id}",
    )
    approve_within_seconds: PositiveFloat = Field(
        7 * 86_400.0,
        description="for so long; then the request expires, and `retuned promote` alone puts the version into service",
    )
    minimum_seconds: PositiveFloat = Field(86_400.0, description="each step lasts at least so long")
    minimum_answers: PositiveInt = Field(
        200,
        description="and until the new version has given so many answers in it, but for maximum_seconds; of a shadow, "
        "until so many conversations are judged",
    )
    maximum_seconds: PositiveFloat = Field(
        7 * 86_400.0,
        description="after so long the next step comes, unless harm is shown: also when too few people ask or vote; "
        "all steps before the last one together last no longer than watch.duration_seconds",
    )

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if list(self.steps) != sorted(set(self.steps)) or self.steps[-1] != 1.0:
            raise ValueError(
                f"steps: expected shares that rise and end with 1.0, such as [0.05, 0.25, 1.0], not {list(self.steps)}"
            )
        if any(step > 1 - self.holdback for step in self.steps[:-1]):
            raise ValueError(
                f"steps: expected shares below 1.0 to leave the holdback ({self.holdback:g}) untouched, at most "
                f"{1 - self.holdback:g}, not {list(self.steps)}: no conversation changes sides twice"
            )
        if self.minimum_seconds > self.maximum_seconds:
            raise ValueError(
                f"minimum_seconds: expected at most maximum_seconds ({self.maximum_seconds:g}), not "
                f"{self.minimum_seconds:g}"
            )
        return self

    def after(self, share: float) -> float:
        """The step that follows a share; before the first one the share is 0."""
        return next((step for step in self.steps if step > share), 1.0)


class WarehouseSettings(Section):
    """The DuckDB file that holds everything."""

    path: Path = Field(Path("data/retuned.duckdb"), description="the DuckDB file; one daemon owns it")
    memory_limit: str = Field("1GB", description="DuckDB's memory limit")
    threads: PositiveInt = Field(2, description="DuckDB's threads")
    checkpoint_threshold: str = Field(
        "32MB", description="size of the write-ahead log that triggers a checkpoint, during which events wait"
    )


class StoreSettings(Section):
    """A cluster: what ingesters (`retuned ingest`) and daemons write to. Needs pip install 'retuned[cluster]'."""

    kind: Literal["file", "cluster"] = Field(
        "file",
        description="file: the daemon reads Kafka into its warehouse; cluster: it follows the segments that ingesters "
        "write to the places below; retuned migrate --to cluster goes over to it",
    )
    postgres_url: SecretStr | None = Field(
        None,
        description="the PostgreSQL database that holds how far partitions are read and which segments exist: "
        "postgresql://user:password@host/database; set it by RETUNED__STORE__POSTGRES_URL or postgres_url_file",
    )
    postgres_url_file: Path | None = Field(None, description="a file whose content is that URL")
    objects_url: str | None = Field(
        None,
        description="where segments go, as Parquet files, and the daemon's versions, datasets and reports: "
        "s3://bucket/prefix, gs://…, az://… or file:///folder; credentials by the environment, as the provider's tools "
        "read them",
    )
    segment_seconds: PositiveFloat = Field(
        5.0,
        le=300,
        description="a segment holds the events of so many seconds, or ingest.batch_events of them; longer: fewer "
        "files, and events come later",
    )
    segment_days: PositiveInt | None = Field(
        None,
        description="segments that were received more than so many days ago are deleted; a daemon that did not follow "
        "them goes on without their rows; null: they are kept",
    )
    advertised_url: HttpUrl | None = Field(
        None,
        description="where the other daemons of the cluster reach this one over HTTP; an address may stand in "
        "brackets, whether it is of IPv4 or IPv6; null: http.port at the address that the database sees",
    )

    def postgres(self) -> str | None:
        """The URL of the database; None: it is not set.

        Raises:
            ConfigurationError: its file cannot be read.
        """
        return secret(self.postgres_url, self.postgres_url_file, "store.postgres_url_file")


class RetentionSettings(Section):
    """How long what is kept. Events go to Parquet files, but for those that monitors and learning still read."""

    keep_days: PositiveInt | None = Field(
        90, description="events received more than so many days ago are archived; null: never because of their age"
    )
    keep_bytes: PositiveInt | None = Field(
        None,
        description="when the warehouse uses more than this, its oldest days are archived early; null: no limit",
    )
    archive: Path | None = Field(
        None, description="folder of the archive, which only grows; null: the folder archive beside the warehouse"
    )
    detail_days: PositiveInt | None = Field(
        2,
        description="after so many days the ledger is summed by day; figures of quality, looks of the watch and drift "
        "checks that found nothing are thinned to the last of each hour, these without the figures of features; "
        "null: never",
    )
    history_days: PositiveInt | None = Field(
        100,
        description="drift checks, looks of the watch that decided nothing, decisions not to retrain, and requests for "
        "labels about archived answers are deleted after so many days; with fewer than 95 a quarterly report lacks the "
        "drift of its first days; null: never",
    )
    versions: PositiveInt | None = Field(
        5,
        description="the newest so many versions of each workload stay, and champion, previous and what a run under "
        "way needs; of older ones the folder and the evaluations are deleted, and datasets that no version which "
        "stays learned from; null: all stay",
    )
    failed_run_days: PositiveInt | None = Field(
        7, description="the folder of a run that failed, with its log, is deleted after so many days; null: never"
    )


class Settings(Section):
    """All settings of this package."""

    kafka: KafkaSettings = Field(default_factory=lambda: KafkaSettings())
    ingest: IngestSettings = Field(default_factory=lambda: IngestSettings())
    privacy: PrivacySettings = Field(default_factory=lambda: PrivacySettings())
    warehouse: WarehouseSettings = Field(default_factory=lambda: WarehouseSettings())
    store: StoreSettings = Field(default_factory=lambda: StoreSettings())
    retention: RetentionSettings = Field(default_factory=lambda: RetentionSettings())
