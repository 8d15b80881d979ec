"""Whether and how an entry helps an answer."""

import hashlib
import re
from typing import Any

from retuned.retrain.memory.index import Entry, Found

LONGEST = 8_000
"""The most characters of a question and an answer that are given to a model."""
_CONTROL = re.compile(
    r"<[|｜]|[|｜]>|</?s>|<(?:bos|eos|pad|unk|start_of_turn|end_of_turn)>|\[/?(?:INST|SYSTEM_PROMPT)\]|<</?SYS>>"
)
"""Tokens by which chat templates separate messages: some servers read them in texts, too."""


def is_held_out(salt: str, unit: str, entry: str, share: float) -> bool:
    """Whether an entry does not help a unit (a conversation or an account), so that its effect can be measured.

    The first four bytes of `sha256(salt ‖ unit ‖ entry)` are a number in [0, 1), which is below the share.
    """
    digest = hashlib.sha256(f"{salt}{unit}{entry}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:4], "big") < share * 2**32


def message(found: Found, role: str = "system") -> dict[str, Any] | None:
    """Returns the message that gives an entry to a model; None if the entry is too long, or could end its message.

    Each line of the entry's texts begins with `> `, so no text of an entry can pass for a text of ours.
    """
    entry = found.entry
    if not is_usable(entry):
        return None
    date = f"{entry.since.day} {entry.since:%B %Y}"
    if found.match == "same":
        parts = [f"The approved answer to the user's question, of {date}, follows. Use it if it applies."]
    else:
        parts = [
            f"The approved answer to a related question, of {date}, follows. Use it if it also applies to the user's."
        ]
        parts += ["Related question:", _quoted(entry.question), "Approved answer:"]
    return {"role": role, "content": "\n".join([*parts, _quoted(entry.answer)])}


def is_usable(entry: Entry) -> bool:
    """Whether the texts of an entry may be given to a model: they are not too long and hold no control tokens."""
    text = f"{entry.question}\n{entry.answer}"
    return len(text) <= LONGEST and not _CONTROL.search(text)


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}" for line in text.splitlines())
