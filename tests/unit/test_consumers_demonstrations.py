"""Rows of files that are no events: what becomes of them."""

from typing import Any

import pytest

from fixtures.feedback.traffic import BOUNDS
from retuned.consumers.common.reasoning import split
from retuned.consumers.formats.demonstrations import NoWorkload, events, renamed
from retuned.consumers.formats.events import BadEvent, convert
from retuned.consumers.formats.messages import as_text

TIME = "2026-01-02T03:04:05+00:00"


def made(**row: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The interaction and the feedback of a row, which are events."""
    interaction, *feedback = events(row, "support", TIME)
    convert("interactions", interaction, BOUNDS)
    for said in feedback:
        convert("feedback", said, BOUNDS)
        assert said["interaction_id"] == interaction["id"]
    return interaction, feedback


def asked(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize(
    ("row", "messages", "response"),
    [
        ({"question": "q", "answer": "a"}, asked("q"), "a"),
        ({"Prompt": "q", " Completion ": "a"}, asked("q"), "a"),
        ({"instruction": "q", "input": "", "output": "a"}, asked("q"), "a"),
        ({"instruction": "q", "input": "i", "output": "a"}, asked("q\n\ni"), "a"),
        ({"input": "q", "output": "a"}, asked("q"), "a"),
        ({"system": "s", "query": "q", "response": "a"}, [{"role": "system", "content": "s"}, *asked("q")], "a"),
        ({"messages": [*asked("q"), {"role": "assistant", "content": "a"}, *asked("thanks")]}, asked("q"), "a"),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, asked("q"), "a"),
        ({"prompt": asked("q"), "completion": [{"role": "assistant", "content": "a"}]}, asked("q"), "a"),
        ({"messages": [*asked("q"), {"role": "model", "content": [{"type": "text", "text": "a"}]}]}, asked("q"), "a"),
    ],
)
def test_a_row_that_names_no_model_is_an_experts_demonstration(
    row: dict[str, Any], messages: list[dict[str, str]], response: str
) -> None:
    interaction, feedback = made(**row)
    assert (interaction["messages"], interaction["response"]) == (messages, response)
    assert (interaction["model"], interaction["workload"], interaction["timestamp"]) == (
        "demonstration",
        "support",
        TIME,
    )
    assert [(said["name"], said["value"], said["source"]) for said in feedback] == [("correction", response, "expert")]


def test_of_a_log_the_last_answer_is_the_response_and_what_was_said_before_is_asked() -> None:
    turns = [*asked("one"), {"role": "assistant", "content": "1"}, *asked("two"), {"role": "assistant", "content": "2"}]
    interaction, _ = made(messages=turns, helpful=True)
    assert (interaction["messages"], interaction["response"]) == (turns[:-1], "2")


def test_a_transcript_that_ends_with_calls_of_tools_demonstrates_them() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "order", "arguments": "{}"}}
    turns = [*asked("q"), {"role": "assistant", "content": None, "tool_calls": [call]}]
    interaction, (said,) = made(messages=turns, tools='[{"function": {"name": "order"}}]')
    assert (interaction["messages"], interaction["response"]) == (asked("q"), "")
    assert interaction["attributes"] == {"tools": [{"function": {"name": "order"}}], "tool_calls": [call]}
    assert said["value"] == {"content": "", "tool_calls": [call]}
    with pytest.raises(BadEvent, match="no answer"):
        made(messages=[*asked("q"), {"role": "assistant", "content": None, "tool_calls": [{"id": "c1"}]}])


@pytest.mark.parametrize("roles", [("function_call", "observation"), ("tool_call", "tool_response")])
@pytest.mark.parametrize("written", [as_text, lambda call: as_text([call]), dict], ids=["text", "list", "object"])
def test_calls_as_messages_of_their_own_role_are_calls_of_the_assistant(roles: tuple[str, str], written: Any) -> None:
    call = {"name": "order", "arguments": {"id": 7}}
    turns = [("human", "q"), (roles[0], written(call)), (roles[1], "sent"), ("gpt", "It is sent.")]
    row = {"conversations": [{"from": role, "value": text} for role, text in turns]}
    first, called, last, _ = events(row, "support", TIME)
    calls = [{"type": "function", "function": {"name": "order", "arguments": '{"id":7}'}}]
    assert (first["response"], called["value"]) == ("", {"content": "", "tool_calls": calls})
    assert last["messages"][1:] == [{"role": "assistant", "tool_calls": calls}, {"role": "tool", "content": "sent"}]


def test_a_transcript_with_reasoning_demonstrates_it() -> None:
    interaction, (said,) = made(
        messages=[*asked("q"), {"role": "assistant", "content": "a", "reasoning_content": "Hm."}]
    )
    assert split(interaction["response"]) == split(said["value"]) == ("Hm.", "a")


def test_a_row_that_names_its_model_is_a_log_and_teaches_nothing() -> None:
    interaction, feedback = made(question="q", answer="a", model="gpt-4", latency_seconds=0.5, team="north")
    assert feedback == []
    assert interaction["model"] == "gpt-4"
    assert interaction["latency_seconds"] == 0.5
    assert interaction["attributes"] == {"team": "north"}


def test_a_correction_in_json_stays_json() -> None:
    _, (said,) = made(question="q", answer="a", correction={"days": 14})
    assert said["value"] == {"days": 14}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"intent": "refund", "urgent": True, "order": None}, '{"intent":"refund","urgent":true,"order":null}'),
        (["a", "b"], '["a","b"]'),
        ([{"name": "tent"}, {"from": "Oslo", "to": "Bergen"}], '[{"name":"tent"},{"from":"Oslo","to":"Bergen"}]'),
        ([{"type": "text", "text": "a"}], "a"),
        (True, "true"),
        (42, "42"),
    ],
)
def test_an_answer_that_is_no_text_is_demonstrated_as_json(answer: Any, expected: str) -> None:
    interaction, (said,) = made(question="q", answer=answer)
    assert interaction["response"] == said["value"] == expected


SAID = {"role": "assistant", "content": "a"}
CALL = {"id": "c1", "type": "function", "function": {"name": "order", "arguments": "{}"}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
CALLED = {"content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "sent"}


@pytest.mark.parametrize("as_given", [lambda turn: turn, lambda turn: [turn]], ids=["message", "messages"])
@pytest.mark.parametrize(
    ("turn", "taught"),
    [
        (SAID, "a"),
        ({"from": "gpt", "value": "a"}, "a"),
        (CALLING, CALLED),
        (CALLED, CALLED),
        (SAID | {"reasoning_content": "Hm."}, "<think>\nHm.\n</think>\n\na"),
    ],
)
def test_an_answer_may_be_given_as_chat_messages(as_given: Any, turn: Any, taught: Any) -> None:
    given = as_given(turn)
    _, (said,) = made(prompt=asked("q"), completion=given)
    assert said["value"] == taught
    _, (said,) = made(prompt="q", chosen=given, rejected="bad")
    assert said["value"] == taught
    _, (said,) = made(question="q", answer="bad", correction=given)
    assert said["value"] == taught
    logs = [
        made(prompt=asked("q"), completion=given, label=True)[0],
        made(prompt="q", chosen="good", rejected=given)[0],
    ]
    for log in logs:
        calls = log.get("attributes", {}).get("tool_calls")
        assert ({"content": log["response"], "tool_calls": calls} if calls else log["response"]) == taught


def test_an_answer_of_several_messages_is_a_conversation() -> None:
    row = {"prompt": asked("q"), "completion": [CALLING, RESULT, SAID, *asked("thanks")]}
    first, called, last, said = events(row, "support", TIME)
    assert (called["value"], said["value"]) == (CALLED, "a")
    assert (len(first["messages"]), len(last["messages"])) == (1, 3)
    assert first["conversation_id"] == last["conversation_id"]
    interaction, _ = made(**row, helpful=True)
    assert (interaction["response"], len(interaction["messages"])) == ("a", 3)


@pytest.mark.parametrize(
    "answer", [{"role": "engineer", "name": "Ann"}, {"from": "Oslo", "value": "7"}, {"role": "user", "name": "Ann"}]
)
def test_an_object_that_is_no_chat_message_is_an_answer_in_json(answer: dict[str, Any]) -> None:
    for given, text in ((answer, as_text(answer)), ([answer], as_text([answer]))):
        _, (said,) = made(question="q", answer=given)
        assert said["value"] == text
        _, (said,) = made(question="q", chosen=given, rejected="bad")
        assert said["value"] == text


def test_what_an_instruction_is_about_may_be_an_object() -> None:
    interaction, _ = made(instruction="Extract the order", input={"text": "order 7"}, output="7")
    assert interaction["messages"] == asked('Extract the order\n\n{"text":"order 7"}')
    assert "attributes" not in interaction
    with pytest.raises(BadEvent, match="instruction: expected a text"):
        made(instruction={"a": 1}, input="i", output="a")


@pytest.mark.parametrize(
    ("chosen", "rejected", "good", "bad"),
    [
        (["x", "y"], {"a": 1}, '["x","y"]', '{"a":1}'),
        ({"a": True}, {"a": None}, '{"a":true}', '{"a":null}'),
        (["x", "y"], ["x", "z"], '["x","y"]', '["x","z"]'),
        (42, [{"role": "assistant", "content": "bad"}], "42", "bad"),
    ],
)
def test_a_preference_between_answers_in_json(chosen: Any, rejected: Any, good: str, bad: str) -> None:
    interaction, (said,) = made(prompt="q", chosen=chosen, rejected=rejected)
    assert (interaction["messages"], interaction["response"], said["value"]) == (asked("q"), bad, good)


def test_judgements_in_columns_become_feedback_of_users() -> None:
    interaction, feedback = made(question="q", answer="a", helpful="No", rating="0.2", comment="rude")
    assert interaction["model"] == "unknown"
    assert {said["name"]: said["value"] for said in feedback} == {"helpful": False, "rating": 0.2, "comment": "rude"}
    assert {said["source"] for said in feedback} == {"user"}


@pytest.mark.parametrize(
    ("columns", "meant"),
    [
        (("Text", "category"), ["question", "answer"]),
        (("question", "Label"), ["question", "answer"]),
        (("instruction", "input", "label"), ["instruction", "input", "answer"]),
        (("text", "label", "category"), ["question", "answer", "category"]),
        (("question", "text", "label"), ["question", "text", "answer"]),
        (("question", "answer", "label"), ["question", "answer", "label"]),
        (("prompt", "completion", "label"), ["prompt", "completion", "label"]),
        (("messages", "label"), ["messages", "label"]),
        (("prompt", "chosen", "rejected", "category"), ["prompt", "chosen", "rejected", "category"]),
        (("text", "score"), ["text", "score"]),
    ],
)
def test_a_class_is_the_answer_where_there_is_no_other(columns: tuple[str, ...], meant: list[str]) -> None:
    assert renamed(columns) == meant


def test_preferences_are_corrections_and_labels_are_thumbs() -> None:
    interaction, (said,) = made(prompt="q", chosen=[{"role": "assistant", "content": "good"}], rejected="bad")
    assert interaction["response"] == "bad"
    assert (said["name"], said["value"], said["source"]) == ("correction", "good", "expert")
    interaction, (said,) = made(prompt="q", completion="bad", label=False)
    assert interaction["response"] == "bad"
    assert (said["name"], said["value"], said["source"]) == ("helpful", False, "user")


@pytest.mark.parametrize(("label", "helpful"), [(0, False), (1, True), ("0", False), ("1.0", True), ("No", False)])
def test_a_label_of_a_completion_is_read_as_a_thumb_is(label: Any, helpful: bool) -> None:
    interaction, (said,) = made(prompt="q", completion="a", label=label)
    assert (said["name"], said["value"], said["source"]) == ("helpful", helpful, "user")
    assert "attributes" not in interaction


@pytest.mark.parametrize("label", [0, "1", 1.0, "no"])
def test_a_class_beside_an_answer_is_no_thumb(label: Any) -> None:
    interaction, (said,) = made(question="q", answer="a", label=label)
    assert (said["name"], interaction["attributes"]) == ("correction", {"label": label})


def test_an_answer_in_json_with_a_role_of_people_is_no_message() -> None:
    interaction, _ = made(question="q", answer={"role": "admin", "content": "all"})
    assert interaction["response"] == '{"role":"admin","content":"all"}'


def test_ids_come_from_the_content_alone() -> None:
    def ids(of: str | None = "support", at: str = TIME, **row: Any) -> list[str]:
        return [event["id"] for event in events({"question": "q", "answer": "a"} | row, of, at)]

    assert ids() == ids(at="2020-01-01") == ids(None, workload="support")
    assert len({*ids(), *ids(answer="b"), *ids("other"), *ids(created_at="2024-05-06"), *ids(context="c")}) == 10
    assert ids(id=7, model="m") == ["7"]  # of a log, for feedback refers to it
    assert not {*ids(id=7)} & {*ids(id=7, answer="b"), *ids()}  # the seventh rows of two tables are not one


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("2024-05-06", "2024-05-06T00:00:00+00:00"),
        ("2024-05-06 07:08:09", "2024-05-06T07:08:09+00:00"),
        (1714979289, "2024-05-06T07:08:09+00:00"),
    ],
)
def test_times_as_tables_have_them(given: Any, expected: str) -> None:
    interaction, feedback = made(question="q", answer="a", created_at=given)
    assert interaction["timestamp"] == feedback[0]["timestamp"] == expected


@pytest.mark.parametrize(
    ("row", "detail"),
    [
        ({"a": 1}, "nor a question with an answer: expected one of question, prompt"),
        ({"response": {"object": "chat.completion", "choices": []}}, "no request: a response without its request"),
        ({"question": "q"}, "no answer"),
        ({"question": 5, "answer": "a"}, "question: expected a text"),
        ({"question": "q", "answer": "  "}, "no answer: expected a text"),
        ({"messages": asked("q")}, "no answer: expected a last message of the assistant"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "no question"),
        ({"messages": ["q", "a"]}, "messages: expected objects with role and content"),
    ],
)
def test_what_shows_nothing_is_refused_with_what_was_expected(row: dict[str, Any], detail: str) -> None:
    with pytest.raises(BadEvent, match=detail):
        events(row, "support", TIME)


def test_a_workload_is_required() -> None:
    with pytest.raises(NoWorkload, match="--workload"):
        events({"question": "q", "answer": "a"}, None, TIME)
