"""Removes personal data, keys and tokens from events before they are stored."""

from collections import Counter
from collections.abc import Callable, Sequence, Set
from typing import Any, Protocol

import msgspec

from retuned.consumers.common.leaves import Leaf, replaced, replaced_in_text, whole
from retuned.consumers.privacy.columns import Redacted, exchanged, suspects
from retuned.consumers.privacy.finder import CONTACTS, SUSPECT_CONTACT, Finder, Found
from retuned.consumers.privacy.placeholders import Conversations, Scope
from retuned.consumers.privacy.pseudonyms import is_pseudonym
from retuned.consumers.settings import PrivacySettings

_LONGEST_KEY = 64
Failed = Callable[[int, Exception], None]


class Users(Protocol):
    """Finds users named in JSON.

    Attributes:
        suspect: an RE2 pattern that matches every text that names a user.
    """

    suspect: str

    def __call__(self, leaf: Leaf) -> str | None:
        """Returns the pseudonym of the user that a value names; None: none."""


class Redactor:
    """Replaces personal data and secrets by typed placeholders: <EMAIL_1> <PHONE_1> <CARD_1> <IBAN_1> <NATIONAL_ID_1>
    <IP_1> <MAC_1> <KEY_1> <COOKIE_1>, and <NAME_1> with privacy.names.

    Within a scope each value has one number, and numbers of a kind count up in the order of appearance. The scope of
    `take_out` is the conversation; that of other methods is an argument, or else the single call. Existing placeholders
    stay, and their numbers are not assigned again in their scope; values in privacy.keep, and those of keys in
    privacy.keep_keys, stay as well.

    For one thread.
    """

    def __init__(
        self,
        settings: PrivacySettings | None = None,
        *,
        machines: bool = True,
        conversations: Conversations | None = None,
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        """Creates a redactor.

        Args:
            machines: False: IP and MAC addresses stay, because those in the daemon's log belong to its operator.
            conversations: keeps the numbers; None: in memory.
            progress: called for each event, which may take a second.

        Raises:
            ConfigurationError: privacy.names is on and its extra is not installed, or a phone region is unknown.
        """
        settings = settings or PrivacySettings()
        self.enabled = settings.redact
        self._kept = frozenset(key.casefold() for key in settings.keep_keys)
        self._finder = Finder(settings, machines=machines)
        self._conversations = conversations or Conversations()
        self._counts: Counter[str] = Counter()
        self._progress = progress

    def take_counts(self) -> Counter[str]:
        """Returns the number of replacements by kind since the last call."""
        counts, self._counts = self._counts, Counter()
        return counts

    def take_out(
        self,
        texts: dict[str, Any],
        json: Set[str],
        event_ids: Any,
        conversation_ids: Any = None,
        failed: Failed | None = None,
        letters: Sequence[str] | None = None,
        users: Users | None = None,
    ) -> Redacted:
        """Redacts columns of the same events, in their order; pass the result to `number`.

        One search of each whole column by Arrow finds the few rows that have to be redacted in Python.

        Args:
            texts: Arrow arrays of strings by the name of the column.
            json: the columns with JSON; the texts inside are redacted.
            event_ids: an Arrow array; the scope of events without a conversation.
            conversation_ids: an Arrow array; the scope of events. None: the remembered conversations of `event_ids`.
            failed: called for each row that cannot be redacted and stays unchanged; None: the error is raised.
            letters: the former dead letter of each row. Its placeholders have numbers of their own, unrelated to those
                of the conversation, so they are renumbered.
            users: replaces users in JSON by pseudonyms, also if `privacy.redact` is off.
        """
        patterns = [self._finder.suspect] if self.enabled else []
        patterns += [users.suspect] if users else []
        suspected = suspects(list(texts.values()), "|".join(patterns)) if patterns else []
        redacted = Redacted(texts, suspected)
        if not suspected:
            return redacted
        import pyarrow as pa

        rows, on_another = pa.array(suspected), conversation_ids is None
        cleaned = redacted.cleaned = {name: array.take(rows).to_pylist() for name, array in texts.items()}
        ids = event_ids.take(rows).to_pylist()
        known = self._conversations.of(ids) if on_another else conversation_ids.take(rows).to_pylist()
        for place, (event_id, conversation_id) in enumerate(zip(ids, known, strict=True)):
            self._begin()
            scope = self._conversations.open(event_id, conversation_id, on_another=on_another)
            try:
                for values in cleaned.values():
                    if text := values[place]:
                        if letters is None:
                            scope.reserve(text)
                        else:
                            values[place] = scope.renumbered(text, letters[suspected[place]])
                for name, values in cleaned.items():
                    text = values[place]
                    if text is not None:
                        replace = self._in_json if name in json else self._in_text
                        values[place] = replace(text, scope, users)
            except Exception as error:
                if failed is None:
                    raise
                failed(suspected[place], error)
            else:
                if scope.waits:
                    redacted.waiting.append((place, scope))
            self._conversations.close(scope)
        return redacted

    def number(self, batch: Sequence[Redacted]) -> None:
        """Assigns the numbers of a batch's placeholders, all at once if they come from a database.

        Raises:
            StoreUnavailable: the database does not answer.
        """
        waiting = [(redacted, place, scope) for redacted in batch for place, scope in redacted.waiting]
        if not waiting:
            return
        self._conversations.number([scope for _, _, scope in waiting])
        for redacted, place, scope in waiting:
            for values in redacted.cleaned.values():
                if text := values[place]:
                    values[place] = scope.numbered(text)

    def remember(self, event_ids: Any, conversation_ids: Any) -> None:
        """Remembers the conversations of interactions (Arrow arrays) for later feedback."""
        if self.enabled:
            self._conversations.remember(event_ids, conversation_ids)

    def identifiers(self, names: Any, pseudonym: Callable[[str], str], failed: Failed | None = None) -> Any:
        """Replaces ids that contain an e-mail address, an IP address or a phone number by pseudonyms.

        Args:
            names: an Arrow array.
            failed: see `take_out`.
        """
        suspected = suspects([names], SUSPECT_CONTACT) if self.enabled else []
        if not suspected:
            return names
        cleaned = names.take(suspected).to_pylist()
        for place, name in enumerate(cleaned):
            self._begin()
            try:
                if any(found.kind in CONTACTS for found in self._finder.find(name)):
                    cleaned[place] = pseudonym(name)
            except Exception as error:
                if failed is None:
                    raise
                failed(suspected[place], error)
        return exchanged(names, suspected, cleaned)

    def value(self, value: Any, scope: Scope | None = None, users: Users | None = None) -> Any:
        """Redacts the texts, keys and numbers of a JSON value.

        A value is redacted as if it followed its key in a text: `"password": "hunter2"`.
        """
        self._begin()
        scope = scope or self.scope(value)
        return replaced(value, lambda leaf: self._leaf(leaf, scope, users))

    def text(self, text: str, scope: Scope | None = None) -> str:
        """Redacts a text; JSON, such as the arguments of a tool call, stays JSON.

        Pseudonyms stay, although their digits may look like a phone number.
        """
        self._begin()
        return self._in_text(text, scope)

    def scope(self, value: Any = None) -> Scope:
        """Returns a new scope, in which the numbers of placeholders in a JSON value are reserved."""
        scope = self._conversations.fresh()
        _reserve(scope, value)
        return scope

    def _begin(self) -> None:
        self._progress()
        self._finder.begin()

    def _in_json(self, text: str, scope: Scope, users: Users | None) -> str:
        return replaced_in_text(text, lambda leaf: self._leaf(leaf, scope, users))

    def _leaf(self, leaf: Leaf, scope: Scope, users: Users | None) -> Any:
        value = leaf.value
        if self._kept and leaf.key and not self._kept.isdisjoint(_names(leaf)):
            return value
        if users and leaf.key and (user := users(leaf)) is not None:
            return user
        if isinstance(value, str):
            return self._in_text(value, scope, users, leaf)
        if not self.enabled or (number := whole(value)) is None:
            return value
        found = self._finder.find(str(abs(number)), self._context(leaf))
        return self._placeholder(found[0], scope) if found else value

    def _in_text(
        self, text: str, scope: Scope | None = None, users: Users | None = None, leaf: Leaf | None = None
    ) -> str:
        if text.lstrip()[:1] in ("{", "["):
            try:
                return self._in_json(text, scope or self.scope(text), users)
            except (msgspec.DecodeError, UnicodeError, RecursionError):
                pass
        if not self.enabled or is_pseudonym(text):
            return text
        context = self._context(leaf) if leaf else ""
        found = self._finder.find(text, context and f'{context}"', context and '"')
        if not found:
            return text
        scope = scope or self.scope(text)
        parts, position = [], 0
        for match in found:
            parts += [text[position : match.start], self._placeholder(match, scope)]
            position = match.end
        return "".join([*parts, text[position:]])

    def _context(self, leaf: Leaf) -> str:
        """Returns the key before a value as it would be written in a text; empty for a redacted key."""
        names = (leaf.above, leaf.key)
        key = ".".join(name for name in names if name and "<" not in name and not self._finder.find(name))
        return f'"{key[-_LONGEST_KEY:]}": ' if key else ""

    def _placeholder(self, found: Found, scope: Scope) -> str:
        self._counts[found.kind] += 1
        return scope.placeholder(found.kind, found.value)


def _names(leaf: Leaf) -> tuple[str, str]:
    return leaf.key.casefold(), f"{leaf.above}.{leaf.key}".casefold()


def _reserve(scope: Scope, value: Any) -> None:
    if isinstance(value, str):
        scope.reserve(value)
    elif isinstance(value, dict):
        for key, item in value.items():
            scope.reserve(key)
            _reserve(scope, item)
    elif isinstance(value, list):
        for item in value:
            _reserve(scope, item)
