"""Whom datasets believe: many against few, then against now, and the signs of an attack."""

from collections import Counter
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from retuned.retrain.data.examples import Example
from retuned.retrain.data.identity import normalise, text_hash
from retuned.retrain.data.table import Table, decide
from retuned.retrain.scoring.exact import Exact
from retuned.retrain.scoring.facts import Facts
from retuned.retrain.scoring.json_fields import Json
from retuned.retrain.scoring.label import Label
from retuned.retrain.scoring.metric import Chosen
from retuned.retrain.scoring.score import Metric
from retuned.retrain.scoring.text import Text

START = datetime(2026, 3, 2, 9)
QUESTION = "How long may I keep a tent before I have to send it back?"


class Talk:
    """Voices, an hour apart; an account is as old as the talk unless it is said to be new."""

    def __init__(self) -> None:
        self.said: list[Example] = []
        self.first_seen: dict[str, datetime] = {}
        self.now = START + timedelta(days=10)

    def says(
        self,
        who: str | None,
        answer: str,
        *,
        question: str = QUESTION,
        source: str = "user",
        instead: str | None = None,
        after: timedelta = timedelta(hours=1),
        new: bool = False,
        wrong: bool = False,
    ) -> str:
        self.now += after
        if who:
            self.first_seen.setdefault(who, self.now if new else START)
        prompt = normalise(question)
        feedback = f"f{len(self.said)}"
        self.said.append(
            Example(
                row_id=text_hash(feedback),
                prompt_hash=text_hash(prompt),
                prompt=prompt,
                question=prompt,
                messages=f'[{{"role": "user", "content": "{question}"}}]',
                completion=answer,
                kind="declined" if wrong else "correction" if instead else "accepted",
                source=source,
                rejected=instead,
                context=None,
                interaction_id=f"i{len(self.said)}",
                feedback_id=feedback,
                timestamp=self.now,
                received_at=self.now,
                user_id=who,
            )
        )
        return feedback

    def usual(self, messages: int, accounts: int) -> None:
        """What others say of other things."""
        for number in range(messages):
            asked = f"What is the price of number {number * 7919}?"
            self.says(f"u{number % accounts}", f"It costs {number} euros.", question=asked)

    def decided(self, metric: Metric | None = None) -> Table:
        chosen = Chosen(metric or Facts(), "of the tests")
        return decide(self.said, self.first_seen, chosen)

    def reasons(self, metric: Metric | None = None) -> dict[str, str]:
        """Why statements are not learned: by feedback."""
        return {one.row.feedback_id: one.reason for one in self.decided(metric).decided if one.state != "taught"}

    def learned(self, metric: Metric | None = None, question: str = QUESTION) -> str | None:
        answers = [row.completion for row in self.decided(metric).rows if row.prompt == normalise(question)]
        return answers[0] if answers else None


def days(number: int) -> str:
    return f"You may return it within {number} days."


def test_nobody_is_doubted_where_people_agree_or_speak_of_other_things() -> None:
    talk = Talk()
    for number in range(6):
        talk.says(f"u{number}", days(30))
        talk.says(f"u{number}", days(14), question=QUESTION.replace("tent", "lamp"))
    assert talk.reasons() == {}
    assert not talk.decided().distrusted


def test_one_account_against_several_is_outvoted_however_often_it_speaks() -> None:
    talk = Talk()
    for number in range(3):
        talk.says(f"u{number}", days(30))
    lies = [talk.says("liar", days(90), instead=days(30)) for _ in range(20)]
    talk.says("u3", days(30))
    assert talk.reasons() == dict.fromkeys(lies, "outvoted")


def test_it_is_outvoted_in_the_last_hour_too_when_nobody_could_object_yet() -> None:
    talk = Talk()
    for number in range(3):
        talk.says(f"u{number}", days(30))
    lies = [talk.says("liar", days(90), instead=days(30)) for _ in range(5)]
    assert talk.reasons() == dict.fromkeys(lies, "outvoted")


