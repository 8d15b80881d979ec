"""Feedback over HTTP: whoever was shown an answer has its token, and may say what they think of that answer alone."""

import base64
import hashlib
import hmac
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from retuned.consumers.formats.events import BadEvent, Bounds, convert
from retuned.consumers.settings import IngestSettings
from retuned.daemon.gateway.errors import Refused
from retuned.daemon.web.principals import Principals, may

MOST_OF_AN_ANSWER = 20
"""Events of feedback on one answer that one gateway takes."""
COUNTED_ANSWERS = 100_000
MAC_BYTES = 16
PREFLIGHT = {
    "Access-Control-Allow-Methods": "POST",
    "Access-Control-Allow-Headers": "Authorization, Content-Type",
    "Access-Control-Max-Age": "600",
}
DAY = 86_400


class _Body(msgspec.Struct):
    token: str
    name: str
    value: Any
    source: Literal["user", "expert"] = "user"


class Tokens:
    """`<interaction>.<expiry, Unix time>.<signature>`: the signature is an HMAC-SHA256 over what stands before it."""

    def __init__(self, keys: tuple[str, ...], days: float, clock: Callable[[], float] = time.time) -> None:
        """Of the keys the first one signs; tokens of all of them are accepted."""
        self._keys = tuple(hashlib.sha256(b"retuned feedback " + key.encode()).digest() for key in keys)
        self._seconds, self._clock = days * DAY, clock

    def of(self, interaction: str) -> str:
        """The token of an answer."""
        said = f"{interaction}.{int(self._clock() + self._seconds)}"
        return f"{said}.{_signature(self._keys[0], said)}"

    def interaction(self, token: str) -> str:
        """The answer that a token is of.

        Raises:
            Refused: it is no token that was made here, or has expired.
        """
        said, _, signature = token.rpartition(".")
        interaction, _, expiry = said.rpartition(".")
        expected = [_signature(key, said) for key in self._keys] if token.isascii() else []
        if not any(hmac.compare_digest(one, signature) for one in expected):
            raise Refused(401, "invalid_token", "token: it was not made by this gateway, or was changed")
        if self._clock() >= int(expiry):
            raise Refused(401, "expired_token", "token: it has expired (gateway.feedback_days)")
        return interaction


class Feedback:
    """What is sent to /v1/feedback."""

    def __init__(
        self, tokens: Tokens, ingest: IngestSettings, origins: tuple[str, ...], experts: Principals | None
    ) -> None:
        """`experts`: of these, whoever may label speaks as an expert; None: nobody does."""
        self._tokens, self._ingest, self._origins, self._experts = tokens, ingest, origins, experts
        self._counts: OrderedDict[str, int] = OrderedDict()

    def event(self, body: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
        """The event that a body stands for. A user is who was answered, and an expert is whose token was sent: nobody
        can claim to be somebody else.

        Raises:
            Refused: its token is not valid, its value is not one of that name, its sender is no expert, or there were
                too many on one answer.
        """
        try:
            given = msgspec.json.decode(body, type=_Body)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise Refused(400, "invalid_json", f"expected a JSON object with token, name and value: {error}") from error
        interaction = self._tokens.interaction(given.token)
        now = datetime.now(UTC)
        expert = {"user_id": self._expert(headers, now)} if given.source == "expert" else {}
        event = {
            "id": uuid.uuid4().hex,
            "timestamp": now.isoformat(),
            "interaction_id": interaction,
            "name": given.name,
            "value": given.value,
            "source": given.source,
            **expert,
        }
        try:
            convert("feedback", event, Bounds.of(self._ingest, now.replace(tzinfo=None)))
        except BadEvent as error:
            raise Refused(400, "invalid_feedback", error.detail) from error
        count = self._counts.pop(interaction, 0) + 1
        self._counts[interaction] = count
        if len(self._counts) > COUNTED_ANSWERS:
            self._counts.popitem(last=False)
        if count > MOST_OF_AN_ANSWER:
            raise Refused(429, "too_much_feedback", f"more than {MOST_OF_AN_ANSWER} times feedback on one answer")
        return event

    def _expert(self, headers: Mapping[str, str], now: datetime) -> str:
        """The name of the expert whose token came with a request. Raises Refused when it is nobody's."""
        kind, _, token = headers.get("Authorization", "").partition(" ")
        found = self._experts.find(token.strip(), now) if self._experts and kind.lower() == "bearer" else None
        if found is None or not may(found.role, "labeller"):
            raise Refused(
                403,
                "not_an_expert",
                'source "expert": send `Authorization: Bearer TOKEN` with a token of the role labeller '
                "(`retuned token NAME --role labeller`, kept in gateway.principals_file); leave source out to speak as "
                "the user who was answered",
            )
        return found.name

    def allowed(self, headers: Mapping[str, str]) -> dict[str, str]:
        """The headers by which a page of that origin may read the answer; empty: it may not."""
        origin = headers.get("Origin")
        if origin is None or not ({"*", origin} & set(self._origins)):
            return {}
        return {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}


def _signature(key: bytes, said: str) -> str:
    mac = hmac.digest(key, said.encode(), "sha256")[:MAC_BYTES]
    return base64.urlsafe_b64encode(mac).decode().rstrip("=")
