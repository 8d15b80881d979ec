"""Builds datasets from the evidence in the warehouse, in a child process."""

import json
import shutil
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from retuned.consumers.child import child_main
from retuned.consumers.common.durable import written_aside
from retuned.consumers.common.process import Emit, run_child
from retuned.consumers.settings import WarehouseSettings
from retuned.consumers.warehouse.connection import Warehouse, insert, named_queries
from retuned.consumers.warehouse.copying import extract_to
from retuned.consumers.warehouse.opening import attach
from retuned.retrain import versions
from retuned.retrain.data.checks import check_classes, check_enough, check_leaks
from retuned.retrain.data.dataset import (
    SET_ASIDE,
    SPLITS,
    THUMBS,
    TRAFFIC,
    Dataset,
    DatasetRefused,
    LostClass,
    TooFewRows,
    load,
)
from retuned.retrain.data.evidence import Earlier, Evidence
from retuned.retrain.data.examples import Example, recent_questions, unrated
from retuned.retrain.data.identity import text_hash
from retuned.retrain.data.overrides import digest
from retuned.retrain.data.selection import Selection, sample_of_traffic, select
from retuned.retrain.data.states import as_rows, row_states, write_preview
from retuned.retrain.data.wording import learned_wording
from retuned.retrain.settings import SECRETS, Settings
from retuned.retrain.versions import QUERIES, Version

_EXTRACT = named_queries("retuned.retrain.data", "extract.sql")
_EXTRACT_FILE = "extract.duckdb"
_REFUSALS: dict[str, type[DatasetRefused]] = {kind.__name__: kind for kind in (TooFewRows, LostClass)}
this_machine = threading.Lock()
"""Held while a dataset is built or the gate decides, so that only one run at a time does so on this machine."""
_TIMES = ("timestamp", "received_at")
_COLUMNS = [(name, pa.string()) for name in Example.__dataclass_fields__ if name not in _TIMES] + [
    (name, pa.timestamp("us")) for name in _TIMES
]
_SCHEMAS = {
    **dict.fromkeys(SPLITS, pa.schema([*_COLUMNS, ("replay", pa.bool_()), ("asked", pa.int32())])),
    THUMBS: pa.schema([*_COLUMNS, ("desirable", pa.bool_())]),
    TRAFFIC: pa.schema(_COLUMNS),
    SET_ASIDE: pa.schema([*_COLUMNS, ("reason", pa.string()), ("detail", pa.string())]),
}


def build_dataset(
    warehouse: Warehouse,
    settings: Settings,
    workload: str,
    now: datetime,
    folder: Path,
    stop: threading.Event | None = None,
    anew: bool = False,
    start: str | None = None,
) -> Dataset:
    """Builds the dataset of a workload from the evidence that is newer than the champion's dataset, or from all of it.

    The same evidence gives the same version, which is written once. Stores the state of each row in the table
    `row_states`. A child process selects the rows, which takes minutes if there are many.

    Args:
        folder: a folder for this build only.
        anew: for a training that starts from the base model: use all evidence, and all rows of earlier datasets that
            are still right.
        start: for a training that starts from a version before the champion, or from `base`: the dataset is as if that
            version were the champion. Questions that the champion learned are not held out, because it has an advantage
            on them. None: the training starts from the champion.

    Raises:
        TooFewRows: there are fewer rows than dataset.minimum_rows, or than the gate needs in the holdout.
        LostClass: most questions of a frequent answer or topic would be left out.
        Cancelled: stop was set.
        ChildFailed: the child failed or died, or splits share a question, which is a bug.
    """
    stop = stop or threading.Event()
    try:
        job = prepare(warehouse, settings, workload, folder, stop, anew) | {"start": start}
        result = run(job, settings, folder, stop)
    finally:
        (folder / _EXTRACT_FILE).unlink(missing_ok=True)
    return registered(warehouse, workload, result, now)


def run(job: dict[str, Any], settings: Settings, folder: Path, stop: threading.Event) -> dict[str, Any]:
    """Runs the child."""
    return run_child(
        "retuned.retrain.data.build",
        job,
        folder,
        timeout_seconds=settings.train.timeout_seconds,
        stop=stop,
        to_need_less="lower dataset.maximum_rows",
    )


