"""Drift: do the current prompts and answers of a workload still look like those of the reference?

The daemon finds the windows, has DuckDB compute the features, and stores the outcome; `comparison` compares them in a
child process.

What is corrected. `drift.false_alarm_rate` is the chance that traffic which does not change flags anything, in any
feature and at any check, within the length of the current window (a day, unless set otherwise): Holm's procedure over
the features, and a threshold for repeated looks (statistics.repeated_looks) that is that strict because windows overlap
and samples are drawn by a hash which stays the same: nearby checks see nearly the same rows. Two checks in a row that
drift are therefore hardly more evidence than one. From one such length to the next the chance begins anew.
"""

import json
import threading
import uuid
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import duckdb

from retuned.consumers.common.process import run_child
from retuned.consumers.warehouse import judgements
from retuned.consumers.warehouse.connection import Warehouse, insert, named_queries
from retuned.monitors.drift.comparison import Feature
from retuned.monitors.drift.windows import windows
from retuned.monitors.settings import Settings
from retuned.monitors.windows import DAY, Season, Windows, sample
from retuned.monitors.windows import QUERIES as WINDOW_QUERIES

QUERIES = named_queries("retuned.monitors.drift", "drift.sql")
CHOOSE = {
    "answers": WINDOW_QUERIES["choose"],
    "rated": QUERIES["choose_rated"],
    "context": QUERIES["choose_with_context"],
}
# Told when they move, and no drift by themselves: a slow machine is not a reason to retrain.
OPERATIONS = ("latency_seconds",)
checking = threading.Lock()
"""Held from the comparing of windows until the row that names their report is stored: files that no row names are
deleted."""
# A thousand rows gain nothing from more threads, and each costs memory.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@dataclass(frozen=True)
class DriftCheck:
    """What a check found.

    `drifted` and `severity` are None when there were too few rows; `missing` is then how many more conversations are
    needed. Latency is compared and reported, and counts in neither. Severity is the distance, 0 to 1, of the feature
    that moved furthest, with the ends of its 95% interval: about that share of the events is different. `report` is the
    JSON report; Evidently's page lies beside it as .html; None: there is none, or it was deleted.
    `features` of a check that found nothing are kept for some days (`retention.detail_days`). `detail` is a sentence
    for a person.
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

    @property
    def page(self) -> Path | None:
        """Evidently's HTML page, when there is a report."""
        return self.report and self.report.with_suffix(".html")


def check(
    warehouse: Warehouse,
    settings: Settings,
    workload: str,
    now: datetime,
    folder: Path,
    stop: threading.Event | None = None,
) -> DriftCheck:
    """Compare the windows of a workload, store the outcome in `drift_checks`, its report in the folder, and return it.

    The same `now` on the same warehouse draws the same samples. Reports are deleted, but for the latest and those of
    the latest drift.keep_reports checks that found drift. One check at a time compares; others wait for it.

    Raises:
        ChildFailed: the child process died or ran out of time; nothing was stored.
        Cancelled: `stop` was set; nothing was stored.
        StoreUnavailable: the storage of the cluster does not take the report; nothing was stored.
    """
    identity = f"{now:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"
    found = windows(warehouse, settings.windows, workload, now)
    minimum = settings.windows.minimum_rows
    missing = found.missing(minimum) if found else 2 * minimum
    with checking:
        if found is None or missing:
            outcome = _blind(found, identity, workload, now, minimum, missing)
        else:
            outcome = _compare(warehouse, settings, found, now, identity, folder, stop)
        _store(warehouse, outcome)
    _prune(warehouse, settings.drift.keep_reports, workload)
    return outcome


def latest(warehouse: Warehouse, workload: str) -> DriftCheck | None:
    """The latest stored check of a workload."""
    row = warehouse.row(QUERIES["latest"], {"workload": workload})
    if row is None:
        return None
    features = [Feature(**feature) for feature in json.loads(row["features"])]
    return DriftCheck(**row | {"features": features, "report": Path(row["report"]) if row["report"] else None})


