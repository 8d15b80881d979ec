"""What the console decides without a database: states of workloads, charts, the inbox, changes of words."""

from datetime import date, datetime, timedelta
from typing import Any

import pytest

from retuned.daemon.console.attention import State, ranked, state_of
from retuned.daemon.console.chart import HEIGHT, MARK, WIDTH, Frame, Point, columns, lines, marks, y
from retuned.daemon.console.inbox import CLAIM, Work, agreement, status
from retuned.daemon.console.overview import Facts, Rate
from retuned.daemon.console.teach import diff
from retuned.daemon.console.version import Pair
from retuned.daemon.console.workload import chosen, compared, guards
from retuned.daemon.settings import Settings
from retuned.daemon.web.rendering import sentence, when

NOW = datetime(2026, 3, 30, 9, 0, 0)  # a Monday


def rate(value: float, margin: float = 0.08, n: int = 50) -> Rate:
    return Rate(value, max(value - margin, 0.0), min(value + margin, 1.0), n)


def history(*values: float) -> tuple[tuple[date, Rate], ...]:
    """One value a day, the last one of today."""
    return tuple(
        (NOW.date() - timedelta(days=back), rate(value))
        for back, value in zip(range(len(values) - 1, -1, -1), values, strict=True)
    )


def drift(**more: Any) -> dict[str, Any]:
    return {"id": "d", "created_at": NOW, "drifted": True, "severity": 0.23} | more


def refused(**more: Any) -> dict[str, Any]:
    refusal = "Refused by gain, because it is small; it would take 40 more."
    return {"version": "v2", "finished_at": NOW - timedelta(hours=1), "error": "few", "refusal": refusal} | more


def of(**facts: Any) -> State:
    return state_of(Facts("support", **facts), NOW)


FELL = datetime(2026, 3, 28, 14, 5, 59)
FALLEN = {"helpful": rate(0.3), "history": history(*[0.9] * 10, 0.3, 0.3, 0.3), "fell_at": FELL}
UNRATED = {"answers": 2_000, "counted": {"*": 1_000, "base": 1_000}, "since": NOW - timedelta(days=1)}
SERVICE = {"champion": "v1", "rollout": None, "event": None}


@pytest.mark.parametrize(
    ("facts", "level", "sentence"),
    [
        (FALLEN, "bad", "Helpful 30%, was 90%; fell on Saturday, 28 Mar 14:05 UTC"),
        (FALLEN | {"fell_at": NOW}, "bad", "Helpful 30%, was 90%; fell today 09:00 UTC"),
        (FALLEN | {"fell_at": NOW - timedelta(days=7)}, "bad", "Helpful 30%, was 90%; fell on 23 Mar 09:00 UTC"),
        ({"helpful": rate(0.85), "history": history(*[0.9] * 8, 0.85)}, "quiet", "Quiet"),
        ({"hallucination": rate(0.3)}, "bad", "30% of the answers are invented"),
        ({"hallucination": rate(0.15)}, "quiet", "Quiet"),
        ({"drift": drift()}, "bad", "Drift found today 09:00 UTC"),
        ({"drift": drift(created_at=datetime(2025, 12, 30))}, "bad", "Drift found on 30 Dec 2025 00:00 UTC"),
        ({"drift": drift(drifted=False)}, "quiet", "Quiet"),
        ({"drift": drift(drifted=None)}, "quiet", "Quiet"),
        (
            {
                "service": SERVICE
                | {"event": "rolled_back", "changed_at": NOW - timedelta(days=2), "change_reason": "worse"}
            },
            "bad",
            "A version was rolled back on Saturday, 28 Mar 09:00 UTC",
        ),
        (
            {
                "service": SERVICE
                | {"event": "rolled_back", "changed_at": NOW - timedelta(days=8), "change_reason": "worse"}
            },
            "quiet",
            "Quiet",
        ),
        ({"run": {"state": "failed", "error": "the disk is full"}}, "bad", "The latest retraining failed"),
        (
            {"approvals": ({"id": "a", "kind": "version", "version": "v", "expires_at": NOW},)},
            "warn",
            "A better version waits for approval",
        ),
        ({"run": refused(state="succeeded")}, "warn", "The gate refused v2"),
        ({"run": refused(state="refused", refusal=None)}, "warn", "The latest retraining was refused"),
        ({"run": refused(state="succeeded", refusal=None)}, "quiet", "Quiet"),
        ({"run": refused(state="succeeded", finished_at=NOW - timedelta(days=7))}, "quiet", "Quiet"),
        ({"run": refused(state="succeeded"), "service": SERVICE | {"champion": "v2"}}, "quiet", "Quiet"),
        (UNRATED, "warn", "No answers are rated"),
        (UNRATED | {"counted": {"*": 10}}, "quiet", "Quiet"),
        (UNRATED | {"rated": True}, "quiet", "Quiet"),
        (UNRATED | {"service": SERVICE | {"champion_since": FELL}}, "warn", "No answers are rated"),
        (UNRATED | {"service": SERVICE | {"champion_since": NOW - timedelta(days=1)}}, "quiet", "Quiet"),
        ({"answers": 1_000}, "quiet", "Quiet"),
        ({"paused": {"actor": "anna", "reason": "audit"}}, "warn", "Retraining is paused by anna"),
        ({"run": {"state": "running", "error": None}}, "busy", "Retraining"),
        ({"service": SERVICE | {"rollout": "canary", "canary": "v2", "share": 0.25}}, "busy", "Rolling out v2"),
    ],
)
def test_a_workload_has_one_state_in_words(facts: dict[str, Any], level: str, sentence: str) -> None:
    found = of(**facts).finding
    assert (found.level, found.sentence) == (level, sentence)


