"""What the demo shows while it waits, and what it reports at its end."""

import io
from typing import Any

import pytest
from rich.console import Console

from retuned.daemon.demo import run
from retuned.daemon.demo.view import View, progress


@pytest.mark.parametrize(
    ("training", "text"),
    [
        ({}, ""),
        ({"stage": "dataset"}, "retraining: the daemon selects what to learn from"),
        ({"stage": "train", "rows": {"train": 56}}, "retraining: the base model is loaded"),
        ({"stage": "train", "step": 30, "steps": 40, "loss": 0.0061}, "retraining: step 30 of 40, loss 0.006"),
        (
            {"stage": "evaluate", "rows": {"train": 56}, "step": 40, "steps": 40, "loss": 0.1},
            "evaluation: the base model, the champion and the new adapter are loaded",
        ),
        (
            {"stage": "evaluate", "split": "general", "evaluated": 12, "rows": 24},
            "evaluation: general questions, 12 of 24",
        ),
        ({"stage": "promoted", "version": "8bfccec9"}, "retraining: promoted"),
    ],
)
def test_a_run_under_way_is_described_in_words(training: dict[str, Any], text: str) -> None:
    assert progress(training) == text


def test_without_a_terminal_a_line_comes_with_each_stage_of_a_run() -> None:
    out = io.StringIO()
    view = View(Console(file=out), ["wait"], "demo")
    for training in ({}, {}, {"stage": "dataset"}, {"stage": "dataset"}, {"stage": "train"}):
        view.tell_progress(training, "12 questions, 3 corrections")
    assert [line.split("] ")[1].strip() for line in out.getvalue().splitlines()] == [
        "12 questions, 3 corrections",
        "retraining: the daemon selects what to learn from",
        "retraining: the base model is loaded",
    ]


def test_the_end_reports_the_drift_that_the_change_caused_and_one_line_for_each_decision() -> None:
    result = {
        "changed_at": "2026-11-28T20:31:20.000000+00:00",
        "drift": [
            {"at": "2026-11-28T20:32:35Z", "detail": "topic moved", "report": "/r/later.json"},
            {"at": "2026-11-28T20:31:50Z", "detail": "satisfaction moved", "report": "/r/first.json"},
            {"at": "2026-11-28T20:31:01Z", "detail": "before the change", "report": "/r/early.json"},
        ],
        "decisions": [
            {"at": "2026-11-28T20:26:21Z", "kind": "retrain", "outcome": True, "reasons": ["140 new corrections"]},
            {"at": "2026-11-28T20:28:58Z", "kind": "gate", "outcome": True, "reasons": ["It gains.", "a", "b"]},
            {"at": "2026-11-28T20:32:58Z", "kind": "retrain", "outcome": True, "reasons": ["drift", "and more"]},
            {"at": "2026-11-28T20:34:00Z", "kind": "gate", "outcome": False, "reasons": ["It gains.", "Refused: b."]},
        ],
    }
    assert run._history(result) == [
        "20:26:21 retraining because of 140 new corrections",
        "20:28:58 gate passed: It gains.",
        "20:31:20 the company changed its policies",
        "20:31:50 drift found: satisfaction moved",
        "20:32:58 retraining because of drift; and more",
        "20:34:00 gate refused: Refused: b.",
    ]
    found = run._drift_found(result)
    assert found is not None
    assert found["report"] == "/r/first.json"
