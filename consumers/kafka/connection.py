"""Connects kafka-python to a broker, and translates its errors."""

import base64
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from kafka import KafkaConsumer
from kafka import errors as kafka_errors
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient
from kafka.net.compat import KafkaNetClient
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector
from pydantic import SecretStr

from retuned.consumers.common.text import first_line
from retuned.consumers.errors import (
    BrokerRefused,
    BrokerUnavailable,
    ConfigurationError,
    RetunedError,
    Unreadable,
    out_of_files,
)
from retuned.consumers.kafka.contract import Identity
from retuned.consumers.kafka.records import EndlessBatch
from retuned.consumers.kafka.sign_in import SignInRefused, SignInUnavailable, TokenProvider, msk_options
from retuned.consumers.settings import KafkaSettings

CONNECT_SECONDS = 4.0
WITHOUT_END = (
    "messages with texts of users stay without an end, also after an erasure; set retention.ms, and cleanup.policy to "
    "delete"
)

# OpenSSL's errors that are permanent. An end of file is not among them: a broker may be restarting.
_TLS_REFUSAL = re.compile("CERTIFICATE|ALERT|WRONG_VERSION_NUMBER|UNSUPPORTED_PROTOCOL|NO_PROTOCOLS", re.IGNORECASE)

# The advice for a refusal, by a part of its text; the first match wins.
_REASONS = {
    "certificate has expired": "its certificate has expired; renew it on the broker, or correct this machine's clock",
    "certificate is not yet valid": "its certificate is not valid yet; correct this machine's clock",
    "certificate is not valid for": "its certificate is for another host; use the certificate's host name in "
    "kafka.bootstrap_servers and in the broker's advertised listeners",
    "CERTIFICATE_VERIFY_FAILED": "its certificate is from an untrusted authority; check kafka.ssl_cafile",
    "ALERT": "it refuses the certificate of this client; check that kafka.ssl_certfile is set, has not expired, and "
    "is from an authority that the broker trusts",
    "Invalid frame length": "it does not speak Kafka without TLS; check kafka.security_protocol and the port",
    "IllegalSaslState": "it accepts no credentials on this port; check kafka.security_protocol and the port",
    "SSL": "it does not speak TLS as this client does; check kafka.security_protocol and the port",
    "": "check this user's permissions on the broker",
}

# What a broker refuses, where it is not a name and a password.
_KEYS = {
    "OAUTHBEARER": "kafka.oauth_client_id, oauth_scope and sasl_mechanism, and what the broker expects of a token",
    "AWS_MSK_IAM": "the role of this process, its policy (kafka-cluster:Connect), AWS_DEFAULT_REGION and "
    "kafka.sasl_mechanism",
}


