"""Reports of a month or a quarter for people who decide: traffic, quality, retraining, gains and costs.

The champion and the base model answer the newest holdout and the regression set again, so that a report shows how good
the model is, not only how satisfied people are. A child process draws the page (`page`).
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
from retuned.monitors.rates.estimate import rate
from retuned.monitors.rates.votes import read_votes
from retuned.monitors.statistics import wilson
from retuned.retrain import versions
from retuned.retrain.data import dataset
from retuned.retrain.decision.evaluate import evaluate
from retuned.retrain.decision.evaluation import BASE, CANDIDATE, LOGGED, Evaluation
from retuned.retrain.scoring.label import confusion, labels_of, mistaken

if TYPE_CHECKING:
    from retuned.daemon.settings import Settings

SQL = named_queries("retuned.daemon.reports", "reports.sql")
RENDER_SECONDS = 300.0
EARLIER = 12
"""Number of earlier reports whose scores are shown beside this one's."""

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
        """Returns the period that contains a time."""
        months = MONTHS[kind]
        return cls(kind, _month(time, -((time.month - 1) % months)), _month(time, months - (time.month - 1) % months))

    @property
    def before(self) -> "Period":
        """The previous period."""
        return Period.of(self.kind, _month(self.start, -1))

    @property
    def name(self) -> str:
        """The name, as 2026-10 or 2026-Q4."""
        month = self.start.month
        return f"{self.start.year}-{month:02d}" if self.kind == "month" else f"{self.start.year}-Q{(month + 2) // 3}"


def _month(time: datetime, later: int) -> datetime:
    year, month = divmod(time.year * 12 + time.month - 1 + later, 12)
    return datetime(year, month + 1, 1)  # noqa: DTZ001  (the warehouse keeps UTC without a zone)


def report_id(workload: str, period: Period) -> str:
    """Returns the name of a report in file names and URLs, unique for each workload."""
    return f"{period.name}-{_slug(workload)}"


def period_of(name: str, workload: str) -> Period | None:
    """Returns the period of a report of a workload by the report's name; None: it is the name of something else."""
    if re.match(r"\d{4}-(0[1-9]|1[0-2]|Q[1-4])-", name) is None:
        return None
    year, part = int(name[:4]), name[5:7]
    kind: Kind = "quarter" if part[0] == "Q" else "month"
    month = 3 * int(part[1]) if kind == "quarter" else int(part)
    period = Period.of(kind, datetime(year, month, 1))  # noqa: DTZ001  (the warehouse keeps UTC without a zone)
    return period if name == report_id(workload, period) else None


def reports(folder: Path, workload: str) -> list[str]:
    """Returns the existing reports of a workload, newest first."""
    found = [path.stem for path in folder.glob(f"????-*-{_slug(workload)}.html")]
    return sorted(found, reverse=True)


def ends_after(name: str, time: datetime) -> bool:
    """Whether the period of a report, named by its id, ends after a time."""
    year, part = int(name[:4]), name[5:7]
    last = 3 * int(part[1]) if part[0] == "Q" else int(part)
    return (year, last) >= (time.year, time.month)


def written(folder: Path) -> list[Path]:
    """Returns the paths of all reports in a folder, without suffix."""
    pages = (path.with_suffix("") for path in folder.glob("????-*.html"))
    return sorted(path for path in pages if re.match(r"\d{4}-(\d{2}|Q\d)-", path.name))


def folder_of(warehouse: Warehouse) -> Path:
    """Returns the folder of drift reports and of reports of months and quarters."""
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
    """Write the reports of a workload, as HTML and JSON, and overwrite existing ones. The models are benchmarked once.

    Returns:
        the pages; periods without traffic have none.

    Raises:
        ChildFailed: a page could not be drawn. A failed benchmark is no error: the report states it.
        Cancelled: stop was set.
        StoreUnavailable: the storage of the cluster does not answer; the report is only on this machine.
    """
    gathered = {period: gather(warehouse, workload, period) for period in periods}
    reported = {period: figures for period, figures in gathered.items() if _has_traffic(figures)}
    if not reported:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    scores, pages = benchmark(warehouse, settings, workload, folder, stop), []
    for period, figures in reported.items():
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
        register = warehouse.artifacts.put("report", page.with_suffix(""))
        with warehouse.transaction() as cursor:
            register(cursor)
        pages.append(page)
    return pages


def is_empty(warehouse: Warehouse, workload: str, period: Period) -> bool:
    """Whether a period had no traffic and no figures: then there is no report."""
    return not _has_traffic(gather(warehouse, workload, period))


