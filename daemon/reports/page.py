"""The page of a report: a summary, a table and plots.

A child process draws it, with Plotly: `python -m retuned.daemon.reports.page JOB`.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from retuned.consumers.child import child_main
from retuned.consumers.common.durable import replace_text
from retuned.consumers.common.process import Emit
from retuned.daemon.reports.plots import WORDS, plots_of

Figures = Mapping[str, Any]
"""The figures of a period."""


def draw(job: dict[str, Any], _emit: Emit) -> dict[str, Any]:
    """Write the page `job["page"]`, atomically."""
    from jinja2 import Environment, PackageLoader
    from plotly.io import to_html
    from plotly.offline import get_plotlyjs

    plots = [
        (title, words, to_html(figure, full_html=False, include_plotlyjs=False, config={"displaylogo": False}))
        for title, words, figure in plots_of(job)
    ]
    template = Environment(loader=PackageLoader("retuned.daemon.reports", "."), autoescape=True).get_template(
        "report.html"
    )
    page = template.render(job=job, sentences=sentences(job), rows=comparison(job), plots=plots, plotly=get_plotlyjs())
    replace_text(Path(job["page"]), page)
    return {}


def sentences(job: dict[str, Any]) -> list[str]:
    """Returns the summary of a period, for people who decide."""
    now, before, currency = job["now"], job["before"], job["currency"]
    return [
        _answered(now, before),
        *_helpful(now, before),
        *_earned(now, currency),
        _trained(now),
        *_drifted(now),
    ]


def _answered(now: Figures, before: Figures) -> str:
    answers, answers_before = (sum(day["answers"] for day in period["answers"]) for period in (now, before))
    compared = f", after {answers_before:,} in the period before" if answers_before else ""
    archived = " Archived answers, and votes on them, do not count." if now["some_archived"] else ""
    return f"The model answered {answers:,} times{compared}.{archived}"


def _helpful(now: Figures, before: Figures) -> Iterator[str]:
    rate, rate_before = (_rate(period, "helpful_rate", "user") for period in (now, before))
    if rate:
        compared = f", after {rate_before['value']:.0%} in the period before" if rate_before else ""
        yield (
            f"Users called {rate['value']:.0%} of the {rate['n']:,} answers that they rated helpful "
            f"(95%: {rate['low']:.0%} to {rate['high']:.0%}){compared}."
        )


def _earned(now: Figures, currency: str) -> Iterator[str]:
    gains, costs = (_money(now, kind) for kind in ("gain", "cost"))
    if gains or costs:
        worth = f", a return of {(gains - costs) / costs:,.1f} on the costs" if costs else ""
        yield f"It earned {gains:,.2f} {currency} and cost {costs:,.2f} {currency}{worth}."
    if now.get("cost_per_resolved") is not None:
        yield (
            f"A resolved conversation cost {now['cost_per_resolved']:,.4g} {currency} "
            f"({now['resolved']:,} were resolved)."
        )


def _trained(now: Figures) -> str:
    events = [change["event"] for change in now["promotions"]]
    runs = sum(day["runs"] for day in now["runs"])
    how_often = {1: "once", 2: "twice"}.get(runs, f"{runs} times")
    return (
        f"{f'It was retrained {how_often}.' if runs else 'It was not retrained.'} "
        f"{_count(events.count('promoted'), 'new model')} went into service, "
        f"{_count(events.count('rolled_back'), 'model')} {'was' if events.count('rolled_back') == 1 else 'were'} taken "
        f"back. People corrected {_count(now['corrections'], 'answer')}."
    )


def _drifted(now: Figures) -> Iterator[str]:
    checks, drifted = (sum(day[key] for day in now["drift"]) for key in ("checks", "drifted"))
    if checks:
        yield f"In {drifted:,} of {checks:,} hours a drift check found that questions or answers had changed."


def comparison(job: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Returns rows of a table: figure, source, this period, the period before."""
    found: list[tuple[str, str, str, str]] = []
    sources = sorted({(row["metric"], row["source"]) for row in job["now"]["figures"] if row["metric"] in WORDS})
    for metric, source in sorted(sources, key=lambda pair: (list(WORDS).index(pair[0]), pair[1])):
        texts = []
        for period in (job["now"], job["before"]):
            days = [row["value"] for row in period["figures"] if (row["metric"], row["source"]) == (metric, source)]
            if rate := _rate(period, metric, source):
                texts.append(f"{rate['value']:.1%} ({rate['low']:.1%} to {rate['high']:.1%}, n={rate['n']:,})")
            elif not days:
                texts.append("–")
            else:  # figures of days, from samples or overlapping windows: only their mean is known
                texts.append(f"{fmean(days):.1%}" if metric.endswith("_rate") else f"{fmean(days):.2f} s")
        found.append((WORDS[metric], source, texts[0], texts[1]))
    for kind, word in (("gain", "gains"), ("cost", "costs")):
        items = sorted({row["item"] for row in job["now"]["money"] + job["before"]["money"] if row["kind"] == kind})
        for item in items:
            now, before = (f"{_money(job[period], kind, item):,.2f} {job['currency']}" for period in ("now", "before"))
            found.append((f"{word}: {item.replace('_', ' ')}", "", now, before))
    costs = [job[period].get("cost_per_resolved") for period in ("now", "before")]
    if costs != [None, None]:
        texts = ["–" if cost is None else f"{cost:,.4g} {job['currency']}" for cost in costs]
        found.append(("cost of a resolved conversation", "", texts[0], texts[1]))
    return found


def _rate(figures: Figures, metric: str, source: str) -> dict[str, Any] | None:
    """Returns the rate of votes over a whole period; None: the source did not vote."""
    return next((row for row in figures["rates"] if (row["metric"], row["source"]) == (metric, source)), None)


def _money(figures: Figures, kind: str, item: str | None = None) -> float:
    return float(sum(row["amount"] for row in figures["money"] if row["kind"] == kind and item in (None, row["item"])))


def _count(count: int, noun: str) -> str:
    return f"{count or 'no'} {noun}{'' if count == 1 else 's'}"


if __name__ == "__main__":
    child_main(draw)
