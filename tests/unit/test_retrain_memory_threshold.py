"""From which similarity on an entry helps related questions."""

from functools import cache
from typing import cast

import numpy as np
import pytest

from retuned.retrain.memory.embed import Embedding
from retuned.retrain.memory.related import Known, _trials
from retuned.retrain.memory.threshold import of_entry, of_workload
from retuned.retrain.scoring.metric import Chosen


def trials(rng: np.random.Generator, count: int, steep: float) -> list[tuple[float, bool]]:
    """Similarities, the higher the likelier the same answer."""
    similarity = rng.beta(5, 2, count)
    same = rng.random(count) < 1 / (1 + np.exp(-steep * (similarity - 0.75)))
    return list(zip(similarity.tolist(), same.tolist(), strict=True))


@cache
def population(steep: float) -> np.ndarray:
    return np.array(trials(np.random.default_rng(1), 200_000, steep))


def wrong_above(threshold: float, steep: float) -> float:
    similarity, same = population(steep).T
    return float(1 - same[similarity >= threshold].mean())


def test_without_enough_evidence_there_is_no_threshold() -> None:
    assert of_workload([(0.9, True)] * 148, 0.02) is None
    assert of_workload([(0.9, True)] * 149, 0.02) == 0.9
    assert of_workload([], 0.02) is None


def test_similar_questions_with_other_answers_leave_no_threshold() -> None:
    assert of_workload([(0.9, number % 10 > 0) for number in range(2_000)], 0.02) is None


@pytest.mark.parametrize("error_rate", [0.02, 0.1])
def test_the_share_of_wrong_look_ups_is_bounded_in_19_of_20_workloads(error_rate: float) -> None:
    found = [of_workload(trials(np.random.default_rng(seed), 3_000, 40.0), error_rate) for seed in range(200)]
    wrong = [wrong_above(threshold, 40.0) > error_rate for threshold in found if threshold is not None]
    assert len(wrong) > 150  # it has power
    assert sum(wrong) <= 0.05 * len(found) + 3 * (0.05 * 0.95 * len(found)) ** 0.5


class Equal:
    def compare(self, one: str, other: str) -> bool:
        return one == other


def looked_up(vectors: np.ndarray, answers: list[str]) -> list[tuple[float, bool]]:
    known = [Known(b"scope", str(number), answer) for number, answer in enumerate(answers)]
    embedding = cast("Embedding", lambda texts: vectors[[int(text) for text in texts]])
    return list(_trials(embedding, known, cast("Chosen", Equal())))


def test_two_questions_that_are_each_others_nearest_are_one_trial() -> None:
    angles = np.radians([0, 10, -15, 90, 95])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    found = looked_up(vectors, ["a", "a", "a", "b", "c"])
    assert [same for _, same in found] == [True, True, False]
    assert [similarity for similarity, _ in found] == pytest.approx(np.cos(np.radians([10, 15, 5])).tolist())


@pytest.mark.full
def test_pairs_of_wordings_grant_no_threshold_more_often_than_promised() -> None:
    rng, granted = np.random.default_rng(1), 0
    for _ in range(100):
        centres = np.repeat(rng.normal(size=(300, 64)), 2, axis=0)
        vectors = centres + rng.normal(size=centres.shape) * rng.uniform(0.05, 0.3, (len(centres), 1))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        wrong = rng.random(300) < 0.0205
        answers = [f"{pair}{side if wrong[pair] else ''}" for pair in range(300) for side in "ab"]
        granted += of_workload(looked_up(vectors.astype(np.float32), answers), 0.02) is not None
    assert granted <= 5 + 3 * (5 * 0.95) ** 0.5


def test_a_near_miss_raises_the_threshold_of_its_entry() -> None:
    assert of_entry(0.8, []) == 0.8
    assert of_entry(0.8, [0.5, 0.7]) == 0.8
    assert of_entry(0.8, [0.5, 0.9]) == pytest.approx(0.91)
    assert of_entry(0.8, [0.995]) is None
    assert of_entry(None, []) is None
