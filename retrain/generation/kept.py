"""Answers of earlier evaluations, so that no model generates the same answer twice.

A model answers greedily: the same version gives the same answer to the same prompt. The base model and the champion are
asked the general, the regression and most of the holdout questions again in each run, and a candidate that was promoted
is the champion of the next one.
"""

import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retuned.consumers.common.durable import replace_text

if TYPE_CHECKING:
    from retuned.retrain.kernels.packing import Encoded

MOST = 20_000
"""Answers that a workload keeps: the latest that an evaluation used. With answers of 1 KB the file has 20 MB."""


@dataclass(frozen=True)
class Kept:
    """An answer without its time, which depends on the machine and its load.

    Attributes:
        tokens: of the answer, its end included.
        limit: the most tokens that it could have had.
        loss: of the approved answer, nats per token; None where it is not known.
    """

    text: str
    tokens: int
    limit: int
    loss: float | None

    def holds(self, limit: int) -> bool:
        """Whether the model gives this answer under another limit, too: it ended by itself before either."""
        return limit == self.limit or self.tokens < min(limit, self.limit)


class KeptAnswers:
    """Answers by model, prompt and approved answer. Safe to use from several threads.

    Args:
        file: where they are kept between evaluations; None: this object alone remembers them.
        models: name of a model to what identifies its weights.
        scope: all else that decides what is generated, such as the type of the weights.
    """

    def __init__(self, file: Path | None = None, models: Mapping[str, str] | None = None, scope: str = "") -> None:
        self._file, self._models, self._scope = file, models or {}, scope
        self._lock = threading.Lock()
        self._known = _read(file)

    def find(self, model: str, row: Mapping[str, Any], encoded: "Encoded", limit: int) -> Kept | None:
        """What the model answered to a row; None: it has to be asked."""
        key = self._key(model, row, encoded)
        with self._lock:
            found = self._known.get(key)
            if found is None or not found.holds(limit):
                return None
            self._known[key] = self._known.pop(key)  # the latest used stand last
            return found

    def keep(self, model: str, row: Mapping[str, Any], encoded: "Encoded", answer: Kept) -> None:
        """Keep an answer at once: an evaluation that is killed goes on from here."""
        key = self._key(model, row, encoded)
        with self._lock:
            self._known.pop(key, None)
            self._known[key] = answer
            if self._file is not None:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                with self._file.open("a", encoding="utf-8") as file:
                    file.write(_line(key, answer))

    def close(self) -> None:
        """Write the file anew, without what was not used for longest where there are too many."""
        if self._file is not None and self._known:
            latest = list(self._known.items())[-MOST:]
            replace_text(self._file, "".join(_line(key, answer) for key, answer in latest))

    def _key(self, model: str, row: Mapping[str, Any], encoded: "Encoded") -> str:
        """`row`: its tools decide how the text is read."""
        asked = [self._scope, self._models.get(model, model), encoded.prompt, encoded.completion, row.get("tools")]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def _line(key: str, answer: Kept) -> str:
    return json.dumps([key, answer.text, answer.tokens, answer.limit, answer.loss], ensure_ascii=False) + "\n"


def _read(file: Path | None) -> dict[str, Kept]:
    """The answers in a file; a line that a crash cut off is none."""
    found: dict[str, Kept] = {}
    if file is None or not file.is_file():
        return found
    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                key, text, tokens, limit, loss = json.loads(line)
            except ValueError:
                continue
            found.pop(key, None)
            found[key] = Kept(text, tokens, limit, loss)
    return found
