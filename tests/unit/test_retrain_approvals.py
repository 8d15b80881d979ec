"""Where a person has to approve it, what the gate passed waits: who decides what, once, and what is made of it."""

import errno
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from fixtures.daemon.promoting import model_row
from fixtures.feedback.traffic import new_warehouse
from retuned.consumers.errors import BrokerUnavailable, RetunedError
from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.consumers.settings import RolloutSettings
from retuned.daemon.settings import Settings as DaemonSettings
from retuned.monitors.settings import Settings as MonitorSettings
from retuned.monitors.watch.check import check
from retuned.retrain import versions
from retuned.retrain.metrics import Metrics
from retuned.retrain.release import approvals, approve, card, retention, rollout
from retuned.retrain.release.approvals import Approval, Verdict
from retuned.retrain.release.rollout import Rollout
from retuned.retrain.release.routes import under_way
from retuned.retrain.settings import ModelsSettings, Settings

NOW = datetime(2026, 4, 1, 12)
DAY = timedelta(days=1)
OLD, NEW, NEWER = "aaaaaaaa", "bbbbbbbb", "cccccccc"


class Gate:
    """A workload with a champion, and a gate that passes other versions."""

    def __init__(self, folder: Path, **rules: Any) -> None:
        self.warehouse, self.publisher, self.now = new_warehouse(folder), MemoryPublisher(), NOW
        models = ModelsSettings(directory=folder / "models", base=folder / "base")
        rollout = RolloutSettings(approve="required", approve_within_seconds=2 * 86_400, **rules)
        self.settings = Settings(models=models, rollout=rollout)
        self.collectors = CollectorRegistry()
        self.metrics = Metrics(self.collectors)
        self.rollout = Rollout(self.warehouse, self.settings, self.publisher, "events", self._show)
        for number, version in enumerate((OLD, NEW, NEWER)):
            path = models.directory / "support" / version
            path.mkdir(parents=True)
            self.warehouse.insert("models", **model_row(version, path, NOW + number * timedelta(minutes=1)))

    def _show(self, workload: str) -> None:
        self.metrics.aliases(self.warehouse, workload)

    def passes(self, version: str = NEW, run_id: str | None = None) -> Approval:
        run_id = run_id or f"run-{version}"
        champion = versions.aliases(self.warehouse, "support").get("champion")
        made = approve.request(self.rollout, "support", version, champion, run_id, self.now)
        self.rollout.follow_up("support")
        return made

    def decide(
        self, request: Approval, state: Any = "approved", actor: str = "alice", reason: str = "fine"
    ) -> Approval:
        return approve.decide(self.rollout, Verdict(request.id, state, actor, reason), self.now)

    def promote(self, version: str) -> None:
        self.rollout.promote("support", version, "operator", "by hand", self.now)

    def champion(self) -> str | None:
        return versions.aliases(self.warehouse, "support").get("champion")

    def states(self) -> dict[str, str]:
        return {row["version"]: row["state"] for row in self.warehouse.rows("SELECT version, state FROM approvals")}

    def messages(self) -> list[dict[str, Any]]:
        assert {(topic, key) for topic, key, _ in self.publisher.messages} <= {("events", "support")}
        return [message for _, _, message in self.publisher.messages]

    def card(self, version: str) -> str:
        return (self.settings.models.directory / "support" / version / "README.md").read_text()

    def metric(self, name: str) -> float | None:
        return self.collectors.get_sample_value(name, {"workload": "support"})


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    made = Gate(tmp_path)
    yield made
    made.warehouse.close()


