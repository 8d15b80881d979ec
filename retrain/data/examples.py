"""Examples: corrections and rated answers, each joined with its interaction."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date, datetime
from typing import Any, Literal

from retuned.consumers.common import reasoning, tool_calls
from retuned.consumers.common.call_forms import in_one_form
from retuned.consumers.formats.messages import is_cut
from retuned.consumers.warehouse.connection import Warehouse
from retuned.retrain.data.identity import (
    NearForm,
    last_question,
    near_form,
    normalise,
    text_hash,
    text_turns,
)
from retuned.retrain.data.question import EXACT, Rules, Wording, forms
from retuned.retrain.settings import DatasetSettings
from retuned.retrain.versions import QUERIES

_ISO_DATE = re.compile(r"\b\d{4}-\d{2}-\d{2}\b")


Kind = Literal["correction", "accepted", "declined", "unrated"]

_RANKS = {"user": 1, "app": 1, "judge": 1, "expert": 2, "demonstration": 2}


@dataclass(frozen=True)
class Example:
    """A question and the answer to learn.

    Attributes:
        row_id: hash of the question's identity and the completion.
        prompt_hash: hash of the question's identity (`question.forms`).
        prompt: the conversation without its system messages, normalised.
        question: its last user message, normalised.
        messages: the conversation with its system messages: JSON, a list of objects with role and content, a string.
        completion: the answer, with its tool calls (see `tool_calls.written`) and without its reasoning.
        kind: correction; accepted: the answer was called good; declined: it was called wrong; unrated: nobody rated it.
        source: the feedback's source (user, expert, judge or app); demonstration for an imported one; traffic for an
            unrated answer.
        rejected: the answer that a correction replaces; None for an accepted answer, a demonstration, and, in a row to
            train on, for an answer from which no model may learn.
        context: the passages on which the answer should be based: JSON, a list of strings; or None.
        timestamp: the time of the feedback.
        received_at: the time when both feedback and interaction had been received.
        user_id: the pseudonym of the user who gave the feedback; None if unknown.
        topic: the name of the question's topic; None before it is assigned.
        origin: the version of the dataset whose holdout first contained a regression row; None for other rows.
        scope: hash of system prompt, context and tools, normalised; empty without these.
        tools: the tools that the model was offered: JSON, a list of schemas (see `tool_calls.schemas`); or None.
        reasoning: the model's reasoning before this completion; None if unknown.
        conversation: the id of the interaction's conversation, if any.
        cluster: the group of related questions (see `related`); None before it is assigned.
        extras: what else the model read: JSON, see `question.forms`; or None.
    """

    row_id: str
    prompt_hash: str
    prompt: str
    question: str
    messages: str
    completion: str
    kind: Kind
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
    conversation: str | None = None
    cluster: str | None = None
    extras: str | None = None

    @property
    def near_form(self) -> str:
        """A text that is equal for questions that differ in their writing alone: a split draws them together."""
        return str(NearForm(self.prompt, self.scope))

    @property
    def rank(self) -> int:
        """The level of trust: an expert's answer above any other, a correction above an accepted answer."""
        return max(_RANKS.get(self.source, 1), 1) if self.kind == "correction" or self.is_expert else 0

    @property
    def is_expert(self) -> bool:
        """Whether an expert gave the feedback, or the example was imported as a demonstration."""
        return self.source in ("expert", "demonstration")

    @property
    def taught_by(self) -> str:
        """The source for maximum_source_shares: that of the correction, or `accepted`."""
        return self.source if self.kind == "correction" else "accepted"

    def as_row(self) -> dict[str, Any]:
        """Returns the columns in a dataset's files."""
        return asdict(self)


@dataclass(frozen=True)
class Statements:
    """The feedback on a workload's answers, newest first.

    Attributes:
        rows: corrections, accepted answers and declined answers, one per account and interaction.
        cut, bought: the interactions from whose answer no model may learn, as far as the settings do not allow it:
            those whose answer broke off, and those that the incumbent answered.
        cascaded: the interactions whose requests go to the incumbent whichever version is in service.
        helped: by interaction, the answers of the memory's entries that helped. An entry that is gone is left out.
    """

    rows: list[Example]
    cut: frozenset[str]
    bought: frozenset[str] = frozenset()
    cascaded: frozenset[str] = frozenset()
    helped: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def unlearned(self) -> frozenset[str]:
        """The interactions from whose answer no model may learn: not as an answer, and not as a rejected one."""
        return self.cut | self.bought

    @property
    def learnable(self) -> list[Example]:
        """The rows with an answer that could be learned."""
        return [row for row in self.rows if row.kind != "declined"]


@dataclass(frozen=True)
class Among:
    """Some feedback with its interactions: their ids, and the times of the first and the last of each."""

    interactions: Sequence[str]
    feedback: Sequence[str]
    first_answer: datetime
    last_answer: datetime
    first_feedback: datetime
    last_feedback: datetime


