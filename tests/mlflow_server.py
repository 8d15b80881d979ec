"""A real MLflow server, where RETUNED_MLFLOW names its command, for example /opt/mlflow/bin/mlflow."""

import os
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from brokers import until
from model_servers import free_port

MLFLOW = os.environ.get("RETUNED_MLFLOW")
with_mlflow = (
    pytest.mark.skipif(MLFLOW is None, reason="RETUNED_MLFLOW names no mlflow: make .venv-mlflow"),
    pytest.mark.timeout(600),
)
"""Marks of a parameter that starts one."""


@contextmanager
def mlflow(folder: Path) -> Iterator[str]:
    """A tracking server whose runs, models and artifacts are in a folder; its address."""
    assert MLFLOW is not None
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = [MLFLOW, "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder)]
    # Ten processes for jobs that no test makes; and reports of its use to its makers.
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, cwd=folder, env=environment)

    def answers() -> bool:
        assert server.poll() is None, (folder / "log").read_text()
        try:
            return bool(urllib.request.urlopen(f"{url}/health", timeout=5).status == 200)
        except OSError:
            return False

    try:
        until(answers, 400)  # its first start makes a database
        yield url
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()
