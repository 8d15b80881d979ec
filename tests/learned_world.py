"""Evidence whose truth is known, and what a dataset makes of it.

A `World` collects interactions and feedback of one workload with the right answers to each question. It is stored as
ingestion stores it, a dataset is built by `build_dataset`, and the rows of the dataset's files are compared with the
truth. Nothing here depends on how rows are chosen.
"""

import json
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from traffic import new_warehouse, store

from retuned.consumers.warehouse.connection import Warehouse
from retuned.retrain.data.build import build_dataset
from retuned.retrain.data.dataset import SPLITS, Dataset, DatasetRefused
from retuned.retrain.settings import DatasetSettings, GateSettings, ModelsSettings, Settings, TrainSettings

START = datetime(2026, 3, 2, 9)
WORKLOAD = "support"
Message = Mapping[str, str]
Same = Callable[[str, str], bool]


@lru_cache(100_000)
def plain(answer: str) -> str:
    """An answer without what changes nothing: spaces and case of text, order of keys and spaces of JSON."""
    try:
        found = json.loads(answer)
    except ValueError:
        found = None
    if isinstance(found, dict | list):
        return json.dumps(found, sort_keys=True)
    return " ".join(answer.casefold().split())


def equal(answer: str, other: str) -> bool:
    """The usual comparison: word for word."""
    return plain(answer) == plain(other)


def key_of(messages: Iterable[Message], context: Sequence[str] | None = None) -> str:
    """Of a question with all that came before it: its words in order, and every sign that may matter."""
    turns = [f"{message['role']}: {' '.join(str(message['content']).split())}" for message in messages]
    return json.dumps([*turns, *(" ".join(passage.split()) for passage in context or ())], ensure_ascii=False)


@dataclass(frozen=True)
class Statement:
    """What an account stated to be the answer to a question."""

    key: str
    answer: str
    who: str
    when: datetime


