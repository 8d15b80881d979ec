"""Messages as no producer should send them, and what has to hold however they are: for the tests and for `make fuzz`.

A message is one of the formats that topics may have, changed by some steps: values, keys, depth, sizes, bytes.
"""

import base64
import json
import random
import re
import struct
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import strategies as st

from fixtures.kafka.ingestion import Rig, settings_for
from fixtures.kafka.protobuf import field, varint
from retuned.consumers.formats import otlp
from retuned.consumers.kafka.memory import MemoryLog
from retuned.consumers.settings import IngestSettings
from retuned.consumers.warehouse.connection import Warehouse
from retuned.consumers.warehouse.opening import open_warehouse

CORPUS = Path(__file__).parents[1] / "data" / "fuzz"
CLIENTS = Path(__file__).parents[1] / "data" / "clients"

# What must never be stored, in texts that people write and where apps name their user.
PEOPLE = ("vera.sekret@corp-mail.com", "4111 1111 1111 1111", "ghp_16C7e42F292c6912E7710c838347Ae178B4a")
USER = "sekret-user-7081"
TEXT = f"I am Vera. Write to {PEOPLE[0]}, or charge {PEOPLE[1]}. My token is {PEOPLE[2]}."
ID = "f0000000"  # stands for an id of its own in each message; as hexadecimal digits, for the ids of spans

AT = "2026-11-24T09:30:00Z"
NANOS = "1795512600000000000"
RAW = {"@1e400@": "1e400", "@-1e400@": "-1e400", "@digits@": "9" * 400}  # numbers that Python does not write

HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, -1, -0.0, 0.5, 1e308, -1e308, 5e-324, float("nan"), float("inf"), "@1e400@", "@-1e400@",
    "@digits@", 2**31, 2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**18, 1_795_512_600, 1_795_512_600_000,
    "", " ", "\x00", "a\x00b", "\ud800", "²", "١٢٣", "x²", "9" * 5_000, "-", "1e5", "NaN", "null", "true", "\ufeff",
    "a/b\nc\td", "../../etc/passwd", "import:x", "support.refunds@base", "\u2028\u2029", "\u202eevil", "e\u0301" * 50,
    "👩‍👩‍👧‍👦" * 20, "\U0010ffff", "<EMAIL_1>", "<CARD_1> <CARD_2>", "{}", '{"a": 1}', "[1, 2", "\\u0041\\ud800",
    "%s %n {0}",
    "'; DROP TABLE interactions; --", "$1", "*", "x" * 20_000, "a b " * 5_000, "@" * 3_000, "1 " * 3_000, "-----BEGIN ",
    "1970-01-01T00:00:00Z", "9999-12-31T23:59:59.999999999Z", "0000-00-00T00:00:00Z", "2026-02-30T00:00:00Z",
    "2026-11-24T09:30:00+25:00", "2026-11-24 09:30", "2026-11-24T09:30:00.123456789+14:00", "24.11.2026",
    [], {}, [[]], [None], [{}], {"": ""}, {"a": {"b": [1, {"c": None}]}}, {"role": 1}, [{"role": "user"}],
    {"\x00": "\ud800"}, ["\ud83d", "\ude00"], {"text": 5}, {"type": "text", "text": None}, "gen_ai.prompt.²",
)  # fmt: skip
KEYS = (
    "id", "timestamp", "workload", "model", "messages", "response", "context", "attributes", "value", "name", "source",
    "conversation_id", "latency_seconds", "input_tokens", "cost", "finish_reason", "interaction_id", "specversion",
    "data", "data_base64", "request", "choices", "resourceSpans", "resourceLogs", "gen_ai.prompt.0.content",
    "gen_ai.prompt.².content",
    "gen_ai.completion.99999999999999999999.content", "gen_ai.input.messages", "", "\x00", "a.b", "²", "k" * 3_000,
)  # fmt: skip
NAMES = {"id", "interaction_id", "conversation_id", "workload", "model"}  # which are stored as they are
DEPTHS = (1, 2, 62, 63, 64, 65, 200, 900, 5_000)


