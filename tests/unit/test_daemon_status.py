"""What the status shows of a retraining."""

import json
import random
from pathlib import Path

import pytest
import yaml
from brokers import free_port
from jinja2 import Environment, PackageLoader
from traffic import START, interactions

from retuned.daemon.cli.main import main
from retuned.daemon.jsontext import as_json
from retuned.daemon.service import opened
from retuned.daemon.settings import load
from retuned.daemon.status import status


def test_a_run_shows_the_scores_of_all_that_it_compared(tmp_path: Path) -> None:
    file = tmp_path / "retuned.yaml"
    folders = {"warehouse": {"path": str(tmp_path / "w.duckdb")}, "models": {"directory": str(tmp_path / "models")}}
    file.write_text(yaml.safe_dump(folders))
    scores = {"base": 0.0, "logged": 0.25, "candidate": 0.875}
    with opened(load(file)) as local:
        jobs = local.jobs
        interactions(jobs.context.warehouse, ["Where is my parcel?"], random.Random(0), start=START)
        jobs.context.now = lambda: START
        for id, detail in (("r1", {"scores": scores}), ("r2", None)):
            jobs.context.warehouse.insert(
                "runs",
                id=id,
                workload="support",
                reasons='["by hand"]',
                state="running",
                started_at=START,
                detail=json.dumps(detail) if detail else None,
            )
        told = json.loads(as_json(status(jobs, None, None)))
    shown = {run["id"]: run["scores"] for run in told["workloads"]["support"]["runs"]}
    assert shown == {"r1": scores, "r2": None}
    page = Environment(loader=PackageLoader("retuned.daemon.web", "."), autoescape=True).get_template("status.html")
    assert "base 0.000, logged 0.250, candidate 0.875" in " ".join(page.render(status=told).split())


@pytest.mark.parametrize(
    ("run", "shown"),
    [
        (
            {"state": "refused", "error": "workload support: 40 new examples"},
            "refused: workload support: 40 new examples",
        ),
        ({"state": "failed", "error": "train: out of memory"}, "failed: train: out of memory"),
        (
            {"state": "succeeded", "version": "3f2a91c0", "detail": '{"scores": {"base": 0, "candidate": 0.8125}}'},
            "succeeded: support@3f2a91c0, holdout score: candidate 0.812, base 0.000",
        ),
        ({"state": "interrupted"}, "interrupted: it goes on from its checkpoint when its turn comes"),
    ],
)
def test_the_text_says_what_became_of_the_latest_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], run: dict[str, str], shown: str
) -> None:
    file = tmp_path / "retuned.yaml"
    folders = {"warehouse": {"path": str(tmp_path / "w.duckdb")}, "models": {"directory": str(tmp_path / "models")}}
    file.write_text(yaml.safe_dump({**folders, "http": {"port": free_port()}}))
    with opened(load(file)) as local:
        interactions(local.warehouse, ["Where is my parcel?"], random.Random(0), start=START)
        local.warehouse.insert("runs", id="r", workload="support", reasons="[]", started_at=START, **run)
    assert main(["status", "--config", str(file)]) == 0
    assert f"  run         {shown}\n" in capsys.readouterr().out
