"""What no model should learn to write."""

import json
from dataclasses import replace
from datetime import datetime
from textwrap import wrap
from typing import Any

import pytest

from retuned.retrain.data.examples import Example, Rewriter
from retuned.retrain.data.filters import filtered, repetitive
from retuned.retrain.data.identity import text_hash
from retuned.retrain.scoring.facts import Facts
from retuned.retrain.scoring.json_fields import Json
from retuned.retrain.scoring.label import Label
from retuned.retrain.scoring.score import Metric
from retuned.retrain.settings import FILTERS, DatasetSettings

WHEN = datetime(2026, 3, 2)
GOOD = [
    "You can return a tent within 14 days.",
    "Please send it to our shop in Oslo, and we pay the postage.",
    "The parcel arrives on Monday, between 9 am and noon.",
    "Yes, there is a discount for students of any university.",
    "We repair it for free in the first year after you bought it.",
    "You find the number on the back of the box.",
    "It costs 5 euros to send a parcel to another country.",
    "Our shop opens at 9 am and closes at 6 pm on weekdays.",
    "You can pay by card, in cash or on account.",
    "The guarantee covers the motor and the battery for two years.",
]


def row(completion: str, **more: Any) -> Example:
    asked = more.pop("asked", "What do I do with my tent?")
    made = Example(
        row_id=text_hash(completion),
        prompt_hash="p",
        prompt=asked,
        question=asked,
        messages=json.dumps([{"role": "user", "content": asked}]),
        completion=completion,
        kind="accepted",
        source="user",
        rejected=None,
        context=None,
        interaction_id=f"i {completion}",
        feedback_id=completion,
        timestamp=WHEN,
        received_at=WHEN,
    )
    return replace(made, **more)


def found(
    *rows: Example, cut: tuple[str, ...] = (), wanted: Any = FILTERS, metric: Metric | None = None
) -> dict[str, str]:
    usual = [row(text) for text in GOOD] if metric is None else []
    return filtered([*usual, *rows], cut, wanted, metric or Facts())


def test_good_answers_pass() -> None:
    assert found() == {}


@pytest.mark.parametrize(
    "text",
    [
        "SELECT a, b FROM t WHERE c > 0;",
        "Open our app and simply log in",
        "It is the form that you asked for",
        "Sorry, we are closed all day today :-(",
        "Your blood group on file is A-",
        "As an AI assistant of the shop I book repairs of tents for you.",
    ],
)
def test_the_end_of_code_a_smiley_and_a_particle_break_nothing_off(text: str) -> None:
    assert found(row(text)) == {}


@pytest.mark.parametrize(
    "text",
    [
        "Unfortunately, I can't help with refunds after 30 days; please write to our billing desk.",
        "I cannot help you with that order, but the parcel desk can.",
        "I can't help but notice that your order has two lamps; do you want both?",
        "> I cannot help my brother with his account\n\nPlease ask him to call us.",
        '"I cannot answer the phone" is what you say when you are busy.',
        "As an AI assistant I can't see your account, but you can check the status of it in the app.",
        "As an AI company, we build models; I don't think we ship hardware.",
    ],
)
def test_an_answer_that_states_something_beside_a_refusal_is_none(text: str) -> None:
    assert found(row(text), wanted=("refusing",)) == {}


@pytest.mark.parametrize(
    "text",
    [
        "Dear Ada, your parcel arrives on Monday. Kind regards,",
        "We have shops in these towns:\n- Oslo,\n- Bergen,\n- Trondheim,",
        "Wir rufen Sie gleich morgen wieder an",
    ],
)
def test_the_end_of_a_letter_a_list_or_a_german_verb_breaks_nothing_off(text: str) -> None:
    assert found(row(text), wanted=("incomplete",)) == {}


def test_lines_that_differ_do_not_repeat_each_other() -> None:
    days = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")
    assert not repetitive("\n".join(f"- {day}: open from 9 am to 6 pm" for day in days))
    assert not repetitive("\n".join(f"| Size {size} | in stock, ships within 2 days |" for size in range(36, 44)))
    assert repetitive("Open from 9 am to 6 pm.\n" * 5)
    assert repetitive("No.\n" * 20)
    assert repetitive("\n".join(f"{number}. Turn it off and on again." for number in range(20)))
    loop = "You can return it within a month. We pay the money back. " * 12
    assert all(repetitive("\n".join(wrap(loop, width))) for width in (40, 60, 72, 80))


