"""The memory of corrections: how long a look-up among 100,000 entries takes, what it adds at the gateway, and how often
an entry helps a related question that has another answer.

`memory_lookup_p99_ms` is from the request's messages to the result, with redaction and embedding, one after the other;
`memory_lookup_cpu_p99_ms` is the processor time of the process. `memory_loop_p99_ms` is by how much the event loop is
late meanwhile, and `memory_loop_idle_p99_ms` without look-ups. `memory_added_…` compares a workload that uses the
memory with one at a gateway without a memory, both before the same server and in turns; `memory_off_added_…` a
workload that does not use it, at the same gateway.

`memory_harm_share…` counts wrong entries among those that helped, on real questions with intents as answers
(RETUNED_DATA with banking77, RETUNED_LEARNED_DATA with clinc; see `banking77` and `learned_sets`). Thresholds come from
half of the questions; entries are some of these. The other half asks, once with an entry for every intent (`…_all`),
once with one for every other intent, so that half of the questions have no entry and near ones are traps (`…_half`).
`memory_related_share…` is the share of the questions whose intent has an entry that are helped by the right one. At the
end of the names stands memory.error_rate in percent.
"""

import asyncio
import csv
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime
from itertools import product
from pathlib import Path
from typing import Any

import gateway as latency
import msgspec
import uvloop
from prometheus_client import CollectorRegistry

from fixtures.daemon.gateways import NOBODY, Gateway, route
from fixtures.kafka.brokers import free_port, until
from fixtures.servers.memory_feeds import memory_double, question_key
from retuned.consumers.settings import PrivacySettings
from retuned.daemon.gateway.memory.lookup import Memory
from retuned.daemon.gateway.memory.pages import Change, Mode
from retuned.daemon.gateway.metrics import Metrics
from retuned.retrain.memory import embed, related
from retuned.retrain.memory.index import Entry, Index
from retuned.retrain.memory.threshold import of_workload

ENTRIES, LOOKUPS, TICK_SECONDS, IDLE_SECONDS = 100_000, 2_000, 0.001, 4.0
ROUNDS, ROUND_SECONDS = 4, 2.0
ERROR_RATES = (0.02, 0.05)
SINCE = datetime(2026, 11, 1)
SYSTEM = latency.MESSAGES[0]["content"]
VERBS = ("return", "cancel", "pay", "change", "track", "lose", "block", "open", "close", "repair", "exchange", "renew")
THINGS = ("card", "parcel", "invoice", "account", "shoes", "refund", "password", "address", "loan", "ticket", "phone")
ENDS = ("today", "abroad", "in the shop", "on my phone", "without a receipt", "for my son", "after 5 days", "at night")


def main() -> dict[str, float]:
    """Takes about two minutes."""
    return {**asyncio.run(lookups()), **added(), **harm()}


def made_up(luck: random.Random, number: int) -> str:
    """A question of a shop's or a bank's customer."""
    verb, thing, end = luck.choice(VERBS), luck.choice(THINGS), luck.choice(ENDS)
    return f"How do I {verb} my {thing} {end}, and what about the {luck.choice(THINGS)} of order {number}?"


def messages(text: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]


def changes() -> Iterator[Change]:
    """The entries; one in two may help related questions."""
    luck = random.Random(1)
    for number in range(ENTRIES):
        text = made_up(luck, number)
        yield Change(
            f"e-{number}", "support", number + 1, "active", question_key(messages(text)).hex(), text,
            f"Within {number % 60} days.", SINCE, 0.95 if number % 2 else None,
        )  # fmt: skip


async def lookups() -> dict[str, float]:
    """Half of the questions have an entry; one in ten holds an address and a phone number."""
    memory, luck = Memory(PrivacySettings(), Metrics(CollectorRegistry())), random.Random(2)
    entries = list(changes())
    began = time.perf_counter()
    await memory.apply(entries)
    filled = time.perf_counter() - began
    mode = Mode("context", 0.1, "salt", similar=True)
    took: list[float] = []
    cpu: list[float] = []
    late: list[float] = []

    async def tick() -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(TICK_SECONDS)
            late.append(time.perf_counter() - began - TICK_SECONDS)

    async def ask(number: int) -> None:
        text = luck.choice(entries).question if number % 2 else made_up(luck, luck.randrange(10**6))
        if number % 10 == 0:
            text += f" Write to joe{number}@example.com or call +49 171 23{number:05}."
        body = json.dumps(messages(text)).encode()
        began, used = time.perf_counter(), time.process_time()
        await memory.find({"messages": body}, "support", f"c-{number}", mode)
        took.append(time.perf_counter() - began)
        cpu.append(time.process_time() - used)

    for number in range(LOOKUPS):
        await ask(number)
    ticking = asyncio.create_task(tick())
    await asyncio.sleep(IDLE_SECONDS)
    idle, late = late, []
    for number in range(LOOKUPS):
        await ask(number)
    ticking.cancel()
    memory.close()
    took, cpu = took[:LOOKUPS], cpu[:LOOKUPS]
    return {
        "memory_filled_seconds": filled,
        "memory_lookup_p50_ms": statistics.median(took) * 1e3,
        "memory_lookup_p99_ms": statistics.quantiles(took, n=100)[98] * 1e3,
        "memory_lookup_cpu_p99_ms": statistics.quantiles(cpu, n=100)[98] * 1e3,
        "memory_loop_p99_ms": statistics.quantiles(late, n=100)[98] * 1e3,
        "memory_loop_idle_p99_ms": statistics.quantiles(idle, n=100)[98] * 1e3,
    }