def read_statements(
    warehouse: Warehouse, workload: str, settings: DatasetSettings, among: Among | None = None
) -> Statements:
    """Returns the newest dataset.maximum_rows corrections, as many good verdicts and as many bad ones.

    They are rewritten as configured.

    Args:
        among: read this feedback only, without reading all events.
    """
    reading: dict[str, Any] = {"rewrite": Rewriter(settings), "rules": rules_of(warehouse, workload, settings)}
    barred: dict[str, set[str]] = {"cut": set(), "bought": set()}
    cascaded: set[str] = set()
    entries: dict[str, list[str]] = {}
    rows: list[Example] = []
    for query in ("corrections", "verdicts"):
        limits: dict[str, Any] = {"workload": workload, "limit": settings.maximum_rows}
        sql = QUERIES[query]
        if among is not None:
            sql, limits = f"{QUERIES['among']} SELECT * FROM ({sql})", limits | asdict(among)
        feedback = warehouse.rows(sql, limits)
        cascaded.update(row["interaction_id"] for row in feedback if row.pop("cascaded"))
        for row in feedback:
            if (why := _barred(row, settings)) is not None:
                barred[why].add(row["interaction_id"])
            kind: Kind = "correction"
            if query == "corrections":
                row["completion"] = tool_calls.answer_text(json.loads(row["completion"]))
            else:
                kind = "accepted" if row.pop("good") else "declined"
                if ids := row.pop("entries"):
                    entries[row["interaction_id"]] = ids
            if kind == "accepted" and not settings.accepted_answers:
                continue
            if (read := example(kind=kind, **reading, **row)) is not None:
                rows.append(read)
    helped = _helped(warehouse, workload, entries)
    return Statements(rows, frozenset(barred["cut"]), frozenset(barred["bought"]), frozenset(cascaded), helped)


def _barred(row: dict[str, Any], settings: DatasetSettings) -> Literal["cut", "bought"] | None:
    """Returns why no model may learn from a response, whatever for; None: it may. Takes the columns that show it."""
    cut, bought = is_cut(row.pop("finish_reason")), row.pop("bought")
    if cut and "incomplete" in settings.filters:
        return "cut"
    return "bought" if bought and not settings.learn_from_incumbent else None


