"""Drift: do the current prompts and answers of a workload still look like those of the reference?

The daemon's side finds the windows, has DuckDB compute the features and stores the outcome. The comparing, with
Evidently, runs in a child process (`python -m retuned.monitors.drift JOB`): its import alone costs 175 MB.
"""

import json
import threading
import uuid
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retuned.consumers.process import Emit, child_main, run_child
from retuned.consumers.warehouse import Warehouse, insert, named_queries
from retuned.monitors.settings import Settings
from retuned.monitors.statistics import two_sample_chi_square, two_sample_ks
from retuned.monitors.windows import SQL, Windows, sample, windows

if TYPE_CHECKING:
    import pandas as pd

QUERIES = named_queries(SQL, "drift.sql")
NUMBERS = ("prompt_length", "response_length", "digit_share", "question_marks", "new_words", "latency_seconds")
CATEGORIES = ("topic", "language", "refusal", "has_context", "helpful")
# Told when they move, and no drift by themselves: a slow machine is not a reason to retrain.
OPERATIONS = ("latency_seconds",)
KS, CHI_SQUARE = "two_sample_ks", "two_sample_chi_square"
# A column with fewer values than this in either window is not compared.
MINIMUM_VALUES = 30


@dataclass(frozen=True)
class Feature:
    """One compared feature: the p-value of its test, and what it was and is, in words."""

    feature: str
    method: str
    threshold: float
    value: float
    drifted: bool
    reference: str
    current: str


@dataclass(frozen=True)
class DriftCheck:
    """What a check found.

    `drifted` and `severity` (share of the compared features that moved, 0 to 1) are None when there were too few rows;
    latency is compared and told, and counts in neither.
    `report` is the JSON report; Evidently's page lies beside it as .html. `detail` is a sentence for a person.
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

    The same `now` on the same warehouse draws the same samples. Reports beyond drift.keep_reports are deleted. One
    check at a time writes to a folder.

    Raises:
        ChildFailed: the child process died or ran out of time; nothing was stored.
        Cancelled: `stop` was set; nothing was stored.
    """
    identity = f"{now:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"
    found = windows(warehouse, settings.windows, workload, now)
    shortage = "no event yet" if found is None else found.shortage(settings.windows.minimum_rows)
    if found is None or shortage is not None:
        reference_rows, current_rows = (found.reference.rows, found.current.rows) if found else (0, 0)
        detail = f"Nothing can be said: {shortage}."
        outcome = DriftCheck(identity, now, workload, None, None, [], reference_rows, current_rows, None, detail)
    else:
        outcome = _compare(warehouse, settings, found, now, identity, folder, stop)
    with warehouse.transaction() as cursor:
        insert(
            cursor,
            "drift_checks",
            **asdict(outcome)
            | {
                "features": json.dumps([asdict(feature) for feature in outcome.features]),
                "report": str(outcome.report) if outcome.report else None,
            },
        )
    _prune(warehouse, workload, settings.drift.keep_reports)
    return outcome


def latest(warehouse: Warehouse, workload: str, *, decided: bool = False) -> DriftCheck | None:
    """The latest stored check of a workload; `decided`: the latest that had enough rows."""
    row = warehouse.row(QUERIES["latest"], {"workload": workload, "decided": decided})
    if row is None:
        return None
    features = [Feature(**feature) for feature in json.loads(row["features"])]
    return DriftCheck(**row | {"features": features, "report": Path(row["report"]) if row["report"] else None})


