"""The gate on simulated holdouts: what is promoted that should not be, and what is not that should.

    python tests/benchmarks/gate.py
    python tests/benchmarks/run.py gate.small_shop   # the small shop alone
    python tests/benchmarks/run.py gate.units        # dependent rows, lost labels and production's answers alone
    python tests/benchmarks/run.py gate.repeats      # questions that are asked again

Candidates try up to four times on one holdout where they are no better; a better one has one try. `gate_power` is the
share of promotions when a candidate has the gain of `gate.expected_gain` and the holdout as many examples as the gate
then asks for, guards included. First promotions are those where no champion serves and production answered as well.

`gate_false_clusters` is the largest share of intervals whose lower end is above the true gain of nothing, where rows of
a conversation depend on each other (2.5% are promised). `gate_labels_found` is the smallest share of refusals of a
candidate that lost a tenth of its labels behind a gain, with six questions of each; `gate_labels_false` the largest of
an equal one. `gate_false_beside_production` is the largest share of first candidates that are as good as production and
pass the comparison with it, where right answers are recognised; `gate_corrected_alone` what that would be on the
corrected answers alone; `gate_right_in_other_words` the smallest share of right ones that pass it by wording.

`gate_repeats_false` is the largest share of candidates that serve customers no better and pass where questions are
asked again, also with a tenth of the approved answers wrong; `gate_repeats_power` the smallest share of those with a
gain of 0.10. `…_each_once` is the same where each question counts once.

The small shop (see `small_shop`) begins with 40 corrections and tries once a week. Ways to gather evidence are compared
by the weeks until a real gain is promoted (median and 90%; -1: not within half a year), the share that is within
twelve, and the share of shops that promote a candidate which is no better within a year.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from small_shop import Policy, World, promoted_at_first_try, waits

from fixtures.worlds.candidates import (
    Candidate,
    asked_again,
    beside_production,
    binary,
    conversations,
    documents,
    graded,
    labels,
    of_labels,
    promoted,
    simulate,
    skewed,
    texts,
)
from retuned.retrain.decision.gate import decide
from retuned.retrain.decision.interval import examples_needed, interval
from retuned.retrain.settings import GateSettings

SETTINGS = GateSettings()
RUNS = 1_000
SIZES = (20, 40, 60, 100, 200)
NO_BETTER = {
    "equal": Candidate(),
    "equal, graded scores": Candidate(draw=graded),
    "equal, rare great losses": Candidate(draw=skewed),
    "slightly worse": Candidate(gain=-0.03),
    "better, hallucinating (+25%)": Candidate(gain=0.3, hallucinating=0.25),
    "better, forgetting (-30%)": Candidate(gain=0.3, forgetting=0.3),
}
HARMLESS = ("equal", "equal, graded scores", "equal, rare great losses", "slightly worse")
BETTER = {
    "gain of 0.10": Candidate(gain=0.1),
    "gain of 0.15": Candidate(gain=0.15),
    "gain of 0.20": Candidate(gain=0.2),
    "gain of 0.30": Candidate(gain=0.3),
    "gain of 0.10, graded scores": Candidate(gain=0.1, draw=graded),
}
METRIC_SIZES = (20, 40, 80, 160)
METRICS = {
    "labels, 80% right, the same": labels(0.8, 0.8),
    "labels, 80% to 56%": labels(0.8, 0.56),
    "labels, 80% to 95%, one lost": labels(0.8, 0.95, lost=1),
    "labels, 80% to 90%": labels(0.8, 0.9),
    "labels, 60% to 90%": labels(0.6, 0.9),
    "json, 0.80, the same": documents(0.8, 0.8),
    "json, 0.80, 10% broken": documents(0.8, 0.8, broken=0.1),
    "json, 0.80 to 0.90": documents(0.8, 0.9),
    "json, 0.60 to 0.90": documents(0.6, 0.9),
    "text, 0.50, the same": texts(0.0),
    "text, 0.50 to 0.60": texts(0.1),
    "text, 0.50 to 0.70": texts(0.2),
}


USED = "folds_where_lacking"
"""What the gate does."""
POLICIES = {
    "halved_on_each_holdout": Policy(halved=True),
    "error_spent_once": Policy(),
    "half_held_out": Policy(most_share=0.5),
    "sign_test": Policy(signs=True),
    "graded": Policy(graded=True),
    "bets_on_fresh_rows": Policy("fresh", most_share=0.5),
    "bets_in_order": Policy("ordered", most_share=0.5),
    "bets_on_one_candidate": Policy("same", most_share=0.5),
    "folds": Policy("folds"),
    USED: Policy("folds", lacking=True),
    "folds_graded": Policy("folds", lacking=True, graded=True),
    "folds_by_fact": Policy("folds", by_fact=True),
}
GAINS = (0.1, 0.2, 0.3, 0.4)
EQUALS = ("rows", "facts", "bursts", "worse")
SHOPS = 200


def main(part: str = "") -> dict[str, float]:
    """Simulate every kind on every size; takes some minutes on one core. `part`: small_shop or units alone."""
    if part:
        return {"small_shop": small_shop, "units": units, "repeats": repeats}[part]()
    return sizes() | units() | repeats() | small_shop()


def small_shop() -> dict[str, float]:
    """Every way to gather evidence in the small shop; a quarter of an hour on one core."""
    figures: dict[str, float] = {}
    print(
        f"{'weeks: median, 90%; ≤ 12 weeks':34}" + "".join(f"{f'gain {gain}':>18}" for gain in GAINS), file=sys.stderr
    )
    paces = [("", 5.0, name) for name in POLICIES]
    for pace, weekly in (("_daily", 7.0), ("_20_weekly", 20.0)):
        paces += [(pace, weekly, name) for name in ("halved_on_each_holdout", USED)]
    for pace, weekly, name in paces:
        line = f"{name + pace:34}"
        for gain in GAINS:
            found = waits(World(gain, weekly=weekly), POLICIES[name], weeks=26, runs=SHOPS)
            weeks = np.quantile(found, [0.5, 0.9], method="higher")
            median, most = (float(week) if np.isfinite(week) else -1.0 for week in weeks)
            soon = float((found <= 12).mean())
            for figure, value in (("weeks", median), ("weeks_90", most), ("within_12_weeks", soon)):
                figures[f"gate_small_shop_{figure}_{name}{pace}_gain_{gain}"] = value
            line += f"{median:8.0f}{most:5.0f}{soon:5.2f}"
        print(line, file=sys.stderr, flush=True)
    print(f"{'no better, promoted in a year':34}" + "".join(f"{equal:>9}" for equal in EQUALS), file=sys.stderr)
    for name, policy in POLICIES.items():
        line = f"{name:34}"
        for equal in EQUALS:
            share = float(np.isfinite(waits(World(equal=equal), policy, weeks=52, runs=SHOPS)).mean())
            figures[f"gate_small_shop_false_{name}_{equal}"] = share
            line += f"{share:9.3f}"
        print(line, file=sys.stderr, flush=True)
    for name in ("halved_on_each_holdout", USED):
        share = promoted_at_first_try(5, POLICIES[name], gain=0.21, rows=110, holdout=34, runs=1_000)
        figures[f"gate_small_shop_5_of_12_changed_{name}"] = share
        print(f"5 of 12 facts changed, a gain of 0.21, 34 questions held out: {name} {share:.3f}", file=sys.stderr)
    return figures


def sizes() -> dict[str, float]:
    """Every kind of candidate on holdouts of every size."""
    figures: dict[str, float] = {}
    print(f"{'share promoted':32}" + "".join(f"{f'n={size}':>8}" for size in SIZES), file=sys.stderr)
    false: list[float] = []
    guards: dict[str, float] = {}
    for name, candidate in (NO_BETTER | BETTER).items():
        tries = 4 if name in HARMLESS else 1
        shares = []
        for size in SIZES:
            found = simulate(candidate, size, SETTINGS, runs=RUNS, seed=size, tries=tries)
            shares.append(found.promoted)
            if name in BETTER:
                for guard, share in found.refused.items():
                    guards[guard] = max(guards.get(guard, 0.0), share)
        if name in HARMLESS:
            false += shares
        print(f"{name:32}" + "".join(f"{share:8.3f}" for share in shares), file=sys.stderr)
    print(f"{'by metric':32}" + "".join(f"{f'n={size}':>8}" for size in METRIC_SIZES), file=sys.stderr)
    for name, pair in METRICS.items():
        shares = [promoted(pair, size, SETTINGS, runs=RUNS, seed=size) for size in METRIC_SIZES]
        print(f"{name:32}" + "".join(f"{share:8.3f}" for share in shares), file=sys.stderr)
    guards.pop("gain", None)
    print("largest share of better candidates that a guard refused:", file=sys.stderr)
    for guard, share in sorted(guards.items()):
        print(f"  {guard:30}{share:8.3f}", file=sys.stderr)
    figures["gate_false_promotions"] = max(false)
    figures["gate_guard_refusals"] = max(guards.values())
    size = _size()
    figures["gate_power_examples"] = size
    first = [simulate(Candidate(), n, SETTINGS, runs=RUNS, seed=n, tries=4, first=True).promoted for n in SIZES]
    figures["gate_false_first_promotions"] = max(first)
    figures["gate_power"] = simulate(Candidate(SETTINGS.expected_gain), size, SETTINGS, runs=RUNS, seed=1).promoted
    return figures


def units() -> dict[str, float]:
    """Rows that depend on each other, labels with few rows, and production's answers; some minutes on one core."""
    rng = np.random.default_rng(0)
    false = []
    for name, draw in {"sparse": _sparse, "rare losses": _rare}.items():
        for groups in (20, 60, 300):
            for correlation in (0.0, 0.3, 0.8):
                means = (
                    np.array([own.mean() for own in conversations(rng, groups, correlation, draw)]) for _ in range(RUNS)
                )
                false.append(fmean(interval(one, 0.025)[0] > 0 for one in means))
                print(f"{name:14}{groups:5} groups, correlation {correlation}: {false[-1]:.3f}", file=sys.stderr)
    found, wrong = [], []
    for number, each, lost in ((10, 12, 1), (100, 6, 10), (150, 6, 15), (1_000, 6, 100)):
        for before in (0.6, 0.8):
            known, better = np.full(number, before), np.full(number, 0.9)
            better[:lost] = 0.0
            found.append(_refused(rng, known, better, each))
            wrong.append(_refused(rng, known, known, each))
            print(
                f"{number:5} labels, {each} of each, {before:.0%} right: {lost} lost {found[-1]:.3f}, "
                f"equal {wrong[-1]:.3f}",
                file=sys.stderr,
            )
    beside, corrected, words = [], [], []
    for accepted in (0.2, 0.5, 0.8):
        beside.append(_beside(rng, accepted, accepted))
        corrected.append(_beside(rng, accepted, accepted, corrected=True))
        words.append(_beside(rng, accepted, 0.6, wording=True))
        print(
            f"{accepted:.0%} accepted: as good {beside[-1]:.3f}, on corrected answers alone {corrected[-1]:.3f}; "
            f"in other words {words[-1]:.3f}",
            file=sys.stderr,
        )
    return {
        "gate_false_clusters": max(false),
        "gate_labels_found": min(found),
        "gate_labels_false": max(wrong),
        "gate_false_beside_production": max(beside),
        "gate_corrected_alone": max(corrected),
        "gate_right_in_other_words": min(words),
    }