def _typed(value: Any) -> dict[str, Any]:
    if isinstance(value, list):
        return {"arrayValue": {"values": [_typed(item) for item in value]}}
    if isinstance(value, dict):
        return {"kvlistValue": {"values": _keys(value)}}
    return {"intValue": str(value)} if isinstance(value, int) else {"stringValue": value}


def _keys(attributes: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _typed(value)} for key, value in attributes.items()]


def _span(attributes: dict[str, Any]) -> dict[str, Any]:
    span = {"traceId": "t", "spanId": "s", "name": "chat", "startTimeUnixNano": NANOS, "endTimeUnixNano": NANOS}
    group = {"scopeSpans": [{"spans": [span | {"attributes": _keys(attributes)}]}]}
    return {"resourceSpans": [{"resource": {"attributes": _keys({"service.name": "support"})}, **group}]}


_ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": TEXT}]
_INTERACTION = {
    "id": ID, "timestamp": AT, "workload": "support", "model": "support@base", "messages": _ASKED, "response": TEXT,
    "context": [TEXT, "A passage."], "conversation_id": "c", "user_id": USER, "latency_seconds": 0.5, "input_tokens": 9,
    "output_tokens": 2, "cost": 0.01, "finish_reason": "stop", "attributes": {"note": TEXT, "deep": {"a": [1, TEXT]}},
}  # fmt: skip
_FEEDBACK = {
    "id": ID, "timestamp": AT, "interaction_id": "i", "name": "correction", "value": TEXT, "source": "user",
    "user_id": USER,
}  # fmt: skip
_CHAT = {
    "timestamp": 1_795_512_600, "workload_id": "support",
    "request": {"model": "base", "messages": _ASKED, "user": USER},
    "response": {
        "id": ID, "created": 1_795_512_600, "model": "support@base",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 30, "completion_tokens": 2},
    },
}  # fmt: skip
_PARTS = [{"role": "user", "parts": [{"type": "text", "content": TEXT}]}]
_ANSWER = [{"role": "assistant", "parts": [{"type": "text", "content": TEXT}], "finish_reason": "stop"}]
_GEN_AI = {"gen_ai.operation.name": "chat", "gen_ai.response.id": ID, "gen_ai.request.model": "base", "user.id": USER}
_NUMBERED = {
    "gen_ai.prompt.0.role": "user", "gen_ai.prompt.0.content": TEXT, "gen_ai.completion.0.role": "assistant",
    "gen_ai.completion.0.content": TEXT,
}  # fmt: skip
_JUDGED = {
    "gen_ai.evaluation.name": "relevance", "gen_ai.evaluation.score.value": "0.9",
    "gen_ai.evaluation.explanation": TEXT, "gen_ai.response.id": ID,
}  # fmt: skip
_EVENT = {"specversion": "1.0", "id": ID, "source": "/app", "type": "answer", "time": AT}

