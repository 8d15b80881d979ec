import json
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from retuned.retrain.data.examples import Example, example
from retuned.retrain.data.label_choice import Candidate, Pick, Taught, choose
from retuned.retrain.scoring.facts import Facts
from retuned.retrain.scoring.json_fields import Json
from retuned.retrain.scoring.label import Label
from retuned.retrain.scoring.metric import Chosen, Metric
from retuned.retrain.scoring.tool_calls import ToolCalls

SIMILARITY = 0.8
TAUGHT = Taught(
    ("may i return a lamp", "how long is the warranty of a sofa", "when is the shop open"),
    frozenset({"day:14", "month:24", "time:9:00"}),
)


def asked(question: str, answer: str, number: int = 0, context: list[str] | None = None) -> Example:
    time = datetime(2026, 3, 2) + timedelta(minutes=number)
    made = example(
        messages=json.dumps([{"role": "user", "content": question}]),
        completion=answer,
        kind="accepted",
        source="app",
        response=answer,
        context=json.dumps(context) if context else None,
        interaction_id=f"i{number}",
        feedback_id="",
        timestamp=time,
        received_at=time,
    )
    assert made is not None
    return made


def picked(
    *candidates: Candidate,
    known: tuple[Example, ...] = (),
    taught: Taught = TAUGHT,
    count: int = 9,
    metric: Metric | None = None,
) -> list[Pick]:
    return choose(candidates, known, taught, count, SIMILARITY, Chosen(metric or Facts(), "of the tests"))


def only(*candidates: Candidate, **more: Any) -> Pick:
    (pick,) = picked(*candidates, **more)
    return pick


SOUND = asked("May I return a lamp?", "You have 14 days.")


def test_an_answer_that_nothing_speaks_against_is_not_asked_about() -> None:
    assert picked(Candidate(SOUND)) == []
    assert picked() == []


def test_uncertain_people_called_it_wrong_and_nobody_said_what_is_right() -> None:
    pick = only(Candidate(SOUND, bad=1))
    assert (pick.reason, round(pick.score, 3)) == ("uncertain", 0.667)
    assert pick.detail == "People called it wrong, and nobody gave the right answer (1 against, 0 for)."
    assert only(Candidate(SOUND, bad=8)).score > pick.score
    hedged = asked("May I return a lamp?", "I'm not sure, perhaps.")
    assert only(Candidate(hedged)).detail == "The answer is unsure of itself."


def test_disagreeing_people_about_one_answer() -> None:
    pick = only(Candidate(SOUND, good=2, bad=2))
    assert (pick.reason, pick.score) == ("disagreeing", 0.5)
    # What people called good, and nobody bad, is taken for good whatever else speaks against it.
    hedged = asked("May I return a lamp?", "I'm not sure, perhaps.")
    assert picked(Candidate(hedged)) != []
    assert picked(Candidate(hedged, good=1)) == []


def test_disagreeing_answers_to_one_question() -> None:
    answers = ["You have 14 days.", "You have fourteen days", "You have 14 days!", "You have 24 months."]
    candidates = [
        Candidate(asked(f"May I{' ' * (n + 1)}return a lamp?", answer, n)) for n, answer in enumerate(answers)
    ]
    pick = only(*candidates)  # one for the question: the one that stands alone
    assert (pick.example.interaction_id, pick.reason, pick.score) == ("i3", "disagreeing", 0.75)
    assert pick.detail == "The same question got other answers (75% of 4)."
    # Of things that are not the same, nothing is held against each other.
    apart = [Candidate(asked(f"May I return lamp A{n}?", answer, n)) for n, answer in enumerate(answers)]
    assert all("other answers" not in one.detail for one in picked(*apart))


