"""Groups related questions: from the same conversation, about the same document, or with similar wording.

Related questions are on the same side of a split, so that no held-out question was trained on in other words. They are
one cluster in statistics. Their votes are never merged, and their answers never replace each other.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from retuned.retrain.data.examples import Example
from retuned.retrain.data.identity import normalise, text_hash
from retuned.retrain.data.similarity import NearIndex, Template

GENERAL = 0.05
"""A feature of more than this share of the questions relates none of them, such as a handbook or a greeting."""
LEAST = 20
"""A feature of at most this many questions always relates them."""
_NEIGHBOURS = 8


class Related:
    """The groups of related questions among examples.

    Relations are applied from the strongest kind to the weakest: conversation, wording, document. A relation that would
    make a group larger than GENERAL of the questions (and LEAST) is skipped, so that a group fits into one split.
    """

    def __init__(self, examples: Iterable[Example], similarity: float) -> None:
        self._of: dict[str, str] = {}
        self._size: dict[str, int] = {}
        asked: dict[str, Example] = {}
        members: dict[str, list[Example]] = defaultdict(list)
        for example in sorted(examples, key=lambda one: (one.timestamp, one.row_id)):
            asked.setdefault(example.prompt_hash, example)
            members[example.prompt_hash].append(example)
        self._of = {question: question for question in asked}
        self._size = dict.fromkeys(asked, 1)
        self._most = max(LEAST, int(GENERAL * len(asked)))
        self._join_by((key, one) for one, rows in members.items() for row in rows for key in _conversations(row))
        self._join_near(list(asked.values()), similarity)
        self._join_by((key, one) for one, rows in members.items() for row in rows for key in _documents(row))

    def of(self, question: str) -> str:
        """Returns the group of a question, both by hash; the question itself if it is unknown."""
        if question not in self._of:
            return question
        root = question
        while self._of[root] != root:
            root = self._of[root]
        while self._of[question] != root:
            self._of[question], question = root, self._of[question]
        return root

    def _join(self, one: str, other: str) -> None:
        first, second = self.of(one), self.of(other)
        if first != second and self._size[first] + self._size[second] <= self._most:
            self._of[second] = first
            self._size[first] += self._size.pop(second)

    def _join_by(self, keyed: Iterable[tuple[str, str]]) -> None:
        having: dict[str, dict[str, None]] = defaultdict(dict)
        for key, question in keyed:
            having[key][question] = None
        for questions in having.values():
            if 1 < len(questions) <= self._most:
                first, *others = questions
                for other in others:
                    self._join(first, other)

    def _join_near(self, asked: Sequence[Example], similarity: float) -> None:
        template = Template(one.prompt for one in asked)
        near: NearIndex[str] = NearIndex(similarity)
        texts: dict[str, set[str]] = defaultdict(set)
        for one in asked:
            texts[template.varying(one.prompt)].add(one.scope)
        for one in asked:
            text = template.varying(one.prompt)
            block = one.scope if len(texts[text]) > self._most else ""
            neighbours = list(near.near(text, block))
            for other in neighbours:
                self._join(other, one.prompt_hash)
            if len(neighbours) < _NEIGHBOURS:
                near.add(text, one.prompt_hash, block)


def _conversations(row: Example) -> Iterator[str]:
    """Yields keys of a row's conversation: its id, and a hash of its messages up to each answer."""
    if row.conversation is not None:
        yield f"conversation {row.conversation}"
    begun: list[str] = []
    for turn in json.loads(row.messages):
        if turn["role"] == "system":
            continue
        begun.append(f"{turn['role']} {normalise(turn['content'])}")
        if turn["role"] == "assistant":
            yield text_hash("\n".join(begun))
    yield text_hash("\n".join([*begun, f"assistant {normalise(row.rejected or row.completion)}"]))


def _documents(row: Example) -> Iterator[str]:
    for passage in json.loads(row.context) if row.context else ():
        yield f"document {text_hash(normalise(str(passage)))}"