def repeats() -> dict[str, float]:
    """Questions that customers ask again; two minutes on one core."""
    rng = np.random.default_rng(0)
    found: defaultdict[str, list[float]] = defaultdict(list)
    for questions, ratings in ((200, 60), (200, 300), (1_000, 150), (1_000, 600)):
        for name, gain, wrong in (("false", None, 0.0), ("false", None, 0.1), ("power", 0.15, 0.0)):
            drawn = [asked_again(rng, questions, ratings, gain=gain, wrong=wrong) for _ in range(RUNS // 2)]
            line = f"{questions:5} questions, {ratings:3} ratings, {wrong:.0%} wrong, {name}:"
            for way, sample in (("", 1_000), ("_each_once", 0)):
                passed = [
                    decide(*one, [], [], SETTINGS, conversations=sample).figures.get("passed[gain]", 0.0)
                    for one in drawn
                ]
                found[f"gate_repeats_{name}{way}"].append(fmean(passed))
                line += f" {fmean(passed):.3f}{way.replace('_', ' ')}"
            print(line, file=sys.stderr, flush=True)
    return {name: (max if "false" in name else min)(own) for name, own in found.items()}


def _sparse(rng: np.random.Generator, number: int) -> np.ndarray:
    return rng.choice([-1.0, 0.0, 1.0], number, p=[0.1, 0.8, 0.1])


def _rare(rng: np.random.Generator, number: int) -> np.ndarray:
    return np.where(rng.random(number) < 0.1, -1.0, 1 / 9)


def _refused(rng: np.random.Generator, before: np.ndarray, after: np.ndarray, each: int) -> float:
    runs = 20 if len(before) > 150 else 100
    drawn = (of_labels(rng, before, after, each) for _ in range(runs))
    return fmean(not decide(*one, [], [], SETTINGS).figures["passed[labels]"] for one in drawn)


def _beside(
    rng: np.random.Generator, accepted: float, after: float, *, wording: bool = False, corrected: bool = False
) -> float:
    passed = []
    for _ in range(RUNS // 2):
        base, new, logged = beside_production(rng, 100, accepted, after, wording=wording)
        by_words = wording or corrected  # which leaves the corrected answers alone
        decision = decide(base, new, [], [], SETTINGS, logged=logged, serving=False, in_other_words=not by_words)
        passed.append(decision.figures.get("passed[logged]") != 0.0)
    return fmean(passed)


def _size() -> int:
    """What the gate asks for, on average over holdouts of a hundred examples."""
    rng = np.random.default_rng(0)
    asked = []
    for _ in range(50):
        chances = rng.beta(0.8, 0.8, 100)
        differences = binary(rng, chances, SETTINGS.expected_gain) - binary(rng, chances, 0.0)
        asked.append(examples_needed(differences, (1 - SETTINGS.confidence) / 2, SETTINGS))
    return round(float(np.mean(asked)))


if __name__ == "__main__":
    print(json.dumps(main(), indent=2))