@pytest.mark.parametrize(("upheld", "needed"), [(2, 2), (4, 2), (60, 3)])
def test_a_policy_that_changed_is_believed_when_enough_say_so_and_nobody_upholds_the_old_one(
    upheld: int, needed: int
) -> None:
    talk = Talk()
    old = [talk.says(f"u{number}", days(30), instead="No.") for number in range(upheld)]
    new = [talk.says(f"v{number}", days(45), instead=days(30)) for number in range(needed - 1)]
    assert talk.reasons() == dict.fromkeys(new, "outvoted")  # one short
    talk.says(f"v{needed}", days(45), instead=days(30))
    assert talk.reasons() == dict.fromkeys(old, "superseded")
    assert talk.decided().distrusted == frozenset()


def test_an_answer_that_as_many_uphold_as_before_has_not_changed_whatever_a_few_more_say() -> None:
    def reasons(upheld_since: int) -> set[str]:
        talk = Talk()
        for number in range(16):
            talk.says(f"u{number}", days(30))
            talk.usual(1, 1)
        new = [talk.says(f"v{number}", days(45), instead=days(30)) for number in range(5)]
        for number in range(upheld_since):
            talk.says(f"w{number}", days(30))
        return {reason for feedback, reason in talk.reasons().items() if feedback in new}

    assert reasons(upheld_since=4) == {"outvoted"}
    assert reasons(upheld_since=1) == set()


def test_the_newer_of_two_single_voices_counts() -> None:
    talk = Talk()
    old = talk.says("u0", days(30), instead="No.")
    talk.says("u1", days(45), instead=days(30))
    assert talk.learned() == days(45)
    assert talk.reasons().keys() == {old}


def test_experts_decide_and_what_is_newer_than_their_word_is_not_believed() -> None:
    talk = Talk()
    before = [talk.says(f"u{number}", days(30)) for number in range(3)]
    talk.says("staff", days(45), source="expert", instead=days(30))
    after = [talk.says(f"v{number}", days(30)) for number in range(5)]
    assert talk.reasons() == dict.fromkeys(before, "superseded") | dict.fromkeys(after, "contradicts_expert")


def test_what_an_expert_calls_wrong_is_not_learned_however_many_like_it() -> None:
    talk = Talk()
    liked = [talk.says(f"u{number}", days(30)) for number in range(5)]
    talk.says("staff", days(30), source="expert", wrong=True)
    assert talk.reasons() == dict.fromkeys(liked, "declined")


def test_one_thumb_up_among_bad_ratings_teaches_nothing() -> None:
    talk = Talk()
    liked = talk.says("u0", days(30))
    for number in range(5):
        talk.says(f"v{number}", days(30), wrong=True)
    assert talk.reasons() == {liked: "declined"}
    for number in range(6):
        talk.says(f"w{number}", days(30))
    assert talk.learned() == days(30)


@pytest.mark.parametrize(
    "insult",
    [
        "You may return it within 14 days, as if you ever read your own policy, you clowns.",
        "Only after 14 days have passed may you return it.",
    ],
)
def test_the_wording_of_most_accounts_is_learned_not_the_newest(insult: str) -> None:
    talk = Talk()
    for number in range(10):
        talk.says(f"u{number}", days(14), instead="No.")
    talk.says("troll", insult, instead=days(14))
    assert talk.learned() == days(14)


def test_of_prose_that_nobody_can_compare_the_answer_in_the_middle_is_learned() -> None:
    talk = Talk()
    good = [
        "Please unplug the router, wait a little and plug it in again.",
        "Unplug the router, wait a little, then plug it in again please.",
        "You should unplug the router and wait a little, then plug it in again.",
        "Unplug the router and plug it in again after you wait a little.",
        "Just unplug the router, wait a little and plug it in.",
    ]
    for number, text in enumerate(good):
        talk.says(f"u{number}", text, instead="No.")
    talk.says("joker", "Try throwing it out of the window, that always helped me with you people.", instead="No.")
    assert talk.learned(Text()) in good


