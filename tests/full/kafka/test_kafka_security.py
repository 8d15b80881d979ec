"""Credentials and certificates, against a real broker: each refusal is told apart from a broker that is away."""

import base64
import json
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from fixtures.kafka.brokers import (
    SCRAM,
    Broker,
    Proxy,
    free_port,
    make_authority,
    make_certificate,
    no_apache_kafka,
    run_apache_kafka,
    until,
)
from fixtures.servers.http import Quiet, listening
from retuned.consumers.errors import BrokerRefused, BrokerUnavailable, ConfigurationError
from retuned.consumers.kafka.connection import check_broker
from retuned.consumers.kafka.source import KafkaSource
from retuned.consumers.settings import KafkaSettings

MECHANISMS = ("PLAIN", *SCRAM)


@dataclass
class Secure:
    """A broker with SASL and TLS, and the folder of its certificates."""

    broker: Broker
    folder: Path

    def settings(self, **changes: Any) -> KafkaSettings:
        right = {
            "bootstrap_servers": self.broker.bootstrap_servers,
            "security_protocol": "SASL_SSL",
            "sasl_mechanism": "PLAIN",
            "sasl_username": "retuned",
            "sasl_password_file": self.folder / "password",
            "ssl_cafile": self.folder / "ca.pem",
            "session_timeout_seconds": 2,
        }
        return KafkaSettings(**(right | changes))

    def certificate(self, name: str) -> dict[str, Path]:
        return {"ssl_certfile": self.folder / f"{name}.pem", "ssl_keyfile": self.folder / f"{name}.key"}


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secure]:
    if reason := no_apache_kafka():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("secure")
    (folder / "password").write_text("secret\n")
    with run_apache_kafka(folder, "SASL_SSL") as broker:
        make_authority(folder, "other")
        make_certificate(folder, "client")
        make_certificate(folder, "expired", expired=True)
        yield Secure(broker, folder)


def refusals(settings: KafkaSettings) -> Iterator[str]:
    """What `retuned check` and a source find. Who waits for a timeout finds no broker, and no refusal."""
    source = KafkaSource(settings, dict)
    tries: list[Callable[[], object]] = [lambda: check_broker(settings), lambda: source.poll(1, 0)]
    for attempt in tries:
        with pytest.raises(BrokerRefused) as caught:
            attempt()
        yield str(caught.value)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_right_credentials_are_taken(secure: Secure, mechanism: str) -> None:
    settings = secure.settings(sasl_mechanism=mechanism, **secure.certificate("client"))
    assert "answers" in check_broker(settings)
    source = KafkaSource(settings, dict)
    source.poll(1, 0)
    source.close()


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("wrong", [{"sasl_password": "wrong"}, {"sasl_username": "nobody"}], ids=["password", "user"])
def test_wrong_credentials_are_told(secure: Secure, mechanism: str, wrong: dict[str, str]) -> None:
    for said in refusals(secure.settings(sasl_mechanism=mechanism, **wrong)):
        assert "the credentials are refused; check kafka.sasl_username, sasl_password and sasl_mechanism" in said


class Endpoint(Quiet):
    """A token endpoint that issues unsigned tokens to a client with the secret `secret`."""

    lifetime: ClassVar[float] = 60
    issued: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        _, _, secret = base64.b64decode(self.headers["Authorization"].removeprefix("Basic ")).partition(b":")
        claims = {"sub": "retuned", "iat": time.time(), "exp": time.time() + self.lifetime}
        parts = (base64.urlsafe_b64encode(json.dumps(part).encode()).decode() for part in ({"alg": "none"}, claims))
        token = ".".join(part.rstrip("=") for part in parts) + "."
        self.issued.append(token)
        answer = {"access_token": token, "expires_in": max(self.lifetime, 1)}
        self.send_response(200 if secret == b"secret" else 401)
        self.end_headers()
        self.wfile.write(json.dumps(answer if secret == b"secret" else {"error": "invalid_client"}).encode())


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Endpoint, "lifetime", 60)
    monkeypatch.setattr(Endpoint, "issued", [])
    with listening(Endpoint) as url:
        yield url


def by_token(secure: Secure, url: str, secret: str = "secret") -> KafkaSettings:
    oauth = {"oauth_token_url": url, "oauth_client_id": "retuned", "oauth_client_secret": secret}
    return secure.settings(sasl_mechanism="OAUTHBEARER", sasl_username=None, sasl_password_file=None, **oauth)


def test_a_connection_outlives_its_token(secure: Secure, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Endpoint, "lifetime", 3)
    settings = by_token(secure, endpoint)
    assert "answers" in check_broker(settings)
    source = KafkaSource(settings, dict)
    begun = time.monotonic()
    while time.monotonic() < begun + 8:
        source.poll(1, 0.2)
    source.close()
    assert 3 <= len(Endpoint.issued) <= 8


def test_a_token_that_the_broker_refuses_is_told(
    secure: Secure, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Endpoint, "lifetime", -60)
    for said in refusals(by_token(secure, endpoint)):
        assert "the credentials are refused; check kafka.oauth_client_id, oauth_scope and sasl_mechanism" in said
        assert not any(token in said for token in Endpoint.issued)


