"""Checks of a selection before it is written as a dataset."""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from itertools import chain

import numpy as np

from retuned.retrain.data.dataset import SPLITS, THUMBS, Leak, LostClass, TooFewRows
from retuned.retrain.data.examples import Example
from retuned.retrain.data.folds import can_fold
from retuned.retrain.data.identity import normalise
from retuned.retrain.data.related import Related
from retuned.retrain.data.selection import Selection
from retuned.retrain.data.similarity import near_pairs
from retuned.retrain.data.topics import OTHER
from retuned.retrain.scoring.metric import Metric
from retuned.retrain.settings import FILTERS, Settings

FREQUENT = 10
"""An answer or topic is frequent with this many questions, if they are also at least FREQUENT_SHARE of all."""
FREQUENT_SHARE = 0.01
FILTERED = (*FILTERS, "unreadable")
_SHOWN = 2
# The reasons that set single rows aside, and what to do if one takes most of a class. Shares thin a class out, so they
# are not listed. Neither are disputes between accounts: an attacker could use them to stop all training.
_CURATION = {
    "outvoted": "check who disagrees",
    "contradicts_expert": "check the experts' corrections",
    "superseded": "check the newest corrections",
    "unreadable": "check metric.name, metric.labels and metric.json_schema",
    "near_holdout": "raise dataset.near_duplicate_similarity",
    "placeholder": "name the company's contacts in privacy.keep, and arguments that hold no users in "
    "privacy.keep_keys, or take placeholder out of dataset.filters",
    "incomplete": "take incomplete out of dataset.filters",
    "repetitive": "take repetitive out of dataset.filters",
    "off_language": "take off_language out of dataset.filters",
    "unspecific": "keep one such row if its answer is right (retuned rows keep), or have an expert give it",
    "ungrounded": "check the passages, or take ungrounded out of dataset.filters",
}


def check_enough(chosen: Selection, settings: Settings, workload: str) -> None:
    """Checks that there are enough rows for training and for evaluation.

    Raises:
        TooFewRows: the message names the split and the setting that requires more.
    """
    fresh = {name: len(chosen.splits[name]) for name in ("train", "holdout")}
    fresh["train"] -= len(chosen.replayed)
    total, needed = sum(fresh.values()), settings.dataset.minimum_rows
    if total < needed:
        left = ", ".join(
            f"{times} {reason}" for reason, times in chosen.left_out.items() if times and reason != "duplicates"
        )
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


def check_classes(chosen: Selection, workload: str, metric: Metric) -> None:
    """Refuses a dataset in which a frequent answer, topic or source loses most of its questions.

    The unit is the question: one is lost if no row of it is left. Answers with the same metric key are one class.

    Raises:
        LostClass: the message names the class, the reasons, the ids of examples, and what to do. It quotes no text: the
            error of a run is shown to people who may not read conversations.
    """
    kept = [row for name in SPLITS for row in chosen.splits[name]]
    kept += [one.row for one in chosen.left if one.reason.endswith("_share")]
    known = {row.prompt_hash for row in kept}
    lost = {
        left.row.prompt_hash: left
        for left in chosen.left
        if left.reason in _CURATION and left.row.prompt_hash not in known
    }
    if not lost:
        return
    rows = [row for row in kept if row.row_id not in chosen.replayed] + [left.row for left in lost.values()]
    unclassed = {question for question, one in lost.items() if one.reason in ("unreadable", "unspecific")}
    of_form = {question: one.reason in FILTERED for question, one in lost.items()}
    labels = {normalise(label) for label in metric.learned.get("labels", ())}
    named: dict[tuple[str, Hashable], str] = {}
    classes: dict[tuple[str, Hashable], set[str]] = {}
    for row, topic in zip(rows, chosen.topics.of([row.question for row in rows]), strict=True):
        text = normalise(row.completion)
        answer = repr(text) if text in labels else f"of feedback {row.feedback_id}"
        for kind, key, name in (
            # Answers that programs cannot read are no class. Nor is one joke, by which anybody could stop all training.
            ("answer", None if row.prompt_hash in unclassed else metric.key(row.completion), answer),
            ("topic", None if topic == OTHER else topic, repr(topic)),
            # Neither is a source that was outvoted: it could stop all training.
            ("source", row.taught_by if of_form.get(row.prompt_hash, True) else None, repr(row.taught_by)),
        ):
            if key is not None:
                named.setdefault((kind, key), f"the {kind} {name}")
                classes.setdefault((kind, key), set()).add(row.prompt_hash)
    least = max(FREQUENT, FREQUENT_SHARE * len({row.prompt_hash for row in rows}))
    for one, questions in sorted(classes.items(), key=lambda item: -len(item[1] & lost.keys()) / len(item[1])):
        gone = Counter(lost[question].reason for question in questions & lost.keys())
        if len(questions) >= least and 2 * gone.total() > len(questions):
            rules = ", ".join(f"{times} {reason}" for reason, times in gone.most_common())
            examples = ", ".join(
                lost[question].row.feedback_id for question in sorted(questions & lost.keys())[:_SHOWN]
            )
            raise LostClass(
                f"workload {workload}: {gone.total()} of {len(questions)} questions with {named[one]} would be left "
                f"out ({rules}), so that a model would not learn them and nothing would show it, such as those of "
                f"feedback {examples} (`retuned dataset preview {workload}` shows them); "
                f"{_CURATION[gone.most_common(1)[0][0]]}"
            )


def check_leaks(
    splits: Mapping[str, Sequence[Example]], thumbs: Sequence[tuple[Example, bool]], related: Related
) -> None:
    """Checks that no row to learn from is related to a held-out question, by its group, or by its words and scope.

    The words are compared here, whatever the groups are.

    Raises:
        Leak: the message names the first such row, its split and the question.
    """
    held_out = [*splits["holdout"], *splits["regression"]]
    learned = [*(("train", row) for row in splits["train"]), *((THUMBS, row) for row, _ in thumbs)]
    judged = {related.of(row.prompt_hash): row for row in held_out}
    for name, row in learned:
        if (near := judged.get(related.of(row.prompt_hash))) is not None:
            raise _leak(name, row, near)
    scopes: dict[str, list[tuple[str, Example]]] = {}
    for name, row in chain((("", row) for row in held_out), learned):
        scopes.setdefault(row.scope, []).append((name, row))
    for rows in scopes.values():
        side = np.array([bool(name) for name, _ in rows])
        texts = [related.template.varying(row.prompt) for _, row in rows]
        for pair in near_pairs(texts, related.similarity, side) if 0 < side.sum() < len(side) else ():
            (_, near), (name, row) = sorted((rows[one] for one in pair), key=lambda one: bool(one[0]))
            raise _leak(name, row, near)


def _leak(name: str, row: Example, near: Example) -> Leak:
    return Leak(
        f"dataset: row {row.row_id} of {name} asks the held-out question of row {near.row_id}; nothing was written: "
        "please report this"
    )
