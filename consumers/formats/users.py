"""The names under which clients send a user, in attributes and beside other fields."""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from retuned.consumers.common.leaves import LABELLED, Leaf, whole
from retuned.consumers.formats.messages import Plain

USER_KEYS = (
    "user_id", "userId", "user.id", "enduser.id", "enduser.pseudo.id", "gen_ai.user.id", "gen_ai.user",
    "gen_ai.request.user", "gen_ai.openai.request.user", "safety_identifier", "user", "end_user", "end_user_id",
    "endUserId", "langfuse.user.id", "langfuse_user_id", "mlflow.trace.user",
    "traceloop.association.properties.user_id", "user_api_key_end_user_id", "Helicone-User-Id",
    "request_user_id",
    "user.email", "user_email", "userEmail", "user.name", "user_name", "userName",
)  # fmt: skip
"""The first one that is present names the user."""

_GROUPS = ("metadata", "tags", "properties")
MAY_NAME_USERS = frozenset({*USER_KEYS, *_GROUPS})
"""Attributes with none of these keys name no user at the top level."""

_USERS = "(?:user|benutzer|gebruiker|usu[aá]rio|utente|utilisateur|ユーザー|用户)"
_KNOWN_BY_ID = f"(?:{_USERS}|account|customer|employee|member|patient|subscriber)s?"
# The end of a key that names a user, or anybody else whom the app knows by an id, however its words are joined.
_NAMED = (
    rf"(?:end)?{_KNOWN_BY_ID}[_.\- ]?(?:pseudo[_.\- ]?)?(?:id|kennung)|(?:end)?{_USERS}(?:[_.\- ]?(?:name|e?mail))?"
    r"|safety[_.\- ]?identifier"
)
_FIRST = r"(?:(?<![A-Za-z0-9])|(?<=[a-z])(?=[A-Z]))"  # the start of a word
KEY = rf"[\w.\-]{{0,64}}{_FIRST}(?i:{_NAMED})"
"""A key that names a user."""
_KEY = re.compile(rf"{_FIRST}(?i:{_NAMED})$")
# A name of up to four words; a sentence, a type, a template or a role is not a user.
_USER = re.compile(r"(?:[^\s<>{}\[\]$]{1,256}(?:[ ](?!$)|$)){1,4}(?<![?!…:。？！])")
_NOBODY = frozenset(
    ("admin", "administrator", "agent", "anonymous", "assistant", "bot", "client", "customer", "guest", "human", "none",
     "null", "root", "system", "unknown", "user", "bool", "boolean", "int", "integer", "number", "object", "str",
     "string")
)  # fmt: skip


def take_user(attributes: Plain) -> str | None:
    """Removes every user from attributes and from objects in them such as `metadata`, and returns the first.

    Changes the objects in place. A user is a text, a whole number, or an object that holds one under a known key.
    """
    users = [_as_user(attributes.pop(key)) for key in USER_KEYS if key in attributes]
    users += [take_user(inner) for key in _GROUPS if isinstance(inner := attributes.get(key), dict)]
    return next((user for user in users if user), None)


class Pseudonyms:
    """Replaces the values of user keys by pseudonyms, at any depth.

    Attributes:
        suspect: a pattern (RE2) that JSON with a user matches; quotes may be escaped.
    """

    suspect = "|".join(
        (
            rf'(?i:{_NAMED})\\*"\s*:',
            rf'(?i:{_KNOWN_BY_ID})\\*"\s*:\s*[\[{{]',
            rf'{LABELLED}(?i:{_NAMED})\\*"',
            r'"role\\*"\s*:\s*\\*"user\\*"[^{}]*"name\\*"\s*:|"name\\*"\s*:[^{}]*"role\\*"\s*:\s*\\*"user\\*"',
        )
    )

    def __init__(self, pseudonym: Callable[[str], str]) -> None:
        self._pseudonym = pseudonym

    def __call__(self, leaf: Leaf) -> str | None:
        """Returns the pseudonym; None if the value names nobody, such as a type in a tool's schema or a role."""
        if not names_user(leaf.key, leaf.above):
            return None
        if (number := whole(leaf.value)) is not None:
            return self._pseudonym(str(number))
        user = leaf.value.strip() if isinstance(leaf.value, str) else ""
        if user.casefold() in _NOBODY or not _USER.fullmatch(user):
            return None
        return self._pseudonym(user)


def names_user(key: str, above: str = "") -> bool:
    """Whether a key holds a user: `user_id`, `requestUserId`, and `id` under `user`."""
    return _ends_as_user(key[-64:], above[-64:])


@lru_cache(8_192)
def _ends_as_user(key: str, above: str) -> bool:
    return _KEY.search(f"{above}.{key}") is not None


def _as_user(value: Any) -> str | None:
    if isinstance(value, dict):
        value = next((value[key] for key in ("id", *USER_KEYS) if isinstance(value.get(key), str | int | float)), None)
    if (number := whole(value)) is not None:
        return str(number)
    return value[:512].strip() or None if isinstance(value, str) else None
