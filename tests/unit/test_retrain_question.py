"""Which requests are the same question."""

import json
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from retuned.consumers.privacy.redactor import Redactor
from retuned.consumers.privacy.sealing import SEALED, seal
from retuned.retrain.data.examples import Example, example
from retuned.retrain.data.question import EXACT, Rules, Wording, question
from retuned.retrain.data.wording import LEAST, learned_wording
from retuned.retrain.scoring.metric import Chosen
from retuned.retrain.scoring.text import Text

NOW = datetime(2026, 11, 24)
KEY = b"k" * 32
FOLDED = Rules(Wording(case=True, end=True))
PAIRS = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "data" / "question_pairs.jsonl").read_text(encoding="utf-8").splitlines()
]


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def key(messages: Any, rules: Rules = EXACT, **read: Any) -> bytes | None:
    asked = question(messages, read.pop("context", None), read.pop("tools", None), read, rules)
    return asked and asked.key


def same(one: str, other: str, rules: Rules = EXACT) -> bool:
    assert key(user(one)) is not None
    return key(user(one), rules) == key(user(other), rules)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Is 1½ cups enough?", "Is 11⁄2 cups enough?"),
        ("Is 10½ my size?", "Is 101⁄2 my size?"),
        ("Does it draw 3 mW?", "Does it draw 3 MW?"),
        ("Do I take 5 Mg?", "Do I take 5 mg?"),
        ("What does tar -X do?", "What does tar -x do?"),
        ("Do you deliver to US?", "Do you deliver to us?"),
        ("What is n!", "What is n"),
        ("What is f'", "What is f"),
        ("Is it x²?", "Is it x2?"),
        ("Mix 1:10", "Mix 1:50"),
        ("if a:\n    b()\nc()", "if a:\n    b()\n    c()"),
        ("Is -5 warm?", "Is 5 warm?"),
        ("Ist das die Masse?", "Ist das die Maße?"),
        ("Do you speak Polish?", "Do you speak polish?"),
    ],
)
def test_what_may_carry_meaning_counts_whatever_the_workload_has_shown(one: str, other: str) -> None:
    assert not same(one, other)
    assert not same(one, other, FOLDED)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Caf\u00e9 open?", "Cafe\u0301 open?"),
        ("  How long\tdo I\u00a0have? \n", "How long do I have?"),
        ("Line one\r\n\r\nLine two", "Line one\nLine two  "),
    ],
)
def test_composition_and_white_space_never_count(one: str, other: str) -> None:
    assert same(one, other)


@pytest.mark.parametrize(
    ("one", "other", "rules"),
    [
        ("Where is my parcel?", "where is my parcel?", Rules(Wording(case=True))),
        ("Where is my parcel?", "Where is my parcel", Rules(Wording(end=True))),
        ("Où est mon colis ?", "Où est mon colis", Rules(Wording(end=True))),
        ("¿Dónde está mi paquete?", "Dónde está mi paquete", Rules(Wording(end=True))),
        ("什么时候发货？", "什么时候发货", Rules(Wording(end=True))),
    ],
)
def test_case_and_the_end_count_until_the_workload_has_shown_that_they_do_not(
    one: str, other: str, rules: Rules
) -> None:
    assert not same(one, other)
    assert same(one, other, rules)


@pytest.mark.parametrize(
    ("rules", "right", "wrong"),
    [
        (EXACT, 62, []),
        # `true` and `True` at the beginning: questions about code would have shown that case matters in them.
        (FOLDED, 86, [164]),
    ],
    ids=["exact", "folded"],
)
def test_requests_with_different_answers_are_not_the_same_question(rules: Rules, right: int, wrong: list[int]) -> None:
    """300 pairs in eleven languages, by authors who did not know these rules. A half deserves the same answer."""
    same: dict[bool, list[int]] = {True: [], False: []}
    for pair in PAIRS:
        sealed = "company" if pair["redacted"] and pair["workload_system"] == "constant" else None
        one, other = (
            key(
                request["messages"],
                rules,
                context=request.get("context"),
                tools=request.get("tools"),
                **{"chat_template_kwargs": request.get("chat_template_kwargs"), SEALED: sealed},
            )
            for request in (pair["a"], pair["b"])
        )
        if one is not None and one == other:
            same[pair["same"]].append(pair["id"])
    assert (len(same[True]), same[False]) == (right, wrong)


def test_all_that_the_model_reads_belongs_to_the_question() -> None:
    asked = user("What is my plan?")
    plain = key(asked)
    different = [
        key([{"role": "user", "name": "ann", "content": "What is my plan?"}]),
        key([{"role": "system", "content": "Dilute 1:10"}, *asked]),
        key([{"role": "system", "content": "Dilute 1:50"}, *asked]),
        key([*asked, {"role": "system", "content": "Be brief."}]),
        key(asked, context=["Plan A costs 5 EUR."]),
        key(asked, context=["Plan A costs 6 EUR."]),
        key(asked, tools=[{"name": "plan", "parameters": {}}]),
        key(asked, chat_template_kwargs={"documents": [{"text": "Plan A"}]}),
        key(asked, chat_template_kwargs={"documents": [{"text": "Plan B"}]}),
        key(asked, documents=[{"text": "Plan A"}]),
        key(asked, functions=[{"name": "plan"}]),
    ]
    assert plain is not None
    assert len({plain, *different}) == 1 + len(different)
    assert None not in different


