"""The money on the page, in the status and at the terminal, of a workload with a promotion in it."""

import json
import random
from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry

from fixtures.daemon.pages import page, text
from fixtures.feedback.traffic import START, feedback, interactions, promoted, prompts
from retuned.daemon.cli.main import main
from retuned.daemon.jsontext import as_json
from retuned.daemon.operations.local import opened
from retuned.daemon.settings import load
from retuned.daemon.status import status
from retuned.monitors.metrics import Metrics

HOUR = timedelta(hours=1)


def test_the_money_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "retuned.yaml"
    settings = {
        "warehouse": {"path": str(tmp_path / "data" / "retuned.duckdb")},
        "models": {"directory": str(tmp_path / "models")},
        "roi": {"hourly_rate": [{"from": "2026-03-01", "value": 60}], "token_cost": 0, "escalation_cost": 0},
    }
    file.write_text(yaml.safe_dump(settings))
    with opened(load(file)) as local:
        jobs = local.jobs
        promoted(jobs.context.warehouse, "p1", "v1", None, START + HOUR)
        rng = random.Random(5)
        # Of v1 on two days, with that of the base model three: as many as an interval of the uplift needs.
        for first, start, step, model, seconds in (
            (0, START, HOUR / 60, "base", 60),
            (40, START + HOUR, HOUR * 0.6, "v1", 180),
        ):
            asked, answered_by = prompts(40, rng), {"model": f"support@{model}", "cost": 0.25}
            ids = interactions(jobs.context.warehouse, asked, rng, start=start, step=step, offset=first, **answered_by)
            for odd in (0, 1):
                feedback(
                    jobs.context.warehouse,
                    ids[odd::2],
                    "time_saved_seconds",
                    seconds + 30 * odd,
                    offset=first + 20 * odd,
                )
        feedback(jobs.context.warehouse, ids[:16], "resolved", True, offset=200)
        feedback(jobs.context.warehouse, ids[16:20], "resolved", False, offset=300)
        feedback(jobs.context.warehouse, ids[:1], "escalated", True, offset=400)
        registry = CollectorRegistry()
        jobs.context.monitor_metrics = Metrics(registry)
        jobs.context.now = lambda: START + 26 * HOUR
        jobs.run("quality")
        of = {"workload": "support", "source": "user"}
        for name, total in (("time_saved_seconds", 80), ("resolved", 20), ("escalated", 1)):
            assert registry.get_sample_value("retuned_feedback_total", of | {"name": name}) == total
        assert registry.get_sample_value("retuned_roi_cost_per_resolved_amount", {"workload": "support"}) == 20 / 15
        told = json.loads(as_json(status(jobs, None, None)))
        shown = text(page(local, "/workloads/support"))
    roi = told["workloads"]["support"]["roi"]
    # 40 answers of 60 or 90 seconds, 40 of 180 or 210, at 60 an hour; each cost 0.25.
    assert (roi["gains"], roi["costs"], roi["ratio"]) == pytest.approx((180.0, 20.0, 8.0))
    assert roi["ratio_low"] < 8.0 < roi["ratio_high"]
    versions = {of["version"]: (round(of["gains"], 6), of["costs"]) for of in roi["versions"]}
    assert versions == {None: (50.0, 10.0), "v1": (130.0, 10.0)}
    (change,) = roi["promotions"]
    assert (change["interactions"], change["counterfactual"], change["uplift"]) == pytest.approx((40, 50.0, 80.0))
    assert change["uplift_low"] < 80.0 < change["uplift_high"]

    became = {"resolved": 15, "unresolved": 4, "escalated": 1, "unknown": 60, "since": "2026-03-02", "costs": 20.0}
    assert roi["conversations"] == became | {"cost_per_resolved": 20 / 15}

    assert "Return on investment 8.00 (" in shown
    assert "1.333 EUR per resolved conversation" in shown
    assert "since 2026-03-02: 15 resolved, 4 not, 1 escalated, 60 unknown" in shown
    assert f"80.00 {change['uplift_low']:.2f} to {change['uplift_high']:.2f}" in shown

    assert main(["status", "support", "--verbose", "--config", str(file)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"money ROI 8.00 (gains 180.00, costs 20.00 EUR, 95% {roi['ratio_low']:.2f} to" in said
    assert "; uplift 80.00 EUR (support@base would have gained 50.00, 95% " in said
    counts = "since 2026-03-02: 15 resolved, 4 unresolved, 1 escalated, 60 unknown"
    assert f"; 1.333 EUR per resolved conversation ({counts})" in said


def test_the_incumbent_replaces_no_call_to_itself(tmp_path: Path) -> None:
    file = tmp_path / "retuned.yaml"
    settings = {
        "warehouse": {"path": str(tmp_path / "data" / "retuned.duckdb")},
        "models": {"directory": str(tmp_path / "models")},
        "roi": {"third_party_cost": 0.02},
        "workloads": {"support": {"incumbent": {"url": "https://api.example.com/v1", "model": "gpt-4.1"}}},
    }
    file.write_text(yaml.safe_dump(settings))
    with opened(load(file)) as local:
        rng = random.Random(5)
        for number, (workload, model) in enumerate((("support", "gpt-4.1"), ("support", "base"), ("sales", "gpt-4.1"))):
            interactions(
                local.jobs.context.warehouse, prompts(1, rng), rng, workload=workload, model=model, offset=number
            )
        local.jobs.run("quality")
        rows = local.jobs.context.warehouse.rows("SELECT workload, quantity FROM ledger ORDER BY workload")
    assert rows == [{"workload": "sales", "quantity": 1.0}, {"workload": "support", "quantity": 1.0}]