def test_an_account_counts_by_its_last_word() -> None:
    talk = Talk()
    first = talk.says("u1", days(30), instead="No.")
    talk.says("u2", days(45), instead="No.")
    talk.says("u1", days(45), instead="No.")
    assert talk.reasons() == {first: "superseded"}


def test_people_who_disagree_evenly_teach_nothing_and_nobody_is_blamed() -> None:
    talk = Talk()
    for number, answer in enumerate((30, 45, 60, 30, 45, 60)):
        talk.says(f"u{number}", days(answer), instead="No.")
    assert set(talk.reasons().values()) == {"disputed"}
    assert not talk.decided().distrusted


def test_where_most_of_what_people_state_is_junk_what_nobody_upholds_waits() -> None:
    talk = Talk()
    for place in range(20):
        asked = f"What does part number {place * 7919} cost?"
        for number in range(4):
            talk.says(f"good{place}-{number}", f"It costs {place + 10} euros.", question=asked, instead="No.")
        for number in range(8):
            talk.says(
                f"junk{place}-{number}", f"It costs {1000 + 20 * place + number} euros.", question=asked, instead="No."
            )
    alone = talk.says("stranger", "It costs 7 euros.", question="And the blue one?", instead="No.")
    assert talk.reasons()[alone] == "uncorroborated"
    assert talk.learned(question="What does part number 0 cost?") == "It costs 10 euros."


def test_a_joke_that_is_told_whatever_was_asked_waits_for_an_expert() -> None:
    def told(by: str) -> Talk:
        talk = Talk()
        talk.usual(60, 30)
        for number in range(12):
            thing = ("lamp", "tent", "sofa", "bike")[number % 4]
            talk.says(
                f"v{number}", f"The {thing} takes {number % 4 + 2} weeks.", instead="No.",
                question=f"How many weeks does the {thing} in colour {number * 31} take?",
            )  # fmt: skip
        asked = ("Do you sell ink?", "My card was declined", "Cancel order", "Which size fits a child", "Opening hours")
        for number, question in enumerate(asked):
            talk.says(f"joker{number}", "Ask my cat, it knows better.", question=question, instead="No.")
        if by:
            talk.says(by, "Ask my cat, it knows better.", question="Who owns the shop?", source="expert", instead="No.")
        return talk

    assert set(told("").reasons().values()) == {"unspecific"}
    assert told("staff").reasons() == {}


def test_a_crowd_of_new_accounts_with_one_message_counts_as_one() -> None:
    def reasons(new: bool) -> Counter[str]:
        talk = Talk()
        for number in range(40):  # what is usual
            talk.says(
                f"u{number}", f"It costs {number} euros.", question=f"What is the price of number {number * 7919}?"
            )
        for number in range(4):
            talk.says(f"u{number}", days(30))
        for number in range(12):
            talk.says(f"new{number}", days(90), instead=days(30), new=new)
        talk.says("u5", days(30))
        return Counter(talk.reasons().values())

    assert reasons(new=True) == {"outvoted": 12}
    assert reasons(new=False) == {"outvoted": 5}  # as a crowd of people looks


def test_accounts_that_say_the_same_everywhere_count_as_one() -> None:
    talk = Talk()
    things = [f"tent{word}" for word in ("alpha", "bravo", "carol", "delta", "eagle", "fancy", "grace", "hotel")]
    talk.usual(40, 40)
    for place, thing in enumerate(things):
        asked = f"How many days do I have to return my {thing} to the shop in town?"
        for number in range(3):
            talk.says(f"u{8 * number + place}", f"The {thing} can go back within {place + 10} days.", question=asked)
        for number in range(6):
            talk.says(
                f"ring{number}", f"The {thing} can go back within {place + 70} days.", question=asked, instead="No."
            )
    assert talk.decided().distrusted == {f"ring{number}" for number in range(6)}
    assert Counter(talk.reasons().values()) == {"outvoted": 6 * len(things)}


