"""Selects the rows of a dataset: right today, each question once, limited shares, related questions in one split.

Every statement has one state, which is in `Selection.states`. Each dataset decides anew.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import chain

from retuned.retrain.data.dataset import SPLITS
from retuned.retrain.data.evidence import Earlier, Evidence
from retuned.retrain.data.examples import Example
from retuned.retrain.data.identity import text_hash
from retuned.retrain.data.moved import Moved
from retuned.retrain.data.related import Related
from retuned.retrain.data.splits import NEAR_HOLDOUT, NEAR_TRAINING, assigned_splits, split_of, topic_of
from retuned.retrain.data.table import Decided, State, accounts_of
from retuned.retrain.data.topics import Topics
from retuned.retrain.settings import DatasetSettings

_LEAST = 5
"""Groups of this many rows are never cut."""
EARLIER = "earlier"
_CONFLICT = "most questions that had this answer have another one by now, and nobody has asked this one since"
_BOUGHT = "the incumbent gave it, and dataset.learn_from_incumbent is false"
_CASCADED = "such requests go to the incumbent (cascade), so no version is compared by them"
_NEAR = {
    NEAR_TRAINING: "the champion was trained on a related question",
    NEAR_HOLDOUT: "a related question is in the holdout or the regression set",
}
_HELD_OUT = ("holdout", "regression")


@dataclass(frozen=True)
class Selection:
    """The rows of a dataset, and the state of every statement."""

    splits: dict[str, list[Example]]
    replayed: frozenset[str]
    thumbs: list[tuple[Example, bool]]
    states: list[Decided]
    topics: Topics

    @property
    def left(self) -> list[Decided]:
        """The statements that are in no split, now or earlier."""
        return [one for one in self.states if one.reason and one.reason != EARLIER]

    @property
    def left_out(self) -> dict[str, int]:
        """The number of those statements, by reason."""
        return dict(Counter(one.reason for one in self.left))


def select(
    evidence: Evidence, earlier: Earlier, settings: DatasetSettings, learned: frozenset[str] = frozenset()
) -> Selection:
    """Chooses the rows of each split. The same evidence gives the same selection.

    Args:
        learned: questions that the champion learned, if the training does not start from it.
    """
    return _Selector(evidence, earlier, settings, learned).select()


class _Selector:
    """The state that the steps of a selection share. `left` collects the rows that are in no split."""

    def __init__(
        self, evidence: Evidence, earlier: Earlier, settings: DatasetSettings, learned: frozenset[str]
    ) -> None:
        self.evidence, self.earlier, self.settings = evidence, earlier, settings
        self.of_champion = frozenset(evidence.related.of(question) for question in learned)
        self.overrides, self.related, self.topics = evidence.overrides, evidence.related, evidence.topics
        self.today = {row.prompt_hash: row for row in evidence.rows}
        self.set_aside = {one.row.feedback_id for one in evidence.decided if one.state == "set_aside"}
        superseded = [one.row for one in evidence.decided if one.reason == "superseded"]
        known = [*earlier.train, *earlier.judged, *superseded, *evidence.rows]
        accounts = accounts_of([one.row for one in evidence.decided])
        contradictions = [
            (one.row, account)
            for one, account in zip(evidence.decided, accounts, strict=True)
            if one.reason == "contradicts_expert"
        ]
        self.moved = Moved(known, self.today, evidence.metric.metric, contradictions, evidence.independence)
        self.left: list[Decided] = []

    def select(self) -> Selection:
        rows = self._within_shares(self._current())
        self.topics = self.topics.learned([row.question for row in rows], self.settings.topics)
        rows = self._with_topics(rows)
        still_judged = [row for row in self.earlier.judged if self._still_right(row)]
        # A question that the champion was trained on proves nothing, and one of an evaluation is never trained on.
        learned, judged = self._groups(self.earlier.train), self._groups(still_judged)
        bought = {row.prompt_hash for row in rows if self._is_bought(row)}
        place = assigned_splits(rows, self.evidence, self.settings, self.earlier.generation, learned, judged, bought)
        splits = self._placed(rows, place)
        splits["regression"] = self._with_topics(self._regression(still_judged, splits["holdout"]))
        held_out = self._groups(splits["holdout"] + splits["regression"])
        for name in ("holdout", "regression"):
            splits[name] = self._unknown_to_champion(splits[name])
        replay = self._with_topics(self._replay(splits, held_out))
        splits["train"] = list(map(self._learnable, [*splits["train"], *replay]))
        states = _states(self.evidence, splits, self.left)
        replayed = frozenset(row.row_id for row in replay)
        return Selection(splits, replayed, self._thumbs(place, held_out), states, self.topics)

    def _leave(self, row: Example, state: State, reason: str, detail: str) -> None:
        self.left.append(Decided(row, state, reason, detail))

    def _current(self) -> list[Example]:
        """Returns the new rows that may be learned, at most dataset.maximum_rows: first those that a person wants
        taught, then the newest."""
        until = self.earlier.until
        known, stated = _statements(self.evidence, self.earlier)
        rows = []
        for row in sorted(self.evidence.rows, key=lambda row: (row.timestamp, row.row_id), reverse=True):
            if until is not None and row.prompt_hash in known and stated[row.prompt_hash] <= until:
                continue  # the latest dataset with the question has it, and no statement has repeated it since
            if self.moved.outdated(row) and not self.overrides.wanted(row):
                self._leave(row, "waiting", "conflict", _CONFLICT)
            else:
                rows.append(row)
        rows.sort(key=self.overrides.wanted, reverse=True)
        for row in rows[self.settings.maximum_rows :]:
            self._leave(row, "waiting", "maximum_rows", "other rows fill the dataset")
        return rows[: self.settings.maximum_rows]

    def _within_shares(self, rows: list[Example]) -> list[Example]:
        """Limits the shares of users and of sources."""
        shares = self.settings.maximum_source_shares
        rows = self._capped(rows, "user_share", _capped_user, lambda _: self.settings.maximum_user_share, 2)
        return self._capped(rows, "source_share", lambda row: row.taught_by, lambda name: shares.get(name, 1), 1)

    def _capped(
        self,
        rows: list[Example],
        reason: str,
        group: Callable[[Example], str | None],
        share: Callable[[str], float],
        even_shares: int,
    ) -> list[Example]:
        """Limits each group to its share. The most trusted rows are kept, then those with the lowest hash.

        No group is cut below `even_shares` times an equal share. Rows without a group, and rows that a person wants
        taught, are kept.
        """
        groups: dict[str, list[Example]] = {}
        for row in rows:
            if (name := group(row)) is not None and not self.overrides.wanted(row):
                groups.setdefault(name, []).append(row)
        dropped: set[str] = set()
        for name, members in groups.items():
            most = int(max(share(name), min(even_shares / len(groups), 1)) * len(rows))
            for row in sorted(members, key=lambda row: (-row.rank, row.row_id))[max(most, _LEAST) :]:
                dropped.add(row.row_id)
                self._leave(row, "set_aside", reason, f"{len(members)} rows of {name}")
        return [row for row in rows if row.row_id not in dropped]

    def _with_topics(self, rows: Sequence[Example]) -> list[Example]:
        """Sets the topic and the cluster of rows."""
        names = self.topics.of([row.question for row in rows])
        return [
            replace(row, topic=name, cluster=self.related.of(row.prompt_hash))
            for row, name in zip(rows, names, strict=True)
        ]

    def _still_right(self, row: Example) -> bool:
        """Returns whether the answer of an earlier row agrees with the evidence of today."""
        now = self.today.get(row.prompt_hash, row)
        return (
            self.overrides.against(row) is None
            and row.feedback_id not in self.set_aside
            and row.prompt_hash not in self.evidence.undecided
            and not self.moved.outdated(now)
            and self.evidence.metric.compare(row.completion, now.completion) is not False
        )

    def _groups(self, rows: Iterable[Example]) -> frozenset[str]:
        return frozenset(self.related.of(row.prompt_hash) for row in rows)

    def _placed(self, rows: Sequence[Example], place: Mapping[str, str]) -> dict[str, list[Example]]:
        """Returns the new rows of each split."""
        splits: dict[str, list[Example]] = {name: [] for name in SPLITS}
        spent = {row.prompt_hash for row in self.earlier.spent}
        for row in rows:
            split = place[row.prompt_hash]
            if split in _NEAR:
                self._leave(row, "waiting", split, _NEAR[split])
            elif split == "holdout" and row.prompt_hash in spent:
                self._leave(row, "held_out", "spent", "it was held out in an earlier draw of the holdout")
            elif split == "holdout" and row.interaction_id in self.evidence.cascaded:
                self._leave(row, "set_aside", "cascade", _CASCADED)
            elif split != "holdout" and self._is_bought(row):
                self._leave(row, "set_aside", "incumbent", _BOUGHT)
            else:
                splits[split].append(row)
        share = self.settings.maximum_topic_share
        splits["train"] = self._capped(splits["train"], "topic_share", topic_of, lambda _: share, 2)
        return splits

    def _unknown_to_champion(self, rows: Sequence[Example]) -> list[Example]:
        """Returns the held-out rows that show whether a candidate is as good as a champion from which it does not
        start."""
        kept = []
        for row in rows:
            if self.related.of(row.prompt_hash) in self.of_champion:
                self._leave(row, "waiting", NEAR_TRAINING, _NEAR[NEAR_TRAINING])
            else:
                kept.append(row)
        return kept

    def _learnable(self, row: Example) -> Example:
        """Returns a row to train on, without a rejected answer from which no model may learn."""
        return replace(row, rejected=None) if row.interaction_id in self.evidence.unlearned else row

    def _is_bought(self, row: Example) -> bool:
        """Returns whether the answer is the incumbent's, which may be compared with but not learned."""
        return row.kind == "accepted" and row.interaction_id in self.evidence.bought

    def _regression(self, still_judged: Sequence[Example], holdout: Sequence[Example]) -> list[Example]:
        """Returns earlier held-out rows. A row leaves the regression set only for newer evidence."""
        asked = {row.prompt_hash for row in holdout}
        kept = {row.row_id for row in still_judged}
        for row in self.earlier.judged:
            if row.row_id not in kept and row.prompt_hash not in asked:
                if (why := self.overrides.against(row)) is not None:
                    self._leave(row, "overruled", *why)
                else:
                    self._leave(row, "waiting", "regression_superseded", "newer evidence contradicts it")
        return [row for row in still_judged if row.prompt_hash not in asked]

    def _replay(self, splits: Mapping[str, Sequence[Example]], held_out: frozenset[str]) -> list[Example]:
        """Returns the earlier training rows to repeat: all pinned rows, and others up to dataset.replay_share."""
        learned = {row.prompt_hash for row in splits["train"]}
        rows = [
            row
            for row in self.earlier.train
            if row.prompt_hash not in learned
            and self.related.of(row.prompt_hash) not in held_out
            and self._still_right(row)
            and not self._is_bought(row)
        ]
        share = min(self.settings.replay_share, 0.99)
        wanted = round(len(splits["train"]) * share / (1 - share))
        pinned = [row for row in rows if self.overrides.pinned(row)]
        others = _in_replay_order([row for row in rows if not self.overrides.pinned(row)], self.earlier)
        return [*pinned, *others][: max(wanted, len(pinned))]

    def _thumbs(self, place: Mapping[str, str], held_out: frozenset[str]) -> list[tuple[Example, bool]]:
        """Returns the new thumbs on questions that no evaluation contains, oldest first."""
        until, places = self.earlier.until, self.evidence.places

        def is_held_out(row: Example) -> bool:
            drawn = split_of(row.near_form, self.settings, self.earlier.generation)
            known = (places.get(row.prompt_hash), places.get(row.interaction_id), place.get(row.prompt_hash))
            return "holdout" in (drawn, *known) or self.related.of(row.prompt_hash) in held_out

        thumbs = [
            (row, helpful)
            for row, helpful in self.evidence.thumbs
            if (until is None or row.received_at > until) and not is_held_out(row)
        ]
        rows = self._with_topics([row for row, _ in thumbs])
        pairs = zip(rows, (helpful for _, helpful in thumbs), strict=True)
        return sorted(pairs, key=lambda thumb: (thumb[0].timestamp, thumb[0].row_id))


