"""The gate on simulated holdouts: what is promoted that should not be, and what is not that should.

    python tests/benchmarks/gate.py

Candidates try up to four times on one holdout where they are no better; a better one has one try. `gate_power` is the
share of promotions when a candidate has the gain of `gate.expected_gain` and the holdout as many examples as the gate
then asks for, guards included. First promotions are those where no champion serves and production answered as well.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from simulation import Candidate, binary, documents, graded, labels, promoted, simulate, skewed, texts

from retuned.retrain.decision.interval import examples_needed
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


def main() -> dict[str, float]:
    """Simulate every kind on every size; takes some minutes on one core."""
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
