"""The watch, simulated: how many good champions it takes back, and after how many answers it takes back bad ones.

    python tests/benchmarks/watch.py

Services of 1,000 to 5 million answers a day, of which 1.5% are rated, half of them within six hours; weekends and
nights are worse than other hours, with either version. Each service is watched in many runs, looked at every hour.

`watch_false_rollbacks` is the greatest share taken back, over all sizes and margins, of champions that use the whole
margin up. `watch_answers_to_catch` is the median number of answers after which a fall of 20 points is found at 20,000
answers a day; the figures beside it name other sizes, `_holdback` where 5% of the traffic stays with the champion
before, `watch_caught_…` the share that is found at all within the two weeks of the watch. A few watches run through the
real check on a real warehouse, and must see what the simulation saw.
"""

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from fixtures.feedback.traffic import START, new_warehouse, promoted, serves, store
from fixtures.feedback.votes import DAY, HOUR, Service, draw, evidence, stored
from retuned.monitors.rates.estimate import evidence_effect
from retuned.monitors.rates.sequential import log_e_value
from retuned.monitors.rates.votes import Votes
from retuned.monitors.settings import Settings, WatchSettings
from retuned.monitors.watch.check import check
from retuned.monitors.watch.comparison import COMPARED

SIZES = (1_000, 3_000, 8_000, 20_000, 100_000, 1_000_000, 5_000_000)
MARGINS = (0.0, 0.05, 0.1)
NAMED = 20_000
SETTINGS = WatchSettings()
RUNS, AT_A_TIME = 400, 50


