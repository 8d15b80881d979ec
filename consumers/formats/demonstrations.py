"""Rows of files that are no events, but show how to answer: transcripts, questions with answers, preferences.

A row that names no model and no judgement is a demonstration: its answer is stored as an interaction of the model
`demonstration`, with itself as an expert's correction, so that it is learned from. One that names a model is a log and
teaches only what is said of it. Such rows are understood in files alone: on a topic, a message without a `response` is
an app's mistake, and nobody vouches for it. docs/formats.md has a table of which column becomes which
field.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from retuned.consumers.common import reasoning
from retuned.consumers.common.tool_calls import are_calls
from retuned.consumers.formats.calls import ALONE
from retuned.consumers.formats.events import BOOLEANS, NUMBERS, STRINGS, BadEvent
from retuned.consumers.formats.messages import (
    Plain,
    content_hash,
    instant,
    joined_text,
    object_of,
    reasoning_of,
    without_nothing,
)

DEMONSTRATION = "demonstration"
UNNAMED_MODEL = "unknown"

TRANSCRIPTS = ("messages", "conversations", "conversation")
QUESTIONS = ("question", "prompt", "instruction", "query", "input")
ANSWERS = ("answer", "response", "output", "completion")
CLASSES = ("label", "category")
"""What a text belongs to: the answer, in a table that has no other."""
TIMES = ("timestamp", "created_at", "created", "time", "date")
JUDGEMENTS = (*sorted(BOOLEANS), *sorted(NUMBERS), *sorted(STRINGS))
FIELDS = (
    "latency_seconds", "time_to_first_token_seconds", "input_tokens", "output_tokens",
    "cost", "finish_reason",
)  # fmt: skip
SOURCES = ("user", "expert", "judge", "app")

_ROLES = {
    "human": "user", "user": "user", "prompter": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant",
    "model": "assistant", "assistant": "assistant", "function": "tool", "observation": "tool",
}  # fmt: skip
_YES, _NO = ("true", "yes", "1", "1.0"), ("false", "no", "0", "0.0")


class NoWorkload(BadEvent):
    """A row that names no workload, where none was named for the file."""

    def __init__(self) -> None:
        super().__init__("not_an_event", "names no workload; name one for the file with --workload")


def column(name: str) -> str:
    """A column's name as it is compared: in lower case, with _ for spaces."""
    return name.strip().lower().replace(" ", "_")


def renamed(columns: Sequence[str]) -> list[str]:
    """Columns as `column` names them; where texts stand beside their class, these are `question` and `answer`.

    Args:
        columns: all of a table, or of a row those too that are empty. One with a column of answers is as it is.
    """
    names = [column(name) for name in columns]
    known = {*names}
    label = next((name for name in CLASSES if name in known), None)
    if label is None or known & {*ANSWERS, *TRANSCRIPTS, "chosen", "rejected"} or not known & {*QUESTIONS, "text"}:
        return names
    meant = {label: "answer"} if known & {*QUESTIONS} else {label: "answer", "text": "question"}
    return [meant.get(name, name) for name in names]


def understood(columns: set[str]) -> bool:
    """Whether rows with these columns (as `column` makes them) can be demonstrations, preferences or transcripts."""
    return bool(
        columns & {"messages", "conversations"}
        or columns >= {"chosen", "rejected"}
        or (columns & {*QUESTIONS, "conversation"} and columns & set(ANSWERS))
    )


def events(row: Plain, workload: str | None, timestamp: str) -> list[Plain]:
    """The interaction of a row, and the feedback on it, as the fields of our events.

    Args:
        workload, timestamp: for a row that names none.

    Raises:
        BadEvent: nothing in it is a question with an answer.
        NoWorkload: neither the row nor the caller names one.
    """
    fields = {column(name): value for name, value in row.items() if value is not None and value != ""}
    workload = fields.pop("workload", None) or workload
    own_time = next((fields.pop(name) for name in TIMES if name in fields), None)
    chosen = fields.pop("chosen", None) if "rejected" in fields else None
    messages, answer, calls = _exchange(fields)
    if workload is None:
        raise NoWorkload
    judged = {name: _judgement(name, fields.pop(name)) for name in JUDGEMENTS if name in fields}
    if str(fields.get("label")).lower() in ("true", "false"):
        judged.setdefault("helpful", _judgement("helpful", fields.pop("label")))
    source = fields.pop("source") if fields.get("source") in SOURCES else "user"
    model = named = fields.pop("model", None)
    if chosen is not None:
        judged, source = {**judged, "correction": _text(chosen)}, "expert"
    if model is None and not judged:
        taught = {"content": answer, "tool_calls": calls} if calls else answer
        model, judged, source = DEMONSTRATION, {"correction": taught}, "expert"
    context = fields.pop("context", None)
    interaction: Plain = {
        "workload": workload,
        "model": model or UNNAMED_MODEL,
        "messages": messages,
        "response": answer,
        "context": [context] if isinstance(context, str) else context,
        **{name: str(fields.pop(name)) for name in ("conversation_id", "user_id") if name in fields},
        **{name: fields.pop(name, None) for name in FIELDS},
    }
    # The ids of logs are what feedback in other files refers to. Others are numbers of rows as often as not, which
    # two files have in common.
    id = str(fields.pop("id")) if named and "id" in fields else None
    attributes = object_of(fields.pop("attributes", None)) | object_of(fields.pop("metadata", None)) | fields
    attributes |= {"tool_calls": calls} if calls else {}
    if isinstance(attributes.get("tools"), str):  # as in Parquet files, whose columns have one type each
        attributes["tools"] = _decoded(attributes["tools"])
    interaction = without_nothing({**interaction, "attributes": attributes or None})
    when = time(own_time)
    id = id or content_hash([interaction, when])
    made = [{"id": id, "timestamp": when or timestamp, **interaction}]
    for name, value in judged.items():
        said = {"interaction_id": id, "name": name, "value": value, "source": source}
        made.append({"id": content_hash([said, when]), "timestamp": when or timestamp, **said})
    return made


