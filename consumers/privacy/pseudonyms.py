"""Pseudonyms of users: keyed hashes, their keys, and rotation of the keys."""

import hmac
import secrets
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from retuned.consumers.common.durable import replaced
from retuned.consumers.errors import ConfigurationError
from retuned.consumers.privacy.placeholders import PSEUDONYM
from retuned.consumers.settings import PrivacySettings

LEAST_KEY = 16


class UserKeys:
    """The keys of pseudonyms, newest first; new pseudonyms use the first one.

    A pseudonym is `<key id>:<hash>`: the hash is HMAC-SHA256 of the user id, 32 hexadecimal characters. The key id is 4
    characters of a hash under the same key, which distinguishes rows before and after a rotation. Only the holder of
    both keys can link both pseudonyms of a user.
    """

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._keys = [(_hash(key, "retuned key id")[:4], key) for key in keys]
        self.pseudonym = lru_cache(100_000)(self._newest)

    def __repr__(self) -> str:
        return f"UserKeys({', '.join(self.ids)})"

    @property
    def ids(self) -> list[str]:
        """The id of each key, newest first."""
        return [name for name, _ in self._keys]

    def derived(self, purpose: str) -> list[bytes]:
        """Derives a key of 32 bytes for another purpose from each key, newest first."""
        return [hmac.digest(key, f"retuned {purpose}".encode(), "sha256") for _, key in self._keys]

    @property
    def seal_key(self) -> bytes:
        """The newest key of seals (see `sealing`)."""
        return self.derived("instructions")[0]

    def _newest(self, user_id: str) -> str:
        return self.pseudonyms(user_id)[0]

    def pseudonym_or_stored(self, user_id: str) -> str:
        """Returns the pseudonym of a user; pseudonyms, which letters and exports may have, are returned unchanged."""
        return user_id if is_pseudonym(user_id) else self.pseudonym(user_id)

    def pseudonyms(self, user_id: str) -> list[str]:
        """Returns the pseudonym of a user under each key, newest first."""
        return [f"{name}:{_hash(key, user_id.strip())}" for name, key in self._keys]


def is_pseudonym(user_id: str) -> bool:
    """Whether a user id has the form of a pseudonym."""
    return len(user_id) == 37 and PSEUDONYM.fullmatch(user_id) is not None


def load_user_keys(settings: PrivacySettings, warehouse: Path) -> UserKeys:
    """Loads the keys from the settings, else from `<warehouse>.key`, which is created if missing.

    Raises:
        ConfigurationError: the file cannot be read or created, or has no key.
    """
    if settings.user_key is not None:
        return _keys(settings.user_key.get_secret_value().encode(), "privacy.user_key")
    path = settings.user_key_file or warehouse.with_name(warehouse.name + ".key")
    try:
        if settings.user_key_file is None and not path.exists():
            _make_key(path)
        return _keys(path.read_bytes(), f"privacy.user_key_file {path}")
    except OSError as error:
        raise ConfigurationError(
            f"privacy.user_key_file {path}: {error.strerror}; check the path and its permissions"
        ) from error


def _hash(key: bytes, text: str) -> str:
    return hmac.digest(key, text.encode(), "sha256").hex()[:32]


def _keys(content: bytes, name: str) -> UserKeys:
    keys = [line.strip() for line in content.splitlines() if line.strip()]
    if not keys or len(keys[0]) < LEAST_KEY:  # older keys after it are being phased out
        problem = f"the key has {len(keys[0])} characters" if keys else "is empty"
        raise ConfigurationError(
            f"{name}: {problem}; expected {LEAST_KEY} or more, or users can be guessed from their pseudonyms: "
            "`openssl rand -hex 32` makes a key; put it on the first line, before the present one"
        )
    return UserKeys(keys)


def _make_key(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as aside:  # atomically, because every pseudonym depends on the key
        aside.touch(0o600)
        aside.write_text(secrets.token_hex(32) + "\n", encoding="ascii")
