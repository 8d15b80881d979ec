"""The dataset stage: the dataset of a run, its base model, and the review by a person."""

from pathlib import Path

from retuned.consumers.errors import Cancelled, RetunedError
from retuned.retrain import versions
from retuned.retrain.data import dataset as datasets
from retuned.retrain.data.build import build_dataset
from retuned.retrain.data.dataset import Dataset, DatasetRefused
from retuned.retrain.release import approvals, approve
from retuned.retrain.stages.context import Context
from retuned.retrain.versions import Version


def obtain(run: Context) -> tuple[Dataset, Version | None]:
    """Builds or loads the run's dataset. Returns it with the champion from which the run starts.

    Raises:
        DatasetRefused: the evidence is not suitable for a training.
        RetunedError: the dataset of an interrupted run is gone.
    """
    row = run.record.row()
    review = approvals.of_run(run.warehouse, run.id, "dataset")
    if row["dataset_version"] is None or (review is not None and review.state == "superseded"):
        champion = versions.champion(run.warehouse, run.workload)
        _use_base(run, champion)
        _start_from(run, champion)
        start = versions.BASE if run.start is None else run.start.version
        with run.exclusively():
            run.record.report("dataset")
            folder = run.folder / "data"
            dataset = build_dataset(
                run.warehouse,
                run.settings,
                run.workload,
                run.now(),
                folder,
                run.stop,
                run.rebases,
                start if run.forgets else None,
            )
        run.record.update(
            dataset_version=dataset.version, parent_version=champion.version if champion else None, start_version=start
        )
        return dataset, champion
    kept = datasets.load(run.warehouse, run.workload, row["dataset_version"])
    if kept is None or not kept.path.is_dir():
        raise RetunedError(f"run {run.id}: its dataset {row['dataset_version']} is gone; retrain again")
    parent = versions.find(run.warehouse, run.workload, row["parent_version"]) if row["parent_version"] else None
    _use_base(run, parent)
    _start_from(run, parent, row["start_version"])
    return kept, parent


def review(run: Context, dataset: Dataset, parent: Version | None) -> None:
    """Checks that a person has approved the dataset, if that is required.

    Raises:
        Cancelled: the approval is pending, or the dataset is outdated. The run resumes once it is settled, or at once.
        DatasetRefused: a person refused the dataset, or the request expired.
    """
    if run.settings.dataset.review != "required":
        return
    champion = parent.version if parent else None
    request = approve.request(run.rollout, run.workload, dataset.version, champion, run.id, run.now(), "dataset")
    if request.state == "waiting":
        run.record.report("review", dataset_version=dataset.version)
        run.rollout.follow_up_or_log(run.workload)
        raise Cancelled(f"run {run.id}: {request}")
    if request.state == "superseded":
        raise Cancelled(f"run {run.id}: {request}")  # resumed at once, it builds its dataset again
    if request.state != "approved":
        raise DatasetRefused(f"workload {run.workload}: {request}")


def _start_from(run: Context, champion: Version | None, stored: str | None = None) -> None:
    """Sets the version from which the training starts: the one that is stored with the run, if any."""
    if stored is not None:
        run.start = None if stored == versions.BASE else versions.find(run.warehouse, run.workload, stored)
    else:
        run.start = None if run.rebases else versions.clean_start(run.warehouse, run.workload, champion)
    is_erased = champion is not None and champion.version in versions.erased_since(run.warehouse, run.workload)
    run.forgets = is_erased and run.start != champion


def _use_base(run: Context, champion: Version | None) -> None:
    """Sets `models.base` to the base model of this run."""
    wanted, configured = run.record.row()["base_model"], run.settings.base
    base = Path(wanted) if wanted else versions.base_of(champion, configured)
    configured_hash = versions.base_hash(versions.need_base(configured))
    run.rebased_from = None if versions.base_hash(base) == configured_hash else configured_hash
    run.settings = run.settings.with_base(base)
