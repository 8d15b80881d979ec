"""Looks up the entry of the memory for a request.

All work is done in one thread, because redacting a prompt takes milliseconds, in which the event loop would stand
still.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, Literal, TypeVar

import msgspec

from retuned.consumers.formats.openai import TEMPLATE
from retuned.consumers.privacy.redactor import Redactor
from retuned.consumers.privacy.sealing import INSTRUCTING, SEALED, leading, seal
from retuned.consumers.settings import PrivacySettings
from retuned.daemon.gateway.memory.help import Help
from retuned.daemon.gateway.memory.pages import Change, Mode
from retuned.daemon.gateway.metrics import Metrics
from retuned.retrain.data.question import question
from retuned.retrain.memory import embed
from retuned.retrain.memory.help import is_held_out, is_usable, message
from retuned.retrain.memory.index import Entry, Index

T = TypeVar("T")

log = logging.getLogger(__name__)

MOST_WAITING = 32
"""The most look-ups that wait; for further requests there is none."""
MOST_SECONDS = 0.25
"""The longest time for which a request waits for its look-up; after that there is none."""
AT_ONCE = 50
"""Changes that are applied between two look-ups."""
REMEMBERED = 64
_EXAMPLE = "Call +49 171 2345678, or write to ann@example.com."
"""Makes the redactor load what it needs."""

READ = ("messages", "tools", *TEMPLATE)
"""The fields of a request that the model reads."""
Result = Literal["same", "related", "held_out", "none", "unusable", "not_text", "too_long", "busy", "failed"]


class Memory:
    """The entries in force, and how each workload uses them."""

    def __init__(self, privacy: PrivacySettings, metrics: Metrics) -> None:
        self._privacy, self._metrics = privacy, metrics
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="memory")
        self._waiting = 0
        self._modes: dict[str, Mode] = {}
        self._indexes: dict[str, Index] = {}
        self._workloads: dict[str, str] = {}
        self._redactor: Redactor | None = None
        self._field = lru_cache(REMEMBERED)(self._redacted)

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown(cancel_futures=True)

    def mode(self, workload: str) -> Mode | None:
        """Returns how the memory helps a workload; None: it does not."""
        return self._modes.get(workload)

    def set_modes(self, modes: dict[str, Mode]) -> None:
        """Sets the modes of all workloads."""
        self._modes = {workload: mode for workload, mode in modes.items() if mode.mode != "off"}

    async def apply(self, changes: Sequence[Change]) -> None:
        """Adds and removes entries. Look-ups take turns with it.

        Raises:
            ConfigurationError: `privacy.names` is on, and its extra is not installed.
        """
        if self._redactor is None:  # also without entries, so that the first one need not wait for it
            await self._in_thread(self._prepare)
        for start in range(0, len(changes), AT_ONCE):
            await self._in_thread(self._apply, changes[start : start + AT_ONCE])

    async def clear(self) -> None:
        """Removes all entries."""
        await self._in_thread(self._clear)

    async def find(self, fields: Mapping[str, bytes], workload: str, unit: str, mode: Mode) -> Help | None:
        """Returns what the memory does for a request; None: nothing.

        Args:
            fields: of the request, those of `READ` in JSON.
            unit: the conversation or account that may be held out.
        """
        began = time.perf_counter()
        result: Result
        help: Help | None = None
        if not self._indexes.get(workload):
            result = "none"
        elif self._waiting >= MOST_WAITING:
            result = "busy"
        else:
            self._waiting += 1
            try:
                async with asyncio.timeout(MOST_SECONDS):
                    result, help = await self._in_thread(self._find, fields, workload, unit, mode)
            except TimeoutError:
                result = "busy"
            except Exception:  # the memory must not keep an app from its answer
                log.exception("a look-up in the memory failed")
                result = "failed"
            finally:
                self._waiting -= 1
        self._metrics.looked_up(workload, result, time.perf_counter() - began)
        return help

    async def _in_thread(self, do: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, do, *arguments)

    def _apply(self, changes: Sequence[Change]) -> None:
        added: dict[str, list[Entry]] = {}
        for change in {change.id: change for change in changes}.values():
            if (workload := self._workloads.pop(change.id, None)) is not None:
                self._indexes[workload].remove(change.id)
            if (entry := change.entry()) is not None:
                added.setdefault(change.workload, []).append(entry)
        for workload, entries in added.items():
            if workload not in self._indexes:
                self._indexes[workload] = Index(embed.load())
            self._indexes[workload].add(*entries)
            self._workloads |= dict.fromkeys((entry.id for entry in entries), workload)
        for workload, index in self._indexes.items():
            self._metrics.memory_entries.labels(workload).set(len(index))

    def _clear(self) -> None:
        self._indexes, self._workloads = {}, {}
        self._metrics.memory_entries.clear()

    def _prepare(self) -> None:
        embed.load()
        redactor = Redactor(self._privacy)
        redactor.text(_EXAMPLE)
        self._redactor = redactor

    def _find(self, fields: Mapping[str, bytes], workload: str, unit: str, mode: Mode) -> tuple[Result, Help | None]:
        index = self._indexes.get(workload)
        if not index or not self._redactor:
            return "none", None
        if sum(map(len, fields.values())) > mode.max_prompt_bytes:
            return "too_long", None
        try:
            given = msgspec.json.decode(fields["messages"])
            messages, tools = self._redactor.value(given), self._field(fields.get("tools", b"null"))
            extras = {name: self._field(fields.get(name, b"null"))[1] for name in TEMPLATE}
            extras[SEALED] = seal(bytes.fromhex(mode.seal_key), (given, messages), tools)
            asked = question(messages, None, tools[1], extras, mode.rules)
        except (msgspec.DecodeError, RecursionError):
            return "not_text", None
        if asked is None:
            return "not_text", None
        found = index.find(asked.key, asked.text if mode.similar and asked.is_alone else None)
        if found is None:
            return "none", None
        if not is_usable(found.entry):
            return "unusable", None
        if is_held_out(mode.salt, unit, found.entry.id, mode.holdout_share):
            return "held_out", Help(found, is_held_out=True)
        place = len(leading(given))
        role = given[place - 1]["role"] if place else INSTRUCTING[0]
        return found.match, Help(found, False, "context", message(found, role), place)

    def _redacted(self, field: bytes) -> tuple[Any, Any]:
        """Returns a field before and after redaction."""
        assert self._redactor
        value = msgspec.json.decode(field)
        return value, self._redactor.value(value)