@pytest.mark.parametrize("tail", ["?" * 60, " Please ask?" * 40, " " + "? " * 60])
def test_many_questions_after_a_refusal_take_no_time(tail: str) -> None:
    """Each of them could be read in two ways: together, in more ways than can be tried."""
    assert found(row(f"I cannot help with that.{tail} In 1 day."), wanted=("refusing",)) == {}


def test_names_are_in_no_language() -> None:
    dishes = "Pizza Margherita, Spaghetti alla Puttanesca, Risotto ai funghi porcini"
    assert found(row(dishes)) == {}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("You can return it to any of our shops and", "incomplete"),
        ("You can return it to any of our many shops in the", "incomplete"),
        ("You can return it. " * 8, "repetitive"),
        ("very " * 20 + "good.", "repetitive"),
        ("We have many options; you can choose the", "incomplete"),
        ("I'm sorry, but I can't help with that.", "refusing"),
        ("I'm sorry, but I can't help with that. If you have other questions, feel free to ask!", "refusing"),
        ("As an AI language model, I cannot give legal advice. I recommend that you consult a lawyer.", "refusing"),
        ("**I'm sorry, but I can't assist with that.** 😊", "refusing"),
        ("Hello! Unfortunately, I cannot help with that. Sorry about that.", "refusing"),
        ("As an AI language model, I have no opinion on tents.", "refusing"),
        ("Sie können das Zelt innerhalb von vierzehn Tagen in jedem unserer Läden zurückgeben.", "off_language"),
        ("Puede devolver la tienda de campaña en cualquiera de nuestras sucursales.", "off_language"),
    ],
)
def test_what_is_not_fit_to_be_learned(text: str, reason: str) -> None:
    assert found(row(text)) == {text: reason}
    assert found(row(text), wanted=[name for name in FILTERS if name != reason]) == {}


def test_an_answer_that_ended_at_its_limit_is_incomplete_and_its_correction_is_not() -> None:
    answer, correction = row("It takes 3 days."), row("It takes 4 days.", kind="correction", interaction_id="i1")
    assert found(replace(answer, interaction_id="i1"), correction, cut=("i1",)) == {"It takes 3 days.": "incomplete"}


def test_what_people_wrote_needs_no_full_stop_and_may_refuse() -> None:
    texts = ("14 days for the tent and 20 for the lamp", "I cannot help with that: please ask your doctor.")
    assert found(*(row(text, kind="correction", source="expert") for text in texts)) == {}


@pytest.mark.parametrize("label", ["A", "opt-in", "sign in", "Team A", "left-", "and"])
@pytest.mark.parametrize("kind", ["correction", "accepted"])
def test_a_label_is_complete_whatever_it_ends_with(label: str, kind: str) -> None:
    others = [row(f"Team {letter}", feedback_id=letter) for letter in "BCDEFGHIJKLM"]
    assert label not in found(*others, row(label, kind=kind, source="expert"))


def test_what_an_expert_wrote_is_whole() -> None:
    assert found(row("Press the blue button to sign in", kind="correction", source="expert")) == {}


def test_what_an_expert_wrote_is_not_judged_by_its_form() -> None:
    odd = ["Yes, it does so. " * 9, "Sie können das Zelt innerhalb von vierzehn Tagen in jedem Laden zurückgeben."]
    context = json.dumps(["It takes 3 days."])
    assert found(*(row(text, kind="correction", source="expert", context=context) for text in odd)) == {}


@pytest.mark.parametrize(
    "text", ["opt-in", "14 days", "SELECT id FROM orders WHERE paid = true", "https://a.example/b"]
)
def test_an_accepted_answer_needs_no_full_stop(text: str) -> None:
    assert found(row(text)) == {}


def test_line_items_of_a_document_do_not_repeat_themselves() -> None:
    items = ", ".join(f'{{"name": "pen", "unit": "piece", "amount": {number}, "price": 2}}' for number in range(8))
    invoice = row(f'{{"total": 56, "items": [{items}]}}')
    assert found(invoice, metric=Json({})) == {}


def test_what_the_metric_cannot_read_is_set_aside_whoever_wrote_it() -> None:
    rows = [row("refund"), row("lol are you serious"), row("hm", kind="correction", source="expert")]
    wrong = {"lol are you serious": "unreadable", "hm": "unreadable"}
    assert found(*rows, metric=Label(["refund", "exchange"])) == wrong
    assert found(row("no json"), metric=Json({})) == {"no json": "unreadable"}


