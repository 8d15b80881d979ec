"""A/A test of the gate on answers of trained models: is a candidate promoted that is no better, or one that is worse?

    RETUNED_DATA=/path/to/data python tests/benchmarks/run.py aa
    RETUNED_DATA=/path/to/data python tests/benchmarks/run.py aa.labels     one of the two workloads: labels, json

Adapters of SmolLM2-135M learn ten intents of banking77, and the slots of restaurant8k as JSON. Each answers a pool of
questions that none was trained on. From the pool, holdouts of several sizes are drawn at random, RUNS of each, with
regression rows and traffic beside them, and the gate decides on each as in a retraining. That is, for each pair of
adapters and each size:

- `aa_equal_promoted`: equal candidates are other trainings of the champion's recipe, with another seed or on other rows
  of the same source. Each of them is the champion in turn. Chance makes one better than another; that counts as false
  all the same.
- `aa_equal_promoted_in_tries`: the other equal candidates are tried on one holdout, one after the other, as the gate
  counts them. A promotion of any counts.
- `aa_wrong_labels_promoted`: trained with 30% of the labels wrong. The holdout's own labels are right, and in as many
  runs 30% of them are wrong, too.
- `aa_class_lost_promoted`: trained without the rows of one class, or with these under the label of its neighbour.
- `aa_json_broken_promoted`: an equal candidate, of whose answers 10% lack the closing brace.

The last two meet a weak champion, too, one that had few rows to learn from (`…_over_weak`): there the loss hides behind
a gain. That the gate can promote at all shows `aa_better_promoted`, equal candidates against the weak champion.

The time that a token takes is not part of it, since the machine makes it, and the general prompts are not, since they
are for information where answers are for programs. What each adapter is worth, by `Task.right` on the whole pool, and
what the gate refused by is written to stderr. It takes some twenty minutes of one core.
"""

import json
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from train import BASE
from workloads import bookings, intents
from workloads.task import Item, Skipped, Task

from retuned.daemon.demo.model import base_model
from retuned.retrain.data.dataset import Dataset
from retuned.retrain.decision.evaluation import CANDIDATE, CHAMPION, LOGGED, Evaluation
from retuned.retrain.decision.gate import decide
from retuned.retrain.decision.measures import measured, scored, with_agreement
from retuned.retrain.decision.pairs import Decision
from retuned.retrain.scoring.metric import Metric, choose
from retuned.retrain.settings import EvaluateSettings, GateSettings, ModelsSettings, Settings, TrainSettings
from retuned.retrain.training.train import train

RUNS = 40
POOL = 700
SIZES = (30, 60, 150)
TRAFFIC = 100
RIGHT = 0.25
"""Of production's answers."""
WRONG, BROKEN = 0.3, 0.1
EQUAL, WEAK = "equal", "weak"
LOST, NEIGHBOUR = "card_arrival", "card_delivery_estimate"
TRAIN = TrainSettings(threads=1, epochs=3)
EVALUATE = EvaluateSettings(max_new_tokens=64, batch_size=32)
GATE = GateSettings()

Row = dict[str, Any]
Answers = dict[str, Evaluation]
"""By row_id."""


@dataclass(frozen=True)
class Workload:
    """What adapters are trained on, by their names, and a pool of questions that none of them was trained on."""

    task: Task
    rows: dict[str, tuple[list[Item], int]]  # with the seed of the training
    pool: list[Item]

    @property
    def equals(self) -> list[str]:
        return [name for name in self.rows if name.startswith(EQUAL)]

    @cached_property
    def holdout(self) -> list[Row]:
        """The pool as rows of a dataset. Production is right in some of its answers, which people accepted."""
        luck = Random(0)
        return [_row(item, number, luck.random() < RIGHT) for number, item in enumerate(self.pool)]

    @cached_property
    def metric(self) -> Metric:
        return choose(Settings(), [item.answer for item in self.pool]).metric

    @cached_property
    def logged(self) -> dict[str, str]:
        """What production answered."""
        luck, wrong = Random(1), self.task.wrong
        return {
            row["row_id"]: item.answer if row["kind"] == "accepted" else wrong(item, luck)
            for row, item in zip(self.holdout, self.pool, strict=True)
        }

    def measured(self, name: str, outputs: Mapping[str, str], rows: Sequence[Row]) -> Answers:
        """Answers, scored against the approved ones of `rows`."""
        found = [measured("holdout", row, name, outputs[row["row_id"]]) for row in rows]
        return {one.row_id: one for one in scored(found, rows, self.metric)[0]}


