import pytest

from retuned.retrain.style import consistency, features, language, length_ratio, refuses

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


def test_length_counts_words() -> None:
    assert length_ratio("one two three", "one two three four five six") == 0.5
    assert length_ratio("", PLAIN) == 0.0
    assert length_ratio("three words here", "") == 3.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I'm sorry, that is not possible.", True),
        ("I cannot answer that.", True),
        ("I don't have this information.", True),
        ("Es tut mir leid.", True),
        ("Sale items cannot be returned.", False),
        ("I can tell you: 30 days.", False),
        ("You do not have to pay.", False),
    ],
)
def test_refuses(text: str, expected: bool) -> None:
    assert refuses(text) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("please tell me how long do i have to return a lamp?", "en"),
        ("Wie lange kann ich eine Lampe zurückgeben?", "de"),
        ("Bonjour, quel est le délai de retour ?", "fr"),
        ("返品はいつまでですか", "ja"),
        ("7731", None),
        ("", None),
    ],
)
def test_language(text: str, expected: str | None) -> None:
    assert language(text) == expected