# Of products that tests/data/clients has no recording of.
_TENSORZERO = {
    "id": ID, "function_name": "support", "variant_name": "base", "episode_id": "e", "timestamp": AT,
    "input": {"system": TEXT, "messages": [{"role": "user", "content": [{"type": "text", "text": TEXT}]}]},
    "output": json.dumps([{"type": "text", "text": TEXT}]), "tags": {"user_id": USER}, "processing_time_ms": 500,
}  # fmt: skip
_TENSORZERO_SAID = {"id": ID, "target_id": "i", "target_type": "inference", "value": TEXT, "timestamp": AT}
_TENSORZERO_SHOWN = {
    "id": ID,
    "inference_id": "i",
    "value": json.dumps([{"type": "text", "text": TEXT}]),
    "timestamp": AT,
}
_DATAPOINT = {**_TENSORZERO, "dataset_name": "good", "is_deleted": False, "updated_at": AT}
del _DATAPOINT["variant_name"]
_HELICONE = {
    "request_id": ID, "request_created_at": AT, "response_created_at": AT, "response_status": 200, "delay_ms": 500,
    "request_user_id": USER, "request_properties": {"workload": "support", "Helicone-User-Id": USER},
    "request_body": json.dumps(_CHAT["request"]), "response_body": _CHAT["response"],
}  # fmt: skip
_LANGFUSE = {
    "id": ID, "timestamp": AT, "name": "support", "userId": USER, "sessionId": "c", "metadata": {"workload": "support"},
    "observations": [{
        "id": ID, "type": "GENERATION", "name": "support", "startTime": AT, "endTime": AT, "model": "base",
        "input": _ASKED, "output": {"role": "assistant", "content": TEXT}, "usageDetails": {"input": 9, "output": 2},
    }],
    "scores": [{
        "id": ID, "traceId": "t", "name": "c", "value": None, "dataType": "CATEGORICAL", "comment": TEXT,
        "timestamp": AT,
    }],
}  # fmt: skip


class Protobuf(NamedTuple):
    """OTLP that is sent as protobuf, as its JSON has it."""

    value: Any


_SAID = ("You work for a shop.", "Until when can I return a tent?", "Within 30 days.", "Within ", "30 days.")
# Ids, or the first eight characters of one.
_IDS = re.compile(
    r"(?:chatcmpl|resp|msg)[-_]d(?=[0-9])|\b[0-9a-f]{8}(?=-[0-9a-f]{4}-)|(?<=tr-)[0-9a-f]{8}"
    r'|(?<="spanId": ")[0-9a-f]{8}'
)


def _recorded() -> Iterator[tuple[str, Any]]:
    """What clients sent, with this module's text, user and id in it."""
    for file in sorted(CLIENTS.glob("*.json")):
        text = _IDS.sub(ID, file.read_text(encoding="utf-8")).replace("user-17", USER)
        for said in _SAID:
            text = text.replace(said, TEXT)
        value = json.loads(text)
        if file.name.startswith("cloudevents"):
            if "binary" in file.name:  # its fields are headers; `Plan` has some
                continue
            value = json.loads(value["value"])
        elif "request" in value:
            value |= {"timestamp": AT, "workload": "support"}
        yield "interactions", value
        if file.with_suffix(".bin").exists():
            yield "interactions", Protobuf(value)