def main(*named: str) -> dict[str, float]:
    """Both workloads, or the one that is named."""
    figures: dict[str, float] = {}
    for name in named or WORKLOADS:
        make, decided = WORKLOADS[name]
        try:
            workload = make()
        except Skipped as reason:
            print(f"aa.{name} is skipped: {reason}", file=sys.stderr)
            continue
        base_model(BASE)
        with tempfile.TemporaryDirectory() as place:
            adapters = {one: _trained(one, workload, Path(place)) for one in workload.rows}
            outputs = _answered(adapters, workload)
        figures |= decided(workload, outputs)
    return figures


def labels() -> Workload:
    """Ten intents: forty questions of each to learn from, in two halves, and others of both splits as pool."""
    task = intents.task("banking77", 10, sys.maxsize, "title_case")
    asked, rest = _first(task.asked, 40)
    first, second = _halves(asked)
    neighbour = next(item.answer for item in asked if item.group == NEIGHBOUR)
    luck = Random(2)
    return Workload(
        task,
        {
            "equal1": (first, 0),
            "equal2": (second, 0),
            "equal3": (first, 1),
            "equal4": (second, 1),
            "equal5": (first, 2),
            "wrong_labels": (_mislabelled(second, task, luck), 0),
            "class_absent": ([item for item in second if item.group != LOST], 0),
            "class_renamed": ([replace(item, answer=neighbour) if item.group == LOST else item for item in second], 0),
            WEAK: (_first(first, 5)[0], 0),
        },
        _unseen([*rest, *task.exam], asked)[:POOL],
    )


def documents() -> Workload:
    """Slots as JSON: four hundred utterances to learn from, in two halves, and those of the exam as pool."""
    task = bookings.task(400, POOL)
    first, second = task.asked[::2], task.asked[1::2]
    return Workload(
        task,
        {"equal1": (first, 0), "equal2": (second, 0), "equal3": (first, 1), WEAK: (first[:40], 0)},
        _unseen(task.exam, task.asked),
    )


def decided_on_labels(workload: Workload, outputs: Mapping[str, Mapping[str, str]]) -> dict[str, float]:
    """The figures of the workload of labels. `outputs`: by adapter and row_id."""
    told = _Report(workload, outputs)
    answers = {name: workload.measured(name, texts, workload.holdout) for name, texts in outputs.items()}
    figures = _equal("labels", workload, answers, told)
    figures["aa_better_promoted_labels"] = _promoted(_each(workload, answers, [WEAK], workload.equals, told))
    luck = Random(3)
    approved = _mislabelled(workload.pool, workload.task, luck)
    noisy = [row | {"completion": item.answer} for row, item in zip(workload.holdout, approved, strict=True)]
    on_noisy = {name: workload.measured(name, texts, noisy) for name, texts in outputs.items()}
    figures["aa_wrong_labels_promoted"] = _promoted([
        *_each(workload, answers, workload.equals, ["wrong_labels"], told),
        *_each(workload, on_noisy, workload.equals, ["wrong_labels"], told, "holdout 30% wrong"),
    ])  # fmt: skip
    lost = ["class_absent", "class_renamed"]
    figures["aa_class_lost_promoted"] = _promoted(_each(workload, answers, workload.equals, lost, told))
    figures["aa_class_lost_promoted_over_weak"] = _promoted(_each(workload, answers, [WEAK], lost, told))
    return figures


def decided_on_documents(workload: Workload, outputs: Mapping[str, Mapping[str, str]]) -> dict[str, float]:
    """The figures of the workload of JSON. `outputs`: by adapter and row_id."""
    luck = Random(4)
    cut = set(luck.sample(sorted(workload.logged), round(BROKEN * len(workload.logged))))
    broken = {
        f"broken_{name}": {id: text.rstrip().removesuffix("}") if id in cut else text for id, text in texts.items()}
        for name, texts in outputs.items()
        if name in workload.equals
    }
    outputs = {**outputs, **broken}
    told = _Report(workload, outputs)
    answers = {name: workload.measured(name, texts, workload.holdout) for name, texts in outputs.items()}
    figures = _equal("json", workload, answers, told)
    figures["aa_better_promoted_json"] = _promoted(_each(workload, answers, [WEAK], workload.equals, told))
    figures["aa_json_broken_promoted"] = _promoted(_each(workload, answers, workload.equals, list(broken), told))
    figures["aa_json_broken_promoted_over_weak"] = _promoted(_each(workload, answers, [WEAK], list(broken), told))
    return figures


WORKLOADS: dict[
    str, tuple[Callable[[], Workload], Callable[[Workload, Mapping[str, Mapping[str, str]]], dict[str, float]]]
] = {"labels": (labels, decided_on_labels), "json": (documents, decided_on_documents)}


