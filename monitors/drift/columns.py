"""The columns of a drift check: the features of both windows, with topics, satisfaction, attributes and answers."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from retuned.monitors.drift.answers import closed_answers
from retuned.monitors.drift.topics import Topics, find_topics
from retuned.monitors.drift.two_samples import SEPARATOR, Sample
from retuned.monitors.drift.vectors import Embed

if TYPE_CHECKING:
    import pandas as pd

Window = Literal["reference", "current"]

NUMBERS = (
    "prompt_length",
    "response_length",
    "context_length",
    "digit_share",
    "question_marks",
    "new_words",
    "latency_seconds",
)
TOPIC, LANGUAGE, MODEL = "topic", "language", "model"
CATEGORIES = (TOPIC, LANGUAGE, "refusal", "has_context", "helpful")
# Helpful or not, with the topic of the question: shows whether the same questions are answered less well.
SATISFACTION = "satisfaction"
COLUMNS = (*NUMBERS, *CATEGORIES, SATISFACTION)
ATTRIBUTES = "attributes."
ANSWERS = "answers"
# The sample that a column is compared in; all others use `answers`.
RATED = "rated"
SAMPLES = {"context_length": "context", "helpful": RATED, SATISFACTION: RATED}
# A column with fewer values than this in either window is not compared.
MINIMUM_VALUES = 30


@dataclass(frozen=True)
class Columns:
    """The rows of both windows.

    Attributes:
        table: one row for each answer of each sample, with the columns `window`, `sample`, `day`, `unit`, `prompt`,
            and those that are compared.
        names: the columns that are compared.
        segments: the columns that divide the rows into segments.
    """

    table: "pd.DataFrame"
    names: tuple[str, ...]
    segments: tuple[str, ...]
    topics: Topics | None

    @property
    def estimated(self) -> tuple[str, ...]:
        """The columns whose segments have an estimated helpful rate."""
        return (*self.segments, MODEL)

    def values(self, column: str, window: Window) -> "pd.Series[Any]":
        """Returns the non-empty values of a column in a window, from the column's sample."""
        table = self.table
        values: pd.Series[Any] = table[column][(table["window"] == window) & self._in_sample(column)].dropna()
        return values

    def sample(self, column: str, window: Window) -> Sample:
        """Returns the values of a column with their days and, for votes, their units."""
        values = self.values(column, window)
        units = self.table["unit"][values.index].to_numpy() if SAMPLES.get(column) == RATED else None
        return Sample(values.to_numpy(), self.table["day"][values.index].to_numpy(), units)

    def frame(self, columns: list[str], window: Window) -> "pd.DataFrame":
        """Returns columns of a window; a value is empty where the row belongs to another sample than the column."""
        import pandas as pd

        masked = {column: self.table[column].where(self._in_sample(column)) for column in columns}
        return pd.DataFrame(masked)[self.table["window"] == window]

    def unusable(self, column: str) -> str | None:
        """Returns why a column cannot be compared (empty, nearly empty or constant); None: it can."""
        reference, current = self.values(column, "reference"), self.values(column, "current")
        if (fewest := min(len(reference), len(current))) < MINIMUM_VALUES:
            return "no values" if fewest == 0 else "too few values"
        return "constant" if len(set(reference) | set(current)) < 2 else None

    def is_number(self, column: str) -> bool:
        return column in NUMBERS or self.table[column].dtype.kind == "f"

    def _in_sample(self, column: str) -> "pd.Series[bool]":
        return self.table["sample"] == SAMPLES.get(column, ANSWERS)


def read(path: Path, most_topics: int, segments: list[str], embed: Embed | None = None) -> Columns:
    """Reads the rows that `write_features` wrote, and adds topics, satisfaction, attributes and answers.

    Args:
        segments: the names of the attributes in the column `segments`.
        embed: returns the vectors of prompts; None: use their words.
    """
    import pandas as pd

    table = pd.read_parquet(path, use_threads=False)
    attributes = [ATTRIBUTES + name for name in segments]
    for place, name in enumerate(attributes):
        table[name] = table["segments"].map(lambda values, place=place: values[place])
    answers = table["sample"] == ANSWERS
    halves = [answers & (table["window"] == window) for window in ("reference", "current")]
    table[TOPIC] = table[SATISFACTION] = None
    before, now = (Sample(table["prompt"][half].to_numpy(), table["day"][half].to_numpy()) for half in halves)
    topics = find_topics(before, now, most_topics, list(table["prompt"][~answers]), embed=embed)
    if topics:
        for rows, named in zip((*halves, ~answers), (topics.reference, topics.current, topics.others), strict=True):
            table.loc[rows, TOPIC] = named
        table[SATISFACTION] = table[TOPIC].str.cat(table["helpful"], sep=SEPARATOR)
    closed = closed_answers(table["answer"][answers].tolist())
    for name, values in closed.items():
        table[name] = pd.Series(values, index=table.index[answers])
    return Columns(table, (*COLUMNS, *attributes, *closed), (TOPIC, LANGUAGE, *attributes), topics)