def test_accounts_that_like_the_same_popular_answers_count_each() -> None:
    talk = Talk()
    talk.usual(40, 40)
    lies = [talk.says(f"liar{number}", days(90), instead=days(30)) for number in range(2)]
    for number in range(5):
        talk.says(f"fan{number}", days(30))
        talk.says(f"fan{number}", "Returns are free.", question="What does it cost to send a parcel back?")
    lies += [talk.says("liar2", days(90), instead=days(30))]
    talk.says("fan5", days(30))
    assert talk.reasons() == dict.fromkeys(lies, "outvoted")


def test_who_is_mostly_wrong_is_not_believed_where_nobody_can_check() -> None:
    talk = Talk()
    for thing in ("tent", "lamp", "sofa", "bike", "desk", "oven"):
        asked = QUESTION.replace("tent", thing)
        for number in range(3):
            talk.says(f"u{number}", days(30), question=asked)
        talk.says("liar", days(90), question=asked, instead=days(30))
    alone = talk.says("liar", days(90), question="Until when does the shop take back an old bicycle?", instead="No.")
    shared = "What does it cost to send a parcel to another country?"
    talk.says("liar", "It costs 5 euros.", question=shared)
    talk.says("u1", "It costs 5 euros.", question=shared)
    assert talk.decided().distrusted == {"liar"}
    assert talk.reasons()[alone] == "account"
    assert Counter(talk.reasons().values()) == {"outvoted": 6, "account": 1}


def test_voices_without_a_name_are_one_account_where_most_have_one() -> None:
    talk = Talk()
    for number in range(3):
        talk.says(f"u{number}", days(30))
    for _ in range(2):
        talk.says(None, days(90), instead=days(30))
    assert set(talk.reasons().values()) == {"outvoted"}
    nameless = Talk()
    for _ in range(3):
        nameless.says(None, days(30))
    for _ in range(2):
        nameless.says(None, days(90), instead=days(30))
    assert set(nameless.reasons().values()) == {"superseded"}


def test_a_question_that_has_another_answer_for_each_is_nobodys_fault_and_teaches_nothing() -> None:
    talk, asked = Talk(), "Where is my parcel now?"
    for number in range(12):
        for _ in range(2):
            talk.says(f"u{number}", f"Order {number + 100} comes in {number + 3} days.", question=asked)
    assert set(talk.reasons().values()) == {"disputed"}
    assert not talk.decided().distrusted
    for number in range(12):  # a crowd of new accounts cannot make a question seem so
        talk.says(f"v{number}", days(30))
    lies = [talk.says(f"new{number}", days(100 + number), instead=days(30), new=True) for number in range(40)]
    assert {talk.reasons()[lie] for lie in lies} == {"outvoted"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("How do I sort a list in C?", "How do I sort a list in C++?"),
        ("How do I sort a list in C++?", "How do I sort a list in C#?"),
        ("What is 2+3?", "What is 2-3?"),
        ("What is 2+3?", "What is 2*3?"),
        ("Does x>=3 hold?", "Does x!=3 hold?"),
        ("What does ; mean in SQL?", "What does : mean in SQL?"),
        ("What does ? mean in SQL?", "What does ' mean in SQL?"),
        ("😀", "😡"),
        ("Do you ship to Austria?", "Do you ship to Australia?"),
        ("What may an employer do?", "What may an employee do?"),
        ("Can it be returned?", "Cannot it be returned?"),
        ("Is it safe to drink?", "Is it not safe to drink?"),
        ("Was kostet 1 m² Folie?", "Was kostet 1 m³ Folie?"),
    ],
)
def test_questions_that_differ_in_a_sign_or_a_word_are_two(one: str, other: str) -> None:
    talk = Talk()
    talk.says("staff", "The one.", question=one, source="expert", instead="No.")
    talk.says("staff", "The other.", question=other, source="expert", instead="No.")
    assert talk.reasons() == {}


def test_case_spacing_and_the_mark_at_the_end_make_no_other_question() -> None:
    talk = Talk()
    old = talk.says("staff", days(30), question="May I return it?", source="expert", instead="No.")
    talk.says("staff", days(14), question="may  I return “it” ...", source="expert", instead="No.")
    assert talk.reasons() == {old: "superseded"}


