"""Whether what is learned is right: rows of datasets against a known truth, on real data and on made-up accounts.

    RETUNED_LEARNED_DATA=/path python tests/benchmarks/run.py learned
    python tests/benchmarks/run.py learned.accounts    # or sets, cost, score: one part alone

- `learned_right_share`: of the rows that are taught or held out, those that are right; mean over all sets.
- `learned_lost_share`: of the questions to which somebody gave a right answer, those to which no right one is taught.
- `learned_naive_right_share`: the right share of a plain majority of accounts, or of the newest answer, whichever is
  better; `learned_naive_lost_share` is that one's.
- `learned_held_right_share`: of the rows held out, by which candidates are judged, those that are right.
- `learned_split_share`: of the conversations with several rows, those that are both taught and held out.
- `learned_leaked_share`: of the rows held out, those whose answer stands word for word in a prompt to train on.
- `learned_<set>_…`: of one set; one of which no dataset is made has lost everything, and no right share.
- `score_judged_share`, `score_agreement`: of pairs that a person judged, those that `retuned score` judges, and of
  these those on which both agree: a score of 1 is taken for the same. Pairs of one kind are scored together, as a
  workload's are. `…_facts` is of the metric `facts` instead of the one that is chosen.

`learned_real_…` and `learned_made_up_…` are the means over the real and over the made-up sets, and the figures without
either are the means of these two. `…_sets_below_naive` counts those in which the naive choice is right more often.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import learned_cost
from learned_accounts import scenarios
from learned_sets import worlds

from fixtures.worlds.learned import World, measured, naive

PAIRS = "RETUNED_SCORE_PAIRS"
"""Names a file of JSON Lines: id, kind, question, approved, answer, same. A person has decided what is the same."""


ASKED = ("id", "question", "approved", "answer")
MEANS = (
    "right_share",
    "lost_share",
    "held_right_share",
    "naive_right_share",
    "naive_lost_share",
    "split_share",
    "leaked_share",
)


def main(part: str | None = None) -> dict[str, float]:
    """All parts, or one."""
    parts = {
        "sets": lambda: compared("real", worlds()),
        "accounts": lambda: compared("made_up", scenarios()),
        "cost": learned_cost.main,
        "score": score,
    }
    figures: dict[str, float] = {}
    for name in [part] if part else parts:
        figures |= parts[name]()
    for name in () if part else MEANS:
        kinds = [key for kind in ("real", "made_up") if (key := f"learned_{kind}_{name}") in figures]
        figures |= {f"learned_{name}": fmean(figures[key] for key in kinds)} if kinds else {}
    return figures


def compared(kind: str, those: Iterable[World]) -> dict[str, float]:
    """What datasets teach, and what plain choices from the same evidence would."""
    figures: dict[str, float] = {}
    below = 0.0
    all_of: dict[str, list[float]] = {name: [] for name in MEANS}
    print(f"{'set':30} {'rows':>6} {'right':>7} {'lost':>7} {'held':>7} {'naive':>7} {'lost':>7}", file=sys.stderr)
    for world in those:
        made = measured(world)
        plain = max((naive(world, choice) for choice in ("majority", "newest")), key=lambda one: one.right_share or 0.0)
        below += (made.right_share or 0.0) < (plain.right_share or 0.0)
        shares = (
            made.right_share,
            made.lost_share,
            made.held_right_share,
            plain.right_share,
            plain.lost_share,
            made.split_share,
            made.leaked_share,
        )
        for name, share in zip(MEANS, shares, strict=True):
            if share is not None:
                figures[f"learned_{world.name}_{name}"] = share
                all_of[name].append(share)
        columns = " ".join(f"{'-' if share is None else format(share, '.3f'):>7}" for share in shares[:5])
        why = ", ".join(f"{count} {reason}" for reason, count in made.why.items()) or made.refused or ""
        print(f"{world.name:30} {made.rows:6} {columns}  {why[:160]}", file=sys.stderr, flush=True)
    figures[f"learned_{kind}_sets_below_naive"] = below
    return figures | {f"learned_{kind}_{name}": fmean(shares) for name, shares in all_of.items() if shares}


def score() -> dict[str, float]:
    """Of pairs of answers that a person judged: those that `retuned score` judges, and of these those it judges so."""
    file = Path(os.environ.get(PAIRS, ""))
    if not file.is_file():
        print(f"score is skipped: {PAIRS} must name a file of pairs", file=sys.stderr)
        return {}
    pairs = [json.loads(line) for line in file.open(encoding="utf-8")]
    figures = {}
    for metric in ("auto", "facts"):
        judged: list[tuple[bool, bool]] = []
        for kind in sorted({pair["kind"] for pair in pairs}):
            own = [pair for pair in pairs if pair["kind"] == kind]
            verdicts = scored(own, metric)
            agree = [(verdicts[pair["id"]], pair["same"]) for pair in own if pair["id"] in verdicts]
            right = sum(one == other for one, other in agree)
            print(f"{metric:6} {kind:12} {len(own):4} pairs, {len(agree):4} judged, {right:4} right", file=sys.stderr)
            judged += agree
        name = "" if metric == "auto" else f"_{metric}"
        figures[f"score_judged_share{name}"] = len(judged) / len(pairs)
        figures |= {f"score_agreement{name}": fmean(one == other for one, other in judged)} if judged else {}
    return figures


def scored(pairs: list[dict[str, Any]], metric: str) -> dict[str, bool]:
    """Whether the metric takes both answers of a pair for the same, by id, where it does not abstain."""
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as asked:
        asked.writelines(json.dumps({key: pair[key] for key in ASKED}) + "\n" for pair in pairs)
        asked.flush()
        command = [sys.executable, "-m", "retuned.daemon.cli.main", "score", asked.name, "--metric", metric]
        run = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    if run.returncode:
        print(f"{metric} judges nothing: {run.stderr.strip()[-300:]}", file=sys.stderr)
        return {}
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    return {row["id"]: row["score"] == 1.0 for row in rows if not row["abstained"]}


if __name__ == "__main__":
    json.dump(main(), sys.stdout, indent=2)
    print()
