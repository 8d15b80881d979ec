"""The way of a version to the servers and back: restarts, dead replicas, wrong adapters, kills at each step."""

import json
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from fixtures.daemon.pages import page
from fixtures.kafka.brokers import until
from fixtures.models.served import WORKLOAD, Adapters, Served
from fixtures.servers.http import Quiet, listening
from fixtures.servers.models import SglangDouble, VllmDouble, serving
from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.consumers.warehouse.connection import Warehouse
from retuned.daemon.cli.summary import details
from retuned.daemon.jobs.context import Context
from retuned.daemon.jobs.jobs import Jobs
from retuned.daemon.jsontext import as_json
from retuned.daemon.metrics import Metrics as DaemonMetrics
from retuned.daemon.operations.local import Local
from retuned.daemon.settings import Settings
from retuned.daemon.status import status
from retuned.monitors.metrics import Metrics as MonitorMetrics
from retuned.retrain.metrics import Metrics
from retuned.retrain.openai_api import NoAnswer
from retuned.retrain.release import reconciler as module
from retuned.retrain.release.assignment import EVERYWHERE
from retuned.retrain.release.deployments import deployments
from retuned.retrain.release.reconciler import Reconciler
from retuned.retrain.release.routes import routes
from retuned.retrain.release.targets import vllm
from retuned.retrain.versions import Version, file_hashes

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def double(adapters: Adapters) -> Iterator[VllmDouble]:
    with serving(adapters.base) as made:
        yield made


@pytest.fixture
def served(tmp_path: Path, warehouse: Warehouse, adapters: Adapters, double: VllmDouble) -> Served:
    return Served(tmp_path, warehouse, adapters, {"kind": "vllm", "urls": [double.url]})


def configured(warehouse: Warehouse, version: Version, **changes: Any) -> None:
    """Change the configuration of a version's adapter, as if it had been registered so."""
    file = version.path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    manifest = json.dumps(version.manifest | {"files": file_hashes(version.path)})
    warehouse.execute("UPDATE models SET manifest = ? WHERE version = ?", [manifest, version.version])


def test_a_server_that_restarts_gets_its_versions_back_and_is_probed(
    tmp_path: Path, warehouse: Warehouse, adapters: Adapters
) -> None:
    with serving(adapters.base) as first:
        made = Served(tmp_path, warehouse, adapters, {"kind": "vllm", "urls": [first.url]})
        made.promote(made.old)
        made.promote(made.new)
        made.reconciler.run()
        assert first.history == [f"+{made.new.name}", f"+{made.old.name}"]  # what customers get comes first
    made.reconciler.run()
    (replica,) = made.reconciler.replicas(WORKLOAD)
    assert (replica.up, replica.in_sync(WORKLOAD)) == (False, None)
    assert "does not answer" in replica.problem
    with serving(adapters.base, port=int(first.url.split(":")[2].split("/")[0])) as second:
        made.reconciler.run()
        assert set(second.loaded) == {made.old.name, made.new.name}
        assert replica.in_sync(WORKLOAD) is True
    made.reconciler.run()
    with serving(adapters.base, port=int(first.url.split(":")[2].split("/")[0])) as third:
        # It comes up with an adapter of its own configuration.
        third.answer("/v1/load_lora_adapter", {"lora_name": made.new.name, "lora_path": str(made.old.path)}, None)
        made.reconciler.run()
        assert made.states() == {made.new.name: "wrong", made.old.name: "serving"}


def test_a_replica_that_hangs_holds_up_no_other(
    tmp_path: Path, warehouse: Warehouse, adapters: Adapters, double: VllmDouble
) -> None:
    release = threading.Event()

    class Hanging(Quiet):
        def do_GET(self) -> None:
            release.wait()
            self.send_error(503)

    with listening(Hanging) as address:
        target = {"kind": "vllm", "urls": [f"{address}/v1", double.url], "timeout_seconds": 60.0}
        made = Served(tmp_path, warehouse, adapters, target)
        made.promote(made.old)
        try:
            made.reconciler.tick()
            until(lambda: made.old.name in double.loaded)
            made.promote(made.new)
            made.reconciler.tick()
            until(lambda: made.new.name in double.loaded)
            hanging = next(one for one in made.reconciler.replicas(WORKLOAD) if one.address != double.url)
            assert hanging.up is None
        finally:
            release.set()
            made.reconciler.run()
    assert hanging.in_sync(WORKLOAD) is not True


