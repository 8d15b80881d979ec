"""Whom datasets believe: many against few, then against now, and the signs of an attack."""

from collections import Counter
from datetime import datetime, timedelta

import pytest

from retuned.retrain.data.consensus import Consensus, find_consensus
from retuned.retrain.data.examples import Example
from retuned.retrain.data.similarity import normalise, text_hash
from retuned.retrain.scoring.facts import Facts, same_answer
from retuned.retrain.scoring.json_fields import Json
from retuned.retrain.scoring.label import Label
from retuned.retrain.scoring.score import Metric

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
                kind="correction" if instead else "accepted",
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

    def judged(self, metric: Metric | None = None) -> Consensus:
        same, one_right = (metric.same, metric.one_right) if metric else (same_answer, False)
        return find_consensus(self.said, self.first_seen, 0.8, same, one_right=one_right)

    def reasons(self, metric: Metric | None = None) -> dict[str, str]:
        return {feedback: doubt.reason for feedback, doubt in self.judged(metric).doubts.items()}


def days(number: int) -> str:
    return f"You may return it within {number} days."


def test_nobody_is_doubted_where_people_agree_or_speak_of_other_things() -> None:
    talk = Talk()
    for number in range(6):
        talk.says(f"u{number}", days(30))
        talk.says(f"u{number}", "Within 30 days, to Oslo.", instead="No.")
        talk.says(f"u{number}", days(14), question=QUESTION.replace("tent", "lamp"))
    assert talk.judged() == Consensus()


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


@pytest.mark.parametrize(("upheld", "needed"), [(2, 2), (4, 2), (16, 4)])
def test_a_policy_that_changed_is_believed_when_enough_say_so_and_nobody_upholds_the_old_one(
    upheld: int, needed: int
) -> None:
    talk = Talk()
    old = [talk.says(f"u{number}", days(30)) for number in range(upheld)]
    other_wording = "What is the deadline for returning a tent to your shop?"
    new = [talk.says("v0", days(45), instead=days(30))]
    new += [
        talk.says(f"v{number}", days(45), instead=days(30), question=other_wording) for number in range(1, needed - 1)
    ]
    assert talk.reasons() == {new[0]: "outvoted"}  # one short
    talk.says(f"v{needed}", days(45), instead=days(30), question=other_wording)
    assert talk.reasons() == dict.fromkeys(old, "superseded")
    assert talk.judged().distrusted == frozenset()


def test_an_answer_that_as_many_uphold_as_before_has_not_changed_whatever_a_few_more_say() -> None:
    def reasons(upheld_since: int) -> set[str]:
        talk = Talk()
        for number in range(16):
            talk.says(f"u{number}", days(30))
            talk.usual(1, 1)
        new = [talk.says(f"v{number}", days(45), instead=days(30)) for number in range(5)]
        for number in range(upheld_since):
            talk.says(f"w{number}", days(30))
            talk.usual(1, 1)
        return {reason for feedback, reason in talk.reasons().items() if feedback in new}

    assert reasons(upheld_since=4) == {"outvoted"}
    assert reasons(upheld_since=1) == set()


def test_the_newer_of_two_single_voices_counts() -> None:
    talk = Talk()
    old = talk.says("u0", days(30))
    talk.says("u1", days(45), instead=days(30))
    assert talk.reasons() == {old: "superseded"}


def test_experts_decide_and_what_is_newer_than_their_word_is_not_believed() -> None:
    talk = Talk()
    before = [talk.says(f"u{number}", days(30)) for number in range(3)]
    talk.says("staff", days(45), source="expert", instead=days(30))
    after = [talk.says(f"v{number}", days(30)) for number in range(5)]
    assert talk.reasons() == dict.fromkeys(before, "superseded") | dict.fromkeys(after, "contradicts_expert")


def test_what_an_expert_says_of_one_wording_ends_what_one_said_of_another() -> None:
    talk, other = Talk(), "What is the deadline for returning a tent to your shop?"
    old = talk.says("staff", days(30), source="expert", instead="No.")
    talk.says("u1", days(45), instead=days(30))
    talk.says("staff", days(45), source="expert", instead=days(30), question=other)
    assert talk.reasons() == {old: "superseded"}


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
    assert reasons(new=False) == {"superseded": 4, "outvoted": 1}  # as a change of policy looks


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
    judged = talk.judged()
    assert judged.distrusted == {f"ring{number}" for number in range(6)}
    assert {doubt.reason for doubt in judged.doubts.values()} == {"outvoted"}
    assert len(judged.doubts) == 6 * len(things)


