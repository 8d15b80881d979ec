"""What is taken out of an event before it is stored: personal data, keys and tokens."""

from collections import Counter
from collections.abc import Callable, Sequence, Set
from typing import Any, Protocol

import msgspec

from retuned.consumers.common.leaves import Leaf, replaced, replaced_in_text
from retuned.consumers.privacy.columns import Redacted, exchanged, suspects
from retuned.consumers.privacy.finder import Finder, Found
from retuned.consumers.privacy.placeholders import Conversations, Scope
from retuned.consumers.privacy.pseudonyms import is_pseudonym
from retuned.consumers.settings import PrivacySettings

_LONGEST_KEY = 64
Failed = Callable[[int, Exception], None]
# What a conversation may be named after.
_SUSPECT_ID = r"@|%40|\+[ (]?[0-9]|^\(?0[0-9 ()/.\-]{7}|[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]"


class Users(Protocol):
    """Who is named in JSON. `suspect` is what a text holds that names somebody, in the dialect of RE2."""

    suspect: str

    def __call__(self, leaf: Leaf) -> str | None:
        """The pseudonym of whom a value names; None where it names nobody."""


class Redactor:
    """Replaces what must not be stored by typed placeholders: <EMAIL_1> <PHONE_1> <CARD_1> <IBAN_1> <NATIONAL_ID_1>
    <IP_1> <MAC_1> <KEY_1> <COOKIE_1>, and <NAME_1> with privacy.names.

    Within a scope one value has one number, and numbers count up by kind in the order of appearance. The scope of
    `take_out` is the conversation, of the other methods what they are given, or else the one call. Placeholders that
    stand in a text already stay, and their numbers are not given again in their scope; what privacy.keep names
    stays too.

    For one thread. `take_counts` says how often something was replaced.
    """

    def __init__(
        self,
        settings: PrivacySettings | None = None,
        *,
        machines: bool = True,
        conversations: Conversations | None = None,
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            machines: False: IP and MAC addresses stay, as what the daemon logs are its operator's.
            conversations: where numbers are kept; None: in memory.
            progress: called with each event, which may take a second.

        Raises:
            ConfigurationError: privacy.names is on and its extra is not installed, or a phone region is none.
        """
        settings = settings or PrivacySettings()
        self.enabled = settings.redact
        self._finder = Finder(settings, machines=machines)
        self._conversations = conversations or Conversations()
        self._counts: Counter[str] = Counter()
        self._progress = progress

    def take_counts(self) -> Counter[str]:
        """How often something was replaced, by kind, since the last call."""
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
        """Columns of the same events, redacted, to be given to `number`. They are read in their order.

        Args:
            texts: the columns by name, Arrow arrays of strings.
            json: those that hold JSON; the texts inside are redacted.
            event_ids: what an event without a conversation is told by, an Arrow array too.
            conversation_ids: what events share their numbers by, another; None: as was remembered of `event_ids`.
            failed: called for each row that cannot be redacted and stays as it was; None: the error is raised.
            letters: of each row, the dead letter that it was. What was taken out of it then had numbers of its own, of
                which nobody knows which values of the conversation they are: they get new ones.
            users: whose pseudonyms stand for them in JSON, also where `privacy.redact` is off.

        One look at each whole column, without Python in between, finds the few events that need a closer one.
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
        """Give the placeholders of a batch their numbers, all at once where they come from a database.

        Raises:
            StoreUnavailable: it does not answer.
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
        """Which conversation these interactions belong to, for the feedback that comes after them: Arrow arrays."""
        if self.enabled:
            self._conversations.remember(event_ids, conversation_ids)

    def identifiers(self, names: Any, pseudonym: Callable[[str], str], failed: Failed | None = None) -> Any:
        """An Arrow array of ids; an id in which an e-mail or IP address or a phone number stands is hashed.

        `failed` is as for `take_out`.
        """
        suspected = suspects([names], _SUSPECT_ID) if self.enabled else []
        if not suspected:
            return names
        cleaned = names.take(suspected).to_pylist()
        for place, name in enumerate(cleaned):
            self._begin()
            try:
                if any(found.kind in ("EMAIL", "PHONE", "IP") for found in self._finder.find(name)):
                    cleaned[place] = pseudonym(name)
            except Exception as error:
                if failed is None:
                    raise
                failed(suspected[place], error)
        return exchanged(names, suspected, cleaned)

    def value(self, value: Any, scope: Scope | None = None, users: Users | None = None) -> Any:
        """A JSON value with everything in it redacted: texts, names of fields, and numbers.

        What stands under a key is redacted as if both stood in a text: `"password": "hunter2"`.
        """
        self._begin()
        scope = scope or self.scope(value)
        return replaced(value, lambda leaf: self._leaf(leaf, scope, users))

    def text(self, text: str, scope: Scope | None = None) -> str:
        """A text with placeholders. One that is JSON, such as the arguments of a call of a tool, stays JSON.

        A user's pseudonym stays: its digits may look like a phone number's.
        """
        self._begin()
        return self._in_text(text, scope)

    def scope(self, value: Any = None) -> Scope:
        """Numbers that nothing else shares; those of placeholders in a JSON value are taken."""
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
        if users and leaf.key and (user := users(leaf)) is not None:
            return user
        if isinstance(value, str):
            return self._in_text(value, scope, users, leaf)
        if isinstance(value, bool) or not isinstance(value, int) or not self.enabled:
            return value
        found = self._finder.find(str(abs(value)), self._context(leaf))
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
        for one in found:
            parts += [text[position : one.start], self._placeholder(one, scope)]
            position = one.end
        return "".join([*parts, text[position:]])

    def _context(self, leaf: Leaf) -> str:
        """What would stand before a value in a text, up to its quotes. A key that is redacted means nothing."""
        names = (leaf.above, leaf.key)
        key = ".".join(name for name in names if name and "<" not in name and not self._finder.find(name))
        return f'"{key[-_LONGEST_KEY:]}": ' if key else ""

    def _placeholder(self, found: Found, scope: Scope) -> str:
        self._counts[found.kind] += 1
        return scope.placeholder(found.kind, found.value)


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
