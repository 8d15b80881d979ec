"""What people taught: corrections and accepted answers, each joined with the interaction that it is about."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib.resources import files
from typing import Any, Literal

from retuned.consumers.messages import joined_text
from retuned.consumers.warehouse import Warehouse, named_queries
from retuned.retrain.scoring import facts, kinds, same_answer, token_f1
from retuned.retrain.settings import DatasetSettings
from retuned.retrain.similarity import NearIndex, normalise, text_hash

QUERIES = named_queries(files("retuned.retrain") / "sql", "retrain.sql")

_SAME_RESPONSE = 0.8
_LATEST = 5

_RANKS = {"accepted": 0, "user": 1, "app": 1, "judge": 1, "expert": 2}


@dataclass(frozen=True)
class Example:
    """One thing to learn: after these messages, this completion.

    Attributes:
        row_id: hash of prompt and completion.
        prompt: the conversation without its system messages, normalised; what makes two examples the same question.
        question: its last user message, normalised.
        messages: the conversation, system messages included: JSON, list of objects with role and content, a string.
        rejected: the answer that a correction replaces; None for an accepted answer.
        context: the passages that the answer was to rest on: JSON, list of strings, or None.
        timestamp: when the feedback was given.
        received_at: when feedback and interaction were both there.
    """

    row_id: str
    prompt_hash: str
    prompt: str
    question: str
    messages: str
    completion: str
    kind: Literal["correction", "accepted"]
    source: str
    rejected: str | None
    context: str | None
    interaction_id: str
    feedback_id: str
    timestamp: datetime
    received_at: datetime

    @property
    def rank(self) -> int:
        """How far it is trusted: an expert's correction over any other, a correction over an accepted answer."""
        return _RANKS["accepted"] if self.kind == "accepted" else _RANKS.get(self.source, 1)

    def as_row(self) -> dict[str, Any]:
        """Its columns in a dataset's files."""
        return asdict(self)


def corrections(warehouse: Warehouse, workload: str, limit: int) -> list[Example]:
    """The newest corrections, newest first; of several on one interaction the most trusted, then the newest."""
    rows = warehouse.rows(QUERIES["corrections"], {"workload": workload, "limit": limit})
    found: dict[str, Example] = {}
    for example in _examples(rows, "correction"):
        other = found.get(example.interaction_id)
        if other is None or example.rank > other.rank:
            found[example.interaction_id] = example
    return list(found.values())


def accepted(warehouse: Warehouse, workload: str, limit: int, corrected: Iterable[Example]) -> list[Example]:
    """The newest accepted answers, newest first, but none that a correction of its interaction contradicts."""
    rows = warehouse.rows(QUERIES["accepted"], {"workload": workload, "limit": limit})
    by_interaction = {example.interaction_id: example for example in corrected}
    return [
        example
        for example in _examples(rows, "accepted")
        if (other := by_interaction.get(example.interaction_id)) is None
        or same_answer(example.completion, other.completion)
    ]


def thumbs(warehouse: Warehouse, workload: str, limit: int) -> Iterator[tuple[Example, bool]]:
    """The answers that people last called helpful or not, newest first, and which of the two."""
    for row in warehouse.rows(QUERIES["thumbs"], {"workload": workload, "limit": limit}):
        helpful = row.pop("helpful")
        made = example(kind="accepted", **row)
        if made is not None:
            yield made, helpful


def sources(warehouse: Warehouse, workload: str, settings: DatasetSettings) -> list[str]:
    """The interactions that a dataset would be made from: what retention must leave in the warehouse."""
    parameters = {"workload": workload, "limit": settings.maximum_rows}
    kinds = ("corrections", "accepted") if settings.accepted_answers else ("corrections",)
    return [
        row["interaction_id"]
        for kind in kinds
        for row in warehouse.rows(f"SELECT interaction_id FROM ({QUERIES[kind]})", parameters)
    ]


