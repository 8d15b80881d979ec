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

`shadow_…` is of versions that are asked in shadow: both answer the same questions, and of two answers that differ one
is better. In one in ten conversations each is the better one; a worse version loses some more. It is looked at after
every ten conversations: `shadow_false_rollbacks` of those that use the whole margin up, up to the 5,000th, and
`shadow_conversations_…` judged until half of those that are 20 or 10 points worse are taken back, or of those that are
as good the first step comes.
"""

import json
import math
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import numpy.typing as npt
from rollouts import NEVER, Rollouts, draw, simulate, through_the_checks

from fixtures.feedback.votes import Service
from retuned.consumers.settings import RolloutSettings
from retuned.monitors.rates.sequential import STAKES, log_e_value_of_mean
from retuned.monitors.settings import WatchSettings
from retuned.monitors.watch.comparison import FALL, half_of_error

SIZES = (1_000, 3_000, 8_000, 20_000, 100_000, 1_000_000, 5_000_000)
MARGINS = (0.0, 0.05, 0.1)
NAMED = 20_000
WAYS = {
    "": RolloutSettings(steps=(0.05, 0.25, 1.0), holdback=0.05),
    "_half": RolloutSettings(steps=(0.5, 1.0), holdback=0.05),
    "_at_once": RolloutSettings(),
}
RUNS, AT_A_TIME = 200, 100
SHADOWED = 5_000


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
    figures |= shadows()
    agree()
    named = f"canary_bad_answers_share_{NAMED}"
    chosen = {name.replace(f"_{NAMED}", ""): value for name, value in figures.items() if name.startswith(named)}
    return {"canary_false_rollbacks": max(false), **chosen, **figures}


def shadows() -> dict[str, float]:
    """Of versions that are asked in shadow, with a quarter of the error of a rollout; takes some seconds."""
    watch = half_of_error(half_of_error(WatchSettings()))
    needed, rng = math.log(1 / watch.false_rollback_rate), np.random.default_rng(1)
    looks = np.arange(10, SHADOWED + 1, 10)

    def losses(worse: float) -> npt.NDArray[np.float64]:
        return rng.choice([-1.0, 0.0, 1.0], (RUNS, SHADOWED), p=[0.1, 0.8 - worse, 0.1 + worse])

    def evidence(values: npt.NDArray[np.float64], mean: float) -> npt.NDArray[np.float64]:
        """Of each run at each look, of what is enough: as `log_e_value_of_mean` has it."""
        capital = np.stack([np.log1p(stake * (values - mean)).cumsum(axis=1) for stake in STAKES / (1 + mean)])
        found: npt.NDArray[np.float64] = np.logaddexp.reduce(capital[:, :, looks - 1], axis=0) - math.log(len(STAKES))
        return np.where(looks >= watch.minimum_votes, found / needed, 0.0)

    def half(shown: npt.NDArray[np.bool_]) -> float:
        """Conversations after which it was shown of half of the runs."""
        first = np.where(shown.any(axis=1), looks[shown.argmax(axis=1)], math.inf)
        return float(np.median(first))

    one = losses(0.2)
    assert abs(evidence(one[:1], 0.05)[0, -1] * needed - log_e_value_of_mean(one[0], 0.05)) < 1e-6
    found = {"shadow_false_rollbacks": float((evidence(losses(watch.margin), watch.margin) >= 1).any(axis=1).mean())}
    for points in (10, 20):
        found[f"shadow_conversations_{points}_worse"] = half(evidence(losses(points / 100), watch.margin) >= 1)
    good = losses(0.0)
    found["shadow_conversations_as_good"] = half((evidence(-good, -FALL) >= 1) & (evidence(good, watch.margin) <= 0))
    print("in shadow: " + ", ".join(f"{name} {value:g}" for name, value in found.items()), file=sys.stderr, flush=True)
    return found


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
