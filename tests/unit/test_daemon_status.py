"""What the status shows of a retraining."""

import json
import random
from pathlib import Path

import yaml
from jinja2 import Environment, PackageLoader
from traffic import START, interactions

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
        told = json.loads(as_json(status(jobs.context.warehouse, jobs, None, None)))
    shown = {run["id"]: run["scores"] for run in told["workloads"]["support"]["runs"]}
    assert shown == {"r1": scores, "r2": None}
    page = Environment(loader=PackageLoader("retuned.daemon.web", "."), autoescape=True).get_template("status.html")
    assert "base 0.000, logged 0.250, candidate 0.875" in " ".join(page.render(status=told).split())