@dataclass
class World:
    """Interactions and feedback of one workload, and the right answers.

    Attributes:
        truth: of each question the answers that are right at the end, in any wording that people gave.
        same: whether an answer is one of the right ones.
        promoted: a dataset is built then, and what was trained on it serves; only the one built at the end is measured.
    """

    name: str
    same: Same = equal
    promoted: datetime | None = None
    truth: dict[str, list[str]] = field(default_factory=dict)
    statements: list[Statement] = field(default_factory=list)
    interactions: list[dict[str, Any]] = field(default_factory=list)
    feedback: list[dict[str, Any]] = field(default_factory=list)
    _keys: dict[str, str] = field(default_factory=dict)
    _last: datetime = START
    _stored: set[str] = field(default_factory=set)

    def asked(
        self,
        messages: str | Sequence[Message],
        response: str,
        when: datetime,
        *,
        right: Collection[str],
        who: str | None = None,
        conversation: str | None = None,
        context: Sequence[str] | None = None,
    ) -> str:
        """Somebody asks and is answered; `right` becomes the truth about the question. Returns the interaction's id."""
        turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
        number = len(self.interactions)
        id = f"i{number}"
        self._keys[id] = key_of(turns, context)
        self.truth[self._keys[id]] = list(right)
        self._last = max(self._last, when)
        self.interactions.append(
            {
                "id": id,
                "timestamp": when,
                "workload": WORKLOAD,
                "model": "production",
                "messages": json.dumps(turns),
                "response": response,
                "context": json.dumps(list(context)) if context else None,
                "conversation_id": conversation,
                "user_id": who,
                "finish_reason": "stop",
                "topic": "interactions",
                "partition": 0,
                "offset": number,
                "received_at": when,
            }
        )
        return id

    def said(
        self,
        interaction: str,
        name: str,
        value: Any,
        when: datetime,
        *,
        who: str | None = None,
        source: str = "user",
        received: datetime | None = None,
    ) -> str:
        """Feedback; returns its id."""
        number = len(self.feedback)
        self._last = max(self._last, when, received or when)
        answer = value if name == "correction" else self._response(interaction) if value is True else None
        if answer is not None:
            self.statements.append(Statement(self._keys[interaction], answer, who or f"nobody-{number}", when))
        self.feedback.append(
            {
                "id": f"f{number}",
                "timestamp": when,
                "interaction_id": interaction,
                "name": name,
                "value": json.dumps(value),
                "source": source,
                "user_id": who,
                "topic": "feedback",
                "partition": 0,
                "offset": number,
                "received_at": received or when,
            }
        )
        return f"f{number}"

    def taught(
        self, interaction: str, answer: str, when: datetime, *, who: str | None = None, source: str = "user"
    ) -> str:
        """An account calls the answer that was given helpful if it is this one, and corrects it to this one else."""
        liked = self._response(interaction) == answer
        value = True if liked else answer
        return self.said(interaction, "helpful" if liked else "correction", value, when, who=who, source=source)

    def right(self, key: str, answer: str) -> bool:
        """Whether an answer to a question is right."""
        return any(self.same(answer, one) for one in self.truth[key])

    @property
    def end(self) -> datetime:
        """An hour after the last event."""
        return self._last + timedelta(hours=1)

    def into(self, warehouse: Warehouse, until: datetime | None = None) -> None:
        """Store what is new, as ingestion does."""
        for table, rows in (("interactions", self.interactions), ("feedback", self.feedback)):
            new = [row for row in rows if row["id"] not in self._stored and row["received_at"] <= (until or self._last)]
            self._stored |= {row["id"] for row in new}
            if new:
                store(warehouse, table, new)

    def key_of_row(self, row: Mapping[str, Any]) -> str:
        """The question that a dataset's row teaches an answer to."""
        key = key_of(json.loads(row["messages"]), json.loads(row["context"]) if row["context"] else None)
        return key if key in self.truth else self._keys[row["interaction_id"]]

    def conversation_of(self, row: Mapping[str, Any]) -> str | None:
        """The conversation that a dataset's row comes from."""
        conversation = self.interactions[int(row["interaction_id"][1:])]["conversation_id"]
        return conversation if conversation is None else str(conversation)

    def _response(self, interaction: str) -> str:
        return str(self.interactions[int(interaction[1:])]["response"])


@dataclass(frozen=True)
class Outcome:
    """What a choice of rows teaches.

    Attributes:
        rows: number of rows taught or held out.
        right_share: of these rows; None: there are none.
        held_right_share: of the rows held out, by which candidates would be judged; None: there are none.
        lost_share: of the questions to which somebody gave a right answer, since the promotion if there was one, those
            to which no right row is taught.
        split_share: of the conversations with several rows, those that are both taught and held out; None: none has.
        leaked_share: where there are conversations, of the rows held out whose answer is not short, those whose answer
            stands in a prompt to train on.
        why: of the lost questions, the reasons that set_aside gives for their right answers.
        refused: why no dataset was made.
    """

    rows: int
    right_share: float | None
    lost_share: float
    held_right_share: float | None = None
    split_share: float | None = None
    leaked_share: float | None = None
    why: Mapping[str, int] = field(default_factory=dict)
    refused: str | None = None
    seconds: float = 0.0


def measured(world: World, **dataset: Any) -> Outcome:
    """What the dataset of this evidence teaches, with default settings but for those named."""
    with tempfile.TemporaryDirectory() as folder:
        warehouse = new_warehouse(Path(folder))
        began = time.monotonic()
        try:
            if world.promoted:
                world.into(warehouse, world.promoted)
                promote(warehouse, built_from(warehouse, world.promoted, Path(folder), **dataset), world.promoted)
            world.into(warehouse)
            began = time.monotonic()
            built = built_from(warehouse, world.end, Path(folder), **dataset)
            return _outcome(world, built, time.monotonic() - began)
        except DatasetRefused as refused:
            return Outcome(0, None, 1.0, refused=str(refused), seconds=time.monotonic() - began)
        finally:
            warehouse.close()