def test_who_is_mostly_wrong_is_not_believed_where_nobody_can_check() -> None:
    talk = Talk()
    for thing in ("tent", "lamp", "sofa"):
        asked = QUESTION.replace("tent", thing)
        for number in range(3):
            talk.says(f"u{number}", days(30), question=asked)
        talk.says("liar", days(90), question=asked, instead=days(30))
    alone = talk.says("liar", days(90), question="Until when does the shop take back an old bicycle?", instead="No.")
    shared = "What does it cost to send a parcel to another country?"
    talk.says("liar", "It costs 5 euros.", question=shared)
    talk.says("u1", "It costs 5 euros.", question=shared)
    judged = talk.judged()
    assert judged.distrusted == {"liar"}
    assert judged.doubts[alone].reason == "account"
    assert Counter(doubt.reason for doubt in judged.doubts.values()) == {"outvoted": 3, "account": 1}


def test_a_burst_of_one_account_is_set_aside_where_nobody_bears_it_out() -> None:
    talk = Talk()
    for number in range(30):
        talk.says(
            f"u{number % 10}", f"It costs {number} euros.", question=f"What is the price of number {number * 7919}?"
        )
    burst = [
        talk.says(
            "busy", f"It costs {number} euros.", question=f"And what did item {number * 6857} cost?", instead="No.",
            after=timedelta(minutes=1),
        )
        for number in range(25)
    ]  # fmt: skip
    talk.says("u1", "It costs 0 euros.", question="And what did item 0 cost?")
    assert talk.reasons() == dict.fromkeys(burst[1:], "burst")


def test_near_copies_from_new_accounts_at_once_are_set_aside() -> None:
    talk = Talk()
    for number in range(200):
        talk.says(
            f"u{number % 60}", f"It costs {number} euros.", question=f"What is the price of number {number * 7919}?"
        )
    copies = [
        talk.says(
            f"new{number}",
            f"Call the friendly people at Bargain Hotline for this{'!' * (number % 3)}",
            question=f"Whom do I ask about parcel {number * 6857}?",
            instead="No.",
            new=True,
        )
        for number in range(8)
    ]
    assert talk.reasons() == dict.fromkeys(copies, "collusion")


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


def test_a_question_that_has_another_answer_for_each_is_nobodys_fault() -> None:
    talk, asked = Talk(), "Where is my parcel now?"
    for number in range(12):
        for _ in range(2):
            talk.says(f"u{number}", f"Order {number + 100} comes in {number + 3} days.", question=asked)
    talk.says("u1", "Order 103 comes in 6 days.", question=asked)
    assert talk.judged() == Consensus()
    for number in range(12):  # a crowd of new accounts cannot make a question seem so
        talk.says(f"v{number}", days(30))
    lies = [talk.says(f"new{number}", days(100 + number), instead=days(30), new=True) for number in range(40)]
    assert talk.reasons() == dict.fromkeys(lies, "outvoted")


@pytest.mark.parametrize(
    ("metric", "right", "wrong"),
    [
        pytest.param(Label(["negative", "very negative"]), "negative", "very negative", id="labels_with_a_common_word"),
        pytest.param(Json({}), '{"intent": "refund"}', '{"intent": "cancel"}', id="json_without_values"),
        pytest.param(Json({}), '{"guest": "ann"}', '{"guest": "ann", "room": "blue"}', id="json_with_one_field_more"),
    ],
)
def test_of_labels_and_documents_one_is_right(metric: Metric, right: str, wrong: str) -> None:
    talk = Talk()
    for number in range(4):
        talk.says(f"u{number}", right)
    lie = talk.says("liar", wrong, instead=right)
    assert talk.reasons(metric) == {lie: "outvoted"}


def test_of_sentences_both_may_be_right() -> None:
    talk = Talk()
    for number in range(4):
        talk.says(f"u{number}", "Within 30 days.")
    talk.says("u4", "Within 30 days, to our store in Oslo.", instead="Within 30 days.")
    assert talk.reasons(Facts()) == {}