def test_what_waits_is_not_in_service_and_is_announced_once(gate: Gate) -> None:
    gate.promote(OLD)
    request = gate.passes()
    assert gate.rollout.follow_up("support") == 0
    assert gate.champion() == OLD
    assert (request.state, request.champion, request.expires_at) == ("waiting", OLD, NOW + 2 * DAY)
    assert gate.metric("retuned_approvals_waiting") == 1
    assert (
        gate.metric("retuned_approval_expiry_timestamp_seconds")
        == (NOW + 2 * DAY - datetime(1970, 1, 1)).total_seconds()
    )
    promoted, asked = gate.messages()
    assert (asked["id"], asked["event"]) == (request.id, "approval_requested")
    assert asked["approval"] == {
        "id": request.id, "kind": "version", "version": NEW, "model": f"support@{NEW}",
        "expires_at": "2026-04-03T12:00:00.000Z", "actor": None, "reason": None,
    }  # fmt: skip
    # Who reads no event but only what serves, and a compacted topic, go on with the champion.
    serving = ("workload", "model", "version", "previous_version", "path", "base_model", "share")
    assert {name: asked[name] for name in serving} == {name: promoted[name] for name in serving}
    assert asked["version"] == OLD


def test_a_first_version_waits_beside_the_base_model(gate: Gate) -> None:
    gate.passes()
    (asked,) = gate.messages()
    assert (asked["model"], asked["version"], asked["path"]) == ("support@base", None, None)
    assert asked["base_model"] == str(gate.settings.models.base)
    assert gate.rollout.changed() == ["support"]  # the announcement is tried again by the job


def test_an_announcement_waits_for_the_broker_unless_the_request_is_settled_before(gate: Gate) -> None:
    def away(*_: Any) -> None:
        raise BrokerUnavailable("kafka: it does not answer")

    publish, gate.publisher.publish = gate.publisher.publish, away  # type: ignore[method-assign]
    with pytest.raises(BrokerUnavailable):
        gate.passes()
    gate.publisher.publish = publish  # type: ignore[method-assign]
    assert gate.rollout.follow_up("support") == 1
    assert [message["event"] for message in gate.messages()] == ["approval_requested"]
    gate.publisher.publish = away  # type: ignore[method-assign]
    with pytest.raises(BrokerUnavailable):
        gate.passes(NEWER)
    (request,) = approvals.waiting(gate.warehouse, "support")
    gate.decide(request)
    gate.publisher.publish = publish  # type: ignore[method-assign]
    gate.rollout.follow_up("support")
    assert [message["event"] for message in gate.messages()] == ["approval_requested", "promoted"]


def test_who_approves_promotes_as_the_gate_would_have_and_the_watch_watches(gate: Gate) -> None:
    gate.promote(OLD)
    request = gate.passes()
    gate.now += DAY
    settled = gate.decide(request, reason="the answers on returns are right now")
    assert (settled.state, settled.actor, settled.decided_at) == ("approved", "alice", NOW + DAY)
    assert gate.champion() == NEW
    change = gate.warehouse.rows("SELECT * FROM promotions ORDER BY created_at")[-1]
    assert (change["event"], change["version"], change["previous_version"]) == ("promoted", NEW, OLD)
    assert (change["actor"], change["announced"]) == ("approver", True)
    assert change["reason"] == "(approved by alice: the answers on returns are right now)"
    assert gate.metric("retuned_approvals_waiting") == 0
    assert gate.metric("retuned_approval_expiry_timestamp_seconds") is None
    seen = check(gate.warehouse, MonitorSettings(), "support", NOW + 2 * DAY)
    assert seen is not None
    assert (seen.version, seen.previous_version) == (NEW, OLD)
    gate.promote(NEWER)  # by hand: no watch
    assert check(gate.warehouse, MonitorSettings(), "support", NOW + 3 * DAY) is None


def test_the_reason_of_the_gate_stands_with_that_of_the_person(gate: Gate) -> None:
    request = gate.passes()
    decided = {"id": "d", "created_at": NOW, "workload": "support", "kind": "gate", "outcome": True, "figures": "{}"}
    gate.warehouse.insert("decisions", **decided, run_id=request.run_id, reasons='["It scores 0.9.", "more"]')
    gate.decide(request)
    (change,) = gate.warehouse.rows("SELECT reason FROM promotions")
    assert change["reason"] == "It scores 0.9. (approved by alice: fine)"


