"""Where a version comes from, and that nothing else is loaded: hashes, bill of materials, licences."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from fixtures.feedback.traffic import new_warehouse
from fixtures.models.tiny import tiny_llama
from retuned.consumers.common.durable import sha256
from retuned.consumers.common.signing import make_key
from retuned.consumers.errors import ConfigurationError, RetunedError
from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.consumers.warehouse.connection import Warehouse
from retuned.daemon.app import App
from retuned.daemon.cli.main import main
from retuned.daemon.reports import reports
from retuned.daemon.settings import Settings
from retuned.retrain import versions
from retuned.retrain.data.dataset import Dataset
from retuned.retrain.decision.evaluate import evaluate
from retuned.retrain.release import bom, registry, signature
from retuned.retrain.release.licence import check_licence
from retuned.retrain.release.rollout import Rollout
from retuned.retrain.settings import Settings as RetrainSettings
from retuned.retrain.training.base_model import load_config, load_model, load_tokenizer
from retuned.retrain.training.train import train
from retuned.retrain.versions import Version, check_intact

NOW = datetime(2026, 4, 1, 12, 30, 0, 250_000)


@pytest.fixture
def warehouse(tmp_path: Path) -> Iterator[Warehouse]:
    made = new_warehouse(tmp_path)
    yield made
    made.close()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "SmallLM"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(3 << 20))
    (folder / "README.md").write_text("---\nlicense: Apache-2.0\n---\n")
    return folder


@pytest.fixture
def version(tmp_path: Path, warehouse: Warehouse, base: Path) -> Version:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"r": 16}')
    (adapter / "adapter_model.safetensors").write_text("small weights")
    return registry.register(
        warehouse, tmp_path / "models", "support", adapter, base_model=base, parent_version="11111111",
        dataset_version="d1", run_id="r1", details={}, now=NOW,
    )  # fmt: skip


def test_the_bill_of_materials_is_cyclonedx_and_names_what_the_version_is_made_of(version: Version, base: Path) -> None:
    text = (version.path / bom.NAME).read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    made = json.loads(text)
    own = made["metadata"]["component"]
    assert (own["type"], own["bom-ref"]) == ("machine-learning-model", version.name)
    hashes = {one["name"]: one["hashes"][0]["content"] for one in own["components"]}
    assert hashes == versions.file_hashes(version.path)
    found: dict[str, Any] = {one["bom-ref"]: one for one in made["components"]}
    model = found[f"base-model:{versions.base_hash(base)}"]
    assert model["licenses"] == [{"license": {"name": "Apache-2.0"}}]
    hashes = {one["name"]: one["hashes"][0]["content"] for one in model["components"]}
    assert hashes == {
        name: sha256(base / name) for name in ("config.json", "model.safetensors", "tokenizer_config.json")
    }
    assert set(found) == {f"base-model:{version.base_hash}", "dataset:d1", "support@11111111"}
    assert made["dependencies"] == [{"ref": version.name, "dependsOn": list(found)}]


def test_a_registered_version_is_in_the_audit_with_its_hashes(version: Version, warehouse: Warehouse) -> None:
    (row,) = warehouse.rows("SELECT * FROM audit")
    assert (row["actor_kind"], row["action"], row["subject"]) == ("rule", "registered", version.name)
    assert json.loads(row["details"])["files"] == versions.file_hashes(version.path)


def test_the_weights_of_an_erased_version_are_another_version_if_they_are_trained_without_the_rows(
    version: Version, warehouse: Warehouse, base: Path, tmp_path: Path
) -> None:
    def register(dataset: str, parent: str | None) -> Version:
        return registry.register(
            warehouse, tmp_path / "models", "support", tmp_path / "adapter", base_model=base, parent_version=parent,
            dataset_version=dataset, run_id="r2", details={}, now=NOW,
        )  # fmt: skip

    assert register("d2", None) == version
    warehouse.insert("erasures", id="e1", requested_at=NOW, state="done")
    warehouse.insert("erasure_datasets", erasure_id="e1", dataset_version="d1", rows=1)
    assert register("d1", "11111111") == version
    clean = register("d2", None)
    assert clean.version != version.version
    assert (clean.dataset_version, clean.parent_version) == ("d2", None)
    assert versions.erased_since(warehouse, "support").keys() == {version.version}
    warehouse.execute("UPDATE models SET removed_at = created_at WHERE version = ?", [version.version])
    assert register("d2", None) == clean
    check_intact(clean)


@pytest.mark.parametrize("file", versions.ADAPTER_FILES)
def test_a_version_whose_files_were_changed_or_are_gone_is_not_loaded(version: Version, file: str) -> None:
    check_intact(version)
    (version.path / file).write_text("other weights")
    # Whoever changes the files can change the manifest beside them, too.
    manifest = version.manifest | {"files": versions.file_hashes(version.path)}
    (version.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RetunedError, match=f"{file} in .* was changed after it was registered"):
        check_intact(version)
    (version.path / file).unlink()
    with pytest.raises(RetunedError, match="restore it from a backup"):
        check_intact(version)


def _altered(version: Version) -> None:
    """Changes one byte of the weights."""
    file = version.path / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_a_version_that_was_altered_goes_nowhere(
    version: Version, warehouse: Warehouse, base: Path, tmp_path: Path
) -> None:
    settings = RetrainSettings(
        models={"base": base, "directory": tmp_path / "models"},  # type: ignore[arg-type]
        rollout={"steps": [0.1, 1.0]},  # type: ignore[arg-type]
    )
    rollout = Rollout(warehouse, settings, MemoryPublisher(), "model-events")
    dataset = Dataset("d1", "support", NOW, tmp_path, {}, 0, {})
    _altered(version)
    ways: list[Callable[[], object]] = [
        lambda: rollout.set_champion("support", version.version, "operator", "by hand", NOW),
        lambda: rollout.begin("support", version.version, "gate", "it is better", NOW),
        lambda: train(dataset, version, settings, tmp_path / "run"),
        lambda: evaluate(dataset, version, tmp_path, settings, "float32", tmp_path / "run"),
    ]
    for way in ways:
        with pytest.raises(RetunedError, match=r"adapter_model.safetensors in .* was changed after it was registered"):
            way()
    assert versions.aliases(warehouse, "support") == {}


def test_no_link_leads_to_a_version_that_was_altered(
    version: Version, warehouse: Warehouse, base: Path, tmp_path: Path
) -> None:
    settings = RetrainSettings(models={"base": base, "directory": tmp_path / "models"})  # type: ignore[arg-type]
    rollout = Rollout(warehouse, settings, MemoryPublisher(), "model-events")
    rollout.set_champion("support", version.version, "operator", "by hand", NOW)
    _altered(version)
    with pytest.raises(RetunedError, match="was changed after it was registered"):
        rollout.follow_up("support")
    registry.reconcile(warehouse, settings)  # the daemon starts
    assert not (version.path.parent / "champion").exists()


def test_a_report_does_not_load_a_champion_that_was_altered(
    version: Version, warehouse: Warehouse, base: Path, tmp_path: Path
) -> None:
    settings = Settings(models={"base": base, "directory": tmp_path / "models"})  # type: ignore[arg-type]
    Rollout(warehouse, settings, MemoryPublisher(), "t").promote("support", version.version, "operator", "", NOW)
    columns = "'d1' AS version, 'support' AS workload, now() AS created_at, '/' AS path, '{}' AS card"
    rows = "1 AS train, 1 AS holdout, 0 AS replay"
    warehouse.execute(f"INSERT INTO datasets BY NAME SELECT {columns}, {rows}")
    _altered(version)
    found = reports.benchmark(warehouse, settings, "support", tmp_path / "report", None)
    assert "was changed after it was registered" in found["problem"]


def test_a_file_that_was_added_to_a_version_is_not_handed_to_a_server(version: Version) -> None:
    (version.path / "tokenizer.json").write_text("{}")
    with pytest.raises(RetunedError, match=r"tokenizer.json in .* was added after it was registered"):
        check_intact(version)


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer_config.json", "chat_template.jinja"])
def test_a_base_model_that_was_changed_where_a_quick_look_sees_nothing_is_not_loaded(
    version: Version, base: Path, tmp_path: Path, file: str
) -> None:
    settings = RetrainSettings(models={"base": base, "directory": tmp_path / "models"})  # type: ignore[arg-type]
    dataset = Dataset("d1", "support", NOW, tmp_path, {}, 0, {})
    content = bytearray((base / file).read_bytes()) if (base / file).exists() else bytearray(b"x")
    content[len(content) // 2] ^= 1
    (base / file).write_bytes(content)
    assert versions.base_hash(base) == version.base_hash
    with pytest.raises(RetunedError, match=f"{file} was changed after support@.* was trained on it"):
        train(dataset, version, settings, tmp_path / "run")
    with pytest.raises(RetunedError, match=f"{file} was changed"):
        evaluate(dataset, version, tmp_path, settings, "float32", tmp_path / "run")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    make_key(tmp_path / "key")
    return tmp_path / "key"


def signed(version: Version, warehouse: Warehouse, key: Path) -> Version:
    """The same version, registered again by a daemon that has a key."""
    aside = version.path.rename(version.path.with_name("aside"))
    return registry.register(
        warehouse, version.path.parent.parent, "support", aside, base_model=version.base, parent_version=None,
        dataset_version="d1", run_id="r1", details={}, now=NOW, key_file=key,
    )  # fmt: skip


def verified(version: Version, key: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit status and what is printed by a command that knows no daemon."""
    status = main(["audit", "verify-version", str(version.path), "--key", f"{key}.pub"])
    printed = capsys.readouterr()
    return status, printed.out + printed.err