def _helped(warehouse: Warehouse, workload: str, entries: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Returns the answers of entries in place of their ids, without those of entries that are gone."""
    ids = sorted({id for own in entries.values() for id in own if id is not None})
    rows = warehouse.rows(QUERIES["entries"], {"workload": workload, "ids": ids}) if ids else []
    answers = {row["id"]: row["answer"] for row in rows}
    return {name: [answers[id] for id in own if id in answers] for name, own in entries.items()}


def thumbs(
    warehouse: Warehouse, workload: str, settings: DatasetSettings, distrusted: Iterable[str] = ()
) -> Iterator[tuple[Example, bool]]:
    """Yields the answers that have a thumb and may be learned from, newest first, and whether the thumb is up."""
    reading: dict[str, Any] = {"rewrite": Rewriter(settings), "rules": rules_of(warehouse, workload, settings)}
    parameters = {"workload": workload, "limit": settings.maximum_rows, "distrusted": sorted(distrusted)}
    for row in warehouse.rows(QUERIES["thumbs"], parameters):
        helpful = row.pop("helpful")
        if _barred(row, settings) is None and (read := example(kind="accepted", **reading, **row)) is not None:
            yield read, helpful


def unrated(warehouse: Warehouse, workload: str, settings: DatasetSettings) -> list[Example]:
    """Returns the sample of recent traffic in an extract (see `extract.sql`), in random order."""
    return [read for read in _unrated(warehouse, workload, settings, "traffic_sample") if read is not None]


def recent_questions(warehouse: Warehouse, workload: str, settings: DatasetSettings) -> Counter[str]:
    """Returns how often a sample of recent conversations in an extract asks each question, by its `prompt_hash`.

    What cannot be read counts under the empty hash, so the total is the size of the sample.
    """
    return Counter(
        "" if read is None else read.prompt_hash for read in _unrated(warehouse, workload, settings, "recent_questions")
    )


def _unrated(warehouse: Warehouse, workload: str, settings: DatasetSettings, table: str) -> Iterator[Example | None]:
    shared: dict[str, Any] = {
        "kind": "unrated",
        "source": "traffic",
        "feedback_id": "",
        "rewrite": Rewriter(settings),
        "rules": rules_of(warehouse, workload, settings),
    }
    for row in warehouse.rows(f"SELECT * FROM {table}"):
        yield example(completion=row["response"], **shared, **row)


def sources(warehouse: Warehouse, workload: str, settings: DatasetSettings) -> list[str]:
    """Returns the interactions that a dataset would be built from. Retention keeps them in the warehouse."""
    limits = {"workload": workload, "limit": settings.maximum_rows}
    queries: dict[str, dict[str, Any]] = {
        "corrections": limits,
        "thumbs": limits | {"distrusted": []},
        "verdicts": limits,
    }
    return [
        row["interaction_id"]
        for query, parameters in queries.items()
        for row in warehouse.rows(f"SELECT interaction_id FROM ({QUERIES[query]})", parameters)
    ]


def rules_of(warehouse: Warehouse, workload: str, settings: DatasetSettings) -> Rules:
    """Returns what makes no difference in the questions of a workload, as its newest dataset has shown."""
    newest = warehouse.row(QUERIES["latest_dataset"], {"workload": workload})
    shown = json.loads(newest["card"]).get("wording") if newest else None
    return Rules(Wording(**shown or {}), settings.harmless_instructions)


class Rewriter:
    """Rewrites completions as configured: replaces terms and names, and formats ISO dates."""

    def __init__(self, settings: DatasetSettings) -> None:
        self._replace = [(re.compile(pattern), text) for pattern, text in settings.replace.items()]
        self._date_format = settings.date_format

    def __call__(self, text: str) -> str:
        """Returns the rewritten text."""
        for pattern, replacement in self._replace:
            text = pattern.sub(replacement, text)
        return _ISO_DATE.sub(self._date, text) if self._date_format else text

    def _date(self, match: re.Match[str]) -> str:
        assert self._date_format is not None
        try:
            return date.fromisoformat(match[0]).strftime(self._date_format)
        except ValueError:  # such as 2026-13-40, which is no date
            return match[0]


def example(
    messages: str,
    completion: str,
    kind: Kind,
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
    conversation: str | None = None,
    extras: str | None = None,
    rewrite: Callable[[str], str] = str,
    rules: Rules = EXACT,
) -> Example | None:
    """Returns an example; None if there is no question, no answer, or a message that is not text.

    `messages`, `context`, `tools`, `calls` and `extras` are JSON.

    Args:
        completion: the text of a correction, with tool calls in any form that models and the chat API use; for other
            kinds the response.
        calls: the tool calls of the response.
        thought: the reasoning before the response, if the model's server returns it separately.
    """
    in_response, response = logged_answer(response, calls)
    schemas = tool_calls.schemas(json.loads(tools) if tools else None)
    if kind == "correction":
        thought, completion = reasoning.split(completion)
        completion = in_one_form(completion, schemas)
    else:
        thought, completion = in_response or (thought or "").strip() or None, response
    completion = _rewritten(completion, rewrite).strip()
    turns = text_turns(json.loads(messages))
    question = last_question(turns or [])
    if turns is None or not question.strip() or not completion:
        return None
    known = {name: value for name, value in json.loads(extras or "{}").items() if value is not None}
    return Example(
        **_question(turns, context, schemas, known, completion, rules),
        messages=json.dumps(turns, ensure_ascii=False),
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
        conversation=conversation,
        extras=json.dumps(known, ensure_ascii=False) if known else None,
    )


def _question(
    turns: Sequence[Mapping[str, Any]],
    context: str | None,
    tools: Any,
    extras: Mapping[str, Any],
    completion: str,
    rules: Rules,
) -> dict[str, Any]:
    """Returns the columns that identify a question and a row."""
    passages = json.loads(context) if context else ()
    near = near_form(turns, passages, tools)
    prompt_hash = text_hash(json.dumps(forms(turns, passages, tools, extras, rules)))
    return {
        "row_id": text_hash(json.dumps([prompt_hash, completion])),
        "prompt_hash": prompt_hash,
        "prompt": near.text,
        "scope": near.scope,
        "question": normalise(last_question(turns)),
        "completion": completion,
    }


def with_completion(row: Example, completion: str) -> Example:
    """Returns the row with another answer, as a correction of its own."""
    schemas = json.loads(row.tools) if row.tools else []
    thought, completion = reasoning.split(completion)
    completion = in_one_form(completion, schemas).strip()
    return replace(
        row,
        row_id=text_hash(json.dumps([row.prompt_hash, completion])),
        completion=completion,
        rejected=row.completion if row.kind != "correction" else row.rejected,
        reasoning=thought,
    )


def logged_answer(response: str, calls: str | None) -> tuple[str | None, str]:
    """Returns the reasoning of a logged response, if any, and its text with its tool calls.

    Args:
        calls: JSON.
    """
    thought, text = reasoning.split(response)
    parsed = json.loads(calls) if calls else []
    return thought, tool_calls.written(text, parsed if tool_calls.are_calls(parsed) else [])


def restored(values: Mapping[str, Any], rules: Rules = EXACT) -> Example:
    """Returns an example from its columns in a dataset's files, with the question's identity by today's rules."""
    row = Example(**{name: value for name, value in values.items() if name in Example.__dataclass_fields__})
    tools, extras = (json.loads(value) if value else None for value in (row.tools, row.extras))
    question = _question(json.loads(row.messages), row.context, tools, extras or {}, row.completion, rules)
    return replace(row, **question | {"row_id": row.row_id})


def _rewritten(completion: str, rewrite: Callable[[str], str]) -> str:
    """Rewrites the text of a completion. The arguments of tool calls are for programs and stay unchanged."""
    text, opening, calls = completion.partition(tool_calls.OPENING)
    return rewrite(text) + opening + calls
