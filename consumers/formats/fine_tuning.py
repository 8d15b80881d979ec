"""Rows of the files that fine-tuning services take: conversations with weights, and preferences.

Sources, November 2026:
- OpenAI, Azure: https://platform.openai.com/docs/guides/supervised-fine-tuning, …/direct-preference-optimization
- Together AI: https://docs.together.ai/docs/fine-tuning/data-preparation
- Fireworks AI: https://docs.fireworks.ai/fine-tuning/fine-tuning-models, and its cookbook for `chosen` with `messages`
- TRL: https://huggingface.co/docs/trl/dataset_formats
"""

from collections.abc import Mapping, Sequence
from typing import Any

from retuned.consumers.common.tool_calls import parsed
from retuned.consumers.formats.events import BadEvent
from retuned.consumers.formats.messages import Plain, number

CHOSEN, REJECTED = "preferred_output", "non_preferred_output"
FUNCTIONS = "functions"
"""The older name of tools, whose objects are those functions."""


def unified(fields: Plain) -> Plain:
    """Returns the fields of a row by one set of names: `prompt`, `chosen`, `rejected`, `tools`."""
    found = dict(fields)
    given = found.get("input")
    if isinstance(given, dict) and isinstance(given.get("messages"), list):
        found = {name: value for name, value in found.items() if name != "input"}
        found |= {"prompt": given["messages"]}
        found |= {name: given[name] for name in ("tools", FUNCTIONS) if given.get(name)}
    if CHOSEN in found and REJECTED in found:
        found |= {"chosen": found.pop(CHOSEN), "rejected": found.pop(REJECTED)}
    if "chosen" not in found and (scored := _scored(found.get("samples"))):
        del found["samples"]
        found |= {"chosen": scored[-1], "rejected": scored[0]}
    functions = found.get(FUNCTIONS)
    if isinstance(functions, list) and not found.get("tools"):
        found["tools"] = [{"type": "function", "function": function} for function in found.pop(FUNCTIONS)]
    return found


def compared(sides: Mapping[str, list[Plain]]) -> tuple[list[Plain], Plain, Plain]:
    """Returns the messages that both sides of a preference share, the preferred answer, and the other one.

    Raises:
        BadEvent: the sides answer different conversations, or are equal.
    """
    if not all(sides.values()):
        raise BadEvent("not_an_event", "an answer of the preference is empty: expected a message of the assistant")
    (*before, chosen), (*other, rejected) = sides["chosen"], sides["rejected"]
    if before != other:
        raise BadEvent("not_an_event", "the two answers of the preference follow different messages: expected the same")
    if chosen == rejected:
        raise BadEvent("not_an_event", "the preferred and the rejected answer are equal: expected two answers")
    return before, chosen, rejected


def weight(given: Plain) -> Any:
    """Returns the weight of a row or a message: a number, which tables may hold as text; 1 without one."""
    return number(given.get("weight", 1))


def taught(turns: Sequence[Plain], places: Sequence[int]) -> list[int]:
    """Returns those of the places whose message has another weight than 0.

    Raises:
        BadEvent: there are none, or a weight is not a number.
    """
    weights = [weight(turns[place]) for place in places]
    if not all(isinstance(own, int | float) for own in weights):
        raise BadEvent("not_an_event", "messages: weight: expected 0 or 1")
    found = [place for place, own in zip(places, weights, strict=True) if own]
    if not found:
        raise BadEvent("not_an_event", "no answer is taught: all messages of the assistant have weight 0")
    return found


def without_weight(turn: Plain) -> Plain:
    """Returns a message without its weight, which is no part of what the model reads."""
    return {name: value for name, value in turn.items() if name != "weight"}


def with_objects(calls: list[Plain]) -> list[Plain]:
    """Returns calls with their arguments as the JSON text of an object, which some files encode twice."""
    found = []
    for call in calls:
        function = call.get("function", call)
        inner = parsed(function["arguments"]) if isinstance(function["arguments"], str) else None
        if isinstance(inner, str) and isinstance(parsed(inner), dict):
            own = {**function, "arguments": inner}
            call = {**call, "function": own} if "function" in call else own
        found.append(call)
    return found


def _scored(samples: Any) -> list[Plain]:
    """Returns samples (objects with `messages` and `evals.score`) of different scores, the worst first; else none."""
    if not isinstance(samples, list) or not all(isinstance(one, dict) for one in samples):
        return []
    scores: list[Any] = [one["evals"].get("score") if isinstance(one.get("evals"), dict) else None for one in samples]
    if not all(isinstance(score, int | float) for score in scores) or len(set(scores)) < 2:
        return []
    return [samples[place] for place in sorted(range(len(samples)), key=scores.__getitem__)]
