"""Do the intervals of uplift and of drift's severity hold the truth as often as they promise? One to two minutes each.

python tests/benchmarks/run.py rates_money            # or rates_money.uplift, rates_money.severity
"""

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import customers
import numpy as np

from retuned.monitors.drift.topics import find_topics
from retuned.monitors.drift.two_samples import Sample
from retuned.monitors.money.roi import Moments, uplift_interval

PROMPTS, CHANGED, TOPICS, SEVERITY_RUNS = 500, 0.2, 8, 40
KINDS = ("moved", "new", "gone")
RUNS, DAYS_BEFORE, DAYS_AFTER = 1_000, 7, 7
CONVERSATIONS, DEVIATIONS = (100, 1_000, 5_000), (0.0, 0.05, 0.1)


def main(part: str = "") -> dict[str, float]:
    """All parts, or the one that is named."""
    parts: dict[str, Callable[[], dict[str, float]]] = {"uplift": uplift, "severity": severity}
    figures: dict[str, float] = {}
    for name, measure in parts.items():
        if part in ("", name):
            figures |= measure()
    return figures


def uplift() -> dict[str, float]:
    """How often the interval holds the true uplift: a champion gains 20% more a conversation than the one before."""
    rng = np.random.default_rng(1)
    figures = {}
    for conversations in CONVERSATIONS:
        for deviation in DEVIATIONS:
            held = 0
            for _ in range(RUNS):
                before = _side(rng, DAYS_BEFORE, conversations, deviation, 1.0)
                now = _side(rng, DAYS_AFTER, conversations, deviation, 1.2)
                low, high = uplift_interval(now, before)
                assert low is not None
                assert high is not None
                held += low <= 0.2 * now.conversations <= high
            figures[f"uplift_held_{conversations}_{deviation:.0%}"[:-1]] = held / RUNS
            print(
                f"uplift, {conversations} a day, days ± {deviation:.0%}: {held / RUNS:.1%}", file=sys.stderr, flush=True
            )
    return figures


def severity() -> dict[str, float]:
    """How often the interval holds the 20% of the questions that changed, and the mean estimate."""
    figures = {}
    for kind in KINDS:
        found = []
        for seed in range(SEVERITY_RUNS):
            made = find_topics(*windows(kind, random.Random(seed)), TOPICS)
            assert made is not None
            found.append(made.difference)
        held = sum(one.low <= CHANGED <= one.high for one in found) / SEVERITY_RUNS
        mean = sum(one.share for one in found) / SEVERITY_RUNS
        figures |= {f"severity_held_{kind}": held, f"severity_{kind}": mean}
        print(f"severity, topics {kind}: {mean:.1%}, held in {held:.1%}", file=sys.stderr, flush=True)
    return figures


def windows(kind: str, rng: random.Random) -> tuple[Sample, Sample]:
    """Questions to a shop, of which a fifth moves to one topic, is about a new one, or about none any more."""
    topic = rng.choice(list(customers.TOPICS))
    weights = dict(zip(customers.TOPICS, customers.WEIGHTS, strict=True))
    usual = weights[topic] / sum(weights.values())
    before, now = {"moved": (usual, usual + CHANGED), "new": (0.0, CHANGED), "gone": (CHANGED, 0.0)}[kind]

    def asked(share: float) -> Sample:
        others = {name: weight for name, weight in weights.items() if name != topic}
        drawn = rng.choices(list(others), list(others.values()), k=PROMPTS)
        names = [topic if rng.random() < share else name for name in drawn]
        prompts = np.asarray([customers.question(name, rng) for name in names], dtype=object)
        return Sample(prompts, np.zeros(PROMPTS, dtype=np.int64))

    return asked(before), asked(now)


def _side(rng: np.random.Generator, days: int, conversations: int, deviation: float, mean: float) -> Moments:
    """What a champion gained: four in ten conversations gain something, long-tailed; days are good or bad."""
    found = Moments()
    for day in mean * (1 + deviation * rng.standard_normal(days)):
        n = int(rng.poisson(conversations))
        gains = np.where(rng.random(n) < 0.4, rng.lognormal(-0.32, 0.8, n) / 0.4, 0.0) * day
        total = float(gains.sum())
        found += Moments(
            conversations=n, gain=total, gain_squared=float(gains @ gains), days=1, conversations_squared=n * n,
            daily_gain_squared=total * total / n,
        )  # fmt: skip
    return found


if __name__ == "__main__":
    json.dump(main(*sys.argv[1:]), sys.stdout, indent=2)
    print()
