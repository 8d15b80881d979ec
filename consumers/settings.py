"""Settings of ingestion: broker, events, privacy, warehouse, cluster, retention, audit."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, SecretStr, model_validator

from retuned.consumers.sections import HttpUrl, PositiveFloat, PositiveInt, Section, Share, WorkloadSettings, secret

Region = Annotated[str, Field(pattern="^[A-Z]{2}$")]

_REGIONS = (
    "US", "GB", "DE", "FR", "ES", "IT", "NL", "BE", "AT", "CH", "PL", "PT", "SE", "DK", "NO",
    "FI", "IE", "CZ", "RU", "TR", "IN", "CN", "JP", "KR", "AU", "NZ", "BR", "MX", "AR", "ZA",
)  # fmt: skip


class KafkaSettings(Section):
    """The broker that events come from, and that model events go to."""

    bootstrap_servers: str = Field("127.0.0.1:9092", description="host:port of one or more brokers, comma-separated")
    cluster_id: str | None = Field(
        None,
        description="id of the Kafka cluster; null: the one that the warehouse was filled from. Any other cluster is "
        "refused",
    )
    group_id: str = Field(
        "retuned",
        description="consumer group, one for each daemon; offsets are kept in the warehouse, not in the group",
    )
    interactions_topic: str = Field("interactions", description="requests to the model with its answers")
    feedback_topic: str = Field("feedback", description="feedback of people, judges and apps on answers")
    expert_topic: str | None = Field(
        None,
        description="a topic of feedback to which, by the broker's ACLs, only the systems of experts may write: then "
        "`source: expert` counts only there and in imported files, and as user elsewhere; null: it counts everywhere",
    )
    model_events_topic: str = Field(
        "retuned.model-events", description="topic for promotions, rollbacks and requests for approval"
    )
    label_requests_topic: str | None = Field(
        "retuned.label-requests",
        description="topic for answers that experts should judge; null: none",
    )
    dead_letter_topic: str | None = Field(
        None, description="topic for copies of dead letters, which the warehouse always keeps; null: none"
    )
    erasure_topic: str | None = Field(
        None,
        description="a topic of requests to erase events, to which, by the broker's ACLs, only a system that may erase "
        "may write; null: none",
    )
    start: Literal["earliest", "latest"] = Field(
        "earliest", description="where to start on a partition that was never read"
    )
    on_lost_offset: Literal["stop", "earliest", "latest"] = Field(
        "earliest",
        description="where to continue after retention has deleted the next event, or the topic was recreated; "
        "retuned_events_lost_total counts the skipped events",
    )
    isolation_level: Literal["read_uncommitted", "read_committed"] = Field(
        "read_committed", description="read_committed hides records of aborted transactions"
    )
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field("PLAINTEXT")
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER", "AWS_MSK_IAM"] | None = Field(
        None, description="AWS_MSK_IAM needs pip install 'retuned[msk]'"
    )
    sasl_username: str | None = Field(None)
    sasl_password: SecretStr | None = Field(
        None,
        description="set it by RETUNED__KAFKA__SASL_PASSWORD or sasl_password_file rather than in a shared file",
    )
    sasl_password_file: Path | None = Field(None, description="a file whose content is the password")
    oauth_token_url: HttpUrl | None = Field(
        None, description="for OAUTHBEARER: the token endpoint, asked for a token by client credentials"
    )
    oauth_client_id: str | None = Field(None, description="for OAUTHBEARER: the client at the token endpoint")
    oauth_client_secret: SecretStr | None = Field(
        None,
        description="its secret; set it by RETUNED__KAFKA__OAUTH_CLIENT_SECRET or oauth_client_secret_file rather than "
        "in a shared file",
    )
    oauth_client_secret_file: Path | None = Field(None, description="a file whose content is that secret")
    oauth_scope: str | None = Field(None, description="for OAUTHBEARER: the scope to ask for; null: none")
    ssl_cafile: Path | None = Field(None, description="certificate authority, PEM")
    ssl_certfile: Path | None = Field(None, description="client certificate, PEM")
    ssl_keyfile: Path | None = Field(None, description="key of the client certificate, PEM")
    session_timeout_seconds: PositiveFloat = Field(
        30.0, description="a consumer that is silent for this long loses its partitions"
    )

    removed: ClassVar = {"client": "as kafka-python reads all events"}

    @model_validator(mode="after")
    def _topics_apart(self) -> Self:
        """What is read is read as one kind of event, and nothing that is written comes back as an event."""
        read = {self.interactions_topic, self.feedback_topic}
        for name in ("expert_topic", "erasure_topic"):
            if (topic := getattr(self, name)) in read:
                raise ValueError(f"{name}: expected a topic of its own, got {topic}")
            read.add(topic or "")
        for name in ("model_events_topic", "label_requests_topic", "dead_letter_topic"):
            if (topic := getattr(self, name)) in read:
                raise ValueError(f"{name}: expected a topic that is not read, got {topic}")
        return self

    @property
    def topics(self) -> tuple[str, ...]:
        """The topics that events, and requests to erase them, are read from."""
        return self.interactions_topic, self.feedback_topic, *filter(None, (self.expert_topic, self.erasure_topic))


class IngestSettings(Section):
    """How events are written."""

    batch_events: PositiveInt = Field(
        10_240,
        description="most events written in one transaction; 10240 interactions or more are written directly into the "
        "file, bypassing its log",
    )
    batch_seconds: PositiveFloat = Field(0.5, description="longest wait for the first event of a batch")
    deduplicate_seconds: PositiveFloat = Field(
        3_600.0, description="an id is a duplicate if it is stored with a timestamp within this distance"
    )
    dead_letter_share_limit: Share = Field(
        0.5,
        description="a producer (a workload on a topic) with more dead letters among its last dead_letter_window "
        "messages is set aside: shown and alerted, with its events still stored; ingestion stops when more than this "
        "share of all messages are dead letters and more than this share of the producers are set aside",
    )
    dead_letter_window: PositiveInt = Field(1_000, description="number of messages for these shares")
    max_event_bytes: PositiveInt = Field(5_000_000, description="larger events become dead letters")
    max_age_days: PositiveFloat = Field(
        1_095.0,
        le=365_000,
        description="events with an older timestamp become dead letters; events in files (retuned import) may have any "
        "timestamp since 1990",
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
        604_800.0, description="feedback with more saved (or lost) time becomes a dead letter", le=1e9
    )
    max_feedback_value: PositiveFloat = Field(
        1e12, description="other feedback with a number farther from 0 becomes a dead letter", le=1e15
    )


class PrivacySettings(Section):
    """What is removed from events before they are stored."""

    redact: bool = Field(
        True,
        description="replace e-mails, phones, cards, IBANs, ids, IPs, keys, tokens and cookies by <EMAIL_1> and so on",
    )
    phone_regions: tuple[Region, ...] = Field(
        _REGIONS,
        description="countries (ISO 3166) whose phone numbers are recognised without a + before them",
    )
    names: bool = Field(
        False, description="also replace names of people in English text; slow, and needs pip install 'retuned[names]'"
    )
    keep: tuple[str, ...] = Field(
        (),
        description="the company's own contacts, which are not replaced: addresses, phone numbers, URLs, names; case "
        "and grouping of digits do not matter",
    )
    keep_keys: tuple[str, ...] = Field(
        (),
        description="names of arguments and fields in JSON that hold neither a user nor personal data in this "
        "deployment, such as account_id: their values are stored as they are",
    )
    user_key: SecretStr | None = Field(
        None,
        description="key of the hash that replaces user_id, or several, one a line, newest first; "
        "set it by RETUNED__PRIVACY__USER_KEY or user_key_file",
    )
    user_key_file: Path | None = Field(
        None,
        description="a file with that key; without both, a key is created beside the warehouse, readable by its owner",
    )


class RolloutSettings(Section):
    """How a version that passed the gate goes into service: at once, or in measured steps."""

    steps: Annotated[tuple[Annotated[float, Field(ge=0.0001, le=1)], ...], Field(min_length=1)] = Field(
        (1.0,),
        description="successive shares of the conversations that the new version answers, the last one 1.0; "
        "[0.05, 0.25, 1.0]: 5% first, then a quarter, then all. A share below 1.0 needs a router of conversations "
        "(see docs/promotion.md)",
    )
    unit: Literal["conversation", "account"] = Field(
        "conversation",
        description="what the gateway assigns to one of two versions: each conversation, or each account (`user` of "
        "the request, if there is one), which then sees only one version; do not change it during a rollout",
    )
    holdback: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        0.0,
        description="after the last step the former champion keeps this share until the watch has ended, so that both "
        "are compared at the same time; 0: none",
    )
    shadow: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0,
        description="before the first step the gateway also asks the new version, for this share of the conversations: "
        "its answers are compared with the champion's and not shown to users, and the first step comes when they are "
        "not worse; 0: no shadow",
    )
    approve: Literal["none", "required"] = Field(
        "none",
        description="required: a version waits until a person approves it, by `retuned approve`, in the console or by "
        "POST /api/v1/approvals/{id}",
    )
    approve_within_seconds: PositiveFloat = Field(
        7 * 86_400.0,
        description="time after which a request for approval expires; then only `retuned promote` puts the version "
        "into service",
    )
    minimum_seconds: PositiveFloat = Field(86_400.0, description="shortest duration of each step")
    minimum_answers: PositiveInt = Field(
        200,
        description="answers of the new version that each step needs, unless maximum_seconds have passed; for a "
        "shadow, judged conversations",
    )
    maximum_seconds: PositiveFloat = Field(
        7 * 86_400.0,
        description="time after which the next step comes even with few answers or votes, or the version is taken back "
        "if votes lean to harm; once all steps together have lasted watch.duration_seconds, each further one takes "
        "minimum_seconds",
    )

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if list(self.steps) != sorted(set(self.steps)) or self.steps[-1] != 1.0:
            raise ValueError(
                f"steps: expected rising shares that end with 1.0, such as [0.05, 0.25, 1.0], not {list(self.steps)}"
            )
        if any(step > 1 - self.holdback for step in self.steps[:-1]):
            raise ValueError(
                f"steps: expected shares below 1.0 of at most {1 - self.holdback:g}, to leave the holdback "
                f"({self.holdback:g}) untouched, not {list(self.steps)}: no conversation changes versions twice"
            )
        if self.minimum_seconds > self.maximum_seconds:
            raise ValueError(
                f"minimum_seconds: expected at most maximum_seconds ({self.maximum_seconds:g}), not "
                f"{self.minimum_seconds:g}"
            )
        return self

    def after(self, share: float) -> float:
        """Returns the step after a share; before the first step the share is 0."""
        return next((step for step in self.steps if step > share), 1.0)


class WarehouseSettings(Section):
    """The DuckDB file that holds everything."""

    path: Path = Field(Path("data/retuned.duckdb"), description="the DuckDB file; one daemon owns it")
    memory_limit: str = Field(
        "1GB",
        description="DuckDB's memory limit; it fills with what is read and written, beside the daemon's own memory",
    )
    threads: PositiveInt = Field(2, description="DuckDB's threads")
    checkpoint_threshold: str = Field(
        "32MB", description="size of the write-ahead log that triggers a checkpoint, during which events wait"
    )


class StoreSettings(Section):
    """The storage of a cluster, for ingesters (`retuned ingest`) and daemons. Needs pip install 'retuned[cluster]'."""

    kind: Literal["file", "cluster"] = Field(
        "file",
        description="file: the daemon reads Kafka into its warehouse; cluster: it follows the segments that ingesters "
        "write to the storage below; retuned migrate --to cluster switches to it",
    )
    postgres_url: SecretStr | None = Field(
        None,
        description="the PostgreSQL database of offsets, segments and control tables: "
        "postgresql://user:password@host/database; set it by RETUNED__STORE__POSTGRES_URL or postgres_url_file",
    )
    postgres_url_file: Path | None = Field(None, description="a file whose content is that URL")
    objects_url: str | None = Field(
        None,
        description="object storage of segments (Parquet files), versions, datasets and reports: "
        "s3://bucket/prefix, gs://…, az://… or file:///folder; credentials come from the environment variables of the "
        "provider's tools",
    )
    segment_seconds: PositiveFloat = Field(
        5.0,
        le=300,
        description="a segment holds the events of this time, or ingest.batch_events of them; longer: fewer files, but "
        "events arrive later",
    )
    segment_days: PositiveInt | None = Field(
        None,
        description="days after which segments are deleted; a daemon that has not followed them continues without "
        "their rows; null: never",
    )
    advertised_url: HttpUrl | None = Field(
        None,
        description="URL at which the other daemons of the cluster reach this one; an IPv4 or IPv6 address may be in "
        "brackets; null: http.port at the address that the database sees",
    )

    def postgres(self) -> str | None:
        """Returns the URL of the database; None: it is not set.

        Raises:
            ConfigurationError: its file cannot be read.
        """
        return secret(self.postgres_url, self.postgres_url_file, "store.postgres_url_file")


class RetentionSettings(Section):
    """How long data is kept. Events are archived to Parquet files unless monitors or training still read them."""

    keep_days: PositiveInt | None = Field(
        90,
        description="days after which events are archived; null: never because of their age. Of feedback without its "
        "interaction and of dead letters the value outside of workloads holds",
    )
    delete_days: PositiveInt | None = Field(
        None,
        description="days after which events are deleted from the archive, with at least keep_days; null: never. Of "
        "feedback without its interaction the value outside of workloads holds",
    )
    dead_letter_days: PositiveInt | None = Field(
        None, description="days after which dead letters are deleted from the warehouse and the archive; null: never"
    )
    keep_bytes: PositiveInt | None = Field(
        None,
        description="if the warehouse uses more than this, its oldest days are archived early; null: no limit",
    )
    archive: Path | None = Field(
        None, description="folder of the archive, which only grows; null: the folder archive beside the warehouse"
    )
    detail_days: PositiveInt | None = Field(
        2,
        description="days after which the ledger is summed by day, and quality figures, watch checks and drift checks "
        "that found nothing are thinned to the last of each hour, drift checks without their features; null: never",
    )
    history_days: PositiveInt | None = Field(
        100,
        description="days after which drift checks, watch checks without a decision, decisions not to retrain, and "
        "label requests about archived answers are deleted; with fewer than 95, a quarterly report lacks the drift of "
        "its first days; null: never",
    )
    versions: PositiveInt | None = Field(
        5,
        description="number of versions kept for each workload, besides champion, previous and those that a current "
        "run needs; of older versions the folder, the evaluations and unused datasets are deleted; null: all are kept",
    )
    failed_run_days: PositiveInt | None = Field(
        7, description="days after which the folder of a failed run, with its log, is deleted; null: never"
    )

    @model_validator(mode="after")
    def _archived_before_deleted(self) -> Self:
        if self.delete_days is not None and (self.keep_days is None or self.delete_days < self.keep_days):
            raise ValueError(
                f"delete_days: expected at least keep_days ({self.keep_days}), because events are deleted from the "
                f"archive; got {self.delete_days}"
            )
        return self


class AuditSettings(Section):
    """Signed checkpoints of the audit, which show that its end was not cut off."""

    key_file: Path | None = Field(
        None,
        description="private Ed25519 key in PEM that signs checkpoints, receipts and versions; `retuned audit keygen "
        "FILE` makes it",
    )
    checkpoint_file: Path | None = Field(
        None,
        description="file to which checkpoints are appended, one JSON envelope a line; keep it, or a copy, where "
        "nobody can change it who can change the warehouse",
    )
    topic: str | None = Field(None, description="topic to which checkpoints are published; it has to exist")
    checkpoint_seconds: PositiveInt = Field(
        300, description="seconds between checkpoints, which are made only if the audit has new rows"
    )

    @model_validator(mode="after")
    def _signed(self) -> Self:
        if (self.checkpoint_file or self.topic) and self.key_file is None:
            raise ValueError(
                "key_file: checkpoints (checkpoint_file, topic) are signed: set it to the key that "
                "`retuned audit keygen FILE` makes"
            )
        return self


class Settings(WorkloadSettings):
    """All settings of this package."""

    kafka: KafkaSettings = Field(default_factory=lambda: KafkaSettings())
    ingest: IngestSettings = Field(default_factory=lambda: IngestSettings())
    privacy: PrivacySettings = Field(default_factory=lambda: PrivacySettings())
    warehouse: WarehouseSettings = Field(default_factory=lambda: WarehouseSettings())
    store: StoreSettings = Field(default_factory=lambda: StoreSettings())
    retention: RetentionSettings = Field(default_factory=lambda: RetentionSettings())
    audit: AuditSettings = Field(default_factory=lambda: AuditSettings())
