"""What the daemon and its commands make of a workload that a provider trains."""

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from provider_double import BASE, Provider, serving
from teaching import Teacher
from traffic import registered

from retuned.consumers.errors import ConfigurationError, RetunedError
from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.consumers.settings import WarehouseSettings
from retuned.consumers.warehouse.connection import Warehouse, open_warehouse, utc_now
from retuned.daemon.cli import check
from retuned.daemon.cli.main import main
from retuned.daemon.cli.plan import plan
from retuned.daemon.jobs import holds
from retuned.daemon.policy import evidence
from retuned.daemon.settings import Settings, load
from retuned.retrain import queue, versions
from retuned.retrain.release.rollout import Rollout
from retuned.retrain.settings import ProviderModel

URL = "https://api.openai.com/v1"


@pytest.fixture
def provider() -> Iterator[Provider]:
    with serving() as double:
        yield double


def settings(folder: Path, url: str = URL, **train: Any) -> Settings:
    """The provider trains `support`; other workloads have a base model here."""
    entry = {"base": BASE, "train": {"engine": "api", "api_url": url, "api_key": "sk-test", **train}}
    return Settings.model_validate(
        {
            "models": {"base": folder / "base", "directory": folder / "models"},
            "warehouse": {"path": folder / "w.duckdb"},
            "workloads": {"support": entry},
        }
    )


def test_a_base_model_is_a_folder_or_a_providers_model_by_workload(tmp_path: Path) -> None:
    found = settings(tmp_path)
    assert found.bases() == {"models.base": tmp_path / "base", "workloads.support.base": ProviderModel(BASE)}
    assert found.for_workload("support").base == ProviderModel(BASE)
    assert found.for_workload("sales").base == tmp_path / "base"
    moved = found.for_workload("support").with_base(ProviderModel("accounts/us/models/x"))
    assert moved.base == ProviderModel("accounts/us/models/x")


def test_the_key_is_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "sk-test" not in repr(settings(tmp_path))
    file = tmp_path / "retuned.yaml"
    monkeypatch.setenv("RETUNED__TRAIN__API_KEY", "sk-env")
    file.write_text(
        f"train: {{engine: api, api_url: {URL}}}\nworkloads: {{support: {{train: {{api_key: sk-file}}}}}}\n"
    )
    assert load(file).train.bearer_token() == "sk-env"
    assert main(["config", "--workload", "support", "--config", str(file)]) == 0
    told = capsys.readouterr().out
    assert 'engine: "api"' in told
    assert "sk-" not in told
    file.write_text(f"train: {{engine: api, api_url: {URL}, api_key: [sk-wrong]}}\n")
    monkeypatch.delenv("RETUNED__TRAIN__API_KEY")
    with pytest.raises(ConfigurationError) as error:
        load(file)
    assert "sk-wrong" not in str(error.value)


def test_check_asks_the_provider_and_nothing_of_this_machine(
    tmp_path: Path, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "check_broker", lambda _: "up")
    told = {name: (mark, found) for mark, name, found in check.check(settings(tmp_path, provider.url))}
    assert told["base model of workloads.support.base"] == ("ok", f"{BASE}, which a provider has (train.engine api)")
    assert "provider" not in told
    assert told["provider of support"][0] == "ok"
    assert "evaluation of support" not in told
    assert told["memory of support"][0] == "ok"
    assert provider.asked == [("GET", "/v1/models")]
    provider.models.pop(BASE)
    told = {name: (mark, found) for mark, name, found in check.check(settings(tmp_path, provider.url))}
    assert told["provider of support"][0] == "FAIL"
    assert "lists no model" in told["provider of support"][1]


def test_a_training_at_a_provider_needs_no_memory_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holds, "available_bytes", lambda: 1)
    found = settings(tmp_path, memory_bytes=2**40).for_workload("support")
    assert holds.lacking_memory(found) is None
    assert holds.lacking_memory(found, "gpt-4.1-nano") is None