def _equal(name: str, workload: Workload, answers: Mapping[str, Answers], told: "_Report") -> dict[str, float]:
    """Each equal adapter as champion, and the others tried in turn, the first one another in each run."""
    first, any_of_them = [], []
    for champion in workload.equals:
        others = [one for one in workload.equals if one != champion]
        pairs = {one: _pair(answers[champion], answers[one], workload) for one in others}
        logged = workload.measured(LOGGED, workload.logged, workload.holdout)
        for size in SIZES:
            for run in range(RUNS):
                turn = [*others[run % len(others) :], *others[: run % len(others)]]
                promoted = False
                for tries, one in enumerate(turn):
                    decision = _decided(*pairs[one], logged, _drawn(workload.pool, size, run), tries)
                    if tries == 0:
                        first.append(decision.outcome)
                        told.add(one, champion, size, decision)
                    promoted |= decision.outcome
                    if promoted:
                        break
                any_of_them.append(promoted)
    told.show()
    print(f"{name}: {sum(any_of_them)} of {len(any_of_them)} holdouts promoted one of the others", file=sys.stderr)
    return {
        f"aa_equal_promoted_{name}": _promoted(first),
        f"aa_equal_promoted_in_tries_{name}": _promoted(any_of_them),
    }


def _each(
    workload: Workload,
    answers: Mapping[str, Answers],
    champions: Iterable[str],
    candidates: Sequence[str],
    told: "_Report",
    note: str = "",
) -> list[bool]:
    """What was promoted: each candidate against each champion, RUNS times on each size."""
    found = []
    logged = workload.measured(LOGGED, workload.logged, workload.holdout)
    for champion in champions:
        for candidate in candidates:
            pair = _pair(answers[champion], answers[candidate], workload)
            for size in SIZES:
                for run in range(RUNS):
                    decision = _decided(*pair, logged, _drawn(workload.pool, size, run), 0)
                    told.add(candidate, champion, size, decision, note)
                    found.append(decision.outcome)
    told.show()
    return found


def _pair(champion: Answers, candidate: Answers, workload: Workload) -> tuple[Answers, Answers]:
    """The same as the answers of champion and candidate, with their agreement."""
    rows = [
        *(replace(one, model=CHAMPION) for one in champion.values()),
        *(replace(one, model=CANDIDATE) for one in candidate.values()),
    ]
    found: dict[str, Answers] = {CHAMPION: {}, CANDIDATE: {}}
    for one in with_agreement(rows, workload.holdout, workload.metric):
        found[one.model][one.row_id] = one
    return found[CHAMPION], found[CANDIDATE]


def _decided(
    champion: Answers, candidate: Answers, logged: Answers, drawn: tuple[list[str], list[str], list[str]], tries: int
) -> Decision:
    holdout, regression, traffic = drawn
    return decide(
        _of(champion, holdout),
        _of(candidate, holdout),
        _of(champion, regression, "regression"),
        _of(candidate, regression, "regression"),
        GATE,
        tries,
        logged=_of(logged, holdout),
        traffic=_of(candidate, traffic, "traffic"),
        structured=True,
    )


def _of(answers: Answers, ids: Iterable[str], split: str = "holdout") -> list[Evaluation]:
    return [replace(answers[id], split=split) for id in ids]


