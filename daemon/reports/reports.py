"""Reports of a month or a quarter, for those who decide: what was answered, how well, what was learned, what it earned.

The champion and the base model answer the newest holdout and the regression set again, so that a report says how good
the model is, not only how content people are. The daemon's side gathers the figures; a child process
(`python -m retuned.daemon.reports.reports JOB`) draws the page, with Plotly.
"""

import json
import re
import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from hashlib import sha256
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from retuned.consumers.child import child_main
from retuned.consumers.common.durable import replace_text
from retuned.consumers.common.process import Emit, run_child
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
    from plotly.graph_objects import Figure

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
        run_child("retuned.daemon.reports.reports", job, folder / "drawing", timeout_seconds=RENDER_SECONDS, stop=stop)
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


# The child's side from here on.

WORDS = {
    "helpful_rate": "helpful answers",
    "hallucination_rate": "invented answers",
    "alarm_rate": "alarms of the grounding rules, right or not",
    "abstention_rate": "answers with passages that the grounding rules cannot judge",
    "latency_p50_seconds": "median latency",
    "latency_p95_seconds": "latency of the slowest twentieth",
}
INK, GOOD, BAD, MARK = "#1c2430", "#1a7f4b", "#b3261e", "#2f6fde"
_PLOT_HEIGHT = 300
_DAY_MS = 86_400_000
_BAR_MS = 0.8 * _DAY_MS


def draw(job: dict[str, Any], _emit: Emit) -> dict[str, Any]:
    """Write the page `job["page"]`; whole or not at all."""
    from jinja2 import Environment, PackageLoader
    from plotly.io import to_html
    from plotly.offline import get_plotlyjs

    plots = [
        (title, words, to_html(figure, full_html=False, include_plotlyjs=False, config={"displaylogo": False}))
        for title, words, figure in _plots(job)
    ]
    template = Environment(loader=PackageLoader("retuned.daemon.reports", "."), autoescape=True).get_template(
        "report.html"
    )
    page = template.render(job=job, sentences=sentences(job), rows=comparison(job), plots=plots, plotly=get_plotlyjs())
    replace_text(Path(job["page"]), page)
    return {}


def sentences(job: dict[str, Any]) -> list[str]:
    """The period in words."""
    now, before, currency = job["now"], job["before"], job["currency"]
    answered, answered_before = (sum(day["answers"] for day in one["answers"]) for one in (now, before))
    found = [
        f"The model answered {answered:,} times"
        + (f", after {answered_before:,} in the period before" if answered_before else "")
        + "."
    ]
    if now["some_archived"]:
        found[0] += " Answers that were archived meanwhile, and votes on them, are not among them."
    rate, rate_before = (_rate(one, "helpful_rate", "user") for one in (now, before))
    if rate:
        found.append(
            f"Users called {rate['value']:.0%} of the {rate['n']:,} answers that they rated helpful "
            f"(95%: {rate['low']:.0%} to {rate['high']:.0%})"
            + (f", after {rate_before['value']:.0%} in the period before" if rate_before else "")
            + "."
        )
    gains, costs = (_money(now, kind) for kind in ("gain", "cost"))
    if gains or costs:
        worth = f", a return of {(gains - costs) / costs:,.1f} on what was spent" if costs else ""
        found.append(f"It earned {gains:,.2f} {currency} and cost {costs:,.2f} {currency}{worth}.")
    if now.get("cost_per_resolved") is not None:
        found.append(
            f"A conversation that was resolved cost {now['cost_per_resolved']:,.4g} {currency} "
            f"({now['resolved']:,} were resolved)."
        )
    events = [one["event"] for one in now["promotions"]]
    trained = sum(one["runs"] for one in now["runs"])
    found.append(
        f"{_retrained(trained)} {_count(events.count('promoted'), 'new model')} went into service, "
        f"{_count(events.count('rolled_back'), 'model')} came back out of it. "
        f"People corrected {_count(now['corrections'], 'answer')}."
    )
    checks, drifted = (sum(day[what] for day in now["drift"]) for what in ("checks", "drifted"))
    if checks:
        found.append(
            f"In {drifted:,} of {checks:,} hours a drift check found that what is asked or answered had changed."
        )
    return found


