"""The page of a report: sentences, a table and plots of the figures that were gathered.

A child process draws it, with Plotly: `python -m retuned.daemon.reports.page JOB`.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import date, datetime, time, timedelta
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from retuned.consumers.child import child_main
from retuned.consumers.common.durable import replace_text
from retuned.consumers.common.process import Emit

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

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