def example(
    messages: str,
    completion: str,
    kind: Literal["correction", "accepted"],
    source: str,
    response: str,
    context: str | None,
    interaction_id: str,
    feedback_id: str,
    timestamp: datetime,
    received_at: datetime,
) -> Example | None:
    """An example from its parts, or None when there is no question, nothing to learn, or more than text to read."""
    conversation = []
    for turn in json.loads(messages):
        text = joined_text(turn.get("content") or "")
        if text is None:
            return None  # images and the like: a model of text cannot learn from them
        conversation.append({**turn, "content": text})
    asked = [turn["content"] for turn in conversation if turn["role"] == "user"]
    completion = completion.strip()
    if not asked or not asked[-1].strip() or not completion:
        return None
    prompt = normalise(" ".join(turn["content"] for turn in conversation if turn["role"] != "system"))
    return Example(
        row_id=text_hash(json.dumps([prompt, completion])),
        prompt_hash=text_hash(prompt),
        prompt=prompt,
        question=normalise(asked[-1]),
        messages=json.dumps(conversation, ensure_ascii=False),
        completion=completion,
        kind=kind,
        source=source,
        rejected=response if kind == "correction" else None,
        context=context,
        interaction_id=interaction_id,
        feedback_id=feedback_id,
        timestamp=timestamp,
        received_at=received_at,
    )


def _examples(rows: list[dict[str, Any]], kind: Literal["correction", "accepted"]) -> Iterable[Example]:
    for row in rows:
        made = example(kind=kind, **row)
        if made is not None:
            yield made


class Contradictions:
    """Which examples do newer corrections contradict?

    A correction contradicts an older example when

    - it answers the same question (a near-duplicate prompt with the same facts in it) differently, or
    - the answer that it rejected says what the example says, and it puts another fact of the same kind in its place:
      the same policy, asked for in other words. One such correction proves little, for a model also gives the right
      answer to the wrong question: of the latest things that people said of that answer, most must reject it.
    """

    def __init__(self, evidence: Sequence[Example], similarity: float, since: datetime | None) -> None:
        """`evidence`: corrections and accepted answers. `since`: when earlier datasets end, if there are any."""
        self._since = since
        self._by_prompt: NearIndex[Example] = NearIndex(similarity)
        self._by_rejected: dict[frozenset[str], list[Example]] = defaultdict(list)
        self._by_completion: dict[frozenset[str], list[Example]] = defaultdict(list)
        for example in evidence:
            if stated := facts(example.completion):
                self._by_completion[stated].append(example)
            if example.kind != "correction":
                continue
            self._by_prompt.add(example.prompt, example)
            if example.rejected and (stated := facts(example.rejected)):
                self._by_rejected[stated].append(example)

    def of(self, example: Example, *, earlier: bool) -> Example | None:
        """A correction that puts the example out of date, or None.

        Args:
            earlier: the example stands in an earlier dataset, and any newer correction counts against it. Otherwise
                both are new evidence, where a less trusted source does not overrule a more trusted one, whatever
                the order.
        """
        for correction in self._by_prompt.near(example.prompt):
            if (
                self._overrules(correction, example, earlier)
                and same_question(correction, example)
                and not same_answer(correction.completion, example.completion)
            ):
                return correction
        stated = facts(example.completion)
        rejections = [
            correction
            for correction in (self._by_rejected.get(stated, ()) if stated else ())
            if self._overrules(correction, example, earlier)
            and correction.rejected is not None
            and (meant := facts(correction.completion)) != stated
            and kinds(meant) & kinds(stated)
            and token_f1(correction.rejected, example.completion) >= _SAME_RESPONSE
        ]
        if not rejections:
            return None
        upheld = [
            other
            for other in self._by_completion.get(stated, ())
            if other.timestamp > example.timestamp
            # What upheld an answer before the champion learned it says nothing of today.
            and (not earlier or self._since is None or other.received_at > self._since)
            and token_f1(other.completion, example.completion) >= _SAME_RESPONSE
        ]
        latest = sorted(rejections + upheld, key=lambda said: said.timestamp, reverse=True)[:_LATEST]
        against = [said for said in latest if said in rejections]
        return against[0] if 2 * len(against) > len(latest) else None

    @staticmethod
    def _overrules(correction: Example, example: Example, earlier: bool) -> bool:
        if earlier or correction.rank == example.rank:
            return correction.timestamp > example.timestamp
        return correction.rank > example.rank


def same_question(one: Example, other: Example) -> bool:
    """Of two near-duplicate prompts: do they name the same things? "Lamp A2" and "lamp B3" are two questions."""
    return one.prompt_hash == other.prompt_hash or _asked_about(one) == _asked_about(other)


def _asked_about(example: Example) -> frozenset[str]:
    return frozenset().union(
        *(facts(turn.get("content") or "") for turn in json.loads(example.messages) if turn["role"] != "system")
    )
