"""Which rows of the evidence a dataset is made of: true today, each question once, nobody's flood, splits apart."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from retuned.retrain.data.contradictions import Contradictions
from retuned.retrain.data.dataset import SPLITS
from retuned.retrain.data.evidence import Earlier, Evidence, LeftOut
from retuned.retrain.data.examples import Example
from retuned.retrain.data.questions import QuestionIndex
from retuned.retrain.data.similarity import Template, text_hash
from retuned.retrain.data.splits import assigned_splits, split_of, topic_of
from retuned.retrain.data.topics import Topics
from retuned.retrain.scoring.metric import Same
from retuned.retrain.settings import DatasetSettings

_REASONS = ("superseded", "duplicates", "near_holdout", "near_training", "spent", "regression_superseded")
_LEAST = 5  # rows of a group are no flood


@dataclass(frozen=True)
class Selection:
    """The rows of a dataset, and what was left out."""

    splits: dict[str, list[Example]]
    replayed: frozenset[str]
    thumbs: list[tuple[Example, bool]]
    left: list[LeftOut]
    topics: Topics

    @property
    def left_out(self) -> dict[str, int]:
        """How many rows, by reason."""
        return dict.fromkeys(_REASONS, 0) | dict(Counter(left.reason for left in self.left))


def select(evidence: Evidence, earlier: Earlier, settings: DatasetSettings) -> Selection:
    """Choose the rows of each split. The same evidence gives the same selection."""
    similarity, template = settings.near_duplicate_similarity, evidence.template
    outdated = [one.row for one in evidence.left if one.reason == "superseded"]
    contradictions = Contradictions(
        evidence.rows,
        [*earlier.train, *earlier.judged, *outdated],
        earlier.until,
        similarity,
        template,
        evidence.metric.same,
    )

    def indexed(rows: Iterable[Example]) -> QuestionIndex[bool]:
        index: QuestionIndex[bool] = QuestionIndex(similarity, template)
        for row in rows:
            index.add(row, True)
        return index

    def fresh(row: Example) -> bool:
        return earlier.until is None or row.received_at > earlier.until

    def still_true(row: Example) -> bool:
        return row.feedback_id not in evidence.consensus.doubts and contradictions.of(row, earlier=True) is None

    left = [one for one in evidence.left if fresh(one.row)]
    valid = []
    for row in filter(fresh, evidence.rows):
        against = contradictions.of(row, earlier=False)
        if against is None:
            valid.append(row)
        else:
            left.append(LeftOut(row, "superseded", f"{against.feedback_id} says: {against.completion}"))
    distinct, twice = _distinct(valid, QuestionIndex(similarity, template), evidence.metric.same)
    left += twice
    distinct = sorted(distinct, key=lambda row: (row.timestamp, row.row_id), reverse=True)[: settings.maximum_rows]
    distinct = _capped(distinct, "user_share", _capped_user, lambda _: settings.maximum_user_share, 2, left)
    distinct = _capped(
        distinct,
        "source_share",
        lambda row: row.taught_by,
        lambda name: settings.maximum_source_shares.get(name, 1),
        1,
        left,
    )
    topics = evidence.topics.learned([row.question for row in distinct], settings.topics)

    def named(rows: Sequence[Example]) -> list[Example]:
        names = topics.of([row.question for row in rows])
        return [replace(row, topic=name) for row, name in zip(rows, names, strict=True)]

    distinct = named(distinct)
    place = assigned_splits(distinct, evidence, settings, earlier.generation)
    splits: dict[str, list[Example]] = {name: [] for name in SPLITS}
    for row in distinct:
        splits[place[row.prompt_hash]].append(row)

    # A prompt that the champion was trained on proves nothing, and one that is judged on is never trained on.
    untaught = _apart(splits["holdout"], indexed(earlier.train), "near_training", left)
    held_out = _apart(untaught, indexed(earlier.spent), "spent", left)
    # Once judged on, always judged on: a row leaves the regression set only for newer evidence.
    asked = {row.prompt_hash for row in held_out}
    regression: list[Example] = []
    for row in earlier.judged:
        if row.prompt_hash in asked:
            continue
        if still_true(row):
            regression.append(row)
        else:
            left.append(LeftOut(row, "regression_superseded"))
    judged = indexed(chain(held_out, regression))
    for name in ("train", "validation"):
        splits[name] = _apart(splits[name], judged, "near_holdout", left)
    splits["train"] = _capped(splits["train"], "topic_share", topic_of, lambda _: settings.maximum_topic_share, 2, left)

    taught = {row.prompt_hash for row in splits["train"] + splits["validation"]}
    old = [
        row for row in earlier.train if row.prompt_hash not in taught and still_true(row) and not any(judged.same(row))
    ]
    share = min(settings.replay_share, 0.99)
    wanted = round(len(splits["train"]) * share / (1 - share))
    replay = named(_rehearsal(old, earlier)[:wanted])
    splits |= {"train": splits["train"] + replay, "holdout": held_out, "regression": named(regression)}
    thumbs = [
        (row, desirable)
        for row, desirable in evidence.thumbs
        if fresh(row)
        and "holdout"
        not in (
            place.get(row.prompt_hash),
            split_of(row.identity, settings, earlier.generation),
            evidence.places.get(row.prompt_hash),
            evidence.places.get(row.interaction_id),
        )
        and not any(judged.same(row))
    ]
    topical = zip(named([row for row, _ in thumbs]), (desirable for _, desirable in thumbs), strict=True)
    oldest_first = sorted(topical, key=lambda thumb: (thumb[0].timestamp, thumb[0].row_id))
    return Selection(splits, frozenset(row.row_id for row in replay), oldest_first, left, topics)


def sample_of_traffic(
    unrated: Sequence[Example], chosen: Selection, template: Template, settings: DatasetSettings
) -> list[Example]:
    """The first dataset.traffic_rows answers that nobody rated, whose questions are no row's of the dataset: what was
    learned shows nothing, and what is judged on has an approved answer. One of each question."""
    index: QuestionIndex[bool] = QuestionIndex(settings.near_duplicate_similarity, template)
    for row in chain(*chosen.splits.values(), (row for row, _ in chosen.thumbs)):
        index.add(row, True)
    kept: list[Example] = []
    for row in unrated:
        if len(kept) == settings.traffic_rows:
            break
        if not any(index.same(row)):
            index.add(row, True)
            kept.append(row)
    names = chosen.topics.of([row.question for row in kept])
    return [replace(row, topic=name) for row, name in zip(kept, names, strict=True)]


def _rehearsal(old: Sequence[Example], earlier: Earlier) -> list[Example]:
    """Rows of earlier datasets in the order in which they are rehearsed.

    What was rehearsed longest ago comes first, so that all of it comes up over the rounds, and what the champion fails
    comes up to twice as often: the rounds since then count more by the share of its topic's questions that the champion
    answered wrong. Rows are not known one by one: the champion was never judged on what it learned. Of equals each
    round draws others, the same ones for the same evidence.
    """
    drawn_by = earlier.versions[0] if earlier.versions else ""

    def order(row: Example) -> tuple[float, str]:
        rounds = 1 + earlier.rehearsed.get(row.prompt_hash, 0)
        return -rounds * (1 + earlier.failures.get(row.topic or "", 0.0)), text_hash(f"{drawn_by} {row.row_id}")

    return sorted(old, key=order)


def _capped(
    rows: list[Example],
    reason: str,
    group: Callable[[Example], str | None],
    share: Callable[[str], float],
    even_shares: int,
    left: list[LeftOut],
) -> list[Example]:
    """The rows without what a group has beyond its share; what is kept is the most trusted, then drawn by hash.

    No group is cut below `even_shares` times what each would have if all had the same. Rows of no group stay.
    """
    groups: dict[str, list[Example]] = {}
    for row in rows:
        if (name := group(row)) is not None:
            groups.setdefault(name, []).append(row)
    dropped: set[str] = set()
    for name, members in groups.items():
        most = int(max(share(name), min(even_shares / len(groups), 1)) * len(rows))
        for row in sorted(members, key=lambda row: (-row.rank, row.row_id))[max(most, _LEAST) :]:
            dropped.add(row.row_id)
            left.append(LeftOut(row, reason, f"{len(members)} rows of {name}"))
    return [row for row in rows if row.row_id not in dropped]


def _capped_user(row: Example) -> str | None:
    return None if row.source in ("expert", "demonstration") else row.user_id


def _apart(rows: Iterable[Example], others: QuestionIndex[bool], reason: str, left: list[LeftOut]) -> list[Example]:
    kept = []
    for row in rows:
        if any(others.same(row)):
            left.append(LeftOut(row, reason))
        else:
            kept.append(row)
    return kept


def _distinct(
    rows: Iterable[Example], index: QuestionIndex[Example], same_answer: Same
) -> tuple[list[Example], list[LeftOut]]:
    """One example for each question: the most trusted, then the newest. Near duplicates go when they say the same."""
    kept: list[Example] = []
    left: list[LeftOut] = []
    for row in sorted(rows, key=lambda row: (row.rank, row.timestamp, row.row_id), reverse=True):
        same = next(
            (
                other
                for other in index.same(row)
                if other.prompt_hash == row.prompt_hash or same_answer(row.completion, other.completion)
            ),
            None,
        )
        if same is not None:
            left.append(LeftOut(row, "duplicates", f"{same.feedback_id} says: {same.completion}"))
            continue
        index.add(row, row)
        kept.append(row)
    return kept, left