def test_an_adapter_that_is_never_consulted_is_found(served: Served, double: VllmDouble) -> None:
    double.uses_adapters = False
    served.promote(served.new)
    assert served.reconciler.withheld() == withheld(served.new, double.url)  # before it is looked at, too
    served.reconciler.run()
    assert served.states() == {served.new.name: "wrong"}
    assert "loaded and not used" in served.detail(served.new)
    assert served.reconciler.withheld() == withheld(served.new, double.url)
    double.uses_adapters = True
    served.reconciler.run()
    assert served.reconciler.withheld() == {}
    assert served.states() == {served.new.name: "serving"}


def test_a_stale_adapter_under_a_known_name_is_found(served: Served, double: VllmDouble) -> None:
    double.answer("/v1/load_lora_adapter", {"lora_name": served.new.name, "lora_path": str(served.old.path)}, None)
    served.promote(served.new)
    served.reconciler.run()
    assert served.states() == {served.new.name: "wrong"}
    assert "the adapter is stale" in served.detail(served.new)


def test_an_adapter_that_is_another_one_is_found(served: Served, double: VllmDouble) -> None:
    double.answer("/v1/load_lora_adapter", {"lora_name": served.old.name, "lora_path": str(served.new.path)}, None)
    served.promote(served.old)  # when it was trained the other one was not there
    served.reconciler.run()
    assert served.states() == {served.old.name: "wrong"}
    assert "neither as this version does nor as another" in served.detail(served.old)


def test_what_goes_wrong_later_is_found_too(served: Served, double: VllmDouble) -> None:
    served.promote(served.new)
    served.reconciler.run()
    double.uses_adapters = False
    served.now += module.PROBE_AGAIN - timedelta(seconds=1)
    served.reconciler.run()
    assert served.states() == {served.new.name: "serving"}
    served.now += timedelta(seconds=1)
    served.reconciler.run()
    assert served.states() == {served.new.name: "wrong"}


@pytest.mark.parametrize(("kind", "made"), [("vllm", VllmDouble), ("sglang", SglangDouble)])
def test_log_probabilities_that_are_no_numbers_are_those_of_no_version(
    kind: str, made: type[VllmDouble], tmp_path: Path, warehouse: Warehouse, adapters: Adapters
) -> None:
    with serving(adapters.base, made) as double:
        served = Served(tmp_path, warehouse, adapters, {"kind": kind, "urls": [double.url]})
        served.promote(served.new)
        served.reconciler.run()
        assert served.states() == {served.new.name: "serving"}
        answer = double.answer

        def broken(path: str, *rest: Any) -> Any:
            status, content = answer(path, *rest)
            if path == "/v1/completions":
                for choice in content["choices"]:
                    (top,) = choice["logprobs"]["top_logprobs"]
                    top.update(dict.fromkeys(top, math.nan))
            elif path == "/generate":
                for one in content:
                    (top,) = one["meta_info"]["output_top_logprobs"]
                    top[:] = [[None, token, None] for _, token, _ in top]  # JSON has no other form for it
            return status, content

        double.answer = broken  # type: ignore[method-assign]
        served.now += module.PROBE_AGAIN
        served.reconciler.run()
        assert served.states() == {served.new.name: "wrong"}
        assert "are no numbers" in served.detail(served.new)


@pytest.mark.parametrize(("kind", "made"), [("vllm", VllmDouble), ("sglang", SglangDouble)])
def test_a_version_that_is_listed_and_not_found_by_requests_does_not_serve(
    kind: str, made: type[VllmDouble], tmp_path: Path, warehouse: Warehouse, adapters: Adapters
) -> None:
    """As behind a proxy that passes requests on to several servers."""
    with serving(adapters.base, made) as double:
        other, answer = made(adapters.base), double.answer

        def passed_on(path: str, *rest: Any) -> Any:
            return (other.answer if path in ("/v1/completions", "/generate") else answer)(path, *rest)

        double.answer = passed_on  # type: ignore[method-assign]
        served = Served(tmp_path, warehouse, adapters, {"kind": kind, "urls": [double.url]})
        served.promote(served.new)
        served.reconciler.run()
        assert served.states() == {served.new.name: "failed"}
        assert "not found by requests" in served.detail(served.new)
        assert EVERYWHERE in served.reconciler.withheld()
        double.answer = answer  # type: ignore[method-assign]
        served.reconciler.run()
        assert served.states() == {served.new.name: "serving"}


