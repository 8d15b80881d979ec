"""Reads rows of files that are not events but show answers: transcripts, questions with answers, preferences.

A row without a model and without a judgement is a demonstration: its answer is stored as an interaction of the model
`demonstration`, and also as an expert's correction, so that the model learns it. A conversation demonstrates each of
its answers but those of weight 0. A row with a model is a log, and only the judgements in it teach. Such rows are read
from files alone: on a topic, a message without a `response` is an error of the app, and nobody vouches for its answer.
docs/formats.md has a table of which column becomes which field.
"""

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec

from retuned.consumers.common import reasoning
from retuned.consumers.common.tool_calls import are_calls
from retuned.consumers.formats import fine_tuning
from retuned.consumers.formats.calls import ALONE
from retuned.consumers.formats.events import BOOLEANS, NUMBERS, STRINGS, BadEvent
from retuned.consumers.formats.messages import (
    Plain,
    as_text,
    content_hash,
    instant,
    joined_text,
    object_of,
    reasoning_of,
    with_calls,
    without_media,
    without_nothing,
)

DEMONSTRATION = "demonstration"
UNNAMED_MODEL = "unknown"

TRANSCRIPTS = ("messages", "conversations", "conversation")
QUESTIONS = ("question", "prompt", "instruction", "query", "input")
ANSWERS = ("answer", "response", "output", "completion")
CLASSES = ("label", "category")
"""The class of a text, which is the answer in a table without another one."""
TIMES = ("timestamp", "created_at", "created", "time", "date")
JUDGEMENTS = (*sorted(BOOLEANS), *sorted(NUMBERS), *sorted(STRINGS))
FIELDS = (
    "latency_seconds", "time_to_first_token_seconds", "input_tokens", "output_tokens",
    "cost", "finish_reason",
)  # fmt: skip
SOURCES = ("user", "expert", "judge", "app")

PREFERENCE = ("chosen", "rejected", fine_tuning.CHOSEN, fine_tuning.REJECTED)

_ROLES = {
    "human": "user", "user": "user", "prompter": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant",
    "model": "assistant", "assistant": "assistant", "function": "tool", "observation": "tool", "tool": "tool",
    "system": "system", "function_call": "assistant", "tool_call": "assistant", "tool_response": "tool",
}  # fmt: skip
_CALLING = ("function_call", "tool_call")
"""The roles of messages whose content is a call of the assistant, or a list of calls, as JSON."""
_YES, _NO = ("true", "yes", "1", "1.0"), ("false", "no", "0", "0.0")


class NoWorkload(BadEvent):
    """A row without a workload, in a file for which none was given."""

    def __init__(self) -> None:
        super().__init__("not_an_event", "names no workload; name one for the file with --workload")


def column(name: str) -> str:
    """Returns a column's name in lower case, with _ for spaces."""
    return name.strip().lower().replace(" ", "_")


def renamed(columns: Sequence[str]) -> list[str]:
    """Returns the names of columns as `column` does; a text and its class become `question` and `answer`.

    Args:
        columns: all columns of a table, or of a row, empty ones too. Columns of answers keep their names.
    """
    names = [column(name) for name in columns]
    known = {*names}
    label = next((name for name in CLASSES if name in known), None)
    if label is None or known & {*ANSWERS, *TRANSCRIPTS, *PREFERENCE} or not known & {*QUESTIONS, "text"}:
        return names
    meant = {label: "answer"} if known & {*QUESTIONS} else {label: "answer", "text": "question"}
    return [meant.get(name, name) for name in names]


def understood(columns: set[str]) -> bool:
    """Whether rows with these columns (named by `column`) can be demonstrations, preferences or transcripts."""
    return bool(
        columns & {"messages", "conversations"}
        or form(columns) == "preferences"
        or (columns & {*QUESTIONS, "conversation"} and columns & set(ANSWERS))
    )


def form(columns: Set[str]) -> str:
    """Returns the form of rows with these columns (named by `column`), for the summary of an import."""
    if columns >= {*PREFERENCE[:2]} or columns >= {*PREFERENCE[2:]} or "samples" in columns:
        return "preferences"
    return "conversations" if columns & {*TRANSCRIPTS} else "questions with answers"


