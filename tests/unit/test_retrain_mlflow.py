"""What MLflow's registries are sent of secrets: a double that notes who asks for what."""

import base64
import json
from pathlib import Path

import pytest
from http_doubles import Quiet, listening

from retuned.retrain.release.targets.mlflow import Mlflow, _registered
from retuned.retrain.serving_settings import MlflowTarget

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