def test_a_server_that_is_too_busy_to_be_probed_is_not_away(served: Served, double: VllmDouble) -> None:
    def busy(*_: Any) -> Any:
        raise NoAnswer("timed out")

    served.promote(served.new)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vllm.Vllm, "check", lambda *_: None)
        patch.setattr(vllm.LoraServer, "next_tokens", busy)
        served.reconciler.run()
        assert served.states() == {served.new.name: "loading"}
        assert "not probed yet: timed out" in served.detail(served.new)
    (replica,) = served.reconciler.replicas(WORKLOAD)
    assert (replica.up, replica.in_sync(WORKLOAD)) == (True, False)
    served.reconciler.run()
    assert served.states() == {served.new.name: "serving"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vllm.LoraServer, "next_tokens", busy)
        served.now += module.PROBE_AGAIN
        served.reconciler.run()
    assert served.states() == {served.new.name: "serving"}  # as it was
    assert double.history == [f"+{served.new.name}"]


@pytest.mark.parametrize("loaded", [False, True])
def test_a_slow_answer_is_not_taken_for_a_server_that_is_down(
    loaded: bool, tmp_path: Path, warehouse: Warehouse, adapters: Adapters, double: VllmDouble
) -> None:
    """Whether the base model is asked, before the first adapter, or the version."""
    if loaded:
        double.answer("/v1/load_lora_adapter", {"lora_name": "own", "lora_path": str(adapters.folder / "old")}, None)
    over = threading.Event()
    double.interfere = lambda _: (503, {}) if over.wait(20) else None
    made = Served(tmp_path, warehouse, adapters, {"kind": "vllm", "urls": [double.url], "work_seconds": 0.5})
    made.promote(made.new)
    try:
        made.reconciler.run()
    finally:
        over.set()
    (replica,) = made.reconciler.replicas(WORKLOAD)
    assert (replica.up, replica.problem) == (True, "")
    assert made.states() == {made.new.name: "loading"}
    assert "gave no answer within 0.5 s" in made.detail(made.new)
    assert "start it" not in made.detail(made.new)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"r": 64}, r"its rank is 64, and the server takes 16 .*--max-lora-rank 64.*set train\.rank to 16"),
        ({"rank_pattern": {"q_proj": 32}}, r"its rank is 32"),
        ({"use_dora": True}, r"DoRA adapter.*set train\.use_dora to false"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save.*set train\.method to lora"),
        ({"bias": "all"}, r"trains biases"),
    ],
)
def test_what_a_server_would_not_take_is_not_sent(
    served: Served, double: VllmDouble, changes: dict[str, Any], said: str
) -> None:
    configured(served.warehouse, served.old, **changes)
    with pytest.raises(vllm.Unservable, match=said):
        vllm.adapters.check(served.old, "vllm", 16)
    served.promote(served.old)
    served.reconciler.run()
    assert double.history == []
    assert served.states() == {served.old.name: "failed"}


def test_an_adapter_on_experts_is_sent_as_such_and_to_vllm_alone(
    tmp_path: Path, warehouse: Warehouse, adapters: Adapters
) -> None:
    class Noting(VllmDouble):
        """As vLLM with --enable-mixed-moe-lora-format, but for the arithmetic."""

        def answer(self, path: str, body: dict[str, Any] | None, token: str | None) -> tuple[int, Any]:
            if body is not None and path == "/v1/load_lora_adapter":
                self.asked.append(body)
                self.loaded[body["lora_name"]] = body["lora_path"]
                return 200, "Success"
            return super().answer(path, body, token)

    with serving(adapters.base, Noting) as double:
        made = Served(tmp_path, warehouse, adapters, {"kind": "vllm", "urls": [double.url]})
        configured(warehouse, made.old, target_parameters=["experts.down_proj", "experts.gate_up_proj"])
        for version in (made.old, made.new):
            made.promote(version)
        made.reconciler.run()
        sent = {body["lora_name"]: body.get("is_3d_lora_weight") for body in double.asked if "lora_name" in body}
        assert sent == {made.old.name: True, made.new.name: None}
        with pytest.raises(vllm.Unservable, match=r"adapts experts .* which sglang does not load: serve it by vllm"):
            vllm.adapters.check(made.old, "sglang", 16)


