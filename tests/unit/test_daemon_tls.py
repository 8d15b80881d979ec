"""HTTPS: the server's certificate, its renewal, and the commands that verify it."""

import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from fixtures.daemon.doors import Place
from fixtures.daemon.operations import ask
from fixtures.kafka.brokers import until
from fixtures.servers.certificates import Authority
from retuned.consumers.errors import ConfigurationError, RetunedError
from retuned.daemon.client import Client
from retuned.daemon.http_settings import HttpSettings
from retuned.daemon.settings import Settings
from retuned.daemon.web import connections, server
from retuned.daemon.web.tls import server_tls

Start = Callable[..., Place]


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def start() -> Iterator[Start]:
    with ExitStack() as stack:

        def started(files: tuple[Path, Path], **http: Any) -> Place:
            made = Place(HttpSettings(port=0, tls_certificate_file=files[0], tls_key_file=files[1], **http))
            stack.callback(made.server.stop)
            return made

        yield started


def asked(place: Place, **http: Any) -> dict[str, Any]:
    """What a command is answered."""
    return ask(Client(Settings(http={"port": place.port, **http})), "status")


def serial(place: Place) -> int:
    """Of the certificate that is shown."""
    from cryptography import x509

    pem = ssl.get_server_certificate(("127.0.0.1", place.port), timeout=20)
    return x509.load_pem_x509_certificate(pem.encode()).serial_number


def test_commands_ask_by_https_and_expect_the_very_certificate(
    authority: Authority, tmp_path: Path, start: Start
) -> None:
    certificate, key = authority.issue(tmp_path / "a", names=("retuned.example.com",))  # it names no address
    place = start((certificate, key))
    assert place.url.startswith("https://")
    assert asked(place, tls_certificate_file=certificate, tls_key_file=key)["workloads"] == {}
    other, other_key = authority.issue(tmp_path / "b", names=("127.0.0.1",))
    with pytest.raises(ConfigurationError, match=rf"http.tls_certificate_file: .*{place.port} is not trusted"):
        asked(place, tls_certificate_file=other, tls_key_file=other_key)
    with pytest.raises(RetunedError):
        asked(place)  # by plain HTTP


def test_commands_verify_by_an_authority_and_the_name(authority: Authority, tmp_path: Path, start: Start) -> None:
    place = start(authority.issue(tmp_path / "a"))
    trusted = authority.write(tmp_path / "ca.pem")
    assert asked(place, tls_ca_file=trusted)["workloads"] == {}
    with pytest.raises(ConfigurationError, match=r"http.tls_ca_file: .*not trusted"):
        asked(place, tls_ca_file=Authority("Another").write(tmp_path / "other.pem"))
    elsewhere = start(authority.issue(tmp_path / "b", names=("retuned.example.com",)))
    with pytest.raises(ConfigurationError, match=r"http.tls_ca_file: .*not trusted"):
        asked(elsewhere, tls_ca_file=trusted)
    with pytest.raises(ConfigurationError, match=r"http.tls_ca_file .*nowhere.pem: cannot be used"):
        asked(place, tls_ca_file=tmp_path / "nowhere.pem")


def test_a_renewed_certificate_is_shown_without_a_restart(authority: Authority, tmp_path: Path, start: Start) -> None:
    certificate, key = authority.issue(tmp_path / "a")
    place = start((certificate, key))
    first = serial(place)
    new_certificate, new_key = authority.issue(tmp_path / "b")
    certificate.write_bytes(new_certificate.read_bytes())  # between two files
    assert serial(place) == first
    (warning,) = place.server.warnings()
    assert str(certificate) in warning
    key.write_bytes(new_key.read_bytes())
    assert serial(place) != first
    assert place.server.warnings() == []
    key.unlink()
    assert serial(place) != first
    assert place.server.warnings() != []


