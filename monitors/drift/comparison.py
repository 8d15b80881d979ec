"""The comparing of two windows, with Evidently: the child's side of a drift check.

It runs as `python -m retuned.monitors.drift.comparison JOB`, in a process of its own: Evidently's import alone costs
175 MB.
"""

import html
import resource
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from retuned.consumers.child import child_main
from retuned.consumers.common.process import Emit
from retuned.monitors.drift.topics import Topics, find_topics
from retuned.monitors.statistics import (
    cochran_mantel_haenszel,
    holm,
    ks_distance,
    repeated_looks,
    total_variation,
    two_sample_chi_square,
    two_sample_ks,
)

if TYPE_CHECKING:
    import pandas as pd

NUMBERS = (
    "prompt_length",
    "response_length",
    "context_length",
    "digit_share",
    "question_marks",
    "new_words",
    "latency_seconds",
)
CATEGORIES = ("topic", "language", "refusal", "has_context", "helpful")
# Helpful or not, with the topic of the question: did the same questions come to be answered less well?
SATISFACTION = "satisfaction"
SEPARATOR = ": "
HELPFUL, UNHELPFUL = f"{SEPARATOR}yes", f"{SEPARATOR}no"
COLUMNS = (*NUMBERS, *CATEGORIES, SATISFACTION)
KS, CHI_SQUARE, TOPICS, CMH = "two_sample_ks", "two_sample_chi_square", "two_sample_topics", "cochran_mantel_haenszel"
# A column with fewer values than this in either window is not compared.
MINIMUM_VALUES = 30
EXAMPLE_LENGTH = 120
# Some 400 MB are usual. What is compared is a sample of texts cut short, so more than this is a mistake somewhere.
MEMORY_BYTES = 2 * 2**30


@dataclass(frozen=True)
class Feature:
    """One compared feature: what its test says, and what it was and is, in words.

    Attributes:
        threshold: of the p-value `value`, after the correction for the other features and for repeated looks.
        distance: about the share of rows, 0 to 1, that is different: the K-S statistic of numbers, the total
            variation of categories, the fall of the helpful rate for satisfaction.
        example: a prompt of the current window, of those that became more frequent; redacted as stored.
    """

    feature: str
    method: str
    threshold: float
    value: float
    drifted: bool
    reference: str
    current: str
    distance: float = 0.0
    example: str = ""


def compare(job: dict[str, Any], _emit: Emit) -> dict[str, Any]:
    """Compare the two windows in the Parquet file `job["rows"]` and write the report as JSON and HTML.

    Returns:
        `features`, as in Feature, and `left_out`: the columns that were not compared, each with the reason.
    """
    import pandas as pd

    rows = pd.read_parquet(job["rows"], use_threads=False)
    reference, current = rows[rows["window"] == "reference"].copy(), rows[rows["window"] == "current"].copy()
    topics = find_topics(list(reference["prompt"]), list(current["prompt"]), job["topics"])
    add_topics(reference, current, topics)
    left_out = {}
    for column in COLUMNS:
        if reason := unusable(reference[column], current[column]):
            left_out[column] = reason
    columns = [column for column in COLUMNS if column not in left_out]
    threshold = partial(repeated_looks, moving=job["moving_windows"])
    comparison = Comparison(topics.p_value if topics else 1.0, job["false_alarm_rate"], threshold)
    verdicts = comparison.report(reference[columns], current[columns], Path(job["report"]), left_out)
    if verdicts:
        add_heading(Path(job["report"]).with_suffix(".html"), job["title"])
    features = [
        asdict(Feature(column, *verdict, **_in_words(column, reference, current, topics)))
        for column, verdict in verdicts.items()
    ]
    return {"features": features, "left_out": left_out}


def add_heading(page: Path, title: str) -> None:
    """Name Evidently's page, which has neither a title nor a way back."""
    title = html.escape(title)
    text = page.read_text(encoding="utf-8").replace("<head>", f"<head><title>{title}</title>", 1)
    style = "margin:16px 24px;font:16px system-ui,sans-serif"
    heading = f'<body><p style="{style}"><a href="/">retuned</a> · <strong>{title}</strong></p>'
    page.write_text(text.replace("<body>", heading, 1), encoding="utf-8")


