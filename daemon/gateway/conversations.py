"""What a request says of itself: the model that is asked for, and the conversation that it belongs to."""

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

from retuned.daemon.gateway.errors import Refused

HEADER = "X-Retuned-Conversation"
LONGEST_ID = 512

_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_TURNS = msgspec.json.Decoder(list[msgspec.Raw])


class _Turn(msgspec.Struct):
    role: str = ""


_ROLE = msgspec.json.Decoder(_Turn)


class Call:
    """The body of a request, of which only what routing needs is read.

    Attributes:
        body: as the app sent it.
        model: what it asks for.
    """

    def __init__(self, body: bytes) -> None:
        """Raises Refused when it is no object with a model."""
        try:
            self._fields = _FIELDS.decode(body)
            self.model = msgspec.json.decode(self._fields.get("model", b"null"), type=str)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Refused(400, "invalid_json", f"expected a JSON object with a model, a text: {error}") from error
        self.body = body

    def asking(self, model: str) -> bytes:
        """The body with another model; every other value stays as it is, byte by byte."""
        if model == self.model:
            return self.body
        return msgspec.json.encode(self._fields | {"model": model})

    def conversation(self, headers: Mapping[str, str]) -> str | None:
        """The id of the conversation: of the header, or of `metadata.conversation_id`; None: there is none.

        Raises:
            Refused: the header's cannot be one.
        """
        if (given := headers.get(HEADER)) is not None:
            if not 0 < len(given) <= LONGEST_ID or not given.isprintable():  # nor are bytes that are no UTF-8
                raise Refused(400, "invalid_conversation", f"{HEADER}: expected 1 to {LONGEST_ID} printable characters")
            return given
        metadata = self._field("metadata")
        found = metadata.get("conversation_id") if isinstance(metadata, dict) else None
        return found if isinstance(found, str) and 0 < len(found) <= LONGEST_ID else None

    def unit(self, conversation: str | None) -> str:
        """What is assigned to an arm: the conversation; else the user; else how the conversation began, which stays the
        same while it goes on.
        """
        if conversation is not None:
            return conversation
        for name in ("user", "safety_identifier"):
            if isinstance(user := self._field(name), str) and user:
                return user
        return hashlib.sha256(b"\0".join(self._beginning())).hexdigest()

    def _beginning(self) -> list[bytes]:
        """The messages up to the first one of a user, as bytes; of a text completion, its prompt."""
        try:
            turns = _TURNS.decode(self._fields["messages"])
            found = []
            for turn in turns:
                found.append(bytes(turn))
                if _ROLE.decode(turn).role == "user":
                    break
            return found
        except (KeyError, msgspec.DecodeError, RecursionError):
            return [bytes(self._fields.get("prompt", b""))]

    def _field(self, name: str) -> Any:
        raw = self._fields.get(name)
        if raw is None:
            return None
        try:
            return msgspec.json.decode(raw)
        except (msgspec.DecodeError, RecursionError):
            return None