def test_approval_begins_the_rollout_where_there_are_steps(tmp_path: Path) -> None:
    gate = Gate(tmp_path, steps=(0.25, 1.0))
    gate.promote(OLD)
    gate.decide(gate.passes())
    assert (gate.states(), gate.champion()) == ({NEW: "approved"}, OLD)
    running = under_way(gate.warehouse, "support")
    assert running is not None
    assert (running.version, running.previous_version, running.share) == (NEW, OLD, 0.25)
    change = gate.warehouse.rows("SELECT event, version, actor FROM promotions ORDER BY created_at, rowid")[-1]
    assert change == {"event": "canary", "version": NEW, "actor": "approver"}
    gate.rollout.advance("support", running.id, 0.25, "no harm is shown", NOW + DAY)
    assert gate.champion() == NEW
    seen = check(gate.warehouse, MonitorSettings(), "support", NOW + 2 * DAY)
    assert seen is not None
    assert seen.version == NEW
    gate.warehouse.close()


def test_approval_and_promotion_are_written_together_or_not_at_all(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    request, insert = gate.passes(), rollout.insert

    def killed(cursor: Any, table: str, **values: Any) -> None:
        if table == "promotions":
            raise KeyboardInterrupt
        insert(cursor, table, **values)

    with monkeypatch.context() as patch:
        patch.setattr(rollout, "insert", killed)
        with pytest.raises(KeyboardInterrupt):
            gate.decide(request)
    assert (gate.states(), gate.champion()) == ({NEW: "waiting"}, None)
    gate.decide(request)
    assert (gate.states(), gate.champion()) == ({NEW: "approved"}, NEW)


def test_what_is_refused_is_kept_and_not_offered_again(gate: Gate) -> None:
    gate.promote(OLD)
    request = gate.passes()
    settled = gate.decide(request, "refused", "bob", "it is rude")
    assert str(settled) == f"approval of support@{NEW}: refused by bob at 2026-04-01 12:00 UTC: it is rude"
    assert (gate.champion(), gate.states()) == (OLD, {NEW: "refused"})
    again = gate.passes(NEW, "another run")
    assert (again.id, again.state) == (request.id, "refused")
    assert gate.passes(NEWER).state == "waiting"
    gate.promote(NEW)  # a person may, by hand
    assert (gate.champion(), gate.states()) == (NEW, {NEW: "refused", NEWER: "superseded"})


def test_what_is_refused_and_what_nobody_decided_on_is_announced_once(gate: Gate) -> None:
    gate.promote(OLD)
    refused = gate.passes()
    gate.now += timedelta(hours=1)
    gate.decide(refused, "refused", "bob", "it is rude")
    expired = gate.passes(NEWER)
    approve.expire(gate.rollout, expired.expires_at + timedelta(minutes=1))
    assert gate.rollout.follow_up("support") == 0
    promoted, _, first, _, second = gate.messages()
    assert (first["event"], first["timestamp"]) == ("approval_refused", "2026-04-01T13:00:00.000Z")
    assert first["approval"] == {
        "id": refused.id, "kind": "version", "version": NEW, "model": f"support@{NEW}",
        "expires_at": "2026-04-03T12:00:00.000Z", "actor": "bob", "reason": "it is rude",
    }  # fmt: skip
    assert first["reason"].endswith(": refused by bob at 2026-04-01 13:00 UTC: it is rude")
    assert (second["event"], second["timestamp"]) == ("approval_expired", "2026-04-03T13:00:00.000Z")
    assert (second["approval"]["id"], second["approval"]["actor"]) == (expired.id, None)
    assert len({message["id"] for message in gate.messages()}) == 5
    assert first["version"] == second["version"] == promoted["version"] == OLD  # what serves has not changed


def test_messages_that_waited_for_the_broker_come_in_their_order_with_what_served_then(tmp_path: Path) -> None:
    def away(*_: Any) -> None:
        raise BrokerUnavailable("kafka: it does not answer")

    gate = Gate(tmp_path, steps=(0.25, 1.0))
    gate.promote(OLD)
    request = gate.passes()
    publish, gate.publisher.publish = gate.publisher.publish, away  # type: ignore[method-assign]
    gate.now += DAY
    gate.decide(request, "refused", "bob", "no")
    gate.now += DAY
    gate.rollout.begin("support", NEWER, "gate", "it is better", gate.now)
    gate.publisher.publish = publish  # type: ignore[method-assign]
    assert gate.rollout.follow_up("support") == 2
    assert [(message["event"], message["version"], message["share"]) for message in gate.messages()[1:]] == [
        ("approval_requested", OLD, 1.0), ("approval_refused", OLD, 1.0), ("canary", NEWER, 0.25),
    ]  # fmt: skip
    gate.warehouse.close()


def test_each_message_names_the_champion_whatever_it_is_about(tmp_path: Path) -> None:
    """A compacted topic may hold the last message alone, and it may be about a canary."""
    gate = Gate(tmp_path, steps=(0.25, 1.0))
    first = gate.passes()
    gate.promote(OLD)
    gate.rollout.begin("support", NEW, "gate", "it is better", gate.now)
    gate.rollout.follow_up("support")
    gate.passes(NEWER)
    folder = tmp_path / "models" / "support"
    base, old = (
        {"model": f"support@{name}", "path": path} for name, path in (("base", None), (OLD, f"{folder / OLD}"))
    )
    assert first.version == NEW
    assert [(message["event"], message["champion"]) for message in gate.messages()] == [
        ("approval_requested", base), ("promoted", old), ("canary", old), ("approval_requested", old),
    ]  # fmt: skip
    gate.warehouse.close()


def test_changes_that_a_follower_stored_in_another_order_are_announced_in_that_of_their_times(gate: Gate) -> None:
    """Followers of a cluster store rows by their ids."""
    gate.promote(OLD)
    gate.now += DAY
    gate.promote(NEW)
    with gate.warehouse.transaction() as cursor:
        cursor.execute("CREATE TEMP TABLE others AS FROM promotions ORDER BY created_at DESC")
        cursor.execute("DELETE FROM promotions")
        cursor.execute(
            "INSERT INTO promotions SELECT * REPLACE (false AS announced) FROM others ORDER BY created_at DESC"
        )
    earlier = len(gate.messages())
    assert gate.rollout.follow_up("support") == 2
    assert [message["version"] for message in gate.messages()[earlier:]] == [OLD, NEW]


def test_a_refusal_is_announced_though_it_came_while_the_request_was(gate: Gate) -> None:
    publish = gate.publisher.publish

    def decided_meanwhile(topic: str, key: str, message: dict[str, Any]) -> None:
        publish(topic, key, message)
        (request,) = approvals.waiting(gate.warehouse, "support")
        with gate.warehouse.transaction() as cursor:
            approvals.settle(cursor, Verdict(request.id, "refused", "bob", "no"), gate.now)

    gate.publisher.publish = decided_meanwhile  # type: ignore[method-assign]
    gate.passes()
    gate.publisher.publish = publish  # type: ignore[method-assign]
    gate.rollout.follow_up("support")
    assert [message["event"] for message in gate.messages()] == ["approval_requested", "approval_refused"]


def test_the_model_card_names_who_decided_when_and_why(gate: Gate) -> None:
    gate.decide(gate.passes(), reason="the answers\non returns are right")
    gate.now += DAY
    gate.decide(gate.passes(NEWER), "refused", "bob", "it is rude")
    said = "**Approved by alice** on 2026-04-01 at 12:00 UTC: the answers on returns are right"
    assert said in gate.card(NEW).splitlines()
    assert "**Refused by bob** on 2026-04-02 at 12:00 UTC: it is rude" in gate.card(NEWER).splitlines()


def test_a_card_that_cannot_be_written_is_written_later(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    request = gate.passes()
    with monkeypatch.context() as patch:
        patch.setattr(card, "replace_text", full)
        gate.decide(request, "refused", "bob", "no")
        with pytest.raises(OSError, match="No space"):
            gate.rollout.follow_up("support")
    assert gate.rollout.follow_up("support") == 1
    assert "**Refused by bob**" in gate.card(NEW)
    assert gate.messages()[-1]["event"] == "approval_refused"


def test_a_refusal_that_is_announced_late_repeats_what_serves_by_then(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    gate.promote(OLD)
    request = gate.passes()
    with monkeypatch.context() as patch:
        patch.setattr(card, "replace_text", full)
        gate.now += timedelta(hours=1)
        gate.decide(request, "refused", "bob", "no")
        gate.now += timedelta(hours=1)
        gate.promote(NEWER)
    gate.now += timedelta(hours=1)
    gate.rollout.follow_up("support")
    assert [(message["event"], message["version"]) for message in gate.messages()] == [
        ("promoted", OLD), ("approval_requested", OLD), ("promoted", NEWER), ("approval_refused", NEWER),
    ]  # fmt: skip
    assert gate.messages()[-1]["approval"]["version"] == NEW


def test_the_same_verdict_again_changes_nothing_and_another_one_is_an_error(gate: Gate) -> None:
    request = gate.passes()
    first = gate.decide(request)
    gate.now += DAY
    assert gate.decide(request) == replace(first, announced=True)
    assert len(gate.warehouse.rows("SELECT * FROM promotions")) == 1
    for state, actor, reason in (("refused", "alice", "fine"), ("approved", "bob", "fine"), ("approved", "alice", "?")):
        with pytest.raises(RetunedError, match=f"approval of support@{NEW}: approved by alice .*: fine; nothing is"):
            gate.decide(request, state, actor, reason)
    with pytest.raises(RetunedError, match="approval 1: unknown"):
        approve.decide(gate.rollout, Verdict("1", "approved", "alice", "fine"), NOW)


def test_of_two_who_decide_at_once_one_wins(gate: Gate) -> None:
    people = ("alice", "bob", "carol", "dave")
    for turn in range(5):
        gate.promote(OLD)
        request, start = gate.passes(NEW, f"run {turn}"), threading.Barrier(len(people))

        def decide(actor: str, request: Approval = request, start: threading.Barrier = start) -> str | None:
            start.wait()
            try:
                return gate.decide(request, "approved", actor).actor
            except RetunedError:
                return None

        with ThreadPoolExecutor(len(people)) as pool:
            winners = [actor for actor in pool.map(decide, people) if actor]
        assert len(winners) == 1
        settled = approvals.find(gate.warehouse, request.id)
        assert settled is not None
        assert (settled.state, settled.actor) == ("approved", winners[0])
        assert len(gate.warehouse.rows("SELECT * FROM promotions")) == 2 * (turn + 1)


def test_nobody_decides_while_somebody_else_does(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    request, begin, others = gate.passes(), Rollout.begin, list[Future[Approval]]()

    def begun(*given: Any) -> float:
        others.append(pool.submit(gate.decide, request, "refused", "bob"))
        wait(others, timeout=1)  # the other one waits for this one, however long
        return begin(*given)

    monkeypatch.setattr(Rollout, "begin", begun)
    with ThreadPoolExecutor(1) as pool:
        gate.decide(request)
        with pytest.raises(RetunedError, match="approved by alice"):
            others[0].result()
    assert (gate.states(), gate.champion()) == ({NEW: "approved"}, NEW)


def test_what_waits_gives_way_to_what_passes_after_it(gate: Gate) -> None:
    request = gate.passes()
    newer = gate.passes(NEWER)
    assert gate.states() == {NEW: "superseded", NEWER: "waiting"}
    with pytest.raises(RetunedError, match=f"superseded at .*: support@{NEWER} passed the gate after it; nothing"):
        gate.decide(request)
    gate.decide(newer)
    assert gate.champion() == NEWER


@pytest.mark.parametrize("how", ["promoted", "rolled back", "promoted by hand"])
def test_what_waits_gives_way_to_another_champion_as_it_was_not_compared_with_that(gate: Gate, how: str) -> None:
    gate.promote(NEWER)
    gate.promote(OLD)
    request = gate.passes()
    if how == "rolled back":
        gate.rollout.rollback("support", "watch", "it is worse", NOW)
    else:
        gate.promote(NEW if how == "promoted by hand" else NEWER)
    assert gate.states() == {NEW: "superseded"}
    champion = gate.champion()
    with pytest.raises(RetunedError, match=f"superseded at .*: support@{champion} came into service "):
        gate.decide(request)
    assert gate.champion() == champion


def test_another_workload_is_not_touched(gate: Gate) -> None:
    request = gate.passes()
    other = approve.request(gate.rollout, "sales", NEW, None, "run-sales", NOW)
    gate.decide(request)
    assert [one.state for one in (approvals.find(gate.warehouse, other.id),) if one] == ["waiting"]


def test_after_its_time_nobody_can_approve_it_but_promote_it_by_hand(gate: Gate) -> None:
    request = gate.passes()
    gate.now = request.expires_at - timedelta(seconds=1)
    approve.expire(gate.rollout, gate.now)
    assert gate.states() == {NEW: "waiting"}
    gate.now = request.expires_at
    with pytest.raises(RetunedError, match=r"expired at 2026-04-03 12:00 UTC; nothing is changed"):
        gate.decide(request)  # whether the job has run or not
    assert (gate.champion(), gate.states()) == (None, {NEW: "expired"})
    assert gate.passes(NEW, "another run").state == "waiting"
    gate.now += 3 * DAY
    approve.expire(gate.rollout, gate.now)
    assert gate.metric("retuned_approvals_waiting") == 0
    gate.promote(NEW)
    assert gate.champion() == NEW


def test_a_run_that_is_taken_up_again_makes_no_second_request(gate: Gate) -> None:
    request = gate.passes()
    assert gate.passes() == approvals.find(gate.warehouse, request.id)
    gate.decide(request, "refused")
    assert gate.passes().state == "refused"
    assert len(gate.warehouse.rows("SELECT * FROM approvals")) == 1


def test_retention_keeps_what_waits(gate: Gate) -> None:
    gate.promote(OLD)
    request = gate.passes()

    def kept() -> set[str]:
        retention.remove(gate.warehouse, gate.settings, "support", NOW + 30 * DAY, 1, None)
        return {
            version.version for version in versions.versions_of(gate.warehouse, "support") if not version.removed_at
        }

    assert kept() == {OLD, NEW, NEWER}
    gate.decide(request, "refused")
    assert kept() == {OLD, NEWER}


def test_the_list_has_what_waits_first_with_what_the_gate_found(gate: Gate) -> None:
    gate.decide(gate.passes(), "refused")
    gate.now += DAY
    request = gate.passes(NEWER)
    approve.request(gate.rollout, "sales", NEW, None, "run-sales", NOW)
    decided = {"created_at": NOW, "workload": "support", "outcome": True, "run_id": request.run_id}
    figures = '{"gain": 0.25, "gain_low": 0.125, "gain_high": 0.375}'
    gate.warehouse.insert("decisions", id="g", kind="gate", reasons='["better"]', figures=figures, **decided)
    gate.warehouse.insert("decisions", id="p", kind="retrain", reasons='["no"]', figures="{}", **decided)
    listed = approvals.listed(gate.warehouse, "support")
    assert [(one["version"], one["state"]) for one in listed] == [(NEWER, "waiting"), (NEW, "refused")]
    assert (listed[0]["gate_reasons"], listed[0]["scores"]) == (["better"], None)
    assert [listed[0][name] for name in ("gain", "gain_low", "gain_high")] == [0.25, 0.125, 0.375]
    assert len(approvals.listed(gate.warehouse)) == 3
    assert [one["id"] for one in approvals.listed(gate.warehouse, id=request.id)] == [request.id]


def test_a_workload_has_its_own_rule() -> None:
    settings = DaemonSettings(workloads={"support*": {"rollout": {"approve": "required"}}})
    assert settings.for_workload("support").rollout.approve == "required"
    assert settings.for_workload("sales").rollout.approve == "none"