def latest_at(warehouse: Warehouse) -> datetime | None:
    """When any workload was last checked, naive UTC; None: never."""
    (row,) = warehouse.rows(QUERIES["latest_at"])
    found: datetime | None = row["created_at"]
    return found


def _blind(
    found: Windows | None, identity: str, workload: str, now: datetime, minimum: int, missing: int
) -> DriftCheck:
    reference_rows, current_rows = (found.reference.conversations, found.current.conversations) if found else (0, 0)
    detail = (
        f"Blind: {missing} more conversations are needed. There are {reference_rows} in the reference and "
        f"{current_rows} in the current window, of {minimum} that each has to hold (windows.minimum_rows)."
    )
    return DriftCheck(
        identity, now, workload, None, None, [], reference_rows, current_rows, None, detail, missing=missing
    )


def _store(warehouse: Warehouse, outcome: DriftCheck) -> None:
    kept = warehouse.artifacts.put("report", outcome.report.with_suffix("")) if outcome.report else None
    with warehouse.transaction() as cursor:
        if kept:
            kept(cursor)
        insert(
            cursor,
            "drift_checks",
            **asdict(outcome)
            | {
                "features": json.dumps([asdict(feature) for feature in outcome.features]),
                "report": str(outcome.report) if outcome.report else None,
            },
        )


def _compare(
    warehouse: Warehouse,
    settings: Settings,
    found: Windows,
    now: datetime,
    identity: str,
    folder: Path,
    stop: threading.Event | None,
) -> DriftCheck:
    report, rows_file = folder / f"{identity}.json", folder / f"{identity}.parquet"
    folder.mkdir(parents=True, exist_ok=True)
    for left_behind in folder.glob("*.parquet"):
        left_behind.unlink()  # by a check whose process was killed: prompts are kept in the warehouse alone
    terms = write_features(warehouse, settings, found, now, rows_file)
    job = {
        "rows": str(rows_file),
        "report": str(report),
        "title": f"Drift of {found.workload}, checked {now:%Y-%m-%d %H:%M} UTC",
        "false_alarm_rate": settings.drift.false_alarm_rate,
        "minimum_distance": settings.drift.minimum_distance,
        "topics": settings.drift.topics,
        "embedding_model": str(settings.drift.embedding_model or ""),
        "segments": list(settings.drift.segments),
        "moving_windows": 1 if found.standing else 2,
    }
    try:
        result = run_child(
            "retuned.monitors.drift.comparison",
            job,
            folder,
            timeout_seconds=settings.drift.timeout_seconds,
            stop=stop,
            environment=ONE_THREAD,
        )
    except BaseException:
        report.unlink(missing_ok=True)
        report.with_suffix(".html").unlink(missing_ok=True)
        raise
    finally:
        rows_file.unlink()
    features = [Feature(**feature) for feature in result["features"]]
    furthest = verdict(features)
    return DriftCheck(
        identity,
        now,
        found.workload,
        furthest is not None,
        furthest.distance if furthest else 0.0,
        features,
        found.reference.conversations,
        found.current.conversations,
        report if features else None,
        sentence(features, terms, result["left_out"], found.reference.season),
        furthest.low if furthest else 0.0,
        furthest.high if furthest else 0.0,
    )


def write_features(warehouse: Warehouse, settings: Settings, found: Windows, now: datetime, path: Path) -> list[str]:
    """Write the features of samples of both windows as Parquet, and return the most frequent words that are new.

    Of each window there are three samples of at most `sample_rows`: of all answers, of those that users rated, and of
    those with a context. Few answers are rated: among a sample of all, next to none.
    """
    import pyarrow.parquet as parquet

    # The same seed as long as the reference begins there: where windows overlap, checks in a row see the same rows.
    seed = found.reference.start.isoformat()
    judgements.follow(warehouse)
    with warehouse.cursor() as cursor:
        put_votes(cursor, found, now)
        for name, window in (("reference", found.reference), ("current", found.current)):
            for kind, choose in CHOOSE.items():
                sample(cursor, f"{name}_{kind}", found.workload, window, settings.windows.sample_rows, seed, choose)
        one_day = found.current.end - found.reference.start <= DAY
        cursor.execute(QUERIES["sampled"], {"one_day": one_day, "current_start": found.current.start})
        features = cursor.sql(QUERIES["features"], params={"segments": list(settings.drift.segments)})
        parquet.write_table(features.to_arrow_table(), path)
        return [str(word) for (word,) in cursor.execute(QUERIES["new_terms"]).fetchall()]