def events(row: Plain, workload: str | None, timestamp: str) -> Iterator[Plain]:
    """Returns the interactions of a row, each followed by the feedback on it, as the fields of our events.

    A conversation of n answers becomes up to n interactions, each with all messages before it: their size may grow with
    the square of the row's, so the caller stops where they become too much.

    Args:
        workload, timestamp: defaults for a row without them.

    Raises:
        BadEvent: the row holds no question with an answer.
        NoWorkload: neither the row nor the caller names a workload.
    """
    fields = {column(name): value for name, value in row.items() if value is not None and value != ""}
    fields = fine_tuning.unified(fields)
    workload = fields.pop("workload", None) or workload
    own_time = next((fields.pop(name) for name in TIMES if name in fields), None)
    judged = {name: _judgement(name, fields.pop(name)) for name in JUDGEMENTS if name in fields}
    # Beside a completion, as in TRL's KTO, any label is a thumb. Elsewhere a number may be a class.
    label = fields.get("label")
    thumb = _judgement("helpful", label)
    if isinstance(thumb, bool) and ("completion" in fields or str(label).lower() in ("true", "false")):
        judged.setdefault("helpful", thumb)
        del fields["label"]
    model = named = fields.pop("model", None)
    correction, is_preference = None, "chosen" in fields and "rejected" in fields
    is_log = model is not None and not judged and not is_preference  # which teaches nothing
    if not is_log and fine_tuning.weight(fields) == 0:
        raise BadEvent("not_an_event", "no answer is taught: the row has weight 0")
    if is_preference:
        exchanges, correction = _preference(fields)
    else:
        exchanges = _exchanges(fields, is_log=is_log, is_judged=bool(judged))
    if workload is None:
        raise NoWorkload
    is_demonstration = model is None and not judged and correction is None
    source = fields.pop("source") if fields.get("source") in SOURCES else "user"
    if correction is not None:
        judged, source = {**judged, "correction": correction}, "expert"
    elif is_demonstration:
        model, source = DEMONSTRATION, "expert"
    context = fields.pop("context", None)
    # Feedback in other files refers to the ids of logs. Other ids are often row numbers, which are not unique across
    # files.
    id = str(fields.pop("id")) if named and "id" in fields else None
    if len(exchanges) > 1:  # they stay together in splits
        fields.setdefault("conversation_id", content_hash([workload, exchanges.turns]))
    around: Plain = {
        "workload": workload,
        "model": model or UNNAMED_MODEL,
        "context": [context] if isinstance(context, str) else context,
        **{name: str(fields.pop(name)) for name in ("conversation_id", "user_id") if name in fields},
        **{name: fields.pop(name, None) for name in FIELDS},
    }
    attributes = object_of(fields.pop("attributes", None)) | object_of(fields.pop("metadata", None)) | fields
    if isinstance(attributes.get("tools"), str):  # as in Parquet files, whose columns have one type each
        attributes["tools"] = _decoded(attributes["tools"])
    given = None if is_demonstration else judged
    return _written(exchanges, around, attributes, given, source, id, time(own_time), timestamp)


def time(value: Any) -> Any:
    """Returns a time as ISO 8601: what `instant` takes, a date, or a date and a time. Other values are unchanged."""
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).isoformat()
    value = instant(value)
    if isinstance(value, str):
        try:
            return time(datetime.fromisoformat(value.strip()))
        except ValueError:
            pass
    return value


@dataclass(frozen=True)
class _Exchanges:
    """Questions with their answers: of a conversation, or one that is given apart.

    Attributes:
        turns: all messages.
        places: the positions of the answers among them.
    """

    turns: list[Plain]
    places: list[int]

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[tuple[list[Plain], str, list[Plain]]]:
        """Yields the messages before an answer, its text, and its calls of tools."""
        return ((self.turns[:place], *_answer(self.turns[place])) for place in self.places)


