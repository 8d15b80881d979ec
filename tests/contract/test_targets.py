"""What every target keeps: the folder of links, vLLM and SGLang as doubles, a webhook; and a vLLM and an MLflow, where
RETUNED_VLLM and RETUNED_MLFLOW name their commands."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fixtures.models.served import WORKLOAD, Adapters, Served, receiving
from fixtures.servers.mlflow import mlflow, with_mlflow
from fixtures.servers.models import SglangDouble, VllmDouble, serving, vllm, with_vllm
from retuned.consumers.errors import RetunedError, StandsBy
from retuned.consumers.warehouse.connection import Warehouse
from retuned.retrain.openai_api import NoAnswer
from retuned.retrain.release.deployments import Wanted, wanted
from retuned.retrain.release.targets.build import build, places
from retuned.retrain.release.targets.target import Target
from retuned.retrain.versions import Version

pytestmark = pytest.mark.usefixtures("one_thread")

SECRET = b"a secret of many characters"
KEEP, DRAIN = 3_600.0, 600.0


@pytest.fixture(scope="module")
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.fixture(
    scope="module",
    params=[
        "folder",
        "vllm",
        "sglang",
        "webhook",
        pytest.param("mlflow", marks=with_mlflow),
        pytest.param("real-vllm", marks=with_vllm),
    ],
)
def configured(
    request: pytest.FixtureRequest, adapters: Adapters, stack: ExitStack, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """A target as it stands in the configuration, up and running."""
    folder = tmp_path_factory.mktemp("target")
    match request.param:
        case "vllm" | "sglang":
            double: type[VllmDouble] = VllmDouble if request.param == "vllm" else SglangDouble
            return {"kind": request.param, "urls": [stack.enter_context(serving(adapters.base, double)).url]}
        case "real-vllm":
            return {
                "kind": "vllm",
                "urls": [stack.enter_context(vllm(adapters.base, "float32"))],
                "timeout_seconds": 60.0,
                "work_seconds": 400.0,
            }
        case "webhook":
            (folder / "secret").write_bytes(SECRET)
            receiver = stack.enter_context(receiving(SECRET))
            return {"kind": "webhook", "url": receiver.url, "secret_file": folder / "secret"}
        case "mlflow":
            return {"kind": "mlflow", "url": stack.enter_context(mlflow(folder)), "timeout_seconds": 60.0}
        case _:
            return {"kind": "folder"}


@dataclass
class Case:
    """A target, and a workload whose versions it gets."""

    served: Served
    target: Target

    def wanted(self) -> dict[str, Wanted]:
        return wanted(self.served.warehouse, [WORKLOAD])

    def has(self, version: Version) -> frozenset[str] | None:
        """The aliases of a version there; None: it is not there."""
        return self.target.listed().get(version.name)


@pytest.fixture
def case(tmp_path: Path, warehouse: Warehouse, adapters: Adapters, configured: dict[str, Any]) -> Iterator[Case]:
    served = Served(tmp_path, warehouse, adapters, configured, keep_seconds=KEEP, drain_seconds=DRAIN)
    (place,) = places(served.settings, [WORKLOAD])
    made = Case(served, build(place, served.settings, warehouse, lambda: served.now))
    yield made
    for name in made.target.listed():
        made.target.unload(name)


def aliases(case: Case, *names: str) -> frozenset[str]:
    return frozenset(names) if case.target.follows_aliases else frozenset()


def test_what_is_promoted_is_there_under_the_name_of_its_version(case: Case) -> None:
    assert case.target.listed() == {}
    case.served.promote(case.served.old)
    case.served.reconciler.run()
    assert case.has(case.served.old) == aliases(case, "champion")
    assert case.has(case.served.new) is None
    assert case.served.states() == {case.served.old.name: "serving"}


def test_the_version_before_stays_until_it_is_drained(case: Case) -> None:
    served = case.served
    served.promote(served.old)
    served.now += timedelta(hours=1)
    served.promote(served.new)
    served.reconciler.run()
    assert case.has(served.new) == aliases(case, "champion")
    assert case.has(served.old) == aliases(case, "previous")
    served.now += timedelta(seconds=KEEP - 1)
    served.reconciler.run()
    assert case.has(served.old) is not None
    served.now += timedelta(seconds=2)
    answer(served, served.old, served.now - timedelta(seconds=DRAIN / 2))
    served.reconciler.run()
    assert case.has(served.old) is not None
    served.now += timedelta(seconds=DRAIN)
    served.reconciler.run()
    # What an alias names stays in links and registries: nothing has to be freed there.
    assert case.has(served.old) == (frozenset({"previous"}) if case.target.kind in ("folder", "mlflow") else None)
    assert case.has(served.new) == aliases(case, "champion")


def test_a_rollback_gives_the_alias_back(case: Case) -> None:
    served = case.served
    served.promote(served.old)
    served.promote(served.new)
    served.reconciler.run()
    served.now += timedelta(minutes=1)
    served.rollout.rollback(WORKLOAD, "operator", "a test", served.now)
    served.reconciler.run()
    assert case.has(served.old) == aliases(case, "champion")
    assert (case.has(served.new) or frozenset()) == frozenset()


def test_a_target_has_a_champion_while_the_next_one_cannot_be_loaded(case: Case) -> None:
    if not case.target.follows_aliases:
        pytest.skip("it has no aliases")
    served, file = case.served, case.served.new.path / "adapter_config.json"
    served.promote(served.old)
    served.reconciler.run()
    served.promote(served.new)
    intact = file.read_bytes()
    file.write_bytes(intact + b" ")
    for _ in range(2):
        served.reconciler.run()
        assert [name for name, given in case.target.listed().items() if "champion" in given] == [
            served.new.name if case.target.kind == "folder" else served.old.name  # links follow a promotion at once
        ]
    file.write_bytes(intact)
    served.now += timedelta(minutes=2)
    served.reconciler.run()
    assert (case.has(served.new), case.has(served.old)) == (frozenset({"champion"}), frozenset({"previous"}))


def test_the_base_model_needs_nothing(case: Case) -> None:
    served = case.served
    served.promote(served.old)
    served.reconciler.run()
    served.promote(None)
    served.reconciler.run()
    assert case.has(served.old) == aliases(case, "previous")


def test_loading_and_unloading_may_be_repeated(case: Case) -> None:
    case.served.promote(case.served.old)
    (one,) = case.wanted().values()
    for _ in range(2):
        case.target.load(one)
        assert case.has(one.version) == aliases(case, "champion")
    for _ in range(2):
        case.target.unload(one.name)
        assert case.has(one.version) is None


def test_nothing_is_changed_there_while_another_daemon_may_lead(case: Case) -> None:
    if case.target.kind == "folder":
        pytest.skip("links are this daemon's own")

    def stands_by() -> int:
        raise StandsBy("another daemon leads")

    case.served.promote(case.served.old)
    (one,), (place,) = case.wanted().values(), places(case.served.settings, [WORKLOAD])
    standby = build(place, case.served.settings, case.served.warehouse, lambda: case.served.now, stands_by)
    with pytest.raises(StandsBy):
        standby.load(one)
    assert case.has(one.version) is None
    case.target.load(one)
    with pytest.raises(StandsBy):
        standby.unload(one.name)
    assert case.has(one.version) == aliases(case, "champion")


def test_it_answers_with_the_version_or_cannot_tell(case: Case) -> None:
    case.served.promote(case.served.old)
    case.served.reconciler.run()
    assert case.target.verify(case.served.old) is (True if case.target.kind in ("vllm", "sglang") else None)


def test_a_target_that_is_away_says_so(case: Case, configured: dict[str, Any]) -> None:
    if case.target.kind == "folder":
        pytest.skip("a folder is never away")
    away = "http://127.0.0.1:9/v1"
    keys = {"urls": [away]} if "urls" in configured else {"url": away}
    gone = Served(case.served.folder / "gone", case.served.warehouse, case.served.adapters, configured | keys)
    (place,) = places(gone.settings, [WORKLOAD])
    target = build(place, gone.settings, gone.warehouse, lambda: gone.now)
    gone.promote(gone.new)
    (one,) = wanted(gone.warehouse, [WORKLOAD]).values()
    with pytest.raises(RetunedError, match=r"127\.0\.0\.1:9") as refused:
        target.load(one)
    assert isinstance(refused.value, NoAnswer) or target.kind == "mlflow"
    gone.reconciler.run()
    (replica,) = gone.reconciler.replicas(WORKLOAD)
    assert replica.in_sync(WORKLOAD) is not True


def answer(served: Served, version: Version, at: Any) -> None:
    served.warehouse.insert(
        "interactions",
        id=f"a-{at}",
        timestamp=at,
        received_at=at,
        workload=WORKLOAD,
        model=version.name,
        messages="[]",
        response="yes",
        topic="interactions",
        partition=0,
        offset=0,
    )
