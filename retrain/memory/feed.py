"""Reads entries of the memory: for gateways, and for people."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from retuned.consumers.errors import RetunedError
from retuned.consumers.privacy.pseudonyms import load_user_keys
from retuned.consumers.privacy.redactor import Redactor
from retuned.consumers.privacy.sealing import SEALED, seal
from retuned.consumers.warehouse.connection import Warehouse
from retuned.retrain.data.examples import rules_of
from retuned.retrain.data.question import Question, Rules, question
from retuned.retrain.memory.consensus import Approved
from retuned.retrain.memory.entries import QUERIES
from retuned.retrain.memory.statements import shared_seals
from retuned.retrain.settings import Settings

_JSON = ("messages", "context", "tools", "extras", "feedback_ids")


def feed(
    warehouse: Warehouse,
    settings: Settings,
    workloads: Iterable[str],
    after: int,
    limit: int,
    bounds: Sequence[str] | None = None,
    may_see: Callable[[str], bool] = lambda _: True,
) -> dict[str, Any]:
    """Returns the entries that changed after a sequence, in the form of the operation `memory_feed`.

    Entries of all workloads are included that the caller may see, also of those without events, and of those whose
    memory is off, as it may be switched on later: the sequence passes each change once.

    Args:
        workloads: those whose settings are included, besides those with entries.
        bounds: the names and globs of the workloads that the caller is bound to; None: all. Other bounds begin another
            epoch, since changes of other workloads are missing before.
        may_see: whether the caller may see a workload.
    """
    with warehouse.snapshot():
        epoch = epoch_of(warehouse)
        last = warehouse.row(QUERIES["last_sequence"])
        named = {*workloads, *(row["workload"] for row in warehouse.rows(QUERIES["workloads"]))}
        visible = sorted(filter(may_see, named))
        parameters = {"after": after, "workloads": visible, "limit": limit + 1}
        entries = warehouse.rows(QUERIES["feed"], parameters)
    more, entries = len(entries) > limit, entries[:limit]
    assert last is not None
    scope = json.dumps([epoch, None if bounds is None else sorted(bounds)])
    return {
        "epoch": epoch and hashlib.sha256(scope.encode()).hexdigest()[:32],
        "entries": entries,
        "sequence": entries[-1]["sequence"] if more else max(last["last"], after),
        "more": more,
        "modes": {workload: in_force(warehouse, settings, workload, epoch) for workload in visible},
    }


def in_force(warehouse: Warehouse, settings: Settings, workload: str, epoch: str) -> dict[str, Any]:
    """Returns the settings of a workload as gateways use them, with what makes no difference in its questions."""
    own = settings.for_workload(workload)
    if own.memory.mode == "off":
        rules, key = Rules(), ""
    else:
        rules = rules_of(warehouse, workload, own.dataset)
        key = load_user_keys(settings.privacy, warehouse.path).seal_key.hex()
    return {
        **own.memory.model_dump(include={"mode", "holdout_share", "similar", "error_rate", "max_prompt_bytes"}),
        "salt": hashlib.sha256(f"{epoch} {workload}".encode()).hexdigest()[:16],
        "ignores_case": rules.wording.case,
        "ignores_end": rules.wording.end,
        "harmless_instructions": list(rules.harmless),
        "seal_key": key,
    }


def epoch_of(warehouse: Warehouse) -> str:
    """Returns the epoch of sequences; empty before the first entry."""
    row = warehouse.row(QUERIES["epoch"])
    return row["epoch"] if row else ""


def listed(warehouse: Warehouse, workload: str, state: str | None = None, limit: int = 1_000) -> list[dict[str, Any]]:
    """Returns the entries of a workload, the latest change first."""
    return warehouse.rows(QUERIES["listed"], {"workload": workload, "state": state, "limit": limit})


def detail(warehouse: Warehouse, id: str) -> dict[str, Any] | None:
    """Returns an entry with its conversation; None: there is none with this id."""
    row = warehouse.row(QUERIES["of_ids"], {"ids": [id]})
    return row and row | {name: json.loads(row[name]) if row[name] else None for name in _JSON}


@dataclass(frozen=True)
class Reading:
    """What a model reads, of content as in requests of OpenAI's chat API.

    Attributes:
        template: the fields `documents`, `chat_template_kwargs` and `chat_template` of the request.
    """

    messages: list[dict[str, Any]]
    context: list[str] | None = None
    tools: list[dict[str, Any]] | None = None
    template: dict[str, Any] = field(default_factory=dict)

    def size(self) -> int:
        """Returns the bytes of it as JSON."""
        return len(json.dumps(list(vars(self).values()), ensure_ascii=False).encode("utf-8", "surrogatepass"))

    def redacted(self, redactor: Redactor, seal_key: bytes) -> "Reading":
        """Returns it as it is stored: redacted, and sealed in `template`."""
        before = (self.messages, self.context, self.tools, self.template)
        scope = redactor.scope(list(before))
        messages, context, tools, template = (redactor.value(part, scope) for part in before)
        found = seal(seal_key, (self.messages, messages), (self.tools, tools))
        return Reading(messages, context, tools, template | ({SEALED: found} if found else {}))

    def question(self, rules: Rules) -> Question | None:
        """Returns what a redacted reading asks."""
        return question(self.messages, self.context, self.tools, self.template, rules)


def stated(
    warehouse: Warehouse,
    settings: Settings,
    workload: str,
    reading: Reading,
    answer: str,
    author: str,
    now: datetime,
) -> Approved:
    """Returns what a person states about a question, redacted as in events.

    Raises:
        RetunedError: the conversation asks nothing, or something was redacted in what is not the workload's.
    """
    reading = reading.redacted(Redactor(settings.privacy), load_user_keys(settings.privacy, warehouse.path).seal_key)
    asked = reading.question(rules_of(warehouse, workload, settings.for_workload(workload).dataset))
    if asked and asked.seal:
        with warehouse.cursor() as cursor:
            asked = asked if asked.seal in shared_seals(cursor, workload, now) else None
    if asked is None:
        raise RetunedError(
            "memory add: expected messages with a question of a user in text, and without personal data: the answer to "
            "a question about one person is given to nobody else. Contacts of your own company belong into privacy.keep"
        )

    def as_json(part: Any) -> str | None:
        return json.dumps(part, ensure_ascii=False) if part else None

    return Approved(
        key=asked.key.hex(),
        messages=json.dumps(reading.messages, ensure_ascii=False),
        question=asked.text,
        context=as_json(reading.context),
        tools=as_json(reading.tools),
        answer=answer,
        source="person",
        author=author,
        feedback_ids=(),
        since=now,
        extras=as_json(reading.template),
    )
