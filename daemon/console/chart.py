"""Where the points of a chart of shares over time lie: pure arithmetic, drawn as SVG by the template chart.html."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, time, timedelta

WIDTH, HEIGHT = 1000.0, 180.0
TICKS = (
    timedelta(minutes=1),
    timedelta(minutes=5),
    timedelta(minutes=15),
    timedelta(hours=1),
    timedelta(hours=6),
    timedelta(days=1),
    timedelta(days=7),
    timedelta(days=28),
    timedelta(days=91),
)
MOST_TICKS = 9
MARK = 13.0
"""The width of a mark."""
GAP = 16
"""A line is broken where so many buckets lack a figure."""


@dataclass(frozen=True)
class Point:
    """A share from 0 to 1 with its 95% interval at a moment."""

    at: datetime
    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Frame:
    """The stretch of time that a chart shows. Times are naive UTC."""

    start: datetime
    end: datetime

    @property
    def seconds(self) -> float:
        """Its length, at least one second."""
        return max((self.end - self.start).total_seconds(), 1.0)

    def x(self, at: datetime) -> float:
        """The horizontal position of a moment, 0 to WIDTH."""
        return round((at - self.start).total_seconds() / self.seconds * WIDTH, 1)

    def ticks(self) -> list[tuple[float, str]]:
        """At most MOST_TICKS positions with their labels, at round times."""
        length = timedelta(seconds=self.seconds)
        step = next((one for one in TICKS if length / one <= MOST_TICKS), length / MOST_TICKS)
        day = datetime.combine(self.start.date(), time.min)
        first = day + step * -(-(self.start - day) // step)
        form = "%H:%M" if step < timedelta(days=1) else "%-d %b"
        return [
            (self.x(first + step * place), (first + step * place).strftime(form))
            for place in range(int((self.end - first) / step) + 1)
        ]


def y(share: float) -> float:
    """The vertical position of a share: 0 at the bottom."""
    return round(HEIGHT - share * HEIGHT, 1)


def lines(frame: Frame, points: Sequence[Point], bucket_seconds: float) -> list[tuple[str, str]]:
    """Returns the points of each unbroken stretch as SVG's `points`: of its line, and of the band of its intervals."""
    stretches: list[list[Point]] = []
    for point in points:
        if stretches and (point.at - stretches[-1][-1].at).total_seconds() <= GAP * bucket_seconds:
            stretches[-1].append(point)
        else:
            stretches.append([point])
    return [
        (
            " ".join(f"{frame.x(one.at)},{y(one.value)}" for one in stretch),
            " ".join(
                [f"{frame.x(one.at)},{y(one.high)}" for one in stretch]
                + [f"{frame.x(one.at)},{y(one.low)}" for one in reversed(stretch)]
            ),
        )
        for stretch in stretches
    ]


def marks(frame: Frame, moments: Sequence[datetime]) -> list[tuple[float, float]]:
    """Returns for each moment, in the order of time, where it lies and where its mark is drawn: marks lie MARK apart,
    or closer where there are too many, so that none hides another."""
    gap = min(MARK, WIDTH / max(len(moments), 1))
    xs = [frame.x(moment) for moment in moments]
    drawn = list(itertools.accumulate(xs, lambda before, x: max(before + gap, x)))
    edge = WIDTH
    for place in reversed(range(len(drawn))):
        drawn[place] = round(min(drawn[place], edge), 1)
        edge = drawn[place] - gap
    return list(zip(xs, drawn, strict=True))


def columns(frame: Frame, *series: Sequence[Point]) -> list[tuple[float, float, datetime, list[Point | None]]]:
    """Returns for each moment with a point the left edge and the width of the stretch that is nearest to it, the
    moment, and the point of each series, if it has one."""
    known = [{point.at: point for point in points} for points in series]
    moments = sorted(set().union(*known))
    xs = [frame.x(moment) for moment in moments]
    edges = [0.0, *((left + right) / 2 for left, right in itertools.pairwise(xs)), WIDTH]
    return [
        (edges[place], round(edges[place + 1] - edges[place], 1), moment, [points.get(moment) for points in known])
        for place, moment in enumerate(moments)
    ]
