"""Reports of a month or a quarter, for those who decide: what was answered, how well, what was learned, what it earned.

The champion and the base model answer the newest holdout and the regression set again, so that a report says how good
the model is, not only how content people are. A child process draws the page (`page`).
"""

import json
import re
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from hashlib import sha256
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from retuned.consumers.common.durable import replace_text
from retuned.consumers.common.process import run_child
from retuned.consumers.errors import Cancelled, RetunedError
from retuned.consumers.warehouse import judgements
from retuned.consumers.warehouse.connection import Warehouse, named_queries, parameters_of
from retuned.daemon.jsontext import as_json
from retuned.monitors.money.outcomes import outcomes
from retuned.monitors.statistics import clustered_rate, wilson
from retuned.retrain import versions
from retuned.retrain.data import dataset
from retuned.retrain.decision.evaluate import BASE, CANDIDATE, LOGGED, Evaluation, evaluate
from retuned.retrain.scoring.label import confusion, labels_of, mistaken

if TYPE_CHECKING:
    from retuned.daemon.settings import Settings

SQL = named_queries("retuned.daemon.reports", "reports.sql")
RENDER_SECONDS = 300.0
EARLIER = 12
"""Earlier reports whose benchmark stands beside this one's."""

Kind = Literal["month", "quarter"]
MONTHS: dict[Kind, int] = {"month": 1, "quarter": 3}


@dataclass(frozen=True)
class Period:
    """A calendar month or quarter: start ≤ time < end, UTC."""

    kind: Kind
    start: datetime
    end: datetime

    @classmethod
    def of(cls, kind: Kind, time: datetime) -> "Period":
        """The one that a time lies in."""
        months = MONTHS[kind]
        return cls(kind, _month(time, -((time.month - 1) % months)), _month(time, months - (time.month - 1) % months))

    @property
    def before(self) -> "Period":
        """The one before it."""
        return Period.of(self.kind, _month(self.start, -1))

    @property
    def name(self) -> str:
        """As 2026-10 or 2026-Q4."""
        month = self.start.month
        return f"{self.start.year}-{month:02d}" if self.kind == "month" else f"{self.start.year}-Q{(month + 2) // 3}"


def _month(time: datetime, later: int) -> datetime:
    year, month = divmod(time.year * 12 + time.month - 1 + later, 12)
    return datetime(year, month + 1, 1)  # noqa: DTZ001  (the warehouse keeps UTC without a zone)


def report_id(workload: str, period: Period) -> str:
    """The name of a report, its file's and its address's; other workloads have others."""
    return f"{period.name}-{_slug(workload)}"


def reports(folder: Path, workload: str) -> list[str]:
    """The reports of a workload that there are, newest first."""
    found = [path.stem for path in folder.glob(f"????-*-{_slug(workload)}.html")]
    return sorted(found, reverse=True)


def written(folder: Path) -> list[Path]:
    """All that are in a folder, without suffix."""
    pages = (path.with_suffix("") for path in folder.glob("????-*.html"))
    return sorted(path for path in pages if re.match(r"\d{4}-(\d{2}|Q\d)-", path.name))


def folder_of(warehouse: Warehouse) -> Path:
    """The folder of the reports: of drift checks, and of months and quarters."""
    return warehouse.path.parent / "reports"


def _slug(workload: str) -> str:
    return f"{re.sub(r'[^A-Za-z0-9]+', '-', workload).strip('-')}-{sha256(workload.encode()).hexdigest()[:6]}"


def write(
    warehouse: Warehouse,
    settings: "Settings",
    workload: str,
    periods: Sequence[Period],
    folder: Path,
    stop: threading.Event | None = None,
) -> list[Path]:
    """Write the reports of a workload, as HTML and JSON, anew where they are there; the models are asked once for all.

    Returns:
        the pages; none for a time in which nothing was asked and nothing measured.

    Raises:
        ChildFailed: a page could not be drawn. The report says which benchmark failed.
        Cancelled: stop was set.
        StoreUnavailable: the storage of the cluster does not answer; the report is on this machine alone.
    """
    found = {period: gather(warehouse, workload, period) for period in periods}
    told = {period: figures for period, figures in found.items() if _has_something(figures)}
    if not told:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    scores, pages = benchmark(warehouse, settings, workload, folder, stop), []
    for period, figures in told.items():
        page = folder / f"{report_id(workload, period)}.html"
        job = {
            "workload": workload,
            "objective": settings.objective,
            "period": period.name,
            "kind": period.kind,
            "currency": settings.roi.currency,
            "now": figures,
            "before": period_before(warehouse, workload, period, folder),
            "benchmark": scores,
            "earlier": _earlier(folder, workload, period),
            "page": str(page),
        }
        run_child("retuned.daemon.reports.page", job, folder / "drawing", timeout_seconds=RENDER_SECONDS, stop=stop)
        replace_text(page.with_suffix(".json"), as_json(job, indent=1))
        kept = warehouse.artifacts.put("report", page.with_suffix(""))
        with warehouse.transaction() as cursor:
            kept(cursor)
        pages.append(page)
    return pages


def is_empty(warehouse: Warehouse, workload: str, period: Period) -> bool:
    """Whether nothing was asked and nothing measured in a period: then there is no report."""
    return not _has_something(gather(warehouse, workload, period))


def _has_something(figures: Mapping[str, Any]) -> bool:
    return bool(figures["answers"] or figures["figures"])


