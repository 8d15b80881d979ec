"""How much redaction finds of what nobody tuned it on, and what it takes for more than it is."""

from fixtures.feedback.personal_data import held_out, labelled, ordinary, recall
from retuned.consumers.privacy.redactor import Redactor


def test_the_labelled_strings_are_many_and_half_of_them_are_older_than_the_patterns() -> None:
    items = [item for item in labelled() if item.kind != "NAME"]
    assert len(items) >= 150
    assert len({item.text for item in items}) == len(items)
    assert 0.4 < sum(item.written == "before" for item in items) / len(items) < 0.6
    assert all(item.gone in item.text for item in items)
    assert len(set(ordinary())) == len(ordinary()) >= 40


def test_recall_is_not_less_than_it_was() -> None:
    found, total = recall(Redactor())
    reached = {group: found[group] / total[group] for group in total}
    floors = {
        "all": 0.93, "before": 1.0, "after": 0.85, "EMAIL": 0.95, "PHONE": 0.88, "CARD": 1.0, "IBAN": 1.0,
        "NATIONAL_ID": 0.90, "IP": 1.0, "MAC": 1.0, "KEY": 0.91, "COOKIE": 0.91, "NAME": 0.0,
    }  # fmt: skip
    assert floors.keys() == reached.keys()
    assert {group: share for group, share in reached.items() if share < floors[group]} == {}


def test_what_another_writer_wrote_is_found_as_it_was() -> None:
    right, total = held_out(Redactor())
    floors = {
        "address": 0.0, "card": 0.97, "credential": 0.93, "email": 1.0, "iban": 0.96, "ip": 1.0, "keep": 0.99,
        "mixed": 0.88, "national_id": 0.77, "personal": 0.91, "phone": 1.0, "user_id": 0.55,
    }  # fmt: skip
    assert floors.keys() == total.keys()
    assert total["personal"] >= 500 < total["keep"]
    assert {group: right[group] for group in total if right[group] / total[group] < floors[group]} == {}


def test_ordinary_texts_stay_but_for_one() -> None:
    changed = [text for text in ordinary() if Redactor().text(text) != text]
    assert changed == ["Cell B12 to F12 sum to 1 204 558.20, cell B13 is 0."]