def test_the_plan_names_tokens_and_price(tmp_path: Path) -> None:
    found = settings(tmp_path, epochs=3)
    fits, lines = plan(found, "support", None, None, None)
    assert fits
    assert lines[0] == f"support: {BASE} at {URL}"
    assert lines[-1] == "tokens        not known before a first dataset is made"
    dataset = tmp_path / "models" / "support" / "datasets" / "d1"
    dataset.mkdir(parents=True)
    (dataset / "card.json").write_text("{}")
    row = {"row_id": "r", "messages": json.dumps([{"role": "user", "content": "a" * 300}]), "completion": "b" * 300}
    pq.write_table(pa.Table.from_pylist([row | {"context": None}] * 10), dataset / "train.parquet")
    _, lines = plan(found, "support", None, None, None)
    assert any("about 5136 tokens, at a price that is not known (roi.provider_training_token_cost)" in x for x in lines)
    priced = found.model_copy(
        update={"roi": found.roi.model_copy(update={"provider_training_token_cost": 0.001, "currency": "USD"})}
    )
    _, lines = plan(priced, "support", None, None, None)
    assert any("× 3 epochs (train.epochs): about 5136 tokens, about 5.14 USD" in line for line in lines)


def test_no_payoff_is_expected_by_hours_of_what_is_paid_by_the_token(tmp_path: Path, warehouse: Warehouse) -> None:
    for workload in ("support", "sales"):
        Teacher(warehouse, workload).ask("where is my parcel", "here")
        began = utc_now() - timedelta(hours=1)
        row = {"reasons": "[]", "state": "succeeded", "started_at": began, "finished_at": utc_now()}
        counts = {"train": 9, "validation": 1, "holdout": 3, "replay": 0, "card": "{}"}
        warehouse.insert("datasets", version="d", workload=workload, created_at=began, path="/d", **counts)
        warehouse.insert("runs", id=workload, workload=workload, train_seconds=60.0, dataset_version="d", **row)
    found = settings(tmp_path)
    money = {
        workload: evidence.gather(warehouse, found.for_workload(workload), workload, utc_now()).money
        for workload in ("support", "sales")
    }
    assert money["support"] is None
    assert money["sales"] is not None


def test_what_another_kind_of_base_model_trained_is_not_gone_on_with(tmp_path: Path, warehouse: Warehouse) -> None:
    found = settings(tmp_path)
    registered(warehouse, "3f2a91c0", "ft:gpt-4.1-mini:us:1")
    rollout = Rollout(warehouse, found, MemoryPublisher(), "events")
    rollout.set_champion("support", "3f2a91c0", "operator", "to see", utc_now())
    champion = versions.champion(warehouse, "support")
    assert champion is not None
    assert champion.base == ProviderModel("gpt-4.1-mini")
    why = queue.untrainable(warehouse, found.for_workload("support"), "support")
    assert why is not None
    assert "another base model (gpt-4.1-mini) than the configured one (gpt-4.1-mini-2025-04-14)" in why
    assert f"`retuned rebase support --base {BASE}`" in why
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text("")
    with pytest.raises(RetunedError) as error:
        versions.check_base(champion, folder)
    assert "retuned rebase" not in str(error.value)  # nothing moves between a folder and a provider
    assert "or start anew with `retuned promote support base`" in str(error.value)


def test_a_rebase_to_a_model_of_the_provider_is_asked_for_by_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "retuned.yaml"
    file.write_text(
        f"models: {{base: {BASE}, directory: {tmp_path}/models}}\nwarehouse: {{path: {tmp_path}/w.duckdb}}\n"
        f"train: {{engine: api, api_url: {URL}}}\n"
    )
    warehouse = open_warehouse(WarehouseSettings(path=tmp_path / "w.duckdb"))
    Teacher(warehouse).ask("where is my parcel", "here")
    warehouse.close()
    assert main(["rebase", "support", "--base", "gpt-4.1-nano", "--config", str(file)]) == 1
    assert "so there is nothing to train anew: set models.base to gpt-4.1-nano" in capsys.readouterr().err
