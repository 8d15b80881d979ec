"""Drift checks: compare the current prompts and answers of a workload with those of the reference.

The daemon chooses the windows, computes the features in DuckDB and stores the outcome. `comparison` compares the
features in a child process.

Multiple testing. `drift.false_alarm_rate` is the chance that unchanged traffic flags any feature at any check within
the length of the current window (a day by default). Holm's procedure corrects for the number of features, and
`statistics.repeated_looks` for the number of checks. Windows overlap, and samples are drawn by a fixed hash, so
neighbouring checks see nearly the same rows: two consecutive checks that drift are hardly more evidence than one. The
chance starts anew with each length of the current window.
"""

import json
import threading
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb

from retuned.consumers.common import refusals
from retuned.consumers.common.process import run_child
from retuned.consumers.warehouse import judgements
from retuned.consumers.warehouse.connection import Warehouse, insert, named_queries
from retuned.monitors.drift.comparison import Feature
from retuned.monitors.drift.windows import windows as choose_windows
from retuned.monitors.settings import Settings
from retuned.monitors.windows import DAY, Season, Windows, sample
from retuned.monitors.windows import QUERIES as WINDOW_QUERIES

QUERIES = named_queries("retuned.monitors.drift", "drift.sql")
CHOOSE = {
    "answers": WINDOW_QUERIES["choose"],
    "rated": QUERIES["choose_rated"],
    "context": QUERIES["choose_with_context"],
}
# Reported when they move, but no drift by themselves: a slow machine is no reason to retrain.
OPERATIONS = ("latency_seconds",)
checking = threading.Lock()
"""Held while windows are compared and until the row with their report is stored: `sweep` deletes reports without a
row."""
# A thousand rows gain nothing from more threads, and each thread costs memory.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@dataclass(frozen=True)
class DriftCheck:
    """The result of a drift check.

    Attributes:
        drifted: whether any feature other than latency drifted; None: too few rows.
        severity: the distance, 0 to 1, of the feature that moved furthest: at least this share of the current events
            differs from those of the reference. None: too few rows.
        severity_low, severity_high: the 95% interval of the severity.
        features: deleted after `retention.detail_days` if the check found nothing.
        report: the JSON report, with Evidently's page beside it as .html; None: there is none, or it was deleted.
        detail: a sentence for a person.
        missing: how many more conversations are needed; None: there were enough.
        estimate: the estimated helpful rate of all answers (monitors/quality/estimate.py).
        lacking: the votes that the estimate lacks, as a `Lacking`; not stored with the check.
    """

    id: str
    created_at: datetime
    workload: str
    drifted: bool | None
    severity: float | None
    features: list[Feature]
    reference_rows: int
    current_rows: int
    report: Path | None
    detail: str
    severity_low: float | None = None
    severity_high: float | None = None
    missing: int | None = None
    estimate: dict[str, Any] | None = None
    lacking: dict[str, Any] | None = field(default=None, compare=False)

    @property
    def page(self) -> Path | None:
        """Evidently's HTML page, if there is a report."""
        return self.report and self.report.with_suffix(".html")


def check(
    warehouse: Warehouse,
    settings: Settings,
    workload: str,
    now: datetime,
    folder: Path,
    stop: threading.Event | None = None,
) -> DriftCheck:
    """Compares the windows of a workload, stores the outcome in `drift_checks` and its report in the folder.

    The same `now` on the same warehouse draws the same samples. Of the reports, the latest and those of the latest
    `drift.keep_reports` checks that found drift are kept. One check compares at a time; others wait.

    Raises:
        ChildFailed: the child process died or ran out of time; nothing was stored.
        Cancelled: `stop` was set; nothing was stored.
        StoreUnavailable: the cluster's storage did not accept the report; nothing was stored.
    """
    identity = f"{now:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"
    windows = choose_windows(warehouse, settings.windows, workload, now)
    minimum = settings.windows.minimum_rows
    missing = windows.missing(minimum) if windows else 2 * minimum
    with checking:
        if windows is None or missing:
            outcome = _blind(windows, identity, workload, now, minimum, missing)
        else:
            outcome = _compare(warehouse, settings, windows, now, identity, folder, stop)
        _store(warehouse, outcome)
    _prune(warehouse, [workload], settings.drift.keep_reports)
    return outcome


def forget_ahead(warehouse: Warehouse, workload: str, now: datetime) -> None:
    """Deletes the checks of a workload that were made while the clock was ahead of `now`."""
    with warehouse.transaction() as cursor:
        cursor.execute(QUERIES["ahead"], {"workload": workload, "now": now})


def latest(warehouse: Warehouse, workload: str) -> DriftCheck | None:
    """Returns the latest stored check of a workload."""
    row = warehouse.row(QUERIES["latest"], {"workload": workload})
    if row is None:
        return None
    features = [Feature(**feature) for feature in json.loads(row["features"])]
    return DriftCheck(
        **row
        | {
            "features": features,
            "report": Path(row["report"]) if row["report"] else None,
            "estimate": json.loads(row["estimate"]) if row["estimate"] else None,
        }
    )