def test_a_client_that_the_token_endpoint_refuses_is_told(secure: Secure, endpoint: str) -> None:
    for said in refusals(by_token(secure, endpoint, "wrong")):
        assert "oauth_client_secret and oauth_scope (status 401, invalid_client)" in said


def test_a_token_endpoint_that_is_away_is_no_refusal(secure: Secure) -> None:
    with pytest.raises(BrokerUnavailable, match=r"kafka.oauth_token_url .*does not answer \(.*refused"):
        check_broker(by_token(secure, f"http://127.0.0.1:{free_port()}"))


def test_a_mechanism_that_the_broker_does_not_offer_is_told(secure: Secure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    settings = secure.settings(sasl_mechanism="AWS_MSK_IAM", sasl_username=None, sasl_password_file=None)
    for said in refusals(settings):
        assert "the credentials are refused; check the role of this process" in said


@pytest.mark.parametrize("authority", ["other", None])
def test_an_unknown_authority_is_told(secure: Secure, authority: str | None) -> None:
    file = authority and secure.folder / f"{authority}.pem"
    for said in refusals(secure.settings(ssl_cafile=file)):
        assert "its certificate is from an untrusted authority; check kafka.ssl_cafile" in said


def test_a_certificate_of_another_host_is_told(secure: Secure) -> None:
    for said in refusals(secure.settings(bootstrap_servers=f"localhost:{secure.broker.port}")):
        assert "its certificate is for another host; use the certificate's host name in kafka.bootstrap_servers" in said


def test_an_expired_certificate_of_the_broker_is_told(secure: Secure) -> None:
    """By what terminates TLS in front of a broker: Apache Kafka does not start with one."""
    certificate = secure.certificate("expired")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate["ssl_certfile"], certificate["ssl_keyfile"])
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection, suppress(OSError):
                        context.wrap_socket(connection, server_side=True).close()

        serving = threading.Thread(target=serve)
        serving.start()
        for said in refusals(secure.settings(bootstrap_servers=f"127.0.0.1:{listener.getsockname()[1]}")):
            assert "its certificate has expired; renew it on the broker, or correct this machine's clock" in said
        listener.shutdown(socket.SHUT_RDWR)
        serving.join()


def test_an_expired_certificate_of_the_client_is_told(secure: Secure) -> None:
    for said in refusals(secure.settings(**secure.certificate("expired"))):
        assert "it refuses the certificate of this client; check that kafka.ssl_certfile" in said


def test_a_client_without_tls_is_told(secure: Secure) -> None:
    for protocol in ("PLAINTEXT", "SASL_PLAINTEXT"):
        for said in refusals(secure.settings(security_protocol=protocol)):
            assert "it does not speak Kafka without TLS; check kafka.security_protocol" in said


def test_credentials_for_a_broker_without_are_told(apache_kafka: Broker, secure: Secure) -> None:
    changes = {"bootstrap_servers": apache_kafka.bootstrap_servers, "security_protocol": "SASL_PLAINTEXT"}
    for said in refusals(secure.settings(**changes)):
        assert "it accepts no credentials on this port; check kafka.security_protocol" in said


def test_files_that_are_missing_are_told(secure: Secure) -> None:
    with pytest.raises(ConfigurationError, match=r"kafka.ssl_cafile .*nowhere.*no such file"):
        check_broker(secure.settings(ssl_cafile=secure.folder / "nowhere"))
    with pytest.raises(ConfigurationError, match="sasl_password"):
        check_broker(secure.settings(sasl_password_file=None))


def test_credentials_that_are_refused(tmp_path: Path) -> None:
    """At the start; and when a daemon has read for months, and its password was changed while its broker was away."""
    if reason := no_apache_kafka():
        pytest.skip(reason)
    with run_apache_kafka(tmp_path / "kafka", "SASL_PLAINTEXT") as broker:
        sasl = {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "PLAIN", "sasl_username": "retuned"}
        proxy = Proxy(broker.port, delay_seconds=0.3)
        settings = KafkaSettings(bootstrap_servers=f"127.0.0.1:{proxy.port}", sasl_password="wrong", **sasl)
        for _ in range(3):  # here the broker's answer and its hanging up arrive in one piece
            with pytest.raises(BrokerRefused, match="credentials are refused"):
                KafkaSource(settings, dict).poll(1, 0)
        proxy.close()
        settings = KafkaSettings(bootstrap_servers=broker.bootstrap_servers, sasl_password="secret", **sasl)
        source = KafkaSource(settings, dict)
        until(lambda: source.poll(1, 0.2) and source._membership._owner)  # is in its group, and knows that it is alone
        broker.stop(signal.SIGKILL)
        with pytest.raises(BrokerUnavailable, match="the connection is lost"):
            until(lambda: source.poll(1, 0.2).records)
        properties = tmp_path / "kafka" / "server.properties"
        properties.write_text(properties.read_text().replace('="secret"', '="changed"'))
        broker.start()
        with pytest.raises(BrokerRefused, match="credentials are refused"):
            until(lambda: _poll_when_there(source))
        source.close()


def _poll_when_there(source: KafkaSource) -> bool:
    try:
        return bool(source.poll(1, 0.2).records)
    except BrokerUnavailable:
        return False
