"""Signs small documents with Ed25519, in the envelope of DSSE.

The envelope is JSON: `payload` (base64), `payloadType`, and `signatures`, each with `keyid` and `sig` (base64). What is
signed is the pre-authentication encoding of type and payload, so that a document of one type is never taken for
another. Source: https://github.com/secure-systems-lab/dsse, protocol 1.0.2. Keys are PEM files: PKCS #8 for the
private key, SubjectPublicKeyInfo for the public one.
"""

import base64
import hashlib
import os
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from retuned.consumers.common.durable import fsync
from retuned.consumers.errors import ConfigurationError, RetunedError


class BadSignature(RetunedError):
    """An envelope is malformed, or was not signed with the key."""


def make_key(file: Path) -> Path:
    """Writes a new private key, readable by its user alone, and beside it the public one (`.pub`), which it returns.

    Raises:
        ConfigurationError: one of the files exists or cannot be written.
    """
    key, public = Ed25519PrivateKey.generate(), file.with_name(f"{file.name}.pub")
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    try:
        if public.exists():
            raise FileExistsError(0, "exists already", str(public))
        for path, content, mode in ((file, pem, 0o600), (public, public_pem(key.public_key()), 0o644)):
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as made:
                made.write(content)
            fsync(path)
        fsync(file.parent)
    except FileExistsError as error:
        raise ConfigurationError(f"key {error.filename}: exists already; name a new file") from error
    except OSError as error:
        raise ConfigurationError(f"key {error.filename or file}: cannot be written ({error.strerror})") from error
    return public


def sign(payload: bytes, type: str, key_file: Path) -> dict[str, Any]:
    """Returns a signed envelope.

    Args:
        type: the payload's media type, for example `application/vnd.retuned.erasure-receipt+json`.

    Raises:
        ConfigurationError: the file holds no private Ed25519 key.
    """
    key = private_key(key_file)
    signature = key.sign(_encoded(type, payload))
    return {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": type,
        "signatures": [{"keyid": key_id(key.public_key()), "sig": base64.b64encode(signature).decode()}],
    }


def verify(envelope: Any, public_key_file: Path, type: str | None = None) -> bytes:
    """Returns the payload of an envelope that was signed with the key.

    Args:
        type: the expected type of the payload; None: any.

    Raises:
        BadSignature: the envelope is malformed, has another type, or no signature of it is by the key.
        ConfigurationError: the file holds no public Ed25519 key.
    """
    key = public_key(public_key_file)
    try:
        payload = base64.b64decode(envelope["payload"], validate=True)
        kind = envelope["payloadType"]
        encoded = _encoded(kind, payload)
        signatures = [base64.b64decode(one["sig"], validate=True) for one in envelope["signatures"]]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BadSignature("signature: no DSSE envelope; expected payload, payloadType and signatures") from error
    if type is not None and kind != type:
        raise BadSignature(f"signature: the document is {kind}; expected {type}")
    if not any(_is_valid(key, signature, encoded) for signature in signatures):
        raise BadSignature(
            f"signature: not by the key {key_id(key)} of {public_key_file}; the document was changed, or signed with "
            "another key"
        )
    return payload


def private_key(file: Path) -> Ed25519PrivateKey:
    """Reads a private key; raises ConfigurationError as `sign`."""
    try:
        key = serialization.load_pem_private_key(file.read_bytes(), password=None)
    except OSError as error:
        raise ConfigurationError(
            f"key {file}: cannot be read ({error.strerror}); `retuned audit keygen FILE` makes one"
        ) from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _no_key(file, "private") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _no_key(file, "private")
    return key


def public_key(file: Path) -> Ed25519PublicKey:
    """Reads a public key; raises ConfigurationError as `verify`."""
    try:
        key = serialization.load_pem_public_key(file.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"key {file}: cannot be read ({error.strerror})") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _no_key(file, "public") from error
    if not isinstance(key, Ed25519PublicKey):
        raise _no_key(file, "public")
    return key


def public_pem(key: Ed25519PublicKey) -> bytes:
    """Returns a public key as the content of a PEM file."""
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def key_id(key: Ed25519PublicKey) -> str:
    """Returns the id of a key: the SHA-256 of its DER, in hexadecimal."""
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def _no_key(file: Path, kind: str) -> ConfigurationError:
    return ConfigurationError(
        f"key {file}: holds no {kind} Ed25519 key in PEM; `retuned audit keygen FILE` makes a pair (FILE, FILE.pub)"
    )


def _encoded(type: str, payload: bytes) -> bytes:
    """The pre-authentication encoding (PAE)."""
    name = type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(name), name, len(payload), payload)


def _is_valid(key: Ed25519PublicKey, signature: bytes, encoded: bytes) -> bool:
    try:
        key.verify(signature, encoded)
    except InvalidSignature:
        return False
    return True