def _statements(evidence: Evidence, earlier: Earlier) -> tuple[set[str], dict[str, datetime]]:
    """Returns the questions whose answer earlier datasets contain, and when each answer was last stated.

    Of a question with several answers in earlier datasets, the latest counts, by its feedback.
    """
    latest = {(row.prompt_hash, row.feedback_id): row.completion for row in chain(earlier.train, earlier.judged)}
    asked = {question for question, _ in latest}
    known: set[str] = set()
    newest: dict[str, datetime] = {}
    for one in evidence.decided:
        if one.state == "taught":
            row = one.row
            newest[row.prompt_hash] = max(newest.get(row.prompt_hash, row.received_at), row.received_at)
            if row.prompt_hash not in asked:
                contains = row.feedback_id in earlier.known
            else:
                before = latest.get((row.prompt_hash, row.feedback_id))
                contains = before is not None and evidence.metric.compare(before, row.completion) is not False
            if contains:
                known.add(row.prompt_hash)
    return known, newest


def _states(evidence: Evidence, splits: dict[str, list[Example]], left: Sequence[Decided]) -> list[Decided]:
    """Returns the state of every statement: that of its question's row, if it gives the same answer."""
    split_of_question = {row.prompt_hash: name for name in SPLITS for row in splits[name]}
    aside = {one.row.feedback_id: one for one in left}
    of_question = {one.row.prompt_hash: one for one in left if one.reason != "regression_superseded"}
    states: dict[str, Decided] = {}
    for one in evidence.decided:
        row = one.row
        if one.state == "taught":
            split = split_of_question.get(row.prompt_hash)
            if split is not None:
                one = replace(one, state="held_out" if split in _HELD_OUT else "taught")
            elif (cause := of_question.get(row.prompt_hash)) is not None:
                one = replace(cause, row=row)
            else:
                one = replace(one, reason=one.reason or EARLIER, detail=one.detail or "an earlier dataset taught it")
        states[row.feedback_id] = one
    return [*states.values(), *(one for id, one in aside.items() if id not in states)]


