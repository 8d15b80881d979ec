"""Reads the parts of a request that routing needs: its model, and its conversation or user."""

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

from retuned.consumers.formats.messages import object_of, objects_of, texts_of
from retuned.daemon.gateway.errors import Refused
from retuned.daemon.gateway.memory.help import Help
from retuned.retrain.release.assignment import Unit

HEADER = "X-Retuned-Conversation"
LONGEST_ID = 512

_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_TURNS = msgspec.json.Decoder(list[msgspec.Raw])


class Call:
    """The body of a request, decoded only as far as routing needs.

    Attributes:
        body: as the app sent it.
        model: the requested model.
        help: what the memory of corrections does for the request; None: nothing.
    """

    def __init__(self, body: bytes) -> None:
        """Raises Refused if the body is not a JSON object with a model."""
        try:
            self._fields = _FIELDS.decode(body)
            self.model = msgspec.json.decode(self._fields.get("model", b"null"), type=str)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Refused(400, "invalid_json", f"expected a JSON object with a model, a text: {error}") from error
        self.body = body
        self.help: Help | None = None

    def asking(self, model: str, **more: Any) -> bytes:
        """Returns the body with another model, the memory's message and more values; every other value keeps its
        bytes."""
        changed = more if model == self.model else {"model": model, **more}
        if self.help and self.help.message:
            turns = _TURNS.decode(self._fields["messages"])
            changed["messages"] = [*turns[: self.help.place], self.help.message, *turns[self.help.place :]]
        return msgspec.json.encode(self._fields | changed) if changed else self.body

    def characters(self) -> int:
        """Returns the length of the texts of all messages, or of the prompt."""
        return sum(len(text) for _, text in self._texts())

    def last_text(self) -> str:
        """Returns the last message of the user, or the prompt; empty: there is none."""
        return next((text for role, text in reversed(self._texts()) if role == "user"), "")

    def raw(self, name: str) -> bytes:
        """Returns a field as JSON; `null` if it is absent."""
        return bytes(self._fields.get(name, b"null"))

    def names(self) -> list[str]:
        """Returns the names of the fields that have a value."""
        return [name for name, value in self._fields.items() if bytes(value) != b"null"]

    def value(self, name: str) -> Any:
        """Returns a field; None if it is absent or cannot be decoded."""
        raw = self._fields.get(name)
        if raw is None:
            return None
        try:
            return msgspec.json.decode(raw)
        except (msgspec.DecodeError, RecursionError):
            return None

    def conversation(self, headers: Mapping[str, str]) -> str | None:
        """Returns the id of the conversation, from the header or from `metadata.conversation_id`; None: there is none.

        Raises:
            Refused: the header is not a valid id.
        """
        if (header := headers.get(HEADER)) is not None:
            if not 0 < len(header) <= LONGEST_ID or not header.isprintable():  # nor are bytes that are not UTF-8
                raise Refused(400, "invalid_conversation", f"{HEADER}: expected 1 to {LONGEST_ID} printable characters")
            return header
        id = object_of(self.value("metadata")).get("conversation_id")
        return id if isinstance(id, str) and 0 < len(id) <= LONGEST_ID else None

    def unit(self, conversation: str | None, unit: Unit) -> str:
        """Returns the id that is assigned to an arm: the named unit, else a hash of the user's first message.

        It alone stays the same throughout a conversation: a system prompt may hold the time.
        """
        return self.named_unit(conversation, unit) or hashlib.sha256(self._beginning()).hexdigest()

    def named_unit(self, conversation: str | None, unit: Unit) -> str | None:
        """Returns the id of `unit`, the conversation or the user, else that of the other one; None: the request has
        neither."""
        if conversation is not None and unit == "conversation":
            return conversation
        named = (self.value("user"), self.value("safety_identifier"), object_of(self.value("metadata")).get("user_id"))
        return next((one for one in named if isinstance(one, str) and one), conversation)

    def _texts(self) -> list[tuple[str, str]]:
        """Returns role and text of each message."""
        named = (("user", "prompt"), ("system", "system"))
        found = [(role, text) for role, name in named if (text := texts_of(self.value(name)))]
        found += [
            (str(message.get("role")), texts_of(message.get("content")) or "")
            for message in objects_of(self.value("messages"))
        ]
        return found

    def _beginning(self) -> bytes:
        """Returns the first message of a user; without one, the prompt or all messages."""
        messages = self.value("messages")
        for message in objects_of(messages):
            if message.get("role") == "user":
                return (texts_of(message.get("content")) or str(message.get("content"))).encode(errors="surrogatepass")
        return self.raw("prompt") if messages is None else self.raw("messages")
