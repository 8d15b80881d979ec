"""What is taken out of an event before it is stored: personal data, keys and tokens.

Every pattern runs in time linear in the text: quantifiers are bounded or possessive, and what a pattern cannot tell
(a checksum, a date, the plan of a country) is settled in Python on one short match. Cheap looks at the whole text come
first, because most texts hold nothing to find.

Arrow is imported by what works on columns alone: most processes redact nothing but their log.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence, Set
from itertools import chain
from typing import Any

import msgspec

from retuned.consumers.privacy import placeholders
from retuned.consumers.privacy.patterns import accounts, addresses, credentials, national_ids
from retuned.consumers.privacy.patterns.names import load_names
from retuned.consumers.privacy.patterns.phones import check_regions, replace_phones
from retuned.consumers.privacy.placeholders import Conversations, Scope
from retuned.consumers.privacy.pseudonyms import is_pseudonym
from retuned.consumers.settings import PrivacySettings

_NOT_DIGITS = bytes(set(range(256)) - set(b"0123456789"))
# Eight digits that stand close together: without them there is no phone and no card in a text.
_LONG_NUMBER = re.compile(r"[0-9](?:[ \u00a0\u202f().\-/]{0,3}[0-9]){7}")
# Stands for what was found until all of a text is searched: numbers go by the order of appearance, not of the patterns.
_FOUND = re.compile("<\x00([0-9]{1,9})>")
# A placeholder in JSON where a number stood.
_UNQUOTED = re.compile(r"(?<=[:,\[\s])-?(<[A-Z_]{1,20}_[0-9]{1,9}>)(?=[,\]}\s])")
_ESCAPE = re.compile(r"\\u[0-9A-Fa-f]{4}")

# What a text holds whenever something is found in it, and seldom else, also where JSON has escaped the text.
# In the dialect of RE2, which Arrow runs over a whole column.
_SUSPECT = "|".join(
    (
        r"[0-9](?:[ \x{a0}\x{202f}().\-/]{0,3}[0-9]){7}",
        *addresses.SUSPECT,
        *accounts.SUSPECT,
        *national_ids.SUSPECT,
        *credentials.SUSPECT,
        placeholders.SUSPECT,
        _ESCAPE.pattern,  # in JSON that is a text
    )
)
_SUSPECT_NAME = r"\p{Lu}\p{Ll}"
# In the place of a kind: what privacy.keep names, which stays as it stands.
_KEPT = "KEPT"
Failed = Callable[[int, Exception], None]
# What a conversation may be named after.
_SUSPECT_ID = r"@|%40|\+[ (]?[0-9]|^\(?0[0-9 ()/.\-]{7}|[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]"


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
    ) -> None:
        """
        Args:
            machines: False: IP and MAC addresses stay, as what the daemon logs are its operator's.
            conversations: where numbers are kept; None: in memory.

        Raises:
            ConfigurationError: privacy.names is on and its extra is not installed, or a phone region is none.
        """
        settings = settings or PrivacySettings()
        check_regions(settings.phone_regions)
        self.enabled = settings.redact
        self._regions, self._machines = settings.phone_regions, machines
        self._replace_names = load_names() if settings.redact and settings.names else None
        self._suspect = _SUSPECT + (f"|{_SUSPECT_NAME}" if self._replace_names else "")
        self._kept: frozenset[tuple[str, str]] = frozenset()
        self._kept = frozenset(chain.from_iterable(map(self._values, settings.keep)))
        self._conversations = conversations or Conversations()
        self._counts: Counter[str] = Counter()

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
    ) -> "Redacted":
        """Columns of the same events, redacted, to be given to `number`. They are read in their order.

        Args:
            texts: the columns by name, Arrow arrays of strings.
            json: those that hold JSON; the texts inside are redacted.
            event_ids: what an event without a conversation is told by, an Arrow array too.
            conversation_ids: what events share their numbers by, another; None: as was remembered of `event_ids`.
            failed: called for each row that cannot be redacted and stays as it was; None: the error is raised.
            letters: of each row, the dead letter that it was. What was taken out of it then had numbers of its own, of
                which nobody knows which values of the conversation they are: they get new ones.

        One look at each whole column, without Python in between, finds the few events that need a closer one.
        """
        suspects = _suspects(list(texts.values()), self._suspect) if self.enabled else []
        redacted = Redacted(texts, suspects)
        if not suspects:
            return redacted
        import pyarrow as pa

        rows, on_another = pa.array(suspects), conversation_ids is None
        cleaned = redacted.cleaned = {name: array.take(rows).to_pylist() for name, array in texts.items()}
        ids = event_ids.take(rows).to_pylist()
        known = self._conversations.of(ids) if on_another else conversation_ids.take(rows).to_pylist()
        for place, (event_id, conversation_id) in enumerate(zip(ids, known, strict=True)):
            scope = self._conversations.open(event_id, conversation_id, on_another=on_another)
            try:
                for values in cleaned.values():
                    if text := values[place]:
                        if letters is None:
                            scope.reserve(text)
                        else:
                            values[place] = scope.renumbered(text, letters[suspects[place]])
                for name, values in cleaned.items():
                    text = values[place]
                    if text is not None:
                        values[place] = self._json(text, scope) if name in json else self.text(text, scope)
            except Exception as error:
                if failed is None:
                    raise
                failed(suspects[place], error)
            else:
                if scope.waits:
                    redacted.waiting.append((place, scope))
            self._conversations.close(scope)
        return redacted

    def number(self, batch: Sequence["Redacted"]) -> None:
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
        suspects = _suspects([names], _SUSPECT_ID) if self.enabled else []
        if not suspects:
            return names
        cleaned = names.take(suspects).to_pylist()
        for place, name in enumerate(cleaned):
            found: list[tuple[str, str]] = []
            try:
                self._mark(name, found)
            except Exception as error:
                if failed is None:
                    raise
                failed(suspects[place], error)
            if any(kind in ("EMAIL", "PHONE", "IP") for kind, _ in found):
                cleaned[place] = pseudonym(name)
        return _exchanged(names, suspects, cleaned)

    def value(self, value: Any, scope: Scope | None = None) -> Any:
        """A JSON value with every text in it redacted, names of fields too."""
        scope = scope or self.scope(value)
        if isinstance(value, str):
            return self.text(value, scope)
        if isinstance(value, dict):
            return {self.text(key, scope): self.value(item, scope) for key, item in value.items()}
        if isinstance(value, list):
            return [self.value(item, scope) for item in value]
        if isinstance(value, int) and abs(value) >= 10**12:
            text = self.text(str(value), scope)
            return value if text == str(value) else text
        return value

    def text(self, text: str, scope: Scope | None = None) -> str:
        """A text with placeholders. One that is JSON, such as the arguments of a call of a tool, stays JSON.

        A user's pseudonym stays: its digits may look like a phone number's.
        """
        if not self.enabled or is_pseudonym(text):
            return text
        is_json = text.lstrip()[:1] in ("{", "[") and _is_json(text)
        if is_json and _ESCAPE.search(text):  # which could hide what is looked for
            text = msgspec.json.encode(msgspec.json.decode(text)).decode()
        found: list[tuple[str, str]] = []
        marked = self._mark(text, found)
        if not found:
            return text
        numbers = scope or self.scope(text)
        self._counts.update(kind for kind, _ in found if kind != _KEPT)

        def placeholder(match: re.Match[str]) -> str:
            index = int(match[1])
            if index >= len(found):
                return match[0]
            kind, value = found[index]
            return _FOUND.sub(placeholder, value) if kind == _KEPT else numbers.placeholder(kind, value)

        clean = _FOUND.sub(placeholder, marked)
        return _UNQUOTED.sub(r'"\1"', clean) if is_json and not _is_json(clean) else clean

    def scope(self, value: Any = None) -> Scope:
        """Numbers that nothing else shares; those of placeholders in a JSON value are taken."""
        scope = self._conversations.fresh()
        _reserve(scope, value)
        return scope

    def _json(self, text: str, scope: Scope) -> str:
        return msgspec.json.encode(self.value(msgspec.json.decode(text), scope)).decode()

    def _values(self, kept: str) -> list[tuple[str, str]]:
        """Kind and value of what would be taken out of a text that is to be kept. A number alone may not be known as a
        phone's, behind such a word it is; nor is a name alone known as one."""
        found: list[tuple[str, str]] = [("NAME", " ".join(kept.casefold().split()))]
        for text in (kept, f"tel. {kept}"):
            self._mark(text, found)
        return found

    def _mark(self, text: str, found: list[tuple[str, str]]) -> str:
        """The text with marks for what goes, which is added to `found` as kind and value."""

        def mark(kind: str, value: str, text: str) -> str:
            # What is kept is marked too: no later pattern looks into it.
            found.append((_KEPT, text) if self._kept and (kind, value) in self._kept else (kind, value))
            return f"<\x00{len(found) - 1}>"

        text = credentials.replace_credentials(text, text.lower(), mark)
        text = addresses.replace_emails(text, mark)
        digits = len(text.encode("utf-8", "replace").translate(None, _NOT_DIGITS))
        if self._machines and ("::" in text or (digits >= 4 and any(sign in text for sign in ":.-"))):
            text = addresses.replace_machines(text, mark)
        if digits >= 6:
            text = accounts.replace_ibans(text, mark)
            long = digits >= 8 and _LONG_NUMBER.search(text)
            if long:
                text = accounts.replace_cards(text, mark)
            text = national_ids.replace_national_ids(text, mark)
            if long:
                text = replace_phones(text, mark, self._regions)
        return self._replace_names(text, mark) if self._replace_names else text