def sample_of_traffic(
    unrated: Sequence[Example], chosen: Selection, related: Related, settings: DatasetSettings
) -> list[Example]:
    """Returns the first dataset.traffic_rows unrated answers whose questions are related to no row of the dataset.

    One of each group of related questions. Learned questions would show nothing, and held-out ones have an approved
    answer.
    """
    used = {related.of(row.prompt_hash) for row in chain(*chosen.splits.values(), (row for row, _ in chosen.thumbs))}
    kept: list[Example] = []
    for row in unrated:
        if len(kept) == settings.traffic_rows:
            break
        if (group := related.of(row.prompt_hash)) not in used:
            used.add(group)
            kept.append(row)
    names = chosen.topics.of([row.question for row in kept])
    return [replace(row, topic=name) for row, name in zip(kept, names, strict=True)]


def _in_replay_order(old: Sequence[Example], earlier: Earlier) -> list[Example]:
    """Returns rows of earlier datasets in the order in which they are replayed.

    Rows that were replayed longest ago come first, so that every row has its turn. Rows of topics that the champion
    fails come up to twice as often: the rounds since the last replay are multiplied by 1 plus the share of the topic's
    questions that the champion answered wrong. Failures of single rows are unknown, because the champion was never
    evaluated on its training rows. Ties are broken by a hash that changes with each dataset.
    """
    drawn_by = earlier.versions[0] if earlier.versions else ""

    def order(row: Example) -> tuple[float, str]:
        rounds = 1 + earlier.rehearsed.get(row.prompt_hash, 0)
        return -rounds * (1 + earlier.failures.get(row.topic or "", 0.0)), text_hash(f"{drawn_by} {row.row_id}")

    return sorted(old, key=order)


def _capped_user(row: Example) -> str | None:
    return None if row.is_expert else row.user_id
