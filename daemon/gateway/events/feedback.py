"""Accepts feedback over HTTP. Each answer has a token that allows feedback on this answer alone."""

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
from retuned.daemon.roles import may
from retuned.daemon.web.principals import Principals

MOST_OF_AN_ANSWER = 20
"""The most feedback events on one answer that a gateway accepts."""
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
    id: str | None = None
    """Chosen by the client. A request with the same one is the same statement."""


class Tokens:
    """Makes and reads tokens `<interaction>.<expiry, Unix time>.<signature>`, signed with HMAC-SHA256."""

    def __init__(self, keys: tuple[str, ...], days: float, clock: Callable[[], float] = time.time) -> None:
        """The first key signs; tokens of all keys are accepted."""
        self._keys = tuple(hashlib.sha256(b"retuned feedback " + key.encode()).digest() for key in keys)
        self._seconds, self._clock = days * DAY, clock

    def of(self, interaction: str) -> str:
        """Returns the token for feedback on an answer."""
        payload = f"{interaction}.{int(self._clock() + self._seconds)}"
        return f"{payload}.{_signature(self._keys[0], payload)}"

    def interaction(self, token: str) -> str:
        """Returns the interaction of a token.

        Raises:
            Refused: the token is invalid or has expired.
        """
        payload, _, signature = token.rpartition(".")
        interaction, _, expiry = payload.rpartition(".")
        valid = [_signature(key, payload) for key in self._keys] if token.isascii() else []
        if not any(hmac.compare_digest(expected, signature) for expected in valid):
            raise Refused(401, "invalid_token", "token: it was not made by this gateway, or was changed")
        if self._clock() >= int(expiry):
            raise Refused(401, "expired_token", "token: it has expired (gateway.feedback_days)")
        return interaction


class Feedback:
    """Turns requests to /v1/feedback into events."""

    def __init__(
        self, tokens: Tokens, ingest: IngestSettings, origins: tuple[str, ...], experts: Principals | None
    ) -> None:
        """
        Args:
            origins: the origins of pages that may send feedback.
            experts: principals; those with the role labeller or above may give feedback as experts.
        """
        self._tokens, self._ingest, self._origins, self._experts = tokens, ingest, origins, experts
        self._given: OrderedDict[str, tuple[int, dict[tuple[str, str], tuple[str, str]]]] = OrderedDict()
        """interaction -> how much feedback; of each account and name, the digest of the last value, and its id."""

    def event(self, body: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
        """Returns the event of a request body. The account is that of the answered user, or of the expert whose token
        was sent, so that nobody can claim another account.

        Raises:
            Refused: the token is invalid, the value does not fit the name, the sender is not an expert, or there was
                too much feedback on one answer.

        A statement that is repeated has the same id, so that it counts once: one with the client's id, or else the last
        one of this account and name with the same value. A value that changed back is a new statement.
        """
        try:
            given = msgspec.json.decode(body, type=_Body)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise Refused(400, "invalid_json", f"expected a JSON object with token, name and value: {error}") from error
        interaction = self._tokens.interaction(given.token)
        now = datetime.now(UTC)
        expert = {"user_id": self._expert(headers, now)} if given.source == "expert" else {}
        by, said = (expert.get("user_id", ""), given.name), _digest(msgspec.json.encode(given.value).decode())
        count, last = self._given.get(interaction, (0, {}))
        if given.id is not None:
            id = _digest(interaction, *by, given.id)
        else:
            id = last[by][1] if last.get(by, ("",))[0] == said else uuid.uuid4().hex
        event = {
            "id": id,
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
        if count >= MOST_OF_AN_ANSWER:
            raise Refused(429, "too_much_feedback", f"more than {MOST_OF_AN_ANSWER} times feedback on one answer")
        self._given[interaction] = count + 1, last | {by: (said, id)}
        self._given.move_to_end(interaction)
        if len(self._given) > COUNTED_ANSWERS:
            self._given.popitem(last=False)
        return event

    def _expert(self, headers: Mapping[str, str], now: datetime) -> str:
        """Returns the name of the expert whose token was sent with a request. Raises Refused if there is none."""
        kind, _, token = headers.get("Authorization", "").partition(" ")
        expert = self._experts.find(token.strip(), now) if self._experts and kind.lower() == "bearer" else None
        # One who is bound to workloads is not accepted here: only the warehouse knows of which workload an answer is.
        if expert is None or expert.workloads is not None or not may(expert.role, "labeller"):
            raise Refused(
                403,
                "not_an_expert",
                'source "expert": send `Authorization: Bearer TOKEN` with a token of the role labeller '
                "(`retuned token NAME --role labeller`, kept in gateway.principals_file); leave source out to give "
                "feedback as the user who got the answer",
            )
        return expert.name

    def allowed(self, headers: Mapping[str, str]) -> dict[str, str]:
        """Returns the CORS headers that allow the page to read the answer; empty if its origin is not allowed."""
        origin = headers.get("Origin")
        if origin is None or not ({"*", origin} & set(self._origins)):
            return {}
        return {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}


def _digest(*parts: str) -> str:
    return hashlib.md5("\0".join(parts).encode(errors="surrogatepass"), usedforsecurity=False).hexdigest()


def _signature(key: bytes, payload: str) -> str:
    mac = hmac.digest(key, payload.encode(), "sha256")[:MAC_BYTES]
    return base64.urlsafe_b64encode(mac).decode().rstrip("=")
