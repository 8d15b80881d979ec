"""Signing in to a broker by a token: an HTTP double of a token endpoint, and a signature computed apart."""

import hashlib
import hmac
import json
import logging
import sys
import threading
import time
from base64 import b64decode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, quote

import pytest
from kafka.net.sasl import get_sasl_mechanism

from fixtures.kafka.brokers import free_port
from fixtures.servers.http import Quiet, listening
from retuned.consumers.errors import BrokerRefused, BrokerUnavailable, ConfigurationError
from retuned.consumers.kafka import sign_in
from retuned.consumers.kafka.connection import client_config, kafka_error
from retuned.consumers.kafka.sign_in import SignInRefused, SignInUnavailable, TokenProvider
from retuned.consumers.settings import KafkaSettings

MSK = {"security_protocol": "SASL_SSL", "sasl_mechanism": "AWS_MSK_IAM"}


class Endpoint(Quiet):
    """Issues the tokens `token-1`, `token-2`, …; `answer` replaces them: a status and a body."""

    asked: ClassVar[list[dict[str, Any]]] = []
    answer: ClassVar[tuple[int, bytes] | None] = None
    lifetime: ClassVar[Any] = 100

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.asked.append(form | {"authorization": self.headers["Authorization"]})
        issued = {"access_token": f"token-{len(self.asked)}", "token_type": "Bearer", "expires_in": self.lifetime}
        status, body = self.answer or (200, json.dumps(issued).encode())
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name, value in {"asked": [], "answer": None, "lifetime": 100}.items():
        monkeypatch.setattr(Endpoint, name, value)
    with listening(Endpoint) as url:
        yield f"{url}/token"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def told(error: Exception) -> str:
    """What a person reads of an error."""
    return str(kafka_error(KafkaSettings(), error))


def test_a_token_is_asked_for_by_client_credentials(endpoint: str) -> None:
    assert TokenProvider(endpoint, "my client", "hunter:2", "kafka read").token() == "token-1"
    (asked,) = Endpoint.asked
    assert (asked["grant_type"], asked["scope"]) == (["client_credentials"], ["kafka read"])
    assert b64decode(asked["authorization"].removeprefix("Basic ")) == b"my+client:hunter%3A2"
    TokenProvider(endpoint, "a", "b", None).token()
    assert "scope" not in Endpoint.asked[1]


def test_a_token_is_used_until_it_is_about_to_expire(endpoint: str) -> None:
    clock = Clock()
    provider = TokenProvider(endpoint, "a", "b", None, clock)
    with ThreadPoolExecutor(8) as clients:  # of several clients at once, one asks
        assert set(clients.map(lambda _: provider.token(), range(8))) == {"token-1"}
    clock.now = 79
    assert provider.token() == "token-1"
    clock.now = 81
    assert provider.token() == "token-2"


