"""One retraining, from the evidence to the decision: dataset, training, evaluation, gate, promotion.

Each stage leaves what the next one needs, in the warehouse or in the run's folder, so that a run that was interrupted,
by a stop or by a crash, is taken up where it stood.
"""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from retuned.consumers.common.durable import replace_text
from retuned.consumers.common.process import Emit
from retuned.consumers.common.spans import Span, span
from retuned.consumers.common.text import first_line
from retuned.consumers.errors import Cancelled, RetunedError, StandsBy, StoreUnavailable, WarehouseError
from retuned.consumers.warehouse.connection import insert
from retuned.retrain import versions
from retuned.retrain.data import dataset as datasets
from retuned.retrain.data import holdout
from retuned.retrain.data.build import build_dataset
from retuned.retrain.data.dataset import Dataset, DatasetRefused
from retuned.retrain.data.folds import can_fold, folds
from retuned.retrain.data.similarity import text_hash
from retuned.retrain.decision import gate, judge
from retuned.retrain.decision.evaluate import (
    BASE,
    CANDIDATE,
    CHAMPION,
    FOLD,
    LOGGED,
    Evaluation,
    drawn,
    evaluate,
    summary,
)
from retuned.retrain.decision.judge import Opinion
from retuned.retrain.decision.pairs import Decision
from retuned.retrain.generation import effect_probe
from retuned.retrain.queue import EVALUATE, TRAIN, discard, folder_of, left_provider
from retuned.retrain.record import RunRecord
from retuned.retrain.release import approve, registry
from retuned.retrain.release.rollout import Rollout, in_words, one_at_a_time
from retuned.retrain.release.routes import under_way
from retuned.retrain.scoring.judge import Judge
from retuned.retrain.settings import SECRETS, ProviderModel
from retuned.retrain.training import provider
from retuned.retrain.training.train import train
from retuned.retrain.versions import QUERIES, Version

Clock = Callable[[], datetime]
State = Literal["succeeded", "refused", "failed", "interrupted", "cancelled"]

