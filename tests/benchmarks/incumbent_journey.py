"""From the first request to an incumbent to a model of one's own: what `retuned plan` states on day 7, and what
happens.

    python tests/benchmarks/run.py incumbent.journey

Days are simulated; the gate and the plan are the real ones. A stand-in for the incumbent answers 2,000 questions a day,
of which 80% are answered right. People rate 5% of the answers and correct those that are wrong. Each week a model
learns from the rows of a dataset so far, and the gate compares it with the incumbent on the rest, with a margin of 5
points and its usual settings. The rollout's days are those of `incumbent`.

- `banking77`: real questions (RETUNED_DATA), drawn again and again. The model is a classifier that really learns from
  these rows: a ridge regression on static vectors and hashed words. It is not an adapter: a training each week of each
  journey would take days on two cores. Of other questions it answers 74% right with 1,500 rows and 82% with 4,000; an
  adapter of SmolLM2-135M answers 80% right with 1,540 (docs/benchmarks.md).
- `banking77_bought`: the same where good answers of the incumbent are taught, too (`dataset.learn_from_incumbent`).
- `demo`: the demo's company, whose customers have some 100 questions. The model knows those that it was taught, and is
  right on others as often as the first adapter of `make demo`.

`incumbent_journey_…`: medians over `JOURNEYS`, of those that were promoted within `WEEKS`, whose share is `…_promoted`.
`…_planned_days` and `…_days_to_promotion` count from day 0, `…_days_to_own` adds the rollout; `…_planned_rows` and
`…_rows` are the rows of the holdout that the plan needs, and that are there at the promotion; `…_right` is the share of
all questions that the promoted model answers right.
"""

import csv
import os
import random
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from zlib import crc32

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from incumbent import INCUMBENT, RIGHT, SERVICE, SETTINGS, WIDE, days_of_steps

from fixtures.worlds.candidates import Row
from retuned.daemon.demo.company import load, split_questions
from retuned.daemon.owning.estimate import Machines, estimate
from retuned.daemon.owning.facts import Facts, Judged
from retuned.daemon.settings import Settings
from retuned.retrain.decision.gate import decide
from retuned.retrain.decision.power import Held, examples_to_ask
from retuned.retrain.settings import DatasetSettings

JOURNEYS, WEEKS, PLANNED_DAY, UNSEEN_RIGHT = 3, 26, 7, 0.78
WORDS, RIDGE = 768, 1.0
MARGIN = INCUMBENT.model_copy(update={"margin": WIDE})
DATASET = DatasetSettings()


@dataclass(frozen=True)
class World:
    """Questions, and a model of them.

    Attributes:
        learn: from the questions that are taught to whether the model answers each question right.
        bought: good answers of the incumbent are taught.
    """

    questions: int
    learn: Callable[[np.ndarray], np.ndarray]
    bought: bool = False


@dataclass
class Journey:
    """One journey; days count from 0."""

    world: World
    luck: np.random.Generator
    planned: dict[str, float | None] = field(default_factory=dict)

    def go(self) -> dict[str, float] | None:
        """Returns what happened; None: the gate promoted nothing within WEEKS."""
        size = self.world.questions
        held_out = self.luck.random(size) < DATASET.holdout_share
        kinds: dict[int, bool] = {}  # of a question: the incumbent's last answer was called good
        rated, tries = list[bool](), 0
        for week in range(1, WEEKS + 1):
            count = round(7 * SERVICE.answers * SERVICE.rated)
            for question, good in zip(
                self.luck.integers(size, size=count), self.luck.random(count) < RIGHT, strict=True
            ):
                kinds[int(question)] = bool(good)
                rated.append(bool(good))
            if 7 * week == PLANNED_DAY:
                self.planned = self.plan(rated)
            known = self.luck.permutation(sorted(kinds))
            good = np.array([kinds[one] for one in known])
            taught = known[~held_out[known] & (~good | self.world.bought)]
            if len(taught) < DATASET.minimum_rows:
                continue
            right = self.world.learn(taught)
            compared = held_out[known] | (good & (not self.world.bought))  # what may not be taught is held out
            asked, was_good = known[compared], good[compared]
            most = examples_to_ask(Held(was_good.sum(), (~was_good).sum()), SETTINGS, MARGIN, tries)
            if self.promoted(asked[:most], was_good[:most], right, tries):
                figures = {"days_to_promotion": 7.0 * week, "rows": float(len(asked)), "right": float(right.mean())}
                return figures | {"taught": float(len(taught))}
            tries += 1
        return None

    def promoted(self, asked: np.ndarray, good: np.ndarray, right: np.ndarray, tries: int) -> bool:
        kinds = ["accepted" if one else "correction" for one in good]
        rows = [f"r{one}" for one in asked]
        logged = [Row(id, float(one), kind=kind) for id, one, kind in zip(rows, good, kinds, strict=True)]
        own = [Row(id, float(right[one]), kind=kind) for id, one, kind in zip(rows, asked, kinds, strict=True)]
        base = [Row(id, 0.0, kind=kind) for id, kind in zip(rows, kinds, strict=True)]
        return decide(base, own, [], [], SETTINGS, logged=logged, serving=False, incumbent=MARGIN, tries=tries).outcome

    def plan(self, rated: list[bool]) -> dict[str, float | None]:
        good, wrong = sum(rated), len(rated) - sum(rated)
        judged = Judged(0, wrong, good, good, 0, len(rated), wrong, good, float(PLANNED_DAY))
        facts = Facts(traffic=None, feedback=[], judged=judged, dataset=None, trained=[])
        settings = Settings(incumbent=MARGIN, dataset=DatasetSettings(learn_from_incumbent=self.world.bought))
        found = {
            one.name: one.value for one in estimate(facts, settings, Machines(), [], datetime(2026, 11, 1)).figures
        }
        return {"rows": found["holdout_needed"], "days": found["days_until_decidable"]}


