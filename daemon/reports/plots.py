"""The plots of a report, drawn with Plotly."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

WORDS = {
    "helpful_rate": "helpful answers",
    "hallucination_rate": "invented answers",
    "alarm_rate": "alarms of values, detector and judge, right or not",
    "abstention_rate": "answers with passages that have no values to compare",
    "latency_p50_seconds": "median latency",
    "latency_p95_seconds": "latency of the slowest twentieth",
}
"""Names of metrics, for people."""
INK, GOOD, BAD, MARK = "#1c2430", "#1a7f4b", "#b3261e", "#2f6fde"
_PLOT_HEIGHT = 300
_DAY_MS = 86_400_000
_BAR_MS = 0.8 * _DAY_MS


def plots_of(job: dict[str, Any]) -> list[tuple[str, str, "Figure"]]:
    """Returns title, explanation and plot of each subject that has figures."""
    found = [
        (
            "Helpful answers",
            "Share of rated answers that were called helpful, by source, with 95% intervals; lines mark new models.",
            _rates(job, "helpful_rate"),
        ),
        (
            "Invented answers",
            "Share of judged answers with unsupported statements, by source, with 95% intervals.",
            _rates(job, "hallucination_rate"),
        ),
        ("Latency", "Median and slowest twentieth of each day, in seconds.", _latencies(job)),
        ("Gains and costs", "Gains and costs of each day, and their sum since the period began.", _amounts(job)),
        (
            "Base model and champion",
            "Mean score on questions on which neither was trained (holdout), and on questions that earlier versions "
            "answered right (regression), with 95% intervals. Logged: production's answers to the holdout questions, "
            "which people corrected or called good.",
            _scores_plot(job),
        ),
        ("Champion over time", "Right answers on the holdout of each report.", _score_over_time(job)),
        ("Drift", "The severest drift of each day, as a share of events.", _drift(job)),
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
    """Returns an axis of at least a week, so that the first day of a month is not drawn on an axis of hours."""
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
    """Returns the daily rows of a metric by source."""
    by_source: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in job["now"]["figures"]:
        if row["metric"] == metric:
            by_source[row["source"]].append(row)
    return sorted(by_source.items())


def _intervals(rows: Sequence[Mapping[str, Any]], key: str) -> dict[str, Any]:
    """Returns the error bars of rows with `low`, `high` and the value `key`."""
    return {
        "array": [row["high"] - row[key] for row in rows],
        "arrayminus": [row[key] - row["low"] for row in rows],
    }


def _rates(job: dict[str, Any], metric: str) -> "Figure | None":
    from plotly.graph_objects import Scatter

    figure = _figure(
        [
            Scatter(
                x=[row["day"] for row in rows],
                y=[row["value"] for row in rows],
                error_y=_intervals(rows, "value") | {"thickness": 1},
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
    by_kind = {
        kind: [sum(row["amount"] for row in money if (row["day"], row["kind"]) == (day, kind)) for day in days]
        for kind in ("gain", "cost")
    }
    net, total = [], 0.0
    for gain, cost in zip(by_kind["gain"], by_kind["cost"], strict=True):
        total += gain - cost
        net.append(total)
    if not days:
        return None
    return _figure(
        [
            Bar(x=days, y=by_kind["gain"], width=_BAR_MS, name="gains", marker={"color": GOOD}),
            Bar(x=days, y=[-cost for cost in by_kind["cost"]], width=_BAR_MS, name="costs", marker={"color": BAD}),
            Scatter(x=days, y=net, name="sum", mode="lines+markers", line={"color": INK}),
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
                    error_y=_intervals(own, "score"),
                    name=model,
                    marker={"color": colour},
                )
            )
    return _figure(traces, share=True)


def _score_over_time(job: dict[str, Any]) -> "Figure | None":
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
                error_y=_intervals(points, "score"),
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