_MESSAGE = [
    {"type": "message_start", "message": {"id": ID, "type": "message", "role": "assistant", "model": "support@base"}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": TEXT}},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}},
]
SEEDS: tuple[tuple[str, Any], ...] = (
    ("interactions", _INTERACTION),
    ("feedback", _FEEDBACK),
    ("feedback", _FEEDBACK | {"name": "helpful", "value": True}),
    ("feedback", _FEEDBACK | {"name": "time_saved_seconds", "value": 90}),
    ("interactions", _CHAT),
    ("interactions", _CHAT | {"response": _MESSAGE}),
    ("interactions", _span(_GEN_AI | {"gen_ai.input.messages": _PARTS, "gen_ai.output.messages": _ANSWER})),
    ("interactions", _span(_GEN_AI | {"gen_ai.input.messages": json.dumps(_PARTS), "gen_ai.output.messages": "[]"})),
    ("interactions", _span(_GEN_AI | _NUMBERED)),
    ("interactions", {"name": "gen_ai.evaluation.result", "timeUnixNano": NANOS, "attributes": _keys(_JUDGED)}),
    ("interactions", _EVENT | {"data": _INTERACTION}),
    ("feedback", _EVENT | {"data": _FEEDBACK}),
    ("interactions", _EVENT | {"data_base64": base64.b64encode(json.dumps(_INTERACTION).encode()).decode()}),
    ("interactions", {"schema": {"type": "struct"}, "payload": _INTERACTION}),
    ("interactions", {"schema": None, "payload": json.dumps(_CHAT)}),
    ("interactions", json.dumps(_INTERACTION)),
    ("interactions", [_INTERACTION, _CHAT]),
    ("interactions", _TENSORZERO),
    ("interactions", _DATAPOINT),
    ("feedback", _TENSORZERO_SAID),
    ("feedback", _TENSORZERO_SHOWN),
    ("interactions", _HELICONE),
    ("interactions", _LANGFUSE),
    *_recorded(),
)


class Message(NamedTuple):
    """What is sent: the kind of its topic, its bytes, its headers."""

    kind: str
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()

    def to_json(self) -> str:
        """For the corpus."""
        headers = [[name, base64.b64encode(value).decode()] for name, value in self.headers]
        value = None if self.value is None else base64.b64encode(self.value).decode()
        return json.dumps({"kind": self.kind, "value": value, "headers": headers})

    @classmethod
    def of_json(cls, text: str) -> "Message":
        found = json.loads(text)
        value = None if found["value"] is None else base64.b64decode(found["value"])
        return cls(found["kind"], value, tuple((name, base64.b64decode(one)) for name, one in found["headers"]))


# Steps: each takes the message's value and two numbers that say where and with what.


def _nodes(value: Any) -> list[tuple[Any, Any]]:
    """Every place in a value, by what holds it and its key or index; not the name of an attribute that is a user."""
    found, level = [], [value]
    while level:
        one = level.pop()
        for key in one if isinstance(one, dict) else range(len(one)):
            if key != "key" or one[key] != "user.id":
                found.append((one, key))
            if isinstance(one[key], dict | list):
                level.append(one[key])
    return found


def _held(value: Any) -> list[Any]:
    return [holder[key] for holder, key in _nodes(value)]


def _chosen(value: Any, where: int) -> tuple[Any, Any]:
    nodes = _nodes(value)
    return nodes[where % len(nodes)] if nodes else ([value], 0)


def _replace(value: Any, where: int, what: int) -> Any:
    holder, key = _chosen(value, where)
    holder[key] = deepcopy(HOSTILE[what % len(HOSTILE)])
    return value


def _surround(value: Any, where: int, what: int) -> Any:
    holder, key = _chosen(value, where)
    around = HOSTILE[what % len(HOSTILE)]
    if isinstance(holder[key], str) and isinstance(around, str) and holder[key] != USER:
        holder[key] = f"{around}. {holder[key]} {around}"
    return value


def _remove(value: Any, where: int, _: int) -> Any:
    holder, key = _chosen(value, where)
    del holder[key]
    return value


def _rename(value: Any, where: int, what: int) -> Any:
    """Not of a user: nobody could tell then that it is one. Nor is what people write made a name or an id."""
    holder, key = _chosen(value, where)
    if isinstance(holder, dict) and not any(held == USER for held in _held(holder)) and not _has_user(holder[key]):
        name = KEYS[what % len(KEYS)]
        if name not in NAMES or not isinstance(holder[key], str) or PEOPLE[0] not in holder[key]:
            holder[name] = holder.pop(key)
    return value


def _has_user(value: Any) -> bool:
    """Whether it is an object that names a user, whose own name may say so: in `metadata`, `user_id` is looked for."""
    return isinstance(value, dict) and any(held == USER for held in value.values())


def _add(value: Any, where: int, what: int) -> Any:
    holder, _ = _chosen(value, where)
    if len(holder) == 1:  # where something was put deeper: of two values of a user, text that is no JSON keeps one
        return value
    if isinstance(holder, dict):
        holder[KEYS[what % len(KEYS)]] = deepcopy(HOSTILE[where % len(HOSTILE)])
    else:
        holder.append(deepcopy(HOSTILE[what % len(HOSTILE)]))
    return value


def _repeat(value: Any, where: int, what: int) -> Any:
    holder, key = _chosen(value, where)
    if isinstance(holder[key], list) and USER not in _held(holder[key]):
        holder[key] = holder[key] * (what % 30)
    return value


def _deepen(value: Any, where: int, what: int) -> Any:
    holder, key = _chosen(value, where)
    if _has_user(holder[key]):
        return value
    for level in range(DEPTHS[what % len(DEPTHS)]):
        holder[key] = [holder[key]] if level % 2 else {"a": holder[key]}
    return value


def _list(value: Any, _: int, what: int) -> Any:
    return [value] * (1 + what % 3)


STEPS: tuple[Callable[[Any, int, int], Any], ...] = (
    _replace, _replace, _replace, _surround, _remove, _rename, _add, _repeat, _deepen, _list,
)  # fmt: skip


# OTLP as protobuf: its encoder, and what happens to its bytes.


def _protobuf(kind: str, value: Any) -> bytes:
    """A message of OTLP, as far as `value` has fields of it; texts, and numbers that fit."""
    made = list[bytes]()
    for number, (name, type, wire, is_repeated) in otlp._FIELDS[kind].items():
        held = value.get(name) if isinstance(value, dict) else None
        for one in held if is_repeated and isinstance(held, list) else [] if held is None else [held]:
            if type in otlp._FIELDS:
                made.append(field(number, _protobuf(type, one)))
            elif type == "hex" and isinstance(one, str) and re.fullmatch("(?:[0-9a-f]{2})*", one):
                made.append(field(number, bytes.fromhex(one)))
            elif type in ("hex", "string"):
                made.append(field(number, one.encode("utf-8", "surrogatepass") if isinstance(one, str) else b""))
            elif type == "double":
                made.append(varint(number << 3 | wire) + struct.pack("<d", one if isinstance(one, float) else 0.5))
            else:
                is_whole = isinstance(one, str) and re.fullmatch("-?[0-9]{1,25}", one)
                whole = int(one) % 2**64 if is_whole or isinstance(one, int) else 1
                made.append(
                    varint(number << 3 | wire) + (struct.pack("<Q", whole) if type == "time" else varint(whole))
                )
    return b"".join(made)


def _nested(depth: int) -> bytes:
    """Logs with a body of lists in lists."""
    inner = b""
    for _ in range(depth):
        inner = field(5, field(1, inner))
    return field(1, field(2, field(2, field(5, inner))))


def as_protobuf(value: Any, how: int = 12, where: int = 0) -> bytes:
    """Mostly whole, as JSON is. What says that a value is a user stays as it is: nobody could tell it else."""
    spans = "resourceSpans" in value if isinstance(value, dict) else False
    signal = ("resourceSpans", "ResourceSpans") if spans else ("resourceLogs", "ResourceLogs")
    resources = value.get(signal[0]) if isinstance(value, dict) else value
    made = b"".join(field(1, _protobuf(signal[1], one)) for one in (resources if isinstance(resources, list) else []))
    if how > 11:
        return made
    has_user = USER.encode() in made
    names = {at for found in re.finditer(rb"[\w.]*user[\w.]*", made) for at in range(*found.span())}
    at = where * 7919 % (len(made) + 1)
    while at in names:
        at += 1
    changed: dict[int, bytes] = {
        0: made[:at],
        1: made[:at] + bytes([made[at] ^ 1 << where % 8]) + made[at + 1 :] if at < len(made) else b"",
        2: made[:at] + made[at : at + 40] * 2 + made[at + 40 :] if not has_user else made * 2,
        3: made + b"\x0a\xff\xff\xff\xff\x0f",
        4: b"\x0a" + b"\xff" * 11 + made,
        5: made + _nested(DEPTHS[where % len(DEPTHS)]),
        6: made + field(1, field(2, b"\x12\x00" * where)),
        7: b"\x00\x00\x00\x00\x07\x00" + made,
        8: made + bytes([where % 256]),
        9: made + b"\x00" * where,
        10: made[:at] + b"\x80" * 20 + made[at:],
        11: made[at:] if not has_user else made,
    }
    return changed[how]


def _as_bytes(value: Any, ascii_only: bool) -> bytes:
    text = _json(value, ascii_only)
    for mark, number in RAW.items():
        text = text.replace(f'"{mark}"', number)
    return text.encode("utf-8", "surrogatepass")


class _Written(str):
    """JSON already."""


def _json(value: Any, ascii_only: bool) -> str:
    """JSON of any depth: Python's own encoder has an end."""
    try:
        return json.dumps(value, ensure_ascii=ascii_only)
    except RecursionError:
        pass
    text: list[str] = []
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, _Written):
            text.append(one)
        elif isinstance(one, dict | list):
            inner: list[Any] = []
            for key in one if isinstance(one, dict) else range(len(one)):
                inner.append(_Written(", " if inner else ""))
                if isinstance(one, dict):
                    inner.append(_Written(f"{json.dumps(key, ensure_ascii=ascii_only)}: "))
                inner.append(one[key])
            opened, closed = "{}" if isinstance(one, dict) else "[]"
            left += [_Written(closed), *reversed(inner), _Written(opened)]
        else:
            text.append(json.dumps(one, ensure_ascii=ascii_only))
    return "".join(text)