def examples(warehouse: Warehouse, workload: str) -> list[dict[str, str]]:
    """Returns a current prompt, redacted as it is stored, for each feature that moved in the latest check."""
    return warehouse.rows(QUERIES["examples"], {"workload": workload})


def latest_at(warehouse: Warehouse) -> datetime | None:
    """Returns when any workload was last checked (naive UTC); None: never."""
    (row,) = warehouse.rows(QUERIES["latest_at"])
    checked_at: datetime | None = row["created_at"]
    return checked_at


def _blind(
    windows: Windows | None, identity: str, workload: str, now: datetime, minimum: int, missing: int
) -> DriftCheck:
    counts = (windows.reference.conversations, windows.current.conversations) if windows else (0, 0)
    reference_rows, current_rows = counts
    detail = (
        f"Blind: {missing} more conversations are needed. There are {reference_rows} in the reference and "
        f"{current_rows} in the current window; each needs {minimum} (windows.minimum_rows)."
    )
    return DriftCheck(
        identity, now, workload, None, None, [], reference_rows, current_rows, None, detail, missing=missing
    )


def _store(warehouse: Warehouse, outcome: DriftCheck) -> None:
    record_report = warehouse.artifacts.put("report", outcome.report.with_suffix("")) if outcome.report else None
    with warehouse.transaction() as cursor:
        if record_report:
            record_report(cursor)
        row = asdict(outcome) | {
            "features": json.dumps([asdict(feature) for feature in outcome.features]),
            "report": str(outcome.report) if outcome.report else None,
            "estimate": json.dumps(outcome.estimate) if outcome.estimate else None,
        }
        del row["lacking"]
        insert(cursor, "drift_checks", **row)


def _compare(
    warehouse: Warehouse,
    settings: Settings,
    windows: Windows,
    now: datetime,
    identity: str,
    folder: Path,
    stop: threading.Event | None,
) -> DriftCheck:
    report, rows_file = folder / f"{identity}.json", folder / f"{identity}.parquet"
    folder.mkdir(parents=True, exist_ok=True)
    for stray in folder.glob("*.parquet"):
        stray.unlink()  # from a killed check: only the warehouse keeps prompts
    try:
        terms = write_features(warehouse, settings, windows, now, rows_file)
        result = run_child(
            "retuned.monitors.drift.comparison",
            _job(settings, windows, now, rows_file, report),
            folder,
            timeout_seconds=settings.drift.timeout_seconds,
            stop=stop,
            environment=ONE_THREAD,
        )
    except BaseException:
        _unlink(report)
        raise
    finally:
        rows_file.unlink(missing_ok=True)
    features = [Feature(**feature) for feature in result["features"]]
    furthest = verdict(features)
    return DriftCheck(
        id=identity,
        created_at=now,
        workload=windows.workload,
        drifted=furthest is not None,
        severity=furthest.distance if furthest else 0.0,
        features=features,
        reference_rows=windows.reference.conversations,
        current_rows=windows.current.conversations,
        report=report if features else None,
        detail=sentence(features, terms, result["left_out"], windows.reference.season),
        severity_low=furthest.low if furthest else 0.0,
        severity_high=furthest.high if furthest else 0.0,
        estimate=result["estimate"],
        lacking=result["lacking"],
    )


def _job(settings: Settings, windows: Windows, now: datetime, rows_file: Path, report: Path) -> dict[str, Any]:
    """Returns the job of the child process, see `comparison.compare`."""
    drift = settings.drift
    return {
        "rows": str(rows_file),
        "report": str(report),
        "title": f"Drift of {windows.workload}, checked {now:%Y-%m-%d %H:%M} UTC",
        "false_alarm_rate": drift.false_alarm_rate,
        "minimum_distance": drift.minimum_distance,
        "topics": drift.topics,
        "embedding_model": str(drift.embedding_model or ""),
        "segments": list(drift.segments),
        "moving_windows": 1 if windows.standing else 2,
    }


def _unlink(report: Path) -> None:
    report.unlink(missing_ok=True)
    report.with_suffix(".html").unlink(missing_ok=True)