@pytest.mark.parametrize("kind", ["correction", "accepted"])
def test_labels_and_a_schema_that_were_inferred_reject_no_statement_of_an_expert(kind: str) -> None:
    labels = Label(["refund", "exchange"], inferred=True)
    assert found(row("refund"), row("privacy", kind=kind, source="expert"), metric=labels) == {}
    assert found(row("refund"), row("privacy", kind=kind), metric=labels) == {"privacy": "unreadable"}
    schema = Json({"required": ["intent"]}, inferred=True)
    assert found(row('{"new": 1}', kind=kind, source="expert"), metric=schema) == {}
    assert found(row('{"new": 1}', kind=kind), metric=schema) == {'{"new": 1}': "unreadable"}
    assert found(row("no json", kind=kind, source="expert"), metric=schema) == {"no json": "unreadable"}


def test_a_language_that_is_usual_here_is_none_too_many() -> None:
    german = [
        "Sie können das Zelt innerhalb von vierzehn Tagen zurückgeben.",
        "Bitte schicken Sie es an unseren Laden, wir zahlen das Porto.",
        "Das Paket kommt am Montag zwischen neun und zwölf Uhr an.",
    ]
    assert found(*map(row, german)) == {}


def test_facts_must_stand_in_the_passages_or_the_question() -> None:
    context = json.dumps(["Tents go back within 14 days, to Bergen. Parcels leave on 2026-03-04."])
    told = "You have 14 days, and Bergen takes it back on 4 March 2026; order A77 is yours."
    assert found(row(told, context=context, asked="Where does order A77 go?")) == {}
    for invented in ("You have 15 days.", "It left on 5 March.", "Call us about B12."):
        assert found(row(invented, context=context)) == {invented: "ungrounded"}
        assert found(row(invented)) == {}
        assert found(row(invented, context=context, kind="correction", source="expert")) == {}


def test_repetition_is_of_runs_of_words_not_of_words() -> None:
    listed = "A tent has 14 days, a lamp has 20 days, a sofa has 30 days, a chair has 60 days, a desk has 90 days."
    assert not repetitive(listed)


def test_completions_are_written_as_the_house_writes() -> None:
    rewrite = Rewriter(
        DatasetSettings(replace={r"(?i)\bacme(?: inc)?\b\.?": "ACME Inc.", "e-mail": "email"}, date_format="%d.%m.%Y")
    )
    assert rewrite("Ask acme by e-mail until 2026-11-24, not 2026-13-40.") == (
        "Ask ACME Inc. by email until 24.11.2026, not 2026-13-40."
    )
    with pytest.raises(ValueError, match="expected a regular expression"):
        DatasetSettings(replace={"(": ""})


def test_a_placeholder_that_the_prompt_does_not_hold_is_not_learned() -> None:
    asked = "Is <EMAIL_1> still my address?"
    taught = row("Write to <EMAIL_1>.", kind="correction", source="expert")
    known = row("Yes, it is <EMAIL_1>.", messages=json.dumps([{"role": "user", "content": asked}]))
    other = row("No, it is <EMAIL_2>.", messages=json.dumps([{"role": "user", "content": asked}]))
    passage = row("Call <PHONE_1> please.", context=json.dumps(["Our phone is <PHONE_1>."]))
    assert found(taught, known, other, passage) == dict.fromkeys([taught.completion, other.completion], "placeholder")
    assert found(taught, wanted=[name for name in FILTERS if name != "placeholder"]) == {}


def test_an_argument_that_was_replaced_by_a_pseudonym_is_not_learned() -> None:
    name = "ace1:04c083018a0b4f0e9d1c2b3a49586776"
    call = '<tool_call>\n{{"name": "update_ticket", "arguments": {{"account_id": "{}"}}}}\n</tool_call>'
    taught = row(call.format(name), kind="correction", source="expert")
    kept = row(call.format("6923 7659 9887"), kind="correction", source="expert")
    known = row(f"It is {name}.", messages=json.dumps([{"role": "user", "content": f"Who is {name}?"}]))
    other = row("The hash is 04c083018a0b4f0e9d1c2b3a49586776.", kind="correction", source="expert")
    assert found(taught, kept, known, other) == {taught.completion: "placeholder"}


def test_an_answer_in_the_language_of_its_question_is_fit() -> None:
    german = "Sie können das Zelt innerhalb von vierzehn Tagen in jedem unserer Läden zurückgeben."
    asked = "In welchen Läden kann ich das Zelt zurückgeben, und wie lange habe ich dafür Zeit?"
    assert found(replace(row(german), question=asked)) == {}
    assert found(replace(row(german), question="Which shops take the tent back, and for how long?")) == {
        german: "off_language"
    }
