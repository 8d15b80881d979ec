"""A version is asked in shadow before the first step of its rollout: what serves, what is judged, what comes of it."""

import json
import random
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fixtures.feedback.traffic import answered, feedback, new_warehouse, registered, store
from fixtures.servers.judges import prefers, serving
from retuned.consumers.errors import Cancelled, RetunedError
from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.consumers.settings import RolloutSettings
from retuned.monitors.money import ledger
from retuned.monitors.settings import RoiSettings
from retuned.monitors.settings import Settings as MonitorSettings
from retuned.monitors.watch import canary
from retuned.retrain import versions
from retuned.retrain.decision import judge
from retuned.retrain.release import deployments, shadow
from retuned.retrain.release.rollout import Rollout
from retuned.retrain.release.routes import Arm, routes, under_way
from retuned.retrain.release.served import served_routes
from retuned.retrain.scoring.exact import Exact
from retuned.retrain.settings import EvaluateSettings, MetricSettings, ModelsSettings, Settings
from retuned.retrain.versions import QUERIES

MINUTE = timedelta(minutes=1)
NOW = datetime(2026, 4, 1, 12)
DAY = timedelta(days=1)
TOKENS = 0.001
LABELS = ("refund", "delivery", "billing")
REFUND: dict[str, Any] = {
    "id": "1", "type": "function", "function": {"name": "refund", "arguments": '{"order": 7}'}
}  # fmt: skip


class Release:
    """v1 serves, and v2 is asked in shadow since NOW."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.warehouse, self.publisher = new_warehouse(folder), MemoryPublisher()
        for version in ("v1", "v2"):
            registered(self.warehouse, version)
        self.settings = Settings(
            models=ModelsSettings(directory=folder / "models"),
            rollout=RolloutSettings(steps=(0.05, 1.0), shadow=0.2, minimum_answers=100),
            metric=MetricSettings(name="label", labels=LABELS),
            **settings,
        )
        self.rollout = Rollout(self.warehouse, self.settings, self.publisher, "events")
        self.rollout.promote("support", "v1", "operator", "the first", NOW - DAY)
        self.begun = self.rollout.begin("support", "v2", "gate", "better", NOW)
        self.rollout.follow_up("support")
        self.asked = 0

    def ask(self, champion: str, candidate: str, times: int = 1, **of: Any) -> list[str]:
        """Answers of both to the same questions; returns the ids of the champion's."""
        rng = random.Random(self.asked)
        rows = answered(
            [f"question {self.asked + number}" for number in range(times)], rng, start=NOW + MINUTE, step=timedelta(0),
            response=champion, offset=self.asked, **{"model": "support@v1", "context": None} | of,
        )  # fmt: skip
        self.asked += times
        store(self.warehouse, "interactions", rows)
        value = {"model": "support@v2", "response": candidate, "input_tokens": 30, "output_tokens": 2}
        place = {"topic": "feedback", "partition": 0, "received_at": NOW + MINUTE}
        about = {"name": "shadow_answer", "source": "app", "value": json.dumps(value)}
        store(self.warehouse, "shadow_answers", [
            {"id": f"s-{row['id']}", "interaction_id": row["id"], "timestamp": NOW + MINUTE, "offset": number}
            | place | about
            for number, row in enumerate(rows, self.asked)
        ])  # fmt: skip
        return [str(row["id"]) for row in rows]

    def judge(self) -> int:
        return shadow.judge_pairs(self.warehouse, self.settings, "support", NOW + 2 * MINUTE)

    def scores(self) -> list[tuple[str, float | None, float | None]]:
        rows = self.warehouse.rows("SELECT * FROM shadow_scores ORDER BY interaction_id")
        return [(row["scorer"], row["champion"], row["candidate"]) for row in rows]

    def look(self, after: timedelta = DAY) -> canary.CanaryCheck:
        own = MonitorSettings(rollout=self.settings.rollout)
        found = canary.check(self.warehouse, own, "support", NOW + after)
        assert found is not None
        return found


@pytest.fixture
def release(tmp_path: Path) -> Iterator[Release]:
    made = Release(tmp_path)
    yield made
    made.warehouse.close()


