"""Which rows make a dataset, which split each belongs to, and what is refused: on rows made by hand."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from retuned.consumers.common.tool_calls import written
from retuned.retrain.data.checks import check_classes, check_enough, check_leaks
from retuned.retrain.data.dataset import SPLITS, Leak, LostClass, TooFewRows
from retuned.retrain.data.evidence import Earlier, Evidence
from retuned.retrain.data.examples import Example
from retuned.retrain.data.identity import fraction, text_hash
from retuned.retrain.data.overrides import Decision, Overrides
from retuned.retrain.data.related import Related
from retuned.retrain.data.selection import Selection, select
from retuned.retrain.data.specific import unspecific
from retuned.retrain.data.splits import assigned_splits, split_of
from retuned.retrain.data.table import Decided, decide
from retuned.retrain.data.topics import OTHER, Topics
from retuned.retrain.scoring.facts import Facts
from retuned.retrain.scoring.label import Label
from retuned.retrain.scoring.metric import Chosen, Metric
from retuned.retrain.scoring.text import Text
from retuned.retrain.settings import DatasetSettings, GateSettings, Settings

START = datetime(2026, 3, 2)
HOUR = timedelta(hours=1)
LETTERS = str.maketrans("0123456789abcdef", "bcdfghjklmnpqrst")
# Everybody and every source may give all rows: what a test does not ask about takes none away.
OPEN: dict[str, Any] = {
    "maximum_user_share": 1, "maximum_source_shares": {}, "maximum_topic_share": 1, "replay_share": 0.0,
}  # fmt: skip


def words(number: int, count: int = 4) -> str:
    """Words that no other number has."""
    return " ".join(text_hash(f"{number} {place}")[:9].translate(LETTERS) for place in range(count))


def example(number: int, answer: str | None = None, **changes: Any) -> Example:
    """A correction of its own question, an hour after the one before."""
    asked = changes.pop("question", None) or words(number)
    at = START + number * HOUR
    made = Example(
        row_id=f"r{number:04}", prompt_hash=text_hash(asked), prompt=asked, question=asked,
        messages=f'[{{"role": "user", "content": "{asked}"}}]', completion=answer or f"Answer {words(number, 1)}.",
        kind="correction", source="expert", rejected=None, context=None, interaction_id=f"i{number}",
        feedback_id=f"f{number}", timestamp=at, received_at=at,
    )  # fmt: skip
    return replace(made, **changes)


def evidence(rows: Sequence[Example] = (), left: Sequence[Decided] = (), **more: Any) -> Evidence:
    """Rows as people stated them, decided; what is `left` was set aside before."""
    metric = more.get("metric", Chosen(Facts(), "of the tests"))
    related = Related(rows, 0.8)
    table = decide(rows, {}, metric)
    decided = [*table.decided, *left]
    undecided = {one.row.prompt_hash for one in decided} - {row.prompt_hash for row in table.rows}
    given: dict[str, Any] = {
        "rows": table.rows, "decided": decided, "undecided": frozenset(undecided), "thumbs": [], "topics": Topics(),
        "places": {}, "related": related, "metric": metric,
    }  # fmt: skip
    return Evidence(**(given | more))


def assigned(rows: Sequence[Example], found: Evidence, settings: DatasetSettings, generation: int) -> dict[str, str]:
    return assigned_splits(rows, replace(found, related=Related(rows, 0.8)), settings, generation, (), ())


def before(**more: Any) -> Earlier:
    given: dict[str, Any] = {
        "versions": [], "until": None, "train": [], "judged": [], "generation": 0, "spent": [],
    }  # fmt: skip
    return Earlier(**(given | more))


def chosen(found: Evidence, earlier: Earlier | None = None, **asked: Any) -> Selection:
    earlier, settings = earlier or before(), DatasetSettings(**(OPEN | asked))
    known = [*earlier.train, *earlier.judged, *(row for row, _ in found.thumbs)]
    related = Related([*(one.row for one in found.decided), *known], settings.near_duplicate_similarity)
    return select(replace(found, related=related), earlier, settings)


def numbers(rows: Sequence[Example]) -> list[int]:
    return sorted(int(row.row_id[1:]) for row in rows)


def used(selection: Selection) -> list[int]:
    return numbers([row for name in SPLITS for row in selection.splits[name]])


def reasons(selection: Selection) -> dict[int, str]:
    return {int(left.row.row_id[1:]): left.reason for left in selection.left}


def place(number: int, split: str) -> dict[str, str]:
    """That the question stood in that split."""
    return {example(number).prompt_hash: split}


# Which split


def test_the_holdout_is_a_part_of_the_unit_interval_that_a_hash_falls_into() -> None:
    at = fraction("q")
    for share, split in {0.0: "train", at: "train", math.nextafter(at, 1): "holdout"}.items():
        assert split_of("q", DatasetSettings(holdout_share=share), 0) == split


def test_another_draw_of_the_holdout_is_another_hash() -> None:
    for generation in (1, 2):
        at = fraction(f"{generation} q")
        asked = DatasetSettings(holdout_share=math.nextafter(at, 1))
        assert split_of("q", asked, generation) == "holdout"
        assert split_of("q", asked.model_copy(update={"holdout_share": at}), generation) == "train"


def test_a_question_stays_where_its_interaction_or_its_text_stood() -> None:
    rows = [example(number) for number in range(3)]
    stood = {"i0": "holdout", rows[1].prompt_hash: "train", "i2": "train", rows[2].prompt_hash: "holdout"}
    for share in (0, 1):
        found = assigned(rows, evidence(rows, places=stood), DatasetSettings(holdout_share=share), 0)
        assert [found[row.prompt_hash] for row in rows] == ["holdout", "train", "holdout"]


@pytest.mark.parametrize("generation", [0, 3])
def test_each_topic_has_its_share_of_the_holdout_by_the_next_hashes(generation: int) -> None:
    def drawn(row: Example) -> float:
        return fraction(f"{generation} {row.near_form}" if generation else row.near_form)

    rows = sorted((example(number, topic="refund") for number in range(12)), key=drawn)
    settings = DatasetSettings(holdout_share=0.25)
    high = [row for row in rows if drawn(row) >= 0.25]
    low = [row for row in rows if drawn(row) < 0.25]
    found = assigned(high, evidence(), settings, generation)
    lacking = round(0.25 * len(high))
    assert lacking >= 1
    assert [found[row.prompt_hash] for row in high] == ["holdout"] * lacking + ["train"] * (len(high) - lacking)
    # What stood in train before is not moved into the holdout.
    stood = {high[0].prompt_hash: "train"}
    kept = assigned(high, evidence(high, places=stood), settings, generation)
    assert kept[high[0].prompt_hash] == "train"
    assert [kept[row.prompt_hash] for row in high[1 : lacking + 1]] == ["holdout"] * lacking
    # What chance gave counts.
    mixed = assigned([*high, low[0]], evidence(), settings, generation)
    assert sum(split == "holdout" for split in mixed.values()) == round(0.25 * (len(high) + 1))
    # Each topic has its own share: of three questions that is none, but two of all six are held out.
    few = [*high[:3], *(replace(row, topic="parcel") for row in high[3:6])]
    found = assigned(few, evidence(), settings, generation)
    assert [found[row.prompt_hash] for row in few] == ["holdout"] * 2 + ["train"] * 4


@pytest.mark.full
@pytest.mark.parametrize("questions", [40, 92, 400])
@pytest.mark.parametrize("topics", [1, 7, 12])
def test_the_holdout_has_its_share_and_no_more_whatever_chance_and_topics_gave_it(questions: int, topics: int) -> None:
    settings = DatasetSettings(holdout_share=0.25)
    for generation in range(5):
        rows = [example(number, topic=f"topic {number % topics}") for number in range(questions)]
        found = assigned(rows, evidence(), settings, generation)
        held_out = [row for row in rows if found[row.prompt_hash] == "holdout"]
        assert len(held_out) == questions / 4
        assert min(Counter(row.topic for row in held_out).values()) >= int(0.25 * (questions // topics))
        # More questions come: those that were held out stay so, and the share is right again.
        stood = {row.prompt_hash: found[row.prompt_hash] for row in rows}
        more = [*rows, *(example(number, topic="topic 0") for number in range(questions, questions + 40))]
        later = assigned(more, evidence(more, places=stood), settings, generation)
        assert {row.prompt_hash: later[row.prompt_hash] for row in rows} == stood
        assert Counter(later.values())["holdout"] == questions / 4 + 10


def test_each_label_has_its_share_of_the_holdout_where_answers_are_labels() -> None:
    labels = [f"label_{letter}" for letter in "abcdefgh"]
    rows = [example(number, labels[number % 8], topic="refund") for number in range(64)]
    settings = DatasetSettings(holdout_share=0.25)
    found = assigned(rows, evidence(metric=Chosen(Label(labels), "of the tests")), settings, 0)
    held_out = Counter(row.completion for row in rows if found[row.prompt_hash] == "holdout")
    assert min(held_out[label] for label in labels) >= 2
    # The hash alone, or the topic's share, leaves labels with fewer.
    topical = assigned(rows, evidence(), settings, 0)
    assert (
        min(Counter(row.completion for row in rows if topical[row.prompt_hash] == "holdout")[one] for one in labels) < 2
    )
    # No question changes sides when others come.
    stood = {row.prompt_hash: found[row.prompt_hash] for row in rows}
    more = [*rows, *(example(number, labels[number % 8]) for number in range(64, 80))]
    later = assigned(more, evidence(more, places=stood, metric=Chosen(Label(labels), "of the tests")), settings, 0)
    assert {row.prompt_hash: later[row.prompt_hash] for row in rows} == stood


def test_questions_of_no_topic_fill_the_holdout_by_their_hashes() -> None:
    rows = [example(number, topic=OTHER) for number in range(40)]
    rows += [example(number) for number in range(40, 48)]
    high = [row for row in rows if fraction(row.near_form) >= 0.25]
    nameless = assigned(high, evidence(), DatasetSettings(holdout_share=0.25), 0)
    lowest = sorted(high, key=lambda row: fraction(row.near_form))[: round(0.25 * len(high))]
    assert {hash for hash, split in nameless.items() if split == "holdout"} == {row.prompt_hash for row in lowest}


def copies(count: int, families: Sequence[tuple[int, int]]) -> list[Example]:
    """Questions of their own, and near-copies of one question for each family: its number and its size."""
    texts = [f"{words(number, 12)} {text_hash(str(i))[:2]}{i}" for number, size in families for i in range(size)]
    texts += [words(10_000 + number) for number in range(count - len(texts))]
    return [example(number, question=text) for number, text in enumerate(texts)]


@pytest.mark.parametrize("similarity", [0.6, 0.8])
def test_near_copies_are_on_one_side_whatever_their_number(similarity: float) -> None:
    rows = copies(1_000, [(1, 400)])
    found = chosen(evidence(rows), near_duplicate_similarity=similarity)
    held_out = set(numbers(found.splits["holdout"]))
    assert not held_out & set(range(400)) or held_out >= set(range(400))
    assert len(held_out) == 250
    assert len(used(found)) == 1_000


@pytest.mark.full
def test_large_families_are_held_out_in_their_share() -> None:
    for first in range(5):
        rows = copies(2_000, [(10 * first + number, 100) for number in range(8)])
        rows = [
            replace(row, topic=row.question.split()[0] if place < 800 else "rest") for place, row in enumerate(rows)
        ]
        found = assigned(rows, evidence(), DatasetSettings(holdout_share=0.25), 0)
        whole = [{found[row.prompt_hash] for row in rows[at : at + 100]} for at in range(0, 800, 100)]
        assert whole.count({"holdout"}) == 2
        assert whole.count({"train"}) == 6
        assert Counter(found.values())["holdout"] == 500


def test_a_family_that_is_larger_than_the_holdout_leaves_it_its_size() -> None:
    rows = copies(1_000, [(1, 400), *((number, 30) for number in range(2, 12))])
    found = assigned(rows, evidence(), DatasetSettings(holdout_share=0.25), 0)
    assert {found[row.prompt_hash] for row in rows[:400]} == {"train"}
    assert Counter(found.values())["holdout"] == 250


# Which rows


def test_each_question_is_used_once_by_its_most_trusted_and_then_newest_row() -> None:
    asked = words(1)
    rows = [
        example(1, "Yes.", question=asked, source="user"),
        example(2, "Yes.", question=asked),
        example(3, "Yes.", question=asked),
        example(4, "Yes.", question=asked, kind="accepted", source="user"),
        example(5, question=words(5)),
    ]
    selection = chosen(evidence(rows))
    assert used(selection) == [3, 5]
    assert reasons(selection) == {1: "duplicates", 2: "duplicates", 4: "duplicates"}
    assert {left.detail for left in selection.left} == {"f3 gives the same answer"}
    assert selection.topics == Topics()
    assert selection.left_out == {"duplicates": 3}


def test_every_statement_has_the_state_of_the_row_that_gives_its_answer() -> None:
    rows = [example(number) for number in range(40)]
    rows += [replace(rows[3], row_id="r0903", feedback_id="f903"), replace(rows[7], row_id="r0907", feedback_id="f907")]
    rows += [example(50, "At 8 am.", question=words(8), source="user"), example(51, kind="accepted", source="user")]
    selection = chosen(evidence(rows))
    state = {one.row.feedback_id: one.state for one in selection.states}
    assert len(selection.states) == len(state) == len(rows)
    for name in SPLITS:
        for row in selection.splits[name]:
            assert state[row.feedback_id] == ("held_out" if name in ("holdout", "regression") else "taught")
    assert state["f903"] == state["f3"]
    assert state["f907"] == state["f7"]
    assert state["f50"] == "waiting"  # another answer, of which the metric cannot tell whether it means the same


def test_related_questions_stand_on_one_side_and_each_keeps_its_answer() -> None:
    rows = []
    for number in range(60):
        long = words(number, 20)
        rows += [example(3 * number + i, question=f"{long} {end}") for i, end in enumerate(("so", "to", "in"))]
    selection = chosen(evidence(rows))
    assert len(used(selection)) == 180
    assert len(selection.splits["holdout"]) == 45
    for number in range(60):
        asked = {f"{words(number, 20)} {end}" for end in ("so", "to", "in")}
        sides = {name for name in SPLITS for row in selection.splits[name] if row.question in asked}
        assert len(sides) == 1
    apart = chosen(evidence(rows), near_duplicate_similarity=1)
    assert len({row.cluster for name in SPLITS for row in apart.splits[name]}) == 180


def test_the_turns_of_a_conversation_stand_on_one_side() -> None:
    rows = [example(number, conversation=f"c{number // 5}") for number in range(200)]
    selection = chosen(evidence(rows))
    sides = {(row.conversation, name) for name in SPLITS for row in selection.splits[name]}
    assert len(sides) == 40
    assert len(selection.splits["holdout"]) == 50


def talk(first: int, turns: int, window: int = 5, **changes: Any) -> list[Example]:
    """A conversation whose requests hold the last few messages, and whose history holds the right answers."""
    said: list[dict[str, str]] = []
    rows = []
    for number in range(first, first + turns):
        said.append({"role": "user", "content": words(number)})
        row = example(number, messages=json.dumps(said[-window:]), **changes)
        said.append({"role": "assistant", "content": row.completion})
        rows.append(row)
    return rows


@pytest.mark.parametrize("role", ["system", "developer"])
def test_turns_without_an_id_are_related_whatever_the_instructions_before_them(role: str) -> None:
    """The instructions name the time, which is another one in each turn."""
    rows = []
    for number, turns in enumerate(json.loads(row.messages) for row in talk(0, 3, window=10)):
        rows.append(example(number, messages=json.dumps([{"role": role, "content": f"It is {number} pm."}, *turns])))
    assert len({Related(rows, 0.8).of(row.prompt_hash) for row in rows}) == 1


@pytest.mark.parametrize("key", ["tool_calls", "function_call"])
def test_the_steps_of_an_agent_without_an_id_are_related(key: str) -> None:
    function = {"name": "policy", "arguments": '{"of": "tents", "in": "Oslo"}'}
    calls = [{"id": "c1", "type": "function", "function": function}] if key == "tool_calls" else function
    asked = {"role": "user", "content": words(1)}
    called = {"role": "assistant", "content": "", key: calls}
    found = {"role": "tool", "tool_call_id": "c1", "content": words(3)}
    rows = [
        example(1, written("", [function]), messages=json.dumps([asked])),
        example(2, question=words(2), messages=json.dumps([asked, called, found])),
    ]
    assert len({Related(rows, 0.8).of(row.prompt_hash) for row in rows}) == 1


@pytest.mark.parametrize("turns", [20, 21, 60])
def test_a_conversation_of_any_length_stands_on_one_side(turns: int) -> None:
    others = [example(number, conversation=f"c{number}") for number in range(100, 180)]
    rows = [*reversed(talk(0, turns, conversation="long")), *others]  # people label in any order
    selection = chosen(evidence(rows))
    (side,) = {name for name in SPLITS for row in selection.splits[name] if row.conversation == "long"}
    assert turns <= 25 or side == "train"  # it is longer than the holdout
    assert {len(selection.splits["holdout"])} == {round((80 + turns) / 4)}
    assert len({row.cluster for row in selection.splits[side] if row.conversation == "long"}) == 1


@pytest.mark.full
def test_an_id_of_many_questions_that_do_not_continue_one_another_relates_none() -> None:
    """One id for a channel, and one for a customer, with one conversation after another."""
    channel = [example(number, conversation="web") for number in range(100)]
    customer = [row for first in range(100, 200, 5) for row in talk(first, 5, conversation="customer")]
    groups = Counter(Related([*channel, *customer], 0.8).of(row.prompt_hash) for row in [*channel, *customer])
    assert Counter(groups.values()) == {1: 100, 5: 20}


def test_a_question_of_many_conversations_does_not_make_them_one() -> None:
    rows = []
    for number in range(100):
        more = [example(1_000 + 10 * number + turn, conversation=f"c{number}") for turn in range(4)]
        rows += [example(number, question="Hello", conversation=f"c{number}"), *more]
    related = Related(rows, 0.8)
    assert max(Counter(related.of(row.prompt_hash) for row in rows if row.question != "Hello").values()) <= 20
    for number in range(100):
        own = {
            related.of(row.prompt_hash) for row in rows if row.conversation == f"c{number}" and row.question != "Hello"
        }
        assert len(own) == 1


@pytest.mark.full
def test_what_is_common_to_many_questions_relates_none() -> None:
    """A greeting that opens every conversation, a handbook that is behind every answer, a wording that all share."""
    opening = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello, how can I help?"}]
    rows = []
    for number in range(200):
        messages = json.dumps([*opening, {"role": "user", "content": words(number)}])
        rows.append(example(number, messages=messages, context=json.dumps(["The handbook.", f"Page {number // 2}."])))
    groups = Counter(Related(rows, 0.8).of(row.prompt_hash) for row in rows)
    assert set(groups.values()) == {2}  # a page relates the two questions that rest on it


def test_a_newer_correction_of_equal_rank_supersedes_and_a_lesser_one_does_not() -> None:
    asked = words(1)
    rows = [example(1, "At 8 am.", question=asked), example(2, "At 9 am.", question=asked), example(7)]
    selection = chosen(evidence(rows))
    assert used(selection) == [2, 7]
    assert [(left.row.row_id, left.reason) for left in selection.left] == [("r0001", "superseded")]
    rows[1] = replace(rows[1], source="user")
    assert used(chosen(evidence(rows))) == [1, 7]


def test_what_no_earlier_dataset_holds_is_new_and_what_was_stated_since() -> None:
    rows = [example(number) for number in range(1, 5)]
    left = [Decided(example(number), "set_aside", "incomplete") for number in (11, 12)]
    thumbs = [(example(21), True), (example(0), False)]
    earlier = before(until=START + 2 * HOUR, known=frozenset({"f1"}))
    asked = {"holdout_share": 0.0}
    selection = chosen(evidence(rows, left=left, thumbs=thumbs), earlier, **asked)
    # The second was there when the earlier dataset was made, and was not in it: it is decided anew.
    assert used(selection) == [2, 3, 4]
    assert reasons(selection) == {11: "incomplete", 12: "incomplete"}
    assert [(row.row_id, good) for row, good in selection.thumbs] == [("r0021", True)]
    assert used(chosen(evidence(rows), **asked)) == [1, 2, 3, 4]


@pytest.mark.parametrize("instead", [example(2, "At 9 am.", question=words(1), source="user"), example(1, "At 9 am.")])
def test_an_answer_that_is_right_again_is_taught_again(instead: Example) -> None:
    """While its account was banned, or its row was dropped or edited, a dataset taught another answer."""
    rows = [example(1, "At 8 am.", question=words(1)), *([instead] if instead.feedback_id == "f2" else [])]
    taught = replace(instead, question=words(1), prompt=words(1), prompt_hash=text_hash(words(1)))
    earlier = before(until=START + 9 * HOUR, train=[taught], known=frozenset({"f1", "f2"}))
    assert used(chosen(evidence(rows), earlier, holdout_share=0.0, replay_share=0.5)) == [1]
    same = before(until=START + 9 * HOUR, train=[rows[0]], known=frozenset({"f1", "f2"}))
    assert used(chosen(evidence(rows), same, holdout_share=0.0)) == []


def test_the_newest_rows_are_kept() -> None:
    rows = [example(number) for number in range(6)]
    rows.append(replace(example(5, question=words(77)), row_id="r0099"))  # at the same time: by id
    assert used(chosen(evidence(rows), maximum_rows=3)) == [4, 5, 99]
    assert used(chosen(evidence(rows), maximum_rows=1)) == [99]


def test_rows_that_a_person_keeps_come_before_newer_ones() -> None:
    rows = [example(number) for number in range(6)]
    kept = {f"f{number}": Decision("keep", "it is right", "anna", rows[number].timestamp) for number in (0, 2)}
    found = evidence(rows, overrides=Overrides(kept))
    selection = chosen(found, maximum_rows=3)
    assert used(selection) == [0, 2, 5]
    assert reasons(selection) == dict.fromkeys([1, 3, 4], "maximum_rows")
    assert used(chosen(found, maximum_rows=1)) == [2]


def test_an_account_gives_no_more_than_its_share() -> None:
    """Twice an even share at least; experts, demonstrations and people without a name are not capped."""
    rows = [example(number, source="user", user_id="flood") for number in range(40)]
    rows += [example(number, source="user", user_id=f"u{number}") for number in range(40, 49)]
    rows += [example(number, user_id="staff") for number in range(50, 70)]
    rows += [example(number, source="demonstration", user_id="flood") for number in range(70, 80)]
    rows += [example(number, source="user") for number in range(80, 90)]
    kept = used(chosen(evidence(rows), maximum_user_share=0.1))
    # 89 rows, 10 accounts: a fifth of them are 17.
    flood = [number for number in kept if number < 40]
    assert flood == list(range(17))  # by their ids, which are hashes in earnest
    assert [number for number in kept if number >= 40] == [*range(40, 49), *range(50, 90)]
    assert len([number for number in used(chosen(evidence(rows), maximum_user_share=0.3)) if number < 40]) == 26
    alone = [row for row in rows if row.user_id == "flood"]
    assert len(used(chosen(evidence(alone), maximum_user_share=0.1))) == 50  # one account: all are its


def test_the_most_trusted_rows_of_an_account_are_kept_and_five_are_no_flood() -> None:
    rows = [example(number, source="user", user_id="a", kind="accepted") for number in range(8)]
    rows += [example(number, source="user", user_id="a") for number in range(8, 10)]
    rows += [example(number, source="user", user_id=f"u{number}") for number in range(20, 50)]
    selection = chosen(evidence(rows), maximum_user_share=0.01)
    # 2/31 of 40 rows are 2; five stay, first those of the higher rank.
    assert [number for number in used(selection) if number < 20] == [0, 1, 2, 8, 9]
    assert {reasons(selection)[number] for number in (3, 4, 5, 6, 7)} == {"user_share"}
    assert {left.detail for left in selection.left} == {"10 rows of a"}


def test_a_source_gives_no_more_than_its_share() -> None:
    rows = [example(number, source="judge") for number in range(60)]
    rows += [example(number) for number in range(60, 80)]
    rows += [example(number, source="user", kind="accepted") for number in range(80, 100)]
    shares = {"judge": 0.2}
    kept = used(chosen(evidence(rows), maximum_source_shares=shares))
    assert [number for number in kept if number < 60] == list(range(33))  # an even share: a third of 100
    assert len(kept) == 33 + 40
    selection = chosen(evidence(rows), maximum_source_shares={"judge": 0.5, "accepted": 0.1})
    assert len([number for number in used(selection) if number < 60]) == 50
    assert len([number for number in used(selection) if number >= 80]) == 20  # below an even share
    assert set(reasons(selection).values()) == {"source_share"}


def topical() -> Topics:
    """Two topics, of one word each."""
    return Topics({"refund": 1.0, "parcel": 1.0}, {"refund": {"refund": 1.0}, "parcel": {"parcel": 1.0}})


def test_a_topic_has_no_more_of_the_training_rows_than_its_share() -> None:
    rows = [example(number, question=f"refund {words(number, 1)}") for number in range(30)]
    rows += [example(number, question=f"parcel {words(number, 1)}") for number in range(30, 36)]
    rows += [example(number, question=words(number)) for number in range(36, 96)]
    asked = {"holdout_share": 0.0, "topics": 2}
    selection = chosen(evidence(rows, topics=topical()), maximum_topic_share=0.1, **asked)
    # 96 rows, two topics: twice an even share is all of them.
    assert len(used(selection)) == 96
    named = {row.topic for row in selection.splits["train"]}
    assert named == {"refund", "parcel", OTHER}
    many = {f"t{number}": 1.0 for number in range(20)} | {"refund": 1.0}
    topics = Topics(many, {word: {word: 1.0} for word in many})
    rows = [example(number, question=f"refund {words(number, 1)}") for number in range(30)]
    rows += [example(number, question=f"t{number % 20} {words(number, 1)}") for number in range(30, 70)]
    selection = chosen(evidence(rows, topics=topics), maximum_topic_share=0.2, **asked)
    assert len([number for number in used(selection) if number < 30]) == 14  # a fifth of 70
    assert set(reasons(selection).values()) == {"topic_share"}


# What was before


def test_what_was_trained_on_or_judged_before_is_not_judged_on_anew() -> None:
    rows = [example(number) for number in range(1, 5)]
    stood = place(1, "holdout") | place(2, "holdout") | place(3, "holdout")
    stood |= place(4, "train")
    earlier = before(train=[example(1)], spent=[example(2)])
    selection = chosen(evidence(rows, places=stood), earlier, holdout_share=0)
    assert numbers(selection.splits["holdout"]) == [3]
    assert numbers(selection.splits["train"]) == [4]
    assert reasons(selection) == {1: "near_training", 2: "spent"}


def test_nothing_near_what_is_judged_on_is_learned() -> None:
    long, older = words(1, 20), words(2, 20)
    rows = [
        example(1, "Yes.", question=long, kind="accepted"),
        example(3, "No, in no case.", question=f"{long} so", kind="accepted"),
        example(4, "No, in no case.", question=f"{older} so", kind="accepted"),
        example(5),
    ]
    stood = {rows[0].prompt_hash: "holdout", rows[2].prompt_hash: "train"}
    thumbs = [
        (example(31, question=f"{long} to"), True),
        (example(32), True),
        (example(33, question=f"{older} to"), False),
    ]
    earlier = before(judged=[example(2, "Yes.", question=older)])
    selection = chosen(evidence(rows, places=stood, thumbs=thumbs), earlier, holdout_share=0)
    assert {name: numbers(selection.splits[name]) for name in SPLITS} == {
        "holdout": [1, 3],
        "regression": [2],
        "train": [5],
    }
    assert reasons(selection) == {4: "near_holdout"}
    assert numbers([row for row, _ in selection.thumbs]) == [32]


def test_the_regression_set_keeps_what_is_true_and_not_asked_anew() -> None:
    judged = [example(number, "At 8 am.") for number in (1, 2, 3, 4)]
    rows = [
        example(11, "At 8 am.", question=words(1)),  # judged on again
        example(12, "At 9 am.", question=words(2), source="user"),  # has changed, whoever noticed
        example(14),
    ]
    stood = {rows[0].prompt_hash: "holdout"}
    doubted = [Decided(example(23, "At 8 am.", question=words(3)), "waiting", "disputed")]
    selection = chosen(evidence(rows, doubted, places=stood), before(judged=judged), holdout_share=0)
    assert numbers(selection.splits["regression"]) == [4]
    assert numbers(selection.splits["holdout"]) == [11]
    assert reasons(selection) == {2: "regression_superseded", 3: "regression_superseded", 23: "disputed"}
    assert {row.topic for row in selection.splits["regression"]} == {OTHER}


def test_replay_is_an_even_draw_of_what_is_true_and_not_taught_anew() -> None:
    old = [example(number, "At 8 am.") for number in range(20)]
    new = [example(30 + number, question=words(30 + number)) for number in range(6)]
    new += [
        example(40, "At 8 am.", question=words(0)),  # taught anew
        example(41, "At 9 am.", question=words(1)),  # has changed, and is taught anew
    ]
    doubted = [Decided(example(22, "At 8 am.", question=words(2)), "waiting", "disputed")]
    earlier = before(until=START + 25 * HOUR, train=old, judged=[example(3, "At 8 am.")])
    asked = {"holdout_share": 0.0}

    def replayed(share: float) -> list[int]:
        selection = chosen(evidence(new, doubted), earlier, **{**asked, "replay_share": share})
        train = selection.splits["train"]
        assert selection.replayed == {row.row_id for row in train} - {row.row_id for row in new}
        assert numbers(train)[-8:] == [30, 31, 32, 33, 34, 35, 40, 41]
        assert {row.topic for row in train} == {OTHER}
        return [number for number in numbers(train) if number < 20]

    assert replayed(0.0) == []
    assert replayed(1.0) == list(range(4, 20))  # all there are: what is judged on, doubted or taught anew is none
    half = replayed(0.5)
    assert len(half) == 8  # as many as the new ones
    assert set(replayed(0.2)) < set(half)
    assert len(replayed(0.2)) == 2


def test_a_superseded_answer_is_not_rehearsed_also_where_the_metric_abstains() -> None:
    old, new = example(1, "Ask at the desk."), example(2, "Please write to us.", question=words(1))
    rows = [old, new, example(3)]
    earlier = before(until=START + HOUR, train=[old], known=frozenset({"f1"}))
    found = evidence(rows, metric=Chosen(Text(), "of the tests"))
    selection = chosen(found, earlier, holdout_share=0.0, replay_share=0.5, maximum_rows=1)
    assert used(selection) == [3]
    assert reasons(selection) == {1: "superseded", 2: "maximum_rows"}


def test_thumbs_come_oldest_first_and_never_from_the_holdout() -> None:
    thumbs = [(example(number), number % 2 == 0) for number in (5, 2, 9, 1, 7)]
    asked = {"holdout_share": 0.0}
    stood = {"i2": "holdout"} | place(7, "holdout")
    selection = chosen(evidence(thumbs=thumbs, places=stood), **asked)
    assert [(row.row_id, good) for row, good in selection.thumbs] == [
        ("r0001", False),
        ("r0005", False),
        ("r0009", False),
    ]
    assert {row.topic for row, _ in selection.thumbs} == {OTHER}
    assert chosen(evidence(thumbs=thumbs), holdout_share=1).thumbs == []
    again = before(generation=1)
    drawn = {number: fraction(f"1 {words(number)}") for number in range(20)}
    least = min(drawn, key=drawn.__getitem__)
    few = {"holdout_share": 0.05}  # one of twenty, and one has so low a draw
    everything = evidence([example(number) for number in drawn], thumbs=[(example(number), True) for number in drawn])
    split = chosen(everything, again, **few)
    assert numbers(split.splits["holdout"]) == [least]
    thumbs_alone = chosen(evidence(thumbs=everything.thumbs), again, **few).thumbs
    assert numbers([row for row, _ in thumbs_alone]) == sorted(drawn.keys() - {least})
    rows = [replace(example(5), row_id="r0055")]
    stood = {rows[0].interaction_id: "holdout"}
    other = [(replace(example(5), interaction_id="i55"), True)]
    assert chosen(evidence(rows, thumbs=other, places=stood), **asked).thumbs == []


# Answers that fit no question


@pytest.mark.parametrize(
    ("goods", "asked"),
    [
        ("lamp sofa chair phone tent coat kettle desk", ("Until when can I return the {}?", "Days to return a {}?")),
        ("台灯 沙发 椅子 手机 帐篷 外套 水壶 书桌", ("{}的退货期限是多少天?", "{}可以在几天内退货?")),
        (
            "ランプ ソファ 椅子 電話 テント コート やかん 机",
            ("{}の返品期限は何日ですか", "{}は何日以内に返品できますか"),
        ),
        ("โคมไฟ โซฟา เก้าอี้ โทรศัพท์ เต็นท์ เสื้อโค้ท กาต้มน้ำ โต๊ะ", ("กำหนดคืน{}คือกี่วัน", "คืน{}ได้ภายในกี่วัน")),
    ],
)
def test_in_any_script_a_right_answer_fits_its_questions_and_a_joke_fits_none(
    goods: str, asked: tuple[str, ...]
) -> None:
    things = goods.split()
    rows = [
        example(100 * number + place, f"{thing} {number}", source="user", question=f"{opening}{text.format(thing)}")
        for number, thing in enumerate(things)
        for place, (opening, text) in enumerate((opening, text) for opening in ("", "? ", "! ") for text in asked)
    ]
    jokes = [replace(row, completion="cat", row_id=f"j{row.row_id}") for row in rows[:: len(rows) // 8 + 1]]
    assert unspecific([*rows, *jokes]) == {"cat"}


def test_where_questions_have_nothing_in_common_no_answer_is_called_unspecific() -> None:
    rows = [example(n, "42" if n < 6 else f"{n}", source="user", question=chr(0x4E00 + n) * 2) for n in range(60)]
    assert unspecific(rows) == frozenset()


# What is refused


def selection(
    left: Sequence[Decided] = (), replayed: Sequence[str] = (), topics: Topics | None = None, **rows: Any
) -> Selection:
    splits: dict[str, list[Example]] = {name: [] for name in SPLITS} | rows
    return Selection(splits, frozenset(replayed), [], list(left), topics or Topics())


def lost_row(row: Example, reason: str) -> Decided:
    return Decided(row, "set_aside", reason)


def asking(minimum_rows: int, minimum_examples: int) -> Settings:
    return Settings(
        dataset=DatasetSettings(minimum_rows=minimum_rows), gate=GateSettings(minimum_examples=minimum_examples)
    )


def test_too_few_new_rows_are_refused_and_what_was_left_out_is_named() -> None:
    train = [example(number) for number in range(7)]
    rows = {"train": train, "holdout": [example(8), example(9)]}
    sound = selection(replayed=["r0000"], **rows)
    check_enough(sound, asking(8, 2), "support")
    with pytest.raises(TooFewRows, match=r"^workload support: 8 new examples; dataset\.minimum_rows asks for 9$"):
        check_enough(sound, asking(9, 2), "support")
    left = [lost_row(example(20), "spent"), lost_row(example(21), "spent")]
    with pytest.raises(TooFewRows, match=r"asks for 9; left out: 2 spent$"):
        check_enough(selection(left, ["r0000"], **rows), asking(9, 2), "support")
    # The six that are new in train are judged too, by folds.
    check_enough(sound, asking(8, 8), "support")
    for fold_rows, examples in ((200, 9), (5, 3), (0, 3)):
        asked = asking(8, examples)
        asked = asked.model_copy(update={"gate": asked.gate.model_copy(update={"fold_rows": fold_rows})})
        wanted = rf"2 of 8 new examples are in the holdout; gate\.minimum_examples asks for {examples},"
        with pytest.raises(TooFewRows, match=wanted):
            check_enough(sound, asked, "support")
    with pytest.raises(TooFewRows, match=r"0 of 7 new examples are in the holdout"):
        check_enough(selection(train=train), asking(1, 3), "support")
    nothing = selection(replayed=["r0000"], train=train[:1], holdout=rows["holdout"])
    with pytest.raises(TooFewRows, match=r"no example is left to train on; lower dataset\.holdout_share"):
        check_enough(nothing, asking(1, 1), "support")
    check_enough(selection(train=train[:1], holdout=rows["holdout"]), asking(1, 1), "support")


def lost(kept: int, gone: int, reason: str = "near_holdout", answer: str = "approve", **more: Any) -> Selection:
    """A class with so many questions kept and lost, beside twenty others."""
    rows = [example(number, answer) for number in range(kept)]
    rows += [example(number, f"Other {words(number, 1)}.") for number in range(200, 220)]
    left = [lost_row(example(number, answer), reason) for number in range(100, 100 + gone)]
    return selection(left, train=rows, **more)


def check(found: Selection, metric: Metric | None = None) -> None:
    check_classes(found, "support", metric or Facts())


@pytest.mark.parametrize(
    ("reason", "way_out"),
    [
        ("repetitive", "take repetitive out"), ("near_holdout", "near_duplicate_similarity"),
        ("incomplete", "take incomplete out"), ("ungrounded", "take ungrounded out"),
        ("superseded", "newest corrections"), ("outvoted", "who disagrees"),
        ("contradicts_expert", "experts' corrections"),
    ],
)  # fmt: skip
def test_a_class_that_loses_most_of_its_questions_is_refused_with_the_way_out(reason: str, way_out: str) -> None:
    with pytest.raises(
        LostClass, match=rf"^workload support: 6 of 11 questions with the answer of feedback f0 .*\(6 {reason}\)"
    ) as error:
        check(lost(5, 6, reason))
    assert way_out in str(error.value)
    assert "such as those of feedback f100, f103 (`retuned dataset preview support` shows them)" in str(error.value)
    assert "approve" not in str(error.value)
    check(lost(6, 6, reason))  # half of it is no loss of most
    check(lost(4, 5, reason))  # nine questions are not frequent
    check(lost(0, 6, "spent"))


def test_which_answers_are_one_class_is_the_metrics_to_say() -> None:
    """Two labels with one number are two labels."""
    kept = [example(number, "tier 1 billing") for number in range(20)]
    left = [lost_row(example(number, "tier 1 refunds"), "near_holdout") for number in range(100, 112)]
    labels = Label(["tier 1 billing", "tier 1 refunds"])
    with pytest.raises(LostClass, match="12 of 12 questions with the answer 'tier 1 refunds'"):
        check(selection(left, train=kept), labels)


def test_a_label_called_other_is_a_class_like_any() -> None:
    kept = [example(number, "refund") for number in range(20)]
    left = [lost_row(example(number, "other"), "near_holdout") for number in range(100, 112)]
    with pytest.raises(LostClass, match="12 of 12 questions with the answer 'other'"):
        check(selection(left, train=kept), Label(["refund", "other"]))


def test_ten_questions_are_frequent_unless_they_are_less_than_a_hundredth() -> None:
    with pytest.raises(LostClass, match="6 of 10"):
        check(lost(4, 6))
    many = [example(number, f"Other {words(number, 1)}.") for number in range(1_000, 2_000)]
    check(lost(4, 6, holdout=many))
    with pytest.raises(LostClass, match="6 of 10"):
        check(lost(4, 6, holdout=many[:970]))


def test_the_class_that_lost_most_is_named_and_the_rule_that_took_most() -> None:
    half = lost(4, 8)
    worse = [lost_row(example(number, "refuse"), "incomplete") for number in range(300, 312)]
    worse += [lost_row(example(number, "refuse"), "ungrounded") for number in range(320, 321)]
    with pytest.raises(
        LostClass, match=r"13 of 13 questions with the answer of feedback f300 .*\(12 incomplete, 1 ungrounded\)"
    ):
        check(replace(half, states=[*half.states, *worse]))


def test_a_question_that_another_row_answers_is_not_lost() -> None:
    kept = [example(number, "approve") for number in range(100, 106)]
    assert len(kept) == 6
    found = lost(5, 6)
    check(replace(found, splits=found.splits | {"regression": kept}))
    # What only a share took is there to be drawn another time.
    shared = [lost_row(example(number, "approve"), "topic_share") for number in range(500, 510)]
    check(replace(found, states=[*found.states, *shared]))


def test_replayed_rows_are_no_questions_of_the_class() -> None:
    found = lost(6, 6)
    check(found)
    with pytest.raises(LostClass, match="6 of 10"):
        check(replace(found, replayed=frozenset({"r0000", "r0001"})))


def test_a_topic_is_a_class_too_and_the_rest_is_none() -> None:
    def row(number: int) -> Example:
        return example(number, question=f"refund {words(number, 1)}")

    left = [lost_row(row(number), "unreadable") for number in range(100, 108)]
    rows = [*(row(number) for number in range(4)), *(example(number) for number in range(20, 30))]
    with pytest.raises(LostClass, match="8 of 12 questions with the topic 'refund'"):
        check(selection(left, topics=topical(), train=rows))
    check(selection(left, train=rows))


def test_a_joke_cannot_stop_all_training_and_a_topic_without_answers_is_refused() -> None:
    check(lost(0, 30, "unspecific", "Ask my cat."))
    questions = [example(number, "Ask my cat.", question=f"refund {words(number, 1)}") for number in range(100, 112)]
    left = [Decided(row, "waiting", "unspecific") for row in questions]
    rows = [example(number) for number in range(20, 60)]
    with pytest.raises(LostClass, match=r"12 of 12 questions with the topic 'refund' .*rows keep"):
        check(selection(left, topics=topical(), train=rows))


def test_what_is_learned_never_asks_what_is_judged_on() -> None:
    long = words(1, 20)
    judged, near = example(1, question=long), example(2, question=f"{long} so")
    apart = [example(number) for number in range(3, 7)]
    sound = {"train": apart[:2], "holdout": [judged], "regression": apart[2:3]}
    related = Related([judged, near, *apart], 0.8)
    check_leaks(sound, [(apart[3], True)], related)
    nothing: dict[str, list[Example]] = {name: [] for name in SPLITS}
    for split in ("holdout", "regression"):
        with pytest.raises(Leak, match="row r0002 of train asks the held-out question of row r0001"):
            check_leaks({**nothing, split: [judged], "train": [apart[0], near]}, [], related)
        with pytest.raises(Leak, match="row r0002 of thumbs"):
            check_leaks({**sound, split: [judged]}, [(apart[3], True), (near, False)], related)
    check_leaks({**sound, "train": [near]}, [], Related([judged, near], 1.0))
    blind = Related([judged, near], 0.8)
    blind._of = {}  # the check does not rest on the groups
    with pytest.raises(Leak, match="row r0002 of train asks the held-out question of row r0001"):
        check_leaks({**sound, "train": [near]}, [], blind)


# What is rehearsed


def rounds(first: int, new: int, count: int, **more: Any) -> list[set[int]]:
    """Which rows are rehearsed in each of so many rounds, each with new rows, as the datasets before it say."""
    train, rehearsed, found = [example(number) for number in range(first)], dict[str, int](), list[set[int]]()
    for number in range(count):
        fresh = [example(first + number * new + i, received_at=START + 9_999 * HOUR) for i in range(new)]
        earlier = before(versions=[f"v{number}"], until=START + 9_998 * HOUR, train=train, rehearsed=rehearsed, **more)
        selection = chosen(
            evidence(fresh, places={row.prompt_hash: "train" for row in fresh}), earlier, replay_share=0.5
        )
        taught = {row.prompt_hash for row in selection.splits["train"]}
        train = [*train, *fresh]
        rehearsed = {
            row.prompt_hash: 0 if row.prompt_hash in taught else rehearsed.get(row.prompt_hash, 0) + 1 for row in train
        }
        found.append({int(row_id[1:]) for row_id in selection.replayed})
    return found


def test_all_that_was_learned_is_rehearsed_within_ten_rounds() -> None:
    found = rounds(120, 20, 10)
    assert [len(one) for one in found] == [20] * 10
    assert set(range(120)) <= set().union(*found)
    # What was rehearsed a round ago waits for what was not.
    assert all(not one & other for one, other in pairwise(found[:6]))


def test_what_the_champion_fails_is_rehearsed_more_often_and_the_rest_still_is() -> None:
    train = [example(number, topic="hard" if number % 4 == 0 else "easy") for number in range(120)]
    earlier = before(versions=["v"], train=train, failures={"hard": 0.6, "easy": 0.0})
    fresh = [example(200 + number, received_at=START + 9_999 * HOUR) for number in range(30)]
    found = evidence(fresh, places={row.prompt_hash: "train" for row in fresh})
    first = chosen(found, earlier, replay_share=0.5)
    assert {row.topic for row in train if row.row_id in first.replayed} == {"hard"}
    # Rehearsed two rounds ago, easy rows come before hard ones of the last round.
    rested = {row.prompt_hash: 1 if row.topic == "easy" else 0 for row in train}
    later = chosen(found, replace(earlier, rehearsed=rested), replay_share=0.5)
    assert {row.topic for row in train if row.row_id in later.replayed} == {"easy"}


def test_rows_that_waited_equally_long_are_drawn_anew_each_round_and_alike_for_the_same_evidence() -> None:
    train = [example(number) for number in range(60)]
    fresh = [example(200 + number, received_at=START + 9_999 * HOUR) for number in range(20)]
    found = evidence(fresh, places={row.prompt_hash: "train" for row in fresh})
    draws = [chosen(found, before(versions=[name], train=train), replay_share=0.5).replayed for name in "aab"]
    assert draws[0] == draws[1] != draws[2]
