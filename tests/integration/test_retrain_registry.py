import json
import shutil
import threading
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from retuned.consumers.common import durable as files
from retuned.consumers.errors import BrokerRefused, BrokerUnavailable, RetunedError
from retuned.consumers.kafka.contract import Publisher
from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.consumers.warehouse.connection import Warehouse
from retuned.retrain import versions
from retuned.retrain.metrics import Metrics
from retuned.retrain.release import approve, registry
from retuned.retrain.release.rollout import Rollout
from retuned.retrain.settings import ModelsSettings, Settings
from retuned.retrain.versions import Version

NOW = datetime(2026, 4, 1, 12, 30, 0, 250_000)
TOPIC = "model-events"


class AbsentPublisher:
    def publish(self, topic: str, key: str, value: dict[str, Any]) -> None:
        raise BrokerUnavailable(f"broker: not there ({topic}, {key}, {len(value)})")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(models=ModelsSettings(base=_base(tmp_path / "base"), directory=tmp_path / "models"))


@pytest.fixture
def publisher() -> MemoryPublisher:
    return MemoryPublisher()


def _base(folder: Path, weights: bytes = b"weights") -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def register(
    warehouse: Warehouse, settings: Settings, weights: str, workload: str = "support", parent: str | None = None
) -> Version:
    adapter = settings.models.directory.parent / "adapter"
    adapter.mkdir(exist_ok=True)
    (adapter / "adapter_config.json").write_text('{"r": 16}')
    (adapter / "adapter_model.safetensors").write_text(weights)
    assert settings.models.base is not None
    return registry.register(
        warehouse,
        settings.models.directory,
        workload,
        adapter,
        base_model=settings.models.base,
        parent_version=parent,
        dataset_version="d1",
        run_id="r1",
        details={"metrics": {"holdout_score_candidate": 0.91}, "cost": {"train_seconds": 60.0}},
        now=NOW,
    )


def promote(warehouse: Warehouse, settings: Settings, publisher: Publisher, version: str) -> str | None:
    return Rollout(warehouse, settings, publisher, TOPIC).promote("support", version, "operator", "by hand", NOW)


def follow_up(warehouse: Warehouse, settings: Settings, publisher: Publisher) -> int:
    return Rollout(warehouse, settings, publisher, TOPIC).follow_up("support")


def rollback(warehouse: Warehouse, settings: Settings, publisher: Publisher) -> str | None:
    return Rollout(warehouse, settings, publisher, TOPIC).rollback("support", "operator", "it is worse", NOW)


def links(settings: Settings) -> dict[str, str]:
    folder = versions.workload_folder(settings.models.directory, "support")
    return {link.name: str(link.readlink()) for link in folder.iterdir() if link.is_symlink()}


def test_a_version_is_immutable_and_complete(warehouse: Warehouse, settings: Settings) -> None:
    version = register(warehouse, settings, "one")
    assert version == register(warehouse, settings, "one") == versions.find(warehouse, "support", version.version)
    assert register(warehouse, settings, "two").version != version.version
    assert len(versions.versions_of(warehouse, "support")) == 2
    assert len(version.version) == 8
    assert version.path == settings.models.directory / "support" / version.version
    assert sorted(file.name for file in version.path.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "bom.cdx.json",
        "manifest.json",
    ]
    manifest = json.loads((version.path / "manifest.json").read_text())
    assert manifest == version.manifest
    for name in (
        "base_model",
        "base_hash",
        "dataset_version",
        "parent_version",
        "code_version",
        "metrics",
        "cost",
        "run_id",
    ):
        assert name in manifest
    assert f"# {version.name}" in (version.path / "README.md").read_text()
    assert version.name == f"support@{version.version}"


def test_a_version_whose_folder_was_lost_is_written_again(warehouse: Warehouse, settings: Settings) -> None:
    version = register(warehouse, settings, "one")
    shutil.rmtree(version.path)
    assert register(warehouse, settings, "one") == version
    assert (version.path / "adapter_model.safetensors").read_text() == "one"
    assert len(versions.versions_of(warehouse, "support")) == 1