def _compare(
    warehouse: Warehouse,
    settings: Settings,
    found: Windows,
    now: datetime,
    identity: str,
    folder: Path,
    stop: threading.Event | None,
) -> DriftCheck:
    import pyarrow.parquet as parquet

    report, rows_file = folder / f"{identity}.json", folder / f"{identity}.parquet"
    folder.mkdir(parents=True, exist_ok=True)
    for left_behind in folder.glob("*.parquet"):
        left_behind.unlink()  # by a check whose process was killed: prompts are kept in the warehouse alone
    with warehouse.cursor() as cursor:
        sample(cursor, "reference_rows", found.workload, found.reference, settings.windows.sample_rows, now.isoformat())
        sample(cursor, "current_rows", found.workload, found.current, settings.windows.sample_rows, now.isoformat())
        cursor.execute(QUERIES["sampled"])
        parquet.write_table(cursor.sql(QUERIES["features"]).to_arrow_table(), rows_file)
        terms = [str(word) for (word,) in cursor.execute(QUERIES["new_terms"]).fetchall()]
    job = {
        "rows": str(rows_file),
        "report": str(report),
        "false_alarm_rate": settings.drift.false_alarm_rate,
        "topics": settings.drift.topics,
    }
    try:
        result = run_child(
            "retuned.monitors.drift", job, folder, timeout_seconds=settings.drift.timeout_seconds, stop=stop
        )
    except BaseException:
        report.unlink(missing_ok=True)
        report.with_suffix(".html").unlink(missing_ok=True)
        raise
    finally:
        rows_file.unlink()
    features = [Feature(**feature) for feature in result["features"]]
    drifted, severity = verdict(features)
    return DriftCheck(
        identity,
        now,
        found.workload,
        drifted,
        severity,
        features,
        found.reference.rows,
        found.current.rows,
        report if features else None,
        sentence(features, terms, result["left_out"]),
    )


def verdict(features: list[Feature]) -> tuple[bool, float]:
    """Whether anything but operations moved, and the share of those features that did."""
    content = [feature for feature in features if feature.feature not in OPERATIONS]
    moved = sum(feature.drifted for feature in content)
    return moved > 0, moved / max(len(content), 1)


def sentence(features: list[Feature], terms: list[str], left_out: dict[str, str]) -> str:
    """What moved, in words."""
    moved = sorted((feature for feature in features if feature.drifted), key=lambda feature: feature.value)
    text = f"{len(moved)} of {len(features)} features moved"
    if moved:
        text += ": " + "; ".join(
            f"{feature.feature.replace('_', ' ')} from {feature.reference} to {feature.current}" for feature in moved
        )
        if terms:
            text += f"; new words: {', '.join(terms)}"
    text += "."
    if left_out:
        text += " Not compared: " + ", ".join(f"{name} ({why})" for name, why in sorted(left_out.items())) + "."
    return text


def _prune(warehouse: Warehouse, workload: str, keep: int) -> None:
    for row in warehouse.rows(QUERIES["old_reports"], {"workload": workload, "keep": keep}):
        report = Path(row["report"])
        report.unlink(missing_ok=True)
        report.with_suffix(".html").unlink(missing_ok=True)
        warehouse.execute("UPDATE drift_checks SET report = NULL WHERE id = ?", [row["id"]])


# The child's side from here on.


def compare(job: dict[str, Any], _emit: Emit) -> dict[str, Any]:
    """Compare the two windows in the Parquet file `job["rows"]` and write the report as JSON and HTML.

    Returns:
        `features`, as in Feature, and `left_out`: the columns that were not compared, each with the reason.
    """
    import pandas as pd

    rows = pd.read_parquet(job["rows"])
    reference, current = rows[rows["window"] == "reference"].copy(), rows[rows["window"] == "current"].copy()
    left_out = add_topics(reference, current, job["topics"])
    columns = []
    for column in NUMBERS + CATEGORIES:
        if column in left_out:
            continue
        reason = unusable(reference[column], current[column])
        if reason is None:
            columns.append(column)
        else:
            left_out[column] = reason
    verdicts = report(reference[columns], current[columns], job["false_alarm_rate"], Path(job["report"]), left_out)
    features = [
        asdict(Feature(column, *verdict, *_in_words(reference[column], current[column])))
        for column, verdict in verdicts.items()
    ]
    return {"features": features, "left_out": left_out}


def unusable(reference: "pd.Series[Any]", current: "pd.Series[Any]") -> str | None:
    """Why a column cannot be compared, or None: it is empty, nearly so, or the same everywhere."""
    values = min(int(reference.notna().sum()), int(current.notna().sum()))
    if values < MINIMUM_VALUES:
        return "no values" if values == 0 else "too few values"
    return "constant" if len(set(reference.dropna()) | set(current.dropna())) < 2 else None