def test_a_fall_comes_with_its_evidence_and_with_what_a_person_can_do() -> None:
    found = of(**FALLEN, drift=drift(), labels=12).finding
    assert found.evidence == ("50 ratings, 95% interval 22% to 38%. About 23% of the events differ from the reference.")
    assert found.action is not None
    assert (found.action.text, found.action.path) == ("Teach 12 answers", "/workloads/support/teach")


def test_a_refusal_comes_with_its_reason_and_what_it_would_take() -> None:
    found = of(run=refused(state="succeeded")).finding
    assert found.evidence.startswith("Refused by gain, because")
    assert found.action is not None
    assert (found.action.text, found.action.path) == ("See why", "/workloads/support#decisions")
    taught = of(run=refused(state="succeeded"), labels=3).finding.action
    assert taught is not None
    assert taught.text == "Teach 3 answers"


def test_what_is_unrated_is_counted_where_ratings_are() -> None:
    assert of(**UNRATED).finding.evidence == (
        "1,000 answers since Sunday, 29 Mar 09:00 UTC and none of them rated: their quality is unknown."
    )


def test_a_name_cannot_leave_its_path() -> None:
    found = state_of(Facts("a/../b?c", labels=1), NOW).finding
    assert found.action is not None
    assert found.action.path == "/workloads/a%2F..%2Fb%3Fc/teach"


def test_the_worst_come_first_and_among_equals_those_that_touch_most_answers() -> None:
    facts = [
        Facts("quiet"),
        Facts("approval", approvals=({"id": "a", "kind": "version", "version": "v", "expires_at": NOW},)),
        Facts("small", answers=10, **FALLEN),
        Facts("large", answers=10_000, **FALLEN),
    ]
    assert [one.facts.workload for one in ranked(state_of(one, NOW) for one in facts)] == [
        "large",
        "small",
        "approval",
        "quiet",
    ]


def test_a_chart_covers_its_frame_and_breaks_where_figures_lack() -> None:
    frame = Frame(NOW - timedelta(days=28), NOW)
    assert (frame.x(frame.start), frame.x(frame.end), y(0), y(1)) == (0, WIDTH, HEIGHT, 0)
    points = [Point(NOW - timedelta(hours=hours), 0.5, 0.4, 0.6, 10) for hours in (600, 599, 2, 1)]
    assert len(lines(frame, points, 3_600)) == 2
    assert [line.count(",") for line, _ in lines(frame, points, 3_600)] == [2, 2]


@pytest.mark.parametrize(
    "length", [timedelta(minutes=10), timedelta(hours=5), timedelta(days=1), timedelta(days=28), timedelta(days=900)]
)
def test_a_chart_has_some_ticks_within_its_frame(length: timedelta) -> None:
    ticks = Frame(NOW - length, NOW).ticks()
    assert 2 <= len(ticks) <= 10
    assert all(0 <= x <= WIDTH for x, _ in ticks)
    assert len({label for _, label in ticks}) == len(ticks)