def test_a_registration_that_fails_leaves_nothing(
    warehouse: Warehouse, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(registry.shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space"):
        register(warehouse, settings, "one")
    assert list((settings.models.directory / "support").iterdir()) == []
    assert versions.versions_of(warehouse, "support") == []


def test_any_workload_name_gives_a_folder_inside_the_directory(tmp_path: Path) -> None:
    for name in ("a/b", "..", ".", "../../etc", "ä ö", "support.refunds", "a%2Fb", ".hidden"):
        assert versions.workload_folder(tmp_path, name).resolve().parent == tmp_path.resolve()
    names = [versions.workload_folder(tmp_path, name).name for name in ("a/b", "a%2Fb", "..", "%2E.")]
    assert len(set(names)) == 4
    assert versions.workload_folder(tmp_path, "support.refunds").name == "support.refunds"
    for sign in "wé退😀":
        folders = [versions.workload_folder(tmp_path, sign * 255 + last) for last in "ab"]
        assert len({*folders}) == 2
        for folder in folders:
            (folder / "runs").mkdir(parents=True)


def test_an_announcement_names_the_base_model_as_the_configuration_does(
    warehouse: Warehouse, settings: Settings, publisher: MemoryPublisher, tmp_path: Path
) -> None:
    assert settings.models.base is not None
    link = tmp_path / "current"
    link.symlink_to(settings.models.base)
    one = register(warehouse, settings, "one")
    moved = register(warehouse, settings.with_base(_base(tmp_path / "moved", b"others")), "two")
    configured = settings.with_base(link)
    for version in (one, moved):
        promote(warehouse, configured, publisher, version.version)
    promote(warehouse, configured, publisher, "base")
    assert [(message["version"], message["base_model"]) for _, _, message in publisher.messages] == [
        (one.version, str(link)),
        (moved.version, str(tmp_path / "moved")),
        (None, str(link)),  # and not the one that the version before was moved to
    ]


def test_promote_and_roll_back(warehouse: Warehouse, settings: Settings, publisher: MemoryPublisher) -> None:
    one, two = register(warehouse, settings, "one"), register(warehouse, settings, "two")
    assert versions.champion(warehouse, "support") is None
    assert promote(warehouse, settings, publisher, one.version) == one.version
    assert versions.champion(warehouse, "support") == one
    assert links(settings) == {"champion": one.version}
    assert promote(warehouse, settings, publisher, two.version) == two.version
    assert links(settings) == {"champion": two.version, "previous": one.version}
    assert versions.aliases(warehouse, "support") == {"champion": two.version, "previous": one.version}
    assert rollback(warehouse, settings, publisher) == one.version
    assert links(settings) == {"champion": one.version}
    with pytest.raises(
        RetunedError, match=rf"no previous champion .* {one.version}, {two.version}, base|no previous champion"
    ):
        rollback(warehouse, settings, publisher)

    topic, key, message = publisher.messages[1]
    row = warehouse.rows("SELECT * FROM promotions ORDER BY rowid")[1]
    assert (topic, key) == (TOPIC, "support")
    assert message == {
        "id": row["id"],
        "timestamp": "2026-04-01T12:30:00.250Z",
        "event": "promoted",
        "workload": "support",
        "model": two.name,
        "version": two.version,
        "previous_version": one.version,
        "path": str(two.path),
        "champion": {"model": two.name, "path": str(two.path)},
        "base_model": str(settings.models.base),
        "share": 1.0,
        "experiment": None,
        "reason": "by hand",
    }
    assert [value["event"] for _, _, value in publisher.messages] == ["promoted", "promoted", "rolled_back"]
    assert all(row["announced"] for row in warehouse.rows("SELECT announced FROM promotions"))


def test_rolling_back_the_first_champion_brings_the_base_model_back(
    warehouse: Warehouse, settings: Settings, publisher: MemoryPublisher
) -> None:
    one = register(warehouse, settings, "one")
    promote(warehouse, settings, publisher, one.version)
    assert rollback(warehouse, settings, publisher) is None
    assert versions.champion(warehouse, "support") is None
    assert links(settings) == {}
    message = publisher.messages[-1][2]
    assert (message["model"], message["version"], message["path"]) == ("support@base", None, None)
    assert message["base_model"] == str(settings.models.base)
    assert promote(warehouse, settings, publisher, one.version) == one.version
    assert promote(warehouse, settings, publisher, "base") is None
    assert links(settings) == {"previous": one.version}


def test_only_the_version_that_is_meant_is_taken_back(
    warehouse: Warehouse, settings: Settings, publisher: MemoryPublisher
) -> None:
    one, two = register(warehouse, settings, "one"), register(warehouse, settings, "two")
    promote(warehouse, settings, publisher, one.version)
    promote(warehouse, settings, publisher, two.version)

    def take_back(version: str) -> str | None:
        made = Rollout(warehouse, settings, publisher, TOPIC)
        return made.rollback("support", "watch", "it is worse", NOW, of=version)

    with pytest.raises(RetunedError, match=f"support@{one.version} is not taken back: it no longer serves"):
        take_back(one.version)
    assert versions.champion(warehouse, "support") == two
    assert take_back(two.version) == one.version
    assert publisher.messages[-1][2]["reason"] == "it is worse"
    with pytest.raises(RetunedError, match="it no longer serves"):
        take_back(two.version)


def test_promotions_that_make_no_sense(warehouse: Warehouse, settings: Settings, publisher: MemoryPublisher) -> None:
    one = register(warehouse, settings, "one")
    with pytest.raises(RetunedError, match=f"no version deadbeef; known are {one.version}, base"):
        promote(warehouse, settings, publisher, "deadbeef")
    with pytest.raises(RetunedError, match="support@base, the base model, serves already"):
        promote(warehouse, settings, publisher, "base")
    promote(warehouse, settings, publisher, one.version)
    with pytest.raises(RetunedError, match="is the champion already"):
        promote(warehouse, settings, publisher, one.version)
    assert len(publisher.messages) == 1


def test_links_follow_the_rows_after_a_crash_between_the_two(
    warehouse: Warehouse, settings: Settings, publisher: MemoryPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = register(warehouse, settings, "one"), register(warehouse, settings, "two")
    promote(warehouse, settings, publisher, one.version)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(registry, "link", killed)
        with pytest.raises(KeyboardInterrupt):
            promote(warehouse, settings, publisher, two.version)
    assert links(settings) == {"champion": one.version}
    registry.reconcile(warehouse, settings)
    registry.reconcile(warehouse, settings)
    assert links(settings) == {"champion": two.version, "previous": one.version}
    assert len(publisher.messages) == 1
    assert follow_up(warehouse, settings, publisher) == 1
    assert follow_up(warehouse, settings, publisher) == 0
    assert publisher.messages[-1][2]["version"] == two.version


def test_what_was_half_written_is_swept_up_at_start(warehouse: Warehouse, settings: Settings) -> None:
    one = register(warehouse, settings, "one")
    half = one.path.parent / ".deadbeef.123.tmp"
    half.mkdir()
    (half / "adapter_config.json").write_text("{")
    (one.path.parent / ".champion.123.tmp").symlink_to(one.version)
    registry.reconcile(warehouse, settings)
    assert [path.name for path in one.path.parent.iterdir()] == [one.version]
    assert len(list(one.path.iterdir())) == 5


def test_an_absent_broker_delays_the_announcement_alone(
    warehouse: Warehouse, settings: Settings, publisher: MemoryPublisher
) -> None:
    one, two = register(warehouse, settings, "one"), register(warehouse, settings, "two")
    assert promote(warehouse, settings, AbsentPublisher(), one.version) == one.version
    assert links(settings) == {"champion": one.version}
    with pytest.raises(BrokerUnavailable):
        follow_up(warehouse, settings, AbsentPublisher())
    promote(warehouse, settings, publisher, two.version)
    assert [value["version"] for _, _, value in publisher.messages] == [one.version, two.version]


def test_the_last_message_names_what_serves_though_the_clock_stepped_back(
    warehouse: Warehouse, settings: Settings, publisher: MemoryPublisher
) -> None:
    one, two = register(warehouse, settings, "one"), register(warehouse, settings, "two")
    away = Rollout(warehouse, settings, AbsentPublisher(), "model-events")
    away.promote("support", one.version, "operator", "first", NOW)
    away.promote("support", two.version, "operator", "second", NOW + timedelta(minutes=10))
    away.rollback("support", "operator", "bad", NOW + timedelta(minutes=7))
    rollout = Rollout(warehouse, settings, publisher, "model-events")
    rollout.follow_up("support")
    served = [one.version, two.version, one.version]
    assert [value["version"] for _, _, value in publisher.messages] == served
    approve.request(rollout, "support", two.version, one.version, "run-2", NOW + timedelta(hours=5))
    rollout.follow_up("support")
    last = publisher.messages[-1][2]
    assert (last["event"], last["version"]) == ("approval_requested", one.version)


def test_a_checkpoint_that_a_training_on_a_cluster_writes_at_the_start_is_left_alone(
    warehouse: Warehouse, settings: Settings
) -> None:
    version = register(warehouse, settings, "one")
    directory = settings.models.directory
    writing = directory / "support" / "runs" / "r" / "train" / ".checkpoint-00000060.4522.tmp"
    stray = version.path.with_name(".v2.77.tmp")
    for folder in (writing, stray):
        folder.mkdir(parents=True)
    registry.reconcile(warehouse, settings)
    assert (writing.is_dir(), stray.exists()) == (True, False)


@pytest.mark.parametrize(
    "error",
    [
        BrokerRefused("topic 'model-events': refused (TopicAuthorizationFailedError)"),
        BrokerUnavailable("the producer is closed"),
        RuntimeError("whatever a client may raise"),
    ],
)
def test_a_change_is_done_once_it_is_committed_whatever_happens_to_its_announcement(
    warehouse: Warehouse, settings: Settings, publisher: MemoryPublisher, error: Exception
) -> None:
    class Refusing(MemoryPublisher):
        def publish(self, *_: Any) -> None:
            raise error

    one, two = register(warehouse, settings, "one"), register(warehouse, settings, "two")
    assert promote(warehouse, settings, Refusing(), one.version) == one.version
    assert promote(warehouse, settings, Refusing(), two.version) == two.version
    assert rollback(warehouse, settings, Refusing()) == one.version
    assert links(settings) == {"champion": one.version}
    assert follow_up(warehouse, settings, publisher) == 3
    events = [(value["event"], value["version"]) for _, _, value in publisher.messages]
    assert events == [("promoted", one.version), ("promoted", two.version), ("rolled_back", one.version)]


def test_a_change_is_done_and_announced_when_its_link_cannot_be_made(
    warehouse: Warehouse, settings: Settings, publisher: MemoryPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    one = register(warehouse, settings, "one")
    with monkeypatch.context() as patch:
        patch.setattr(files, "point", full)
        assert promote(warehouse, settings, publisher, one.version) == one.version
        with pytest.raises(OSError, match="No space left"):
            follow_up(warehouse, settings, publisher)
        registry.reconcile(warehouse, settings)  # a start is not held up either
    assert [value["version"] for _, _, value in publisher.messages] == [one.version]
    assert links(settings) == {}
    follow_up(warehouse, settings, publisher)
    assert links(settings) == {"champion": one.version}


def test_an_announcement_that_takes_long_holds_up_no_other_workload(
    warehouse: Warehouse, settings: Settings, publisher: MemoryPublisher
) -> None:
    begun, over = threading.Event(), threading.Event()

    class Hanging(MemoryPublisher):
        def publish(self, *_: Any) -> None:
            begun.set()
            over.wait(30)

    slow, other = register(warehouse, settings, "one"), register(warehouse, settings, "one", "billing")
    thread = threading.Thread(target=promote, args=(warehouse, settings, Hanging(), slow.version))
    thread.start()
    try:
        assert begun.wait(30)
        Rollout(warehouse, settings, publisher, TOPIC).promote("billing", other.version, "operator", "by hand", NOW)
        assert [key for _, key, _ in publisher.messages] == ["billing"]
        assert thread.is_alive()
    finally:
        over.set()
        thread.join()


def test_an_adapter_of_another_base_model(warehouse: Warehouse, settings: Settings, tmp_path: Path) -> None:
    one = register(warehouse, settings, "one")
    assert settings.models.base is not None
    versions.check_base(one, settings.models.base)
    other = _base(tmp_path / "other", b"weightz")
    with pytest.raises(
        RetunedError, match=r"was trained on another base model \(.*base\) than the configured one \(.*other\)"
    ):
        versions.check_base(one, other)
    with pytest.raises(RetunedError, match=r"no transformers model there"):
        versions.base_hash(tmp_path)
    with pytest.raises(RetunedError, match=r"models.base is not set"):
        versions.need_base(None)


def test_the_base_hash_sees_size_start_and_end(tmp_path: Path) -> None:
    big = b"a" + bytes(3 << 20) + b"z"
    hashes = {versions.base_hash(_base(tmp_path / name, weights)) for name, weights in (
        ("1", big), ("2", b"b" + big[1:]), ("3", big[:-1] + b"y"), ("4", big[:100] + big),
    )}  # fmt: skip
    assert len(hashes) == 4


def test_metrics_follow_aliases_and_promotions(
    warehouse: Warehouse, settings: Settings, publisher: MemoryPublisher
) -> None:
    collectors = CollectorRegistry()
    metrics = Metrics(collectors)
    one, two = register(warehouse, settings, "one"), register(warehouse, settings, "two")
    promote(warehouse, settings, publisher, one.version)
    metrics.aliases(warehouse, "support")
    promote(warehouse, settings, publisher, two.version)
    metrics.aliases(warehouse, "support")
    metrics.aliases(warehouse, "support")
    found = {
        (sample.labels["model_name"], sample.labels["alias"]): sample.value
        for family in collectors.collect()
        for sample in family.samples
        if sample.name == "retuned_model_info"
    }
    assert found == {(two.name, "champion"): 1.0, (one.name, "previous"): 1.0}
    labels = {"workload": "support", "event": "promoted"}
    assert collectors.get_sample_value("retuned_promotions_total", labels) == 2.0
    # These are there before the first one, so that an alert sees its rise.
    assert collectors.get_sample_value("retuned_promotions_total", labels | {"event": "rolled_back"}) == 0.0
    failed = {"workload": "support", "state": "failed"}
    assert collectors.get_sample_value("retuned_training_runs_total", failed) == 0.0


def test_no_scrape_after_a_restart_sees_0_promotions_and_then_those_from_before(
    warehouse: Warehouse, settings: Settings, publisher: MemoryPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(warehouse, settings, publisher, register(warehouse, settings, "one").version)
    collectors, seen, rows = CollectorRegistry(), list[float | None](), warehouse.rows
    labels = {"workload": "support", "event": "promoted"}

    def scraped(*arguments: Any) -> Any:
        found = rows(*arguments)
        seen.append(collectors.get_sample_value("retuned_promotions_total", labels))
        return found

    metrics = Metrics(collectors)
    monkeypatch.setattr(warehouse, "rows", scraped)
    metrics.aliases(warehouse, "support")
    assert seen[0] is None
    assert 0.0 not in seen
    assert collectors.get_sample_value("retuned_promotions_total", labels) == 1.0


def test_threads_that_announce_at_once_tell_each_change_once(warehouse: Warehouse, settings: Settings) -> None:
    class SlowPublisher(MemoryPublisher):
        def publish(self, topic: str, key: str, value: dict[str, Any]) -> None:
            time.sleep(0.05)
            super().publish(topic, key, value)

    slow, errors = SlowPublisher(), []
    version = register(warehouse, settings, "one").version
    promote(warehouse, settings, AbsentPublisher(), version)

    def announce() -> None:
        try:
            follow_up(warehouse, settings, slow)
        except Exception as error:  # noqa: BLE001  (a thread's error would be lost)
            errors.append(error)

    threads = [threading.Thread(target=announce) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(slow.messages) == 1
