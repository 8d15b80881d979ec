"""How often people call a right answer right, and a wrong one: what the scenario `real_feedback` takes from real votes.

    RETUNED_LEARNED_DATA=/path/to/data python tests/benchmarks/loop/likes.py

People rated the answers of a model about passages (lil-lab/qa-from-hf, nine rounds), and others answered some of the
same questions about the same passages. An answer that shares less than half of its words with theirs is wrong.
"""

import os
import sys
from collections import Counter, defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))

from learned_sets import SOURCES, VARIABLE, like_one_of_three, listed, records


def main() -> None:
    """Prints, for wrong and for right answers, how many were called correct."""
    rated, answered = (records(Path(os.environ[VARIABLE]) / "qa" / file) for file in SOURCES["qa"].files)
    theirs = defaultdict[tuple[str, str], list[str]](list)
    for row in answered:
        theirs[row["question"], row["context"]] += [row["annotation"], *listed(row["annotations"])]
    votes = Counter[tuple[bool, str]]()
    for row in rated:
        if answers := theirs.get((row["question"], row["context"])):
            votes[any(like_one_of_three(one, row["pred"]) for one in answers), row["feedback"]] += 1
    for right, name in ((False, "wrong"), (True, "right")):
        found = {vote: n for (is_right, vote), n in votes.items() if is_right is right}
        print(f"{name}: {found.get('Correct', 0)} of {sum(found.values())} called correct; {found}")


if __name__ == "__main__":
    main()
