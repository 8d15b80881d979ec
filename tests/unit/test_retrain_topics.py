"""Topics keep their names from dataset to dataset."""

import random
from pathlib import Path

from fixtures.feedback.traffic import prompts
from retuned.retrain.data.topics import OTHER, ROWS_A_TOPIC, Topics

ASTRONOMY = [
    f"which {kind} of the galaxy has a telescope seen near {star}"
    for kind in ("planet", "comet", "nebula", "moon", "quasar", "pulsar")
    for star in ("vega", "sirius", "rigel", "altair", "deneb", "polaris")
]


def test_questions_of_one_kind_have_one_topic() -> None:
    rng = random.Random(0)
    refunds = prompts(60, rng, (1, 0, 0, 0, 0))
    topics = Topics().learned(refunds + ASTRONOMY, most=3)
    assert len(topics.centres) == 3
    assert len(set(topics.of(ASTRONOMY))) == 1
    assert set(topics.of(ASTRONOMY)).isdisjoint(topics.of(refunds))


def test_names_stay_when_others_come(tmp_path: Path) -> None:
    rng = random.Random(0)
    asked = prompts(300, rng)
    first = Topics().learned(asked, most=5)
    first.save(tmp_path)
    again = Topics.load(tmp_path)
    assert again == first
    grown = again.learned(asked + ASTRONOMY, most=8)
    assert first.centres.items() <= grown.centres.items()
    before, after = first.of(asked), grown.of(asked)
    assert sum(one == other for one, other in zip(before, after, strict=True)) > 0.95 * len(asked)
    new = set(grown.of(ASTRONOMY)) - set(before)
    assert new
    assert set(first.of(ASTRONOMY)) == {OTHER}
    assert grown.learned(asked + ASTRONOMY, most=8) == grown


def test_few_questions_have_no_topics(tmp_path: Path) -> None:
    few = ASTRONOMY[: 2 * ROWS_A_TOPIC - 15]
    assert Topics().learned(few, most=12) == Topics() == Topics.load(tmp_path)
    assert Topics().of(few) == [OTHER] * len(few)
    assert Topics().learned([str(number) for number in range(200)], most=12) == Topics()
    rare = [f"zq{chr(97 + number % 26)}{chr(97 + number // 26)}" for number in range(120)]
    alone = Topics().learned([*rare, *(["where is it"] * 2)], most=4)
    assert set(alone.of(rare)) == {OTHER}


def test_of_words_that_nobody_uses_any_more_no_topic_and_no_name_stays() -> None:
    topics = Topics(
        {"lamp": 1.0, "tent": 1.0, "qzx": 2.0},
        {"lamp": {"lamp": 0.8, "tent": 0.6}, "lamp, qzx (2)": {"lamp": 0.6, "qzx": 0.8}, "qzx": {"qzx": 1.0}},
    )
    assert topics.only(["A Lamp?", "My tent, please."]) == Topics(
        {"lamp": 1.0, "tent": 1.0}, {"lamp": {"lamp": 0.8, "tent": 0.6}}
    )
    assert topics.only([]) == Topics()


def test_topics_that_lost_all_words_are_near_nothing() -> None:
    """As erasures left them up to version 1.0.0."""
    empty = Topics({}, {"where, the, parcel": {}})
    assert empty.of(ASTRONOMY) == [OTHER] * len(ASTRONOMY)
    assert len(empty.learned(ASTRONOMY, most=3).centres) >= 1
