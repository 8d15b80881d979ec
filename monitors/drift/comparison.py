"""The child process of a drift check: compares two windows.

It runs as `python -m retuned.monitors.drift.comparison JOB`: importing Evidently alone takes 175 MB.
"""

import resource
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from retuned.consumers.child import child_main
from retuned.consumers.common.process import Emit
from retuned.monitors.drift import report, words
from retuned.monitors.drift.columns import SATISFACTION, TOPIC, Columns, read
from retuned.monitors.drift.report import CHI_SQUARE, CMH, KS, TOPICS, Verdict
from retuned.monitors.drift.two_samples import Difference, categories, numbers, satisfaction
from retuned.monitors.drift.vectors import load_embedding
from retuned.monitors.drift.votes import estimated
from retuned.monitors.statistics import holm, repeated_looks

# A comparison of two samples usually takes 400 MB. More than this limit points to a bug.
MEMORY_BYTES = 2 * 2**30


@dataclass(frozen=True)
class Feature:
    """One compared feature.

    Attributes:
        method: the name of the test, see `report`.
        value: the p-value of the test.
        threshold: the p-value's threshold, corrected for the other features and for repeated looks.
        reference, current: the feature in either window, in words.
        distance: the smallest share, 0 to 1, of the current rows that must differ from those of the reference; for
            satisfaction, of the rated answers.
        example: a current prompt of a kind that became more frequent, redacted as stored.
        low, high: the 95% interval of the distance.
        segment: the segment in which the feature moved most ("channel 'app'"); empty: none stands out.
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
    low: float = 0.0
    high: float = 1.0
    segment: str = ""


def compare(job: dict[str, Any], _emit: Emit) -> dict[str, Any]:
    """Compares the two windows in the Parquet file `job["rows"]` and writes the report as JSON and HTML.

    Returns:
        `features`: as in Feature; `left_out`: the columns that were not compared, with the reason; `estimate` and
        `lacking`: the estimated helpful rate, or the votes that it lacks.

    Raises:
        ConfigurationError: see `load_embedding`.
    """
    embed = load_embedding(Path(job["embedding_model"])) if job["embedding_model"] else None
    columns = read(Path(job["rows"]), job["topics"], job["segments"], embed)
    differences, left_out = differ(columns)
    verdicts = judge(columns, differences, job["false_alarm_rate"], job["minimum_distance"], job["moving_windows"])
    path = Path(job["report"])
    if verdicts:
        reference, current = columns.frame(list(verdicts), "reference"), columns.frame(list(verdicts), "current")
        refused = report.write(reference, current, verdicts, path, job["title"])
        verdicts = {column: verdict for column, verdict in verdicts.items() if column not in refused}
        left_out |= refused
    features = [_feature(columns, column, verdict, differences[column]) for column, verdict in verdicts.items()]
    return {
        "features": [asdict(feature) for feature in features],
        "left_out": left_out,
        **estimated(columns),
    }


def differ(columns: Columns) -> tuple[dict[str, Difference], dict[str, str]]:
    """Returns the difference of each column, and the columns that cannot be compared, each with the reason."""
    differences, left_out = dict[str, Difference](), dict[str, str]()
    for column in columns.names:
        if reason := columns.unusable(column):
            left_out[column] = reason
        elif column == TOPIC and columns.topics:
            differences[column] = columns.topics.difference
        else:
            test = {KS: numbers, CMH: satisfaction}.get(method(columns, column), categories)
            try:
                differences[column] = test(columns.sample(column, "reference"), columns.sample(column, "current"))
            except (TypeError, ValueError) as error:
                left_out[column] = f"its values cannot be compared: {error}"
    return differences, left_out


def judge(
    columns: Columns,
    differences: dict[str, Difference],
    false_alarm_rate: float,
    minimum_distance: float,
    moving_windows: int,
) -> dict[str, Verdict]:
    """Decides which columns drifted: beyond chance, corrected for all columns and repeated looks, and far enough."""
    p_values = [difference.p_value for difference in differences.values()]
    threshold = holm(p_values, false_alarm_rate, partial(repeated_looks, moving=moving_windows))
    return {
        column: Verdict(
            method(columns, column),
            difference.p_value,
            threshold,
            difference.p_value <= threshold and difference.share >= minimum_distance,
        )
        for column, difference in differences.items()
    }


def method(columns: Columns, column: str) -> str:
    """Returns the name of the column's test."""
    return KS if columns.is_number(column) else {TOPIC: TOPICS, SATISFACTION: CMH}.get(column, CHI_SQUARE)


def _feature(columns: Columns, column: str, verdict: Verdict, difference: Difference) -> Feature:
    reference, current = words.before_and_now(columns, column)
    return Feature(
        feature=column,
        method=verdict.method,
        threshold=verdict.threshold,
        value=verdict.p_value,
        drifted=verdict.drifted,
        reference=reference,
        current=current,
        distance=difference.share,
        example=words.example(columns, column, difference),
        low=difference.low,
        high=difference.high,
        segment=words.segment(columns, column, difference) if verdict.drifted else "",
    )


if __name__ == "__main__":
    if sys.platform == "linux":  # elsewhere the limit has no effect
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    child_main(compare)
