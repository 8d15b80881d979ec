"""Plots of the simulated year as SVG, from its results. Both colour schemes of the site are served by mid-grey text."""

from collections.abc import Callable
from html import escape
from statistics import fmean
from typing import Any

from loop import score

Result = dict[str, Any]
WIDTH, LEFT, BAR = 760, 210, 20
OURS, OTHER, TEXT = "#2a7f9e", "#9aa7ad", "#808080"


def regret(results: list[Result]) -> str:
    """The mean regret of each system over the scenarios that all of them played, with 95% intervals over seeds."""
    found = score.regrets(results)
    names = [name for name in (*score.AGAINST, "ours") if all(name in by for by in found.values())]
    seeds = set.intersection(*(set(by[name]) for by in found.values() for name in names))
    means = {
        name: score.interval([fmean(by[name][seed] for by in found.values()) for seed in sorted(seeds)])
        for name in names
    }
    scale = (WIDTH - LEFT - 130) / max(mean + (half if half == half else 0) for mean, half in means.values())
    parts = []
    for row, (name, (mean, half)) in enumerate(sorted(means.items(), key=lambda one: one[1][0])):
        y = 50 + row * (BAR + 8)
        parts += [
            _text(LEFT - 10, y + 15, name, "end"),
            f'<rect x="{LEFT}" y="{y}" width="{mean * scale:.1f}" height="{BAR}" fill="{_colour(name)}"/>',
        ]
        end = mean * scale
        if half == half:
            low, end = LEFT + (mean - half) * scale, (mean + half) * scale
            parts.append(f'<path d="M{low:.1f} {y + 10}H{LEFT + end:.1f}" stroke="{TEXT}" stroke-width="2"/>')
        parts.append(_text(LEFT + end + 8, y + 15, f"{mean:,.0f}" + (f" ± {half:,.0f}" if half == half else "")))
    title = f"Regret in a year, mean of {len(found)} scenarios, {len(seeds)} seeds: less is better"
    return _svg(title, parts, 50 + len(means) * (BAR + 8) + 10)


def after_change(results: list[Result]) -> str:
    """The share of wrong answers by days since a change."""
    own = [one for one in results if one["scenario"] == "change" and len(one["by_day_after"]) > max(score.DAYS_AFTER)]
    names = [name for name in ("never", "monthly", "threshold_gate", "retrieval", "memory_alone", "ours", "oracle")
             if any(one["system"] == name for one in own)]  # fmt: skip
    left, top, width, height = 60, 60, WIDTH - 220, 260
    x = {day: left + width * index / (len(score.DAYS_AFTER) - 1) for index, day in enumerate(score.DAYS_AFTER)}
    parts = []
    for tick in range(0, 60, 10):
        y = top + height * (1 - tick / 50)
        parts += [
            _text(left - 8, y + 4, f"{tick}%", "end"),
            f'<path d="M{left} {y:.0f}h{width}" stroke="{TEXT}" opacity=".25"/>',
        ]
    for day in score.DAYS_AFTER:
        parts.append(_text(x[day], top + height + 20, str(day), "middle"))
    ends = []
    for name in names:
        shares = [fmean(one["by_day_after"][day] for one in own if one["system"] == name) for day in score.DAYS_AFTER]
        points = " ".join(
            f"{x[day]:.1f},{top + height * (1 - share * 2):.1f}"
            for day, share in zip(score.DAYS_AFTER, shares, strict=True)
        )
        parts.append(f'<polyline points="{points}" fill="none" {_line(name)}/>')
        ends.append((top + height * (1 - shares[-1] * 2), name, shares[-1]))
    lowest = top - 20.0
    for y, name, share in sorted(ends):
        lowest = max(y + 4, lowest + 16)
        parts.append(_text(left + width + 10, lowest, f"{name} {share:.0%}"))
    return _svg("Wrong answers by days since a change", parts, top + height + 40)


def _colour(name: str) -> str:
    return OURS if name == "ours" else OTHER


def _line(name: str) -> str:
    return f'stroke="{_colour(name)}" stroke-width="{3 if name == "ours" else 1.5}"'


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(title: str, parts: list[str], height: float) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        f'font-family="sans-serif" font-size="14" fill="{TEXT}"><title>{escape(title)}</title>\n'
        + "\n".join([f'<text x="10" y="24" font-size="16">{escape(title)}</text>', *parts])
        + "\n</svg>\n"
    )


PLOTS: dict[str, Callable[[list[Result]], str]] = {"evidence-regret.svg": regret, "evidence-change.svg": after_change}
