"""The input of a dataset: the decided feedback of today, and the rows of earlier datasets."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cache
from pathlib import Path

from retuned.consumers.warehouse.connection import Warehouse
from retuned.retrain.data import holdout
from retuned.retrain.data.dataset import Dataset, load
from retuned.retrain.data.examples import Example, Statements, restored, rules_of, thumbs
from retuned.retrain.data.filters import IN_WORDS, filtered
from retuned.retrain.data.identity import normalise
from retuned.retrain.data.overrides import Overrides
from retuned.retrain.data.question import Rules
from retuned.retrain.data.related import Related
from retuned.retrain.data.specific import specific
from retuned.retrain.data.table import Decided, Table, accounts_of, decide
from retuned.retrain.data.topics import Topics
from retuned.retrain.data.truth import Independence
from retuned.retrain.scoring.json_fields import keys_of
from retuned.retrain.scoring.metric import Chosen, choose
from retuned.retrain.scoring.words import plain
from retuned.retrain.settings import DatasetSettings, Settings
from retuned.retrain.versions import QUERIES, Version

_PLACES = ("holdout", "train")
"""The splits as the query `places` numbers them."""

Form = str | frozenset[str]
"""The normalised text of an answer, or the keys of a JSON object."""
EXPERTS = 20
"""With this many answers by experts, the metric is chosen by these alone."""


@dataclass(frozen=True)
class Evidence:
    """The feedback of today, decided.

    Attributes:
        rows: the row with the right answer to each question that has one.
        decided: the decision on every statement.
        undecided: the hashes of questions that have answers, none of which is known to be right.
        topics: the topics of earlier datasets.
        places: the split of each question, by hash and by interaction, in earlier datasets of the current draw.
        related: the groups of related questions, including those of earlier datasets.
        metric: the workload's metric.
        independence: which accounts are independent.
        overrides: the decisions of people, already applied.
        bought, unlearned, cascaded: see `Statements`.
    """

    rows: list[Example]
    decided: list[Decided]
    undecided: frozenset[str]
    thumbs: list[tuple[Example, bool]]
    topics: Topics
    places: dict[str, str]
    related: Related
    metric: Chosen
    independence: Independence = field(default_factory=Independence)
    overrides: Overrides = field(default_factory=Overrides)
    bought: frozenset[str] = frozenset()
    unlearned: frozenset[str] = frozenset()
    cascaded: frozenset[str] = frozenset()

    @classmethod
    def of(
        cls,
        warehouse: Warehouse,
        settings: Settings,
        workload: str,
        earlier: "Earlier",
        unrated: Sequence[Example] = (),
    ) -> "Evidence":
        """Reads the feedback and decides it. `unrated` are further questions for `related`."""
        options = settings.dataset
        overrides = Overrides.of(warehouse, workload)
        statements, overruled = overrides.read(warehouse, workload, options)
        forms = cache(lambda: _agreed_forms(statements.learnable))
        first = _metric(settings, statements.learnable, (), forms)  # the newest first
        table = decided(warehouse, statements, first, options, overrides)
        # The metric should fit the right answers, which are known only now, in the wording that is learned.
        right = [one.row for one in sorted(table.decided, key=lambda one: bool(one.reason)) if one.state == "taught"]
        undecided = [one.row for one in table.decided if one.state == "waiting"]
        metric = _metric(settings, right, undecided, forms)
        if (metric.metric.name, metric.metric.learned) != (first.metric.name, first.metric.learned):
            table = decided(warehouse, statements, metric, options, overrides)
        table = replace(table, decided=[*table.decided, *overruled])
        poor = {one.row.feedback_id for one in table.decided if one.state not in ("taught", "held_out")}
        rated = [
            (row, helpful)
            for row, helpful in thumbs(warehouse, workload, options, [*table.distrusted, *overrides.banned])
            if not (helpful and row.feedback_id in poor) and not overrides.replaced(row)
        ]
        questions = [*statements.rows, *earlier.train, *earlier.judged, *unrated, *(row for row, _ in rated)]
        places = {
            row["key"]: _PLACES[row["place"]]
            for row in warehouse.rows(QUERIES["places"], {"workload": workload, "generation": earlier.generation})
        }
        latest = warehouse.row(QUERIES["latest_dataset"], {"workload": workload})
        return cls(
            rows=table.rows,
            decided=table.decided,
            undecided=frozenset(one.row.prompt_hash for one in table.decided)
            - frozenset(row.prompt_hash for row in table.rows),
            thumbs=rated,
            topics=Topics.load(Path(latest["path"])) if latest else Topics(),
            places=places,
            related=Related(questions, options.near_duplicate_similarity),
            metric=metric,
            independence=table.crowd,
            overrides=overrides,
            bought=statements.bought,
            unlearned=statements.unlearned,
            cascaded=statements.cascaded,
        )


def _metric(
    settings: Settings, rows: Sequence[Example], undecided: Sequence[Example], forms: Callable[[], frozenset[Form]]
) -> Chosen:
    """Returns the metric, chosen by experts' answers if there are enough, else by all: the first of each question.

    Further and undecided answers add labels and keys: an expert may have given a rare label once, or never, and a label
    may be renamed after experts answered with the old name. Those count that are in an expert's words, or in one of
    `forms`.
    """
    of_experts = [row for row in rows if row.is_expert]
    sample = _first_answers(of_experts)
    if len(sample) < EXPERTS:
        sample = _first_answers(rows)
    chosen = choose(settings, list(sample.values()))
    if not chosen.metric.learned:
        return chosen
    known = {plain(row.completion) for row in of_experts}
    further = {
        (row.prompt_hash, plain(row.completion)): row.completion
        for row in (*rows, *undecided)
        if sample.get(row.prompt_hash) != row.completion and (plain(row.completion) in known or _form(row) in forms())
    }
    return choose(settings, list(sample.values()), list(further.values()))


def _agreed_forms(rows: Sequence[Example]) -> frozenset[Form]:
    """Returns the forms that several accounts gave.

    A text has to fit its questions, unless the accounts gave it to one question, and nobody gave another. The documents
    of a form have the same keys.
    """
    accounts: dict[Form, set[str]] = defaultdict(set)
    asked: dict[str, dict[Form, set[str]]] = defaultdict(lambda: defaultdict(set))
    for row, account in zip(rows, accounts_of(rows), strict=True):
        asked[row.prompt_hash][_form(row)].add(account)
        if not row.is_expert:
            accounts[_form(row)].add(account)
    fitting = specific(rows)
    several = {form for form, those in accounts.items() if len(those) > 1}
    agreed = {form for forms in asked.values() if len(forms) == 1 for form, those in forms.items() if len(those) > 1}
    return frozenset(agreed | {form for form in several if isinstance(form, frozenset) or form in fitting})


def _first_answers(rows: Iterable[Example]) -> dict[str, str]:
    """Returns the first answer to each question."""
    first: dict[str, str] = {}
    for row in rows:
        first.setdefault(row.prompt_hash, row.completion)
    return first


def _form(row: Example) -> Form:
    """Returns the keys of an answer that is a JSON object, and the normalised text of any other."""
    keys = keys_of(row.completion)
    return normalise(row.completion) if keys is None else keys


def decided(
    warehouse: Warehouse, statements: Statements, metric: Chosen, settings: DatasetSettings, overrides: Overrides
) -> Table:
    """Decides the statements that pass the filters, and sets aside the others."""
    unfit = filtered(statements.learnable, statements.cut, settings.filters, metric.metric)
    for row in filter(overrides.wanted, statements.rows):
        unfit.pop(row.feedback_id, None)
    fit = [row for row in statements.rows if row.feedback_id not in unfit]
    accounts = {row.user_id for row in fit if row.user_id is not None and not row.is_expert}
    # Only accounts that agree with another one are compared; the query reads all events.
    seen = warehouse.rows(QUERIES["first_seen"], {"accounts": sorted(accounts)}) if len(accounts) > 1 else []
    first_seen = {row["user_id"]: row["first_seen"] for row in seen}
    table = decide(
        fit, first_seen, metric, all_trusted=not settings.quarantine, overruled=overrides.rows, helped=statements.helped
    )
    left = [
        Decided(row, "set_aside", reason, IN_WORDS[reason])
        for row in statements.learnable
        if (reason := unfit.get(row.feedback_id)) is not None
    ]
    return replace(table, decided=[*table.decided, *left])


@dataclass(frozen=True)
class Earlier:
    """The rows on which the champion and its predecessors were trained and evaluated.

    Attributes:
        until: the time of the newest evidence in these datasets; None if there are none.
        judged: rows of holdouts and regression sets.
        generation: the current draw of the holdout.
        spent: rows of later holdouts from before the current draw; also in `judged`.
        known: the feedback whose answers these datasets contain.
        rehearsed: the number of datasets since a training row was last used, by prompt hash; 0 for the newest dataset.
        failures: the share of each topic's questions that the champion answered wrong in its evaluation.
    """

    versions: list[str]
    until: datetime | None
    train: list[Example]
    judged: list[Example]
    generation: int
    spent: list[Example]
    known: frozenset[str] = frozenset()
    rehearsed: dict[str, int] = field(default_factory=dict)
    failures: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, warehouse: Warehouse, settings: Settings, workload: str, champion: Version | None) -> "Earlier":
        version = champion.dataset_version if champion else None
        today = holdout.generation(warehouse, workload, version, settings.gate.holdout_tries)
        rules = rules_of(warehouse, workload, settings.dataset)
        train: dict[str, Example] = {}
        judged: dict[str, Example] = {}
        first: dict[str, str] = {}
        rehearsed: dict[str, int] = {}
        versions: list[str] = []
        until = None
        # Newest first: if two datasets contain a question, the newer answer counts.
        for later in holdout.spent(warehouse, workload, version, today):
            _gather(_known(warehouse, workload, later), ("holdout",), judged, first, rules)
        spent = list(judged.values())
        earlier = {"workload": workload, "version": version}
        for row in warehouse.rows(QUERIES["earlier_datasets"], earlier) if version else ():
            dataset = _known(warehouse, workload, row["version"])
            versions.append(dataset.version)
            until = until or datetime.fromisoformat(dataset.card["evidence_until"])
            _gather(dataset, ("train",), train, first, rules)
            for prompt_hash in train.keys() - rehearsed.keys():
                rehearsed[prompt_hash] = len(versions) - 1
            _gather(dataset, ("holdout", "regression"), judged, first, rules)
        regression = [replace(row, origin=first.get(row.prompt_hash)) for row in judged.values()]
        judged_on = {"workload": workload, "version": champion.version if champion else None}
        failures = {row["topic"]: row["failures"] for row in warehouse.rows(QUERIES["failures"], judged_on)}
        held = warehouse.rows(QUERIES["held_feedback"], {"versions": versions})
        known = frozenset(row["feedback_id"] for row in held)
        return cls(versions, until, list(train.values()), regression, today, spent, known, rehearsed, failures)

    @property
    def questions(self) -> frozenset[str]:
        """The hashes of the questions on which the champion was trained."""
        return frozenset(row.prompt_hash for row in self.train)


def _known(warehouse: Warehouse, workload: str, version: str) -> Dataset:
    dataset = load(warehouse, workload, version)
    assert dataset is not None
    return dataset


def _gather(
    dataset: Dataset, splits: Iterable[str], into: dict[str, Example], first: dict[str, str], rules: Rules
) -> None:
    """Adds the rows of a dataset. Called with the newest dataset first, so `first` ends with the first holdout."""
    for split in splits:
        for values in dataset.split(split):
            row = restored(values, rules)
            into.setdefault(row.prompt_hash, row)
            if split == "holdout":
                first[row.prompt_hash] = dataset.version