def report(
    reference: "pd.DataFrame", current: "pd.DataFrame", false_alarm_rate: float, path: Path, left_out: dict[str, str]
) -> dict[str, tuple[str, float, float, bool]]:
    """Evidently's verdict on each column: method, threshold, p-value, drifted. Writes path and path.html.

    The tests are ours, registered with Evidently by name: its own defaults change with the number of rows, and its
    chi-square takes the reference as exact. The threshold is the false alarm rate shared out over the columns
    (Bonferroni). A column that Evidently cannot take goes to `left_out`; the others are compared without it.
    """
    columns = list(reference.columns)
    if not columns:
        return {}
    _register()
    try:
        snapshot = _run(reference, current, false_alarm_rate / len(columns))
    except Exception:
        good = []
        for column in columns:
            try:
                _run(reference[[column]], current[[column]], false_alarm_rate)
                good.append(column)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is told, and costs this column alone
                left_out[column] = f"Evidently: {type(error).__name__}: {error}"
        if len(good) == len(columns):
            raise  # no column is to blame
        return report(reference[good], current[good], false_alarm_rate, path, left_out)
    snapshot.save_json(str(path))
    snapshot.save_html(str(path.with_suffix(".html")))
    # The status, not the score against the threshold: Evidently's methods differ in direction.
    drifted = {
        test.metric_config.params["column"]: test.status.value == "FAIL"
        for test in snapshot.tests_results
        if test.id == "drift"
    }
    return {
        metric["config"]["column"]: (
            metric["config"]["method"],
            float(metric["config"]["threshold"]),
            float(metric["value"]),
            drifted[metric["config"]["column"]],
        )
        for metric in snapshot.dict()["metrics"]
    }


def _register() -> None:
    from evidently.legacy.calculations.stattests.registry import StatTest, register_stattest
    from evidently.legacy.core import ColumnType

    def ks(reference: Any, current: Any, _kind: Any, threshold: float) -> tuple[float, bool]:
        value = two_sample_ks(reference, current)
        return value, value < threshold

    def chi_square(reference: Any, current: Any, _kind: Any, threshold: float) -> tuple[float, bool]:
        value = two_sample_chi_square(list(reference), list(current))
        return value, value < threshold

    register_stattest(StatTest(KS, "two-sample K-S test, p-value", [ColumnType.Numerical]), ks)
    register_stattest(StatTest(CHI_SQUARE, "two-sample chi-square test, p-value", [ColumnType.Categorical]), chi_square)


def _run(reference: "pd.DataFrame", current: "pd.DataFrame", threshold: float) -> Any:
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import ValueDrift

    numbers = [column for column in reference.columns if column in NUMBERS]
    categories = [column for column in reference.columns if column not in NUMBERS]
    definition = DataDefinition(numerical_columns=numbers, categorical_columns=categories, text_columns=[])
    metrics = [ValueDrift(column=column, method=KS, threshold=threshold) for column in numbers]
    metrics += [ValueDrift(column=column, method=CHI_SQUARE, threshold=threshold) for column in categories]
    return Report(metrics, include_tests=True).run(
        Dataset.from_pandas(current, data_definition=definition),
        Dataset.from_pandas(reference, data_definition=definition),
    )


def add_topics(reference: "pd.DataFrame", current: "pd.DataFrame", topics: int) -> dict[str, str]:
    """Add a column `topic` to both; returns what had to be left out, with the reason."""
    from retuned.monitors.topics import assign_topics

    assigned = assign_topics(list(reference["prompt"]), list(current["prompt"]), topics)
    if assigned is None:
        return {"topic": "too few prompts or words"}
    reference["topic"], current["topic"] = assigned
    return {}


def _in_words(reference: "pd.Series[Any]", current: "pd.Series[Any]") -> tuple[str, str]:
    """What a column was and is: the means of numbers, or the shares of the two categories that changed most."""
    before, after = reference.dropna(), current.dropna()
    if reference.name in NUMBERS:
        return f"a mean of {before.mean():.3g}", f"{after.mean():.3g}"
    shares_before, shares_after = _shares(list(before)), _shares(list(after))
    most = sorted(
        shares_before.keys() | shares_after.keys(),
        key=lambda name: (-abs(shares_after.get(name, 0.0) - shares_before.get(name, 0.0)), name),
    )[:2]
    was, now = (
        ", ".join(f"{name!r} {shares.get(name, 0.0):.0%}" for name in most) for shares in (shares_before, shares_after)
    )
    return was, now


def _shares(values: list[str]) -> dict[str, float]:
    return {name: count / len(values) for name, count in Counter(values).items()}


if __name__ == "__main__":
    child_main(compare)