def test_a_date_in_the_instructions_counts_until_a_person_calls_its_line_harmless() -> None:
    def dated(day: str) -> list[dict[str, Any]]:
        return [{"role": "system", "content": f"You sell lamps.\nToday is {day}."}, *user("Are you open?")]

    harmless = Rules(harmless=("Today is .*",))
    assert key(dated("2026-11-01")) != key(dated("2026-11-02"))
    assert key(dated("2026-11-01"), harmless) == key(dated("2026-11-02"), harmless)
    other = [{"role": "system", "content": "You sell boots.\nToday is 2026-11-01."}, *user("Are you open?")]
    assert key(dated("2026-11-01"), harmless) != key(other, harmless)


@pytest.mark.parametrize(
    "read",
    [
        {"messages": user("What is the balance of <IBAN_1>?")},
        {"messages": user("I am <PERSON>, what is my balance?")},  # redacted by the app
        {"messages": user("Plan?"), "context": ["<EMAIL_1> has plan A."]},
        {"messages": user("Plan?"), "chat_template_kwargs": {"documents": [{"text": "<EMAIL_1> has plan A."}]}},
        {"messages": [{"role": "user", "name": f"ab12:{'0' * 32}", "content": "Plan?"}]},
        {"messages": [{"role": "system", "content": "You help <EMAIL_1>."}, *user("Plan?")]},
        {"messages": user("Plan?"), "tools": [{"name": "mail", "description": "To <EMAIL_1>", "parameters": {}}]},
        {"messages": [*user("Plan?"), {"role": "system", "content": "It is <EMAIL_1>."}], SEALED: "seal"},
    ],
)
def test_what_was_redacted_outside_sealed_instructions_leaves_no_question(read: dict[str, Any]) -> None:
    assert key(**read) is None


def test_markup_in_capitals_is_no_placeholder() -> None:
    marked = [{"role": "system", "content": "<RULES>\nBe brief.\n</RULES>"}, *user("<DOCUMENTS>A</DOCUMENTS> Plan?")]
    assert key(marked) is not None
    assert key([*marked[:1], *user("<DOCUMENTS>A</DOCUMENTS> <PERSON>'s plan?")]) is None
    assert sealed("<RULES>Name help@example.com</RULES>") is not None


def sealed(system: str, tools: Any = None) -> str | None:
    before = [{"role": "system", "content": system}, *user("Plan? I am <EMAIL_9>.")], tools
    messages, offered = (Redactor().value(part) for part in before)
    return seal(KEY, (before[0], messages), (before[1], offered))


def test_equal_seals_mean_equal_lines_before_redaction() -> None:
    ann, ben = "You help ann@example.com.\nBe brief.", "You help ben@example.com.\nBe brief."
    assert sealed(ann) is not None
    assert sealed(ann) == sealed("You help ann@example.com.\nBe kind.")
    assert sealed(ann) != sealed(ben)
    assert sealed("Be brief.") is None
    assert sealed("You help <EMAIL_1> and ann@example.com.") is None  # nobody knows what the placeholder stood for
    tools = [{"name": "mail", "description": "To ann@example.com"}]
    assert sealed("Be brief.", tools) not in (None, sealed(ann))
    sides = [[{"role": "system", "content": "You help <EMAIL_1>."}, *user("Plan?")]] * 2
    assert key(sides[0], **{SEALED: "one"}) == key(sides[1], **{SEALED: "one"}) != key(sides[1], **{SEALED: "two"})


def test_a_redacted_number_or_key_of_a_tool_is_sealed_too() -> None:
    before, after = [{"name": "call", "default": 491712345678}], [{"name": "call", "default": "<PHONE_1>"}]
    other = [{"name": "call", "default": 491712345679}]
    found = [seal(KEY, ([], []), (tools, after)) for tools in (before, other)]
    assert None not in found
    assert found[0] != found[1]


METRIC = Chosen(Text(), "")


def said(text: str, answer: str, minute: int = 0) -> Example:
    row = example(
        json.dumps(user(text)), answer, "correction", "expert", "?", None, f"i{text}{minute}", f"f{text}{minute}",
        NOW + timedelta(minutes=minute), NOW,
    )  # fmt: skip
    assert row is not None
    return row


def variants(count: int) -> list[Example]:
    return [
        said(text, f"It costs {number} euros.")
        for number in range(count)
        for text in (f"What does lamp {number} cost today?", f"what does lamp {number} cost today?")
    ]


def test_a_feature_of_the_wording_makes_no_difference_once_enough_questions_have_shown_it() -> None:
    assert learned_wording(variants(LEAST), (), METRIC) == Wording(case=True, end=False)
    assert learned_wording(variants(LEAST - 1), (), METRIC) == Wording()


def test_one_question_whose_wordings_have_different_answers_is_enough_against_it() -> None:
    apart = [said("Polish them?", "Use wax 5."), said("polish them?", "Use wax 7.")]
    assert learned_wording([*variants(LEAST), *apart], (), METRIC) == Wording()


def test_an_answer_that_changed_between_two_wordings_is_no_evidence_against_them() -> None:
    lower, upper = "where is the shop?", "Where is the shop?"
    changed = [said(lower, "In street 5.", 1), said(upper, "In street 5.", 2), said(lower, "In street 7.", 3)]
    assert learned_wording([*variants(LEAST), *changed], (), METRIC) == Wording(case=True)


def test_the_identity_of_a_row_follows_the_rules() -> None:
    one, other = (
        example(
            json.dumps(user(text)), "60 days.", "accepted", "user", "60 days.", None, "i", "f", NOW, NOW, rules=rules
        )
        for text, rules in (("Where is my parcel?", FOLDED), ("where is my parcel", FOLDED))
    )
    assert one is not None
    assert other is not None
    assert (one.prompt_hash, one.row_id) == (other.prompt_hash, other.row_id)
    assert replace(one, timestamp=NOW).near_form == other.near_form
