"""Questions to a furniture shop whose rules have changed, in German and in French: five wordings of each, two more in
the exam."""

import json
from pathlib import Path
from random import Random

from workloads.task import Item, Task, said

SYSTEMS = {
    "german": "Du beantwortest Fragen an ein Möbelhaus in einem Satz.",
    "french": "Tu réponds en une phrase aux questions posées à un magasin de meubles.",
}
EXAM = 2


def task(language: str) -> Task:
    asked, exam, old = [], [], {}
    for line in Path(__file__).with_name(f"{language}.jsonl").read_text(encoding="utf-8").splitlines():
        one = json.loads(line)
        old[one["answer"]] = one["before"]
        items = [
            Item(said(text, SYSTEMS[language]), one["answer"], one["key"], truth=one["key"]) for text in one["ask"]
        ]
        asked += items[:-EXAM]
        exam += items[-EXAM:]

    def wrong(item: Item, _: Random) -> str:
        return old[item.answer]

    # Values do not settle what a small model makes up in other words, and there is no judge here.
    return Task(language, asked, exam, wrong, right, settings={"metric": {"name": "text"}})


def right(answer: str, item: Item) -> float:
    """1 where the new rule stands in the answer."""
    return float(item.truth in answer)
