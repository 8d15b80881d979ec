"""Banking77: the intent of a bank customer's question.

Of PolyAI (Casanueva et al. 2020, "Efficient Intent Detection with Dual Sentence Encoders"), CC BY 4.0. The test split
is the exam.
"""

import csv
from pathlib import Path
from random import Random

from workloads.task import Item, Task, data, exact, said

SYSTEM = "You sort the questions of a bank's customers. Reply with the name of the intent and nothing else."
SOURCE = "https://github.com/PolyAI-LDN/task-specific-datasets (banking_data)"
EXAM = 8  # questions of each of 77 intents; of ten, all

SPELLINGS = {
    "snake_case": lambda _, name: name,
    "title_case": lambda _, name: name.replace("_", " ").title(),
    "code": lambda number, _: f"T{number + 1}",
}


def task(name: str, intents: int, rows: int, spelling: str) -> Task:
    """The first so many intents of the training split, so many questions of each."""
    folder = data("banking77", SOURCE)
    asked, exam = (_rows(folder / file) for file in ("train.csv", "test.csv"))
    labels = {intent: SPELLINGS[spelling](number, intent) for number, intent in enumerate(list(asked)[:intents])}

    def items(texts: dict[str, list[str]], most: int | None) -> list[Item]:
        return [Item(said(text, SYSTEM), labels[intent], intent) for intent in labels for text in texts[intent][:most]]

    def wrong(item: Item, luck: Random) -> str:
        return luck.choice([label for label in labels.values() if label != item.answer])

    few = intents <= 10
    return Task(name, items(asked, rows), items(exam, None if few else EXAM), wrong, exact, max_new_tokens=24)


def _rows(file: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    with file.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            found.setdefault(row["category"], []).append(row["text"])
    return found
