"""Tokens of feedback: of one answer, for some days, made by nobody else."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from retuned.consumers.settings import IngestSettings
from retuned.daemon.gateway.errors import Refused
from retuned.daemon.gateway.events.feedback import DAY, MOST_OF_AN_ANSWER, Feedback, Tokens
from retuned.daemon.http_settings import HttpSettings
from retuned.daemon.web import principals
from retuned.daemon.web.principals import Principals

OLD, NEW = "the-old-key-of-sixteen", "the-new-key-of-sixteen"


class Clock:
    now = 1_790_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def tokens(clock: Clock, *keys: str) -> Tokens:
    return Tokens(keys or (NEW,), 30.0, clock)


def code(function: Any, *arguments: Any) -> tuple[int, str]:
    with pytest.raises(Refused) as refused:
        function(*arguments)
    return refused.value.status, refused.value.code


def test_a_token_is_of_its_answer(clock: Clock) -> None:
    made = tokens(clock)
    assert made.interaction(made.of("i-1")) == "i-1"
    assert made.interaction(made.of("with.dots.in.it")) == "with.dots.in.it"


def test_a_token_of_another_answer_another_time_or_another_key_is_none(clock: Clock) -> None:
    made = tokens(clock)
    token = made.of("i-1")
    interaction, expiry, signature = token.split(".")
    for forged in (
        f"i-2.{expiry}.{signature}",
        f"{interaction}.{int(expiry) + 1}.{signature}",
        f"{interaction}.{expiry}.{signature[:-1]}",
        f"{interaction}.{expiry}.",
        f"{interaction}.{expiry}.{signature}é",
        tokens(clock, OLD).of("i-1"),
        signature,
        "",
    ):
        assert code(made.interaction, forged) == (401, "invalid_token")


def test_a_token_expires(clock: Clock) -> None:
    made = tokens(clock)
    token = made.of("i-1")
    clock.now += 30 * DAY - 1
    assert made.interaction(token) == "i-1"
    clock.now += 2
    assert code(made.interaction, token) == (401, "expired_token")


def test_the_first_key_signs_and_those_before_it_are_accepted(clock: Clock) -> None:
    both = tokens(clock, NEW, OLD)
    assert both.interaction(tokens(clock, OLD).of("i-1")) == "i-1"
    assert tokens(clock, NEW).interaction(both.of("i-1")) == "i-1"
    assert code(tokens(clock, OLD).interaction, both.of("i-1")) == (401, "invalid_token")


def feedback(clock: Clock, *origins: str, experts: Principals | None = None) -> Feedback:
    return Feedback(tokens(clock), IngestSettings(), origins, experts)


def body(clock: Clock, **given: Any) -> bytes:
    return json.dumps({"token": tokens(clock).of("i-1"), "name": "helpful", "value": True} | given).encode()


def test_nobody_can_claim_to_be_somebody(clock: Clock) -> None:
    event = feedback(clock).event(body(clock, user_id="u-9", interaction_id="i-2", id="mine"), {})
    assert (event["source"], event["interaction_id"]) == ("user", "i-1")
    assert "user_id" not in event
    assert event["id"] != "mine"


def test_an_expert_is_who_has_a_token_to_label(clock: Clock, tmp_path: Path) -> None:
    file, now = tmp_path / "principals.yaml", datetime.now(UTC)
    keys = {role: principals.add(file, f"of-{role}", role, None, now) for role in ("viewer", "labeller", "admin")}
    expired = principals.add(file, "gone", "labeller", now - timedelta(days=1), now)
    experts = Principals(HttpSettings(principals_file=file))
    taken, said = feedback(clock, experts=experts), body(clock, source="expert", user_id="u-9")
    for role in ("labeller", "admin"):
        event = taken.event(said, {"Authorization": f"Bearer {keys[role]}"})
        assert (event["source"], event["user_id"]) == ("expert", f"of-{role}")
    not_utf8 = (b"\xff" * 40).decode(errors="surrogateescape")  # as a server reads such a header
    for key in (keys["viewer"], expired, "retuned_nobodys", not_utf8, ""):
        assert code(taken.event, said, {"Authorization": f"Bearer {key}"}) == (403, "not_an_expert")
    assert code(taken.event, said, {}) == (403, "not_an_expert")
    assert code(feedback(clock).event, said, {"Authorization": f"Bearer {keys['admin']}"}) == (403, "not_an_expert")
    for source in ("judge", "app", 5):
        assert code(taken.event, body(clock, source=source), {}) == (400, "invalid_json")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"value": "yes"}, "invalid_feedback"),
        ({"name": "rating", "value": 4}, "invalid_feedback"),
        ({"name": "", "value": 1}, "invalid_feedback"),
        ({"name": "comment", "value": {"a": 1}}, "invalid_feedback"),
        ({"name": "shadow_answer", "value": {"model": "m@1", "response": "Yes."}}, "invalid_feedback"),
        ({"name": 5}, "invalid_json"),
        ({"token": None}, "invalid_json"),
    ],
)
def test_what_is_no_feedback_is_refused_at_once(clock: Clock, given: dict[str, Any], expected: str) -> None:
    assert code(feedback(clock).event, body(clock, **given), {}) == (400, expected)


def test_feedback_that_is_sent_again_is_the_same_and_a_change_back_is_not(clock: Clock) -> None:
    taken = feedback(clock)

    def id_of(**given: Any) -> str:
        return str(taken.event(body(clock, **given), {})["id"])

    first = id_of()
    assert id_of() == first
    comment = id_of(name="comment", value="a remark")
    assert id_of(name="comment", value="a remark") == comment != first
    assert id_of() == first  # a comment in between is no other vote
    assert id_of(value=False) != first
    assert id_of() != first
    assert id_of(token=tokens(clock).of("i-2")) != first


def test_a_client_may_name_what_it_sends_again(clock: Clock, tmp_path: Path) -> None:
    file, now = tmp_path / "principals.yaml", datetime.now(UTC)
    keys = [principals.add(file, name, "labeller", None, now) for name in ("ada", "bob")]
    experts = Principals(HttpSettings(principals_file=file))

    def id_of(headers: dict[str, str], **given: Any) -> str:
        anywhere = feedback(clock, experts=experts)  # another replica, or after a restart
        return str(anywhere.event(body(clock, name="comment", value="a remark", **given), headers)["id"])

    ada, bob = ({"Authorization": f"Bearer {key}"} for key in keys)
    assert id_of({}, id="form-1") == id_of({}, id="form-1")
    of = {
        id_of({}, id="form-1"), id_of({}, id="form-2"), id_of({}), id_of(ada, id="form-1", source="expert"),
        id_of(bob, id="form-1", source="expert"), id_of({}, id="form-1", token=tokens(clock).of("i-2")),
    }  # fmt: skip
    assert len(of) == 6
    assert code(feedback(clock).event, body(clock, id=5), {}) == (400, "invalid_json")


def test_nobody_can_vote_for_ever(clock: Clock) -> None:
    taken = feedback(clock)
    for _ in range(MOST_OF_AN_ANSWER):
        taken.event(body(clock), {})
    assert code(taken.event, body(clock), {}) == (429, "too_much_feedback")
    taken.event(body(clock, token=tokens(clock).of("i-2")), {})


def test_pages_of_configured_origins_may_read_the_answer(clock: Clock) -> None:
    shop = {"Origin": "https://shop.example"}
    expected = {"Access-Control-Allow-Origin": "https://shop.example", "Vary": "Origin"}
    assert feedback(clock, "https://shop.example").allowed(shop) == expected
    assert feedback(clock, "*").allowed(shop) == expected
    assert feedback(clock, "https://other.example").allowed(shop) == {}
    assert feedback(clock, "*").allowed({}) == {}
