"""MLflow's registries: what they are sent of secrets, and what a registration that fails leaves there."""

import base64
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from fixtures.servers.http import Quiet, listening
from retuned.consumers.errors import RetunedError
from retuned.retrain.release.deployments import Wanted
from retuned.retrain.release.targets.mlflow import Mlflow, _registered
from retuned.retrain.serving_settings import MlflowTarget
from retuned.retrain.versions import Version

NOW = datetime(2026, 4, 1)
NAMES = ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")


@pytest.mark.parametrize("environment", [{}, {"MLFLOW_TRACKING_USERNAME": "anna", "MLFLOW_TRACKING_PASSWORD": "own"}])
def test_the_token_of_one_registry_is_not_sent_to_the_next(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    sent: list[str | None] = []

    class Registry(Quiet):
        def do_GET(self) -> None:
            sent.append(self.headers["Authorization"])
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"registered_models": []}).encode())

    (tmp_path / "token").write_text("of the first")
    with listening(Registry) as first, listening(Registry) as second:
        closed = MlflowTarget(kind="mlflow", url=first, token_file=tmp_path / "token")
        for settings in (closed, MlflowTarget(kind="mlflow", url=second), closed):
            assert Mlflow(settings, ()).registered_models() == []
    own = f"Basic {base64.b64encode(b'anna:own').decode()}" if environment else None
    assert sent == ["Bearer of the first", own, "Bearer of the first"]


def test_workloads_whose_names_differ_in_signs_have_models_of_their_own() -> None:
    names = ("eu/support", "eu:support", "eu-support", "eu'support")
    registered = [_registered(name) for name in names]
    assert len(set(registered)) == len(names)
    assert registered[2] == "eu-support"
    assert all(name.startswith("eu-support") and not set(name) & set("/:'") for name in registered)


def test_a_registration_that_is_repeated_leaves_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    about: dict[str, Any] = {"created_at": NOW, "path": tmp_path / "adapter", "base_model": "/base", "base_hash": "h"}
    about |= {"parent_version": None, "dataset_version": "d", "run_id": "r", "manifest": {}, "removed_at": None}
    url = (tmp_path / "registry").as_uri()
    target = Mlflow(MlflowTarget.model_construct(kind="mlflow", url=url, token_file=None, timeout_seconds=9.0), ())
    register = MlflowClient.create_model_version

    def refuses(*_: Any, **__: Any) -> None:
        raise MlflowException("the disk is full")

    for workload in ("o'neill", "support"):  # the same weights, of two workloads
        wanted = Wanted(Version(version="1a2b3c4d", workload=workload, **about), frozenset({"champion"}), NOW)
        monkeypatch.setattr(MlflowClient, "create_model_version", refuses)
        for _ in range(2):
            with pytest.raises(RetunedError, match="the disk is full"):
                target.load(wanted)
        monkeypatch.setattr(MlflowClient, "create_model_version", register)
        target.load(wanted)
    client = MlflowClient(url, url)
    (experiment,) = (one for one in client.search_experiments() if one.name == "retuned")
    runs = {run.info.run_id: run for run in client.search_runs([experiment.experiment_id])}
    registered = [client.get_model_version_by_alias(_registered(name), "champion") for name in ("o'neill", "support")]
    assert [runs.pop(one.run_id).info.run_name for one in registered] == ["o'neill@1a2b3c4d", "support@1a2b3c4d"]
    assert runs == {}