def write_features(warehouse: Warehouse, settings: Settings, windows: Windows, now: datetime, path: Path) -> list[str]:
    """Writes the features of samples of both windows as Parquet, and returns the most frequent new words.

    Each window has three samples of at most `sample_rows`: of all answers, of those that users rated, and of those
    with a context. Few answers are rated, so a sample of all answers would hold next to none of them.
    """
    import pyarrow.parquet as parquet

    # The seed depends on the start of the reference alone: overlapping windows give consecutive checks the same rows.
    seed = windows.reference.start.isoformat()
    judgements.follow(warehouse)
    with warehouse.cursor() as cursor:
        put_votes(cursor, windows, now)
        for name, window in (("reference", windows.reference), ("current", windows.current)):
            for kind, choose in CHOOSE.items():
                sample(cursor, f"{name}_{kind}", windows.workload, window, settings.windows.sample_rows, seed, choose)
        one_day = windows.current.end - windows.reference.start <= DAY
        cursor.execute(QUERIES["sampled"], {"one_day": one_day, "current_start": windows.current.start})
        given = {"segments": list(settings.drift.segments), "refusal": refusals.pattern(), "quoted": refusals.QUOTED}
        features = cursor.sql(QUERIES["features"], params=given)
        parquet.write_table(features.to_arrow_table(), path)
        return [str(word) for (word,) in cursor.execute(QUERIES["new_terms"]).fetchall()]


def put_votes(cursor: duckdb.DuckDBPyConnection, windows: Windows, now: datetime) -> None:
    """Puts users' votes on the answers of both windows into the temporary table `rated` of this cursor.

    The newest answers had little time to collect votes, and satisfied users may vote later than others. So the
    reference is read in periods as long as the current window, each with the votes that had arrived by its end.
    """
    cursor.execute(QUERIES["rated"])
    period = windows.current.end - windows.current.start
    for window in (windows.reference, windows.current):
        judgements.comparable_votes(cursor, windows.workload, window.start, window.end, now=now, period=period)
        cursor.execute(QUERIES["add_rated"])


def verdict(features: list[Feature]) -> Feature | None:
    """Returns the drifted feature that moved furthest, except OPERATIONS; None: none drifted."""
    moved = [feature for feature in features if feature.drifted and feature.feature not in OPERATIONS]
    return max(moved, key=lambda feature: feature.distance, default=None)


def sentence(features: list[Feature], terms: list[str], left_out: dict[str, str], season: Season | None = None) -> str:
    """Describes what moved, and what the current window was compared with; it quotes no prompt."""
    moved = sorted((feature for feature in features if feature.drifted), key=lambda feature: feature.value)
    text = f"{len(moved)} of {len(features)} features moved"
    if moved:
        text += ": " + "; ".join(
            f"{feature.feature.replace('_', ' ')} from {feature.reference} to {feature.current}"
            + (f", most in {feature.segment}" if feature.segment else "")
            for feature in moved
        )
        if terms:
            text += f"; new words: {', '.join(terms)}"
    text += "."
    if season:
        text += f" Compared with {season}."
    if left_out:
        text += " Not compared: " + ", ".join(f"{name} ({why})" for name, why in sorted(left_out.items())) + "."
    return text


def is_report(path: Path) -> bool:
    """Whether a path without suffix names the report of a drift check."""
    return path.match("????????T??????-????????")


def sweep(warehouse: Warehouse, folder: Path, before: datetime) -> int:
    """Deletes reports without a row in `drift_checks`, which killed processes leave; returns the number of files.

    Args:
        before: reports of checks that began later are kept: their row may still be written.
    """
    with checking:
        named = {Path(row["report"]).stem for row in warehouse.rows(QUERIES["reports"])}
        stray = [
            path
            for path in folder.glob("????????T??????-????????.*")
            if path.stem not in named and path.name < f"{before:%Y%m%dT%H%M%S}"
        ]
        for path in stray:
            path.unlink(missing_ok=True)
    return len(stray)


def thin(
    warehouse: Warehouse, workloads: Sequence[str], keep_reports: int, recent: datetime | None, old: datetime | None
) -> int:
    """Deletes old reports and old checks, and returns how many checks were deleted.

    The latest check of each workload is always kept.

    Args:
        recent: of the earlier checks that found nothing, the last of each hour is kept, without features; None: all.
        old: earlier checks are deleted; None: none.
    """
    _prune(warehouse, workloads, keep_reports, old)
    deleted = 0 if old is None else warehouse.delete(QUERIES["forget_checks"], {"workloads": workloads, "old": old})
    if recent is not None:
        given = {"workloads": workloads, "recent": recent}
        deleted += warehouse.delete(QUERIES["thin"], given)
        for row in warehouse.rows(QUERIES["days_with_features"], given):
            # One day at a time: the old features stay in memory until the transaction ends.
            warehouse.execute(QUERIES["forget_features"], given | {"day": row["day"]})
    return deleted


def _prune(warehouse: Warehouse, workloads: Sequence[str], keep: int, old: datetime | None = None) -> None:
    for row in warehouse.rows(QUERIES["old_reports"], {"workloads": workloads, "keep": keep, "old": old}):
        report = Path(row["report"])
        with warehouse.transaction() as cursor:  # after a crash from here on, `sweep` deletes the files
            cursor.execute("UPDATE drift_checks SET report = NULL WHERE id = ?", [row["id"]])
            warehouse.artifacts.remove(cursor, "report", [report.with_suffix("")])
        _unlink(report)