_this_machine = threading.Lock()
"""Datasets are made and the gate decides on the daemon's machine, one at a time, however many runs are under way."""
_LOOK_SECONDS = 0.5
_LENGTHS = ("rows_cut", "rows_too_long")


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        state: succeeded (trained and decided), refused (too little to learn from, most of a class left out, or too many
            rows too long), failed, cancelled, or interrupted (take it up again).
        version: the candidate; None when none was made.
        passed: the gate's decision; None when it was not reached.
        promoted: the candidate is in service now, as the champion, as a canary or in shadow.
        share: of the traffic, that it answers: 1.0 as the champion without a holdback; 0.0: it is not in service, or
            is asked in shadow.
        reasons: of the gate, or why the run ended without one.
        scores: mean score on the holdout of each model: base, champion, candidate; and of logged, what production
            answered, on the rows where that is known.
        figures: the gate's.
        train_seconds, evaluate_seconds: wall time of the two children, without what they waited for a cluster.
        training: what `train` returned.
    """

    run_id: str
    workload: str
    state: State
    dataset_version: str | None = None
    parent_version: str | None = None
    version: str | None = None
    passed: bool | None = None
    promoted: bool = False
    share: float = 0.0
    reasons: list[str] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    train_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    training: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


def take_up(rollout: Rollout, run_id: str, now: Clock, stop: threading.Event, on_progress: Emit) -> RunResult:
    """Begin a run that waits, or go on with one that was interrupted, by a stop or by a crash.

    Several workloads may have a run under way, each in a thread of its own, and no workload two: the caller sees to
    that. The dataset of an interrupted run is the same, the training
    goes on from its checkpoint, and what was evaluated or decided stands.

    Args:
        rollout: what the run works on, and how a promotion is made and announced.
        stop: when set, the run ends as interrupted, at the latest after the child's grace.
        on_progress: gets `{"stage": …, "workload": …}` with the lines of `train` and `evaluate`.

    Raises:
        WarehouseError: the warehouse cannot be written; the run can be taken up once it can.
        StoreUnavailable, StandsBy: nor can the storage of the cluster, or another daemon of it leads.
    """
    row = rollout.warehouse.row("SELECT * FROM runs WHERE id = ?", [run_id])
    assert row is not None
    return _Run(rollout, row["workload"], run_id, now, stop, on_progress).through()


class _Run:
    def __init__(
        self,
        rollout: Rollout,
        workload: str,
        run_id: str,
        now: Clock,
        stop: threading.Event,
        on_progress: Emit,
    ) -> None:
        self.rollout, self.warehouse = rollout, rollout.warehouse
        self.settings = rollout.settings.for_workload(workload)
        self.workload, self.id, self.now, self.stop = workload, run_id, now, stop
        self.folder = folder_of(self.settings, workload, run_id)
        self.record = RunRecord(self.warehouse, workload, run_id, self.folder, now, on_progress)
        self.rebases = self.record.row()["kind"] == "rebase"
        self.rebased_from: str | None = None

    def through(self) -> RunResult:
        """All stages; whatever ends them stands in the run's row."""
        try:
            self.record.begin(self.settings.train.attempts)
            self.folder.mkdir(parents=True, exist_ok=True)
            result = self._stages()
        except DatasetRefused as error:
            result = self._ended("refused", str(error))
        except Cancelled as error:
            if (row := self.record.interrupted())["state"] == "cancelled":
                discard(self.rollout, self.workload, self.id)
                return self._ended("cancelled", row["error"])
            return self._ended("interrupted", str(error))  # the folder holds the checkpoint
        except WarehouseError:
            raise
        except (StoreUnavailable, StandsBy):
            self.record.interrupted()  # it is taken up again, and no attempt has failed
            raise
        except RetunedError as error:
            result = self._ended("failed", str(error))
        except OSError as error:
            result = self._ended(
                "failed", f"{error.filename or self.folder}: {error.strerror or error}; free or mend it and retrain"
            )
        except Exception as error:
            self.record.finish(state="failed", error=f"{type(error).__name__}: {first_line(error)}")
            left_provider(self.folder, self.settings, self.rollout.lead)
            raise
        row = self.record.finish(state=result.state, error=result.error, detail=json.dumps(asdict(result)))
        if row["state"] == "cancelled":
            result = self._ended("cancelled", row["error"])
        if left_provider(self.folder, self.settings, self.rollout.lead) and result.state in (
            "succeeded",
            "refused",
            "cancelled",
        ):
            shutil.rmtree(self.folder, ignore_errors=True)
        return result

    def _stages(self) -> RunResult:
        with self._stage("data"):
            dataset, parent = self._dataset()
        self._check_stop()
        self.record.tell("train", rows=dataset.rows, dataset_version=dataset.version)
        with self._stage("train"):
            training = self.record.timed(
                "train_seconds", lambda: self._trained(dataset, None if self.rebases else parent)
            )
        self._check_stop()
        with self._stage("evaluate"):
            rows, lengths = self._evaluations(dataset, parent, training)
            opinion = self._opinion(dataset, rows)
            rows = self._with_folds(dataset, parent, training, self._traffic(dataset, rows))
        with self._stage("decide") as traced:
            candidate = self._register(dataset, parent, training, rows)
            lengths |= {f"train_{name}": float(training[name]) for name in _LENGTHS if name in training}
            decision = self._decide(dataset, rows, opinion, candidate, lengths)
            traced.set(version=candidate.version, outcome="passed" if decision.outcome else "refused")
        registry.renew_card(self.warehouse, candidate)  # before it is announced
        self._check_stop()
        with self._stage("release") as traced:
            share = self._promote(decision, parent, candidate)
            if decision.outcome:
                self.rollout.follow_up_or_log(self.workload)
            traced.set(version=candidate.version, promoted=share is not None)
        seconds = self.record.row()
        return RunResult(
            run_id=self.id,
            workload=self.workload,
            state="succeeded",
            dataset_version=dataset.version,
            parent_version=parent.version if parent else None,
            version=candidate.version,
            passed=decision.outcome,
            promoted=share is not None,
            share=share or 0.0,
            reasons=decision.reasons,
            scores=_scores(rows),
            figures=decision.figures,
            train_seconds=seconds["train_seconds"],
            evaluate_seconds=seconds["evaluate_seconds"],
            training=training,
        )

    def _stage(self, name: str) -> AbstractContextManager[Span]:
        return span(name, run=self.id, workload=self.workload)

    def _dataset(self) -> tuple[Dataset, Version | None]:
        """The run's dataset and the champion that it starts from; both are settled when the dataset is written."""
        row = self.record.row()
        if row["dataset_version"] is None:
            champion = versions.champion(self.warehouse, self.workload)
            self._use_base(champion)
            with self._alone():
                self.record.tell("dataset")
                dataset = build_dataset(
                    self.warehouse,
                    self.settings,
                    self.workload,
                    self.now(),
                    self.folder / "data",
                    self.stop,
                    self.rebases,
                )
            self.record.update(dataset_version=dataset.version, parent_version=champion.version if champion else None)
            return dataset, champion
        kept = datasets.load(self.warehouse, self.workload, row["dataset_version"])
        if kept is None or not kept.path.is_dir():
            raise RetunedError(f"run {self.id}: its dataset {row['dataset_version']} is gone; retrain anew")
        parent = versions.find(self.warehouse, self.workload, row["parent_version"]) if row["parent_version"] else None
        self._use_base(parent)
        return kept, parent

    def _use_base(self, champion: Version | None) -> None:
        """From here on `models.base` is the base model of this run."""
        wanted, own = self.record.row()["base_model"], self.settings.base
        base = self.settings.base_named(wanted) if wanted else versions.base_of(champion, own)
        found, configured = versions.base_hash(base), versions.base_hash(versions.need_base(own))
        self.rebased_from = None if found == configured else configured
        self.settings = self.settings.with_base(base)

    def _trained(self, dataset: Dataset, champion: Version | None) -> dict[str, Any]:
        """What `train` returns, of this machine or of a provider. A rebase begins anew, all else with the champion."""
        folder, settings = self.folder / TRAIN, self.settings
        parent = None if self.rebases else champion

        def tell(line: dict[str, Any]) -> None:
            if job := line.get("job"):
                self.record.update(provider_job=job)
            self.record.tell("train", **line)

        if not isinstance(settings.base, ProviderModel):
            return train(dataset, parent, settings, folder, self.stop, tell, self.rollout.lead)
        training = provider.train(dataset, parent, settings, self.id, folder, self.stop, tell)
        self.record.update(provider_job=training["job"], trained_tokens=training["tokens"])
        return training

    def _evaluations(
        self, dataset: Dataset, parent: Version | None, training: dict[str, Any]
    ) -> tuple[list[Evaluation], dict[str, float]]:
        """What was evaluated, and how many rows did not fit as they are."""
        kept = self.folder / "evaluations.json"
        if kept.is_file():
            found = json.loads(kept.read_text(encoding="utf-8"))
            return [Evaluation(**row) for row in found["rows"]], found["lengths"]
        self.record.tell("evaluate")
        rows, figures = self.record.timed(
            "evaluate_seconds",
            lambda: evaluate(
                dataset,
                parent,
                Path(training["adapter"]),
                self.settings,
                training["dtype"],
                self.folder / EVALUATE,
                self.stop,
                lambda line: self.record.tell("evaluate", **line),
                datasets.logged_answers(self.warehouse, dataset),
                self.rollout.lead,
            ),
        )
        self.record.paid(int(figures.get("judge_tokens", 0)))
        lengths = {name: value for name, value in figures.items() if name.endswith(_LENGTHS)}
        replace_text(kept, json.dumps({"rows": [asdict(row) for row in rows], "lengths": lengths}))
        return rows, lengths

    def _opinion(self, dataset: Dataset, rows: list[Evaluation]) -> Opinion | None:
        """What the judge says of the candidate's answers; None where there is no judge, or where it gave the scores."""
        settings = self.settings.evaluate
        if settings.judge_url is None or self._judging(dataset):
            return None
        kept = self.folder / "opinion.json"
        if kept.is_file():
            return Opinion(**json.loads(kept.read_text(encoding="utf-8")))
        self.record.tell("judge")
        opponent = CHAMPION if self.record.row()["parent_version"] else BASE
        before, after = (
            {row.row_id: row.output for row in _of(rows, model, "holdout")} for model in (opponent, CANDIDATE)
        )
        answered = [row for row in dataset.split("holdout") if row["row_id"] in before.keys() & after.keys()]
        pairs = [
            _pair(row, row["completion"], before[row["row_id"]], after[row["row_id"]], self.settings.objective)
            for row in drawn(answered, settings.judge_examples)
        ]
        opinion = judge.compare(pairs, settings, self.stop)
        self.record.paid(opinion.tokens)
        replace_text(kept, json.dumps(asdict(opinion)))
        return opinion

    def _traffic(self, dataset: Dataset, rows: list[Evaluation]) -> list[Evaluation]:
        """The evaluations, with the judge's verdicts on the candidate's answers to unrated traffic, where there is one.

        It is asked where the answers differ, in the order of the draw, until it was asked evaluate.judge_examples
        times: what comes before is a sample of the traffic. Where they agree, it is a tie.
        """
        settings = self.settings.evaluate
        before = {row.row_id: row.output for model in (LOGGED, CHAMPION) for row in _of(rows, model, "traffic")}
        if settings.judge_url is None or not before:
            return rows
        kept = self.folder / "traffic.json"
        if not kept.is_file():
            asked = {row["row_id"]: row for row in dataset.split("traffic")}
            looked_at, differing = list[Evaluation](), list[judge.Pair]()
            for row in sorted(_of(rows, CANDIDATE, "traffic"), key=lambda row: text_hash(row.row_id)):
                if len(differing) == settings.judge_examples:
                    break
                looked_at.append(row)
                if row.agreement != 1:
                    differing.append(
                        _pair(asked[row.row_id], "", before[row.row_id], row.output, self.settings.objective)
                    )
            metric = self._judging(dataset)
            said = judge.compare(differing, settings, self.stop, metric.criteria if metric else None)
            self.record.paid(said.tokens)
            asked_about = {pair.row_id for pair in differing}
            ties = {row.row_id: "tie" for row in looked_at if row.row_id not in asked_about}
            replace_text(kept, json.dumps(ties | said.verdicts))
        verdicts: dict[str, str] = json.loads(kept.read_text(encoding="utf-8"))
        return [
            replace(row, verdict=verdicts.get(row.row_id)) if (row.model, row.split) == (CANDIDATE, "traffic") else row
            for row in rows
        ]

    def _judging(self, dataset: Dataset) -> Judge | None:
        """The metric, where it is a judge."""
        metric = datasets.metric_of(dataset, self.settings).metric
        return metric if isinstance(metric, Judge) else None

    def _with_folds(
        self, dataset: Dataset, parent: Version | None, training: dict[str, Any], rows: list[Evaluation]
    ) -> list[Evaluation]:
        """The evaluations, and where they are too little evidence those of the folds (see `data.folds`)."""
        new_rows = dataset.rows["train"] - dataset.replay
        decided = self.warehouse.row(QUERIES["gate_decision"], {"run_id": self.id}) is not None
        if decided or not can_fold(new_rows, self.settings) or not gate.lacks_evidence(self._compared(dataset, rows)):
            return rows
        logged = datasets.logged_answers(self.warehouse, dataset, "train")
        found = list(rows)
        for number, fold in enumerate(folds(dataset, self.settings, self.folder), 1):
            found += self._fold(number, fold, parent, training["dtype"], logged)
        return found

    def _fold(
        self, number: int, fold: Dataset, parent: Version | None, dtype: str, logged: dict[str, str]
    ) -> list[Evaluation]:
        """A model that learns without the fold, and its answers to it beside those of the others."""
        folder = fold.path.parent
        kept = folder / "evaluations.json"
        if kept.is_file():
            return [Evaluation(**row) for row in json.loads(kept.read_text(encoding="utf-8"))]
        self.record.tell("train", fold=number, rows=fold.rows, dataset_version=fold.version)
        training = self.record.timed(
            "train_seconds",
            lambda: train(
                fold,
                None if self.rebases else parent,
                self.settings,
                folder / TRAIN,
                self.stop,
                lambda line: self.record.tell("train", fold=number, **line),
                self.rollout.lead,
            ),
        )
        self._check_stop()
        self.record.tell("evaluate", fold=number)
        asked = self.settings.evaluate.model_copy(update={"general_examples": 0})
        rows, figures = self.record.timed(
            "evaluate_seconds",
            lambda: evaluate(
                fold,
                parent,
                Path(training["adapter"]),
                self.settings.model_copy(update={"evaluate": asked}),
                dtype,
                folder / EVALUATE,
                self.stop,
                lambda line: self.record.tell("evaluate", fold=number, **line),
                logged,
                self.rollout.lead,
            ),
        )
        self.record.paid(int(figures.get("judge_tokens", 0)))
        rows = [replace(row, split=FOLD) for row in rows]
        replace_text(kept, json.dumps([asdict(row) for row in rows]))
        self._check_stop()
        return rows

    def _compared(self, dataset: Dataset, rows: list[Evaluation]) -> Decision:
        """What the gate says of the evaluations: on the holdout alone and, where there are folds, with them. That is
        another look at the candidate, if the holdout alone was one."""
        run = self.record.row()
        champion = CHAMPION if run["parent_version"] else BASE
        tries = holdout.tries(self.warehouse, self.workload, run["parent_version"])

        def decide(tries: int, *splits: str) -> Decision:
            def of(model: str) -> list[Evaluation]:
                return [row for split in splits for row in _of(rows, model, split)]

            return gate.decide(
                of(champion),
                of(CANDIDATE),
                _of(rows, champion, "regression"),
                _of(rows, CANDIDATE, "regression"),
                self.settings.gate,
                tries,
                logged=of(LOGGED),
                folded=len(_of(rows, CANDIDATE, FOLD)) if FOLD in splits else 0,
                serving=champion == CHAMPION,
                traffic=_of(rows, CANDIDATE, "traffic"),
                general=(_of(rows, BASE, "general"), _of(rows, CANDIDATE, "general")),
                structured=datasets.metric_of(dataset, self.settings).metric.structured,
                unasked=max(0, dataset.rows["holdout"] - self.settings.evaluate.maximum_examples),
            )

        with self._alone():
            alone = decide(tries, "holdout")
            if not any(row.split == FOLD for row in rows):
                return alone
            return decide(tries + ("tries" in alone.figures), "holdout", FOLD)

    def _register(
        self, dataset: Dataset, parent: Version | None, training: dict[str, Any], rows: list[Evaluation]
    ) -> Version:
        row = self.record.row()
        scores = _scores(rows)
        probe = self.folder / EVALUATE / effect_probe.FILE
        version = registry.register(
            self.warehouse,
            self.settings.models.directory,
            self.workload,
            Path(training["adapter"]),
            base_model=versions.need_base(self.settings.base),
            parent_version=parent.version if parent and not self.rebases else None,
            dataset_version=dataset.version,
            run_id=self.id,
            details={
                "objective": self.settings.objective,
                "settings": self.settings.model_dump(
                    mode="json", include={"dataset", "train", "evaluate", "gate"}, exclude=SECRETS
                ),
                "training": {name: value for name, value in training.items() if name != "adapter"},
                "metrics": {
                    "validation_loss": training["validation_loss"],
                    "holdout_rows": dataset.rows["holdout"],
                    **{f"holdout_score_{model}": value for model, value in scores.items()},
                },
                "cost": {"train_seconds": row["train_seconds"], "evaluate_seconds": row["evaluate_seconds"]},
            }
            | ({"rebased_from": self.rebased_from} if self.rebased_from else {})
            | ({"effect_probe": json.loads(probe.read_text(encoding="utf-8"))} if probe.is_file() else {}),
            now=self.now(),
        )
        self.record.update(version=version.version)
        return version

    def _decide(
        self,
        dataset: Dataset,
        rows: list[Evaluation],
        opinion: Opinion | None,
        candidate: Version,
        lengths: dict[str, float],
    ) -> Decision:
        """Decided once: evaluations and decision are written together, and a resumed run finds them."""
        row = self.warehouse.row(QUERIES["gate_decision"], {"run_id": self.id})
        if row is not None:
            return Decision(row["outcome"], json.loads(row["reasons"]), json.loads(row["figures"]))
        run = self.record.row()
        metric = datasets.metric_of(dataset, self.settings)
        decision = self._compared(dataset, rows)
        figures = summary(rows) | lengths | decision.figures
        decision = replace(decision, reasons=[*decision.reasons, str(metric)], figures=figures)
        if opinion is not None:
            figures = decision.figures | opinion.figures()
            decision = replace(
                decision, reasons=[*decision.reasons, opinion.reason(self.settings.evaluate)], figures=figures
            )
            rows = [
                replace(row, verdict=opinion.verdicts.get(row.row_id))
                if (row.model, row.split) == (CANDIDATE, "holdout")
                else row
                for row in rows
            ]
        if candidate.version == run["parent_version"]:
            decision = Decision(
                False, ["The training left the champion as it was.", *decision.reasons], decision.figures
            )
        names = {BASE: BASE, LOGGED: LOGGED, CHAMPION: run["parent_version"], CANDIDATE: candidate.version}
        with self.warehouse.transaction() as cursor:
            for one in rows:
                values = asdict(one) | {"model": names[one.model], "groups": json.dumps(one.groups)}
                insert(
                    cursor,
                    "evaluations",
                    run_id=self.id,
                    workload=self.workload,
                    dataset_version=run["dataset_version"],
                    **values,
                )
            insert(
                cursor,
                "decisions",
                id=f"{self.id}-gate",
                created_at=self.now(),
                workload=self.workload,
                kind="gate",
                metric=metric.metric.name,
                outcome=decision.outcome,
                reasons=json.dumps(decision.reasons),
                figures=json.dumps(decision.figures),
                run_id=self.id,
            )
        self.record.tell(
            "gate",
            outcome=decision.outcome,
            reasons=decision.reasons,
            figures=decision.figures,
            version=candidate.version,
        )
        return decision

    @one_at_a_time
    def _promote(self, decision: Decision, parent: Version | None, candidate: Version) -> float | None:
        """Put what passed into service, or have it wait for a person's approval, unless the champion was changed
        meanwhile: it was compared with another one.

        Nor is a version promoted that was taken back from service before, after an interruption or when a training
        ends with the same weights again. Returns the share of the traffic that it answers; None: it is not put into
        service.

        Raises:
            Cancelled: another version is being rolled out, and two at a time could not be told apart: the run is to be
                taken up again once that has ended.
        """
        if self.record.row()["state"] == "cancelled":
            raise Cancelled(f"run {self.id}: cancelled before it was done")
        if not decision.outcome:
            return None
        champion = versions.champion(self.warehouse, self.workload)
        serving = champion.version if champion else None
        running = under_way(self.warehouse, self.workload)
        if running is not None and running.version == candidate.version:
            return running.share  # put into service before the interruption
        if serving == candidate.version:
            return 1.0
        taken_back = self.warehouse.row(
            QUERIES["taken_back"], {"workload": self.workload, "version": candidate.version}
        )
        if taken_back is not None:
            decision.reasons.append(f"Not promoted: {candidate.name} was taken back before: {taken_back['reason']}")
            return None
        if serving != (parent.version if parent else None):
            decision.reasons.append(
                f"Not promoted: {versions.model_name(self.workload, serving)} was put into service while the candidate "
                "was trained, and they were not compared."
            )
            return None
        if running is not None:
            raise Cancelled(
                f"run {self.id}: {candidate.name} passed the gate, and comes into service once this has ended: "
                f"{in_words(running)}"
            )
        if self.settings.rollout.approve == "required":
            request = approve.request(self.rollout, self.workload, candidate.version, serving, self.id, self.now())
            decision.reasons.append(f"Not promoted: {request}.")
            self.record.tell("approval", version=candidate.version)
            return None
        share = self.rollout.begin(self.workload, candidate.version, "gate", decision.reasons[0], self.now())
        self.record.tell("promoted", version=candidate.version, share=share)
        return share

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Waits until no other run uses the daemon's machine.

        Raises:
            Cancelled: the run was stopped meanwhile.
        """
        while not _this_machine.acquire(timeout=_LOOK_SECONDS):
            self._check_stop()
            self.record.tell("waits for another run's dataset or decision")
        try:
            yield
        finally:
            _this_machine.release()

    def _check_stop(self) -> None:
        if self.stop.is_set():
            raise Cancelled(f"run {self.id}: stopped before it was done")

    def _ended(self, state: State, error: str) -> RunResult:
        row = self.record.row()
        return RunResult(
            run_id=self.id,
            workload=self.workload,
            state=state,
            dataset_version=row["dataset_version"],
            parent_version=row["parent_version"],
            version=row["version"],
            reasons=[error],
            train_seconds=row["train_seconds"] or 0.0,
            evaluate_seconds=row["evaluate_seconds"] or 0.0,
            error=error,
        )


def _pair(row: dict[str, Any], approved: str, champion: str, candidate: str, objective: str) -> judge.Pair:
    """What a judge is shown of a dataset's row."""
    return judge.Pair(
        row_id=row["row_id"],
        conversation="\n".join(f"{turn['role']}: {turn['content']}" for turn in json.loads(row["messages"])),
        context="\n\n".join(json.loads(row["context"])) if row["context"] else None,
        approved=approved,
        champion=champion,
        candidate=candidate,
        objective=objective,
    )


def _of(rows: list[Evaluation], model: str, split: str) -> list[Evaluation]:
    return [row for row in rows if row.model == model and row.split == split]


def _scores(rows: list[Evaluation]) -> dict[str, float]:
    models = dict.fromkeys(row.model for row in rows if row.split == "holdout")
    scores = {model: [row.score for row in _of(rows, model, "holdout") if row.score is not None] for model in models}
    return {model: fmean(values) for model, values in scores.items() if values}