def _drawn(pool: Sequence[Item], size: int, run: int) -> tuple[list[str], list[str], list[str]]:
    """The row_ids of a holdout, of as many regression rows, and of traffic.

    The holdout has its share of each class, as that of a dataset has.
    """
    luck = Random(f"{size} {run}")
    order = luck.sample(range(len(pool)), len(pool))
    of_group: dict[str, list[int]] = defaultdict(list)
    for place in order:
        of_group[pool[place].group].append(place)
    shares = [places[: size * len(places) // len(pool)] for places in of_group.values()]
    holdout = [place for share in shares for place in share]
    rest = [place for place in order if place not in set(holdout)]
    lacking = size - len(holdout)
    parts = holdout + rest[:lacking], rest[lacking : lacking + size], rest[lacking + size : lacking + size + TRAFFIC]
    first, second, third = ([str(place) for place in part] for part in parts)
    return first, second, third


def _promoted(outcomes: Sequence[bool]) -> float:
    return sum(outcomes) / len(outcomes)


class _Report:
    """What was promoted and refused by what, beside what the adapters are worth on the whole pool; to stderr."""

    def __init__(self, workload: Workload, outputs: Mapping[str, Mapping[str, str]]) -> None:
        self._found: dict[tuple[str, str, str], dict[int, list[Decision]]] = defaultdict(lambda: defaultdict(list))
        right = workload.task.right
        for name, texts in outputs.items():
            by_group: dict[str, list[float]] = defaultdict(list)
            for number, item in enumerate(workload.pool):
                by_group[item.group].append(right(texts[str(number)], item))
            known = {group: scores for group, scores in by_group.items() if len(scores) >= min(SIZES)}
            worst = min(known, key=lambda group: fmean(known[group]))
            share = fmean(score for scores in by_group.values() for score in scores)
            print(f"{name:16} right in {share:.3f}; worst: {worst} {fmean(known[worst]):.3f}", file=sys.stderr)

    def add(self, candidate: str, champion: str, size: int, decision: Decision, note: str = "") -> None:
        self._found[candidate, champion, note][size].append(decision)

    def show(self) -> None:
        for (candidate, champion, note), by_size in self._found.items():
            shares = ", ".join(f"{sum(one.outcome for one in found)}/{len(found)}" for found in by_size.values())
            by = Counter(
                name.removeprefix("passed[").removesuffix("]")
                for found in by_size.values()
                for one in found
                for name, passed in one.figures.items()
                if name.startswith("passed[") and not passed
            )
            gain = fmean(one.figures["gain"] for found in by_size.values() for one in found)
            told = ", ".join(f"{name} {times}" for name, times in by.most_common())
            print(
                f"{candidate} against {champion} {note}: {shares} promoted of {'/'.join(map(str, by_size))} rows; "
                f"gain {gain:+.3f}; refused by {told}",
                file=sys.stderr,
            )
        self._found.clear()


def _first(items: Sequence[Item], count: int) -> tuple[list[Item], list[Item]]:
    """The first so many of each group, and the others."""
    seen: Counter[str] = Counter()
    first, rest = list[Item](), list[Item]()
    for item in items:
        seen[item.group] += 1
        (first if seen[item.group] <= count else rest).append(item)
    return first, rest


def _halves(items: Sequence[Item]) -> tuple[list[Item], list[Item]]:
    """Every other one, in an order in which groups are mixed."""
    mixed = Random(5).sample([*items[::2], *items[1::2]], len(items))
    chosen = {id(item) for item in items[::2]}
    return [item for item in mixed if id(item) in chosen], [item for item in mixed if id(item) not in chosen]


def _mislabelled(items: Sequence[Item], task: Task, luck: Random) -> list[Item]:
    wrong = set(luck.sample(range(len(items)), round(WRONG * len(items))))
    return [replace(item, answer=task.wrong(item, luck)) if n in wrong else item for n, item in enumerate(items)]


def _unseen(items: Iterable[Item], known: Iterable[Item]) -> list[Item]:
    """Each question once, in random order, and none that is known."""
    seen = {item.messages[-1]["content"] for item in known}
    found = {item.messages[-1]["content"]: item for item in items}
    unseen = [item for question, item in found.items() if question not in seen]
    return Random(6).sample(unseen, len(unseen))


def _row(item: Item, number: int, accepted: bool = True) -> Row:
    """A row as datasets have it."""
    return {
        "row_id": str(number),
        "messages": json.dumps(item.messages),
        "completion": item.answer,
        "context": None,
        "tools": None,
        "kind": "accepted" if accepted else "correction",
    }


def _trained(name: str, workload: Workload, place: Path) -> str:
    """Train an adapter from the base model, in a child process as a run does."""
    items, seed = workload.rows[name]
    rows = [_row(item, number) for number, item in enumerate(items)]
    folder = place / f"{name}-data"
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "train.parquet")
    dataset = Dataset(name, workload.task.name, datetime(2026, 11, 1), folder, {"train": len(rows)}, 0, {})
    settings = Settings(
        models=ModelsSettings(base=BASE, directory=place), train=TRAIN.model_copy(update={"seed": seed})
    )
    result = train(dataset, None, settings, place / name)
    print(f"{name}: {len(rows)} rows, {result['seconds']:.0f} s", file=sys.stderr, flush=True)
    return str(result["adapter"])


def _answered(adapters: Mapping[str, str], workload: Workload) -> dict[str, dict[str, str]]:
    """What each adapter answers to the pool, by row_id: generated as in an evaluation, without the losses."""
    import torch

    from retuned.retrain.generation.adapters import Generator
    from retuned.retrain.generation.engine import prompts
    from retuned.retrain.training import adapter as lora
    from retuned.retrain.training.base_model import load_model, load_tokenizer

    torch.set_num_threads(TRAIN.threads or 1)
    began = time.perf_counter()
    tokenizer = load_tokenizer(BASE)
    model = load_model(BASE, torch.bfloat16)
    for name, folder in adapters.items():
        model = lora.load_adapter(model, Path(folder), name=name)
    generator = Generator(model, {name: name for name in adapters}, tokenizer.pad_token_id)
    asked, limit = prompts(tokenizer, workload.holdout, EVALUATE, TRAIN.encoding)
    outputs: dict[str, dict[str, str]] = {name: {} for name in adapters}
    for first in range(0, len(asked), EVALUATE.batch_size):
        batch = asked[first : first + EVALUATE.batch_size]
        for name, ids in generator.answers([one.prompt for _, one in batch], limit).items():
            texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
            outputs[name] |= {row["row_id"]: text for (row, _), text in zip(batch, texts, strict=True)}
    print(f"{len(adapters)} adapters answered in {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    return outputs


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:]), indent=2))