def prepare(
    warehouse: Warehouse, settings: Settings, workload: str, folder: Path, stop: threading.Event, anew: bool = False
) -> dict[str, Any]:
    """Writes an extract of the warehouse for the child, and returns its job."""
    folder.mkdir(parents=True, exist_ok=True)
    extract = folder / _EXTRACT_FILE
    extract.unlink(missing_ok=True)  # left by an attempt that was killed
    limits = {"limit": settings.dataset.maximum_rows, "traffic_rows": settings.dataset.traffic_rows}
    about = {"workload": workload, "incumbent": settings.incumbent.model, **limits}
    extract_to(warehouse, extract, _EXTRACT, about, stop)
    return {
        "extract": str(extract.resolve()),
        "workload": workload,
        "anew": anew,
        # The daemon's settings have more sections. The child needs no labels, privacy or secrets.
        "settings": settings.model_dump(
            mode="json", include=Settings.model_fields.keys() - {"labels", "privacy"}, exclude=SECRETS
        ),
    }


def work(job: dict[str, Any], _: Emit) -> dict[str, Any]:
    """Runs in the child: writes the files of the dataset, and returns what to store in the warehouse.

    With `preview` in the job, writes only the file that it names.
    """
    settings, workload = Settings.model_validate(job["settings"]), job["workload"]
    with closing(attach(WarehouseSettings(path=Path(job["extract"])), create=False)) as warehouse:
        champion = versions.champion(warehouse, workload)
        earlier = Earlier.of(warehouse, settings, workload, champion)
        options, learned = settings.dataset, frozenset[str]()
        if job.get("start"):
            learned = earlier.questions
            start = _go_back(warehouse, workload, job["start"])
            earlier = Earlier.of(warehouse, settings, workload, start)
        if job["anew"]:
            earlier, options = replace(earlier, until=None), options.model_copy(update={"replay_share": 1.0})
        sample = unrated(warehouse, workload, settings.dataset)
        asked = recent_questions(warehouse, workload, settings.dataset)
        evidence = Evidence.of(warehouse, settings, workload, earlier, sample)
        chosen = select(evidence, earlier, options, learned)
        states = row_states(chosen, evidence.overrides)
        refused: dict[str, Any] = {}
        try:
            check_enough(chosen, settings, workload)
            check_classes(chosen, workload, evidence.metric.metric)
        except DatasetRefused as error:
            refused = {"refused": type(error).__name__, "reason": str(error)}
        if job.get("preview"):
            shown = write_preview(warehouse, states, **job["preview"])
            return shown | {"metric": evidence.metric.metric.name} | refused
        if refused:
            return refused
        check_leaks(chosen.splits, chosen.thumbs, evidence.related)
        traffic = sample_of_traffic(sample, chosen, evidence.related, settings.dataset)
        version = _version(workload, chosen, traffic, evidence.unlearned)
        card = _card(workload, settings, earlier, evidence, chosen, traffic) | {"conversations": asked.total()}
        decisions = digest(warehouse, workload)  # of the extract: a person may decide while the child works
        known = load(warehouse, workload, version)
    path = versions.workload_folder(settings.models.directory, workload) / "datasets" / version
    if known is not None and known.reduced:
        shutil.rmtree(known.path)  # it is written again, complete
    if known is None or not known.path.is_dir():
        _write_files(path, version, chosen, traffic, asked, card)
    about = {"version": version, "path": str(path.resolve()), "decisions": decisions}
    return about | {"card": card, "states": as_rows(states)}


def _go_back(warehouse: Warehouse, workload: str, start: str) -> Version | None:
    """Makes an extract as if a version were the champion, and no dataset had been built after its own.

    What is then learned is what a training from that version would have learned. Returns the version; None: the base
    model.
    """
    for query in ("later_rows", "later_datasets", "start_as_champion"):
        warehouse.execute(QUERIES[query], {"workload": workload, "start": start})
    return versions.champion(warehouse, workload)


def _version(workload: str, chosen: Selection, traffic: Sequence[Example], unlearned: frozenset[str]) -> str:
    """Returns the hash of a dataset's rows and of the events that they are from.

    Others may have stated what was erased in the same words. A dataset of their statements is another one than that
    with the erased statements, whose files lost rows and whose versions are replaced. So is one whose rows lack
    rejected answers, because no model may learn from them.
    """

    def of(row: Example) -> str:
        return f"{row.row_id} {row.interaction_id} {row.feedback_id}"

    content = [[name, sorted(map(of, chosen.splits[name]))] for name in SPLITS]
    content.append([THUMBS, sorted(f"{of(row)} {desirable}" for row, desirable in chosen.thumbs)])
    content.append([TRAFFIC, sorted(map(of, traffic))])
    if without := sorted({row.interaction_id for row in chosen.splits["train"]} & unlearned):
        content.append(["unlearned", without])
    return text_hash(json.dumps([workload, content]))[:12]