def test_ungrounded_in_the_context_or_in_what_was_taught() -> None:
    context = ["Lamps can be returned within 14 days."]
    loose = asked("May I return a lamp?", "You have 45 days.", context=context)
    pick = only(Candidate(loose))
    assert (pick.reason, pick.score) == ("ungrounded", 0.7)
    assert pick.detail == "It states values that are neither in its context nor in the question: day 45."
    assert picked(Candidate(asked("May I return a lamp?", "You have 14 days.", context=context))) == []
    assert (
        picked(Candidate(asked("May I return a lamp after 45 days?", "No, 45 days are too many.", context=context)))
        == []
    )
    bare = asked("May I return a lamp?", "You have 45 days.")
    assert only(Candidate(bare)).detail == "It states values that are in nothing that was taught or asked: day 45."
    assert picked(Candidate(bare), taught=Taught()) == []  # nothing to hold it against


def test_what_programs_cannot_read_is_asked_about_by_the_metric() -> None:
    labels = Label(["14 day return", "24 month warranty"])
    pick = only(Candidate(asked("May I return a lamp?", "Sure, within 14 days")), metric=labels)
    assert (pick.reason, pick.score) == ("unreadable", 0.9)
    assert pick.detail == "Programs cannot read it: none of the 2 labels."
    schema = {"type": "object", "required": ["days"]}
    pick = only(Candidate(asked("May I return a lamp?", '{"day": 45}')), metric=Json(schema))
    assert pick.detail == "Programs cannot read it: 'days' is a required property."
    call = '<tool_call>\n{"name": "refund", "arguments": {"days": 45}}\n</tool_call>'
    offered = json.dumps([{"type": "function", "function": {"name": "returns"}}])
    pick = only(Candidate(replace(asked("May I return a lamp?", call), tools=offered)), metric=ToolCalls())
    assert pick.detail == "Programs cannot read it: no such tool: refund."


def test_a_value_in_a_label_a_document_or_a_call_is_no_statement() -> None:
    context = ["Lamps can be returned within two weeks."]
    label = asked("May I return a lamp?", "45 day return", context=context)
    document = asked("May I return a lamp?", '{"days": 45}', context=context)
    call = asked("May I return a lamp?", '<tool_call>\n{"name": "returns", "arguments": {"days": 45}}\n</tool_call>')
    for metric, one in (
        (Label(["45 day return"]), label), (Json({"type": "object"}), document), (ToolCalls(), call),
    ):  # fmt: skip
        assert picked(Candidate(one), metric=metric) == []
    assert picked(Candidate(label)) != []  # in words it would be


def test_a_new_topic_is_far_from_all_that_was_taught() -> None:
    far = asked("Does breakfast cost extra in room seven?", "Ask at the desk.")
    pick = only(Candidate(far))
    assert pick.reason == "new_topic"
    assert 0.3 <= pick.score <= 0.5
    assert picked(Candidate(far), taught=Taught()) == []


def test_signs_add_up() -> None:
    loose = asked("Does breakfast cost extra in room seven?", "It costs 9 euros.")
    pick = only(Candidate(loose, bad=1))
    assert pick.score > 0.9
    assert pick.reason == "ungrounded"
    assert pick.detail.count(".") == 3


def test_what_is_known_already_is_not_asked_again() -> None:
    assert picked(Candidate(SOUND, bad=3), known=(asked("may i return a LAMP", "Never."),)) == []
    assert picked(Candidate(SOUND, bad=3, settled=True)) == []


def test_picks_are_unlike_each_other() -> None:
    many = [
        Candidate(asked(f"May I return a lamp{mark}", "You have 14 days.", n), bad=9)
        for n, mark in enumerate(("", "?", " ?", "!", "…"))
    ]
    other = Candidate(asked("How long is the warranty of a sofa?", "It is 24 months.", 9), bad=1)
    near = Candidate(asked("May I return a lamp that is broken, please?", "You have 14 days.", 8), bad=2)
    assert [pick.example.interaction_id for pick in picked(*many, near, other)] == ["i0", "i8", "i9"]
    # With room for two, another topic goes before more of the same.
    assert {pick.example.interaction_id for pick in picked(*many, near, other, count=2)} == {"i0", "i9"}


def test_questions_without_a_word_stop_nothing() -> None:
    assert picked(Candidate(asked("???", "What?"), bad=1), Candidate(SOUND, bad=1, good=0)) != []
    assert picked(Candidate(asked("???", "What?"), bad=1)) == []
