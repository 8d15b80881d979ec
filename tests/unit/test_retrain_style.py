import pytest

from retuned.retrain.scoring.style import language, length_ratio

PLAIN = "Lamps can be returned within 30 days."


def test_length_counts_words() -> None:
    assert length_ratio("one two three", "one two three four five six") == 0.5
    assert length_ratio("", PLAIN) == 0.0
    assert length_ratio("three words here", "") == 3.0
    assert length_ratio("{}", "{ }") == 1.0


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
