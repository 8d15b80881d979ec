"""What the gateway knows of routes and servers, and what it goes on with while it is not told."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from pydantic import ValidationError

from retuned.consumers.errors import ConfigurationError, RetunedError
from retuned.daemon.gateway import metrics as metrics_module
from retuned.daemon.gateway.metrics import Metrics
from retuned.daemon.gateway.routes import FILE, Routes
from retuned.daemon.gateway.servers.incumbents import Incumbents
from retuned.daemon.gateway.servers.models import Model
from retuned.daemon.gateway.servers.outliers import FAILURES, Outcome
from retuned.daemon.gateway.servers.replica import Replica
from retuned.daemon.gateway.servers.upstreams import Upstreams
from retuned.daemon.gateway_settings import GatewaySettings, Upstream, keys_in
from retuned.daemon.settings import Settings
from retuned.retrain.release.assignment import EVERYWHERE, Served

CHAMPION = {"arm": "champion", "share": 1.0, "model": "support@1", "name": "support@1"}
ANSWER = {
    "workloads": {
        "support": {"experiment": None, "arms": [CHAMPION], "base": {"model": "support@base", "name": None}},
    }
}
NO_INCUMBENTS = Incumbents(Settings())
AWAY = RetunedError("away")


def routes(folder: Path, *answers: Any, workloads: tuple[str, ...] = ()) -> Routes:
    """Of a daemon that gives these answers, one after the other."""
    waiting = list(answers)

    async def ask() -> bytes:
        answer = waiting.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return json.dumps(answer).encode()

    made = Routes(folder, workloads, ask, [f"http://gpu-{number}:8000/v1" for number in (1, 2)])
    for _ in answers:
        asyncio.run(made.refresh())
    return made


def served(made: Routes, workload: str = "support") -> str | None:
    route = made.of(workload)
    return None if route is None else route.arms[0].model


def test_what_the_daemon_answered_last_holds_while_it_is_away_and_over_a_restart(tmp_path: Path) -> None:
    first = routes(tmp_path, ANSWER, AWAY)
    assert served(first) == "support@1"
    assert first.problem == "away"
    again = routes(tmp_path, AWAY)
    assert served(again) == "support@1"
    assert again.problem == "away"


@pytest.mark.parametrize(
    "odd",
    [
        {},
        [],
        {"workloads": {"support": 5}},
        {"workloads": {"support": ANSWER["workloads"]["support"] | {"arms": []}}},
        {"workloads": {"support": ANSWER["workloads"]["support"] | {"arms": [CHAMPION | {"share": 0.5}]}}},
    ],
)
def test_an_answer_of_another_form_changes_nothing(tmp_path: Path, odd: Any) -> None:
    made = routes(tmp_path, ANSWER, odd)
    assert served(made) == "support@1"
    assert "cannot be decoded" in (made.problem or "")


def test_a_server_is_not_asked_for_what_the_daemon_withholds(tmp_path: Path) -> None:
    made = routes(tmp_path, ANSWER | {"withheld": {"http://gpu-1:8000": ["support@1"]}}, AWAY)
    for again in (made, routes(tmp_path, AWAY)):
        assert again.withholds("http://gpu-1:8000/v1", "support@1")
        assert not again.withholds("http://gpu-1:8000/v1", "support@2")
        assert not again.withholds("http://gpu-2:8000/v1", "support@1")
    assert not routes(tmp_path, ANSWER).withholds("http://gpu-1:8000/v1", "support@1")


def test_what_is_withheld_from_an_unknown_server_is_withheld_from_all(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The daemon may know a server by the address of a Service, and the gateway by that of a pod."""
    other = ANSWER | {"withheld": {"http://10.0.0.7:8000": ["support@1"], "http://gpu-1:8000": ["support@2"]}}
    made = routes(tmp_path, other, other)
    for server in ("http://gpu-1:8000/v1", "http://gpu-2:8000/v1"):
        assert made.withholds(server, "support@1")
        assert not made.withholds(server, "support@base")
    assert not made.withholds("http://gpu-2:8000/v1", "support@2")
    (warning,) = caplog.messages
    assert "support@1 must not be requested from http://10.0.0.7:8000, which is not in gateway.upstreams" in warning


def test_a_version_that_is_not_in_service_is_withheld_from_servers_that_only_the_gateway_knows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    not_served = ANSWER | {"withheld": {"http://gpu-1:8000": ["support@1"], EVERYWHERE: ["support@1"]}}
    assert routes(tmp_path, not_served).withholds("http://gpu-2:8000/v1", "support@1")
    assert not caplog.messages


def test_a_workload_that_is_gone_is_gone(tmp_path: Path) -> None:
    assert served(routes(tmp_path, ANSWER, {"workloads": {}})) is None


def test_a_file_that_cannot_be_read_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("{")
    assert served(routes(tmp_path, AWAY)) is None
    assert served(routes(tmp_path, AWAY, ANSWER)) == "support@1"


def test_configured_workloads_are_known_before_the_daemon_knows_them(tmp_path: Path) -> None:
    made = routes(tmp_path, ANSWER, workloads=("support", "new"))
    assert (served(made), served(made, "new"), served(made, "other")) == ("support@1", "new@base", None)
    assert made.workloads() == ["new", "support"]


