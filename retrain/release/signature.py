"""Signs versions, and verifies them anywhere.

A signature is an in-toto statement in a DSSE envelope: its subjects are the files of the version with their hashes, and
its predicate is the bill of materials. Sources: https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md,
https://cyclonedx.org/specification/overview/#recognized-predicate-type.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retuned.consumers.common.durable import sha256
from retuned.consumers.common.signing import BadSignature, sign, verify
from retuned.consumers.errors import ConfigurationError
from retuned.retrain.release import card

NAME = "signature.dsse.json"
TYPE = "application/vnd.in-toto+json"
_STATEMENT, _PREDICATE = "https://in-toto.io/Statement/v1", "https://cyclonedx.org/bom"
_UNSIGNED = (NAME, card.NAME)
"""The card is written again after each decision about the version."""


def write(folder: Path, materials: Mapping[str, Any], key_file: Path) -> None:
    """Signs the files in the folder of a version.

    Args:
        materials: its bill of materials.

    Raises:
        ConfigurationError: the file holds no private Ed25519 key.
    """
    statement = {
        "_type": _STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": content}} for name, content in _hashes(folder).items()],
        "predicateType": _PREDICATE,
        "predicate": materials,
    }
    envelope = sign(json.dumps(statement, ensure_ascii=False).encode(), TYPE, key_file)
    (folder / NAME).write_text(json.dumps(envelope, indent=2) + "\n", encoding="utf-8")


def check(folder: Path, public_key_file: Path) -> dict[str, Any]:
    """Returns the bill of materials of a version whose files are all signed and unchanged.

    Raises:
        BadSignature: there is no signature, it is by another key, or a file was changed, added or removed.
        ConfigurationError: the folder cannot be read, or there is no public key in the file.
    """
    try:
        envelope = json.loads((folder / NAME).read_text(encoding="utf-8"))
        found = _hashes(folder)
    except FileNotFoundError as error:
        raise BadSignature(
            f"version {folder}: holds no {NAME}; versions are signed if audit.key_file is set when they are registered"
        ) from error
    except OSError as error:
        raise ConfigurationError(f"version {folder}: {error.filename} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise BadSignature(f"version {folder}: {NAME} is no signature; expected a DSSE envelope in JSON") from error
    statement = json.loads(verify(envelope, public_key_file, TYPE))
    if statement.get("predicateType") != _PREDICATE:
        raise BadSignature(f"version {folder}: {NAME} is the signature of something else")
    signed = {one["name"]: one["digest"]["sha256"] for one in statement["subject"]}
    if wrong := sorted(name for name in signed.keys() | found if signed.get(name) != found.get(name)):
        raise BadSignature(f"version {folder}: {', '.join(wrong)} was changed, added or removed after it was signed")
    materials: dict[str, Any] = statement["predicate"]
    return materials


def _hashes(folder: Path) -> dict[str, str]:
    files = (file for file in sorted(folder.rglob("*")) if not file.is_dir())
    named = ((file.relative_to(folder).as_posix(), file) for file in files)
    return {name: sha256(file) for name, file in named if name not in _UNSIGNED}
