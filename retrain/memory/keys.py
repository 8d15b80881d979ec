"""The identity of a question in the memory, as the daemon finds it in the warehouse and the gateway in a request."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from retuned.consumers.common import tool_calls
from retuned.consumers.privacy.placeholders import PLACEHOLDER
from retuned.retrain.data.identity import INSTRUCTING, conversation_identity, last_question, text_turns

SCOPE_BYTES = 8


@dataclass(frozen=True)
class Question:
    """What a conversation asks.

    Attributes:
        key: 16 bytes, equal for the same question. The first 8 are a hash of the system prompt, the context and the
            tools, the others one of the conversation.
        text: the last message of a user.
        is_alone: whether the text is all that was asked, so that it can be compared with other questions.
    """

    key: bytes
    text: str
    is_alone: bool


def question(messages: Any, context: Sequence[Any] | None = None, tools: Any = None) -> Question | None:
    """Returns what a conversation asks; None: nothing, it holds more than text, or what was redacted in it may decide
    the answer, as in a question about an account by its number.

    Texts are redacted, as in the warehouse.

    Args:
        messages: as in requests of OpenAI's chat API, of any content.
        tools: the tools that the model was offered, in a form that `tool_calls.schemas` reads.
    """
    turns = [turn for turn in messages if isinstance(turn, dict)] if isinstance(messages, list) else []
    if not turns or len(turns) < len(messages) or not all(isinstance(turn.get("role"), str) for turn in turns):
        return None
    texts = text_turns(turns)
    text = last_question(texts or [])
    if texts is None or not text.strip():
        return None
    other = [turn for turn in texts if turn["role"] not in INSTRUCTING]
    if PLACEHOLDER.search(json.dumps(other)):
        return None
    asked = conversation_identity(texts, context or (), tool_calls.schemas(tools))
    return Question(_hash(asked.scope) + _hash(asked.text), text, is_alone=len(other) == 1)


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:SCOPE_BYTES]