def time(value: Any) -> Any:
    """A time as ISO 8601: what `instant` takes, a date, a date and a time with a space between. What else stays."""
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).isoformat()
    value = instant(value)
    if isinstance(value, str):
        try:
            return time(datetime.fromisoformat(value.strip()))
        except ValueError:
            pass
    return value


def _exchange(fields: Plain) -> tuple[list[Plain], str, list[Plain]]:
    """The messages that were asked, the answer to them and its calls of tools, which are taken out of the fields."""
    name = next((name for name in TRANSCRIPTS if isinstance(fields.get(name), list)), None)
    messages = _question(fields) if name is None else _turns(fields.pop(name))
    if isinstance(fields.get("system"), str):
        messages = [{"role": "system", "content": fields.pop("system")}, *messages]
    calls: list[Plain] = []
    told = "rejected" if "rejected" in fields else next((name for name in ANSWERS if name in fields), None)
    if told is not None:
        answer = _text(fields.pop(told))
    else:
        places = [
            place
            for place, turn in enumerate(messages)
            if turn["role"] == "assistant" and (turn.get("content") or are_calls(turn.get("tool_calls")))
        ]
        if not places:
            raise BadEvent(
                "not_an_event", "no answer: expected a last message of the assistant, or a column of answers"
            )
        last, messages = messages[places[-1]], messages[: places[-1]]
        answer = joined_text(last.get("content")) or ""
        calls = last["tool_calls"] if are_calls(last.get("tool_calls")) else []
        if (answer.strip() or calls) and (thought := reasoning_of(last)):
            answer = reasoning.written(thought, answer)
    if not any(turn["role"] == "user" for turn in messages):
        raise BadEvent("not_an_event", "no question: expected a message of the user before the answer")
    if not answer.strip() and not calls:
        raise BadEvent("not_an_event", "no answer: expected a text")
    return messages, answer, calls


def _question(fields: Plain) -> list[Plain]:
    name = next((name for name in QUESTIONS if name in fields), None)
    if name is None and isinstance(fields.get("response"), dict):
        raise BadEvent("not_an_event", ALONE)
    if name is None:
        known = f"one of {', '.join(QUESTIONS)}, and one of {', '.join(ANSWERS)}"
        raise BadEvent("not_an_event", f"no event, and no question with an answer: expected {known}")
    asked = fields.pop(name)
    if isinstance(asked, list):
        return _turns(asked)
    if name == "instruction" and isinstance(fields.get("input"), str):
        asked = f"{asked}\n\n{fields.pop('input')}"
    if not isinstance(asked, str) or not asked.strip():
        raise BadEvent("not_an_event", f"{name}: expected a text")
    return [{"role": "user", "content": asked}]


def _turns(value: list[Any]) -> list[Plain]:
    """Messages with `role` and `content`, or `from` and `value` as in ShareGPT's files."""
    turns = []
    for item in value:
        role = item.get("role", item.get("from")) if isinstance(item, dict) else None
        if not isinstance(role, str):
            raise BadEvent("not_an_event", "messages: expected objects with role and content, or with from and value")
        more = {key: value for key, value in item.items() if key not in ("role", "from", "content", "value")}
        content = item.get("content", item.get("value"))
        turns.append(without_nothing({"role": _ROLES.get(role.lower(), role), "content": content, **more}))
    return turns


def _text(value: Any) -> str:
    """A text, or the last text among messages."""
    if isinstance(value, list):
        texts = [text for turn in _turns(value) if (text := joined_text(turn.get("content")))]
        return texts[-1] if texts else ""
    return str(value)


def _decoded(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


def _judgement(name: str, value: Any) -> Any:
    """A value as its name wants it, where a table holds it as text or number. What is neither stays, to be refused."""
    text = str(value).strip().lower()
    if name in BOOLEANS:
        return True if text in _YES else False if text in _NO else value
    if name in NUMBERS and isinstance(value, str):
        try:
            return float(text)
        except ValueError:
            return value
    if name == "correction" and isinstance(value, dict | list):
        return value
    return str(value) if name in STRINGS else value