def add_topics(reference: "pd.DataFrame", current: "pd.DataFrame", topics: Topics | None) -> None:
    """Add the columns `topic` and `satisfaction` to both, empty where there are no topics."""
    for window in (reference, current):
        window["topic"] = window[SATISFACTION] = None
    if topics:
        for window, named in ((reference, topics.reference), (current, topics.current)):
            window["topic"] = named
            window[SATISFACTION] = window["topic"].str.cat(window["helpful"], sep=SEPARATOR)


def unusable(reference: "pd.Series[Any]", current: "pd.Series[Any]") -> str | None:
    """Why a column cannot be compared, or None: it is empty, nearly so, or the same everywhere."""
    values = min(int(reference.notna().sum()), int(current.notna().sum()))
    if values < MINIMUM_VALUES:
        return "no values" if values == 0 else "too few values"
    return "constant" if len(set(reference.dropna()) | set(current.dropna())) < 2 else None


@dataclass(frozen=True)
class Comparison:
    """The tests of all columns, and how strict they are.

    Attributes:
        topic_p_value: that of the column `topic`, whose test needs more than the column: the prompts.
        false_alarm_rate: of any column, at any look within the length of the current window.
        threshold: the p-value at or under which one test by itself flags, for a rate.
    """

    topic_p_value: float
    false_alarm_rate: float
    threshold: Callable[[float], float]

    def report(
        self, reference: "pd.DataFrame", current: "pd.DataFrame", path: Path, left_out: dict[str, str]
    ) -> dict[str, tuple[str, float, float, bool]]:
        """Evidently's verdict on each column: method, threshold, p-value, drifted. Writes path and path.html.

        The tests are ours, registered with Evidently by name: its own defaults change with the number of rows, and its
        chi-square takes the reference as exact. A column that its test or Evidently cannot take goes to `left_out`; the
        others are compared without it.
        """
        columns = list(reference.columns)
        if not columns:
            return {}
        self._register()
        try:
            snapshot = self._run(reference, current)
        except Exception:
            good = []
            for column in columns:
                try:
                    self._run(reference[[column]], current[[column]])
                    good.append(column)
                except Exception as error:  # noqa: BLE001 - whatever it is, it is reported, and costs this column alone
                    left_out[column] = f"Evidently: {type(error).__name__}: {error}"
            if len(good) == len(columns):
                raise  # no column is to blame
            return self.report(reference[good], current[good], path, left_out)
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

    def p_value(self, method: str, reference: Any, current: Any) -> float:
        """That of a column, without its empty values."""
        if method == TOPICS:
            return self.topic_p_value
        if method == CMH:
            return cochran_mantel_haenszel(ratings(reference, current).values())[0]
        return two_sample_ks(reference, current) if method == KS else two_sample_chi_square(reference, current)

    def _register(self) -> None:
        from evidently.legacy.calculations.stattests.registry import StatTest, register_stattest
        from evidently.legacy.core import ColumnType

        for method, title, kind in (
            (KS, "two-sample K-S test, p-value", ColumnType.Numerical),
            (CHI_SQUARE, "two-sample chi-square test, p-value", ColumnType.Categorical),
            (
                TOPICS,
                "two-sample chi-square test of topics and kernel test of prompts, p-value",
                ColumnType.Categorical,
            ),
            (CMH, "Cochran-Mantel-Haenszel test of a fall within topics, p-value", ColumnType.Categorical),
        ):

            def test(
                reference: Any, current: Any, _kind: Any, threshold: float, method: str = method
            ) -> tuple[float, bool]:
                value = self.p_value(method, list(reference), list(current))
                return value, value <= threshold

            register_stattest(StatTest(method, title, [kind]), test)

    def _run(self, reference: "pd.DataFrame", current: "pd.DataFrame") -> Any:
        from evidently import DataDefinition, Dataset, Report
        from evidently.metrics import ValueDrift

        columns = list(reference.columns)
        p_values = [
            self.p_value(method(column), list(reference[column].dropna()), list(current[column].dropna()))
            for column in columns
        ]
        threshold = holm(p_values, self.false_alarm_rate, self.threshold)
        definition = DataDefinition(
            numerical_columns=[column for column in columns if column in NUMBERS],
            categorical_columns=[column for column in columns if column not in NUMBERS],
            text_columns=[],
        )
        return Report(
            [ValueDrift(column=column, method=method(column), threshold=threshold) for column in columns],
            include_tests=True,
        ).run(
            Dataset.from_pandas(current, data_definition=definition),
            Dataset.from_pandas(reference, data_definition=definition),
        )