def put_votes(cursor: duckdb.DuckDBPyConnection, found: Windows, now: datetime) -> None:
    """Put users' votes on the answers of both windows into the temporary table `rated` of this cursor.

    The newest answers had little time to be voted on, and those who are content may vote later than others. So the
    reference is read in periods as long as the current window, each with the votes that had come at its end.
    """
    cursor.execute(QUERIES["rated"])
    for window in (found.reference, found.current):
        judgements.comparable_votes(
            cursor,
            found.workload,
            window.start,
            window.end,
            now=now,
            period=found.current.end - found.current.start,
        )
        cursor.execute(QUERIES["add_rated"])


def verdict(features: list[Feature]) -> Feature | None:
    """The feature that moved furthest of those that drifted, operations left out; None: none drifted."""
    moved = [feature for feature in features if feature.drifted and feature.feature not in OPERATIONS]
    return max(moved, key=lambda feature: feature.distance, default=None)


def sentence(features: list[Feature], terms: list[str], left_out: dict[str, str], season: Season | None = None) -> str:
    """What moved, in words, and what it was compared with."""
    moved = sorted((feature for feature in features if feature.drifted), key=lambda feature: feature.value)
    text = f"{len(moved)} of {len(features)} features moved"
    if moved:
        text += ": " + "; ".join(
            f"{feature.feature.replace('_', ' ')} from {feature.reference} to {feature.current}"
            + (f", most in {feature.segment}" if feature.segment else "")
            + (f", for example “{feature.example}”" if feature.example else "")
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
    """Whether a report, by its path without suffix, is of a drift check."""
    return path.match("????????T??????-????????")


def sweep(warehouse: Warehouse, folder: Path, before: datetime) -> int:
    """Delete reports that no check names, as a process that was killed leaves them; how many files that were.

    Args:
        before: of a check that began later, the row may still be to come.
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


def thin(warehouse: Warehouse, keep_reports: int, recent: datetime | None, old: datetime | None) -> int:
    """Delete old reports and checks of before `old`; of those before `recent` that found nothing, keep the last of each
    hour, without features. None: nothing of that.

    Returns:
        how many checks were deleted; the latest of each workload stays.
    """
    _prune(warehouse, keep_reports, old=old)
    deleted = 0 if old is None else warehouse.delete(QUERIES["forget_checks"], {"old": old})
    if recent is not None:
        deleted += warehouse.delete(QUERIES["thin"], {"recent": recent})
        for row in warehouse.rows(QUERIES["days_with_features"], {"recent": recent}):
            # A day at a time: the old features stay in memory until the transaction ends.
            warehouse.execute(QUERIES["forget_features"], {"recent": recent, "day": row["day"]})
    return deleted


def _prune(warehouse: Warehouse, keep: int, workload: str | None = None, old: datetime | None = None) -> None:
    for row in warehouse.rows(QUERIES["old_reports"], {"workload": workload, "keep": keep, "old": old}):
        report = Path(row["report"])
        with warehouse.transaction() as cursor:  # `sweep` deletes what a crash leaves from here on
            cursor.execute("UPDATE drift_checks SET report = NULL WHERE id = ?", [row["id"]])
            warehouse.artifacts.remove(cursor, "report", [report.with_suffix("")])
        report.unlink(missing_ok=True)
        report.with_suffix(".html").unlink(missing_ok=True)
