"""Sends requests to the incumbent by rule, whichever version is in service (`cascade`).

Rules on the request (length, tools, language) apply before the assignment to an arm, so that all arms of a rollout
leave out the same requests. Other rules replace an answer of a version: one that is invalid, or of low confidence. When
versions are compared, the answer that the app got counts for this version.
"""

import math
from functools import lru_cache
from typing import Any

import msgspec

from retuned.consumers.common.languages import is_in_another
from retuned.consumers.formats.messages import object_of, objects_of
from retuned.daemon.gateway.conversations import Call
from retuned.retrain.incumbent_settings import CascadeSettings
from retuned.retrain.release.assignment import Served
from retuned.retrain.scoring.words import plain

CASCADE = "cascade"
CHAT = "/v1/chat/completions"

_ANSWER = msgspec.json.Decoder(dict[str, msgspec.Raw])
_CHOICES = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])


def by_request(workload: str) -> Served:
    """Returns the model under which the answers to requests are stored that a rule sends to the incumbent."""
    return Served(f"{workload}@{CASCADE}", None)


def instead_of(version: Served) -> Served:
    """Returns the model under which the incumbent's answers are stored that replace those of a version."""
    return Served(f"{version.model}+{CASCADE}", None)


def rule_for(call: Call, rules: CascadeSettings) -> str | None:
    """Returns the rule that sends a request to the incumbent; None: there is none."""
    if rules.longer_than is not None and call.characters() > rules.longer_than:
        return "length"
    if rules.tools and call.value("tools"):
        return "tools"
    if rules.languages and is_in_another(call.last_text(), rules.languages):
        return "language"
    return None


def is_single(call: Call, path: str) -> bool:
    """Whether a request is for a single chat completion that is no stream, so that its answer can be checked."""
    return path == CHAT and not call.value("stream") and call.value("n") in (None, 1)


def is_invalid(call: Call, body: bytes, labels: tuple[str, ...] = ()) -> bool:
    """Whether an answer surely lacks the form that programs read: it is empty, is not JSON where the request asks for
    JSON, or is none of the labels of its model.

    Args:
        labels: empty: the model's answers are no labels.
    """
    try:
        message = objects_of(msgspec.json.decode(body)["choices"])[0]["message"]
    except (msgspec.DecodeError, KeyError, IndexError, TypeError, RecursionError):
        return False
    if not isinstance(message, dict) or any(message.get(name) for name in ("tool_calls", "function_call", "refusal")):
        return False
    content = message.get("content")
    if not content:
        return True
    if object_of(call.value("response_format")).get("type") not in ("json_object", "json_schema"):
        # The memory may have given the model a label that is newer than the model.
        is_helped = call.help is not None and call.help.message is not None
        return bool(labels) and not is_helped and isinstance(content, str) and plain(content) not in _plain(labels)
    try:
        msgspec.json.decode(content)
    except (msgspec.DecodeError, TypeError, RecursionError):
        return True
    return False


@lru_cache(256)
def _plain(labels: tuple[str, ...]) -> frozenset[str]:
    return frozenset(map(plain, labels))


def read_confidence(body: bytes, *, keep: bool) -> tuple[bytes, float | None]:
    """Returns an answer without log-probabilities, and the mean log-probability of a token; None: there is none.

    Args:
        keep: the app asked for log-probabilities, so the answer keeps them.
    """
    try:
        fields = _ANSWER.decode(body)
        choices = _CHOICES.decode(fields["choices"])
        found = msgspec.json.decode(choices[0].get("logprobs", b"null"))
    except (msgspec.DecodeError, KeyError, IndexError, RecursionError):
        return body, None
    if not keep:
        choices = [{name: value for name, value in choice.items() if name != "logprobs"} for choice in choices]
        body = msgspec.json.encode(fields | {"choices": choices})
    return body, _mean(found)


def _mean(logprobs: Any) -> float | None:
    tokens = logprobs.get("content") if isinstance(logprobs, dict) else None
    values = [token.get("logprob") for token in tokens or () if isinstance(token, dict)]
    numbers = [value for value in values if isinstance(value, (int, float)) and math.isfinite(value)]
    return sum(numbers) / len(numbers) if numbers else None