def test_a_token_serves_to_its_end_while_there_is_no_other(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    provider = TokenProvider(endpoint, "a", "b", None, clock)
    provider.token()
    monkeypatch.setattr(Endpoint, "answer", (503, b""))
    clock.now = 99
    assert provider.token() == "token-1"
    clock.now = 100
    with pytest.raises(SignInUnavailable, match="status 503"):
        provider.token()
    monkeypatch.setattr(Endpoint, "answer", None)
    assert provider.token() == f"token-{len(Endpoint.asked)}"


@pytest.mark.parametrize("lifetime", [None, 0, -5, float("nan")])
def test_a_token_without_a_lifetime_serves_once(
    endpoint: str, monkeypatch: pytest.MonkeyPatch, lifetime: float | None
) -> None:
    monkeypatch.setattr(Endpoint, "lifetime", lifetime)
    provider = TokenProvider(endpoint, "a", "b", None)
    assert [provider.token(), provider.token()] == ["token-1", "token-2"]


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (401, b'{"error": "invalid_client", "error_description": "hunter2"}', r"\(status 401, invalid_client\)"),
        (400, b'{"error": "hunter2 is wrong"}', r"\(status 400\)"),
        (404, b"<html>hunter2", r"\(status 404\)"),
        (403, b'["hunter2"]', r"\(status 403\)"),
    ],
)
def test_a_refusal_names_the_keys_and_repeats_no_secret(
    endpoint: str, monkeypatch: pytest.MonkeyPatch, status: int, body: bytes, reason: str
) -> None:
    monkeypatch.setattr(Endpoint, "answer", (status, body))
    with pytest.raises(SignInRefused) as caught:
        TokenProvider(endpoint, "a", "hunter2", None).token()
    said = told(caught.value)
    assert isinstance(kafka_error(KafkaSettings(), caught.value), BrokerRefused)
    assert "hunter2" not in said
    assert said.startswith(
        f"kafka 127.0.0.1:9092: kafka.oauth_token_url {endpoint}: refuses this client; check the address, "
        "kafka.oauth_client_id, oauth_client_secret and oauth_scope (status "
    )
    caught.match(reason)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b'{"token": "x"}',
        b'{"access_token": 7}',
        b'{"access_token": "a\\u0001auth=b"}',
        b'{"access_token": "secret-token", "expires_in": "soon"}',
        b'{"access_token": "secret-token", "expires_in": [1]}',
        b"[" * 100_000,
    ],
    ids=range(9),
)
def test_what_is_no_token_is_told_and_not_sent(endpoint: str, monkeypatch: pytest.MonkeyPatch, body: bytes) -> None:
    monkeypatch.setattr(Endpoint, "answer", (200, body))
    with pytest.raises(SignInRefused, match=r"does not answer with a token; check the address$") as caught:
        TokenProvider(endpoint, "a", "b", None).token()
    assert "secret-token" not in told(caught.value)


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_an_endpoint_that_cannot_answer_now_is_away(
    endpoint: str, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(Endpoint, "answer", (status, b""))
    with pytest.raises(SignInUnavailable, match=rf"does not answer \(status {status}\)") as caught:
        TokenProvider(endpoint, "a", "b", None).token()
    assert isinstance(kafka_error(KafkaSettings(), caught.value), BrokerUnavailable)


def test_an_endpoint_that_does_not_listen_is_away() -> None:
    with pytest.raises(SignInUnavailable, match=r"kafka.oauth_token_url http://.*: does not answer \(.*refused"):
        TokenProvider(f"http://127.0.0.1:{free_port()}/token", "a", "b", None).token()


def test_a_slow_endpoint_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that sends a byte now and then resets every timeout of a socket."""
    monkeypatch.setattr(sign_in, "TOKEN_SECONDS", 0.3)
    over = threading.Event()

    class Slow(Quiet):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            while not over.wait(0.05):
                self.wfile.write(b" ")
                self.wfile.flush()

    with listening(Slow) as url:
        begun = time.monotonic()
        with pytest.raises(SignInUnavailable, match=r"does not answer \(timeout\)"):
            TokenProvider(url, "a", "b", None).token()
        assert time.monotonic() - begun < 5
        over.set()


def oauth(url: str, **changes: Any) -> KafkaSettings:
    right = {
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "OAUTHBEARER",
        "oauth_token_url": url,
        "oauth_client_id": "retuned",
        "oauth_client_secret": "hunter2",
    }
    return KafkaSettings(**(right | changes))


def test_all_clients_use_one_token_and_nothing_of_it_is_logged(endpoint: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    first, second = (client_config(oauth(endpoint)) for _ in range(2))
    assert "sasl_plain_password" not in first
    assert first["sasl_oauth_token_provider"].token() == second["sasl_oauth_token_provider"].token() == "token-1"
    assert "hunter2" not in repr(first) + caplog.text
    assert "token-1" not in repr(first) + caplog.text


def test_the_secret_may_be_in_a_file(endpoint: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("from-a-file\n")
    settings = oauth(endpoint, oauth_client_secret=None, oauth_client_secret_file=tmp_path / "secret")
    client_config(settings)["sasl_oauth_token_provider"].token()
    assert b64decode(Endpoint.asked[0]["authorization"].removeprefix("Basic ")) == b"retuned:from-a-file"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"oauth_token_url": None}, "kafka.sasl_mechanism OAUTHBEARER: needs oauth_token_url and oauth_client_id"),
        ({"oauth_client_id": None}, "kafka.sasl_mechanism OAUTHBEARER: needs oauth_token_url and oauth_client_id"),
        ({"oauth_client_secret": None}, "kafka.oauth_client_secret: missing; set RETUNED__KAFKA__OAUTH_CLIENT_SECRET"),
        ({"oauth_client_secret": None, "oauth_client_secret_file": Path("/nowhere")}, "kafka.oauth_client_secret_file"),
        ({"sasl_mechanism": "PLAIN"}, "needs sasl_mechanism and sasl_username"),
        (MSK | {"security_protocol": "SASL_PLAINTEXT"}, "AWS_MSK_IAM: needs kafka.security_protocol SASL_SSL"),
    ],
)
def test_what_is_missing_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        client_config(oauth("https://idp.example.com/token", **changes))


def test_credentials_in_the_address_are_refused() -> None:
    with pytest.raises(ValueError, match="put the secret into oauth_client_secret or oauth_client_secret_file"):
        oauth("https://me:hunter3@idp.example.com/token")


def mechanism(monkeypatch: pytest.MonkeyPatch, **environment: str) -> Any:
    """kafka-python's mechanism for Amazon MSK, with no credentials but those of an environment."""
    environment |= {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "/nowhere"}
    for name in ("AWS_PROFILE", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (environment | {"AWS_SHARED_CREDENTIALS_FILE": "/nowhere"}).items():
        monkeypatch.setenv(name, value)
    config = client_config(KafkaSettings(**MSK))
    return get_sasl_mechanism(config["sasl_mechanism"])(host="b-1.example.amazonaws.com", **config)


KEYS = {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"}


def test_the_request_to_msk_is_signed_by_version_4(monkeypatch: pytest.MonkeyPatch) -> None:
    """The presigned request of aws-msk-iam-auth, with the signature computed here after AWS's description."""
    region = {"AWS_DEFAULT_REGION": "eu-central-1", "AWS_SESSION_TOKEN": "a/session+token=="}
    sent = json.loads(mechanism(monkeypatch, **KEYS, **region).auth_bytes())
    day = sent["x-amz-date"][:8]
    scope = f"{day}/eu-central-1/kafka-cluster/aws4_request"
    query = {
        "Action": "kafka-cluster:Connect",
        "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
        "X-Amz-Credential": f"AKIDEXAMPLE/{scope}",
        "X-Amz-Date": sent["x-amz-date"],
        "X-Amz-Expires": "900",
        "X-Amz-Security-Token": "a/session+token==",
        "X-Amz-SignedHeaders": "host",
    }
    line = "&".join(f"{key}={quote(value, safe='')}" for key, value in sorted(query.items()))
    empty = hashlib.sha256(b"").hexdigest()
    request = f"GET\n/\n{line}\nhost:b-1.example.amazonaws.com\n\nhost\n{empty}"
    text = f"AWS4-HMAC-SHA256\n{sent['x-amz-date']}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    key = f"AWS4{KEYS['AWS_SECRET_ACCESS_KEY']}".encode()
    for part in (day, "eu-central-1", "kafka-cluster", "aws4_request", text):
        key = hmac.digest(key, part.encode(), "sha256")
    assert sent.pop("user-agent")
    assert sent == {
        "version": "2020_10_22",
        "host": "b-1.example.amazonaws.com",
        "action": "kafka-cluster:Connect",
        "x-amz-signature": key.hex(),
    } | {name.lower(): value for name, value in query.items() if name != "Action"}


def test_msk_without_credentials_or_region_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SignInUnavailable, match="AWS_MSK_IAM: no credentials of AWS; give this process a role"):
        mechanism(monkeypatch, AWS_DEFAULT_REGION="eu-central-1").auth_bytes()
    with pytest.raises(SignInRefused, match="AWS_MSK_IAM: no region; set AWS_DEFAULT_REGION"):
        mechanism(monkeypatch, **KEYS).auth_bytes()
    with pytest.raises(SignInUnavailable, match=r"cannot be read \(ProfileNotFound\)"):
        mechanism(monkeypatch, AWS_PROFILE="nobody").auth_bytes()


def test_msk_without_botocore_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "botocore.session", None)
    with pytest.raises(ConfigurationError, match=r"AWS_MSK_IAM: botocore.* is missing: pip install 'retuned\[msk\]'"):
        client_config(KafkaSettings(**MSK))
