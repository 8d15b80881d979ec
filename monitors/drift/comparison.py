"""The comparing of two windows: the child's side of a drift check.

It runs as `python -m retuned.monitors.drift.comparison JOB`, in a process of its own: Evidently's import alone costs
175 MB.
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
from retuned.monitors.statistics import holm, repeated_looks

# Some 400 MB are usual. What is compared is a sample of texts cut short, so more than this is a mistake somewhere.
MEMORY_BYTES = 2 * 2**30


@dataclass(frozen=True)
class Feature:
    """One compared feature: what its test says, and what it was and is, in words.

    Attributes:
        threshold: of the p-value `value`, after the correction for the other features and for repeated looks.
        distance: about the share of rows, 0 to 1, that is different: the share of new prompts for topics, the fall of
            the helpful rate for satisfaction, for the others the excess in the values that grew.
        example: a prompt of the current window, of those that became more frequent; redacted as stored.
        low, high: the ends of the 95% interval of the distance.
        segment: where it moved more than elsewhere ("channel 'app'"); empty: nowhere.
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
    """Compare the two windows in the Parquet file `job["rows"]` and write the report as JSON and HTML.

    Raises:
        ConfigurationError: see `load_embedding`.

    Returns:
        `features`, as in Feature, and `left_out`: the columns that were not compared, each with the reason.
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
    return {"features": [asdict(feature) for feature in features], "left_out": left_out}


def differ(columns: Columns) -> tuple[dict[str, Difference], dict[str, str]]:
    """What each column differs in, and the columns that cannot be compared, each with the reason."""
    found, left_out = dict[str, Difference](), dict[str, str]()
    for column in columns.names:
        if reason := columns.unusable(column):
            left_out[column] = reason
        elif column == TOPIC and columns.topics:
            found[column] = columns.topics.difference
        else:
            test = {KS: numbers, CMH: satisfaction}.get(method(columns, column), categories)
            try:
                found[column] = test(columns.sample(column, "reference"), columns.sample(column, "current"))
            except (TypeError, ValueError) as error:
                left_out[column] = f"its values cannot be compared: {error}"
    return found, left_out


def judge(
    columns: Columns,
    differences: dict[str, Difference],
    false_alarm_rate: float,
    minimum_distance: float,
    moving_windows: int,
) -> dict[str, Verdict]:
    """What drifted: beyond chance, with all columns and repeated looks counted, and by as much as matters."""
    p_values = [found.p_value for found in differences.values()]
    threshold = holm(p_values, false_alarm_rate, partial(repeated_looks, moving=moving_windows))
    return {
        column: Verdict(
            method(columns, column),
            found.p_value,
            threshold,
            found.p_value <= threshold and found.share >= minimum_distance,
        )
        for column, found in differences.items()
    }


def method(columns: Columns, column: str) -> str:
    """The name of the column's test."""
    return KS if columns.is_number(column) else {TOPIC: TOPICS, SATISFACTION: CMH}.get(column, CHI_SQUARE)


def _feature(columns: Columns, column: str, verdict: Verdict, found: Difference) -> Feature:
    reference, current = words.before_and_now(columns, column)
    return Feature(
        column,
        verdict.method,
        verdict.threshold,
        verdict.p_value,
        verdict.drifted,
        reference,
        current,
        found.share,
        words.example(columns, column, found),
        found.low,
        found.high,
        words.segment(columns, column, found) if verdict.drifted else "",
    )


if __name__ == "__main__":
    if sys.platform == "linux":  # elsewhere the limit says nothing
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    child_main(compare)