def _has_traffic(figures: Mapping[str, Any]) -> bool:
    return bool(figures["answers"] or figures["figures"])


def gather(warehouse: Warehouse, workload: str, period: Period) -> dict[str, Any]:
    """Returns the figures of a period, JSON-serialisable.

    `figures` are those of days; `rates` are those of votes over the whole period, in which each vote counts once.
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
    resolved = outcomes(warehouse, workload, period.start.date(), period.end.date())
    found["figures"] += [row for row in voted if row["day"]]
    return found | {
        "rates": [row for row in voted if not row["day"]],
        "corrections": rows("corrections")[0]["corrections"],
        "some_archived": rows("archived")[0]["some"],
        **rows("as_of")[0],
        "cost_per_resolved": resolved and resolved.cost_per_resolved,
        "resolved": resolved and resolved.resolved,
    }


def _votes(warehouse: Warehouse, workload: str, period: Period) -> list[dict[str, Any]]:
    """Returns the rates of votes on the answers of a period: of each day, and of the whole period (`day` is None)."""
    with warehouse.cursor() as cursor:
        judgements.comparable_votes(cursor, workload, period.start, period.end, now=period.end)
        cursor.execute(SQL["votes"])
        voted = read_votes(cursor)
    found = []
    for (metric, source, day), votes in voted.items():
        value, low, high = rate(votes)
        row = {"day": day or None, "metric": metric, "source": source, "value": value, "low": low, "high": high}
        found.append({**row, "n": round(votes.sums[1])})
    return found


def period_before(warehouse: Warehouse, workload: str, period: Period, folder: Path) -> dict[str, Any]:
    """Returns the figures of the previous period; from its report, if its answers have been archived since."""
    found = gather(warehouse, workload, period.before)
    file = folder / f"{report_id(workload, period.before)}.json"
    if found["some_archived"] and file.is_file():
        reported: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["now"]
        if "rates" in reported:
            return reported
    return found


def benchmark(
    warehouse: Warehouse, settings: "Settings", workload: str, folder: Path, stop: threading.Event | None
) -> dict[str, Any]:
    """Evaluate base model and champion on the holdout and regression rows of the newest dataset.

    Returns:
        `champion`, its name; `scores`, rows of `model` (base, champion, or logged for production's answers), `split`,
        `score`, `low`, `high` (95%), `hallucination` (a share, or None) and `n`; `metric`, the meaning of a score;
        `labels`, those that the champion mistakes on the holdout (label, questions, right answers, most frequent wrong
        label), worst first. Or only `problem`, the reason why there is no evaluation.
    """
    champion = versions.champion(warehouse, workload)
    newest = warehouse.row(SQL["latest_dataset"], {"workload": workload})
    if champion is None or newest is None:
        return {"problem": "The base model serves: there is no version to compare it with."}
    try:
        versions.check_intact(champion)
        rows = dataset.load(warehouse, workload, newest["version"])
        if rows is None:
            return {"problem": f"The dataset {newest['version']} has been removed."}
        settings = settings.with_base(versions.base_of(champion, settings.base))
        dtype = champion.manifest["training"]["dtype"]
        logged = dataset.logged_answers(warehouse, rows)
        found, _ = evaluate(rows, None, champion.path, settings, dtype, folder / "benchmark", stop, logged=logged)
    except Cancelled:
        raise
    except (RetunedError, OSError) as error:
        return {"problem": f"The models could not be evaluated: {error}"}
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
        judged = [row.hallucinated for row in rows if row.hallucinated is not None]
        scores.append(
            {
                "split": split,
                "model": {BASE: "base", CANDIDATE: "champion", LOGGED: "logged"}[model],
                "score": score,
                "low": low,
                "high": high,
                "hallucination": fmean(judged) if judged else None,
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
    return [row for row in mistaken(confusion(pairs)) if row[2] < row[1]]  # right answers < questions


def _earlier(folder: Path, workload: str, period: Period) -> list[dict[str, Any]]:
    """Returns period and champion's holdout score of the earlier reports, oldest first."""
    found: list[dict[str, Any]] = []
    for _ in range(EARLIER):
        period = period.before
        file = folder / f"{report_id(workload, period)}.json"
        if file.is_file():
            scores = json.loads(file.read_text(encoding="utf-8"))["benchmark"].get("scores", [])
            found += [
                {"period": period.name, **row}
                for row in scores
                if (row["model"], row["split"]) == ("champion", "holdout")
            ]
    return found[::-1]