def test_a_server_of_another_base_model_gets_nothing(tmp_path: Path, warehouse: Warehouse, adapters: Adapters) -> None:
    from fixtures.models.tiny import tiny_llama

    other = tiny_llama(tmp_path / "other", hidden=256, seed=7)
    with serving(other) as double:
        made = Served(tmp_path, warehouse, adapters, {"kind": "vllm", "urls": [double.url]})
        made.promote(made.old)
        made.reconciler.run()
        assert f"serves {other}, and it was trained on {adapters.base}" in made.detail(made.old)
        double.base = Path("not/on/this/machine")  # as of a server elsewhere
        made.now += timedelta(minutes=1)
        made.reconciler.run()
        assert "which is not the base model that it was trained on" in made.detail(made.old)
        assert double.history == []


def test_a_load_is_not_kept_waiting_by_questions(served: Served, double: VllmDouble) -> None:
    """A list of models takes a busy server as long as a load does."""
    listings: list[int] = []
    answer = double.answer

    def counting(path: str, *rest: Any) -> Any:
        if path == "/v1/models":
            listings.append(len(double.history))
        return answer(path, *rest)

    double.answer = counting  # type: ignore[method-assign]
    served.promote(served.new)
    served.reconciler.run()
    assert listings == [0]
    assert served.states() == {served.new.name: "serving"}


def test_more_adapters_than_slots_are_logged_once_a_load(
    served: Served, double: VllmDouble, caplog: pytest.LogCaptureFixture
) -> None:
    double.slots = 1
    for version in (served.old, served.new):
        served.promote(version)
    for _ in range(3):
        served.reconciler.run()
    found = [record.getMessage() for record in caplog.records if "--max-loras" in record.getMessage()]
    assert len(found) == 1
    assert "2 adapters share 1 slots" in found[0]


