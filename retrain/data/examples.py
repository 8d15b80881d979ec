"""What people taught: corrections and accepted answers, each joined with the interaction that it is about."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date, datetime
from functools import lru_cache
from typing import Any, Literal

from retuned.consumers.common import reasoning, tool_calls
from retuned.consumers.common.call_forms import in_one_form
from retuned.consumers.formats.messages import joined_text
from retuned.consumers.warehouse.connection import Warehouse
from retuned.retrain.data.similarity import Identity, identity, normalise, text_hash
from retuned.retrain.scoring.facts import facts
from retuned.retrain.scoring.metric import Same
from retuned.retrain.settings import DatasetSettings
from retuned.retrain.versions import QUERIES

_CUT = ("length", "max_tokens", "incomplete")  # as OpenAI's chat and responses, Anthropic and OpenTelemetry say it
_ISO_DATE = re.compile(r"\b\d{4}-\d{2}-\d{2}\b")

# Asked of one text again and again.
facts_of = lru_cache(50_000)(facts)

_REASONING = ("reasoning_content", "reasoning")  # as the messages of chat APIs have it

_RANKS = {"accepted": 0, "user": 1, "app": 1, "judge": 1, "expert": 2, "demonstration": 2}


@dataclass(frozen=True)
class Example:
    """One thing to learn: after these messages, this completion.

    Attributes:
        row_id: hash of the question's identity and the completion.
        prompt_hash: of the question's identity: the conversation, system prompt, context and tools.
        prompt: the conversation without its system messages, normalised.
        question: its last user message, normalised.
        messages: the conversation, system messages included: JSON, list of objects with role and content, a string.
        completion: the answer, with its calls of tools (see `tool_calls.written`) and without its reasoning.
        kind: correction; accepted: the answer was called good; unrated: nobody said anything about it.
        source: user, expert, judge or app, as in the feedback; demonstration for what was imported as one; traffic for
            an unrated answer.
        rejected: the answer that a correction replaces; None for an accepted answer and a demonstration.
        context: the passages that the answer was to rest on: JSON, list of strings, or None.
        timestamp: when the feedback was given.
        received_at: when feedback and interaction were both there.
        user_id: pseudonym of who gave the feedback, None when nobody is named.
        topic: name of the topic that the question belongs to; None before it is known.
        origin: version of the dataset in whose holdout a regression row first stood; None elsewhere.
        scope: hash of system prompt, context and tools, the rest of the question's identity; empty without any.
        tools: the tools that the model was offered: JSON, list of schemas (see `tool_calls.schemas`); None without any.
        reasoning: what the model thought before it gave this completion; None where that is not known.
    """

    row_id: str
    prompt_hash: str
    prompt: str
    question: str
    messages: str
    completion: str
    kind: Literal["correction", "accepted", "unrated"]
    source: str
    rejected: str | None
    context: str | None
    interaction_id: str
    feedback_id: str
    timestamp: datetime
    received_at: datetime
    user_id: str | None = None
    topic: str | None = None
    origin: str | None = None
    scope: str = ""
    tools: str | None = None
    reasoning: str | None = None

    @property
    def identity(self) -> str:
        """Of its question; `prompt_hash` is its hash."""
        return str(Identity(self.prompt, self.scope))

    @property
    def rank(self) -> int:
        """How far it is trusted: an expert's correction over any other, a correction over an accepted answer."""
        return _RANKS["accepted"] if self.kind == "accepted" else _RANKS.get(self.source, 1)

    @property
    def taught_by(self) -> str:
        """The source that it counts for: that of the correction, or accepted."""
        return self.source if self.kind == "correction" else "accepted"

    def as_row(self) -> dict[str, Any]:
        """Its columns in a dataset's files."""
        return asdict(self)


@dataclass(frozen=True)
class Statements:
    """Corrections and accepted answers of a workload, newest first, before any is set aside.

    Attributes:
        corrections: every correction, also several of one interaction.
        accepted: answers that were called good and not bad, one of each interaction.
        cut: the interactions whose answer ended at its limit of tokens.
    """

    corrections: list[Example]
    accepted: list[Example]
    cut: frozenset[str]