def _written(
    exchanges: _Exchanges,
    around: Plain,
    attributes: Plain,
    judged: Plain | None,
    source: str,
    id: str | None,
    when: Any,
    timestamp: str,
) -> Iterator[Plain]:
    """Yields the events of a row.

    Args:
        around: the fields that all interactions of the row share.
        judged: the feedback by name; None: each answer is demonstrated.
        id: of the interaction; None: a hash of its content.
    """
    for messages, answer, calls in exchanges:
        own = attributes | ({"tool_calls": calls} if calls else {})
        interaction = without_nothing({**around, "messages": messages, "response": answer, "attributes": own or None})
        of_this = id or content_hash([interaction, when])
        yield {"id": of_this, "timestamp": when or timestamp, **interaction}
        for name, value in ({"correction": _taught(answer, calls)} if judged is None else judged).items():
            feedback = {"interaction_id": of_this, "name": name, "value": value, "source": source}
            yield {"id": content_hash([feedback, when]), "timestamp": when or timestamp, **feedback}


def _exchanges(fields: Plain, *, is_log: bool, is_judged: bool) -> _Exchanges:
    """Takes the messages and the answers out of the fields: of a log, or one that was judged, the last answer alone."""
    turns, expected = _asked(fields), "a last message of the assistant, or a column of answers"
    first = 0
    if (answer := next((name for name in ANSWERS if name in fields), None)) is not None:
        first, expected = len(turns), "a text, or a message of the assistant"
        turns += _answer_turns(fields.pop(answer))
    answers = [place for place in range(first, len(turns)) if _is_answer(turns[place])]
    if not answers:
        raise BadEvent("not_an_event", f"no answer: expected {expected}")
    places = _after_a_question(turns, answers)
    if is_log or is_judged:
        del places[:-1]
    if not is_log:
        places = fine_tuning.taught(turns, places)
    return _Exchanges([fine_tuning.without_weight(turn) for turn in turns], places)


def _preference(fields: Plain) -> tuple[_Exchanges, Any]:
    """Takes a preference out of the fields: the question with the rejected answer, and the preferred answer."""
    sides = {name: _side(fields[name]) for name in PREFERENCE[:2]}
    shared, chosen, rejected = fine_tuning.compared(sides)
    if not any(turn["role"] == "user" for turn in shared):  # else the sides hold the whole conversation
        shared = [*_asked(fields), *shared]
    for name in (*QUESTIONS, *TRANSCRIPTS, *PREFERENCE):
        fields.pop(name, None)
    _after_a_question(shared, [len(shared)])
    if not (_is_answer(chosen) and _is_answer(rejected)):
        raise BadEvent("not_an_event", "no answer: expected two messages of the assistant to compare")
    fine_tuning.taught([chosen], [0])
    before = [fine_tuning.without_weight(turn) for turn in shared]
    return _Exchanges([*before, rejected], [len(before)]), _taught(*_answer(chosen))


def _after_a_question(turns: list[Plain], places: list[int]) -> list[int]:
    """Returns the places after the first message of the user.

    Raises:
        BadEvent: there are none.
    """
    first = next((place for place, turn in enumerate(turns) if turn["role"] == "user"), len(turns))
    if not (after := [place for place in places if place > first]):
        raise BadEvent("not_an_event", "no question: expected a message of the user before the answer")
    return after


def _is_answer(turn: Plain) -> bool:
    text, calls = _answer(turn)
    return turn["role"] == "assistant" and bool(text.strip() or calls)


def _answer(turn: Plain) -> tuple[str, list[Plain]]:
    """Returns the text of a message, with its reasoning, and its calls of tools."""
    text = joined_text(turn.get("content")) or ""
    calls = turn["tool_calls"] if are_calls(turn.get("tool_calls")) else []
    if (text.strip() or calls) and (thought := reasoning_of(turn)):
        text = reasoning.written(thought, text)
    return text, calls


def _taught(text: str, calls: list[Plain]) -> Any:
    """Returns an answer as the value of a correction."""
    return {"content": text, "tool_calls": calls} if calls else text


def _asked(fields: Plain) -> list[Plain]:
    """Takes the messages out of the fields, the system's first."""
    name = next((name for name in TRANSCRIPTS if isinstance(fields.get(name), list)), None)
    messages = _question(fields) if name is None else _turns(fields.pop(name))
    if isinstance(fields.get("system"), str):
        messages = [{"role": "system", "content": fields.pop("system")}, *messages]
    return messages