def comparison(job: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Figure, source, this period, the one before; in words."""
    found: list[tuple[str, str, str, str]] = []
    sources = sorted({(row["metric"], row["source"]) for row in job["now"]["figures"] if row["metric"] in WORDS})
    for metric, source in sorted(sources, key=lambda pair: (list(WORDS).index(pair[0]), pair[1])):
        texts = []
        for one in (job["now"], job["before"]):
            days = [row["value"] for row in one["figures"] if (row["metric"], row["source"]) == (metric, source)]
            if rate := _rate(one, metric, source):
                texts.append(f"{rate['value']:.1%} ({rate['low']:.1%} to {rate['high']:.1%}, n={rate['n']:,})")
            elif not days:
                texts.append("–")
            else:  # of a sample of each day, or of longer windows: their mean alone is known
                texts.append(f"{fmean(days):.1%}" if metric.endswith("_rate") else f"{fmean(days):.2f} s")
        found.append((WORDS[metric], source, texts[0], texts[1]))
    for kind, word in (("gain", "gains"), ("cost", "costs")):
        items = sorted({row["item"] for row in job["now"]["money"] + job["before"]["money"] if row["kind"] == kind})
        for item in items:
            now, before = (f"{_money(one, kind, item):,.2f} {job['currency']}" for one in (job["now"], job["before"]))
            found.append((f"{word}: {item.replace('_', ' ')}", "", now, before))
    each = [one.get("cost_per_resolved") for one in (job["now"], job["before"])]
    if each != [None, None]:
        texts = ["–" if cost is None else f"{cost:,.4g} {job['currency']}" for cost in each]
        found.append(("cost of a resolved conversation", "", texts[0], texts[1]))
    return found


def _rate(figures: dict[str, Any], metric: str, source: str) -> dict[str, Any] | None:
    """The rate of votes over all of a period; None: nobody of that source voted."""
    return next((row for row in figures["rates"] if (row["metric"], row["source"]) == (metric, source)), None)


def _money(figures: dict[str, Any], kind: str, item: str | None = None) -> float:
    return float(sum(row["amount"] for row in figures["money"] if row["kind"] == kind and item in (None, row["item"])))


def _retrained(times: int) -> str:
    how_often = {1: "once", 2: "twice"}.get(times, f"{times} times")
    return f"It was retrained {how_often}." if times else "It was not retrained."


def _count(count: int, noun: str) -> str:
    return f"{count or 'no'} {noun}{'' if count == 1 else 's'}"


def _plots(job: dict[str, Any]) -> list[tuple[str, str, "Figure"]]:
    """Title, a sentence and the plot of each; those with nothing to show are left out."""
    found = [
        (
            "Helpful answers",
            "Share of rated answers that were called helpful, by who rated, with 95% intervals; lines mark new models.",
            _rates(job, "helpful_rate"),
        ),
        (
            "Invented answers",
            "Share of judged answers that stated what nothing supports, by who judged, with 95% intervals.",
            _rates(job, "hallucination_rate"),
        ),
        ("Latency", "Median and slowest twentieth of each day, in seconds.", _latencies(job)),
        ("Gains and costs", "Booked on each day, and what they add up to since the period began.", _amounts(job)),
        (
            "Base model and champion",
            "Mean score on questions that neither was trained on (holdout), and on questions that were answered right "
            "before and must stay so (regression), with 95% intervals. Logged is what production had answered to those "
            "of the holdout, which people corrected or called good.",
            _scores_plot(job),
        ),
        ("Champion over time", "Right answers on the holdout of each report.", _course(job)),
        ("Drift", "Of what drifted, how far what moved furthest did, on each day: a share of events.", _drift(job)),
    ]
    return [(title, words, figure) for title, words, figure in found if figure is not None]


def _figure(traces: Sequence[Any], *, share: bool = False, **layout: Any) -> "Figure | None":
    from plotly.graph_objects import Figure

    if not traces:
        return None
    figure = Figure(list(traces))
    axis: dict[str, Any] = {"rangemode": "tozero"} | ({"tickformat": ".0%", "range": [0, 1.02]} if share else {})
    figure.update_layout(
        height=_PLOT_HEIGHT,
        margin={"l": 50, "r": 20, "t": 10, "b": 60},
        template="plotly_white",
        yaxis=axis,
        legend={"orientation": "h", "y": -0.2},
        **layout,
    )
    return figure


def _days(job: dict[str, Any]) -> dict[str, Any]:
    """The axis of days, a week at least: a month that has just begun is no point on an axis of hours."""
    rows = [row for name in ("figures", "money", "drift") for row in job["now"][name]]
    days = sorted({date.fromisoformat(row["day"][:10]) for row in rows})
    if not days:
        return {}
    last = max(days[-1], days[0] + timedelta(days=6))
    half = timedelta(hours=12)
    ends = [datetime.combine(days[0], time()) - half, datetime.combine(last, time()) + half]
    axis: dict[str, Any] = {"type": "date", "range": [end.isoformat() for end in ends], "tickformat": "%-d %b"}
    return axis | ({"dtick": _DAY_MS} if (last - days[0]).days < 14 else {})


def _by_day(job: dict[str, Any], metric: str) -> Iterable[tuple[str, list[dict[str, Any]]]]:
    of_source: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in job["now"]["figures"]:
        if row["metric"] == metric:
            of_source[row["source"]].append(row)
    return sorted(of_source.items())


def _rates(job: dict[str, Any], metric: str) -> "Figure | None":
    from plotly.graph_objects import Scatter

    figure = _figure(
        [
            Scatter(
                x=[row["day"] for row in rows],
                y=[row["value"] for row in rows],
                error_y={
                    "array": [row["high"] - row["value"] for row in rows],
                    "arrayminus": [row["value"] - row["low"] for row in rows],
                    "thickness": 1,
                },
                customdata=[row["n"] for row in rows],
                hovertemplate="%{y:.0%} of %{customdata}",
                name=source,
                mode="lines+markers",
            )
            for source, rows in _by_day(job, metric)
        ],
        share=True,
        showlegend=True,
        xaxis=_days(job),
    )
    for event in job["now"]["promotions"] if figure is not None else []:
        assert figure is not None
        colour = BAD if event["event"] == "rolled_back" else MARK
        figure.add_shape(
            type="line", x0=event["created_at"], x1=event["created_at"], y0=0, y1=1, yref="paper",
            line={"color": colour, "dash": "dot"},
        )  # fmt: skip
    return figure


def _latencies(job: dict[str, Any]) -> "Figure | None":
    from plotly.graph_objects import Scatter

    return _figure(
        [
            Scatter(
                x=[row["day"] for row in rows],
                y=[row["value"] for row in rows],
                name=WORDS[metric],
                mode="lines+markers",
            )
            for metric in ("latency_p50_seconds", "latency_p95_seconds")
            for _, rows in _by_day(job, metric)
        ],
        xaxis=_days(job),
    )


def _amounts(job: dict[str, Any]) -> "Figure | None":
    from plotly.graph_objects import Bar, Scatter

    money = job["now"]["money"]
    days = sorted({row["day"] for row in money})
    of_day = {
        kind: [sum(row["amount"] for row in money if (row["day"], row["kind"]) == (day, kind)) for day in days]
        for kind in ("gain", "cost")
    }
    net, total = [], 0.0
    for gain, cost in zip(of_day["gain"], of_day["cost"], strict=True):
        total += gain - cost
        net.append(total)
    if not days:
        return None
    return _figure(
        [
            Bar(x=days, y=of_day["gain"], width=_BAR_MS, name="gains", marker={"color": GOOD}),
            Bar(x=days, y=[-cost for cost in of_day["cost"]], width=_BAR_MS, name="costs", marker={"color": BAD}),
            Scatter(x=days, y=net, name="in all", mode="lines+markers", line={"color": INK}),
        ],
        barmode="relative",
        xaxis=_days(job),
    )


def _scores_plot(job: dict[str, Any]) -> "Figure | None":
    from plotly.graph_objects import Bar

    scores = job["benchmark"].get("scores", [])
    traces = []
    for model, colour in (("base", "#9aa8b8"), ("logged", "#c9963a"), ("champion", MARK)):
        own = [row for row in scores if row["model"] == model]
        if own:
            traces.append(
                Bar(
                    x=[f"{row['split']} ({row['n']})" for row in own],
                    y=[row["score"] for row in own],
                    error_y={
                        "array": [row["high"] - row["score"] for row in own],
                        "arrayminus": [row["score"] - row["low"] for row in own],
                    },
                    name=model,
                    marker={"color": colour},
                )
            )
    return _figure(traces, share=True)


def _course(job: dict[str, Any]) -> "Figure | None":
    from plotly.graph_objects import Scatter

    own = [row for row in job["benchmark"].get("scores", []) if (row["model"], row["split"]) == ("champion", "holdout")]
    points = [*job["earlier"], *({"period": job["period"], **row} for row in own)]
    if len(points) < 2:
        return None
    return _figure(
        [
            Scatter(
                x=[point["period"] for point in points],
                y=[point["score"] for point in points],
                error_y={
                    "array": [point["high"] - point["score"] for point in points],
                    "arrayminus": [point["score"] - point["low"] for point in points],
                },
                mode="lines+markers",
            )
        ],
        share=True,
        xaxis={"type": "category"},
    )


def _drift(job: dict[str, Any]) -> "Figure | None":
    from plotly.graph_objects import Bar

    days = job["now"]["drift"]
    return _figure(
        [Bar(x=[day["day"] for day in days], y=[day["severity"] for day in days], width=_BAR_MS)] if days else [],
        share=True,
        xaxis=_days(job),
    )


if __name__ == "__main__":
    child_main(draw)