class _Connections(KafkaConnectionManager):  # type: ignore[misc]
    """kafka-python's connections, which keep the cause of the last failure of each node.

    The library (3.0.12) drops a response that arrives together with the end of the connection, which is how a broker
    refuses credentials. It also retries until the timeout although every broker has refused.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.failures: dict[Any, Exception] = {}

    async def _build_transport(self, node: Any, timeout_at: float | None = None) -> Any:
        transport = await super()._build_transport(node, timeout_at=timeout_at)
        receive = transport._sock_recv

        def answer_before_end() -> tuple[bytes, Exception | None]:
            data, error = receive()
            return data, None if data else error  # the next read reports the end again

        transport._sock_recv = answer_before_end
        return transport

    async def _connect(self, node: Any, conn: Any, **options: Any) -> None:
        await super()._connect(node, conn, **options)
        if not conn.init_future.failed():
            self.failures.pop(node.node_id, None)
            return
        self.failures[node.node_id] = conn.init_future.exception
        brokers = {broker.node_id for broker in self.cluster.bootstrap_brokers()}
        if all(_is_refusal(self.failures.get(broker)) for broker in brokers):
            self._auth_failures |= {broker: self.failures[broker] for broker in brokers}  # ends the bootstrap


def connect(kind: Any, settings: KafkaSettings, config: dict[str, Any]) -> Any:
    """Returns a connected KafkaConsumer or KafkaProducer.

    Raises:
        BrokerUnavailable: no broker answers in time.
        BrokerRefused: the broker refuses the connection.
        ConfigurationError: a certificate cannot be used.
    """
    clients: list[Any] = []

    def client(**options: Any) -> Any:
        net = NetworkSelector(**options)
        clients.append(KafkaNetClient(net, _Connections(net, **options)))
        return clients[-1]

    try:
        return kind(kafka_client=client, **config)
    except kafka_errors.KafkaError as error:
        failures = [failure for started in clients for failure in started._manager.failures.values()]
        for started in clients:
            started.close()  # a client that failed to connect leaves its thread running
        refusals = [failure for failure in failures if _is_refusal(failure)]
        raise kafka_error(settings, (refusals or failures or [error])[-1]) from error
    except OSError as error:  # a certificate that cannot be loaded
        if advice := out_of_files(error):
            raise BrokerUnavailable(f"kafka {settings.bootstrap_servers}: no connection: {advice}") from error
        raise ConfigurationError(
            f"kafka.ssl_cafile, ssl_certfile, ssl_keyfile: cannot be used ({first_line(error)})"
        ) from error


def check_broker(settings: KafkaSettings) -> str:
    """Connects to the broker and describes it in one line, with the topics that keep texts without an end.

    Raises:
        BrokerUnavailable: no broker answers.
        BrokerRefused: the broker refuses the connection.
        ConfigurationError: the settings are inconsistent.
    """
    consumer = connect(KafkaConsumer, settings, client_config(settings) | {"allow_auto_create_topics": False})
    try:
        with translated(settings):
            existing = consumer.topics()
            version = ".".join(str(part) for part in consumer.config["api_version"])
            topics = []
            for name in settings.topics:
                partitions = len(consumer.partitions_for_topic(name)) if name in existing else 0
                topics.append(f"{name} ({partitions} partitions)" if partitions else f"{name} (does not exist yet)")
            cluster = f", cluster {consumer._cluster.cluster_id}" if consumer._cluster.cluster_id else ""
            answers = f"kafka {settings.bootstrap_servers}: answers (protocol {version}{cluster})"
    finally:
        consumer.close(autocommit=False, timeout_ms=2_000)
    unbounded = unbounded_topics(settings)
    stay = f"; {', '.join(unbounded)}: {WITHOUT_END}" if unbounded else ""
    return f"{answers}, topics {', '.join(topics)}{stay}"


def unbounded_topics(settings: KafkaSettings) -> list[str]:
    """Returns the topics with texts of conversations or names of users that keep messages without an end. Topics that
    do not exist, and those whose configuration the broker does not tell, are left out.

    Raises:
        BrokerUnavailable, BrokerRefused: the broker does not answer.
    """
    written = filter(None, (settings.label_requests_topic, settings.dead_letter_topic))
    keys = dict.fromkeys(("retention.ms", "cleanup.policy"))
    asked = [ConfigResource(ConfigResourceType.TOPIC, name, keys) for name in (*settings.topics, *written)]
    admin = connect(KafkaAdminClient, settings, client_config(settings))
    try:
        described = admin.describe_configs(asked, config_filter="all").get("topic", {})
    except kafka_errors.KafkaError:  # a broker that has no such request, or does not allow it
        return []
    finally:
        admin.close()
    found = {name: {key: str(one["value"]) for key, one in about.items()} for name, about in described.items()}
    return sorted(
        name
        for name, of in found.items()
        if of.get("retention.ms") == "-1" or "delete" not in of.get("cleanup.policy", "delete")
    )


def topic_id(id: uuid.UUID | None) -> str | None:
    """Formats a topic id like Kafka's tools; None: the broker has no topic ids."""
    return base64.urlsafe_b64encode(id.bytes).decode().rstrip("=") if id and id.int else None


def identities(settings: KafkaSettings) -> dict[str, Identity]:
    """Returns the ids of the existing topics.

    Raises:
        BrokerUnavailable, BrokerRefused: the broker does not answer.
    """
    consumer = connect(KafkaConsumer, settings, client_config(settings) | {"allow_auto_create_topics": False})
    try:
        with translated(settings):
            existing, cluster = consumer.topics(), consumer._cluster
            return {
                name: Identity(cluster.cluster_id or None, topic_id(cluster.topic_id(name)))
                for name in settings.topics
                if name in existing
            }
    finally:
        consumer.close(autocommit=False, timeout_ms=2_000)


def refusal(settings: KafkaSettings) -> BrokerRefused | None:
    """Returns the broker's refusal of a new connection, if it refuses: a lost connection does not reveal the cause."""
    try:
        check_broker(settings)
    except BrokerRefused as error:
        return error
    except BrokerUnavailable:
        pass
    return None


def client_config(settings: KafkaSettings) -> dict[str, Any]:
    """Returns kafka-python's connection options, the same for consumer and producer.

    Raises:
        ConfigurationError: a credential or a file is missing.
    """
    config: dict[str, Any] = {
        "bootstrap_servers": [server.strip() for server in settings.bootstrap_servers.split(",")],
        "client_id": "retuned",
        "security_protocol": settings.security_protocol,
        "bootstrap_timeout_ms": int(CONNECT_SECONDS * 1000),
        "reconnect_backoff_max_ms": 2_000,
    }
    if "SASL" in settings.security_protocol:
        config |= _sign_in(settings)
    if "SSL" in settings.security_protocol:
        for key in ("ssl_cafile", "ssl_certfile", "ssl_keyfile"):
            path: Path | None = getattr(settings, key)
            if path is not None and not path.is_file():
                raise ConfigurationError(f"kafka.{key} {path}: there is no such file")
            config[key] = None if path is None else str(path)
    return config


