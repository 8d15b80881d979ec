"""Restaurant8k: a JSON object of the slots that a guest's utterance fills.

Of PolyAI (Coope et al. 2020, "Span-ConveRT"), CC BY 4.0. `train_1.json` is what production was asked, `test.json` the
exam.
"""

import json
from pathlib import Path
from random import Random
from typing import Any

from workloads.task import Item, Task, data, said

SYSTEM = "Answer with a JSON object of what the guest states: people, date, time, first_name, last_name."
SOURCE = "https://github.com/PolyAI-LDN/task-specific-datasets (span_extraction/restaurant8k)"


def task(rows: int = 500, exam: int = 300) -> Task:
    folder = data("restaurant8k", SOURCE)
    asked, examined = _items(folder / "train_1.json")[:rows], _items(folder / "test.json")[:exam]
    return Task("restaurant8k", asked, examined, _wrong, right, graded)


def right(answer: str, item: Item) -> float:
    """1 where a program that reads JSON gets the same object."""
    try:
        return float(json.loads(answer) == json.loads(item.answer))
    except ValueError:
        return 0.0


def graded(answer: str, item: Item) -> float:
    """Twice the fields that are right over all fields of both objects; 0 for what is no object."""
    try:
        given = json.loads(answer)
    except ValueError:
        return 0.0
    wanted = json.loads(item.answer)
    if not isinstance(given, dict):
        return 0.0
    fields = len(given) + len(wanted)
    return 2 * sum(name in given and given[name] == value for name, value in wanted.items()) / fields if fields else 1.0


def _items(file: Path) -> list[Item]:
    """In an order of their own, the same each time."""
    found = [_item(one) for one in json.loads(file.read_text(encoding="utf-8"))]
    Random(8).shuffle(found)
    return found


def _item(one: dict[str, Any]) -> Item:
    text, slots = one["userInput"]["text"], {}
    for label in one.get("labels", ()):
        span = label.get("valueSpan", {})
        slots[label["slot"]] = text[span.get("startIndex", 0) : span.get("endIndex", len(text))]
    wanted = ", ".join(one.get("context", {}).get("requestedSlots", ()))
    asked = f"Asked for: {wanted or 'nothing'}\nGuest: {text}"
    return Item(said(asked, SYSTEM), json.dumps(slots, ensure_ascii=False), "+".join(sorted(slots)) or "nothing")


def _wrong(item: Item, luck: Random) -> str:
    """A value lost, a value in the wrong slot, or words in the place of an object."""
    slots = json.loads(item.answer)
    broken = [{"people": "2"} if not slots else dict(list(slots.items())[1:]), slots | {"first_name": "Quillon"}]
    return luck.choice([*map(json.dumps, broken), "I have noted it down."])
