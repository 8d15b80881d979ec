"""Which servers are passed over because they keep failing, by a clock of the test's."""

import json
from typing import Any

import pytest

from retuned.daemon.gateway.servers.outliers import (
    BASE_SECONDS,
    BUSY_SECONDS,
    FAILURES,
    LONGEST_SECONDS,
    Health,
    Outcome,
    State,
    outcome_of,
)
from retuned.daemon.gateway.streams import error_in, errors_in_stream


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ({"message": "EngineDead", "type": "InternalServerError", "code": 500}, 500),
        ({"message": "out of memory"}, 500),
        ({"type": "server_error", "code": None}, 500),
        ({"type": "overloaded_error", "message": "Overloaded"}, 500),
        ("it failed", 500),
        ({"code": "429"}, 429),
        ({"type": "BadRequestError", "code": 400}, 400),
        ({"type": "invalid_request_error", "code": "context_length_exceeded"}, 400),
        ({"type": None, "code": "content_filter"}, 400),
    ],
)
def test_an_error_in_an_answer_has_the_status_of_who_caused_it(error: Any, status: int) -> None:
    body = json.dumps({"error": error}).encode()
    assert error_in(body) == status
    answer = json.dumps({"choices": [{"delta": {"content": '{"error": 1}'}}], "error": None}).encode()
    assert error_in(answer) is None
    assert errors_in_stream(b": comment\n\ndata: %s\n\ndata: %s\n\ndata: [DONE]\n\n" % (answer, body)) == [None, status]
    assert errors_in_stream(b"data: [DONE]\n\n") == []


def asked(one: Health, outcome: Outcome, now: float, *others: Health) -> bool:
    """A request from its beginning to its end, at one time; whether the server is ejected by that."""
    return one.end(outcome, now, others, trial=one.begin(now))


def ejected(now: float, *others: Health) -> Health:
    one = Health()
    assert [asked(one, Outcome.FAILS, now, *others) for _ in range(FAILURES)] == [False] * (FAILURES - 1) + [True]
    return one


def test_failures_in_a_row_eject_a_server_and_an_answer_between_them_does_not() -> None:
    one, other = Health(), Health()
    for _ in range(5):
        for outcome in [Outcome.FAILS] * (FAILURES - 1) + [Outcome.WORKS]:
            assert not asked(one, outcome, 0.0, other)
    assert ejected(0.0, other).state(0.0) is State.EJECTED
    assert one.rank(0.0) < ejected(0.0, other).rank(0.0)


@pytest.mark.parametrize(
    ("status", "expected"),
    [(200, "works"), (400, "works"), (404, "works"), (422, "works"), (429, "busy"), (500, "fails"), (503, "fails")],
)
def test_errors_of_the_app_are_no_failures_of_the_server(status: int, expected: str) -> None:
    assert outcome_of(status).value == expected


def test_one_request_tries_an_ejected_server_and_an_answer_brings_it_back() -> None:
    one = ejected(0.0, Health())
    assert not one.begin(BASE_SECONDS - 0.1)
    assert one.state(BASE_SECONDS) is State.ON_TRIAL
    assert one.rank(BASE_SECONDS) == 0
    trial = one.begin(BASE_SECONDS)
    assert trial
    assert one.rank(BASE_SECONDS) == 2, "others wait for what comes of the trial"
    assert not one.begin(BASE_SECONDS)
    one.end(Outcome.WORKS, BASE_SECONDS + 1, [], trial=trial)
    assert (one.state(BASE_SECONDS + 1), one.rank(BASE_SECONDS + 1)) == (State.IN_SERVICE, 0)


def test_a_trial_whose_app_goes_away_is_followed_by_another_one() -> None:
    one = ejected(0.0, Health())
    one.end(Outcome.UNKNOWN, BASE_SECONDS, [], trial=one.begin(BASE_SECONDS))
    assert one.state(BASE_SECONDS) is State.ON_TRIAL
    assert one.begin(BASE_SECONDS)


def test_each_further_ejection_is_longer_up_to_a_limit_and_good_times_make_up_for_it() -> None:
    one, other, now = ejected(0.0, Health()), Health(), 0.0
    for times in range(2, 40):
        assert one.ejected_until is not None
        now = one.ejected_until
        assert asked(one, Outcome.FAILS, now, other)
        assert one.ejected_until == now + min(times * BASE_SECONDS, LONGEST_SECONDS)
    now = one.ejected_until
    assert not asked(one, Outcome.WORKS, now, other)
    now += 100 * BASE_SECONDS
    for _ in range(FAILURES):
        asked(one, Outcome.FAILS, now, other)
    assert one.ejected_until == now + BASE_SECONDS


def test_enough_servers_are_left() -> None:
    for count, most in ((1, 0), (2, 1), (3, 2), (4, 2), (10, 6)):
        servers = [Health() for _ in range(count)]
        for _ in range(FAILURES + 1):
            for one in servers:
                asked(one, Outcome.FAILS, 0.0, *(other for other in servers if other is not one))
        assert sum(one.state(0.0) is State.EJECTED for one in servers) == most, count


def test_what_was_asked_before_an_ejection_changes_nothing_of_it() -> None:
    one, before = Health(), Health()
    early = before.begin(0.0)
    one = ejected(0.0, Health())
    until = one.ejected_until
    one.end(Outcome.WORKS, 1.0, [Health()], trial=early)
    one.end(Outcome.FAILS, 1.0, [Health()], trial=early)
    assert (one.state(1.0), one.ejected_until) == (State.EJECTED, until)


def test_a_busy_server_is_asked_after_the_others_and_does_not_fail() -> None:
    one = Health()
    for _ in range(10):
        assert not asked(one, Outcome.BUSY, 0.0, Health())
    assert (one.rank(0.0), one.rank(BUSY_SECONDS)) == (1, 0)


def test_a_server_that_nothing_is_sent_to_any_more_is_not_known_to_fail() -> None:
    one = ejected(0.0, Health())
    assert one.is_out(BASE_SECONDS + LONGEST_SECONDS - 1)
    assert not one.is_out(BASE_SECONDS + LONGEST_SECONDS)