def test_a_signed_version_is_verified_without_a_daemon(
    version: Version, warehouse: Warehouse, key: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, printed = verified(version, key, capsys)
    assert (status, "versions are signed if audit.key_file is set" in printed) == (1, True)
    made = signed(version, warehouse, key)
    check_intact(made)
    status, printed = verified(made, key, capsys)
    assert (status, json.loads(printed)) == (0, json.loads((made.path / bom.NAME).read_text()))
    registry.renew_card(warehouse, made)
    assert verified(made, key, capsys)[0] == 0


@pytest.mark.parametrize("file", [*versions.ADAPTER_FILES, "manifest.json", bom.NAME, "tokenizer.json"])
def test_a_signed_version_with_another_file_is_refused(
    version: Version, warehouse: Warehouse, key: Path, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = signed(version, warehouse, key)
    (made.path / file).write_text("{}")
    status, printed = verified(made, key, capsys)
    assert (status, f"{file} was changed, added or removed after it was signed" in printed) == (1, True), printed


def test_a_version_that_another_key_signed_is_refused(
    version: Version, warehouse: Warehouse, key: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = signed(version, warehouse, key)
    other = key.with_name("other")
    make_key(other)
    signature.write(made.path, {}, other)
    status, printed = verified(made, key, capsys)
    assert (status, "signed with another key" in printed) == (1, True), printed


def test_a_base_model_needs_an_allowed_licence(base: Path, tmp_path: Path) -> None:
    check_licence(base, None)
    check_licence(base, ["apache-2.0", "mit"])
    (base / "README.md").unlink()
    for allowed in (["apache-2.0"], []):
        with pytest.raises(ConfigurationError, match=r"models\.base: .* has the licence unknown"):
            check_licence(base, allowed)
    settings = Settings(
        warehouse={"path": tmp_path / "w2.duckdb"},  # type: ignore[arg-type]
        models={"base": base, "directory": tmp_path / "models", "allowed_licences": ["mit"]},  # type: ignore[arg-type]
    )
    with pytest.raises(ConfigurationError, match=r"models\.allowed_licences allows mit"):
        App(settings)
    assert not (tmp_path / "w2.duckdb").exists()


def test_weights_in_another_format_than_safetensors_are_not_loaded(tmp_path: Path) -> None:
    """A file in Python's pickle format could run code."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32, **sizes))  # type: ignore[arg-type]
    model.save_pretrained(tmp_path)
    load_model(tmp_path, torch.float32)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        load_model(tmp_path, torch.float32)


def test_code_in_the_folder_of_a_base_model_is_not_run(tmp_path: Path) -> None:
    folder, ran = tiny_llama(tmp_path / "base"), tmp_path / "ran"
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w')\n")
    classes = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model", "AutoTokenizer": ["own.T", "own.T"]}
    for name in ("config.json", "tokenizer_config.json"):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | {"auto_map": classes}))
    load_tokenizer(folder)
    load_model(folder, torch.float32)  # transformers knows this type, and loads it with its own code
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "own"}))
    with pytest.raises(RetunedError, match=r"models\.base: .* needs the code in its folder, which is not run"):
        load_config(folder)
    assert not ran.exists()


@pytest.mark.full
@pytest.mark.processes
def test_the_bill_of_materials_of_the_release_is_cyclonedx_and_has_the_tested_versions(tmp_path: Path) -> None:
    file, root = tmp_path / "sbom.cdx.json", Path(__file__).parents[2]
    subprocess.run([sys.executable, str(root / "deploy/sbom.py"), str(file)], check=True)
    text = file.read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    made = json.loads(text)
    assert made["metadata"]["component"]["name"] == "retuned"
    found = {one["name"]: one for one in made["components"]}
    tested = dict(
        line.replace("_", "-").lower().split("==") for line in (root / "constraints.txt").read_text().splitlines()
        if re.fullmatch(r"\S+==\S+", line)
    )  # fmt: skip
    installed = {name: one["version"].partition("+")[0] for name, one in found.items() if "version" in one}
    assert {name: version for name, version in installed.items() if tested.get(name) != version}.keys() <= {
        "setuptools"
    }
    needs = {one["ref"]: set(one.get("dependsOn", [])) for one in made["dependencies"]}
    assert found["tokenizers"]["bom-ref"] in needs[found["transformers"]["bom-ref"]]
    assert (found["torch"]["scope"], found["trl"]["scope"]) == ("required", "optional")
    assert not {"pytest", "mypy", "mkdocs-material"} & found.keys()
