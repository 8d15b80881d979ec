"""Look-ups in the daemon, for apps that ask models without the gateway."""

import threading
from datetime import datetime
from typing import Any
from weakref import WeakKeyDictionary

from retuned.consumers.privacy.redactor import Redactor
from retuned.consumers.warehouse.connection import Warehouse
from retuned.retrain.data.question import Rules, Wording
from retuned.retrain.memory import embed
from retuned.retrain.memory.entries import QUERIES
from retuned.retrain.memory.feed import Reading, epoch_of, in_force
from retuned.retrain.memory.help import is_held_out, message
from retuned.retrain.memory.index import Entry, Index
from retuned.retrain.settings import Settings

PAGE = 5_000


class _Kept:
    """The entries of all workloads, which follow the table by its sequence."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._epoch, self._sequence = "", 0
        self._indexes: dict[str, Index] = {}

    def follow(self, warehouse: Warehouse, settings: Settings, workload: str) -> Index:
        """Returns the index of a workload, up to date. Call it with the lock."""
        if (epoch := epoch_of(warehouse)) != self._epoch:
            self._epoch, self._sequence, self._indexes = epoch, 0, {}
        while rows := warehouse.rows(QUERIES["changed"], {"after": self._sequence, "limit": PAGE}):
            for row in rows:
                self._change(settings, row)
            self._sequence = rows[-1]["sequence"]
        return self._indexes.get(workload) or Index()

    def _change(self, settings: Settings, row: dict[str, Any]) -> None:
        workload = row["workload"]
        if workload not in self._indexes:
            similar = settings.for_workload(workload).memory.similar
            self._indexes[workload] = Index(embed.load() if similar else None)
        if row["state"] != "active":
            self._indexes[workload].remove(row["id"])
            return
        since: datetime = row["since"]
        entry = Entry(row["id"], bytes.fromhex(row["key"]), row["question"], row["answer"], since, row["threshold"])
        self._indexes[workload].add(entry)


_kept: WeakKeyDictionary[Warehouse, _Kept] = WeakKeyDictionary()
_making = threading.Lock()


def look_up(
    warehouse: Warehouse,
    settings: Settings,
    workload: str,
    reading: Reading,
    unit: str | None,
) -> dict[str, Any]:
    """Finds the approved answer to a question, in the form of the operation `memory_lookup`.

    Args:
        unit: what is held out; None: nothing is.
    """
    own = in_force(warehouse, settings, workload, epoch_of(warehouse))
    nothing = dict.fromkeys(("match", "similarity", "message", "answer"))
    result: dict[str, Any] = {"entries": [], "held_out": [], "mode": own["mode"]} | nothing
    if own["mode"] == "off" or reading.size() > own["max_prompt_bytes"]:
        return result
    rules = Rules(Wording(own["ignores_case"], own["ignores_end"]), tuple(own["harmless_instructions"]))
    asked = reading.redacted(Redactor(settings.privacy), bytes.fromhex(own["seal_key"])).question(rules)
    if asked is None:
        return result
    with _making:
        kept = _kept.setdefault(warehouse, _Kept())
    with kept.lock:
        index = kept.follow(warehouse, settings, workload)
        found = index.find(asked.key, asked.text if asked.is_alone and own["similar"] else None)
    if found is None or (given := message(found)) is None:
        return result
    result |= {"match": found.match, "similarity": found.similarity}
    if unit is not None and is_held_out(own["salt"], unit, found.entry.id, own["holdout_share"]):
        return result | {"held_out": [found.entry.id]}
    answers = own["mode"] == "answer" and found.match == "same"
    return result | {"entries": [found.entry.id], "message": given, "answer": found.entry.answer if answers else None}