def test_it_is_loaded_and_answers_nobody_until_it_takes_its_first_step(release: Release) -> None:
    assert release.begun == 0
    (route,) = routes(release.warehouse)
    assert route.arms == (Arm("v2", 0.0), Arm("v1", 1.0))
    served = served_routes(release.warehouse, release.settings, [])["support"]
    units = [f"c-{number}" for number in range(500)]
    assert {served.arm(unit).arm for unit in units} == {"champion"}
    asked = {unit for unit in units if served.shadowed_by(unit) is not None}
    assert 60 < len(asked) < 140
    assert {served.shadowed_by(unit) for unit in asked} == {served.arms[0]}
    message = release.publisher.messages[-1][2]
    assert (message["event"], message["model"], message["share"]) == ("canary", "support@v2", 0.0)
    assert versions.aliases(release.warehouse, "support") == {"champion": "v1", "previous": None, "canary": "v2"}
    with pytest.raises(RetunedError, match="is asked in shadow, and answers none"):
        release.rollout.begin("support", "v2", "gate", "again", NOW)

    # It is not drained, however long it takes, and the first step goes to those it was asked for.
    late = NOW + 30 * DAY
    kept = deployments.drain(release.warehouse, release.settings, deployments.deployments(release.warehouse), late)
    assert {one.version: one.share for one in kept} == {"v1": 1.0, "v2": 0.0}
    running = under_way(release.warehouse, "support")
    assert running is not None
    assert release.rollout.advance("support", running.id, 0.0, "as good", NOW + DAY) == 0.05
    served = served_routes(release.warehouse, release.settings, [])["support"]
    assert served.shadow == 0
    assert {unit for unit in units if served.arm(unit).arm == "canary"} <= asked
    assert not any(served.shadowed_by(unit) for unit in units)


def test_the_time_in_shadow_is_none_of_the_canarys(release: Release) -> None:
    running = under_way(release.warehouse, "support")
    assert running is not None
    began = NOW + 20 * DAY
    release.rollout.advance("support", running.id, 0.0, "its time is over", began)
    assert release.look(20 * DAY + 2 * DAY).verdict == "hold"
    assert release.look(20 * DAY + 7 * DAY).reasons[0].startswith("the time of the step is over")


def test_each_pair_is_judged_by_the_first_that_can_tell(release: Release) -> None:
    (alike,) = release.ask("refund", "Refund.")
    (corrected,) = release.ask("refund", "delivery")
    feedback(release.warehouse, [corrected], "correction", "delivery", source="expert", when=NOW + MINUTE)
    (approved,) = release.ask("billing", "delivery")
    feedback(release.warehouse, [approved], "helpful", True, when=NOW + MINUTE, offset=1)
    (broken,) = release.ask("billing", "I am only a model.")
    (differing,) = release.ask("billing", "refund")
    assert release.judge() == 5
    expected = [("alike", 1, 1), ("metric", 0, 1), ("metric", 1, 0), ("form", 1, 0), ("unknown", None, None)]
    assert release.scores() == expected
    assert release.judge() == 0
    feedback(release.warehouse, [differing], "helpful", True, when=NOW + MINUTE, offset=2)
    assert release.judge() == 1
    assert release.scores() == [*expected[:-1], ("metric", 1, 0)]
    assert not list((release.settings.models.directory).rglob("*.job.json"))
    assert {alike, broken} & {row["interaction_id"] for row in release.warehouse.rows("SELECT * FROM shadow_scores")}


@pytest.mark.parametrize(
    ("metric", "champion", "calls", "candidate"),
    [
        ("tool_calls", "", True, "I cannot help with that."),
        ("tool_calls", "I refund order 7.", True, "I refund your order 7."),
        ("exact", "<think>The user wants money back.</think>refund", False, "delivery"),
    ],
)
def test_the_approved_answer_is_the_one_that_is_compared(
    release: Release, metric: Any, champion: str, calls: bool, candidate: str
) -> None:
    release.settings = release.settings.model_copy(update={"metric": MetricSettings(name=metric)})
    attributes = json.dumps({"tool_calls": [REFUND]}) if calls else None
    ids = release.ask(champion, candidate, attributes=attributes)
    feedback(release.warehouse, ids, "helpful", True, when=NOW + MINUTE)
    assert release.judge() == 1
    assert release.scores() == [("metric", 1, 0)]


def test_calls_of_tools_that_were_not_offered_cannot_be_read(release: Release) -> None:
    release.settings = release.settings.model_copy(update={"metric": MetricSettings(name="tool_calls")})
    offered = [{"type": "function", "function": {"name": "refund", "parameters": {}}}]
    release.ask("", "", attributes=json.dumps({"tool_calls": [REFUND], "tools": offered}))
    other = REFUND | {"function": {"name": "delete_all", "arguments": "{}"}}
    answer = {"model": "support@v2", "response": "", "tool_calls": [other]}
    release.warehouse.execute("UPDATE shadow_answers SET value = ?", [json.dumps(answer)])
    assert release.judge() == 1
    assert release.scores() == [("form", 1, 0)]