def replica(*models: tuple[str, str | None], base_model: str | None = None) -> Replica:
    made = Replica("http://127.0.0.1:1/v1", None, base_model)
    made.listed([Model(id, parent) for id, parent in models])
    return made


BASE = Served("support@base", None)


def test_the_base_model_is_the_first_without_a_parent_or_the_one_that_is_configured() -> None:
    adapter = ("support@1", "base")
    assert replica(adapter, ("base", None), ("other", None)).name_of(BASE) == "base"
    assert replica(adapter, ("base", None), ("other", None), base_model="other").name_of(BASE) == "other"
    assert replica(adapter, ("base", None), base_model="away").name_of(BASE) is None
    # As the demo's server does it: under the name of what serves, and nothing else.
    assert replica(("support@base", None)).name_of(BASE) == "support@base"
    assert replica(("support@1", None)).name_of(BASE) is None
    assert replica(("support@1", None)).name_of(Served("support@1", "support@1")) == "support@1"


def test_sglang_is_asked_for_an_adapter_by_its_base_model_and_its_name() -> None:
    made = Replica("http://127.0.0.1:1/v1", None)
    made.listed([Model("base", None, "sglang"), Model("support@1", "base", "sglang")])
    assert made.name_of(Served("support@1", "support@1")) == "base:support@1"
    assert made.name_of(BASE) == "base"
    made.listed([Model("base", None, "vllm"), Model("support@1", "base", "vllm")])
    assert made.name_of(Served("support@1", "support@1")) == "support@1"


def test_the_least_busy_server_is_asked_and_of_equals_each_in_turn() -> None:
    settings = [Upstream(url=f"http://127.0.0.1:{port}/v1") for port in (1, 2, 3)]
    made = Upstreams(settings, NO_INCUMBENTS, None, Metrics(CollectorRegistry()))  # type: ignore[arg-type]
    for one in made.replicas[:2]:
        one.listed([Model("base")])
    assert {made.having(BASE)[0][0].url for _ in range(4)} == {one.url for one in made.replicas[:2]}
    with made.asked(made.replicas[0], BASE, "base"):
        assert {made.having(BASE)[0][0].url for _ in range(4)} == {made.replicas[1].url}
    made.replicas[1].failed("gone")
    assert [one.url for one, _ in made.having(BASE)] == [made.replicas[0].url]
    assert made.problems() == []
    made.replicas[0].failed("gone, too")
    assert len(made.problems()) == 3


def test_a_server_that_fails_with_one_model_is_asked_for_the_others() -> None:
    made = Upstreams(
        [Upstream(url=f"http://127.0.0.1:{port}/v1") for port in (1, 2)],
        NO_INCUMBENTS,
        None,  # type: ignore[arg-type]
        Metrics(CollectorRegistry()),
        lambda: 0.0,
    )
    first, second = made.replicas
    for one in made.replicas:
        one.listed([Model("base"), Model("support@2", parent="base")])
    canary = Served("support@2", "support@2")
    for _ in range(FAILURES):
        with made.asked(first, canary, "support@2") as attempt:
            attempt.outcome = Outcome.FAILS
    assert [made.having(canary)[0][0] for _ in range(4)] == [second] * 4
    assert {one.url for one, _ in made.having(canary)} == {first.url, second.url}, "it is still the last resort"
    assert {made.having(BASE)[0][0].url for _ in range(4)} == {first.url, second.url}
    first.listed([Model("base"), Model("support@2", parent="base")])
    assert (first.ejected(0.0), second.ejected(0.0)) == (1, 0), "a list of models is no answer"


def test_models_that_come_and_go_leave_no_more_series_than_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_module, "MOST_PAIRS", 3)
    registry = CollectorRegistry()
    made = Metrics(registry)
    for number in range(10):
        made.answered("support", f"support@{number}", 200, 0.1, 0.05)
        made.answered("support", "support@base", 200, 0.1, None)
        made.fell_back("support", f"support@{number}")
    text = generate_latest(registry).decode()
    kept = {line.split('model_name="')[1].split('"')[0] for line in text.splitlines() if 'model_name="' in line}
    assert kept == {"support@8", "support@9", "support@base"}


def test_a_servers_key_is_not_lent_to_whoever_asks(tmp_path: Path) -> None:
    keyed: Any = [{"url": "http://gpu/v1", "key_file": tmp_path / "key"}]
    with pytest.raises(ValidationError, match="client_keys_file"):
        GatewaySettings(host="0.0.0.0", upstreams=keyed)
    GatewaySettings(host="127.0.0.1", upstreams=keyed)
    GatewaySettings(host="0.0.0.0", upstreams=keyed, client_keys_file=tmp_path / "clients")
    with pytest.raises(ConfigurationError, match="key_file"):
        Upstream(**keyed[0]).key()


@pytest.mark.parametrize(
    "content", ["", "# only a comment\n", "short\n", "with a space in the middle\n", "ünïcödé-is-not-a-key\n"]
)
def test_keys_that_are_none_are_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "keys"
    with pytest.raises(ConfigurationError, match="cannot be read"):
        keys_in(file, "gateway.client_keys_file")
    file.write_text(content)
    with pytest.raises(ConfigurationError, match="client_keys_file"):
        keys_in(file, "gateway.client_keys_file")