def gather(warehouse: Warehouse, workload: str, period: Period) -> dict[str, Any]:
    """What the warehouse knows of a period, by day; JSON-serialisable.

    `figures` are those of days, `rates` those of votes over all of the period: each vote on its answers counts once.
    """
    parameters = {"workload": workload, "start": period.start, "end": period.end}
    judgements.follow(warehouse)

    def rows(name: str) -> list[dict[str, Any]]:
        return [
            {key: str(value) if isinstance(value, date) else value for key, value in row.items()}
            for row in warehouse.rows(SQL[name], parameters_of(SQL[name], parameters))
        ]

    found = {name: rows(name) for name in ("answers", "figures", "money", "promotions", "approvals", "runs", "drift")}
    voted = _votes(warehouse, workload, period)
    became = outcomes(warehouse, workload, period.start.date(), period.end.date())
    found["figures"] += [row for row in voted if row["day"]]
    return found | {
        "rates": [row for row in voted if not row["day"]],
        "corrections": rows("corrections")[0]["corrections"],
        "some_archived": rows("archived")[0]["some"],
        **rows("as_of")[0],
        "cost_per_resolved": became and became.cost_per_resolved,
        "resolved": became and became.resolved,
    }


def _votes(warehouse: Warehouse, workload: str, period: Period) -> list[dict[str, Any]]:
    """Rates of votes on the answers of a period: of each day, and of all of it (`day` is None)."""
    units: dict[tuple[str, str, str | None], dict[tuple[int, int], int]] = defaultdict(dict)
    with warehouse.cursor() as cursor:
        judgements.comparable_votes(cursor, workload, period.start, period.end, now=period.end)
        for metric, source, day, yes, n, count in cursor.execute(SQL["votes"]).fetchall():
            units[metric, source, str(day) if day else None][yes, n] = count
    found = []
    for (metric, source, day), of in units.items():
        value, low, high = clustered_rate(of)
        n = sum(n * count for (_, n), count in of.items())
        row = {"day": day, "metric": metric, "source": source, "value": value, "low": low, "high": high, "n": n}
        found.append(row)
    return found


def period_before(warehouse: Warehouse, workload: str, period: Period, folder: Path) -> dict[str, Any]:
    """The period before: as its report had it, where its answers have left the warehouse since."""
    found = gather(warehouse, workload, period.before)
    file = folder / f"{report_id(workload, period.before)}.json"
    if found["some_archived"] and file.is_file():
        written: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["now"]
        if "rates" in written:
            return written
    return found


def benchmark(
    warehouse: Warehouse, settings: "Settings", workload: str, folder: Path, stop: threading.Event | None
) -> dict[str, Any]:
    """Base model and champion on the newest dataset's holdout and regression rows, or why they were not asked.

    Returns:
        `champion` (a name), and `scores`: rows of `model` (base, champion, or logged for what production had answered),
        `split`, `score`, `low`, `high` (95%), `hallucination` (a share, or None) and `n`; `metric`, what a score is;
        `labels`, those that the champion mistakes on the holdout (label, questions, right, what it took them for), the
        worst first. Or `problem`.
    """
    champion = versions.champion(warehouse, workload)
    newest = warehouse.row(SQL["latest_dataset"], {"workload": workload})
    if champion is None or newest is None:
        return {"problem": "The base model serves: there is no other to compare it with."}
    try:
        rows = dataset.load(warehouse, workload, newest["version"])
        if rows is None:
            return {"problem": f"The dataset {newest['version']} is not there any more."}
        settings = settings.with_base(versions.base_of(champion, settings.base))
        dtype = champion.manifest["training"]["dtype"]
        logged = dataset.logged_answers(warehouse, rows)
        found, _ = evaluate(rows, None, champion.path, settings, dtype, folder / "benchmark", stop, logged=logged)
    except Cancelled:
        raise
    except (RetunedError, OSError) as error:
        return {"problem": f"The models could not be asked: {error}"}
    return {
        "champion": champion.name,
        "scores": _scores(found),
        "metric": dataset.metric_of(rows, settings).metric.meaning,
        "labels": _mistaken(found),
    }


def _scores(found: Sequence[Evaluation]) -> list[dict[str, Any]]:
    groups: dict[tuple[str, str], list[Evaluation]] = defaultdict(list)
    for row in found:
        groups[row.split, row.model].append(row)
    scores = []
    for (split, model), rows in sorted(groups.items()):
        own = [row.score for row in rows if row.score is not None]
        if not own:
            continue  # the metric abstains on all of them
        score, low, high = wilson(sum(own), len(own))
        told = [row.hallucinated for row in rows if row.hallucinated is not None]
        scores.append(
            {
                "split": split,
                "model": {BASE: "base", CANDIDATE: "champion", LOGGED: "logged"}[model],
                "score": score,
                "low": low,
                "high": high,
                "hallucination": fmean(told) if told else None,
                "n": len(own),
            }
        )
    return scores


def _mistaken(found: Sequence[Evaluation]) -> list[tuple[str, int, int, str]]:
    pairs = [
        (label, row.answered)
        for row in found
        if (row.model, row.split) == (CANDIDATE, "holdout")
        for label in labels_of(row.slices)
    ]
    return [one for one in mistaken(confusion(pairs)) if one[2] < one[1]]


def _earlier(folder: Path, workload: str, period: Period) -> list[dict[str, Any]]:
    """Period and champion's score on the holdout of the reports before, oldest first."""
    found: list[dict[str, Any]] = []
    for _ in range(EARLIER):
        period = period.before
        file = folder / f"{report_id(workload, period)}.json"
        if file.is_file():
            told = json.loads(file.read_text(encoding="utf-8"))["benchmark"].get("scores", [])
            found += [
                {"period": period.name, **row}
                for row in told
                if (row["model"], row["split"]) == ("champion", "holdout")
            ]
    return found[::-1]