def test_a_conversation_counts_once_and_what_others_answered_does_not(release: Release) -> None:
    release.ask("refund", "refund", 3, conversation_id="c-1")
    release.ask("refund", "refund", 1, conversation_id="c-2")
    release.ask("refund", "delivery", 1, model="support@v0")
    release.ask("refund", "delivery", 1, workload="other")
    assert release.judge() == 2
    assert release.judge() == 0


def test_a_judge_decides_where_nobody_said_what_is_right(tmp_path: Path) -> None:
    with serving() as server:
        server.reply = prefers("within 30 days")
        evaluate = EvaluateSettings(judge_url=server.url, judge_model="wise", judge_timeout_seconds=10)
        release = Release(tmp_path, evaluate=evaluate)
        release.settings = release.settings.model_copy(update={"metric": MetricSettings(name="exact")})
        release.ask("within 30 days", "never", 2)
        release.ask("never", "within 30 days")
        release.ask("never", "perhaps")
        assert release.judge() == 4
        assert release.scores() == [("judge", 1, 0), ("judge", 1, 0), ("judge", 0, 1), ("judge", 1, 1)]
        server.reply = lambda _: 500
        release.ask("later", "never")
        release.judge()
        assert len(release.scores()) == 4
        server.reply = prefers("within 30 days")
        release.judge()
        assert len(release.scores()) == 5
    release.warehouse.close()


