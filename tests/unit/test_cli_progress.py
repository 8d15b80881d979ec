"""The line that follows a run, by what the daemon reports of it."""

from typing import Any

import pytest

from retuned.daemon.cli import progress

OTHERS = ({"id": "other", "finished_at": "2026-03-02 08:00", "state": "failed", "version": None, "error": "disk"},)
"""Runs that another request asked for."""


class Reported:
    """A daemon that reports one progress after the other."""

    def __init__(self, *reports: dict[str, Any]) -> None:
        row = {"id": "r", "finished_at": None, "waits_for": None, "state": "running", "version": "v", "error": None}
        ended = row | {"finished_at": "2026-03-02 09:00", "state": "succeeded", "progress": None}
        self._rows = [row | {"progress": one} for one in reports] + [ended]

    def ask(self, *_: Any) -> Any:
        return [*OTHERS, self._rows.pop(0)]


def test_a_stage_that_has_not_counted_yet_shows_no_count_of_an_earlier_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LOOK_SECONDS", 0.0)
    built = {"rows": {"train": 5, "holdout": 3}}  # of the dataset, by split
    service: Any = Reported(
        {"stage": "dataset", **built}, {"stage": "evaluate", **built}, {"stage": "evaluate", "evaluated": 1, "rows": 3}
    )
    assert progress.follow(service, {"workload": "support", "run": "r"}) == 0
    assert capsys.readouterr() == ("support: succeeded: v\n", "support: dataset\nsupport: evaluate\n")