def banking77() -> tuple[int, Callable[[np.ndarray], np.ndarray]] | None:
    """The questions of Banking77, and a classifier of them."""
    from retuned.retrain.memory import embed

    folder, embedding = Path(os.environ.get("RETUNED_DATA", "")) / "banking77", embed.load()
    if not os.environ.get("RETUNED_DATA") or not folder.is_dir() or embedding is None:
        return None
    files = [(folder / f"{part}.csv").read_text(encoding="utf-8").splitlines() for part in ("train", "test")]
    rows = [row for lines in files for row in csv.DictReader(lines)]
    texts = [row["text"] for row in rows]
    vectors = np.c_[embedding(texts), _words(texts), np.ones(len(rows), np.float32)]
    names = sorted({row["category"] for row in rows})
    intents = np.array([names.index(row["category"]) for row in rows])

    def learn(taught: np.ndarray) -> np.ndarray:
        own, targets = vectors[taught], np.eye(len(names), dtype=np.float32)[intents[taught]]
        weights = np.linalg.solve(own.T @ own + RIDGE * np.eye(own.shape[1], dtype=np.float32), own.T @ targets)
        return np.asarray((vectors @ weights).argmax(axis=1) == intents)

    return len(rows), learn


def _words(texts: list[str]) -> np.ndarray:
    """Words and pairs of words, hashed to `WORDS` columns and weighted by how rare they are."""
    found = np.zeros((len(texts), WORDS), np.float32)
    for row, text in enumerate(texts):
        words = [word[:6] for word in re.findall(r"\w+", text.lower())]
        for one in {*words, *map(" ".join, pairwise(words))}:
            found[row, crc32(one.encode()) % WORDS] += 1
    found *= np.log(len(texts) / (1 + (found > 0).sum(axis=0)))
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True))


def demo() -> tuple[int, Callable[[np.ndarray], np.ndarray]]:
    """The questions that the demo's customers ask, and a model that knows what it was taught."""
    company = load(None)
    asked, _ = split_questions(company, 0)
    size = sum(len(asked[fact.id]) for fact in company.facts(False))
    lucky = np.array([random.Random(number).random() < UNSEEN_RIGHT for number in range(size)])

    def learn(taught: np.ndarray) -> np.ndarray:
        right = lucky.copy()
        right[taught] = True
        return right

    return size, learn


def main() -> dict[str, float]:
    """Takes about a minute."""
    luck = np.random.default_rng(1)
    of_steps = float(np.median(days_of_steps(luck)))
    worlds = {"demo": World(*demo())}
    if (real := banking77()) is not None:
        worlds |= {"banking77": World(*real), "banking77_bought": World(*real, bought=True)}
    figures: dict[str, float] = {}
    for name, world in worlds.items():
        journeys = [Journey(world, luck) for _ in range(JOURNEYS)]
        ended = [found for journey in journeys if (found := journey.go()) is not None]
        named = {"promoted": len(ended) / JOURNEYS}
        for key in ended[0] if ended else ():
            named[key] = float(np.median([one[key] for one in ended]))
        if ended:
            named["days_to_own"] = round(named["days_to_promotion"] + of_steps, 1)
        for key, label, first in (("days", "planned_days", PLANNED_DAY), ("rows", "planned_rows", 0)):
            stated = [found for journey in journeys if (found := journey.planned.get(key)) is not None]
            if stated:
                named[label] = first + float(np.median(stated))
        figures |= {f"incumbent_journey_{name}_{key}": value for key, value in named.items()}
        print({key: value for key, value in figures.items() if name in key}, file=sys.stderr, flush=True)
    return figures


if __name__ == "__main__":
    for figure, value in main().items():
        print(f"{figure:50} {value:.4g}")
