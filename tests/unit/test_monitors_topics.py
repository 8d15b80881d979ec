"""Topics of two windows."""

import random
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from fixtures.feedback.traffic import prompts
from fixtures.models.static import static_model
from retuned.consumers.errors import ConfigurationError
from retuned.monitors.drift import topics
from retuned.monitors.drift.topics import Topics
from retuned.monitors.drift.two_samples import Sample
from retuned.monitors.drift.vectors import Embed, check, load_embedding
from retuned.monitors.settings import DriftSettings


def find_topics(
    reference: list[str], current: list[str], most: int, others: Sequence[str] = (), embed: Embed | None = None
) -> Topics | None:
    """Of two windows of one day."""
    samples = (Sample(np.asarray(asked, dtype=object), np.zeros(len(asked), int)) for asked in (reference, current))
    return topics.find_topics(*samples, most, others, embed=embed)


@pytest.mark.full
def test_neither_window_is_the_one_that_topics_are_fitted_to() -> None:
    rng = random.Random(1)
    one, other = prompts(150, rng), prompts(120, rng)
    found, exchanged = find_topics(one, other, 8), find_topics(other, one, 8)
    assert found is not None
    assert exchanged is not None
    assert (found.reference, found.current) == (exchanged.current, exchanged.reference)
    assert found.difference.p_value == pytest.approx(exchanged.difference.p_value)
    assert found.difference.p_value > 0.05


def test_what_is_asked_about_only_now_is_a_topic_of_its_own() -> None:
    rng = random.Random(2)
    asked = [f"is the {rng.choice('ABC')} hoverboard allowed on pavements" for _ in range(40)]
    found = find_topics(prompts(200, rng), prompts(160, rng) + asked, 8)
    assert found is not None
    assert found.difference.p_value < 1e-9
    assert "hoverboard" in found.newest
    own = set(found.current[160:])
    assert len(own) == 1
    assert not own & set(found.reference)
    assert any(word in own.pop() for word in ("hoverboard", "allowed", "pavements"))


def test_a_mix_that_moves_within_the_clusters_is_seen() -> None:
    """Two clusters are too few to hold five topics."""
    rng = random.Random(3)
    found = find_topics(prompts(300, rng), prompts(300, rng, (1, 3, 2, 2, 3)), 2)
    assert found is not None
    assert found.difference.p_value < 1e-4


def test_without_enough_prompts_or_words_there_are_none() -> None:
    rng = random.Random(4)
    assert find_topics(prompts(49, rng), prompts(49, rng), 8) is None
    assert find_topics(["1234"] * 100, [""] * 100, 8) is None
    assert find_topics(["one two three"] * 100, ["one two three"] * 100, 1) is None


def test_prompts_that_repeat_themselves_are_no_difference() -> None:
    asked = ["where is my parcel", "please delete my account"] * 50
    found = find_topics(asked, asked, 8)
    assert found is not None
    assert len(set(found.reference)) == 2
    assert found.difference.p_value == 1.0


def test_of_large_windows_a_part_is_compared_prompt_by_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topics, "COMPARED", 60)
    sizes = []
    kernel = topics.two_sample_kernel

    def counted(similarity, reference):  # type: ignore[no-untyped-def]
        sizes.append((reference, len(similarity) - reference))
        return kernel(similarity, reference)

    monkeypatch.setattr(topics, "two_sample_kernel", counted)
    rng = random.Random(5)
    found = find_topics(prompts(150, rng), prompts(60, rng), 4)
    assert found is not None
    assert (len(found.reference), len(found.current)) == (150, 60)
    assert sizes == [(50, 60)]


def test_other_prompts_get_the_topic_of_their_like() -> None:
    rng = random.Random(6)
    before = prompts(200, rng)
    found = find_topics(before, prompts(200, rng), 5, [before[0], "how do I get my money back for order 7", ""])
    assert found is not None
    assert found.others[0] == found.reference[0]
    refunds = [topic for text, topic in zip(before, found.reference, strict=True) if "money back" in text]
    assert found.others[1] == max(set(refunds), key=refunds.count)


