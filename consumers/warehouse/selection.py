"""What is to be erased: a request of a person or of a system, and the selection that it means."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import msgspec

from retuned.consumers.common.text import without
from retuned.consumers.common.times import utc
from retuned.consumers.errors import RetunedError
from retuned.consumers.privacy.pseudonyms import UserKeys, is_pseudonym


@dataclass(frozen=True)
class Selection:
    """The events to erase: everything that one of the ids names, or that all of the fields describe.

    Attributes:
        users: pseudonyms of one user, under each key.
        conversations: an id of a conversation, as it may be stored.
        attributes: values of attributes by name.
    """

    users: Sequence[str] = ()
    interactions: Sequence[str] = ()
    conversations: Sequence[str] = ()
    workload: str | None = None
    after: datetime | None = None
    before: datetime | None = None
    attributes: dict[str, str] = field(default_factory=dict)


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request: one of the ids, or a combination of the fields; attributes as name=value. Times are ISO 8601."""

    user_id: str | None = None
    interaction_id: str | None = None
    conversation_id: str | None = None
    workload: str | None = None
    after: str | None = None
    before: str | None = None
    attribute: Sequence[str] = ()
    reason: str | None = None

    def selection(self, keys: UserKeys) -> Selection:
        """Returns the selection. It has pseudonyms in place of the user's id.

        Raises:
            RetunedError: nothing is selected, ids and fields are combined, or a value is malformed.
        """
        ids = [one for one in (self.user_id, self.interaction_id, self.conversation_id) if one]
        limits = any((self.after, self.before, self.attribute))
        if len(ids) + bool(limits or self.workload) != 1:
            raise RetunedError(
                "erasure: select by one of user, interaction and conversation, or by workload, after, before and "
                "attribute"
            )
        if not ids and not limits:
            raise RetunedError("erasure: a whole workload needs a limit: add after, before or attribute")
        pairs = [one.partition("=") for one in self.attribute]
        if any(not (name and equals) or not {*'"\\'}.isdisjoint(name) for name, equals, _ in pairs):
            raise RetunedError("erasure: attribute: expected name=value, and a name without quotes and backslashes")
        return Selection(
            users=pseudonyms(keys, self.user_id) if self.user_id else (),
            interactions=(self.interaction_id,) if self.interaction_id else (),
            # The id may be an address, which is stored as its pseudonym.
            conversations=[self.conversation_id, *keys.pseudonyms(self.conversation_id)]
            if self.conversation_id
            else (),
            workload=self.workload,
            after=utc("erasure: after", self.after),
            before=utc("erasure: before", self.before),
            attributes={name: value for name, _, value in pairs},
        )

    def redacted(self, redact: Callable[[str], str]) -> "Request":
        """Returns the request with a reason that names nobody: without the id that is given, and redacted."""
        if self.reason is None:
            return self
        ids = (self.user_id, self.interaction_id, self.conversation_id)
        return msgspec.structs.replace(self, reason=redact(without(self.reason, ids)))


def pseudonyms(keys: UserKeys, user: str) -> list[str]:
    """Returns the pseudonyms of a user under each key; a pseudonym stands for itself."""
    return [user] if is_pseudonym(user) else keys.pseudonyms(user)
