"""The company of the demo: what the file may say, what counts as right, which wordings are kept for the examination."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from retuned.consumers.errors import ConfigurationError
from retuned.daemon.demo import company as demo_company
from retuned.daemon.demo.company import Company, Fact, is_right, load, split_questions

LIBRARY = Path(__file__).parent.parent / "data" / "company_library.yaml"


@pytest.fixture(params=[None, LIBRARY], ids=["shop", "library"])
def company(request: pytest.FixtureRequest) -> Company:
    return load(request.param)


def small() -> dict[str, Any]:
    def questions(word: str) -> list[str]:
        return [f"{word} {number}th way to ask?" for number in range(100, 114)]

    return {
        "name": "Small",
        "system": "You answer for Small.",
        "users": {"rates": 0.5, "mistaken": 0, "corrects": 0.5, "escalates": 0.2, "seconds_saved": [10, 20]},
        "facts": [
            {
                "id": "returns",
                "answer": "You have 14 days to return it.",
                "value": "14 days",
                "questions": questions("returns"),
            },
            {"id": "city", "answer": "We are in Ghent.", "value": ["Ghent"], "questions": questions("city")},
        ],
        "change": {
            "facts": [{"id": "returns", "answer": "You have 30 days to return it.", "value": "30 days"}],
            "new": [],
        },
    }


def written(folder: Path, data: object) -> Path:
    path = folder / "company.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return path


def test_every_answer_is_right_at_its_time_and_only_then(company: Company) -> None:
    before = {fact.id: fact for fact in company.facts(changed=False)}
    after = {fact.id: fact for fact in company.facts(changed=True)}
    changed = {fact.id for fact in company.change.facts}
    assert changed
    assert after.keys() - before.keys() == {fact.id for fact in company.change.new}
    for fact in [*before.values(), *after.values()]:
        assert is_right(fact, fact.answer)
    for name, fact in before.items():
        assert is_right(after[name], fact.answer) == (name not in changed)
        assert is_right(fact, after[name].answer) == (name not in changed)


def test_no_answer_is_right_for_another_fact(company: Company) -> None:
    facts = company.facts(changed=True)
    for fact in facts:
        for other in facts:
            assert is_right(fact, other.answer) == (fact.id == other.id), (fact.id, other.answer)


def test_shipped_companies_ask_briefly_and_answer_in_a_sentence(company: Company) -> None:
    for fact in company.facts(changed=True):
        assert 8 <= len(fact.answer.split()) <= 16, fact.answer
        for question in fact.questions:
            assert len(question.split()) < 14, question


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("You have 30 days.", True),
        ("THIRTY? No: 30 DAYS!", True),
        ("You have 130 days.", False),
        ("You have 30.5 days.", False),
        ("You have 30 daysies.", False),
        ("30 days or 14 days.", False),
        ("30 hours, 3 days.", False),
        ("", False),
    ],
)
def test_right_is_the_value_in_whole_words_and_no_other_value(tmp_path: Path, answer: str, right: bool) -> None:
    fact = load(written(tmp_path, small())).facts(changed=True)[0]
    assert is_right(fact, answer) is right


def test_all_texts_of_a_value_must_be_there() -> None:
    fact = Fact(id="x", answer="Call or write.", value=("call", "write"), questions=tuple("abcdefghijklmn"))
    assert is_right(fact, "Write, or call.")
    assert not is_right(fact, "Call.")


def test_examination_wordings_are_never_asked(company: Company) -> None:
    asked, exam = split_questions(company, seed=7)
    assert (asked, exam) == split_questions(company, seed=7)
    assert exam != split_questions(company, seed=8)[1]
    for fact in company.facts(changed=True):
        assert len(exam[fact.id]) == demo_company.EXAM_QUESTIONS
        assert sorted(exam[fact.id] + asked[fact.id]) == sorted(fact.questions)
    assert not {q for kept in exam.values() for q in kept} & {q for some in asked.values() for q in some}


def change(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def apply(data: Any) -> None:
        *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        for part in parents:
            data = data[part]
        data[last] = value

    return apply


@pytest.mark.parametrize(
    ("edit", "names"),
    [
        (change("colour", "red"), ["colour", "Extra inputs"]),
        (change("facts.0.colour", "red"), ["facts.0.colour"]),
        (change("facts.0.other_values", ["1"]), ["facts.0.other_values"]),
        (change("users.rates", 1.5), ["users.rates"]),
        (change("users.seconds_saved", [20, 10]), ["users.seconds_saved", "longer"]),
        (change("facts.0.value", 14), ["facts.0.value"]),
        (change("facts.0.questions", ["only one?"]), ["facts.0.questions", "14"]),
        (change("facts.1.id", "returns"), ["facts.returns", "twice"]),
        (change("facts.0.value", "15 days"), ["facts.returns.value", "15 days", "does not stand"]),
        (change("facts.0.value", "?!"), ["facts.returns.value", "no word"]),
        (change("facts.0.questions.3", "Is it 14 days?"), ["facts.returns.questions", "gives the value away"]),
        (
            change("facts.0.questions.3", "Is it 30 days now?"),
            ["change.facts.returns.questions", "gives the value away"],
        ),
        (change("facts.1.questions.3", "Returns 101th way to ask"), ["facts.city.questions", "facts.returns"]),
        (change("facts.1.answer", "In Ghent for 14 days."), None),
        (
            change("facts.1", small()["facts"][0] | {"id": "b", "questions": list("abcdefghijklmn")}),
            ["facts.b.value", "cannot be told"],
        ),
        (change("change.facts.0.id", "nothing"), ["change.facts.nothing", "change.new"]),
        (
            change("change.facts.0", {"id": "returns", "answer": "14 days now.", "value": "14 days"}),
            ["change.facts.returns", "told"],
        ),
        (change("change.facts", []), ["change.facts"]),
        (change("change.facts", small()["change"]["facts"] * 2), ["change.facts.returns", "twice"]),
        (change("facts.1.answer", ""), ["facts.1.answer"]),
    ],
)
def test_a_wrong_file_is_one_line_that_names_the_key(
    tmp_path: Path, edit: Callable[[dict[str, Any]], None], names: list[str] | None
) -> None:
    data = small()
    edit(data)
    path = written(tmp_path, data)
    if names is None:
        load(path)
        return
    with pytest.raises(ConfigurationError) as raised:
        load(path)
    text = str(raised.value)
    assert "\n" not in text
    for name in [str(path), *names]:
        assert name in text


@pytest.mark.parametrize("content", ["a: [", "just a text", "", "\xff", "name: a\nname: b"])
def test_a_file_that_is_no_company(tmp_path: Path, content: str) -> None:
    path = tmp_path / "company.yaml"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigurationError, match=r"company\.yaml: [^\n]+$"):
        load(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="--company"):
        load(tmp_path / "none.yaml")