def test_what_nothing_can_decide_does_not_keep_the_rest_from_being_judged(
    release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though people approved it: it is judged again when there is new feedback, and only then."""
    monkeypatch.setattr(shadow, "MOST_AT_ONCE", 4)
    release.settings = release.settings.model_copy(update={"metric": MetricSettings(name="facts")})
    said = "Please talk to our friendly team about it.", "You should kindly contact the support people."
    undecided = release.ask(*said, times=5)
    feedback(release.warehouse, undecided, "helpful", True, when=NOW + MINUTE)
    release.ask("Our team will help.", "Our team will help.", times=6)
    assert [release.judge() for _ in range(4)] == [4, 4, 3, 0]
    assert sorted(scorer for scorer, _, _ in release.scores()) == ["alike"] * 6 + ["unknown"] * 5
    # The feedback comes before the next look begins, and is stored after it: it counts in the one after that.
    right = "It takes 30 days."
    feedback(release.warehouse, undecided[:1], "correction", right, source="expert", when=NOW + 1.5 * MINUTE, offset=9)
    assert [release.judge(), release.judge()] == [1, 0]


def test_pairs_on_which_the_judge_gives_no_verdict_do_not_block_the_others(tmp_path: Path) -> None:
    with serving() as server:
        honest = prefers("30 days")
        server.reply = lambda shown: 400 if "too long" in shown else honest(shown)
        evaluate = EvaluateSettings(judge_url=server.url, judge_model="wise", judge_timeout_seconds=10)
        release = Release(tmp_path, evaluate=evaluate)
        release.settings = release.settings.model_copy(update={"metric": MetricSettings(name="exact")})
        release.ask("too long for it", "never", 12)
        release.ask("within 30 days", "never", 12)
        for look in range(20):
            shadow.judge_pairs(release.warehouse, release.settings, "support", NOW + (2 + look) * MINUTE)
            if len(release.scores()) == 12:
                break
        assert release.scores() == [("judge", 1, 0)] * 12
    release.warehouse.close()


@pytest.mark.full
def test_what_a_slow_judge_had_time_for_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the daemon ends meanwhile, so that nothing is paid for twice."""
    monkeypatch.setattr(shadow, "BEGUN_WITHIN", 2 / shadow.LONGEST_SECONDS)
    stop, honest = threading.Event(), prefers("30 days")

    def slowly(shown: str) -> str | int | None:
        time.sleep(0.2)
        if len(server.asked) >= stop_after:
            stop.set()
        return honest(shown)

    with serving() as server:
        stop_after = 10**6
        server.reply = slowly
        evaluate = EvaluateSettings(judge_url=server.url, judge_model="wise", judge_timeout_seconds=10)
        release = Release(tmp_path, evaluate=evaluate)
        release.settings = release.settings.model_copy(update={"metric": MetricSettings(name="exact")})
        release.ask("within 30 days", "never", 100)
        release.judge()
        known = len(release.scores())
        assert 0 < known < 100
        stop_after = len(server.asked) + 20
        with pytest.raises(Cancelled):
            shadow.judge_pairs(release.warehouse, release.settings, "support", NOW + 3 * MINUTE, stop)
        assert known + 4 < len(release.scores()) < 100
        # Of those that were paid for, only the answers that were under way at the end are lost.
        assert len(server.asked) - 2 * len(release.scores()) <= 2 * 8
        assert not list((release.settings.models.directory).rglob("*.job.json"))
    release.warehouse.close()


def test_a_slow_judge_leaves_no_more_of_what_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of pairs of which every second is alike, not mostly these have scores when time runs out."""

    def compared(shown: list[judge.Pair], *_: Any) -> judge.Opinion:
        time.sleep(0.1)
        return judge.Opinion({shown[0].row_id: "loss"})

    monkeypatch.setattr(judge, "compare", compared)
    pair = {"response": "a", "calls": None, "messages": "[]", "context": None, "tools": None}
    pair |= {"correction": None, "helpful": False}
    pairs = [pair | {"answer": json.dumps({"response": response})} for response in ("a", "b") * 100]
    passed_on = dict[int, shadow.Judged]()
    settings = EvaluateSettings(judge_url="http://nowhere.example", judge_model="wise")
    scored = shadow.judged(pairs, Exact(), settings, "", None, seconds=1.0, on_score=passed_on.__setitem__)
    known = [number for number, one in enumerate(scored) if one is not None]
    assert sorted(passed_on) == known
    by_judge = sum(one is not None and one.scorer == "judge" for one in scored)
    assert 4 <= by_judge < 100
    assert len(known) - by_judge <= by_judge + 1


def test_a_worse_one_is_taken_back_before_anybody_saw_it(release: Release) -> None:
    release.ask("refund", "refund", 60)
    spoiled = release.ask("refund", "delivery", 40)
    feedback(release.warehouse, spoiled, "helpful", True, when=NOW + MINUTE)
    release.judge()
    found = release.look(timedelta(hours=1))
    assert (found.verdict, found.share, found.answers) == ("roll_back", 0.0, 100)
    (comparison,) = found.comparisons
    assert (comparison.metric, comparison.bad_before, comparison.bad_after) == ("shadow", 0, 40)
    assert canary.latest(release.warehouse, found.experiment) == found
    assert release.rollout.rollback("support", "rollout", found.reasons[0], NOW + DAY, of="v2") == "v1"
    assert release.warehouse.rows("SELECT state, share FROM rollouts") == [{"state": "rolled_back", "share": 0.0}]
    given = {"workload": "support", "version": "v2"}
    assert release.warehouse.row(QUERIES["taken_back"], given) is not None


def test_one_that_answers_alike_takes_its_first_step_and_a_rollout_has_one_error(release: Release) -> None:
    release.ask("refund", "refund", 150)
    release.judge()
    assert release.look(timedelta(hours=1)).verdict == "hold"
    found = release.look()
    assert (found.verdict, found.answers) == ("advance", 150)
    release.rollout.advance("support", found.experiment, 0.0, found.reasons[0], NOW + DAY)
    assert release.look(DAY + MINUTE).verdict == "hold"
    assert [row["verdict"] for row in release.warehouse.rows("SELECT verdict FROM rollout_checks")].count("hold") == 2


def test_only_the_shadow_and_the_ledger_read_what_was_answered_in_shadow(release: Release) -> None:
    before = _tables(release)
    release.ask("refund", "delivery", 5)
    release.judge()
    after = _tables(release)
    assert {name for name in after if after[name] != before[name]} <= {
        *("interactions", "batches", "shadow_answers", "shadow_scores")
    }
    roi = RoiSettings(token_cost=TOKENS)
    booked = ledger.book(release.warehouse, MonitorSettings(roi=roi), NOW + DAY)
    items = {entry.item: (entry.version, entry.quantity, entry.kind) for entry in booked}
    assert items == {"inference": ("v1", 150, "cost"), "shadow": ("v2", 160, "cost")}
    assert "shadow" not in {
        one.item for one in ledger.book(release.warehouse, MonitorSettings(roi=roi), NOW + DAY + MINUTE)
    }


def _tables(release: Release) -> dict[str, int]:
    names = [row["name"] for row in release.warehouse.rows("SELECT table_name AS name FROM duckdb_tables()")]
    return {
        name: release.warehouse.rows(f"SELECT coalesce(sum(hash({name})), 0)::VARCHAR AS n FROM {name}")[0]["n"]
        for name in names
    }


def test_answers_in_shadow_are_deleted_once_their_rollout_has_ended(release: Release) -> None:
    release.ask("refund", "refund", 3)
    release.judge()
    assert (
        shadow.remove(release.warehouse, NOW + DAY),
        shadow.remove_scores(release.warehouse, ["support"], NOW + DAY),
    ) == (0, 0)
    release.rollout.rollback("support", "operator", "no", NOW + 2 * MINUTE)
    assert (shadow.remove(release.warehouse, NOW), shadow.remove_scores(release.warehouse, ["support"], NOW)) == (0, 0)
    assert (
        shadow.remove(release.warehouse, NOW + DAY),
        shadow.remove_scores(release.warehouse, ["support"], NOW + DAY),
    ) == (3, 3)