def test_each_place_of_a_chart_belongs_to_the_nearest_moment() -> None:
    frame = Frame(NOW - timedelta(hours=10), NOW)
    one, two, three = (Point(NOW - timedelta(hours=hours), 0.5, 0.4, 0.6, 10) for hours in (8, 4, 0))
    assert columns(frame, [one, three], [two]) == [
        (0.0, 400.0, one.at, [one, None]),
        (400.0, 400.0, two.at, [None, two]),
        (800.0, 200.0, three.at, [three, None]),
    ]
    assert columns(frame, [], []) == []


def test_times_have_one_form_and_those_of_another_year_name_it() -> None:
    page = {"as_of": NOW}
    assert when(page, datetime(2026, 3, 5, 7, 8)).endswith(">5 Mar 07:08</time>")
    assert when(page, "2026-03-05T07:08:09.123Z").endswith(">5 Mar 07:08</time>")
    assert when(page, datetime(2019, 3, 5, 7, 8)) == (
        '<time datetime="2019-03-05T07:08:00Z" title="Tuesday, 5 March 2019, 07:08:00 UTC">5 Mar 2019 07:08</time>'
    )
    assert when(page, None) == "never"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nothing moved", "Nothing moved."),
        ("the token is unknown, or has expired", "The token is unknown, or has expired."),
        ("Is it open?", "Is it open?"),
        ("http.port 8321: no daemon runs there", "http.port 8321: no daemon runs there."),
        ("", ""),
    ],
)
def test_a_problem_is_shown_as_a_sentence(text: str, expected: str) -> None:
    assert sentence(text) == expected


def work(
    expert: str,
    state: Any,
    ago: float = 0.0,
    name: str | None = None,
    value: str | None = None,
    sent: bool | None = None,
) -> Work:
    return Work(expert, state, NOW - timedelta(seconds=ago), name, value, sent)


YES, NO = ("helpful", "true"), ("helpful", "false")


@pytest.mark.parametrize(
    ("done", "opinions", "expected"),
    [
        ([], 1, "open"),
        ([work("anna", "claimed")], 1, "mine"),
        ([work("ben", "claimed")], 1, "taken"),
        ([work("ben", "claimed", CLAIM.total_seconds() + 1)], 1, "open"),
        ([work("anna", "skipped")], 1, "skipped"),
        ([work("ben", "skipped")], 1, "open"),
        ([work("ben", "answered", 0, *YES, True)], 1, "answered"),
        ([work("ben", "answered", 0, *YES)], 1, "open"),
        ([work("anna", "answered", 0, *YES)], 1, "open"),
        ([work("ben", "answered", 0, *YES)], 2, "open"),
        ([work("anna", "answered", 0, *YES)], 2, "second"),
        ([work("anna", "answered", 0, *YES), work("ben", "answered", 0, *YES, True)], 2, "answered"),
        ([work("anna", "answered", 0, *YES), work("ben", "answered", 0, *YES)], 2, "open"),
        ([work("ben", "answered", 0, *YES), work("cleo", "answered", 0, *NO)], 2, "disputed"),
        ([work("anna", "answered", 0, *YES), work("ben", "answered", 0, *NO)], 2, "disputed"),
        (
            [
                work("ben", "answered", 0, *YES),
                work("cleo", "answered", 0, *NO),
                work("dora", "answered", 0, *NO, True),
            ],
            2,
            "answered",
        ),
        (
            [
                work("ben", "answered", 0, "correction", '"14 days"'),
                work("cleo", "answered", 0, "correction", '"14 days\\n"', True),
            ],
            2,
            "answered",
        ),
        *(
            (
                [
                    work("ben", "answered", 0, "correction", '"the key aB3x"'),
                    work("cleo", "answered", 0, "correction", other),
                ],
                2,
                "disputed",
            )
            for other in ('"the key Ab3X"', '"the key  aB3x"')
        ),
        (
            [
                work("ben", "answered", 0, "correction", '"14 days"'),
                work("cleo", "answered", 0, "correction", '"30 days"'),
            ],
            2,
            "disputed",
        ),
    ],
)
def test_a_request_has_one_status_for_an_expert(done: list[Work], opinions: int, expected: str) -> None:
    assert status(done, "anna", NOW, opinions) == expected


