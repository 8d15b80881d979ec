"""The report of a drift check, by Evidently: as JSON, and as a page."""

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
    """On a column: the test by name, its p-value, the threshold of that, and whether the column drifted."""

    method: str
    p_value: float
    threshold: float
    drifted: bool


def write(
    reference: "pd.DataFrame", current: "pd.DataFrame", verdicts: Mapping[str, Verdict], path: Path, title: str
) -> dict[str, str]:
    """Write Evidently's report of the columns that have a verdict, to `path` and as a page beside it (.html).

    The tests are ours, made before, and registered with Evidently by name: its own defaults change with the number of
    rows, and its chi-square takes the reference as exact.

    Returns:
        The columns that Evidently cannot take, each with its reason: they are not in the report. Without any column
        there is none.
    """
    register(verdicts)
    try:
        snapshot = run(reference, current, verdicts)
    except Exception:
        refused = {}
        for column, verdict in verdicts.items():
            try:
                run(reference, current, {column: verdict})
            except Exception as error:  # noqa: BLE001 - whatever it is, it is reported, and costs this column alone
                refused[column] = f"Evidently: {type(error).__name__}: {error}"
        if not refused:
            raise  # no column is to blame
        if others := {column: verdict for column, verdict in verdicts.items() if column not in refused}:
            write(reference, current, others, path, title)
        return refused
    snapshot.save_json(str(path))
    snapshot.save_html(str(path.with_suffix(".html")))
    _add_heading(path.with_suffix(".html"), title)
    return {}


def register(verdicts: Mapping[str, Verdict]) -> None:
    """Have Evidently know our tests by name: each finds the verdict by the name of the column that it is handed."""
    from evidently.legacy.calculations.stattests.registry import StatTest, register_stattest
    from evidently.legacy.core import ColumnType

    def test(reference: Any, _current: Any, _kind: Any, _threshold: float) -> tuple[float, bool]:
        verdict = verdicts[reference.name]
        return verdict.p_value, verdict.drifted

    for method, title in TITLES.items():
        kind = ColumnType.Numerical if method == KS else ColumnType.Categorical
        register_stattest(StatTest(method, title, [kind]), test)


def run(reference: "pd.DataFrame", current: "pd.DataFrame", verdicts: Mapping[str, Verdict]) -> Any:
    """Evidently's snapshot of the columns that have a verdict; their tests are registered."""
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
    """Name Evidently's page, which has neither a title nor a way back."""
    title = html.escape(title)
    text = page.read_text(encoding="utf-8").replace("<head>", f"<head><title>{title}</title>", 1)
    style = "margin:16px 24px;font:16px system-ui,sans-serif"
    heading = f'<body><p style="{style}"><a href="/">retuned</a> · <strong>{title}</strong></p>'
    page.write_text(text.replace("<body>", heading, 1), encoding="utf-8")
