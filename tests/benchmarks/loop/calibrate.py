"""What two real trainings learn and keep, by corrections of a fact: the points that `learner` is fitted to.

    python tests/benchmarks/loop/calibrate.py > points.json

SmolLM2-135M-Instruct learns the demo's company as a run of the daemon trains it (default settings). Facts have between
1 and 11 corrections each. First, all facts are learned from the base model. Then some change, and the model learns them
on from the champion, with replay. After each training it answers the questions that were not corrected.
"""

import json
import sys
import tempfile
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))

from forget import School, history

from retuned.retrain import versions
from retuned.retrain.data import dataset as datasets

COUNTS = (1, 2, 3, 4, 6, 8, 11, 11)
"""Corrections of each fact in the first training."""
CHANGED = {"returns": 1, "delivery": 2, "warranty": 4, "student_discount": 6, "support_channel": 8, "repair": 11}
"""Corrections of each fact that changes or is new, in the second training."""


def main() -> None:
    """Prints a list of points: training, fact, whether it was taught now, rows, right, asked."""
    first, second, _ = history()
    points: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name, closing(School(Path(name) / "school", 0.5)) as school:
        pool = {id: [*school.asked[id], *school.exam[id]] for id in school.asked}
        taught: Counter[str] = Counter()
        for round_, (facts, counts) in enumerate(((first, dict(zip(first, COUNTS, strict=True))), (second, CHANGED))):
            truth = {id: (facts if id in counts else first).get(id) for id in facts}
            for id, count in counts.items():
                questions = pool[id][:count]
                taught[id] = max(taught[id], count)
                school.asked[id] = questions
                school.correct([facts[id]])
            adapter, _ = school.learn()
            champion = versions.champion(school.warehouse, "support")
            assert champion is not None
            assert champion.dataset_version is not None
            built = datasets.load(school.warehouse, "support", champion.dataset_version)
            assert built is not None
            rows = Counter(row["completion"] for row in built.split("train"))
            asked = {id: fact for id, fact in truth.items() if fact is not None and id in taught}
            school.exam |= {id: pool[id][taught[id] :] for id in asked}
            for id, scores in school.scores(adapter, asked, list(asked)).items():
                point = {
                    "training": round_ + 1, "fact": id, "taught_now": id in counts,
                    "rows": rows[asked[id].answer], "right": sum(scores), "asked": len(scores),
                }  # fmt: skip
                points.append(point)
                print(point, file=sys.stderr, flush=True)
    print(json.dumps(points))


if __name__ == "__main__":
    main()