def added() -> dict[str, float]:
    """Latency with the memory, less that of a gateway without a memory."""
    with tempfile.TemporaryDirectory() as name, memory_double() as daemon, ExitStack() as stack:
        folder, upstream = Path(name), free_port()
        script = str(Path(__file__).with_name("fixed_upstream.py"))
        stack.enter_context(latency.process([sys.executable, script, str(upstream)], folder / "upstream.log"))
        daemon.entries = [json.loads(msgspec.json.encode(change)) for change in changes()]
        daemon.routed = {workload: route(workload, ("champion", "1", 1.0)) for workload in ("support", "plain")}
        daemon.use("context")
        own = {"workloads": ["support"]}
        gateways = {}
        for label, more in (("without", own), ("with", own | {"daemon_url": daemon.url})):
            (folder / label).mkdir()
            made = Gateway(folder / label, NOBODY, [f"http://127.0.0.1:{upstream}/v1"], gateway=more)
            stack.callback(made.end)
            made.start()
            gateways[label] = made
        until(lambda: gateways["with"].metric("memory_entries", workload="support") == ENTRIES, 120)
        targets = {
            "without": latency.Target(gateways["without"].port, "support", None),
            "off": latency.Target(gateways["with"].port, "plain", None),
            "with": latency.Target(gateways["with"].port, "support", None),
        }

        async def measure() -> None:
            for target in targets.values():
                await target.together(1, 60.0, 50)
            for _ in range(ROUNDS):
                for target in targets.values():
                    target.alone += await target.together(1, ROUND_SECONDS)

        uvloop.run(measure())

    def ms(label: str, percent: int) -> float:
        ends = [statistics.quantiles(targets[one].alone, n=100)[percent - 1] for one in (label, "without")]
        return (ends[0] - ends[1]) * 1e3

    return {
        f"{figure}_p{percent}_ms": ms(label, percent)
        for figure, label in (("memory_added", "with"), ("memory_off_added", "off"))
        for percent in (50, 99)
    }


class Same:
    """The metric: intents are the same or not."""

    def compare(self, one: str, other: str) -> bool:
        return one == other


Pairs = list[tuple[str, str]]
"""Questions with their intents."""


def cases() -> Iterator[tuple[str, Pairs, Pairs, Pairs]]:
    """Yields, of the sets that are there, the name of a case, known questions, entries and questions that are asked."""
    for name, pairs in sets():
        pairs = [(text, intent) for text, intent in pairs if len(text) <= embed.LONGEST]
        random.Random(name).shuffle(pairs)
        known, asked = pairs[::2][:5_000], pairs[1::2][:5_000]
        for label, every in (("all", 1), ("half", 2)):
            rest = Counter[str](dict.fromkeys(sorted({intent for _, intent in known if intent != "oos"})[::every], 3))
            entries = []
            for text, intent in known:
                if rest[intent]:
                    rest[intent] -= 1
                    entries.append((text, intent))
            yield f"{name}_{label}", known, entries, asked


def outcome(helped: Pairs, entries: Pairs, asked: Pairs) -> dict[str, float]:
    """Returns the figures; `helped` are the answers that questions got, and the intents of these questions."""
    intents, right = {intent for _, intent in entries}, sum(one == other for one, other in helped)
    return {
        "memory_harm_share": (len(helped) - right) / max(len(helped), 1),
        "memory_related_share": right / max(sum(intent in intents for _, intent in asked), 1),
        "memory_helped": float(len(helped)),
    }


def harm() -> dict[str, float]:
    """Of the sets that are there."""
    found: dict[str, float] = {}
    for (name, known, entries, asked), rate in product(cases(), ERROR_RATES):
        figures = outcome(_helped(known, entries, asked, rate), entries, asked)
        found |= {f"{figure}_{name}_{rate * 100:.0f}": value for figure, value in figures.items()}
    return found


def _helped(known: Pairs, entries: Pairs, asked: Pairs, error_rate: float) -> Pairs:
    embedding = embed.load()
    assert embedding is not None, "the extra memory is not installed"
    rows: list[dict[str, Any]] = [
        {"id": text, "key": _key(text).hex(), "question": text, "answer": intent} for text, intent in entries
    ]
    metric: Any = Same()
    questions = [related.Known(_key(text), text, intent) for text, intent in known]
    threshold = of_workload(related._trials(embedding, questions, metric), error_rate)
    thresholds = related._of_entries(embedding, rows, questions, metric, threshold)
    index = Index(embedding)
    index.add(
        *(
            Entry(
                one["id"], bytes.fromhex(one["key"]), one["question"], one["answer"], SINCE, thresholds.get(one["id"])
            )
            for one in rows
        )
    )
    return [(entry.entry.answer, intent) for text, intent in asked if (entry := index.find(_key(text), text))]


def _key(text: str) -> bytes:
    return question_key([{"role": "user", "content": text}])


def sets() -> Iterator[tuple[str, Pairs]]:
    """The real sets that are there, as questions and intents."""
    folder = Path(os.environ.get("RETUNED_DATA", "")) / "banking77"
    if os.environ.get("RETUNED_DATA") and folder.is_dir():
        files = [(folder / f"{part}.csv").read_text(encoding="utf-8").splitlines() for part in ("train", "test")]
        yield "banking77", [(row["text"], row["category"]) for lines in files for row in csv.DictReader(lines)]
    file = Path(os.environ.get("RETUNED_LEARNED_DATA", "")) / "clinc" / "data" / "data_small.json"
    if os.environ.get("RETUNED_LEARNED_DATA") and file.is_file():
        yield (
            "clinc",
            [(text, intent) for part in json.loads(file.read_text("utf-8")).values() for text, intent in part],
        )


if __name__ == "__main__":
    for figure, value in main().items():
        print(f"{figure:40} {value:.4g}")