def method(column: str) -> str:
    """The name under which the column's test is registered with Evidently."""
    return KS if column in NUMBERS else {"topic": TOPICS, SATISFACTION: CMH}.get(column, CHI_SQUARE)


def ratings(reference: Iterable[str], current: Iterable[str]) -> dict[str, tuple[int, int, int, int]]:
    """Of each topic, from two columns of satisfaction: helpful answers and rated ones, before and after."""
    before, after = Counter(reference), Counter(current)
    topics = sorted({value.rpartition(SEPARATOR)[0] for value in before | after})
    return {
        topic: (
            before[topic + HELPFUL],
            before[topic + HELPFUL] + before[topic + UNHELPFUL],
            after[topic + HELPFUL],
            after[topic + HELPFUL] + after[topic + UNHELPFUL],
        )
        for topic in topics
    }


def _in_words(column: str, reference: "pd.DataFrame", current: "pd.DataFrame", topics: Topics | None) -> dict[str, Any]:
    """What a column was and is, how far it moved, and an example."""
    before, after = reference[column].dropna(), current[column].dropna()
    if column in NUMBERS:
        return {
            "reference": f"a mean of {before.mean():.3g}",
            "current": f"{after.mean():.3g}",
            "distance": ks_distance(list(before), list(after)),
        }
    if column == SATISFACTION:
        rated = ratings(before, after)
        _, rate_before, rate_after = cochran_mantel_haenszel(rated.values())
        worst = max(rated, key=lambda topic: _excess(*rated[topic]))
        helpful_before, rated_before, helpful_after, rated_after = rated[worst]
        return {
            "reference": f"{rate_before:.0%} helpful",
            "current": f"{rate_after:.0%} for the same topics, most in {worst!r} "
            f"({_percent(helpful_before, rated_before)} to {_percent(helpful_after, rated_after)})",
            "distance": max(rate_before - rate_after, 0.0),
            "example": _typical(current["prompt"][current[column] == worst + UNHELPFUL]),
        }
    shares_before, shares_after = _shares(list(before)), _shares(list(after))
    moved = sorted(
        shares_before.keys() | shares_after.keys(),
        key=lambda name: (-abs(shares_after.get(name, 0.0) - shares_before.get(name, 0.0)), name),
    )
    was, now = (
        ", ".join(f"{name!r} {shares.get(name, 0.0):.0%}" for name in moved[:2])
        for shares in (shares_before, shares_after)
    )
    grown = max(moved, key=lambda name: shares_after.get(name, 0.0) - shares_before.get(name, 0.0))
    return {
        "reference": was,
        "current": now,
        "distance": total_variation(list(before), list(after)),
        "example": _short(topics.newest)
        if column == "topic" and topics
        else _typical(current["prompt"][current[column] == grown]),
    }


def _excess(helpful_before: int, before: int, helpful_after: int, after: int) -> float:
    """How many fewer answers were helpful than at the rate of before."""
    return after * helpful_before / before - helpful_after if before else 0.0


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "none"


def _shares(values: Sequence[str]) -> Mapping[str, float]:
    return {name: count / len(values) for name, count in Counter(values).items()}


def _typical(prompts: "pd.Series[Any]") -> str:
    """One of middling length."""
    ordered = sorted(prompts, key=lambda prompt: (len(prompt), prompt))
    return _short(ordered[len(ordered) // 2]) if ordered else ""


def _short(prompt: str) -> str:
    """On one line, without what would command a terminal: it goes to logs too."""
    printable = "".join(letter if letter.isprintable() else " " for letter in prompt)
    return shorten(printable, EXAMPLE_LENGTH, placeholder=" …")


if __name__ == "__main__":
    if sys.platform == "linux":  # elsewhere the limit says nothing
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    child_main(compare)
