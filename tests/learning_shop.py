"""A shop whose customers and staff say what is right, and what its dataset makes of that."""

import json
from collections import defaultdict
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from building import build_dataset
from learned_world import START, WORKLOAD, World, key_of, promote

from retuned.consumers.warehouse.connection import Warehouse
from retuned.retrain.data.dataset import SPLITS, Dataset
from retuned.retrain.settings import DatasetSettings, GateSettings, ModelsSettings, Settings

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
NOBODY_SAID = "I am not sure about that."


class Shop:
    """A workload that people ask, and what its dataset teaches."""

    def __init__(self, warehouse: Warehouse, folder: Path) -> None:
        self.warehouse, self.world, self.now = warehouse, World("shop"), START
        self.settings = Settings(
            models=ModelsSettings(directory=folder / "models"),
            dataset=DatasetSettings(minimum_rows=1),
            gate=GateSettings(minimum_examples=1),
        )

    def ask(self, question: Any, response: str = NOBODY_SAID, who: str | None = None, **about: Any) -> str:
        self.now += MINUTE
        return self.world.asked(question, response, self.now, right=(), who=who, **about)

    def correct(
        self,
        question: Any,
        answer: str,
        who: str | None = None,
        source: str = "user",
        instead: str = NOBODY_SAID,
        **about: Any,
    ) -> str:
        interaction = self.ask(question, instead, who, **about)
        self.now += MINUTE
        return self.world.said(interaction, "correction", answer, self.now, who=who, source=source)

    def expert(self, question: Any, answer: str, **about: Any) -> str:
        return self.correct(question, answer, "staff-1", "expert", **about)

    def accept(self, question: Any, answer: str, who: str | None = None, **about: Any) -> str:
        interaction = self.ask(question, answer, who, **about)
        self.now += MINUTE
        return self.world.said(interaction, "helpful", True, self.now, who=who)

    def others(self, count: int = 40, answer: str = "That is done by {}.", people: int = 20) -> None:
        """What accounts of old standing say of other things."""
        for number, (thing, place) in enumerate(things(count)):
            question = f"Who looks after {thing} when I am in {place}?"
            self.accept(question, answer.format(f"the {thing} team"), f"customer-{number % people}")
        self.now += 10 * DAY

    def dataset(self, **changed: Any) -> Dataset:
        self.world.into(self.warehouse)
        return build_dataset(self.warehouse, self.settings.model_copy(update=changed), WORKLOAD, self.now + HOUR)

    def taught(self, question: Any, built: Dataset | None = None) -> list[str]:
        """The answers to a question that are taught or held out."""
        messages = [{"role": "user", "content": question}] if isinstance(question, str) else question
        return answers(built or self.dataset())[key_of(messages)]

    def promote(self, built: Dataset) -> None:
        """A version that was trained on the dataset serves."""
        promote(self.warehouse, built, self.now)


def rows(built: Dataset, *names: str) -> list[dict[str, Any]]:
    return [row for name in names or SPLITS for row in built.split(name)]


def answers(built: Dataset) -> defaultdict[str, list[str]]:
    """Of each question what is taught or held out, word for word."""
    found = defaultdict[str, list[str]](list)
    for row in rows(built):
        context = json.loads(row["context"]) if row["context"] else None
        found[key_of(json.loads(row["messages"]), context)].append(row["completion"])
    return found


def completions(built: Dataset) -> set[str]:
    return {row["completion"] for row in rows(built)}


def set_aside(built: Dataset) -> dict[str, str]:
    """Reasons, by feedback id."""
    return {row["feedback_id"]: row["reason"] for row in built.split("set_aside")}


def things(count: int) -> Iterator[tuple[str, str]]:
    """Of what questions are about, and where: up to 200 pairs."""
    names = (
        "tulips", "carpets", "parrots", "engines", "teapots", "canoes", "violins", "ladders", "curtains", "marbles",
        "saddles", "lanterns", "bicycles", "cameras", "pillows", "hammocks", "kettles", "mirrors", "tractors", "gloves",
    )  # fmt: skip
    places = ("Bergen", "Lisbon", "Krakow", "Zagreb", "Dundee", "Toulouse", "Palermo", "Uppsala", "Kyoto", "Quito")
    for number in range(count):
        yield names[number % len(names)], places[number // len(names) % len(places)]