def _question(fields: Plain) -> list[Plain]:
    name = next((name for name in QUESTIONS if name in fields), None)
    if name is None and isinstance(fields.get("response"), dict):
        raise BadEvent("not_an_event", ALONE)
    if name is None:
        known = f"one of {', '.join(QUESTIONS)}, and one of {', '.join(ANSWERS)}"
        raise BadEvent("not_an_event", f"neither an event nor a question with an answer: expected {known}")
    question = fields.pop(name)
    if isinstance(question, list):
        return _turns(question)
    if name == "instruction" and isinstance(question, str) and isinstance(fields.get("input"), str | dict):
        question = f"{question}\n\n{as_text(fields.pop('input'))}"
    if not isinstance(question, str) or not question.strip():
        raise BadEvent("not_an_event", f"{name}: expected a text")
    return [{"role": "user", "content": question}]


def _turns(value: list[Any]) -> list[Plain]:
    """Returns messages with `role` and `content`, from those or from ShareGPT's `from` and `value`."""
    turns = []
    for item in value:
        role = _role(item)
        if not isinstance(role, str):
            raise BadEvent("not_an_event", "messages: expected objects with role and content, or with from and value")
        more = {key: value for key, value in item.items() if key not in ("role", "from", "content", "value")}
        content = without_media(item.get("content", item.get("value")))
        if role.lower() in _CALLING and (calls := _calls(content)):
            content, more["tool_calls"] = None, calls
        more = with_calls(more)
        if are_calls(more.get("tool_calls")):
            more["tool_calls"] = fine_tuning.with_objects(more["tool_calls"])
        turns.append(without_nothing({"role": _ROLES.get(role.lower(), role), "content": content, **more}))
    return turns


def _calls(content: Any) -> list[Any] | None:
    """Returns the tool calls that are the content of a message; None if it is anything else."""
    decoded = _decoded(content) if isinstance(content, str) else content
    calls = decoded if isinstance(decoded, list) else [decoded]
    return calls if are_calls(calls) else None


def _role(turn: Any) -> Any:
    if not isinstance(turn, dict):
        return None
    return turn.get("role", turn.get("from", "assistant" if are_calls(turn.get("tool_calls")) else None))


def _answer_turns(value: Any) -> list[Plain]:
    """Returns an answer as messages: those that it is given as, or one of the assistant with it as a text."""
    return _messages(value) or [{"role": "assistant", "content": _text(value)}]


def _messages(value: Any) -> list[Plain] | None:
    """Returns the messages that an answer is given as; None: it is a text, or an answer in JSON."""
    turns = [value] if isinstance(value, dict) else value
    return _turns(turns) if isinstance(turns, list) and any(map(_is_turn, turns)) else None


def _is_turn(value: Any) -> bool:
    """Whether a value is a message. An answer in JSON may have some of its fields: a `role`, or `from` and `value`."""
    if not isinstance(value, dict):
        return False
    is_sharegpt = "value" in value and str(value.get("from")).lower() in _ROLES
    has_content = not value.keys().isdisjoint(("content", "tool_calls", "function_call"))
    is_chat = has_content and str(value.get("role")).lower() in {*_ROLES, "developer"}
    return is_sharegpt or is_chat or are_calls(value.get("tool_calls"))


def _text(value: Any) -> str:
    """Returns a text, or an object, a list or a boolean as JSON."""
    if (text := joined_text(value)) is not None:
        return text
    return as_text(value) if isinstance(value, dict | list | bool) else str(value)


def _side(value: Any) -> list[Plain]:
    """Returns a side of a preference as messages."""
    if isinstance(value, dict) and isinstance(value.get("messages"), list):
        return _turns(value["messages"])
    return [] if value == [] else _answer_turns(value)


def _decoded(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


def _judgement(name: str, value: Any) -> Any:
    """Returns a value in the type of its name, if it can be converted; validation refuses the others."""
    text = str(value).strip().lower()
    if name in BOOLEANS:
        return True if text in _YES else False if text in _NO else value
    if name in NUMBERS and isinstance(value, str):
        try:
            return float(text)
        except ValueError:
            return value
    if name == "correction" and isinstance(value, dict | list):
        answers = [turn for turn in _messages(value) or () if _is_answer(turn)]
        return _taught(*_answer(answers[-1])) if answers else value
    return str(value) if name in STRINGS else value
