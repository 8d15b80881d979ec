"""Tone and format: what is counted, and how like approved answers others are."""

import pytest

from retuned.consumers.common.tone import Features, consistency, features, likeness

PLAIN = "Lamps can be returned within 30 days."
NAMES = ("greeting", "closing", "list", "markdown", "I", "we", "exclaims", "asks", "emoji", "ended")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (PLAIN, {"ended"}),
        ("Hello, lamps can be returned", {"greeting"}),
        ("Guten Tag, das geht.", {"greeting", "ended"}),
        ("Within 30 days. Kind regards, Support", {"closing"}),
        ("You need:\n- the lamp\n- the receipt", {"list"}),
        ("1. Open it\n2. Close it.", {"list", "ended"}),
        ("Send it to **Oslo** within [30 days](https://x.y).", {"markdown", "ended"}),
        ("I think so.", {"I", "ended"}),
        ("We take it back, and our shop is open.", {"we", "ended"}),
        ("Wir nehmen sie zurück!", {"we", "exclaims", "ended"}),
        ("Which lamp do you mean?", {"asks", "ended"}),
        ("Surely 🙂", {"emoji"}),
        ("A 5-day wait - no list here.", {"ended"}),
        ("", set()),
    ],
)
def test_features(text: str, expected: set[str]) -> None:
    assert {name for name, has in zip(NAMES, features(text), strict=True) if has} == expected


def test_consistency_is_the_share_of_equal_features() -> None:
    assert consistency("Sofas cannot.", PLAIN) == 1.0
    assert consistency("Hi! We're glad to help, 30 days 🙂", PLAIN) == pytest.approx(0.4)


FORMAL = [features(f"Lamps can be returned within {days} days. Kind regards, Support") for days in range(30)]
CASUAL = [features(f"Hey! You have {days} days 🙂") for days in range(30)]


def test_likeness_of_the_same_kind_is_one_and_falls_as_the_tone_does() -> None:
    same = likeness(FORMAL[:10], FORMAL)
    assert same == pytest.approx((1.0, 1.0, 1.0))
    other = likeness(CASUAL, FORMAL)
    assert other is not None
    assert other[0] == pytest.approx(0.6)  # greeting, closing, exclamation and emoji differ, four of ten
    mixed = likeness(CASUAL[:10] + FORMAL[:10], FORMAL)
    assert mixed is not None
    assert mixed[0] == pytest.approx(0.8)
    assert mixed[1] < 0.8 < mixed[2]


def test_likeness_to_mixed_answers_counts_what_they_differ_in_themselves() -> None:
    approved = FORMAL[:10] + CASUAL[:10]
    # Of 190 pairs 90 are of one kind, alike in all, and 100 are not, alike in six of ten: 150 / 190.
    found = likeness(FORMAL, approved)
    assert found is not None
    assert found[0] == pytest.approx(0.8 / (150 / 190))


@pytest.mark.parametrize(
    ("answers", "approved"), [([], FORMAL), (FORMAL[:1], FORMAL), (FORMAL, []), (FORMAL, FORMAL[:1])]
)
def test_likeness_of_too_few_is_unknown(answers: list[Features], approved: list[Features]) -> None:
    assert likeness(answers, approved) is None
