"""Plays every system in every scenario, and compares money, errors and decisions by seed.

Each seed is a world that all systems play, so differences are taken within a seed, and the seed is the cluster of all
intervals: 95%, by Student's t over seeds. Results are kept in `build/loop.jsonl`, and a year that is there is not
played again: delete the file after a change of the code.
"""

import json
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from scipy.stats import t as student

from loop.learner import Learner
from loop.ours import PARTS, Ours
from loop.systems import BASELINES, Oracle
from loop.world import SCENARIOS, SHORT, World
from loop.year import Record, System, Year

RESULTS = Path(__file__).parents[3] / "build" / "loop.jsonl"
SEEDS = 20
AGAINST: dict[str, Callable[[], System]] = {**BASELINES, "memory_alone": lambda: Ours(("training",))}
WITHOUT = {f"ours_without_{part}": (part,) for part in PARTS}
TAKEN_APART = ("change", "poison_few", "bad_candidates")
"""The scenarios in which ours also runs without each part."""

DAYS_AFTER = (0, 1, 3, 7, 14, 30)

Result = dict[str, Any]


def systems(scenario: str) -> dict[str, Callable[[], System]]:
    """The systems that play a scenario, by name."""
    found: dict[str, Callable[[], System]] = {"oracle": Oracle, **AGAINST, "ours": Ours}
    if scenario in TAKEN_APART:
        found |= {name: lambda parts=parts: Ours(parts) for name, parts in WITHOUT.items()}
    return found


def played(
    scenarios: Iterable[str],
    seeds: Iterable[int],
    chosen: Mapping[str, Callable[[], System]] | None = None,
    *,
    results: Path = RESULTS,
    learner: Callable[[World], Learner] | None = None,
) -> list[Result]:
    """The results of all years, seed by seed; those that are missing are played.

    Args:
        chosen: the systems; None: all that play the scenario.
        learner: makes what trains in a world; None: trainings are simulated.
    """
    results.parent.mkdir(exist_ok=True)
    known = {(one["scenario"], one["seed"], one["system"]): one for one in stored(results)}
    found = []
    scenarios = list(scenarios)
    for seed in seeds:
        for scenario in scenarios:
            world = World((SCENARIOS | SHORT)[scenario], seed)
            for name, made in (chosen or systems(scenario)).items():
                key = (scenario, seed, name)
                if key not in known:
                    record = Year(world, learner(world) if learner else None).play(made())
                    known[key] = {"scenario": scenario, "seed": seed, "system": name, **as_result(record)}
                    with results.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(known[key]) + "\n")
                found.append(known[key])
        print(f"seed {seed} of {', '.join(scenarios)}", file=sys.stderr, flush=True)
    return found


def stored(results: Path = RESULTS) -> list[Result]:
    """The results that are kept."""
    return [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()] if results.exists() else []


def as_result(record: Record) -> Result:
    """A year's figures as JSON."""
    counted = asdict(record)
    counted.pop("right")
    return counted | {"money": record.money, "wrong_share": record.wrong_share}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half of the width of its 95% interval; each value is a seed's."""
    if len(values) < 2:
        return fmean(values), math.nan
    return fmean(values), float(student.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))


def regrets(results: Iterable[Result]) -> dict[str, dict[str, dict[int, float]]]:
    """By scenario, system and seed, the money that a system makes less than the oracle."""
    money: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for one in results:
        money[one["scenario"]][one["system"]][one["seed"]] = one["money"]
    return {
        scenario: {
            name: {seed: by["oracle"][seed] - value for seed, value in own.items() if seed in by["oracle"]}
            for name, own in by.items()
        }
        for scenario, by in money.items()
        if "oracle" in by
    }


