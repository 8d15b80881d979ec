"""People who take back what they wrote, and a search of all bytes on a disk for it."""

import gzip
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import zstandard
from ingestion import Rig, feedback, interaction

from retuned.consumers.kafka.memory import MemoryLog
from retuned.consumers.privacy.pseudonyms import load_user_keys
from retuned.consumers.warehouse.connection import Warehouse
from retuned.consumers.warehouse.opening import open_warehouse
from retuned.consumers.warehouse.selection import Selection
from retuned.daemon.erasure.erasure import Erasures
from retuned.daemon.settings import Settings

FRAME = b"\x28\xb5\x2f\xfd"
MOST_BYTES = 64 << 20


def traces(folder: Path, *needles: str) -> dict[str, list[str]]:
    """The files below a folder whose bytes contain a needle, by the needle; compressed content is looked into."""
    found: dict[str, list[str]] = {needle: [] for needle in needles}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            pieces = list(contents(path.read_bytes()))
            for needle in needles:
                if any(needle.encode() in piece for piece in pieces):
                    found[needle].append(str(path.relative_to(folder)))
    return {needle: files for needle, files in found.items() if files}


def contents(content: bytes) -> Iterator[bytes]:
    """The bytes of a file, and of every zstd frame in it: DuckDB and Parquet store texts in such frames."""
    yield content
    if content[:2] == b"\x1f\x8b":
        yield gzip.decompress(content)
    at = content.find(FRAME)
    while at >= 0:
        with suppress(zstandard.ZstdError):  # four bytes that only look like a frame, or one that was overwritten
            yield zstandard.ZstdDecompressor().decompressobj().decompress(content[at : at + MOST_BYTES])
        at = content.find(FRAME, at + 1)


SECRET, LETTER, MINE, THEIRS = "qzx7marbledhyena", "qzx8velvetotter", "qzx9amberlynx", "qzxyploverstays"
"""Words that only the person wrote: in a question, in a message that is no event, in a vote. The last one stays."""

ANN = {"ann-1", "ann-2", "f-bob-on-ann", "f-ann-on-bob"}
"""The ids of the person's events."""


class Shop:
    """An ingestion, and the person `ann@shop`, who takes back what she wrote."""

    def __init__(self, folder: Path, settings: Settings | None = None, **topics: str) -> None:
        self.folder = folder
        kafka = {"interactions_topic": "in", "feedback_topic": "fb", "group_id": "g"} | topics
        self.settings = settings or Settings(
            kafka=kafka,
            ingest={"max_age_days": 73_000},
            warehouse={"path": folder / "w.duckdb"},
            models={"directory": folder / "models"},
        )  # type: ignore[arg-type]
        self.log = MemoryLog()
        self.open()

    def open(self) -> None:
        self.warehouse: Warehouse = open_warehouse(self.settings.warehouse)
        self.rig = Rig(self.settings, self.warehouse, self.log)

    def events(self) -> list[Any]:
        return shop_events()

    def erasures(self) -> Erasures:
        return Erasures(self.warehouse, self.settings, threading.Event(), now, lambda *_: None)

    def ann(self) -> Selection:
        keys = load_user_keys(self.settings.privacy, self.warehouse.path)
        return Selection(users=keys.pseudonyms("ann@shop"))

    def ids(self, table: str) -> list[str]:
        return [row["id"] for row in self.warehouse.rows(f"SELECT id FROM {table} ORDER BY id")]


def now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)


def shop_events() -> list[Any]:
    """What Ann and Bob send."""
    mine = {"user_id": "ann@shop", "conversation_id": "c-ann"}
    app = {"channel": "app"}
    asked = [{"role": "user", "content": f"My {SECRET} is broken."}]
    later = [*asked, {"role": "assistant", "content": "Oh."}, {"role": "user", "content": "Well?"}]
    return [
        interaction("ann-1", messages=asked, **mine),
        interaction("ann-2", messages=later, conversation_id="c-ann", timestamp="2026-11-24T09:40:00Z"),
        interaction("bob-1", user_id="bob", response=f"{THEIRS}.", conversation_id="c-bob", attributes=app),
        feedback("f-bob-on-ann", "ann-1", user_id="bob"),
        feedback("f-ann-on-bob", "bob-1", user_id="ann@shop", name="correction", value=f"{MINE}!"),
        feedback("f-bob-on-bob", "bob-1", user_id="bob"),
        f'{{"id": "ann-1", "broken": "{LETTER}"}}'.encode(),
    ]


ANSWERS = 60


def _is_mine(number: int) -> bool:
    return number % 3 == 0


def logged_events() -> list[dict[str, Any]]:
    """What users asked over two months, every third of them Ann, and what they thought of it, some of it later."""
    found: list[dict[str, Any]] = []
    for number in range(ANSWERS):
        user = "ann@shop" if _is_mine(number) else f"user-{number % 5}"
        day = f"2024-{1 + number // 28:02}-{1 + number % 28:02}T09:30:00Z"
        question = [{"role": "user", "content": f"{SECRET if _is_mine(number) else 'question'} {number}"}]
        found += [
            {"id": f"i{number}", "timestamp": day, "workload": "support", "model": "m", "messages": question,
             "response": "an answer", "user_id": user, "conversation_id": f"c{number}"},
            {"id": f"f{number}", "timestamp": day, "interaction_id": f"i{number - 1}", "name": "correction",
             "value": f"{MINE if _is_mine(number) else 'better'} {number}", "user_id": user},
        ]  # fmt: skip
    return found


def not_anns(table: str) -> list[str]:
    """The ids of all that is not Ann's; feedback on her answers is hers, too."""
    if table == "interactions":
        return sorted(f"i{number}" for number in range(ANSWERS) if not _is_mine(number))
    return sorted(f"f{number}" for number in range(ANSWERS) if not _is_mine(number) and not _is_mine(number - 1))
