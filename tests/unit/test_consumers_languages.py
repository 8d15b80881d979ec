"""What is kept of texts whose language was identified."""

from retuned.consumers.common import languages


def test_the_end_of_a_long_text_is_not_kept() -> None:
    languages._is_in_another.cache_clear()
    languages._among.cache_clear()
    for number in range(20):
        text = "Where is my parcel, and when does it arrive? " * 10 + f"{number} " * 10_000
        assert not languages.is_in_another(text, ("en",))
        assert languages.language_among(text, ("en", "de")) == "en"
    assert languages._is_in_another.cache_info().currsize == 1
    assert languages._among.cache_info().currsize == 1
