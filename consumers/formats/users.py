"""Who asked: the names under which clients send a user, in attributes and beside other fields."""

from collections.abc import Callable
from typing import Any

from retuned.consumers.formats.messages import Plain

USER_KEYS = (
    "user_id", "userId", "user.id", "enduser.id", "enduser.pseudo.id", "gen_ai.user.id", "gen_ai.user",
    "gen_ai.request.user", "gen_ai.openai.request.user", "safety_identifier", "user", "end_user", "end_user_id",
    "endUserId", "langfuse.user.id", "langfuse_user_id", "mlflow.trace.user",
    "traceloop.association.properties.user_id", "user_api_key_end_user_id", "user_api_key_user_id", "Helicone-User-Id",
    "request_user_id",
    "user.email", "user_email", "userEmail", "user_api_key_user_email", "user.name", "user_name", "userName",
)  # fmt: skip
"""The first that is there is the user."""

_GROUPS = ("metadata", "tags", "properties")
MAY_NAME_USERS = frozenset({*USER_KEYS, *_GROUPS})
"""Attributes with none of these name no user at their top."""
_KEYS = frozenset(USER_KEYS)
_PARTS_OF_KEYS = (b"user", b"User", b"safety_identifier")


def take_user(attributes: Plain) -> str | None:
    """The user that attributes name, or an object in them such as `metadata`. All that names one is taken out.

    Objects are changed in place. A user is a text or an integer, or an object that names one; else there is none.
    """
    found = [_as_user(attributes.pop(key)) for key in USER_KEYS if key in attributes]
    found += [take_user(inner) for key in _GROUPS if isinstance(inner := attributes.get(key), dict)]
    return next((user for user in found if user), None)


def may_name_users(json: bytes) -> bool:
    """Whether a JSON text without escaped keys may name a user, at any depth: a cheap look."""
    return any(part in json for part in _PARTS_OF_KEYS)


def with_pseudonyms(value: Any, pseudonym: Callable[[str], str]) -> Any:
    """A JSON value in which each user is a pseudonym, at any depth.

    A user is a text or an integer under one of USER_KEYS, and the `id` of an object under one. Other objects there stay
    as they are: the schema of a tool describes a user and names none.
    """
    if isinstance(value, dict):
        return {
            key: _pseudonyms_of(item, pseudonym) if key in _KEYS else with_pseudonyms(item, pseudonym)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [with_pseudonyms(item, pseudonym) for item in value]
    return value


def _pseudonyms_of(value: Any, pseudonym: Callable[[str], str]) -> Any:
    """What stands under the key of a user."""
    if isinstance(value, dict):
        value = {key: _pseudonyms_of(item, pseudonym) if key == "id" else item for key, item in value.items()}
        return with_pseudonyms(value, pseudonym)
    if isinstance(value, list):
        return [_pseudonyms_of(item, pseudonym) for item in value]
    user = _as_user(value)
    return pseudonym(user) if user else value


def _as_user(value: Any) -> str | None:
    if isinstance(value, dict):
        value = next((value[key] for key in ("id", *USER_KEYS) if isinstance(value.get(key), str | int)), None)
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    return str(value)[:512].strip() or None