def table(results: list[Result]) -> str:
    """Regret by scenario and system as Markdown, and whether ours beats the best baseline."""
    found = regrets(results)
    names = [name for name in [*AGAINST, "ours"] if any(name in by for by in found.values())]
    lines = ["| scenario | " + " | ".join(names) + " | ours less best | seeds |", "|---" * (len(names) + 3) + "|"]
    for scenario, by in found.items():
        if "ours" not in by:
            continue
        cells = ["{:,.0f} ± {:,.0f}".format(*interval(list(by[name].values()))) for name in names]
        best = best_baseline(by)
        common = by[best].keys() & by["ours"].keys()
        gain = interval([by["ours"][seed] - by[best][seed] for seed in common])
        cells += ["{:+,.0f} ± {:,.0f} ({})".format(*gain, best), str(len(common))]
        lines.append(f"| {scenario} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def best_baseline(by: dict[str, dict[int, float]]) -> str:
    """The baseline with the least mean regret in a scenario."""
    return min((name for name in AGAINST if name in by), key=lambda name: fmean(by[name].values()))


def decisions(results: list[Result], names: Sequence[str]) -> str:
    """What systems decided, as Markdown: means over all years."""
    columns = ("wrong_share", "trainings", "needless", "promotions", "wrong_promotions", "missed", "hours", "forgotten")
    lines = ["| system | " + " | ".join(columns) + " | rollback_days | detection_days |", "|---" * 11 + "|"]
    for name in names:
        own = [one for one in results if one["system"] == name]
        if not own:
            continue
        cells = [f"{mean([one[column] for one in own]):.3g}" for column in columns]
        cells += [
            f"{mean([day for one in own for day in one[column]]):.3g}" for column in ("rollback_days", "detection_days")
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def after_change(results: Iterable[Result], scenario: str = "change") -> str:
    """The share of wrong answers by days since a change, as Markdown."""
    lines = [
        "| system | that day | " + " | ".join(map(str, DAYS_AFTER[1:])) + " |",
        "|---" * (len(DAYS_AFTER) + 1) + "|",
    ]
    own = [one for one in results if one["scenario"] == scenario]
    for name in ["oracle", *AGAINST, "ours"]:
        years = [one["by_day_after"] for one in own if one["system"] == name]
        if years:
            cells = [f"{mean([year[day] for year in years]):.0%}" for day in DAYS_AFTER]
            lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def apart(results: Sequence[Result], scenario: str = "change") -> str:
    """What ours loses without each part in a scenario, as Markdown."""
    by = regrets(results).get(scenario, {})
    columns = ("wrong_share", "trainings", "promotions", "wrong_promotions", "missed")
    lines = ["| without | regret more than ours | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for name in WITHOUT:
        if name in by:
            more = interval([by[name][seed] - by["ours"][seed] for seed in by[name].keys() & by["ours"].keys()])
            own = [one for one in results if (one["scenario"], one["system"]) == (scenario, name)]
            cells = [f"{mean([one[column] for one in own]):.3g}" for column in columns]
            lines.append(
                f"| `{name.removeprefix('ours_without_')}` | {more[0]:+,.0f} ± {more[1]:,.0f} | "
                + " | ".join(cells)
                + " |"
            )
    return "\n".join(lines)


def mean(values: Iterable[float]) -> float:
    """The mean of what is known; NaN: nothing is."""
    known = [value for value in values if not math.isnan(value)]
    return fmean(known) if known else math.nan


def figures(results: list[Result]) -> dict[str, float]:
    """The benchmark's figures: means over the scenarios, with equal weights.

    `loop_gain` is the share of the best single baseline's regret that ours saves; below 0 it loses.
    """
    by_scenario = {scenario: by for scenario, by in regrets(results).items() if "ours" in by}
    means = {name: fmean(fmean(by[name].values()) for by in by_scenario.values()) for name in [*AGAINST, "ours"]}
    best = min(AGAINST, key=lambda name: means[name])
    own = [one for one in results if one["system"] == "ours"]
    lost = sum(fmean(by["ours"].values()) > fmean(by[best_baseline(by)].values()) for by in by_scenario.values())
    return {
        "loop_regret_ours": means["ours"],
        "loop_regret_best_baseline": means[best],
        "loop_gain": 1 - means["ours"] / means[best],
        "loop_wrong_answers_share": fmean(one["wrong_share"] for one in own),
        "loop_wrong_promotions": sum(one["wrong_promotions"] for one in own)
        / max(sum(one["promotions"] for one in own), 1),
        "loop_detection_days": mean([day for one in own for day in one["detection_days"]]),
        "loop_scenarios_lost": float(lost),
    }