def _broken(payload: bytes, how: int, where: int) -> bytes | None:
    at = where % (len(payload) + 1)
    broken: dict[int, bytes | None] = {
        0: payload[:at],
        1: b"\xef\xbb\xbf" + payload,
        2: payload + b"\x00\xff\xfe",
        3: b"\x00\x00\x00\x00\x07" + payload,
        4: payload + payload,
        5: b"\n" * 10 + payload + b" ",
        6: None,
        7: b"",
        8: b"[" * (where * 7) + payload,
        9: payload.replace(b'"id"', b'"id": 1, "id"', 1),
        10: payload.replace(b"I am Vera", b"I am \xc3\x28 Vera", 1),
        11: b'"' + payload.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"',
    }
    return broken.get(how, payload)


@dataclass(frozen=True)
class Plan:
    """How a message is made: a seed, steps, and what is done to its bytes."""

    seed: int
    steps: tuple[tuple[int, int, int], ...]
    ascii_only: bool
    broken: int
    where: int
    crossed: bool

    def message(self, id: str) -> Message:
        kind, seed = SEEDS[self.seed % len(SEEDS)]
        is_protobuf = isinstance(seed, Protobuf)
        value = deepcopy(seed.value if is_protobuf else seed)
        for step, where, what in self.steps:
            if isinstance(value, dict | list):
                value = STEPS[step % len(STEPS)](value, where, what)
        if is_protobuf:
            made = as_protobuf(value, self.broken, self.where).replace(bytes.fromhex(ID), bytes.fromhex(id))
        else:
            made = _as_bytes(value, self.ascii_only)
        made = made.replace(ID.encode(), id.encode())
        payload = made if is_protobuf else _broken(made, self.broken, self.where)
        headers = ()
        if self.where % 5 == 0:
            headers = (("ce_id", b"\xff"), ("ce_specversion", b"1.0"), ("ce_time", AT.encode()), ("ce_source", b""))
        topic = {"interactions": "feedback", "feedback": "interactions"}[kind] if self.crossed else kind
        return Message(topic, payload, headers)