def read_statements(
    warehouse: Warehouse, workload: str, settings: DatasetSettings, distrusted: Iterable[str] = ()
) -> Statements:
    """The newest dataset.maximum_rows corrections and as many accepted answers, written as the configuration asks.

    Args:
        distrusted: accounts whose judgement of an answer does not count.
    """
    rewrite = Rewriter(settings)
    cut: set[str] = set()

    def read(query: Literal["corrections", "accepted"], **more: Any) -> list[Example]:
        rows = warehouse.rows(QUERIES[query], {"workload": workload, "limit": settings.maximum_rows, **more})
        cut.update(row["interaction_id"] for row in rows if row.pop("finish_reason") in _CUT)
        kind: Literal["correction", "accepted"] = "correction" if query == "corrections" else "accepted"
        if kind == "correction":
            for row in rows:
                row["completion"] = tool_calls.answer_text(json.loads(row["completion"]))
        return [made for row in rows if (made := example(kind=kind, rewrite=rewrite, **row)) is not None]

    accepted = read("accepted", distrusted=sorted(distrusted)) if settings.accepted_answers else []
    return Statements(read("corrections"), accepted, frozenset(cut))


def one_of_each_interaction(statements: Statements, usable: Callable[[Example], bool], same: Same) -> list[Example]:
    """The usable examples, one correction of each interaction: the most trusted, then the newest.

    An accepted answer is left out when the correction of its interaction contradicts it.
    """
    corrected: dict[str, Example] = {}
    for row in filter(usable, statements.corrections):
        other = corrected.get(row.interaction_id)
        if other is None or row.rank > other.rank:
            corrected[row.interaction_id] = row
    return list(corrected.values()) + [
        row
        for row in filter(usable, statements.accepted)
        if (other := corrected.get(row.interaction_id)) is None or same(row.completion, other.completion)
    ]


def thumbs(
    warehouse: Warehouse, workload: str, settings: DatasetSettings, distrusted: Iterable[str] = ()
) -> Iterator[tuple[Example, bool]]:
    """The answers that people last called helpful or not, newest first, and which of the two."""
    rewrite = Rewriter(settings)
    parameters = {"workload": workload, "limit": settings.maximum_rows, "distrusted": sorted(distrusted)}
    for row in warehouse.rows(QUERIES["thumbs"], parameters):
        helpful = row.pop("helpful")
        made = example(kind="accepted", rewrite=rewrite, **row)
        if made is not None:
            yield made, helpful


def unrated(warehouse: Warehouse, settings: DatasetSettings) -> list[Example]:
    """The sample of recent traffic in an extract (see `extract.sql`), in the order in which it was drawn."""
    made = (
        example(
            kind="unrated",
            source="traffic",
            completion=row["response"],
            feedback_id="",
            rewrite=Rewriter(settings),
            **row,
        )
        for row in warehouse.rows("SELECT * FROM traffic_sample")
    )
    return [row for row in made if row is not None]


def sources(warehouse: Warehouse, workload: str, settings: DatasetSettings) -> list[str]:
    """The interactions that a dataset would be made from: what retention must leave in the warehouse."""
    limits = {"workload": workload, "limit": settings.maximum_rows}
    asked: dict[str, dict[str, Any]] = {"corrections": limits, "thumbs": limits | {"distrusted": []}}
    if settings.accepted_answers:
        asked["accepted"] = limits | {"distrusted": []}
    return [
        row["interaction_id"]
        for query, parameters in asked.items()
        for row in warehouse.rows(f"SELECT interaction_id FROM ({QUERIES[query]})", parameters)
    ]


class Rewriter:
    """Writes completions as the configuration asks: terms and names replaced, ISO dates in the configured form."""

    def __init__(self, settings: DatasetSettings) -> None:
        self._replace = [(re.compile(pattern), text) for pattern, text in settings.replace.items()]
        self._date_format = settings.date_format

    def __call__(self, text: str) -> str:
        """The text, rewritten."""
        for pattern, replacement in self._replace:
            text = pattern.sub(replacement, text)
        return _ISO_DATE.sub(self._date, text) if self._date_format else text

    def _date(self, match: re.Match[str]) -> str:
        assert self._date_format is not None
        try:
            return date.fromisoformat(match[0]).strftime(self._date_format)
        except ValueError:  # 2026-13-40 is a number of something
            return match[0]