def test_an_expired_certificate_is_a_warning(
    authority: Authority, tmp_path: Path, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    files = authority.issue(tmp_path / "a", days=-1)
    place = start(files)
    (warning,) = place.server.warnings()
    assert "expired on" in warning
    assert warning in caplog.text
    with pytest.raises(ConfigurationError, match=r"not trusted .*expired"):
        asked(place, tls_certificate_file=files[0], tls_key_file=files[1])


def test_files_that_are_no_pair_are_refused(authority: Authority, tmp_path: Path) -> None:
    certificate, key = authority.issue(tmp_path / "a")
    _, other = authority.issue(tmp_path / "b")
    text = tmp_path / "text"
    text.write_text("no PEM")
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff" * 100)
    for files, said in (
        ((certificate, other), "are no pair"),
        ((key, key), "are no pair"),
        ((certificate, certificate), "are no pair"),
        ((certificate, text), f"tls_key_file {text}: is not PEM"),
        ((binary, key), f"tls_certificate_file {binary}: is not PEM"),
        ((tmp_path / "nowhere", key), "cannot be read"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            server_tls(HttpSettings(tls_certificate_file=files[0], tls_key_file=files[1]))
    for one in ({"tls_certificate_file": certificate}, {"tls_key_file": key}):
        with pytest.raises(ValueError, match="set both, or neither"):
            HttpSettings(**one)  # type: ignore[arg-type]
    assert server_tls(HttpSettings()) is None


def test_an_encrypted_key_is_refused(authority: Authority, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    certificate, key = authority.issue(tmp_path / "a")
    loaded = serialization.load_pem_private_key(key.read_bytes(), None)
    key.write_bytes(
        loaded.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(ConfigurationError, match=r"tls_key_file .*: is encrypted"):
        server_tls(HttpSettings(tls_certificate_file=certificate, tls_key_file=key))


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_handshakes_that_are_never_finished_take_no_others_place(
    authority: Authority, tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch, loop: Any
) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    made = uvicorn.Config
    monkeypatch.setattr(uvicorn, "Config", lambda *given, **options: made(*given, **options, loop=loop))
    monkeypatch.setattr(connections, "most_connections", lambda: 10)
    monkeypatch.setattr(server, "HEADER_SECONDS", 1.0)
    certificate, key = authority.issue(tmp_path / "a")
    place = start((certificate, key))
    with ExitStack() as stack:
        idle = []
        for number in range(40):
            with suppress(OSError):
                idle.append(stack.enter_context(place.connect(b"\x16\x03\x01"[: number % 4])))
        assert asked(place, tls_certificate_file=certificate, tls_key_file=key)["workloads"] == {}
        until(lambda: all(closed(connection) for connection in idle))
        assert asked(place, tls_certificate_file=certificate, tls_key_file=key)["workloads"] == {}


def closed(connection: socket.socket) -> bool:
    connection.settimeout(0.01)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("::", "127.0.0.1"),
        ("::1", "::1"),
        ("10.1.2.3", "10.1.2.3"),
        ("retuned.internal", "retuned.internal"),
        ("localhost", "localhost"),
    ],
)
def test_commands_ask_where_the_daemon_listens(host: str, address: str) -> None:
    assert HttpSettings(host=host, operator_token="may-do-something").address == address  # type: ignore[arg-type]


def skip_without_ipv6(host: str) -> None:
    if ":" in host:
        with socket.socket(socket.AF_INET6) as probe:
            try:
                probe.bind(("::1", 0))
            except OSError:
                pytest.skip("this machine has no IPv6")


@pytest.mark.parametrize("host", ["127.0.0.2", "::1"])
def test_a_command_reaches_a_daemon_on_another_address(host: str) -> None:
    skip_without_ipv6(host)
    place = Place(HttpSettings(port=0, host=host))
    try:
        service = Client(Settings(http={"port": place.port, "host": host}))
        assert service.is_up()
        assert ask(service, "status")["workloads"] == {}
        assert httpx.get(f"{place.server.url}/healthz").status_code == 200
    finally:
        place.server.stop()


def test_all_addresses_are_those_of_both_families() -> None:
    skip_without_ipv6("::")
    http = {"host": "::", "port": 0, "operator_token": "may-do-something", "trusted_proxies": ["127.0.0.0/8"]}
    place = Place(HttpSettings(**http))
    try:
        for url in (f"http://127.0.0.1:{place.port}", f"http://[::1]:{place.port}"):
            assert httpx.get(f"{url}/healthz").status_code == 200
        assert ask(Client(Settings(http=http | {"port": place.port})), "status")["workloads"] == {}
        with pytest.raises(ConfigurationError, match=rf"cannot listen on \[::\]:{place.port} "):
            server.bind(HttpSettings(**http | {"port": place.port}))
    finally:
        place.server.stop()
