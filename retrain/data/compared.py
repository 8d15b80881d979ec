"""Two datasets, question by question: what was added, removed, answered anew, or moved to another split."""

from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal, get_args

import pyarrow.parquet as pq

from retuned.consumers.errors import RetunedError
from retuned.consumers.warehouse.connection import Warehouse, named_queries
from retuned.retrain.data.dataset import REDUCED, SET_ASIDE, SPLITS, Dataset, load

QUERIES = named_queries("retuned.retrain.data", "compared.sql")
Change = Literal["added", "removed", "answer", "split"]
CHANGES: tuple[Change, ...] = get_args(Change)
_COLUMNS = ["prompt_hash", "question", "completion", "source", "feedback_id", "interaction_id"]

Row = dict[str, Any]


def listed(warehouse: Warehouse, workload: str) -> list[Row]:
    """Returns the latest 100 datasets of a workload, newest first."""
    return warehouse.rows(QUERIES["listed"], {"workload": workload})


def workload_of(warehouse: Warehouse, before: str, after: str) -> str:
    """Returns the workload that has both datasets.

    Raises:
        RetunedError: there is none.
    """
    owners: dict[str, set[str]] = {before: set(), after: set()}
    for row in warehouse.rows(QUERIES["workloads"], {"before": before, "after": after}):
        owners[row["version"]].add(row["workload"])
    if unknown := [one for one, workloads in owners.items() if not workloads]:
        raise RetunedError(f"dataset {unknown[0]}: there is none; `retuned dataset list WORKLOAD` lists them")
    if not (common := owners[before] & owners[after]):
        raise RetunedError(f"datasets {before} and {after}: of different workloads; name two of the same workload")
    return min(common)


def compare(warehouse: Warehouse, before: str, after: str, limit: int | None) -> dict[str, Any]:
    """Compares two datasets of one workload. A question counts once, however many rows it has.

    A question whose answer and whose split changed counts as both. Of a dataset that retention reduced, only some
    splits are left; then only these are compared.

    Args:
        limit: the maximum number of examples of each change; None: all.

    Returns:
        `workload`; `before` and `after`; `splits`, those that are compared; `counts`, the questions by change, and
        `same`; `rows`, each with its `change`, the question, the answer and the split before and after (None where
        it has none), `why` it is not in the later dataset, if a rule set it aside, and the ids of the feedback and the
        interaction.

    Raises:
        RetunedError: there are no such datasets of one workload, or retention removed one.
    """
    workload = workload_of(warehouse, before, after)
    first, second = _existing(warehouse, workload, before), _existing(warehouse, workload, after)
    splits = REDUCED if first.reduced or second.reduced else SPLITS
    old, new = _questions(first, splits), _questions(second, splits)
    why = _set_aside(second)
    counts, rows = Counter[str](dict.fromkeys((*CHANGES, "same"), 0)), list[Row]()
    for hash in sorted(old.keys() | new.keys()):
        was, now = old.get(hash), new.get(hash)
        found = _changes(was, now)
        counts.update([*found] if found else {"same": 1})
        for change in found:
            if limit is None or counts[change] <= limit:
                rows.append(_row(change, was, now, why.get(hash) if now is None else None))
    rows.sort(key=lambda one: CHANGES.index(one["change"]))
    about = {"workload": workload, "before": before, "after": after, "splits": list(splits)}
    return about | {"counts": dict(counts), "rows": rows}


def _existing(warehouse: Warehouse, workload: str, version: str) -> Dataset:
    found = load(warehouse, workload, version)
    if found is None or found.removed_at or not found.path.is_dir():
        raise RetunedError(
            f"dataset {version}: its rows are not here: retention removed them, or they are still being fetched; "
            "compare later ones"
        )
    return found


def _questions(dataset: Dataset, splits: Iterable[str]) -> dict[str, Row]:
    """Returns the questions by hash, with `answers` and `splits`."""
    found: dict[str, Row] = {}
    for split in splits:
        for row in pq.read_table(dataset.path / f"{split}.parquet", columns=_COLUMNS).to_pylist():
            one = found.setdefault(row["prompt_hash"], row | {"answers": set(), "splits": set()})
            one["answers"].add(row["completion"])
            one["splits"].add(split)
    return found


def _set_aside(dataset: Dataset) -> dict[str, str]:
    """Returns why the questions that were set aside were, by hash."""
    file = dataset.path / f"{SET_ASIDE}.parquet"
    if not file.exists():
        return {}
    rows = pq.read_table(file, columns=["prompt_hash", "reason", "detail"]).to_pylist()
    return {row["prompt_hash"]: f"{row['reason']}{row['detail'] and ': '}{row['detail']}" for row in rows}


def _changes(was: Row | None, now: Row | None) -> list[Change]:
    if was is None:
        return ["added"]
    if now is None:
        return ["removed"]
    found: list[Change] = []
    if was["answers"] != now["answers"]:
        found.append("answer")
    if was["splits"] != now["splits"]:
        found.append("split")
    return found


def _row(change: Change, was: Row | None, now: Row | None, why: str | None) -> Row:
    def of(one: Row | None, key: str) -> str | None:
        return None if one is None else ("\n\n" if key == "answers" else ", ").join(sorted(one[key]))

    latest = now or was
    assert latest is not None
    return {
        "change": change,
        "question": latest["question"],
        "answer_before": of(was, "answers"),
        "answer_after": of(now, "answers"),
        "split_before": of(was, "splits"),
        "split_after": of(now, "splits"),
        "source": latest["source"],
        "why": why,
        "feedback_id": latest["feedback_id"],
        "interaction_id": latest["interaction_id"],
    }