def example(
    messages: str,
    completion: str,
    kind: Literal["correction", "accepted", "unrated"],
    source: str,
    response: str,
    context: str | None,
    interaction_id: str,
    feedback_id: str,
    timestamp: datetime,
    received_at: datetime,
    user_id: str | None = None,
    tools: str | None = None,
    calls: str | None = None,
    thought: str | None = None,
    rewrite: Callable[[str], str] = str,
) -> Example | None:
    """An example from its parts, or None when there is no question, nothing to learn, or more than text to read.

    `messages`, `context`, `tools` and `calls` are JSON.

    Args:
        completion: of a correction, what was written, where its calls may have any form that models and the chat API
            have; of an accepted answer, the response.
        calls: of tools, by the response.
        thought: the reasoning before the response, where the model's server has it apart.
    """
    within, response = logged_answer(response, calls)
    offered = json.loads(tools) if tools else None
    schemas = tool_calls.schemas(offered)
    if kind == "correction":
        thought, completion = reasoning.split(completion)
        completion = in_one_form(completion, schemas)
    else:
        thought, completion = within or (thought or "").strip() or None, response
    conversation = []
    for turn in json.loads(messages):
        text = joined_text(turn.get("content") or "")
        if text is None:
            return None  # images and the like: a model of text cannot learn from them
        if turn["role"] == "assistant":
            _, text = reasoning.split(text)  # models are not shown what they thought before
            turn = {key: value for key, value in turn.items() if key not in _REASONING}
        conversation.append({**turn, "content": text})
    asked = [turn["content"] for turn in conversation if turn["role"] == "user"]
    completion = _rewritten(completion, rewrite).strip()
    if not asked or not asked[-1].strip() or not completion:
        return None
    of = _identity(conversation, context, offered)
    return Example(
        row_id=text_hash(json.dumps([str(of), completion])),
        prompt_hash=text_hash(str(of)),
        prompt=of.text,
        scope=of.scope,
        question=normalise(asked[-1]),
        messages=json.dumps(conversation, ensure_ascii=False),
        completion=completion,
        kind=kind,
        source=source,
        rejected=response if kind == "correction" and source != "demonstration" else None,
        context=context,
        interaction_id=interaction_id,
        feedback_id=feedback_id,
        timestamp=timestamp,
        received_at=received_at,
        user_id=user_id,
        tools=json.dumps(schemas, ensure_ascii=False) if schemas else None,
        reasoning=thought,
    )


def logged_answer(response: str, calls: str | None) -> tuple[str | None, str]:
    """The reasoning of a logged response, None without any, and its text, with its calls of tools: JSON."""
    thought, words = reasoning.split(response)
    called = json.loads(calls) if calls else []
    return thought, tool_calls.written(words, called if tool_calls.are_calls(called) else [])


def restored(values: Mapping[str, Any]) -> Example:
    """An example from its columns in a dataset's files. Up to version 0.1.0 these had an identity of less."""
    row = Example(**values)
    if "scope" in values:
        return row
    of = _identity(json.loads(row.messages), row.context, None)
    return replace(row, prompt_hash=text_hash(str(of)), prompt=of.text, scope=of.scope)


def _rewritten(completion: str, rewrite: Callable[[str], str]) -> str:
    """With other words; the arguments of calls are for machines and stay."""
    words, opening, calls = completion.partition(tool_calls.OPENING)
    return rewrite(words) + opening + calls


def _identity(conversation: Sequence[Mapping[str, Any]], context: str | None, tools: Any) -> Identity:
    return identity(
        " ".join(turn["content"] for turn in conversation if turn["role"] != "system"),
        " ".join(turn["content"] for turn in conversation if turn["role"] == "system"),
        [str(passage) for passage in json.loads(context)] if context else (),
        tools,
    )