def built_from(
    warehouse: Warehouse, now: datetime, folder: Path, timeout_seconds: float = 900.0, **dataset: Any
) -> Dataset:
    """The dataset as a run of the daemon makes it; however few rows there are."""
    settings = Settings(
        models=ModelsSettings(directory=folder / "models"),
        dataset=DatasetSettings(minimum_rows=1, **dataset),
        gate=GateSettings(minimum_examples=1),
        train=TrainSettings(timeout_seconds=timeout_seconds),
    )
    return build_dataset(warehouse, settings, WORKLOAD, now, folder / "work")


def promote(warehouse: Warehouse, built: Dataset, now: datetime) -> None:
    """A version that was trained on the dataset serves."""
    version = f"v-{built.version}"
    warehouse.insert(
        "models", version=version, workload=WORKLOAD, created_at=now, path="/nowhere", base_model="/base",
        base_hash="x", parent_version=None, dataset_version=built.version, run_id="r", manifest="{}",
    )  # fmt: skip
    warehouse.execute("DELETE FROM aliases")
    warehouse.insert("aliases", workload=WORKLOAD, alias="champion", version=version, created_at=now)


def _outcome(world: World, built: Dataset, seconds: float) -> Outcome:
    rows = [row | {"split": name} for name in SPLITS for row in built.split(name)]
    answers = [(world.key_of_row(row), str(row["completion"])) for row in rows]
    rights = [world.right(*answer) for answer in answers]
    held = [right for row, right in zip(rows, rights, strict=True) if row["split"] == "holdout"]
    lost = _lost(world, answers)
    why: Counter[str] = Counter()
    for row in built.split("set_aside"):
        if (key := world.key_of_row(row)) in lost and world.right(key, str(row["completion"])):
            why[str(row["reason"])] += 1
    sides = defaultdict[str, list[bool]](list)
    for row in rows:
        if (conversation := world.conversation_of(row)) is not None:
            sides[conversation].append(row["split"] in ("holdout", "regression"))
    several = [side for side in sides.values() if len(side) > 1]
    return Outcome(
        len(rows),
        _share(rights),
        len(lost) / max(len(_answerable(world)), 1),
        _share(held),
        _share([len(set(side)) > 1 for side in several]),
        _leaked(rows) if several else None,
        dict(why.most_common()),
        seconds=seconds,
    )


def _leaked(rows: Sequence[Mapping[str, Any]]) -> float | None:
    prompts = "\0".join(
        str(message["content"]) for row in rows if row["split"] == "train" for message in json.loads(row["messages"])
    )
    held = [str(row["completion"]) for row in rows if row["split"] == "holdout"]
    return _share([answer in prompts for answer in held if len(answer) >= 20])


def naive(world: World, choice: Literal["majority", "newest"]) -> Outcome:
    """What would be taught by the answer that most accounts gave last, or by the newest one."""
    last: defaultdict[str, dict[str, Statement]] = defaultdict(dict)
    for statement in sorted(world.statements, key=lambda one: one.when):
        voices = last[statement.key]
        voices.pop(statement.who, None)  # of each account the last word counts
        voices[statement.who] = statement
    answers = []
    for key, voices in last.items():
        stated = list(voices.values())
        votes = Counter(plain(one.answer) for one in stated)
        most = max(votes.values())
        best = [one for one in stated if choice == "newest" or votes[plain(one.answer)] == most]
        answers.append((key, best[-1].answer))
    return Outcome(
        len(answers),
        _share([world.right(*answer) for answer in answers]),
        len(_lost(world, answers)) / max(len(_answerable(world)), 1),
    )


def _answerable(world: World) -> set[str]:
    """The questions to which somebody gave a right answer, since the promotion if there was one."""
    since = world.promoted or START
    return {one.key for one in world.statements if one.when > since and world.right(one.key, one.answer)}


def _lost(world: World, answers: Iterable[tuple[str, str]]) -> set[str]:
    return _answerable(world) - {key for key, answer in answers if world.right(key, answer)}


def _share(values: Collection[bool]) -> float | None:
    return sum(values) / len(values) if values else None
