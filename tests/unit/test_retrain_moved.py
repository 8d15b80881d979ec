"""Answers that changed for all questions about them."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from retuned.consumers.common.tool_calls import written
from retuned.retrain.data.examples import Example
from retuned.retrain.data.moved import Moved
from retuned.retrain.data.truth import Independence
from retuned.retrain.scoring.exact import Exact
from retuned.retrain.scoring.json_fields import Json
from retuned.retrain.scoring.score import Metric
from retuned.retrain.scoring.tool_calls import ToolCalls

CHANGE = datetime(2026, 5, 1)
OLD, NEW = "within 30 days", "within 14 days"


def stated(question: int, answer: str, day: int, rejected: str | None = None) -> Example:
    """A statement so many days after the change."""
    at, name, kind = CHANGE + timedelta(days=day), f"wording {question}", "correction" if rejected else "accepted"
    return Example(
        f"{name} {answer}", name, name, name, "[]", answer, kind, "user", rejected, None, "", f"{name} {day}", at, at
    )  # fmt: skip


def outdated(rows: Iterable[Example], metric: Metric | None = None) -> set[str]:
    """The questions whose answer waits."""
    ordered = sorted(rows, key=lambda row: row.timestamp)
    today = {row.prompt_hash: row for row in ordered}
    moved = Moved(ordered, today, metric or Exact())
    return {row.prompt_hash for row in today.values() if moved.outdated(row)}


class _Rings(Independence):
    """All accounts named ring are one."""

    def shares(self, accounts: Sequence[str]) -> list[float]:
        ring = sum(name.startswith("ring") for name in accounts)
        return [1 / ring if name.startswith("ring") else 1.0 for name in accounts]


def elsewhere(count: int, day: int, confirmed: int) -> list[Example]:
    """Answers to other questions, of which some are confirmed on a day."""
    return [stated(100 + number, f"answer {number}", day if number < confirmed else -10) for number in range(count)]


def test_an_old_answer_waits_if_nobody_confirms_it_where_people_confirm_others() -> None:
    """Of eight wordings two were corrected since the change, and half of the other questions were confirmed."""
    rows = [stated(number, OLD, -number - 1) for number in range(8)]
    rows += [stated(number, NEW, 1, rejected=OLD) for number in (0, 1)]
    assert outdated([*rows, *elsewhere(20, 2, confirmed=10)]) == {f"wording {number}" for number in range(2, 8)}


def test_silence_shows_nothing_where_people_only_correct() -> None:
    """Two of forty questions with one short answer are corrected, and nobody confirms anything."""
    rows = [stated(number, "Yes.", -number - 1) for number in range(40)]
    rows += [stated(number, "No, not any more.", 1, rejected="Yes.") for number in (0, 1)]
    corrected = [stated(100 + number, f"answer {number}", 2, rejected="unknown") for number in range(20)]
    assert outdated([*rows, *corrected]) == set()
    assert outdated([*rows, *elsewhere(20, 2, confirmed=1)]) == set()


def test_an_old_answer_stays_that_most_people_still_accept() -> None:
    """Two of five wordings asked since then were corrected, and three were confirmed with the old answer."""
    rows = [stated(number, OLD, -number - 1) for number in range(8)]
    rows += [stated(number, NEW, 1, rejected=OLD) for number in (0, 1)]
    rows += [stated(number, OLD, 2) for number in (2, 3, 4)]
    assert outdated([*rows, *elsewhere(20, 2, confirmed=20)]) == set()


@pytest.mark.parametrize(
    ("accounts", "confirmed", "waits"),
    [
        (["ann", "bob", "cat"], False, True),
        (["ann"] * 3, False, False),
        (["ring1", "ring2", "ring3"], False, False),
        (["ann", "bob", "cat"], True, False),
    ],
    ids=["by three accounts", "by one account", "by three copies", "and an expert has confirmed the old one since"],
)
def test_what_users_say_against_an_older_answer_of_an_expert_counts_once_an_expert_has_changed_another(
    accounts: list[str], confirmed: bool, waits: bool
) -> None:
    """Of ten wordings, experts changed two and users contradict three. None of the others is replaced."""
    old = [replace(stated(number, OLD, -number - 1, rejected="?"), source="expert") for number in range(10)]
    new = [replace(stated(number, NEW, 1, rejected=OLD), source="expert") for number in (0, 1)]
    again = [replace(stated(number, OLD, 2, rejected="?"), source="expert") for number in (2, 3, 4) if confirmed]
    against = [(stated(number, NEW, 3, rejected=OLD), name) for number, name in zip((2, 3, 4), accounts, strict=True)]
    today = {row.prompt_hash: row for row in [*old, *new, *again]}
    moved = Moved([*old, *new, *again], today, Exact(), against, _Rings())
    expected = {f"wording {number}" for number in range(2, 10)} if waits else set()
    assert {row.prompt_hash for row in today.values() if moved.outdated(row)} == expected
    by_users = [replace(row, source="user") for row in new]
    moved = Moved([*old, *by_users], today | {row.prompt_hash: row for row in by_users}, Exact(), against, _Rings())
    assert not any(map(moved.outdated, old))


def test_a_label_is_not_replaced_by_one_that_other_questions_have() -> None:
    rows = [stated(number, "REFUND", -number - 1) for number in range(8)]
    rows += [stated(number, "EXCHANGE", -number - 1) for number in range(10, 16)]
    rows += [stated(number, "EXCHANGE", 1, rejected="REFUND") for number in (0, 1)]
    assert outdated([*rows, *elsewhere(20, 2, confirmed=10)]) == set()


@pytest.mark.parametrize(
    ("metric", "answers"),
    [
        (Json({}), ['{"category": "refund"}']),
        (Json({}), ['{"category": "Refund"}', *['{"category": "refund"}'] * 2]),  # one wording, and two answers
        (ToolCalls(), [written("", [{"name": "getOrder", "arguments": {"state": "OPEN"}}])]),
    ],
)
def test_an_answer_is_not_replaced_by_itself(metric: Metric, answers: list[str]) -> None:
    """The events behind the older rows are archived, and other questions have the same answers since."""
    earlier, newer = (
        [stated(number, answers[number % len(answers)], number) for number in numbers]
        for numbers in (range(-2, 0), range(10, 16))
    )
    moved = Moved([*earlier, *newer], {row.prompt_hash: row for row in newer}, metric)
    assert not any(moved.outdated(row) for row in earlier)


def test_a_document_is_replaced_by_another() -> None:
    old, new = '{"days": 30, "by": "DHL"}', '{"days": 14, "by": "DHL"}'
    rows = [stated(number, old, -number - 1) for number in range(8)]
    rows += [stated(number, new, 1, rejected=old) for number in (0, 1)]
    assert outdated([*rows, *elsewhere(20, 2, confirmed=10)], Json({})) == {f"wording {n}" for n in range(2, 8)}
