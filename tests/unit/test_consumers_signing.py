"""Signed documents: Ed25519 in the envelope of DSSE."""

import base64
import json
import stat
import subprocess
from pathlib import Path

import pytest

from retuned.consumers.common.signing import BadSignature, make_key, sign, verify
from retuned.consumers.errors import ConfigurationError

TYPE = "application/vnd.example+json"


@pytest.fixture
def key(tmp_path: Path) -> Path:
    make_key(tmp_path / "key.pem")
    return tmp_path / "key.pem"


@pytest.fixture
def public(key: Path) -> Path:
    return key.with_name("key.pem.pub")


def test_a_signed_document_is_verified_with_the_public_key_alone(key: Path, public: Path) -> None:
    envelope = json.loads(json.dumps(sign(b'{"a": 1}', TYPE, key)))
    key.unlink()
    assert verify(envelope, public) == b'{"a": 1}'
    assert verify(envelope, public, TYPE) == b'{"a": 1}'


def test_openssl_verifies_what_the_envelope_signs(key: Path, public: Path, tmp_path: Path) -> None:
    """The encoding is DSSE's, as another implementation reads it."""
    envelope = sign(b"hello world", "http://example.com/HelloWorld", key)
    (tmp_path / "signed").write_bytes(b"DSSEv1 29 http://example.com/HelloWorld 11 hello world")
    (tmp_path / "signature").write_bytes(base64.b64decode(envelope["signatures"][0]["sig"]))
    command = f"openssl pkeyutl -verify -pubin -inkey {public} -rawin -in signed -sigfile signature"
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)


@pytest.mark.parametrize(
    "change",
    [
        lambda one: one | {"payload": base64.b64encode(b"other").decode()},
        lambda one: one | {"payloadType": "application/other"},
        lambda one: one | {"signatures": []},
        lambda one: one | {"signatures": [{"sig": base64.b64encode(bytes(64)).decode()}]},
        lambda one: one | {"payload": "no base64!"},
        lambda one: {"payload": one["payload"]},
        lambda one: one | {"payload": "\ud800"},
        lambda one: one | {"payloadType": "\ud800"},
        lambda one: [one],
        lambda _: None,
    ],
)
def test_a_changed_or_malformed_envelope_is_refused(key: Path, public: Path, change: object) -> None:
    with pytest.raises(BadSignature):
        verify(change(sign(b"payload", TYPE, key)), public)  # type: ignore[operator]


def test_a_document_of_another_type_or_by_another_key_is_refused(key: Path, public: Path, tmp_path: Path) -> None:
    envelope = sign(b"payload", TYPE, key)
    with pytest.raises(BadSignature, match="expected application/other"):
        verify(envelope, public, "application/other")
    with pytest.raises(BadSignature, match="another key"):
        verify(envelope, make_key(tmp_path / "other.pem"))


def test_a_private_key_is_readable_by_its_user_alone_and_never_replaced(key: Path) -> None:
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    with pytest.raises(ConfigurationError, match="exists already"):
        make_key(key)


def test_what_is_no_key_is_named(key: Path, public: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no key")
    with pytest.raises(ConfigurationError, match="text: holds no private"):
        sign(b"", TYPE, tmp_path / "text")
    with pytest.raises(ConfigurationError, match=r"key\.pem: holds no public"):
        verify(sign(b"", TYPE, key), key)
    with pytest.raises(ConfigurationError, match="missing: cannot be read"):
        sign(b"", TYPE, tmp_path / "missing")
    with pytest.raises(ConfigurationError, match=r"pub: holds no private"):
        sign(b"", TYPE, public)
