"""What is checked of a selection before it is written as a dataset."""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from itertools import chain

from retuned.retrain.data.dataset import SPLITS, THUMBS, Leak, LostClass, TooFewRows
from retuned.retrain.data.examples import Example
from retuned.retrain.data.folds import can_fold
from retuned.retrain.data.questions import QuestionIndex
from retuned.retrain.data.selection import Selection
from retuned.retrain.data.similarity import Template, normalise
from retuned.retrain.data.topics import OTHER
from retuned.retrain.scoring.metric import Metric
from retuned.retrain.settings import Settings

FREQUENT = 10
"""Questions that make an answer or a topic frequent, when they are also at least FREQUENT_SHARE of all."""
FREQUENT_SHARE = 0.01
# What judges rows one by one, and what to do when it takes most of a class. Shares thin a class out and are not meant,
# nor is the quarantine of accounts, which an attacker could use to stop all training.
_CURATION = {
    "superseded": "check the newest corrections",
    "outvoted": "check who disagrees, or set dataset.quarantine: false",
    "contradicts_expert": "check the experts' corrections, or set dataset.quarantine: false",
    "duplicates": "raise dataset.near_duplicate_similarity",
    "near_holdout": "raise dataset.near_duplicate_similarity",
    "placeholder": "name the company's contacts in privacy.keep, or take placeholder out of dataset.filters",
    "incomplete": "take incomplete out of dataset.filters",
    "ungrounded": "check the passages, or take ungrounded out of dataset.filters",
}
_REPLACED = ("superseded", "outvoted", "contradicts_expert")


def check_enough(chosen: Selection, settings: Settings, workload: str) -> None:
    """Make sure that there is something to learn, and enough to be judged on.

    Raises:
        TooFewRows: it says of what, and which setting asks for more.
    """
    fresh = {name: len(chosen.splits[name]) for name in ("train", "validation", "holdout")}
    fresh["train"] -= len(chosen.replayed)
    total, needed = sum(fresh.values()), settings.dataset.minimum_rows
    if total < needed:
        left = ", ".join(f"{times} {reason}" for reason, times in chosen.left_out.items() if times)
        raise TooFewRows(
            f"workload {workload}: {total} new examples; dataset.minimum_rows asks for {needed}"
            + (f"; left out: {left}" if left else "")
        )
    needed, judged = settings.gate.minimum_examples, fresh["holdout"]
    if judged and can_fold(fresh["train"], settings):
        judged += fresh["train"]
    if judged < needed:
        raise TooFewRows(
            f"workload {workload}: {fresh['holdout']} of {total} new examples are in the holdout; "
            f"gate.minimum_examples asks for {needed}, so no training could pass"
        )
    if not fresh["train"]:
        raise TooFewRows(f"workload {workload}: no example is left to train on; lower dataset.holdout_share")


def check_classes(chosen: Selection, similarity: float, template: Template, workload: str, metric: Metric) -> None:
    """Refuse a dataset in which a frequent answer or topic loses most of its questions.

    The unit is the question: one is lost when no row of it is left. An answer that another one replaced for the same
    question, in whatever near wording, is no loss: the question has a row. Answers are one by the metric's key.

    Raises:
        LostClass: it names the answer or topic, what took its questions, and what to do.
    """
    kept = [row for name in SPLITS for row in chosen.splits[name]]
    kept += [one.row for one in chosen.left if one.reason.endswith("_share")]
    index: QuestionIndex[bool] = QuestionIndex(similarity, template)
    for row in kept:
        index.add(row, True)
    known = {row.prompt_hash for row in kept}
    lost = {
        left.row.prompt_hash: left
        for left in chosen.left
        if left.reason in _CURATION
        and left.row.prompt_hash not in known
        and not (left.reason in _REPLACED and any(index.same(left.row)))
    }
    if not lost:
        return
    rows = [row for row in kept if row.row_id not in chosen.replayed] + [left.row for left in lost.values()]
    named: dict[tuple[str, Hashable], str] = {}
    classes: dict[tuple[str, Hashable], set[str]] = {}
    for row, topic in zip(rows, chosen.topics.of([row.question for row in rows]), strict=True):
        for kind, key, name in (
            ("answer", metric.key(row.completion), _short(row.completion)),
            ("topic", topic, topic),
        ):
            if key != OTHER:
                named.setdefault((kind, key), f"the {kind} {name!r}")
                classes.setdefault((kind, key), set()).add(row.prompt_hash)
    least = max(FREQUENT, FREQUENT_SHARE * len({row.prompt_hash for row in rows}))
    for one, questions in sorted(classes.items(), key=lambda item: -len(item[1] & lost.keys()) / len(item[1])):
        gone = Counter(lost[question].reason for question in questions & lost.keys())
        if len(questions) >= least and 2 * gone.total() > len(questions):
            rules = ", ".join(f"{times} {reason}" for reason, times in gone.most_common())
            raise LostClass(
                f"workload {workload}: {gone.total()} of {len(questions)} questions with {named[one]} would be left "
                f"out ({rules}), so that a model would not learn them and nothing would show it; "
                f"{_CURATION[gone.most_common(1)[0][0]]}"
            )


def check_leaks(
    splits: Mapping[str, Sequence[Example]],
    thumbs: Sequence[tuple[Example, bool]],
    similarity: float,
    template: Template,
) -> None:
    """Make sure that nothing learned from asks a question that is judged on (see `QuestionIndex`).

    Raises:
        Leak: it names the first such row, its split and the question.
    """
    judged: QuestionIndex[Example] = QuestionIndex(similarity, template)
    for row in chain(splits["holdout"], splits["regression"]):
        judged.add(row, row)
    learned = [(name, row) for name in ("train", "validation") for row in splits[name]]
    for name, row in chain(learned, ((THUMBS, row) for row, _ in thumbs)):
        near = next(judged.same(row), None)
        if near is not None:
            raise Leak(
                f"dataset: row {row.row_id} of {name} asks what row {near.row_id} is judged on ({near.question!r}); "
                "nothing was written: please report this"
            )


def _short(text: str) -> str:
    text = normalise(text)
    return text if len(text) <= 60 else f"{text[:59]}…"
