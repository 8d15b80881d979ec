"""Whole rollouts, simulated: how many good versions are taken back, and how many answers bad ones give before they are.

    python tests/benchmarks/canary.py

Services of 1,000 to 5 million answers a day, of which 1.5% are rated, half of them within six hours; weekends and
nights are worse than other hours, with either version. A version goes into service by steps of 5%, 25% and 100%, with a
holdback of 5% until the watch ends, and is looked at every hour.

`canary_false_rollbacks` is the greatest share, over all sizes and margins, of versions taken back that use the whole
margin up, where the angry vote first. `canary_bad_answers_share` is the mean share of the answers of four weeks that a
version 10 points worse gives, at 20,000 answers a day: until it is taken back, or to the end. The figures beside it
name other sizes, `_20` for 20 points, `_half` for 50/50 from the start and `_at_once` for no canary and no holdback, by
the same rules; `canary_caught_…` is the share of versions that are found at all, `canary_hours_…` how long it takes a
version that is as good to answer all but the holdback. A few rollouts run through the real checks on a real warehouse,
and must go as the simulation did.
"""

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from rollouts import NEVER, Rollouts, draw, simulate, through_the_checks
from watching import Service

from retuned.consumers.settings import RolloutSettings
from retuned.monitors.settings import WatchSettings

SIZES = (1_000, 3_000, 8_000, 20_000, 100_000, 1_000_000, 5_000_000)
MARGINS = (0.0, 0.05, 0.1)
NAMED = 20_000
WAYS = {
    "": RolloutSettings(steps=(0.05, 0.25, 1.0), holdback=0.05),
    "_half": RolloutSettings(steps=(0.5, 1.0), holdback=0.05),
    "_at_once": RolloutSettings(),
}
RUNS, AT_A_TIME = 200, 100


def main() -> dict[str, float]:
    """Simulate every size; takes some ten minutes on one core."""
    figures: dict[str, float] = {}
    false: list[float] = []
    head = "".join(f"{of:>28}" for of in ("10 points worse", "20 points worse"))
    print(f"{'answers a day':>14}{'false rollbacks':>24}{'hours':>7}{head}", file=sys.stderr)
    for size in SIZES:
        found = [of(Service(size, fall=margin, early=0.1), "", margin, RUNS, seed=size) for margin in MARGINS]
        shares = [float((one.taken_back < NEVER).mean()) for one in found]
        false += shares
        print(f"{size:>14,}" + "".join(f"{share:8.3f}" for share in shares), end="", file=sys.stderr)
        good = of(Service(size), "", 0.05, RUNS // 2, seed=size + 1)
        figures[f"canary_hours_{size}"] = float(np.median(good.steps[:, -1]))
        print(f"{figures[f'canary_hours_{size}']:7.0f}", end="", file=sys.stderr)
        for fall, named in ((0.1, ""), (0.2, "_20")):
            for way in WAYS:
                one = of(Service(size, fall=fall), way, 0.05, RUNS // 2, seed=size + 2)
                figures[f"canary_bad_answers_share_{size}{named}{way}"] = float(one.exposed.mean())
                figures[f"canary_caught_{size}{named}{way}"] = float((one.taken_back < NEVER).mean())
                print(f"{one.exposed.mean():6.3f}/{(one.taken_back < NEVER).mean():4.2f}", end="", file=sys.stderr)
        print(file=sys.stderr, flush=True)
    agree()
    named = f"canary_bad_answers_share_{NAMED}"
    chosen = {name.replace(f"_{NAMED}", ""): value for name, value in figures.items() if name.startswith(named)}
    return {"canary_false_rollbacks": max(false), **chosen, **figures}


def of(service: Service, way: str, margin: float, runs: int, seed: int) -> Rollouts:
    """Rollouts of a service."""
    rng = np.random.default_rng(seed)
    watch = WatchSettings(margin=margin)
    parts = [
        simulate(service, draw(service, WAYS[way], AT_A_TIME, rng), WAYS[way], watch) for _ in range(runs // AT_A_TIME)
    ]
    return Rollouts(*(np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])))


def agree() -> None:
    """A few rollouts through the checks on a real warehouse: the same decisions in the same hours."""
    for seed, (size, fall, holdback) in enumerate(
        ((3_000, 0.0, 0.0), (8_000, 0.2, 0.0), (8_000, 0.3, 0.05), (20_000, 0.12, 0.2), (20_000, 0.0, 0.05))
    ):
        settings = RolloutSettings(steps=(0.05, 0.25, 1.0), holdback=holdback)
        with tempfile.TemporaryDirectory() as folder:
            went = through_the_checks(Service(size, fall=fall), settings, Path(folder), seed)
        print(f"through the checks: {size:,} a day, a fall of {fall:.0%}: {'; '.join(went)}", file=sys.stderr)


if __name__ == "__main__":
    print(json.dumps(main(), indent=2))