@pytest.mark.full
@pytest.mark.parametrize("new", [0.15, 0.3, 0.5])
def test_the_share_of_new_prompts_is_estimated_with_its_interval(new: float) -> None:
    inside = 0
    for seed in range(5):
        rng = random.Random(seed)
        asked = [f"is the {rng.choice('ABC')} hoverboard {rng.choice(('allowed', 'banned'))} here" for _ in range(600)]
        current = prompts(600, rng)
        current[: round(600 * new)] = asked[: round(600 * new)]
        found = find_topics(prompts(600, rng), current, 8)
        assert found is not None
        assert found.difference.share == pytest.approx(new, abs=0.1)
        inside += found.difference.low <= new <= found.difference.high
    assert inside >= 4


@pytest.mark.full
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((3.0, 3, 2, 2, 1), (0.8, 3, 2, 2, 3.2)),  # a fifth moves from one topic to another
        ((3.0, 3, 2, 2, 0), (3.0, 3, 2, 2, 2.5)),  # is about a new one
        ((3.0, 3, 2, 2, 2.5), (3.0, 3, 2, 2, 0)),  # asks about one no more
    ],
    ids=["moved", "new", "gone"],
)
def test_a_fifth_that_changed_is_a_fifth_however_it_did(before: tuple[float, ...], after: tuple[float, ...]) -> None:
    found = []
    for seed in range(4):
        rng = random.Random(seed)
        topics = find_topics(prompts(500, rng, before), prompts(500, rng, after), 8)
        assert topics is not None
        found.append(topics.difference)
    assert sum(one.low <= 0.2 <= one.high for one in found) == len(found)
    assert np.mean([one.share for one in found]) == pytest.approx(0.2, abs=0.04)
    assert all(one.low > 0.05 and one.high < 0.4 for one in found)


# A static embedding model in the place of words

MEANINGS = {name: [f"{name}{number:03}" for number in range(400)] for name in ("parcel", "refund", "login", "dog")}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return static_model(tmp_path_factory.mktemp("static"), MEANINGS)


def meant(count: int, rng: random.Random, *names: str) -> list[str]:
    """Prompts that share a meaning, and hardly ever a word."""
    return [" ".join(rng.sample(MEANINGS[names[row % len(names)]], 3)) for row in range(count)]


@pytest.mark.full
def test_by_a_model_topics_are_what_is_meant_in_whatever_words(model: Path) -> None:
    rng = random.Random(7)
    usual = ("parcel", "refund", "login")
    before, now, new = meant(200, rng, *usual), meant(150, rng, *usual), meant(50, rng, "dog")
    found = find_topics(before, now + new, 8, embed=load_embedding(model))
    by_words = find_topics(before, now + new, 8)
    assert found is not None
    assert by_words is not None
    assert found.difference.p_value < 1e-9 < 1e-4 < by_words.difference.p_value
    assert "dog" in found.newest
    assert not set(found.current[150:]) & set(found.reference + found.current[:150])
    assert found.difference.low < 0.25 < found.difference.high
    others = find_topics(before, now, 8, [before[0], new[0], ""], embed=load_embedding(model))
    assert others is not None
    assert others.others[0] == others.reference[0]
    assert others.difference.p_value > 0.05


def test_by_a_model_languages_without_spaces_have_topics(tmp_path: Path) -> None:
    characters = {"one": [chr(0x4E00 + n) for n in range(300)], "other": [chr(0x5E00 + n) for n in range(300)]}
    rng = random.Random(8)

    def asked(count: int, name: str) -> list[str]:
        return ["".join(rng.sample(characters[name], 8)) for _ in range(count)]

    before, now = asked(100, "one"), asked(60, "one") + asked(40, "other")
    assert find_topics(before, now, 4) is None
    found = find_topics(before, now, 4, embed=load_embedding(static_model(tmp_path, characters)))
    assert found is not None
    assert found.difference.p_value < 1e-9
    assert {name.isdecimal() for name in found.current} == {True}
    assert (
        find_topics(["hello", "bye"] * 60, ["hello"] * 60, 4, embed=load_embedding(tmp_path)) is None
    )  # unknown words


def test_a_model_that_cannot_be_had_is_named(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match=r"drift\.embedding_model: .* is not the folder of a model2vec model"):
        load_embedding(tmp_path)
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(ConfigurationError, match=r"drift\.embedding_model: .* cannot be loaded"):
        check(DriftSettings(embedding_model=tmp_path))
    assert check(DriftSettings(embedding_model=model)) == f"prompts are compared by the model in {model}"
    monkeypatch.setitem(sys.modules, "model2vec", None)
    with pytest.raises(ConfigurationError, match=r"needs pip install 'retuned\[static-embeddings\]'"):
        load_embedding(model)
    assert check(DriftSettings()) is None
