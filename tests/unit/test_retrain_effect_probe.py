"""The effect probe: which model answers, by log-probabilities, and what arithmetic may move."""

import random
from collections.abc import Callable

import pytest

from retuned.retrain.generation.effect_probe import PLACES, TOLERANCES, NextTokens, Probe, record, rows

NAMES = {"version": "candidate", "base": "base", "champion": "champion"}
PROMPTS = [[number] for number in range(12)]
Ask = Callable[[list[int]], NextTokens]


def model(seed: int, spread: float = 3.0, like: int | None = None) -> Ask:
    """Some model's 20 likeliest tokens; `like`: it differs from another by `spread`, else from all."""

    def ask(prompt: list[int]) -> NextTokens:
        own = random.Random(f"{seed}-{prompt}")
        common = random.Random(f"{like}-{prompt}")
        logits = [common.gauss(0, 3) + own.gauss(0, spread) for _ in range(40)]
        top = sorted(range(40), key=lambda token: -logits[token])[:20]
        return {token: logits[token] - 6 for token in top}

    return ask


def noisy(ask: Ask, deviation: float, seed: int = 0) -> Ask:
    def answer(prompt: list[int]) -> NextTokens:
        rng = random.Random(f"{seed}-{prompt}")
        return {token: value + rng.gauss(0, deviation) for token, value in ask(prompt).items()}

    return answer


def probe(version: Ask, base: Ask, champion: Ask | None = None, precision: str = "float32") -> Probe:
    asked = {"candidate": version, "base": base} | ({"champion": champion} if champion else {})
    names = {name: own for name, own in NAMES.items() if own in asked}
    found = ((prompt, {name: ask(prompt) for name, ask in asked.items()}) for prompt in PROMPTS)
    made = Probe.from_manifest({"effect_probe": record(found, names, precision)})
    assert made is not None
    return made


def wrong(made: Probe, ask: Ask, tolerance: float | None = None) -> str | None:
    return made.mismatch(lambda prompts: [ask(prompt) for prompt in prompts], tolerance)


def other(made: Probe, ask: Ask) -> str | None:
    return made.other_base(lambda prompts: [ask(prompt) for prompt in prompts])


def test_the_version_passes_and_the_others_are_named() -> None:
    version, base, champion = model(1, like=0), model(2, like=0), model(3, like=0)
    made = probe(version, base, champion)
    assert wrong(made, version) is None
    assert "loaded and not used" in (wrong(made, base) or "")
    assert "the adapter is stale" in (wrong(made, champion) or "")
    assert "neither" in (wrong(made, model(4, like=0)) or "")
    assert other(made, base) is None
    assert "differ by" in (other(made, champion) or "")


def test_arithmetic_does_not_fail_it() -> None:
    version, base = model(1, like=0), model(2, like=0)
    made = probe(version, base)
    # 0.04 nats in each log-probability is as far apart as bfloat16 and float32 were found to be on a real model.
    assert [wrong(made, noisy(version, 0.04, seed)) for seed in range(200)] == [None] * 200
    # An adapter that is not used is found with the same noise, always.
    assert all("not used" in (wrong(made, noisy(base, 0.04, seed)) or "") for seed in range(200))


def test_the_places_are_those_that_tell_most() -> None:
    base = model(2)

    def version(prompt: list[int]) -> NextTokens:  # it learned something about the last prompts alone
        return model(1)(prompt) if prompt[0] >= len(PROMPTS) - PLACES else base(prompt)

    made = probe(version, base)
    assert sorted(place.prompt for place in made.places) == PROMPTS[-PLACES:]


def test_one_that_hardly_differs_is_not_taken_for_another() -> None:
    base = model(2)
    made = probe(noisy(base, 0.01), base)
    assert wrong(made, noisy(base, 0.01)) is None
    assert wrong(made, base) is None  # it cannot be told from it
    assert wrong(made, model(5)) is not None


def test_the_tolerance_is_that_of_the_precision_or_ones_own() -> None:
    version, base = model(1, like=0), model(2, like=0)
    shifted = noisy(version, 0.3)
    assert wrong(probe(version, base), shifted) is not None
    assert wrong(probe(version, base, precision="4bit"), shifted) is None
    assert wrong(probe(version, base), shifted, tolerance=0.5) is None
    assert TOLERANCES["4bit"] > TOLERANCES["bfloat16"] > TOLERANCES["float32"]


def test_a_deep_model_in_bfloat16_may_differ_by_more() -> None:
    """Rounding errors add up over its layers; a small model's are as they were measured."""
    version, base = model(1, like=0), model(2, like=0)
    asked = {"candidate": version, "base": base}
    names = {name: own for name, own in NAMES.items() if own in asked}

    def made(precision: str, layers: int) -> Probe:
        found = ((prompt, {name: ask(prompt) for name, ask in asked.items()}) for prompt in PROMPTS)
        probe = Probe.from_manifest({"effect_probe": record(found, names, precision, layers)})
        assert probe is not None
        return probe

    shifted = noisy(version, 0.3)  # 0.24 nats on average
    assert wrong(made("float32", 30), shifted) is not None
    assert wrong(made("bfloat16", 30), shifted) is not None
    assert wrong(made("bfloat16", 80), shifted) is None
    assert "not used" in (wrong(made("bfloat16", 80), noisy(base, 0.3)) or "")
    assert made("float32", 12).tolerance == TOLERANCES["float32"]


def test_a_token_that_is_not_reported_counts_as_unlikely() -> None:
    version, base = model(1, like=0), model(2, like=0)
    made = probe(version, base)

    def short(prompt: list[int]) -> NextTokens:  # a server that gives five
        answer = version(prompt)
        return {token: answer[token] for token in sorted(answer, key=answer.__getitem__)[-5:]}

    assert wrong(made, short) is None


def test_without_log_probabilities_nothing_is_recorded() -> None:
    assert record(iter(()), NAMES, "float32") is None
    assert Probe.from_manifest({}) is None


def test_the_prompts_are_the_same_each_time_and_nobodys() -> None:
    assert rows() == rows()
    assert len(rows()) >= PLACES
    assert all(row["context"] is None for row in rows())


@pytest.mark.parametrize("name", ["base", "champion"])
def test_the_recorded_is_of_each_model(name: str) -> None:
    asks = {"version": model(1), "base": model(2), "champion": model(3)}
    made = probe(*asks.values())
    for place in made.places:
        likeliest = max(asks[name](place.prompt).items(), key=lambda item: item[1])
        assert place.models[name].logprobs[likeliest[0]] == pytest.approx(likeliest[1], abs=1e-4)
