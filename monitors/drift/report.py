"""Evidently's report of a drift check, as JSON and as an HTML page."""

import html
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

KS, CHI_SQUARE, TOPICS, CMH = "two_sample_ks", "two_sample_chi_square", "two_sample_topics", "cochran_mantel_haenszel"
TITLES = {
    KS: "two-sample K-S test, p-value",
    CHI_SQUARE: "two-sample chi-square tests, p-value",
    TOPICS: "two-sample chi-square tests of topics and kernel test of prompts, p-value",
    CMH: "Cochran-Mantel-Haenszel test of a fall within topics, p-value",
}


@dataclass(frozen=True)
class Verdict:
    """The verdict on a column: the name of its test, the p-value, its threshold, and whether the column drifted."""

    method: str
    p_value: float
    threshold: float
    drifted: bool


def write(
    reference: "pd.DataFrame", current: "pd.DataFrame", verdicts: Mapping[str, Verdict], path: Path, title: str
) -> dict[str, str]:
    """Writes Evidently's report of the columns that have a verdict to `path`, and as a page beside it (.html).

    Evidently shows the results of our own tests, registered by name: its default tests change with the number of rows,
    and its chi-square test treats the reference as exact.

    Returns:
        The columns that Evidently rejects, each with the reason. They are left out; without any column there is no
        report.
    """
    register(verdicts)
    reference, current = _without_tags(reference), _without_tags(current)
    try:
        snapshot = run(reference, current, verdicts)
    except Exception:
        rejected = {}
        for column, verdict in verdicts.items():
            try:
                run(reference, current, {column: verdict})
            except Exception as error:  # noqa: BLE001 - any error is reported, and costs this column alone
                rejected[column] = f"Evidently: {type(error).__name__}: {error}"
        if not rejected:
            raise  # no single column causes it
        if others := {column: verdict for column, verdict in verdicts.items() if column not in rejected}:
            write(reference, current, others, path, title)
        return rejected
    snapshot.save_json(str(path))
    snapshot.save_html(str(path.with_suffix(".html")))
    _add_heading(path.with_suffix(".html"), title)
    return {}


def _without_tags(rows: "pd.DataFrame") -> "pd.DataFrame":
    """Returns rows whose texts hold no tags: Evidently writes them into a script as they are."""
    return rows.replace("<", "‹", regex=True)


def register(verdicts: Mapping[str, Verdict]) -> None:
    """Registers our tests with Evidently by name; each looks up the verdict by the name of its column."""
    from evidently.legacy.calculations.stattests.registry import StatTest, register_stattest
    from evidently.legacy.core import ColumnType

    def test(reference: Any, _current: Any, _kind: Any, _threshold: float) -> tuple[float, bool]:
        verdict = verdicts[reference.name]
        return verdict.p_value, verdict.drifted

    for method, title in TITLES.items():
        kind = ColumnType.Numerical if method == KS else ColumnType.Categorical
        register_stattest(StatTest(method, title, [kind]), test)


def run(reference: "pd.DataFrame", current: "pd.DataFrame", verdicts: Mapping[str, Verdict]) -> Any:
    """Returns Evidently's snapshot of the columns that have a verdict; their tests must be registered."""
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import ValueDrift

    definition = DataDefinition(
        numerical_columns=[column for column, verdict in verdicts.items() if verdict.method == KS],
        categorical_columns=[column for column, verdict in verdicts.items() if verdict.method != KS],
        text_columns=[],
    )
    columns = list(verdicts)
    return Report(
        [
            ValueDrift(column=column, method=verdict.method, threshold=verdict.threshold)
            for column, verdict in verdicts.items()
        ],
        include_tests=True,
    ).run(
        Dataset.from_pandas(current[columns], data_definition=definition),
        Dataset.from_pandas(reference[columns], data_definition=definition),
    )


def _add_heading(page: Path, title: str) -> None:
    """Adds a title and a link back to Evidently's page, which has neither."""
    title = html.escape(title)
    text = page.read_text(encoding="utf-8").replace("<head>", f"<head><title>{title}</title>", 1)
    style = "margin:16px 24px;font:16px system-ui,sans-serif"
    heading = f'<body><p style="{style}"><a href="/">retuned</a> · <strong>{title}</strong></p>'
    page.write_text(text.replace("<body>", heading, 1), encoding="utf-8")