def test_agreement_is_counted_where_several_answered() -> None:
    answered = [work("ben", "answered", 0, *YES)]
    assert agreement(
        [answered, [*answered, work("cleo", "answered", 0, *YES)], [*answered, work("cleo", "answered", 0, *NO)]]
    ) == (1, 2)


def test_words_that_changed_are_told_from_those_that_stay() -> None:
    assert diff("You can do that within 30 days.", "You can do that within 14 days, once.") == [
        ("equal", "You can do that within "),
        ("delete", "30"),
        ("insert", "14"),
        ("equal", " days"),
        ("insert", ", once"),
        ("equal", "."),
    ]
    assert diff("", "Ja, täglich.") == [("insert", "Ja, täglich.")]


def test_the_settings_that_are_not_the_default_come_with_where_they_are_set() -> None:
    settings = Settings(
        labels={"opinions": 2}, workloads={"support.*": {"train": {"rank": 4}}, "sales": {"train": {"rank": 8}}}
    )  # type: ignore[arg-type]
    assert [(one.name, one.value, one.default, one.source) for one in chosen(settings, "support.a")] == [
        ("train.rank", 4, 16, "support.*"),
        ("labels.opinions", 2, 1, None),
    ]
    assert [one.name for one in chosen(settings, "hr")] == ["labels.opinions"]


def test_the_intervals_of_a_decision_are_drawn_on_one_scale() -> None:
    figures = {"passed[gain]": 1.0, "score_candidate": 0.8, "score_champion": 0.6, "gain_low": 0.1, "gain_high": 0.3}
    found = compared(figures | {"passed[form]": 0.0})
    assert [(one.name, one.outcome) for one in found["guards"]] == [
        ("Form that programs read", "refused"),
        ("Score on held-out questions", "passed"),
    ]
    assert found["reach"] == 0.3
    assert compared({})["reach"] > 0


def test_what_was_not_measured_has_not_passed_and_each_comparison_has_its_limit_and_examples() -> None:
    figures = {"passed[latency]": 1.0, "examples[latency]": 40.0, "limit[latency]": 1.25, "not_measured[traffic]": 1.0}
    figures |= {"passed[regression]": 0.0, "not_measured[regression]": 1.0}
    found = guards(figures)
    assert [(one.outcome, one.refuses) for one in found] == [
        ("not measured", True),
        ("not measured", False),
        ("passed", False),
    ]
    assert [(one.limit, one.examples) for one in found] == [(None, None), (None, None), (1.25, 40.0)]
    old = guards({"passed[traffic]": 1.0, "passed[judge]": 0.0})  # stored by an earlier version
    assert [(one.name, one.outcome) for one in old] == [
        ("Verdicts of the judge", "refused"),
        ("Answers that nobody rated", "passed"),
    ]


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        (1.0, 0.0, "worse"),
        (0.0, 1.0, "better"),
        (0.2, 0.4, "wrong"),
        (0.9, 0.5, "right"),
        (None, 1.0, "unknown"),
        (1.0, None, "unknown"),
    ],
)
def test_a_pair_of_answers_is_better_worse_or_unknown(before: float | None, after: float | None, change: str) -> None:
    assert Pair("q", "a", "expert", "x", "y", before, after, "").change == change


def test_marks_of_the_same_moment_lie_side_by_side() -> None:
    frame = Frame(NOW - timedelta(days=10), NOW)
    early, late = NOW - timedelta(days=5), NOW
    assert marks(frame, [early]) == [(500.0, 500.0)]
    assert marks(frame, [early, early, late, late]) == [
        (500.0, 500.0), (500.0, 500.0 + MARK), (WIDTH, WIDTH - MARK), (WIDTH, WIDTH)
    ]  # fmt: skip
    many = [drawn for _, drawn in marks(frame, [late] * 500)]
    assert many == sorted(set(many))
    assert (many[0] >= 0, many[-1]) == (True, WIDTH)
    assert marks(frame, []) == []