def main() -> dict[str, float]:
    """Simulate every size; takes some minutes on one core."""
    figures: dict[str, float] = {}
    false: list[float] = []
    print(f"{'answers a day':>14} {'false rollbacks':>24} {'caught':>7} {'answers':>9} {'hours':>6}", file=sys.stderr)
    print(f"{'':>14}" + "".join(f"{f'{margin:.0%}':>8}" for margin in MARGINS), file=sys.stderr)
    for size in SIZES:
        # At the edge of the margin, where the angry vote first: what is not equally mature looks worse.
        found = [taken_back(Service(size, fall=margin, early=0.1), margin, RUNS, seed=size)[0] for margin in MARGINS]
        false += found
        print(f"{size:>14,}" + "".join(f"{share:8.3f}" for share in found), end="", file=sys.stderr)
        for holdback in (0.0, 0.05):
            service = Service(size, fall=0.2, holdback=holdback)
            caught, hours = taken_back(service, SETTINGS.margin, RUNS // 2, seed=size + 1)
            answers = size * hours / DAY
            name = f"_{size}" + ("_holdback" if holdback else "")
            figures[f"watch_caught{name}"] = caught
            if caught >= 0.5:
                figures[f"watch_answers_to_catch{name}"] = answers
            print(f"{caught:8.3f}{answers:10,.0f}{hours:7.0f}", end="", file=sys.stderr)
        print(file=sys.stderr)
    by_votes, by_effect = dependent()
    through_the_check()
    return {
        "watch_false_rollbacks": max(false),
        "watch_false_rollbacks_accounts": by_effect,
        "watch_false_rollbacks_if_each_vote_counted": by_votes,
        "watch_answers_to_catch": figures[f"watch_answers_to_catch_{NAMED}"],
        **figures,
        **votes_needed(),
    }


def taken_back(service: Service, margin: float, runs: int, seed: int) -> tuple[float, float]:
    """The share of champions that are taken back, and after how many hours (median of these; 0: none was)."""
    rng = np.random.default_rng(seed)
    first = list[int]()
    for _ in range(runs // AT_A_TIME):
        enough = evidence(draw(service, AT_A_TIME, rng), margin, SETTINGS) >= 1
        first += [int(row.argmax()) + 1 for row in enough if row.any()]
    return len(first) / runs, float(np.median(first)) if first else 0.0


def dependent() -> tuple[float, float]:
    """False rollbacks at the edge of the margin where an account votes five times, much the same way each time.

    The correlation of two votes of an account is 0.5. Returns the share when each vote is an observation, and when
    votes are divided by their design effect, as in the watch.
    """
    rng = np.random.default_rng(5)
    runs, accounts, votes, bad, correlation = 1_000, 200, 5, 0.2, 0.5
    looks = np.arange(30, accounts + 1, 10)

    def side(share: float) -> np.ndarray:
        scale = (1 - correlation) / correlation
        own = rng.beta(share * scale, (1 - share) * scale, (runs, accounts))
        return rng.binomial(votes, own)

    def effect(before: np.ndarray, after: np.ndarray) -> float:
        n, none = np.full(len(before), votes), np.zeros(len(before))
        sides = [(before, n, none, none), (none, none, after, n)]
        return evidence_effect(Votes(np.vstack([np.column_stack([*of, none + 1]) for of in sides]), np.zeros((0, 4))))

    before, after = side(bad), side(bad + SETTINGS.margin)
    needed = np.log(1 / (SETTINGS.false_rollback_rate * COMPARED["helpful", "user"]))
    effects = np.array([[effect(k0[:look], k1[:look]) for look in looks] for k0, k1 in zip(before, after, strict=True)])
    k0, k1, n = before.cumsum(axis=1)[:, looks - 1], after.cumsum(axis=1)[:, looks - 1], looks * votes
    shares = [
        float((log_e_value(k0 / by, n / by, k1 / by, n / by, SETTINGS.margin) >= needed).any(axis=1).mean())
        for by in (1, effects)
    ]
    print(
        f"false rollbacks, five votes an account: {shares[1]:.3f}, if each vote were independent {shares[0]:.3f}",
        file=sys.stderr,
    )
    return shares[0], shares[1]


def votes_needed() -> dict[str, float]:
    """Users' votes that show a fall of 20 points, 300 before: by a mean of evidence, or with the error shared out."""
    after = np.arange(30, 1_000)
    found = log_e_value(0.15 * 300, 300, 0.35 * after, after, SETTINGS.margin)
    weights = {"watch_votes_mean": COMPARED["helpful", "user"], "watch_votes_bonferroni": 1 / len(COMPARED)}
    needed = {name: np.log(1 / (SETTINGS.false_rollback_rate * weight)) for name, weight in weights.items()}
    return {name: float(after[(found >= evidence).argmax()]) for name, evidence in needed.items()}


def through_the_check() -> None:
    """Five watches in a real warehouse: the same verdicts in the same hours."""
    for seed, (size, fall, holdback) in enumerate(
        ((3_000, 0.0, 0.0), (8_000, 0.2, 0.0), (8_000, 0.05, 0.0), (20_000, 0.2, 0.0), (20_000, 0.2, 0.2))
    ):
        watches = draw(Service(size, fall=fall, holdback=holdback), 1, np.random.default_rng(seed))
        enough = evidence(watches, SETTINGS.margin, SETTINGS)[0] >= 1
        hours = int(enough.argmax()) + 1 if enough.any() else 12 * DAY
        with tempfile.TemporaryDirectory() as folder:
            warehouse = new_warehouse(Path(folder))
            answers, votes = stored(watches, 0, START, "support")
            store(warehouse, "interactions", answers)
            store(warehouse, "feedback", votes)
            promoted(warehouse, "p", "v2", "v1", START)
            serves(warehouse, "v2", START)
            seen = [check(warehouse, Settings(), "support", START + look * HOUR) for look in (hours - 1, hours)]
            verdicts = [one.verdict if one else None for one in seen]
            warehouse.close()
        expected = ["go_on", "roll_back"] if enough.any() else ["go_on", "go_on"]
        print(f"through the check: {size:,} a day, a fall of {fall:.0%}, hour {hours}: {verdicts}", file=sys.stderr)
        if verdicts != expected:
            raise AssertionError(
                f"the simulation saw {expected} in hours {hours - 1} and {hours}, the check {verdicts}"
            )


if __name__ == "__main__":
    print(json.dumps(main(), indent=2))