def _card(
    workload: str,
    settings: Settings,
    earlier: Earlier,
    evidence: Evidence,
    chosen: Selection,
    traffic: Sequence[Example],
) -> dict[str, Any]:
    rows = [row for name in ("train", "holdout") for row in chosen.splits[name]]
    return {
        "workload": workload,
        "evidence_until": max(one.row.received_at for one in evidence.decided).isoformat(),
        "earlier_datasets": earlier.versions,
        "generation": earlier.generation,
        "rows": {name: len(chosen.splits[name]) for name in SPLITS},
        "thumbs": len(chosen.thumbs),
        "traffic": len(traffic),
        "replay": len(chosen.replayed),
        "left_out": chosen.left_out,
        **_profile(rows, chosen.replayed),
        "metric": evidence.metric.as_dict(),
        "wording": asdict(
            learned_wording(
                (one.row for one in evidence.decided if one.state == "taught" or one.row.is_expert),
                settings.dataset.harmless_instructions,
                evidence.metric,
            )
        ),
        "settings": settings.dataset.model_dump(mode="json"),
    }


def registered(warehouse: Warehouse, workload: str, result: dict[str, Any], now: datetime) -> Dataset:
    """Stores the dataset that a child has written in the warehouse, and returns it.

    Raises:
        TooFewRows, LostClass: the child refused the dataset.
        StoreUnavailable: the cluster's storage does not accept the files; the dataset is not stored.
    """
    if "refused" in result:
        raise _REFUSALS[result["refused"]](result["reason"])
    version, path, card = result["version"], Path(result["path"]), result["card"]

    known = load(warehouse, workload, version)
    kept = warehouse.artifacts.put("dataset", path)
    with warehouse.transaction() as cursor:
        kept(cursor)
        cursor.execute(QUERIES["forget_states"], {"workload": workload})
        about = {"workload": workload, "version": version, "now": now, "rows": json.dumps(result["states"])}
        cursor.execute(QUERIES["states"], about)
        if known is None:
            insert(
                cursor,
                "datasets",
                version=version,
                workload=workload,
                created_at=now,
                path=str(path),
                replay=card["replay"],
                card=json.dumps(card),
                decisions=result["decisions"],
                **{name: card["rows"][name] for name in ("train", "holdout")},
            )
        else:  # built before; retention may have removed it with its rows
            again = {"workload": workload, "version": version, "decisions": result["decisions"]}
            cursor.execute(QUERIES["keep_dataset"], again)
        if known is None or known.removed_at is not None:
            files = [str(path / f"{name}.parquet") for name in (*SPLITS, THUMBS, TRAFFIC)]
            cursor.execute(QUERIES["dataset_lineage"], {"version": version, "files": files})
    dataset = load(warehouse, workload, version)
    assert dataset is not None
    return dataset


def _profile(rows: Sequence[Example], replayed: frozenset[str]) -> dict[str, Any]:
    """Returns the number of new rows of each source, topic and account."""
    new = [row for row in rows if row.row_id not in replayed]
    accounts = Counter(row.user_id for row in new if row.user_id is not None)
    return {
        "sources": dict(Counter(row.taught_by for row in new).most_common()),
        "topics": dict(Counter(row.topic for row in new).most_common()),
        "accounts": {
            "number": len(accounts),
            "largest_share": max(accounts.values(), default=0) / max(len(new), 1),
            "nameless_rows": len(new) - accounts.total(),
        },
    }


def _write_files(
    path: Path,
    version: str,
    chosen: Selection,
    traffic: Sequence[Example],
    asked: Mapping[str, int],
    card: dict[str, Any],
) -> None:
    def split_row(row: Example) -> dict[str, Any]:
        return row.as_row() | {"replay": row.row_id in chosen.replayed, "asked": asked.get(row.prompt_hash, 0)}

    rows = {
        **{name: [split_row(row) for row in chosen.splits[name]] for name in SPLITS},
        THUMBS: [row.as_row() | {"desirable": desirable} for row, desirable in chosen.thumbs],
        TRAFFIC: [row.as_row() for row in traffic],
        SET_ASIDE: [one.row.as_row() | {"reason": one.reason, "detail": one.detail} for one in chosen.left],
    }
    with written_aside(path) as aside:
        for name, values in rows.items():
            pq.write_table(pa.Table.from_pylist(values, schema=_SCHEMAS[name]), aside / f"{name}.parquet")
        chosen.topics.save(aside)
        (aside / "card.json").write_text(json.dumps(card | {"version": version}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    child_main(work)