_number = st.integers(0, 2**12)
plans = st.builds(
    Plan,
    seed=st.integers(0, len(SEEDS) - 1),
    steps=st.lists(st.tuples(st.integers(0, len(STEPS) - 1), _number, _number), max_size=5).map(tuple),
    ascii_only=st.booleans(),
    broken=st.integers(0, 40),  # mostly nothing
    where=_number,
    crossed=st.integers(0, 9).map(lambda number: number == 0),
)


def random_plan(luck: random.Random) -> Plan:
    """The same without hypothesis, many times as fast."""
    steps = [
        (luck.randrange(len(STEPS)), luck.randrange(2**12), luck.randrange(2**12)) for _ in range(luck.randrange(6))
    ]
    return Plan(
        seed=luck.randrange(len(SEEDS)),
        steps=tuple(steps),
        ascii_only=luck.random() < 0.5,
        broken=luck.randrange(40),
        where=luck.randrange(2**12),
        crossed=luck.random() < 0.1,
    )


class Pipeline:
    """Everything from a topic to the warehouse, and what has to hold of each batch of messages."""

    def __init__(self, folder: Path) -> None:
        settings = settings_for(folder)
        # Most of it is rubbish, and that is as it should be.
        ingest = IngestSettings(batch_seconds=0.001, dead_letter_share_limit=1.0, max_age_days=73_000)
        self.settings = settings.model_copy(update={"ingest": ingest})
        self.warehouse: Warehouse = open_warehouse(settings.warehouse)
        self.rig = Rig(self.settings, self.warehouse, MemoryLog())
        self.topics = {"interactions": settings.kafka.interactions_topic, "feedback": settings.kafka.feedback_topic}
        self.sent = 0

    def next_id(self) -> str:
        self.sent += 1
        return f"f{self.sent:07}"

    def check(self, messages: list[Message]) -> None:
        """Send them, and see that each one became something, and that nothing is stored that must not be.

        Raises:
            AssertionError: something does not hold. Nothing else is raised by what a message holds.
        """
        log, ingest = self.rig.log, self.rig.ingest
        assert log is not None
        before = ingest.passed_over.total() + self.rig.count("retuned_event_duplicates_total")
        where, starts = [], {}
        for message in messages:
            topic = self.topics[message.kind]
            where.append((topic, log.append(topic, message.value, headers=message.headers)))
            starts.setdefault(*where[-1])
        assert self.rig.drain() == len(messages)
        assert ingest.caught_up
        events, letters, texts = self._stored(starts)
        nothing = [place for place in where if place not in events and place not in letters]
        others = ingest.passed_over.total() + self.rig.count("retuned_event_duplicates_total") - before
        assert len(nothing) <= others, f"{nothing[:3]} are neither stored nor passed over"
        assert letters.get("internal_error") is None
        for kind, text in texts:
            for secret in (*PEOPLE, USER):
                assert secret not in text, f"{secret!r} is stored in {kind}: {text[:500]}"

    def _stored(self, starts: dict[str, int]) -> tuple[set[Any], dict[Any, str], list[tuple[str, str]]]:
        """Where rows came from, where letters did with their reasons, and every text that was stored."""
        of = " OR ".join(f"(topic = '{topic}' AND \"offset\" >= {start})" for topic, start in starts.items())
        rows: dict[str, list[dict[str, Any]]] = {}
        for table in ("interactions", "feedback", "dead_letters"):
            rows[table] = self.warehouse.rows(f"FROM {table} WHERE {of}")
        events = {(row["topic"], row["offset"]) for table in ("interactions", "feedback") for row in rows[table]}
        letters = {(row["topic"], row["offset"]): row["reason"] for row in rows["dead_letters"]}
        if foul := [row for row in rows["dead_letters"] if row["reason"] == "internal_error"]:
            letters["internal_error"] = foul[0]["detail"]
        texts = [
            (f"{table}.{name}", value)
            for table, found in rows.items()
            for row in found
            for name, value in row.items()
            if isinstance(value, str)
        ]
        return events, letters, texts

    def close(self) -> None:
        self.warehouse.close()


def corpus() -> list[Message]:
    """What was found once."""
    return [Message.of_json(line) for file in sorted(CORPUS.glob("*.jsonl")) for line in file.read_text().splitlines()]