def _sign_in(settings: KafkaSettings) -> dict[str, Any]:
    """Returns kafka-python's options for the mechanism."""
    mechanism = settings.sasl_mechanism
    if mechanism == "AWS_MSK_IAM":
        if settings.security_protocol != "SASL_SSL":
            raise ConfigurationError("kafka.sasl_mechanism AWS_MSK_IAM: needs kafka.security_protocol SASL_SSL")
        return msk_options()
    if mechanism == "OAUTHBEARER":
        url, client = settings.oauth_token_url, settings.oauth_client_id
        if url is None or client is None:
            raise ConfigurationError("kafka.sasl_mechanism OAUTHBEARER: needs oauth_token_url and oauth_client_id")
        provider = _provider(url, client, _secret(settings, "oauth_client_secret"), settings.oauth_scope)
        return {"sasl_mechanism": mechanism, "sasl_oauth_token_provider": provider}
    if mechanism is None or settings.sasl_username is None:
        raise ConfigurationError(
            f"kafka.security_protocol {settings.security_protocol}: needs sasl_mechanism and sasl_username"
        )
    return {
        "sasl_mechanism": mechanism,
        "sasl_plain_username": settings.sasl_username,
        "sasl_plain_password": _secret(settings, "sasl_password"),
    }


_provider = lru_cache(8)(TokenProvider)  # all clients of a process use one token


def _secret(settings: KafkaSettings, key: str) -> str:
    value: SecretStr | None = getattr(settings, key)
    file: Path | None = getattr(settings, f"{key}_file")
    if value is not None:
        return value.get_secret_value()
    if file is None:
        raise ConfigurationError(f"kafka.{key}: missing; set RETUNED__KAFKA__{key.upper()} or kafka.{key}_file")
    try:
        return file.read_text(encoding="utf-8").rstrip("\r\n")
    except OSError as error:
        raise ConfigurationError(f"kafka.{key}_file {file}: {error.strerror}") from error


@contextmanager
def translated(settings: KafkaSettings, where: str = "") -> Iterator[None]:
    """Translates kafka-python's errors raised inside.

    Args:
        where: a prefix for the text that names the operation.
    """
    try:
        yield
    except RetunedError:
        raise
    except kafka_errors.KafkaError as error:
        raise kafka_error(settings, error, where) from error
    except OSError as error:
        if advice := out_of_files(error):
            raise BrokerUnavailable(f"kafka {settings.bootstrap_servers}: {where}{advice}") from error
        raise
    except (ValueError, TypeError, RuntimeError, AssertionError, NotImplementedError, EOFError, ImportError) as error:
        raise _unreadable(settings, error, where) from error


def kafka_error(settings: KafkaSettings, error: BaseException, where: str = "") -> RetunedError:
    """Translates one of kafka-python's errors to BrokerUnavailable, BrokerRefused or Unreadable."""
    text = f"kafka {settings.bootstrap_servers}: {where}"
    if advice := out_of_files(error):
        return BrokerUnavailable(f"{text}{advice}")
    if isinstance(error, SignInRefused | SignInUnavailable):
        kind = BrokerRefused if isinstance(error, SignInRefused) else BrokerUnavailable
        return kind(f"{text}{error.args[0]}")
    name, message = type(error).__name__, first_line(error)
    reason = message if name in message else f"{name}: {message}"
    if isinstance(error, kafka_errors.SaslAuthenticationFailedError | kafka_errors.UnsupportedSaslMechanismError):
        keys = _KEYS.get(settings.sasl_mechanism or "", "kafka.sasl_username, sasl_password and sasl_mechanism")
        return BrokerRefused(f"{text}the credentials are refused; check {keys} ({reason})")
    if _is_refusal(error):
        advice = next(advice for piece, advice in _REASONS.items() if piece in reason)
        return BrokerRefused(f"{text}the broker is reached, but {advice} ({reason})")
    if isinstance(error, EndlessBatch):
        return Unreadable(f"{text}{error.args[0]}")
    if isinstance(error, kafka_errors.RetriableError):
        return BrokerUnavailable(
            f"{text}does not answer ({reason}); check kafka.bootstrap_servers, kafka.security_protocol, and that the "
            "broker runs"
        )
    if isinstance(error, kafka_errors.BrokerResponseError):
        return BrokerRefused(f"{text}refused ({reason})")
    return _unreadable(settings, error, where)


def _is_refusal(error: BaseException | None) -> bool:
    refusals = (
        kafka_errors.SaslAuthenticationFailedError,
        kafka_errors.UnsupportedSaslMechanismError,
        kafka_errors.AuthorizationError,
        kafka_errors.IllegalSaslStateError,
        kafka_errors.InvalidReceiveError,
    )
    return isinstance(error, refusals) or ("SSL" in str(error) and _TLS_REFUSAL.search(str(error)) is not None)


def _unreadable(settings: KafkaSettings, error: BaseException, where: str) -> Unreadable:
    return Unreadable(
        f"kafka {settings.bootstrap_servers}: {where}the broker's response cannot be unpacked "
        f"({type(error).__name__}: {first_line(error)}); check that the compression codec is installed here"
    )