def test_what_somebody_else_loaded_stays(served: Served, double: VllmDouble) -> None:
    for name in ("own", f"{served.old.name}-evaluation-1", "other@3f2a91c0"):
        double.answer("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(served.old.path)}, None)
    served.promote(served.new)
    served.reconciler.run()
    assert set(double.loaded) == {"own", f"{served.old.name}-evaluation-1", "other@3f2a91c0", served.new.name}


def test_a_failing_load_is_tried_again_more_and_more_rarely_and_logged_once(
    served: Served, double: VllmDouble, caplog: pytest.LogCaptureFixture
) -> None:
    double.loads = False
    served.promote(served.old)
    tried = []
    attempts = iter(range(1_000))
    load = vllm.Vllm.load

    def counted(*arguments: Any) -> None:
        tried.append(next(attempts))
        load(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vllm.Vllm, "load", counted)
        for _ in range(100):
            served.reconciler.run()
            served.now += timedelta(seconds=2)
    assert 5 <= len(tried) <= 9  # 200 s, by pauses of 4, 8, 16, 32, 60, 60 s
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" in served.detail(served.old)
    assert sum("VLLM_ALLOW_RUNTIME_LORA_UPDATING" in record.getMessage() for record in caplog.records) == 1
    double.loads = True
    served.now += timedelta(minutes=1)
    served.reconciler.run()
    assert served.states() == {served.old.name: "serving"}


def test_a_version_that_can_never_be_loaded_keeps_no_other_from_it(
    served: Served, double: VllmDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.promote(served.old)
    configured(served.warehouse, served.old, r=64)
    served.reconciler.run()
    (replica,) = served.reconciler.replicas(WORKLOAD)
    replica.models[served.old.name].tries = 5_000  # of a few days
    served.promote(served.new)
    served.now += timedelta(minutes=1)
    served.reconciler.run()
    assert served.states() == {served.old.name: "failed", served.new.name: "serving"}
    assert replica.models[served.old.name].next_try == served.now + timedelta(minutes=1)

    check = vllm.Vllm.check

    def faulty(target: vllm.Vllm, version: Version) -> None:
        if version.version == served.new.version:
            raise KeyError("r")
        check(target, version)

    configured(served.warehouse, served.old, r=4)
    double.answer("/v1/unload_lora_adapter", {"lora_name": served.new.name}, None)
    monkeypatch.setattr(vllm.Vllm, "check", faulty)
    for _ in range(2):
        served.now += timedelta(minutes=1)
        served.reconciler.run()
    assert served.states() == {served.old.name: "serving", served.new.name: "failed"}
    assert served.detail(served.new) == "KeyError: 'r'"
    assert not replica.problem


def test_a_token_that_is_renewed_is_read_again(
    tmp_path: Path, warehouse: Warehouse, adapters: Adapters, double: VllmDouble
) -> None:
    double.token, file = "old", tmp_path / "token"
    file.write_text("old\n")
    made = Served(tmp_path, warehouse, adapters, {"kind": "vllm", "urls": [double.url], "token_file": file})
    made.promote(made.old)
    made.reconciler.run()
    double.token = "new"
    made.reconciler.run()
    (replica,) = made.reconciler.replicas(WORKLOAD)
    assert "token_file" in replica.problem
    assert replica.in_sync(WORKLOAD) is False
    file.write_text("new\n")
    made.reconciler.run()
    assert replica.in_sync(WORKLOAD) is True


def test_when_it_is_served_is_kept_once(served: Served) -> None:
    told: list[tuple[str, float]] = []
    served.reconciler = Reconciler(
        served.warehouse, served.settings, lambda: served.now, show_served=lambda *what: told.append(what)
    )
    served.promote(served.old)
    assert deployments(served.warehouse)[0].served_at is None
    served.now += timedelta(seconds=3)
    served.reconciler.run()
    served.now += timedelta(seconds=3)
    served.reconciler.run()
    assert told == [(WORKLOAD, 3.0)]
    (one,) = deployments(served.warehouse)
    assert one.served_at == one.since + timedelta(seconds=3)


def test_a_version_of_before_the_start_has_no_time_to_served(served: Served) -> None:
    """As after an update, or for a target that is added later."""
    told: list[Any] = []
    served.promote(served.old)
    served.now += timedelta(days=14)
    served.reconciler = Reconciler(
        served.warehouse, served.settings, lambda: served.now, show_served=lambda *what: told.append(what)
    )
    served.reconciler.run()
    assert told == []
    assert deployments(served.warehouse)[0].served_at == served.now


def test_metrics_say_what_is_known_and_no_more(served: Served, double: VllmDouble) -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    served.reconciler = Reconciler(
        served.warehouse, served.settings, lambda: served.now, metrics.replica, metrics.served
    )
    labels = {"target": "vllm", "replica": double.url}
    of_workload = labels | {"workload": WORKLOAD}
    of_model = of_workload | {"model_name": served.new.name}

    def values() -> tuple[float | None, ...]:
        return tuple(
            registry.get_sample_value(name, of)
            for name, of in (
                ("retuned_replica_up", labels),
                ("retuned_replica_in_sync", of_workload),
                ("retuned_effect_probe_passed", of_model),
                ("retuned_served_seconds", {"workload": WORKLOAD}),
            )
        )

    assert values() == (None, None, None, None)
    served.promote(served.new)
    served.now += timedelta(seconds=2)
    double.uses_adapters = False
    served.reconciler.run()
    assert values() == (1, 0, 0, None)
    double.uses_adapters = True
    served.reconciler.run()
    assert values() == (1, 1, 1, 2.0)
    double.token = "asked for"  # it answers, and refuses
    served.reconciler.run()
    assert values()[:2] == (1, 0)


def test_a_refusal_at_first_contact_is_an_answer(served: Served, double: VllmDouble) -> None:
    double.token = "asked for"
    served.promote(served.new)
    served.reconciler.run()
    (replica,) = served.reconciler.replicas(WORKLOAD)
    assert (replica.up, replica.in_sync(WORKLOAD)) == (True, False)
    assert "401" in replica.problem


def test_replicas_that_get_a_version_at_the_same_time_note_it_once(
    tmp_path: Path, warehouse: Warehouse, adapters: Adapters, double: VllmDouble
) -> None:
    with serving(adapters.base) as other:
        made = Served(tmp_path, warehouse, adapters, {"kind": "vllm", "urls": [double.url, other.url]})
        told: list[Any] = []
        made.reconciler = Reconciler(
            warehouse, made.settings, lambda: made.now, show_served=lambda *what: told.append(what)
        )
        for version in (made.old, made.new, made.old, made.new):
            made.now += timedelta(minutes=1)
            made.promote(version)
            made.reconciler.run()
            made.reconciler.run()
        assert len(told) == 2  # then both are there


def test_a_version_comes_into_service_on_all_servers_at_once_and_stays_there(
    tmp_path: Path, warehouse: Warehouse, adapters: Adapters, double: VllmDouble
) -> None:
    """Else a conversation would go back to the version before where a server, or the daemon, restarts meanwhile."""
    arrived, release = threading.Event(), threading.Event()

    def busy(_: int) -> None:
        arrived.set()
        release.wait(20)

    with serving(adapters.base) as slow:
        made = Served(tmp_path, warehouse, adapters, {"kind": "vllm", "urls": [double.url, slow.url]})
        slow.interfere = busy  # type: ignore[assignment]
        made.promote(made.new)
        made.reconciler.tick()
        try:
            assert arrived.wait(20)
            until(lambda: any(one.in_sync(WORKLOAD) for one in made.reconciler.replicas(WORKLOAD)))
            assert made.reconciler.withheld() == withheld(made.new, double.url, slow.url)
            assert deployments(warehouse)[0].served_at is None
        finally:
            release.set()
            made.reconciler.run()
            made.reconciler.close()
        assert made.reconciler.withheld() == {}
        made.begin()  # nothing was looked at yet
        assert made.reconciler.withheld() == {}
        made.promote(made.old)
        assert made.reconciler.withheld() == withheld(made.old, double.url, slow.url)
        made.promote(made.new)  # which they have still
        made.begin()
        assert made.reconciler.withheld() == withheld(made.old, double.url, slow.url)


def withheld(version: Version, *urls: str) -> dict[str, list[str]]:
    """What is withheld while a version of these servers is not in service."""
    return {address: [version.name] for address in (*urls, EVERYWHERE)}


def refuse(*_: Any) -> Any:
    """Closes the connection without an answer."""
    raise ConnectionError


class Fleet:
    """A daemon's jobs, four replicas, and two versions: the older one serves, the newer one is its canary.

    Attributes:
        doubles: the replicas, by TCP.
    """

    def __init__(self, folder: Path, warehouse: Warehouse, adapters: Adapters, doubles: list[VllmDouble], **keys: Any):
        self.doubles = doubles
        serves = {"targets": [{"kind": "vllm", "urls": [one.url for one in doubles]}], **keys}
        self.served = Served(folder, warehouse, adapters, *serves["targets"], **keys)
        own = Settings.model_validate(
            {
                "models": {"directory": folder / "models"},
                "warehouse": {"path": warehouse.path},
                "serving": serves,
                "rollout": {"steps": [0.25, 1.0]},
            }
        )
        self.registry = CollectorRegistry()
        metrics = DaemonMetrics(self.registry), MonitorMetrics(self.registry), Metrics(self.registry)
        context = Context(warehouse, own, MemoryPublisher(), *metrics, threading.Event(), lambda: self.served.now)
        self.jobs = Jobs(context, print)
        self.promote(self.old)
        self.look()

    @property
    def old(self) -> Version:
        return self.served.old

    @property
    def new(self) -> Version:
        return self.served.new

    def promote(self, version: Version) -> None:
        self.jobs.context.rollout.promote(WORKLOAD, version.version, "operator", "a test", self.served.now)

    def look(self, later: timedelta = timedelta(minutes=1)) -> None:
        """Look at the replicas after a while."""
        self.served.now += later
        self.jobs.context.reconciler.run()

    def in_service(self, version: Version) -> bool:
        (one,) = (one for one in deployments(self.served.warehouse) if one.name == version.name)
        withheld = self.jobs.context.reconciler.withheld()
        assert (one.served_at is None) == all(version.name in withheld.get(two.url, ()) for two in self.doubles)
        return one.served_at is not None

    def status(self) -> dict[str, Any]:
        return json.loads(as_json(status(self.jobs, None, None)))["workloads"][WORKLOAD]  # type: ignore[no-any-return]

    def lacking(self, version: Version) -> str | None:
        (one,) = (one for one in self.status()["serving"]["deployments"] if one["model"] == version.name)
        return one["lacking"]  # type: ignore[no-any-return]

    def served_by_enough(self, version: Version) -> float | None:
        of = {"workload": WORKLOAD, "model_name": version.name}
        return self.registry.get_sample_value("retuned_version_served", of)


@pytest.fixture
def doubles(adapters: Adapters) -> Iterator[list[VllmDouble]]:
    with ExitStack() as stack:
        yield [stack.enter_context(serving(adapters.base)) for _ in range(4)]


@pytest.fixture
def fleet(tmp_path: Path, warehouse: Warehouse, adapters: Adapters, doubles: list[VllmDouble]) -> Fleet:
    return Fleet(tmp_path, warehouse, adapters, doubles)


def test_a_bad_mount_on_three_of_four_keeps_a_version_out_of_service_and_its_rollout_from_the_next_step(
    fleet: Fleet,
) -> None:
    assert fleet.in_service(fleet.old)
    for double in fleet.doubles[1:]:
        double.sees_files = False
    fleet.jobs.context.rollout.begin(WORKLOAD, fleet.new.version, "gate", "better", fleet.served.now)
    fleet.look()
    assert fleet.new.name in fleet.doubles[0].loaded
    assert not fleet.in_service(fleet.new)
    fleet.look(timedelta(days=8))  # each step is due after seven
    fleet.served.now += timedelta(seconds=12)
    fleet.jobs.run("watch")
    rollout = fleet.status()["rollout"]
    assert (rollout["share"], rollout["check"]["verdict"]) == (0.25, "hold")
    why = rollout["check"]["reasons"][0]
    assert why.startswith("the next step is due, but has to wait: 1 of 4 replicas of vllm answer with")
    assert f"{fleet.doubles[1].url} lacks it: " in why
    assert "No adapter found for" in why
    assert "tried 12 s ago" in why
    assert fleet.doubles[0].url not in why
    assert fleet.served_by_enough(fleet.new) == 0
    for double in fleet.doubles:
        double.sees_files = True
    fleet.look()
    assert fleet.in_service(fleet.new)
    assert fleet.served_by_enough(fleet.new) == 1
    fleet.jobs.run("watch")
    assert [(one.version, one.share) for one in routes(fleet.served.warehouse)[0].arms] == [(fleet.new.version, 1.0)]


def test_people_are_shown_which_replica_lacks_what_and_why(fleet: Fleet) -> None:
    fleet.doubles[2].sees_files = False
    fleet.promote(fleet.new)
    fleet.look()
    lacking = fleet.lacking(fleet.new)
    assert lacking is not None
    assert lacking.startswith(f"3 of 4 replicas of vllm answer with {fleet.new.name}, and 4 have to: ")
    assert f"{fleet.doubles[2].url} lacks it: " in lacking
    told = json.loads(as_json(status(fleet.jobs, None, None)))
    assert f"; waits for replicas: {lacking}" in dict(details(WORKLOAD, told))["serves"]
    shown = page(Local(fleet.jobs), "/workloads/support.refunds")
    assert "Waits for replicas" in shown
    assert "No adapter found for" in shown
    assert "Until then the version before it answers" in shown


def test_a_replica_that_is_away_holds_up_nothing_while_most_of_the_others_have_a_version(fleet: Fleet) -> None:
    fleet.doubles[3].answer = refuse  # type: ignore[method-assign]
    fleet.look()
    fleet.promote(fleet.new)
    fleet.look()
    assert fleet.in_service(fleet.new)
    assert fleet.served_by_enough(fleet.new) == 1
    fleet.doubles[2].answer = refuse  # type: ignore[method-assign]
    fleet.look()
    assert fleet.in_service(fleet.new)  # that is kept
    assert fleet.served_by_enough(fleet.new) == 0
    lacking = fleet.lacking(fleet.new)
    assert lacking is not None
    assert lacking.startswith(f"2 of 4 replicas of vllm answer with {fleet.new.name}, and 3 have to: ")
    assert "does not answer" in lacking


def test_a_version_that_replicas_list_and_do_not_answer_with_is_not_in_service(fleet: Fleet) -> None:
    for double in fleet.doubles[:2]:
        double.interfere = lambda _: (500, {"error": {"message": "CUDA out of memory"}})
    fleet.promote(fleet.new)
    fleet.look()
    assert all(fleet.new.name in double.loaded for double in fleet.doubles)
    assert not fleet.in_service(fleet.new)
    assert "CUDA out of memory" in (fleet.lacking(fleet.new) or "")


def test_a_rollback_needs_no_more_replicas_than_the_share(fleet: Fleet) -> None:
    """What is taken back is no measure of how many have to have the version that serves again."""
    fleet.promote(fleet.new)
    fleet.look()
    fleet.doubles[0].answer("/v1/unload_lora_adapter", {"lora_name": fleet.old.name}, None)
    fleet.doubles[0].sees_files = False
    fleet.jobs.context.rollout.rollback(WORKLOAD, "operator", "a test", fleet.served.now)
    fleet.look()
    assert fleet.served_by_enough(fleet.old) == 1
    assert fleet.lacking(fleet.old) is None


@pytest.mark.parametrize(("share", "in_service"), [(0.5, False), (0.4, True)])
def test_how_many_replicas_may_be_away_is_configured(
    share: float,
    in_service: bool,
    tmp_path: Path,
    warehouse: Warehouse,
    adapters: Adapters,
    doubles: list[VllmDouble],
) -> None:
    for double in doubles[2:]:
        double.answer = refuse  # type: ignore[method-assign]
    fleet = Fleet(tmp_path, warehouse, adapters, doubles, replica_share=share)
    assert fleet.in_service(fleet.old) == in_service


class Killed(BaseException):
    """The process ends here: nothing catches it."""


def killed(*_: Any, **__: Any) -> Any:
    raise Killed


def after(call: Callable[..., Any]) -> Callable[..., Any]:
    """The same, and then the process ends."""

    def done(*arguments: Any, **keys: Any) -> Any:
        call(*arguments, **keys)
        raise Killed

    return done


STEPS = {
    "before the load": ("load", killed),
    "after the load": ("load", after(vllm.LoraServer.load)),
    "at the probe": ("next_tokens", killed),
    "before the unload": ("unload", killed),
    "after the unload": ("unload", after(vllm.LoraServer.unload)),
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("step", STEPS)
def test_a_kill_at_any_step_leaves_servers_rows_and_links_agreed(
    step: str, tmp_path: Path, warehouse: Warehouse, adapters: Adapters, double: VllmDouble
) -> None:
    targets = ({"kind": "folder"}, {"kind": "vllm", "urls": [double.url]})
    made = Served(tmp_path, warehouse, adapters, *targets, keep_seconds=60, drain_seconds=60)
    made.promote(made.old)
    made.reconciler.run()
    made.promote(made.new)
    made.now += timedelta(minutes=2)  # so the old one is to be unloaded in the same pass
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vllm.LoraServer, *STEPS[step])
        made.reconciler.run()
    assert f"-{made.old.name}" not in double.history or step == "after the unload"
    made.begin()
    made.reconciler.run()
    made.now += timedelta(minutes=1)
    made.reconciler.run()
    assert set(double.loaded) == {made.new.name}
    assert len(double.history) == len(set(double.history))  # nothing was loaded twice
    assert [(one.name, one.share, one.aliases) for one in deployments(warehouse)] == [
        (made.new.name, 1.0, frozenset({"champion"}))
    ]
    links = {
        link.name: link.readlink().name for link in (tmp_path / "models" / WORKLOAD).iterdir() if link.is_symlink()
    }
    assert links == {"champion": made.new.version, "previous": made.old.version}
    server = next(one for one in made.reconciler.replicas(WORKLOAD) if one.kind == "vllm")
    assert server.in_sync(WORKLOAD) is True