class Redacted:
    """Columns of the same events whose personal data is taken out.

    Attributes:
        cleaned: by name, the texts of the rows in which something might be.
        waiting: places among these rows whose placeholders have no numbers yet, and what knows them.
    """

    def __init__(self, texts: dict[str, Any], rows: list[int]) -> None:
        """The columns as they came, and in which rows of them something might be."""
        self._texts, self._rows = texts, rows
        self.cleaned: dict[str, list[str | None]] = {}
        self.waiting: list[tuple[int, Scope]] = []

    def columns(self) -> dict[str, Any]:
        """Arrow arrays by name."""
        return {
            name: _exchanged(array, self._rows, self.cleaned[name]) if self._rows else array
            for name, array in self._texts.items()
        }


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return False
    return True


def _suspects(arrays: list[Any], pattern: str) -> list[int]:
    """The rows in which the pattern matches, in any of the arrays."""
    import pyarrow as pa
    import pyarrow.compute as pc

    # Arrow compiles the pattern anew at each call, which takes as long as looking through a thousand texts.
    if len(arrays) > 1 and sum(array.nbytes for array in arrays) < 2**31:
        looked_at = [pa.concat_arrays(arrays)]
    else:
        looked_at = arrays
    rows: set[int] = set()
    for array in looked_at:
        found = pc.indices_nonzero(pc.match_substring_regex(array, pattern))
        rows.update(index % len(arrays[0]) for index in found.to_pylist())
    return sorted(rows)


def _exchanged(array: Any, rows: list[int], texts: list[str | None]) -> Any:
    """An array of strings with other ones in these rows."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    mask = np.zeros(len(array), bool)
    mask[rows] = True
    return pc.replace_with_mask(array, mask, pa.array(texts, pa.string()))


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