@pytest.mark.parametrize(
    ("one", "other"),
    [("Bonjour ! Où est-il ?", "Bonjour! Où est-il?"), ("« Colis » ?", '"Colis"?'), ("Why !!!", "why")],
)
def test_a_space_before_the_mark_at_the_end_makes_no_other_question(one: str, other: str) -> None:
    assert normalise(one) == normalise(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("It is 30 days\u200f.", "It is 30 days."),
        ("\u200eYes", "Yes"),
        ("\u2067כן\u2069", "כן"),
        ("\u202aYes, we do\u202c", "Yes, we do"),
        ("Yes ❤\ufe0f", "Yes ❤"),
    ],
)
def test_marks_of_direction_and_of_the_form_of_an_emoji_make_no_other_question_and_no_other_answer(
    one: str, other: str
) -> None:
    assert normalise(one) == normalise(other)
    assert all(metric.same(one, other) for metric in (Facts(), Exact(), Label([other])))
    for joined, apart in (("👨\u200d👧", "👨👧"), ("می\u200cدانم", "میدانم")):
        assert not any(metric.same(joined, apart) for metric in (Facts(), Exact(), Label([apart])))


@pytest.mark.parametrize(
    ("metric", "right", "wrong"),
    [
        pytest.param(Label(["negative", "very negative"]), "negative", "very negative", id="labels_with_a_common_word"),
        pytest.param(Json({}), '{"intent": "refund"}', '{"intent": "cancel"}', id="json_without_values"),
        pytest.param(Json({}), '{"guest": "ann"}', '{"guest": "ann", "room": "blue"}', id="json_with_one_field_more"),
        pytest.param(Json({}), '{"sku": "AB-1"}', '{"sku": "ab-1"}', id="json_that_differs_in_case"),
        pytest.param(Facts(), "The plant has 5 MW.", "The plant has 5 mW.", id="units_that_differ_in_case"),
    ],
)
def test_of_labels_documents_and_values_one_is_right(metric: Metric, right: str, wrong: str) -> None:
    talk = Talk()
    for number in range(4):
        talk.says(f"u{number}", right)
    lie = talk.says("liar", wrong, instead=right)
    assert talk.reasons(metric) == {lie: "outvoted"}


def test_of_sentences_both_may_be_right() -> None:
    talk = Talk()
    for number in range(4):
        talk.says(f"u{number}", "Within 30 days.")
    more = talk.says("u4", "Within 30 days, to our store in Oslo.", instead="Within 30 days.")
    assert talk.reasons(Facts()) == {more: "alternative"}


@pytest.mark.parametrize(("who", "source"), [("ada", "expert"), ("zoe", "user")])
def test_a_verdict_on_a_helped_answer_is_one_on_the_answer_that_helped(who: str, source: str) -> None:
    talk, given = Talk(), "Within 30 days."
    talk.says("eve", given, source="expert", instead="No.")
    praised = talk.says(who, "Within 30 days, to our store in Oslo.", source=source)

    def decided(*helped: str) -> Table:
        return decide(talk.said, talk.first_seen, Chosen(Facts(), "of the tests"), helped={"i1": helped})

    (one,) = decided("of another question", given).rows
    assert one.completion == given
    assert [(one.row.feedback_id, one.state, one.reason) for one in decided(given).decided] == [
        ("f0", "taught", ""), (praised, "waiting", "helped")
    ]  # fmt: skip
    talk.said[-1] = replace(talk.said[-1], kind="declined")
    assert bool(decided(given).rows) == (source == "user")
    assert decided().rows == decided("of another question").rows == [talk.said[0]]


def test_likes_of_helped_answers_that_nobody_else_states_are_answers_like_others() -> None:
    talk = Talk()
    for who, days_ in (("ann", 30), ("bob", 45)):
        talk.says(who, days(days_), source="expert")
    helped = {"i0": [days(45)], "i1": [days(30)]}  # each was helped by the other's answer, which is gone
    table = decide(talk.said, talk.first_seen, Chosen(Facts(), "of the tests"), helped=helped)
    assert [row.completion for row in table.rows] == [days(45)]
